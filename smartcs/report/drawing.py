"""How every figure looks, and how it becomes a PNG file and an SVG that follows the page's light or dark theme.

Figures are drawn in the light colours of `THEME`. In the SVG each of those is replaced by the page's variable of that
name, so one drawing serves both themes and print. Nothing here touches pyplot or needs a display.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import quoteattr

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Name -> (light, dark). The data colours are those of Okabe and Ito, told apart by all kinds of colour vision, a
# little darker on white and lighter on black; what they mean is also written or shown by shape.
THEME = {
    "page": ("#fefefe", "#15181d"),
    "panel": ("#f5f6f8", "#1d2127"),
    "ink": ("#1d2129", "#e7e9ec"),
    "muted": ("#5d6570", "#a2aab5"),
    "line": ("#d9dde3", "#343a43"),
    "sst": ("#0069a8", "#5cb8ec"),
    "qqp": ("#c14f00", "#f2935c"),
    "sts": ("#00805c", "#3fc79b"),
    "score": ("#7a4fa3", "#c39be6"),
    "ours": ("#0069a9", "#5cb8ed"),
    "theirs": ("#8c6200", "#e6bd57"),
    "majority": ("#6f7782", "#929aa6"),
    "warning": ("#a33a00", "#ffad7a"),
}
COLOURS = {name: light for name, (light, _) in THEME.items()}

_PNG_DPI = 180
_SETTINGS: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": COLOURS["ink"],
    "text.parse_math": False,  # labels come from users: a dollar is a dollar
    "axes.labelcolor": COLOURS["muted"],
    "axes.labelsize": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.edgecolor": COLOURS["line"],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.6,
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.solid_capstyle": "round",
    "figure.facecolor": COLOURS["page"],
    "svg.fonttype": "none",
    "svg.hashsalt": "smartcs",
}


@dataclass(frozen=True)
class Picture:
    """A figure in both forms.

    Attributes:
        name: of its file, without the ending; unique within a page.
        caption: what there is to see; plain text.
        svg: an <svg> element for the page.
        png: a PNG file, in light colours.
    """

    name: str
    caption: str
    svg: str
    png: bytes


@contextmanager
def house_style() -> Iterator[None]:
    """Matplotlib as this package wants it, whatever the user's matplotlibrc says; as before afterwards."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def new_figure(width: float = 4.5, height: float = 3.0) -> tuple[Figure, Axes]:
    """A figure of that many inches with one pair of axes; draw and `finish` it under `house_style`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def finish(figure: Figure, name: str, caption: str) -> Picture:
    """Renders a figure; its axes' titles name the drawing for readers who cannot see it."""
    png = BytesIO()
    figure.savefig(png, format="png", dpi=_PNG_DPI, metadata={"Software": None})
    figure.set_layout_engine("none")  # both forms are laid out alike, and once
    figure.patch.set_alpha(0)
    svg = BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    label = "; ".join(axes.get_title(loc="left") for axes in figure.axes)
    width = figure.get_size_inches()[0]
    return Picture(name, caption, _for_page(svg.getvalue().decode(), name, label, width), png.getvalue())


def _for_page(svg: str, name: str, label: str, inches: float) -> str:
    """The bare element: page colours and fonts, ids that no other figure of the page has, sized by its frame."""
    svg = svg[svg.index("<svg ") :].strip()
    # Its style sheet would hold for the whole page, which has the same rule for drawings.
    svg = re.sub(r"<(metadata|style)\b.*?</\1>\s*|<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    view = re.search(r'viewBox="([^"]+)"', svg)
    assert view is not None
    svg = re.sub(
        r"^<svg [^>]*>",
        f'<svg viewBox="{view[1]}" role="img" aria-label={quoteattr(label)} style="max-width: {inches * 1.3:.2f}in">',
        svg,
    )
    svg = svg.replace(" xlink:href=", " href=")
    for colour, light in COLOURS.items():
        svg = svg.replace(light, f"var(--{colour})")
    # Matplotlib names the font it measured with, in one of two ways; the page's is as wide or narrower.
    svg = re.sub(r"(font: [^;\"]*?[\d.]+px|font-family:) [^;\"]+", r"\1 var(--sans)", svg)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", svg)
    return re.sub(r'(href="#|url\(#)', rf"\1{name}-", svg)


def powers(axis: Any) -> None:
    """Labels a logarithmic axis 10⁻³, 10⁻², ... without the mathematical font, which the page does not have."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    raised = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

    def label(value: float, _: int | None = None) -> str:
        exponent = f"{value:e}".split("e")[1]
        return "10" + str(int(exponent)).translate(raised)

    axis.set_major_locator(LogLocator(numticks=7))
    axis.set_major_formatter(FuncFormatter(label))
    axis.set_minor_formatter(NullFormatter())


def steps(axes: Axes, last: int) -> None:
    """Makes the x axis one of optimizer steps, up to the last."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axes.set_xlim(0, max(last, 2))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel("optimizer step")
    axes.grid(axis="x", visible=False)


def mark(kind: str, upright: bool = True) -> dict[str, Any]:
    """Line2D's settings for one value: ours a dot, the paper's a bar that shows beside it, the majority's a square."""
    style: dict[str, Any] = {"linestyle": "none", "color": COLOURS[kind]}
    if kind == "theirs":
        return style | {"marker": "|" if upright else "_", "markersize": 17, "markeredgewidth": 3, "zorder": 3}
    if kind == "majority":
        return style | {"marker": "s", "markersize": 5.5, "markeredgewidth": 1.6, "markerfacecolor": COLOURS["page"]}
    return style | {"marker": "o", "markersize": 8.5, "markeredgecolor": COLOURS["page"], "zorder": 4}


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """The mean over the `window` values around each, fewer at both ends."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    before, after, count = window // 2, (window - 1) // 2, len(values)
    spans = [(max(0, i - before), min(count, i + after + 1)) for i in range(count)]
    return [(sums[end] - sums[begin]) / (end - begin) for begin, end in spans]


def thinned(x: Sequence[float], y: Sequence[float], points: int = 1000) -> tuple[list[float], list[float]]:
    """A curve of at most about `points` points that covers the same area: the lowest and highest of every stretch."""
    if len(x) <= points:
        return list(x), list(y)
    stretch = -(-2 * len(x) // points)
    kept: list[int] = []
    for begin in range(0, len(x), stretch):
        rows = range(begin, min(begin + stretch, len(x)))
        kept += sorted({min(rows, key=y.__getitem__), max(rows, key=y.__getitem__)})
    return [x[i] for i in kept], [y[i] for i in kept]
