"""`report.html`: one page that shows a run, rebuilt from the files of its folder alone.

It reads `config.json`, `metrics.jsonl`, `summary.json` and `samples/`, whichever are there, so that an unfinished run has
a report too.  The page loads nothing: images and curves stand inline, there is no script, and every text of the run is
escaped.
"""

import base64
import collections
import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from PIL import Image

from unigrpo_jax import foreign_files
from unigrpo_jax.foreign_text import for_html as _text
from unigrpo_jax.training import curves
from unigrpo_jax.training.health import MEANINGS
from unigrpo_jax.training.metrics import FILE_NAME, read_metrics
from unigrpo_jax.training.page_shell import STRIPS, page
from unigrpo_jax.training.samples import Moment, Sample, load_samples, saved_steps
from unigrpo_jax.training.storage import Place, write_atomically
from unigrpo_jax.training.summary import read_summary

PICTURE_SIDE = 320  # larger images are shrunk to this for the page
TINY_SIDE = 128  # smaller ones are shown with square pixels
LARGEST = 1e100  # numbers beyond it are shown as gaps

# title, pattern of the metrics' names.  A pattern with a group named `band` draws <band>_mean inside its _min and _max.
CHARTS = (
    ("Reward", r"reward/(.+/)?mean"),
    ("Judged by rule, training prompts", r"judge/.+"),
    ("Held-out", r"eval/.+"),
    ("Share of groups whose rewards are all equal", r"reward/zero_variance_share"),
    ("Share of groups dropped, of episodes not finite", r"reward/dropped_share|rollout/nonfinite_share"),
    ("Text ratio: mean, min to max", r"(?P<band>text/ratio)_mean"),
    ("Flow ratio: mean, min to max", r"(?P<band>flow/ratio)_mean"),
    ("Velocity MSE to the reference", r"flow/velocity_mse"),
    ("Thinking length, tokens", r"text/length"),
    ("Share of thinking cut at the maximum", r"text/truncated_share"),
    ("Text entropy, nats per token", r"text/entropy"),
    ("Share of clipped ratios", r"(text|flow)/clip_fraction.*"),
    ("Largest |log p(rollout) - log p(update)|", r"(text|flow)/log_prob_gap_max"),
    ("Gradient norms", r"grad_norm/.+"),
    ("Update norms", r"update_norm/.+"),
    ("Edge density of the images", r"image/edge_density"),
    ("Colour entropy of the images, nats", r"image/colour_entropy"),
    ("Seconds per phase", r"time/.+"),
    ("Tokens per second", r"tokens_per_second"),
)
LABELS = {
    "exact": "Exact",
    "graded": "Graded",
    "plan_exact": "Thinking right",
    "drawing_follows_plan": "Drawing follows plan",
    "exact_given_plan": "Exact, given a right plan",
}


def write_report(run_dir: Place) -> epath.Path:
    """Writes `run_dir/report.html` and returns its path; ValueError where a file of the folder is damaged."""
    run_dir = epath.Path(run_dir)
    if not run_dir.is_dir():
        raise ValueError(f"no run folder {run_dir}")
    config, summary = _read_json(run_dir / "config.json"), read_summary(run_dir)
    metrics = read_metrics(run_dir / FILE_NAME)
    name = run_dir.resolve().name
    body = [
        _header(name, metrics, summary),
        _headline(metrics, summary),
        _alarms(metrics),
        _before_after_tables(summary),
        _gallery(run_dir),
        _charts(metrics),
        _facts(summary),
        _config(config),
    ]
    html = page(name, "\n".join(part for part in body if part))
    path = run_dir / "report.html"
    write_atomically(path, html.encode())
    return path


def _read_json(path: epath.Path) -> dict[str, Any]:
    """The object in the file; {} where there is no file."""
    if not path.exists():
        return {}
    value = foreign_files.read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path} is not a JSON object")
    return value


def _number(value: Any, signed: bool = False) -> str:
    if not _is_number(value):
        return "–"
    form = "+.3f" if signed else ".3f"
    return format(value, form).replace("-", "−")


