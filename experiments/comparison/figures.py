"""Figures of a comparison as SVG files: panels beside each other, each with one line per arm, above one legend."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence

from unigrpo_jax.foreign_text import for_html
from unigrpo_jax.training import curves

MOST_POINTS = 60  # of a line; a longer one is drawn by the means of bins, so that a figure of many lines stays small
TITLE, GAP, ROW, LEGEND_COLUMN = 24, 16, 18, 230
_PALETTE = ("#2563b0", "#d0661a", "#2b8a57", "#8a4fb5", "#b53a5e", "#6d6b1f", "#1f8a92", "#7a5230", "#444c56",
            "#c9a227", "#e377a5", "#7fb800", "#00a6d6")  # fmt: skip
_STYLE = """text{fill:#444c56;font:11px system-ui,sans-serif}.title{font-weight:600;font-size:13px;fill:#1d2229}
.rule{stroke:#dfe3e8}polyline{fill:none;stroke:var(--c);stroke-linejoin:round}circle{fill:var(--c)}
.raw{stroke-width:1;opacity:.25}.mean{stroke-width:2}.band{fill:var(--c);opacity:.12}"""


def figure(panels: Sequence[tuple[str, Sequence[curves.Series]]], columns: int = 2) -> str:
    """An SVG document.

    Args:
      panels: (title, lines) of each; the lines of all panels stand in the same order, and one without points is left out of
        its panel but keeps its colour.
      columns: panels in a row.

    Raises:
      ValueError: no panel has a value.
    """
    shown = [(title, lines) for title, lines in panels if any(v is not None for s in lines for _, v in s.points)]
    if not shown:
        raise ValueError("a figure needs a panel with a value")
    columns = min(columns, len(shown))
    names = list(dict.fromkeys(line.name for _, lines in shown for line in lines if line.points))
    width = columns * curves.WIDTH + (columns - 1) * GAP
    per_row = max(1, width // LEGEND_COLUMN)
    rows = -(-len(shown) // columns)
    top = rows * (TITLE + curves.HEIGHT + GAP)
    height = top + ROW * -(-len(names) // per_row) + GAP
    order = {name: index for index, name in enumerate(names)}
    parts = []
    for index, (title, lines) in enumerate(shown):
        x, y = index % columns * (curves.WIDTH + GAP), index // columns * (TITLE + curves.HEIGHT + GAP)
        known = sorted((_short(line) for line in lines if line.points), key=lambda line: order[line.name])
        colours = [order[line.name] % len(_PALETTE) for line in known]  # a line has one in all panels
        svg = curves.draw(known, title, lambda place, colours=colours: f"k{colours[place]}")
        parts.append(f'<text class="title" x="{x + curves.LEFT}" y="{y + 16}">{for_html(title)}</text>')
        size = f'x="{x}" y="{y + TITLE}" width="{curves.WIDTH}" height="{curves.HEIGHT}" '
        parts.append(svg.replace("<svg ", f"<svg {size}", 1))
    for name, index in order.items():
        x, y = index % per_row * LEGEND_COLUMN + 12, top + index // per_row * ROW + 10
        colour = _PALETTE[index % len(_PALETTE)]
        parts.append(f'<rect x="{x}" y="{y - 5}" width="16" height="3" fill="{colour}"/>')
        parts.append(f'<text x="{x + 22}" y="{y}">{for_html(name)}</text>')
    classes = "".join(f".k{i}{{--c:{colour}}}" for i, colour in enumerate(_PALETTE))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f"<style>{_STYLE}{classes}</style>"
        f'<rect width="{width}" height="{height}" fill="#fff"/>{"".join(parts)}</svg>'
    )


def _short(line: curves.Series) -> curves.Series:
    """The line with at most `MOST_POINTS` points, its band as wide as the widest of each bin."""
    bins = lambda points, value: _bins([p for p in points if p[1] is not None], value)
    return dataclasses.replace(
        line, points=bins(line.points, statistics.fmean), low=bins(line.low, min), high=bins(line.high, max)
    )


def _bins(points: Sequence[tuple[float, float]], value: Callable[[list[float]], float]) -> list[tuple[float, float]]:
    size = -(-len(points) // MOST_POINTS) or 1
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(part[-1][0], value([y for _, y in part])) for part in parts]
