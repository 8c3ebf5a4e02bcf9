"""One chart as inline SVG: values over steps, each series a faint raw line and a bold running mean.

The colours are classes of the page's style sheet (`c0` ... `c8`, `raw`, `mean`, `band`), so that one chart serves light,
dark and print.  Nothing here knows what a metric means.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

from unigrpo_jax.foreign_text import for_html

WIDTH, HEIGHT = 460, 210
LEFT, RIGHT, TOP, BOTTOM = 54, 10, 8, 26
COLOURS = 9
MAX_POINTS = 800  # a longer raw line is thinned to the extremes of bins
MAX_WINDOW = 25


@dataclasses.dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
      name: as the legend shows it.
      points: (step, value) by increasing step; a value of None is a gap.
      low, high: the borders of a band around the line, as points too; empty for none.
    """

    name: str
    points: Sequence[tuple[int, float | None]]
    low: Sequence[tuple[int, float | None]] = ()
    high: Sequence[tuple[int, float | None]] = ()


def colour(index: int) -> str:
    """Classes of a chart's n-th series, from 0: its colour, and dashes where all colours are taken already."""
    return f"c{index % COLOURS}" + (" dashed" if index >= COLOURS else "")


def window_length(n: int) -> int:
    """How many points the running mean of `n` points spans: an eighth, at least 1, at most MAX_WINDOW."""
    return max(1, min(MAX_WINDOW, n // 8))


def running_mean(points: Sequence[tuple[int, float | None]], window: int) -> list[tuple[int, float | None]]:
    """At every point the mean over the last `window` points, without the gaps; None where all of them are gaps."""
    means = []
    for index, (step, _) in enumerate(points):
        recent = [value for _, value in points[max(0, index + 1 - window) : index + 1] if value is not None]
        means.append((step, math.fsum(recent) / len(recent) if recent else None))
    return means


def value_range(values: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest value that the vertical axis must show.

    A few far values (a first step that compiles, one spike) would flatten the rest: from 20 values on, an end that lies
    more than three times as far out as the 3rd or 97th percentile is drawn in to it.
    """
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    if len(ordered) >= 20:
        cut = math.ceil(len(ordered) * 0.03)
        inner_low, inner_high = ordered[cut], ordered[-1 - cut]
        spread = inner_high - inner_low
        if spread > 0 and high - inner_high > 3 * spread:
            high = inner_high + 0.25 * spread
        if spread > 0 and inner_low - low > 3 * spread:
            low = inner_low - 0.25 * spread
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # one value: room above and below it
        room = 0.1 * abs(high) or 1.0
        return low - room, high + room
    room = 0.04 * (high - low)
    return (low if 0 <= low < room else low - room), high + room


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) within [low, high]."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    spacing = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / spacing - 1e-9), math.floor(high / spacing + 1e-9)
    return [index * spacing for index in range(first, last + 1)]


def draw(series: Sequence[Series], label: str, classes_of: Callable[[int], str] = colour) -> str:
    """The chart as an `<svg>` element; a series without points takes a colour, and nothing else.

    Args:
      series: the lines.
      label: read to those who do not see it.
      classes_of: the style sheet's classes of the n-th series, from 0.

    Raises:
      ValueError: there is no finite value.
    """
    everything = [point for line in series for point in (*line.points, *line.low, *line.high)]
    finite = [value for _, value in everything if value is not None]
    if not finite:
        raise ValueError(f"chart {label!r} has no finite value")
    steps = [step for step, _ in everything]
    first, last = min(steps), max(steps)
    low, high = value_range(finite)
    if last == first:
        first, last = first - 1, last + 1
    x = lambda step: LEFT + (step - first) / (last - first) * (WIDTH - LEFT - RIGHT)
    y = lambda value: HEIGHT - BOTTOM - (min(max(value, low), high) - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{for_html(label)}">']
    y_ticks = ticks(low, high)
    for tick in y_ticks:
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        text = format_tick(tick, y_ticks)
        parts.append(f'<text x="{LEFT - 6}" y="{y(tick) + 3.5:.1f}" text-anchor="end">{text}</text>')
    for tick in [tick for tick in ticks(first, last, 6) if tick == round(tick) and tick >= 0]:
        anchor = "end" if x(tick) > WIDTH - 25 else "middle"
        parts.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - 9}" text-anchor="{anchor}">{round(tick)}</text>')
    for index, line in enumerate(series):
        classes = classes_of(index)
        parts.append(_band(line, classes, x, y))
        window = window_length(len(line.points))
        if window > 1:
            parts.append(_line(thin(line.points), f"raw {classes}", x, y))
        parts.append(_line(thin(running_mean(line.points, window)), f"mean {classes}", x, y))
    return "".join(parts) + "</svg>"


def outside(series: Sequence[Series]) -> int:
    """How many values of the lines the chart draws at its border because they lie beyond the axis."""
    lines = [value for line in series for _, value in line.points if value is not None]
    bands = [value for line in series for _, value in (*line.low, *line.high) if value is not None]
    low, high = value_range(lines + bands)
    return sum(not low <= value <= high for value in lines + bands)


def thin(points: Sequence[tuple[int, float | None]]) -> list[tuple[int, float | None]]:
    """At most about MAX_POINTS points: of each bin the lowest and the highest, so that no spike is lost."""
    if len(points) <= MAX_POINTS:
        return list(points)
    size = math.ceil(len(points) / (MAX_POINTS // 2))
    kept = []
    for start in range(0, len(points), size):
        bin_points = [point for point in points[start : start + size] if point[1] is not None]
        if bin_points:
            extremes = {min(bin_points, key=lambda point: point[1]), max(bin_points, key=lambda point: point[1])}
            kept += sorted(extremes)
        else:
            kept.append((points[start][0], None))
    return kept


def format_tick(tick: float, among: Sequence[float]) -> str:
    """A tick's number with as many digits as it takes to tell it from its neighbours."""
    spacing = among[1] - among[0] if len(among) > 1 else abs(tick) or 1.0
    largest = max(map(abs, among))
    if largest >= 1e5 or (0 < largest < 1e-3):
        return f"{tick:.{max(0, math.ceil(math.log10(max(largest / spacing, 1))))}e}" if abs(tick) > spacing / 2 else "0"
    return f"{tick:.{max(0, -math.floor(math.log10(spacing) + 1e-9))}f}".replace("-", "−")


def _runs(points) -> list[list[tuple[int, float]]]:
    """The points between gaps."""
    runs = [[]]
    for point in points:
        if point[1] is None:
            runs.append([])
        else:
            runs[-1].append(point)
    return [run for run in runs if run]


def _line(points, css_class: str, x, y) -> str:
    parts = []
    for run in _runs(points):
        if len(run) == 1:
            step, value = run[0]
            parts.append(f'<circle class="{css_class}" cx="{x(step):.1f}" cy="{y(value):.1f}" r="2"/>')
        else:
            path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in run)
            parts.append(f'<polyline class="{css_class}" points="{path}"/>')
    return "".join(parts)


def _band(line: Series, classes: str, x, y) -> str:
    """The area between `low` and `high`, at the steps that have both, thinned to bins of the widest extent."""
    highs = dict(line.high)
    rows = [(s, lo, highs[s]) for s, lo in line.low if lo is not None and highs.get(s) is not None]
    size = math.ceil(len(rows) / MAX_POINTS) or 1
    bins = [rows[start : start + size] for start in range(0, len(rows), size)]
    upper = [f"{x(b[0][0]):.1f},{y(max(r[2] for r in b)):.1f}" for b in bins]
    lower = [f"{x(b[0][0]):.1f},{y(min(r[1] for r in b)):.1f}" for b in reversed(bins)]
    return f'<polygon class="band {classes}" points="{" ".join(upper + lower)}"/>' if len(bins) > 1 else ""
