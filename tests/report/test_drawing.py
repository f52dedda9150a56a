"""Curves drawn in few points, and the SVG that a page takes."""

import random
import re

import pytest

from smartcs.report.drawing import THEME, finish, house_style, new_figure, powers, smoothed, thinned


@pytest.mark.parametrize("window", [1, 2, 5, 6, 11])
def test_smoothed_as_by_loops(window):
    generator = random.Random(window)
    values = [generator.uniform(-1, 1) for _ in range(11)]
    for middle, mean in enumerate(smoothed(values, window)):
        near = [values[i] for i in range(len(values)) if middle - window // 2 <= i <= middle + (window - 1) // 2]
        assert mean == pytest.approx(sum(near) / len(near))
    assert smoothed([], 3) == []


def test_thinned_keeps_the_extremes_of_every_stretch():
    generator = random.Random(0)
    x = list(range(50_000))
    y = [generator.random() for _ in x]
    y[31_416] = 9.0
    few_x, few_y = thinned(x, y, points=1000)
    assert 900 < len(few_x) <= 1000 and few_x == sorted(few_x)
    assert max(few_y) == 9.0 and min(few_y) == min(y)
    assert all(y[a] == b for a, b in zip(few_x, few_y, strict=True))
    assert thinned([1, 2], [3, 4], points=2) == ([1, 2], [3, 4])


def picture(name="a", label="loss"):
    with house_style():
        figure, axes = new_figure()
        axes.plot([1, 2, 3], [1e-3, 1e-1, 1], "o-", color=THEME["sst"][0], label=label)
        axes.set_yscale("log")
        powers(axes.yaxis)
        axes.set_title('A "title" <b>')
        axes.legend()
        return finish(figure, name, "A caption")


def test_svg_is_for_a_page():
    drawn = picture()
    assert drawn.svg.startswith("<svg viewBox=") and drawn.svg.endswith("</svg>")
    assert "xmlns" not in drawn.svg and "http" not in drawn.svg and not re.search("<metadata|<style|<!--", drawn.svg)
    assert "var(--sst)" in drawn.svg and not re.search("#[0-9a-fA-F]{6}", drawn.svg)
    assert "&lt;b&gt;" in drawn.svg and "<b>" not in drawn.svg
    assert "10⁻³" in drawn.svg and "DejaVu" not in drawn.svg and "var(--sans)" in drawn.svg
    assert drawn.png.startswith(b"\x89PNG")


def test_ids_carry_the_name_and_drawing_is_repeatable():
    first, second = picture("a"), picture("b")
    ids = set(re.findall(r' id="([^"]+)"', first.svg))
    assert ids and all(name.startswith("a-") for name in ids)
    assert set(re.findall(r'href="#([^"]+)"', first.svg)) | set(re.findall(r"url\(#([^)]+)\)", first.svg)) == ids
    assert not ids & set(re.findall(r' id="([^"]+)"', second.svg))
    assert picture("a") == first


def test_text_is_taken_as_it_is():
    assert "$x^2$ &amp; &lt;i&gt;" in picture(label="$x^2$ & <i>").svg


def test_light_colours_are_told_apart():
    lights = [light for light, _ in THEME.values()]
    assert len(set(lights)) == len(lights) and all(re.fullmatch("#[0-9a-f]{6}", light) for light in lights)


@pytest.mark.parametrize("theme", [0, 1])
def test_contrast_of_text(theme):
    """WCAG AA: at least 4.5 for what is read, on the page and on its panels."""

    def luminance(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for ground in ("page", "panel"):
        for text in ("ink", "muted", "ours", "theirs", "warning", "sts"):
            a, b = sorted((luminance(THEME[name][theme]) for name in (ground, text)), reverse=True)
            assert (a + 0.05) / (b + 0.05) >= 4.5, (ground, text)
