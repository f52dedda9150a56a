"""Generated parts of pages written by hand: everything between `<!-- generated: NAME -->` and `<!-- end: NAME -->`."""

import re
from pathlib import Path


def generated_part(page: str, name: str) -> str | None:
    """What stands between the markers, without the empty lines around it; None where there are none."""
    found = _between(name).search(page)
    return None if found is None else found.group(2).strip("\n")


def with_part(page: str, name: str, text: str) -> str:
    """The page with `text` between the markers.

    Raises:
        ValueError: the page has no such markers, or has them twice.
    """
    count = len(_between(name).findall(page))
    if count != 1:
        raise ValueError(
            f"the markers <!-- generated: {name} --> and <!-- end: {name} --> stand {count} times, expected 1"
        )
    return _between(name).sub(lambda found: f"{found.group(1)}\n\n{text}\n\n{found.group(3)}", page)


def replace_part(path: Path, name: str, text: str) -> None:
    """Rewrites the file."""
    path.write_text(with_part(path.read_text(), name, text))


def part_names(page: str) -> list[str]:
    """The names of all generated parts, in order."""
    return re.findall(r"<!-- generated: (.+?) -->", page)


def without_parts(page: str) -> str:
    """What was written by hand."""
    for name in part_names(page):
        page = _between(name).sub("", page)
    return page


def _between(name: str) -> re.Pattern[str]:
    name = re.escape(name)
    return re.compile(rf"(<!-- generated: {name} -->)(.*?)(<!-- end: {name} -->)", re.DOTALL)
