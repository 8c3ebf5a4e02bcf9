"""Pieces that the pages of runs share: numbers, changes, tables of settings, charts, and when a page was written."""

import datetime
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from unigrpo_jax.foreign_text import for_html as text
from unigrpo_jax.training import curves

LARGEST = 1e100  # numbers beyond it are shown as gaps
LABELS = {
    "exact": "Exact",
    "graded": "Graded",
    "plan_exact": "Thinking right",
    "drawing_follows_plan": "Drawing follows plan",
    "exact_given_plan": "Exact, given a right plan",
}

# Fills the age that `written` leaves open, and again twice a minute; a clock that is behind the writer's says nothing.
AGE_SCRIPT = """
const written = Date.parse(document.querySelector("time").dateTime), age = document.querySelector(".age");
const tell = () => {
  const minutes = Math.floor((Date.now() - written) / 60000), hours = Math.floor(minutes / 60);
  const [count, unit] = hours >= 48 ? [Math.floor(hours / 24), "day"] : hours >= 1 ? [hours, "hour"] : [minutes, "minute"];
  const words = minutes < 1 ? "less than a minute" : `${count} ${unit}${count > 1 ? "s" : ""}`;
  age.textContent = minutes < 0 ? "" : `, ${words} ago`;
};
tell();
setInterval(tell, 30000);
"""


def written() -> str:
    """When the page was written, which is now; its age is computed where it is read."""
    now = datetime.datetime.fromtimestamp(int(time.time()), datetime.UTC)
    return f'Written <time datetime="{now:%Y-%m-%dT%H:%M:%SZ}">{now:%Y-%m-%d %H:%M:%S} UTC</time><span class=age></span>'


def number(value: Any, signed: bool = False) -> str:
    """Three digits after the point, a dash where it is no number."""
    if not is_number(value):
        return "–"
    form = "+.3f" if signed else ".3f"
    return format(value, form).replace("-", "−")


def is_number(value: Any) -> bool:
    """Whether a value can be drawn; beyond LARGEST differences of two would overflow."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def words(name: str) -> str:
    """A key as a person reads it: `color_attr` is "color attr"."""
    return LABELS.get(name, name.replace("_", " "))


def change(first: Any, last: Any) -> str:
    """The signed difference, coloured where it is one."""
    if not (is_number(first) and is_number(last)):
        return "<span class=change>–</span>"
    direction = "up" if last - first >= 0.0005 else "down" if last - first <= -0.0005 else "same"
    return f'<span class="change {direction}">{number(last - first, signed=True)}</span>'


def nested(values: Mapping[str, Any]) -> str:
    """A nested mapping as a table of dotted names."""
    rows = "".join(f"<tr><th scope=row>{text(name)}</th><td>{text(value)}</td></tr>" for name, value in flat(values))
    return f"<div class=scroll><table class=settings><tbody>{rows}</tbody></table></div>"


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """(dotted name, value as it is shown) of nested mappings."""
    found = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found += flat(value, f"{prefix}{name}.")
        else:
            shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            found.append((f"{prefix}{name}", shown))
    return found


def points(lines: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float | None]]:
    """(step, value) of the lines that hold the metric; None where it was not finite."""
    return [(line["step"], line[name] if is_number(line[name]) else None) for line in lines if name in line]


def chart(title: str, series: Sequence[curves.Series]) -> str:
    """A titled chart with its legend; a series keeps its colour where others hold nothing; "" where no value is finite."""
    drawn = [(index, line) for index, line in enumerate(series) if any(value is not None for _, value in line.points)]
    if not drawn:
        return ""
    legend = "".join(
        f'<li><i class="{curves.colour(index)}"></i>{text(line.name)} <b>{_last(line)}</b></li>' for index, line in drawn
    )
    beyond = curves.outside(series)
    note = f"<p class=note>{beyond} values beyond the axis are drawn at its border.</p>" if beyond else ""
    svg = curves.draw(series, f"{title} by step")
    return f"<div class=chart><h3>{text(title)}</h3><ul class=legend>{legend}</ul>{svg}{note}</div>"


def _last(line: curves.Series) -> str:
    """The last point of the bold line."""
    means = curves.running_mean(line.points, curves.window_length(len(line.points)))
    return format([value for _, value in means if value is not None][-1], ".4g").replace("-", "−")
