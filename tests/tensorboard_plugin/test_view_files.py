"""What the files of the view have to be, for a page that holds them all and for names that are hostile."""

import re

from shown_view import STATIC


def test_the_files_can_be_joined_into_one():
    """Imports are one line each, from a file beside it, and exports stand before what they export: a page can hold all as one."""
    sources = {path.name: path.read_text(encoding="utf-8") for path in STATIC.glob("*.js")}
    assert "view.js" in sources
    for name, source in sources.items():
        for line in source.splitlines():
            if line.startswith("import"):
                found = re.fullmatch(r'import \{ [\w, ]+ \} from "\./(\w+\.js)";', line)
                assert found, f"{name}: {line}"
                assert found[1] in sources, f"{name}: {line}"
            elif line.startswith("export"):
                assert re.match(r"export (async function|function|class|const) \w", line), f"{name}: {line}"


def test_nothing_makes_markup_or_code_of_text():
    for path in STATIC.glob("*.js"):
        found = re.search(
            r"innerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|setAttribute\(\"on",
            path.read_text(encoding="utf-8"),
        )
        assert not found, f"{path.name}: {found}"
