"""From sections of text, tables and pictures to one HTML file and its PNG files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from smartcs import __version__
from smartcs.model.files import Writer, text_writer, write_files
from smartcs.report.drawing import THEME, Picture
from smartcs.training.run_folder import REPORT

FIGURES_FOLDER = "figures"
DASH = "–"
_TEMPLATES = Path(__file__).resolve().parent / "templates"


@dataclass(frozen=True)
class Table:
    """Rows of text under headings.

    Attributes:
        headings, rows: cells; the first of a row names it.
        caption: heading above it, or the line that unfolds it.
        folded: shown on demand only.
        words: cells are text, aligned to the left.
        marked: the first so many rows stand out.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    folded: bool = False
    words: bool = False
    marked: int = 0


@dataclass(frozen=True)
class Section:
    """A part of a page with its own heading; all text is plain and is escaped."""

    id: str
    title: str
    lead: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = field(default=())

    def __bool__(self) -> bool:
        return bool(self.lead or self.pictures or self.tables)


def write_page(
    folder: Path, template: str, pictures: Sequence[Picture], context: dict[str, Any], drawable: Iterable[str]
) -> Path:
    """Writes report.html and figures/*.png, all or nothing; returns the page's path.

    Args:
        folder: created if missing.
        template: file in the templates folder.
        pictures: those of the page.
        context: the template's variables.
        drawable: names of all pictures such a page can have; files of those it does not have now are removed.
    """
    writers: dict[str, Writer] = {picture_file(item.name): _bytes_writer(item.png) for item in pictures}
    writers[REPORT] = text_writer(_render(template, context))
    write_files(folder, writers, remove=[file for file in map(picture_file, drawable) if file not in writers])
    return folder / REPORT


def picture_file(name: str) -> str:
    """Where the PNG of a picture lies, relative to the page."""
    return f"{FIGURES_FOLDER}/{name}.png"


def figure_text(value: float | None, digits: int = 3) -> str:
    """A figure as the tables show it."""
    return DASH if value is None else f"{value:.{digits}f}"


def counted(number: Any, noun: str) -> str:
    """A number of things, "1 epoch" or "1,200 epochs"."""
    text = f"{number:,}" if isinstance(number, int) else plain(number)
    return f"{text} {noun}" if number == 1 else f"{text} {noun}s"


def plain(value: Any) -> str:
    """A value of a configuration or an environment as people read it."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value) or DASH
    return str(value)


def _render(template: str, context: dict[str, Any]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["path_to_url"] = lambda path: quote(str(path))
    theme = {
        kind: " ".join(f"--{name}: {colours[index]};" for name, colours in THEME.items())
        for index, kind in enumerate(("light", "dark"))
    }
    return environment.get_template(template).render(version=__version__, theme=theme, **context)


def _bytes_writer(content: bytes) -> Writer:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write
