"""Names and sentences that come from a user's model, made harmless for where they are shown."""

from __future__ import annotations

from gradwatch.names import printable


def markdown(text: str) -> str:
    """Text for a cell of a Markdown table: what Markdown or HTML could read as markup appears as a character reference."""
    return "".join(c if c.isalnum() or c in " .," else f"&#{ord(c)};" for c in printable(text))
