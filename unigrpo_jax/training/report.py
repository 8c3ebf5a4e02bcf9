"""`report.html`: one page that shows a run, rebuilt from the files of its folder alone.

It reads `config.json`, `metrics.jsonl`, `summary.json` and `samples/`, whichever are there, so that a run in progress has
a report, too, and says how far it is.  The page loads nothing: images and curves stand inline, every text of the run is
escaped, and the one script, which the page names by its hash, says how old the page is.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from unigrpo_jax.foreign_text import for_html as _text
from unigrpo_jax.training import curves, page_samples
from unigrpo_jax.training.health import MEANINGS
from unigrpo_jax.training.page_parts import (
    AGE_SCRIPT,
    LABELS,
    change,
    chart,
    is_number,
    nested,
    number,
    points,
    words,
    written,
)
from unigrpo_jax.training.page_shell import CLIPS, STRIPS, page
from unigrpo_jax.training.recorded_run import RecordedRun, read_run
from unigrpo_jax.training.storage import Place, write_atomically

NEWEST_EVALUATIONS = 10  # rows of the table of those so far; the curves show all

# title, pattern of the metrics' names.  A pattern with a group named `band` draws <band>_mean inside its _min and _max.
CHARTS = (
    ("Reward", r"reward/(.+/)?mean"),
    ("Judged by rule, training prompts", r"judge/.+"),
    ("Held-out", r"eval/.+"),
    ("Share of groups whose rewards are all equal", r"reward/zero_variance_share|flow_\w+/advantage_zero_share"),
    ("Standard deviation of each modality's advantage", r"flow_\w+/advantage_std"),
    ("Share of groups dropped, of episodes not finite", r"reward/dropped_share|rollout/nonfinite_share"),
    ("Text ratio: mean, min to max", r"(?P<band>text/ratio)_mean"),
    ("Flow ratio: mean, min to max", r"(?P<band>flow(?:_\w+)?/ratio)_mean"),
    ("Velocity MSE to the reference", r"flow(_\w+)?/(velocity|leash)_mse"),
    ("A student's data and its teacher's estimate: mean distance, mean gradient", r"(flow|matching)(_\w+)?/(distance|push)"),
    ("Loss of the fake score", r"fake/loss"),
    ("Squared errors of a student's velocities: at equal times, on average", r"flow(_\w+)?/(velocity|average)_error"),
    ("Drift from the reference along held-out drawings", r"drift(_\w+)?/(mean|last)"),
    ("Share of the drift's last step that is one pattern", r"drift(_\w+)?/last_pattern"),
    ("Thinking length, tokens", r"text/length"),
    ("Share of thinking cut at the maximum", r"text/truncated_share"),
    ("Text entropy, nats per token", r"text/entropy"),
    ("Share of four tokens in a row that were thought before", r"text/repeated_share"),
    ("Share of clipped ratios", r"(text|flow(_\w+)?)/clip_fraction.*"),
    ("Largest |log p(rollout) - log p(update)|", r"(text|flow(_\w+)?)/log_prob_gap_max"),
    ("Gradient norms", r"grad_norm/.+"),
    ("Update norms", r"update_norm/.+"),
    ("Edge density of the images", r"image/edge_density"),
    ("Colour entropy of the images, nats", r"image/colour_entropy"),
    ("Energy of the images' background at the period of the latent tokens", r"image/grid_energy"),
    ("Difference from frame to frame", r"video/frame_difference"),
    ("Seconds per phase", r"time/.+"),
    ("Tokens per second", r"tokens_per_second"),
)

def write_report(run_dir: Place) -> epath.Path:
    """Writes `run_dir/report.html` in one step and returns its path; ValueError where a file of the folder is damaged.

    It may be called while the run goes on: what is not there yet is left out.
    """
    run = read_run(run_dir)
    body = [
        f"<header><h1>{_text(run.name)}</h1><p class=note>{written()}, {run.state}.</p></header>",
        _headline(run),
        _alarms(run.metrics),
        _before_after_tables(run),
        _evaluations(run),
        _gallery(run.folder),
        _drift(run.summary.get("drift")),
        _charts(run.lines()),
        _facts(run.summary),
        _config(run.config),
    ]
    path = run.folder / "report.html"
    write_atomically(path, page(run.name, "\n".join(part for part in body if part), AGE_SCRIPT).encode())
    return path


# --- what changed -----------------------------------------------------------------------------------------------------


def _headline(run: RecordedRun) -> str:
    """The few numbers to remember: overall scores before and at the newest evaluation, and the mean reward so far."""
    before, (step, newest) = run.summary.get("before") or {}, run.newest() or (0, {})
    at = "" if run.finished or not newest else f", iteration {step}"
    tiles = []
    for name in dict.fromkeys([*before, *newest]):
        first, last = (table.get(name, {}).get("overall") for table in (before, newest))
        if name in LABELS and (is_number(first) or is_number(last)):
            tiles.append((LABELS[name] + at, first, last))
    rewards = [line["reward/mean"] for line in run.metrics if is_number(line.get("reward/mean"))]
    if rewards:
        window = curves.window_length(len(rewards))
        ends = rewards[:window], rewards[-window:]
        tiles.append((f"Training reward, first and last {window}", *(sum(end) / len(end) for end in ends)))
    if not tiles:
        return ""
    cells = "".join(
        f"<div class=tile><span class=name>{label}</span><span class=pair>{number(first)} → <b>{number(last)}</b></span>"
        f"{change(first, last)}</div>"
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


def _before_after_tables(run: RecordedRun) -> str:
    """Scores by category before training and at the newest evaluation, one group of columns per measure."""
    before, (step, newest) = run.summary.get("before") or {}, run.newest() or (0, {})
    names = list(dict.fromkeys([*before, *newest]))
    if not names:
        return ""
    categories = dict.fromkeys(c for n in names for side in (before, newest) for c in side.get(n, {}))
    groups = "".join(f"<th colspan=3 scope=colgroup>{_text(words(n))}</th>" for n in names)
    columns = "<th>before</th><th>after</th><th>change</th>" * len(names)
    rows = "".join(
        f"<tr{' class=overall' if category == 'overall' else ''}><th scope=row>{_text(words(category))}</th>"
        + "".join(_cells(before.get(n, {}).get(category), newest.get(n, {}).get(category)) for n in names)
        + "</tr>"
        for category in sorted(categories, key=lambda category: category != "overall")
    )
    head = f"<thead><tr><th rowspan=2>Category</th>{groups}</tr><tr>{columns}</tr></thead>"
    table = f"<div class=scroll><table>{head}<tbody>{rows}</tbody></table></div>"
    when = "before" + ("" if not newest else " and after" if run.finished else f" and after iteration {step}")
    return f"<section><h2>{run.judged_on}, {when}</h2>{table}</section>"


def _cells(first: Any, last: Any) -> str:
    return f"<td>{number(first)}</td><td>{number(last)}</td><td>{change(first, last)}</td>"


def _evaluations(run: RecordedRun) -> str:
    """Of a run in progress the overall scores of the newest evaluations, newest first."""
    found = run.evaluations()
    if run.finished or len(found) < 2:
        return ""
    names = list(dict.fromkeys(name for _, table in found for name in table))
    head = "".join(f"<th>{_text(words(name))}</th>" for name in names)
    rows = "".join(
        f"<tr><th scope=row>{step}</th>"
        + "".join(f"<td>{number(table.get(name, {}).get('overall'))}</td>" for name in names)
        + "</tr>"
        for step, table in found[: -NEWEST_EVALUATIONS - 1 : -1]
    )
    table = f"<div class=scroll><table><thead><tr><th>Iteration</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    return f"<section><h2>{run.judged_on} so far, overall</h2>{table}</section>"


# --- samples and curves -----------------------------------------------------------------------------------------------


def _gallery(run_dir: epath.Path) -> str:
    """The samples of the first and the last saved step; the same prompt stands side by side.

    Where an episode has several rounds, or given pictures, it is a strip, and the steps stand below each other.
    """
    ends, pairs = page_samples.first_and_last(run_dir)
    if not ends:
        return ""
    as_strips = page_samples.are_strips(pairs)
    show = page_samples.strips if as_strips else page_samples.halves
    cards = [
        f"<article><h3 dir=auto>{_text(prompt)}</h3>{show(ends, by_step)}</article>"
        for (prompt, _), by_step in pairs.items()
    ]
    known = page_samples.right(ends, pairs)
    note = f"<p class=note>{known}.</p>" if known else ""
    title = f"Samples, step {ends[0]}" + (f" and step {ends[1]}" if len(ends) > 1 else "")
    style, kind = (f"<style>{STRIPS}</style>", "strips") if as_strips else ("", "gallery")
    style += f"<style>{CLIPS}</style>" if page_samples.hold_clips(pairs) else ""
    return f"<section>{style}<h2>{title}</h2>{note}<div class={kind}>{''.join(cards)}</div></section>"


def _charts(metrics: Sequence[Mapping[str, Any]]) -> str:
    """Every metric once: those of CHARTS in their chart, the rest one by one in a part that opens on demand."""
    names = list(dict.fromkeys(name for line in metrics for name in line if name != "step"))
    shown, charts, drawn_by_band = set(), [], set()
    for title, pattern in CHARTS:
        series = []
        for match in [match for name in names if name not in shown and (match := re.fullmatch(pattern, name, re.DOTALL))]:
            low = high = ()
            if band := match.groupdict().get("band"):
                low, high = (points(metrics, f"{band}_{end}") for end in ("min", "max"))
                drawn_by_band |= {f"{band}_min", f"{band}_max"}
            shown.add(match[0])
            series.append(curves.Series(match[0], points(metrics, match[0]), low, high))
        charts.append(chart(title, series))
    rest = [name for name in names if name not in shown | drawn_by_band]
    others = "".join(chart(name, [curves.Series(name, points(metrics, name))]) for name in rest)
    if not any(charts) and not others:
        return ""
    window = curves.window_length(len(metrics))
    note = f"Faint: every step. Bold: mean over the last {window} recorded values." if window > 1 else ""
    more = f"<details><summary>Other metrics</summary><div class=charts>{others}</div></details>" if others else ""
    return (
        f"<section><h2>Curves</h2><p class=note>{note} The number in a legend is the line's last value.</p>"
        f"<div class=charts>{''.join(charts)}</div>{more}</section>"
    )


def _drift(drift: Any) -> str:
    """How far predictions are from the reference's, step by step along the held-out drawings of the newest evaluation."""
    if not isinstance(drift, Mapping):
        return ""
    titles = {"squared": "Mean squared difference", "pattern": "Share of it that is one pattern"}
    charts = []
    for kind, title in titles.items():
        found = [(name, own.get(kind)) for name, own in drift.items() if isinstance(own, Mapping)]
        found = [(name, values) for name, values in found if isinstance(values, list)]
        line = lambda values: [(step, x if is_number(x) else None) for step, x in enumerate(values)]
        charts.append(chart(title, [curves.Series(name, line(values)) for name, values in found]))
    if not any(charts):
        return ""
    note = "Of the newest evaluation, over the steps of a drawing from the noise (0) to the data."
    title = "Drift of the predictions from the reference"
    return f"<section><h2>{title}</h2><p class=note>{note}</p><div class=charts>{''.join(charts)}</div></section>"


# --- settings ---------------------------------------------------------------------------------------------------------


def _facts(summary: Mapping[str, Any]) -> str:
    """What else the summary holds."""
    rest = {name: value for name, value in summary.items() if name not in ("before", "after", "drift")}
    return f"<section><h2>Summary</h2>{nested(rest)}</section>" if rest else ""


def _config(config: Mapping[str, Any]) -> str:
    return f"<details class=config><summary>Configuration</summary>{nested(config)}</details>" if config else ""
