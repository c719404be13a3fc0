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

IMPORT = re.compile(r'^import (\{[^}]*\}) from "\./(\w+)\.js";$', re.MULTILINE)
"""Every import of the modules is one such line,"""

EXPORT = re.compile(r"^export (?=(?:async )?(?:function|class|const) (\w+))", re.MULTILINE)
"""and every export stands before what it exports."""


def assemble(runs: Mapping[str, str]) -> str:
    """A page that holds everything that it needs.

    Args:
        runs: Name → what ``packing.pack`` made of it.

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
    """The modules that ``embedded.js`` needs as one script: each a function that is called once, and returns what it exports."""
    sources: dict[str, str] = {}
    needs: dict[str, list[str]] = {}
    waiting = [ENTRY]
    while waiting:
        path = waiting.pop()
        if path.stem not in sources:
            sources[path.stem] = path.read_text(encoding="utf-8")
            needs[path.stem] = [name for _, name in IMPORT.findall(sources[path.stem])]
            waiting += [STATIC / f"{name}.js" for name in needs[path.stem]]
    order = graphlib.TopologicalSorter({name: sorted(needs[name]) for name in sorted(needs)}).static_order()
    script = "\n" + "\n".join(_wrapped(name, sources[name]) for name in order)
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")  # nothing in it ends the script


def _wrapped(name: str, source: str) -> str:
    exports = ", ".join(EXPORT.findall(source))
    inside = EXPORT.sub("", IMPORT.sub(r"const \1 = from_\2;", source))
    return f"const from_{name} = (() => {{\n{inside}\nreturn {{ {exports} }};\n}})();"