def _is_number(value: Any) -> bool:
    """Whether a value can be drawn; beyond LARGEST differences of two would overflow."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def _words(name: str) -> str:
    """A key as a person reads it: `color_attr` is "color attr"."""
    return LABELS.get(name, name.replace("_", " "))


# --- what changed -----------------------------------------------------------------------------------------------------


def _header(name: str, metrics: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> str:
    state = [f"{len(metrics)} steps recorded, the last is {metrics[-1]['step']}" if metrics else "no steps recorded yet"]
    if not summary.get("after"):
        state.append("unfinished: no evaluation after training yet")
    return f"<header><h1>{_text(name)}</h1><p class=note>{'; '.join(state)}.</p></header>"


def _headline(metrics: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> str:
    """The few numbers to remember: overall scores before and after, else the mean reward so far."""
    before, after = summary.get("before") or {}, summary.get("after") or {}
    tiles = []
    for name in dict.fromkeys([*before, *after]):
        values = [side.get(name) for side in (before, after)]
        first, last = (value.get("overall") if value else None for value in values)
        if name in LABELS and (_is_number(first) or _is_number(last)):
            tiles.append((LABELS[name], first, last))
    rewards = [line["reward/mean"] for line in metrics if _is_number(line.get("reward/mean"))]
    if rewards:
        window = curves.window_length(len(rewards))
        ends = rewards[:window], rewards[-window:]
        tiles.append((f"Training reward, first and last {window}", *(sum(end) / len(end) for end in ends)))
    if not tiles:
        return ""
    cells = "".join(
        f"<div class=tile><span class=name>{label}</span><span class=pair>{_number(first)} → <b>{_number(last)}</b></span>"
        f"{_change(first, last)}</div>"
        for label, first, last in tiles
    )
    return f"<section class=tiles>{cells}</section>"


def _alarms(metrics: Sequence[Mapping[str, Any]]) -> str:
    """What rang, when, and what it means."""
    rows = []
    for name in dict.fromkeys(name for line in metrics for name in line if name.startswith("alarm/")):
        steps = [line["step"] for line in metrics if line.get(name)]
        if not steps:
            continue
        short = name.removeprefix("alarm/")
        rows.append(f"<li><b>{_text(short)}</b>: {_text(MEANINGS.get(short, ''))}; in {len(steps)} iterations, first in "
                    f"{steps[0]}, last in {steps[-1]}</li>")  # fmt: skip
    return f"<section><h2>Alarms</h2><ul>{''.join(rows)}</ul></section>" if rows else ""


def _change(first: Any, last: Any) -> str:
    if not (_is_number(first) and _is_number(last)):
        return "<span class=change>–</span>"
    direction = "up" if last - first >= 0.0005 else "down" if last - first <= -0.0005 else "same"
    return f'<span class="change {direction}">{_number(last - first, signed=True)}</span>'


def _before_after_tables(summary: Mapping[str, Any]) -> str:
    """Scores by category, one group of columns per measure."""
    before, after = summary.get("before") or {}, summary.get("after") or {}
    names = list(dict.fromkeys([*before, *after]))
    if not names:
        return ""
    categories = dict.fromkeys(c for n in names for side in (before, after) for c in side.get(n) or {})
    groups = "".join(f"<th colspan=3 scope=colgroup>{_text(_words(n))}</th>" for n in names)
    columns = "<th>before</th><th>after</th><th>change</th>" * len(names)
    rows = "".join(
        f"<tr{' class=overall' if category == 'overall' else ''}><th scope=row>{_text(_words(category))}</th>"
        + "".join(_cells((before.get(n) or {}).get(category), (after.get(n) or {}).get(category)) for n in names)
        + "</tr>"
        for category in sorted(categories, key=lambda category: category != "overall")
    )
    head = f"<thead><tr><th rowspan=2>Category</th>{groups}</tr><tr>{columns}</tr></thead>"
    table = f"<div class=scroll><table>{head}<tbody>{rows}</tbody></table></div>"
    return f"<section><h2>Held-out prompts, before and after</h2>{table}</section>"


def _cells(first: Any, last: Any) -> str:
    return f"<td>{_number(first)}</td><td>{_number(last)}</td><td>{_change(first, last)}</td>"


# --- samples ----------------------------------------------------------------------------------------------------------


def _gallery(run_dir: epath.Path) -> str:
    """The samples of the first and the last saved step; the same prompt stands side by side.

    Where an episode has several rounds, or given pictures, it is a strip, and the steps stand below each other.
    """
    steps = saved_steps(run_dir)
    if not steps:
        return ""
    ends = sorted({steps[0], steps[-1]})
    pairs = collections.defaultdict(dict)
    for step in ends:
        seen = collections.Counter()
        for sample in load_samples(run_dir, step):
            seen[sample.asked] += 1
            pairs[sample.asked, seen[sample.asked]][step] = sample
    strips = any(len(s.rounds) > 1 or s.given for by_step in pairs.values() for s in by_step.values())
    cards = []
    for (prompt, _), by_step in pairs.items():
        if strips:
            rows = "".join(_strip(step, by_step.get(step)) for step in ends)
            cards.append(f"<article><h3 dir=auto>{_text(prompt)}</h3>{rows}</article>")
            continue
        halves = "".join(_figure(step, by_step.get(step)) for step in ends)
        cards.append(f'<article><h3 dir=auto>{_text(prompt)}</h3><div class="halves n{len(ends)}">{halves}</div></article>')
    right = [
        f"step {step}: {sum(s.correct is True for s in known)} of {len(known)} right"
        for step in ends
        if (known := [by[step] for by in pairs.values() if step in by and by[step].correct is not None])
    ]
    note = f"<p class=note>{'; '.join(right)}.</p>" if right else ""
    title = f"Samples, step {ends[0]}" + (f" and step {ends[1]}" if len(ends) > 1 else "")
    style, kind = (f"<style>{STRIPS}</style>", "strips") if strips else ("", "gallery")
    return f"<section>{style}<h2>{title}</h2>{note}<div class={kind}>{''.join(cards)}</div></section>"


def _figure(step: int, sample: Sample | None) -> str:
    if sample is None:
        return f"<figure><p class=step>step {step}</p><p class=note>not sampled</p></figure>"
    return f"<figure><p class=step>step {step}</p>{_drawn(sample, f'image drawn at step {step}')}</figure>"


def _strip(step: int, sample: Sample | None) -> str:
    """An episode in a row: what was given, what was said, what was drawn, round by round."""
    if sample is None:
        return f"<p class=step>step {step}</p><p class=note>not sampled</p>"
    figures = []
    for turn, moment in enumerate(sample.rounds, 1):
        for image in moment.given:
            picture = _img(image, "", f"picture given in round {turn}")
            figures.append(f"<figure><p class=said>given</p>{picture}</figure>")
        said = _text(moment.prompt) if moment.prompt else "<i>looks at it again</i>"
        drawn = _drawn(moment, f"image drawn at step {step}, round {turn}")
        figures.append(f"<figure><p class=said dir=auto>{said}</p>{drawn}</figure>")
    return f"<p class=step>step {step}</p><div class=strip>{''.join(figures)}</div>"


def _drawn(moment: Moment, alt: str) -> str:
    """A round's image with its verdict and its thinking."""
    state, mark = {True: ("right", "✓ "), False: ("wrong", "✗ "), None: ("", "")}[moment.correct]
    thinking = _text(moment.thinking) if moment.thinking.strip() else "<i>no thinking</i>"
    return (
        f'{_img(moment.image, state, alt)}<figcaption><p class="verdict {state}" dir=auto>{mark}{_text(moment.verdict)}</p>'
        f"<p class=thinking dir=auto>{thinking}</p></figcaption>"
    )


