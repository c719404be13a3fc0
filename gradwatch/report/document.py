"""Runs → an HTML document: the tab's own modules in one script, its stylesheet, and the data."""

from __future__ import annotations

import base64
import graphlib
import hashlib
import html
import json
import re
from collections.abc import Mapping
from pathlib import Path

from gradwatch import __version__, tensorboard_plugin
from gradwatch.names import printable

STATIC = Path(tensorboard_plugin.__file__).parent / "static"
ENTRY = Path(__file__).parent / "embedded.js"

IMPORT = re.compile(r'^import (?:\{[^}]*\} from )?"\./(\w+\.js)";$\n?', re.MULTILINE)
"""Every import of the modules is one such line."""

EXPORT = re.compile(r"^export (?=(?:async )?function|class|const)", re.MULTILINE)


def document(runs: Mapping[str, str]) -> str:
    """A page that holds everything that it needs.

    Args:
        runs: Name → what ``pack`` made of it.

    Returns:
        HTML. A policy in its head forbids it to fetch anything, and to run any script but its own.
    """
    script = bundle()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data: blob:"
    names = json.dumps(list(runs)).encode()
    data = "\n".join(f'<script type="text/plain" class="run">{packed}</script>' for packed in runs.values())
    title = html.escape(printable("Gradient health: " + ", ".join(runs)))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="gradwatch {__version__}">
<title>{title}</title>
<style>{(STATIC / "view.css").read_text(encoding="utf-8")}</style>
</head>
<body>
<main></main>
<noscript>This page draws its data with JavaScript, which is switched off.</noscript>
<script type="text/plain" id="names">{base64.b64encode(names).decode()}</script>
{data}
<script type="module">{script}</script>
</body>
</html>
"""


def bundle() -> str:
    """The modules that ``embedded.js`` needs, one after another, as one module."""
    sources: dict[str, str] = {}
    needs: dict[str, set[str]] = {}
    waiting = [ENTRY]
    while waiting:
        path = waiting.pop()
        if path.name in sources:
            continue
        source = path.read_text(encoding="utf-8")
        needs[path.name] = set(IMPORT.findall(source))
        sources[path.name] = EXPORT.sub("", IMPORT.sub("", source))
        waiting += [STATIC / name for name in needs[path.name]]
    order = graphlib.TopologicalSorter({name: sorted(of) for name, of in sorted(needs.items())}).static_order()
    script = "\n" + "\n".join(sources[name] for name in order)
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")  # nothing in it ends the script