def _img(image, state: str, alt: str) -> str:
    """An image, uint8 [H, W, 3], inline."""
    picture = Image.fromarray(image)
    if max(picture.size) > PICTURE_SIDE:
        picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    tiny = " tiny" if max(picture.size) <= TINY_SIDE else ""
    return f'<img class="{state}{tiny}" alt="{alt}" src="data:image/png;base64,{data}">'


# --- curves -----------------------------------------------------------------------------------------------------------


def _charts(metrics: Sequence[Mapping[str, Any]]) -> str:
    """Every metric once: those of CHARTS in their chart, the rest one by one in a part that opens on demand."""
    names = list(dict.fromkeys(name for line in metrics for name in line if name != "step"))
    shown, charts, drawn_by_band = set(), [], set()
    for title, pattern in CHARTS:
        series = []
        for match in [match for name in names if name not in shown and (match := re.fullmatch(pattern, name))]:
            low = high = ()
            if band := match.groupdict().get("band"):
                low, high = (_points(metrics, f"{band}_{end}") for end in ("min", "max"))
                drawn_by_band |= {f"{band}_min", f"{band}_max"}
            shown.add(match[0])
            series.append(curves.Series(match[0], _points(metrics, match[0]), low, high))
        charts.append(_chart(title, series))
    rest = [name for name in names if name not in shown | drawn_by_band]
    others = "".join(_chart(name, [curves.Series(name, _points(metrics, name))]) for name in rest)
    if not any(charts) and not others:
        return ""
    window = curves.window_length(len(metrics))
    note = f"Faint: every step. Bold: mean over the last {window} recorded values." if window > 1 else ""
    more = f"<details><summary>Other metrics</summary><div class=charts>{others}</div></details>" if others else ""
    return (
        f"<section><h2>Curves</h2><p class=note>{note} The number in a legend is the line's last value.</p>"
        f"<div class=charts>{''.join(charts)}</div>{more}</section>"
    )


def _points(metrics: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float | None]]:
    """(step, value) of the lines that hold the metric; None where it was not finite."""
    return [(line["step"], line[name] if _is_number(line[name]) else None) for line in metrics if name in line]


def _chart(title: str, series: Sequence[curves.Series]) -> str:
    """A titled chart with its legend; "" where no value is finite."""
    series = [line for line in series if any(value is not None for _, value in line.points)]
    if not series:
        return ""
    legend = "".join(
        f'<li><i class="c{index % curves.COLOURS}"></i>{_text(line.name)} <b>{_last(line)}</b></li>'
        for index, line in enumerate(series)
    )
    beyond = curves.outside(series)
    note = f"<p class=note>{beyond} values beyond the axis are drawn at its border.</p>" if beyond else ""
    svg = curves.draw(series, f"{title} by step")
    return f"<div class=chart><h3>{_text(title)}</h3><ul class=legend>{legend}</ul>{svg}{note}</div>"


def _last(line: curves.Series) -> str:
    """The last point of the bold line."""
    means = curves.running_mean(line.points, curves.window_length(len(line.points)))
    return format([value for _, value in means if value is not None][-1], ".4g").replace("-", "−")


# --- settings ---------------------------------------------------------------------------------------------------------


def _facts(summary: Mapping[str, Any]) -> str:
    """What else the summary holds."""
    rest = {name: value for name, value in summary.items() if name not in ("before", "after")}
    return f"<section><h2>Summary</h2>{_nested(rest)}</section>" if rest else ""


def _config(config: Mapping[str, Any]) -> str:
    return f"<details class=config><summary>Configuration</summary>{_nested(config)}</details>" if config else ""


def _nested(values: Mapping[str, Any]) -> str:
    """A nested mapping as a table of dotted names."""
    rows = "".join(f"<tr><th scope=row>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in _flat(values))
    return f"<div class=scroll><table class=settings><tbody>{rows}</tbody></table></div>"


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat += _flat(value, f"{prefix}{name}.")
        else:
            shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            flat.append((f"{prefix}{name}", shown))
    return flat
