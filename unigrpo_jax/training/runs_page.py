"""One page of several runs: where they differ, what they reached, their samples of the same prompts, their curves overlaid.

A run keeps one colour on the whole page.  Runs may have different lengths, lack metrics, samples or settings, and still go
on; the first one is what the others are compared with.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from unigrpo_jax.foreign_text import for_html as _text
from unigrpo_jax.foreign_text import visible
from unigrpo_jax.training import curves, page_samples
from unigrpo_jax.training.page_parts import (
    AGE_SCRIPT,
    change,
    chart,
    flat,
    is_number,
    number,
    points,
    words,
    written,
)
from unigrpo_jax.training.page_shell import CLIPS, STRIPS, page
from unigrpo_jax.training.recorded_run import RecordedRun

MOST_RUNS = 2 * curves.COLOURS  # each colour solid and dashed; further lines could not be told apart
# Metrics whose figures stand open, by patterns; those of the others open on demand.
IMPORTANT = (
    r"reward/mean", r"eval/.+", r"judge/.+", r"flow(_\w+)?/(velocity|leash)_mse", r"drift(_.+)?/.+", r"text/entropy",
    r"text/length", r"text/truncated_share", r"text/repeated_share", r"reward/zero_variance_share", r"grad_norm/.+",
    r"image/.+", r"video/.+", r"time/iteration",
)  # fmt: skip
# Where the files of a run folder differ without being settings.
FACTS = ("model_sha256", "teacher_sha256", "versions")

_STYLE = """
.by-run { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 230px), 1fr)); gap: 14px 26px; }
.by-run .halves { max-width: 340px; } .stack { display: grid; gap: 14px; }
.run { display: inline-flex; align-items: center; gap: 7px; font-weight: 600; font-size: 13px; min-width: 0; }
.run i { flex: none; width: 14px; height: 4px; background: var(--c); } .run span { overflow-wrap: anywhere; }
.run i.dashed { background: repeating-linear-gradient(90deg, var(--c) 0 4px, transparent 4px 6px); }
.runs td, .runs th { text-align: left; white-space: normal; } .runs .amount { text-align: right; white-space: nowrap; }
.settings thead th { min-width: 120px; }
.scores tbody th, .scores thead tr:first-child th:first-child, .settings th:first-child { position: sticky; left: 0;
  background: var(--page); } .scores .begins { border-left: 1px solid var(--rule); } .scores h3 { margin: 14px 0 6px; }
"""


def runs_page(runs: Sequence[RecordedRun]) -> str:
    """The page of at least one and at most MOST_RUNS runs; ValueError where the samples of one are damaged."""
    names = distinct_names(runs)
    samples = [page_samples.first_and_last(run.folder) for run in runs]
    clips = f"<style>{CLIPS}</style>" if any(page_samples.hold_clips(pairs) for _, pairs in samples) else ""
    title = names[0] if len(names) == 1 else f"{len(names)} runs: {', '.join(names)}"
    body = [
        f"<style>{_STYLE}{STRIPS}</style>{clips}<header><h1>{_text(title)}</h1><p class=note>{written()}.</p></header>",
        _overview(runs, names),
        _settings(runs, names),
        _held_out(runs, names),
        _gallery(names, samples),
        _curves(runs, names),
    ]
    return page(title, "\n".join(part for part in body if part), AGE_SCRIPT)


def distinct_names(runs: Sequence[RecordedRun]) -> list[str]:
    """For each run the end of its path that no other one has: the folder's name, or `b/x` beside `a/x`."""
    parts = [visible(run.folder.resolve()).split("/") for run in runs]
    longest = max(map(len, parts))
    names = []
    for own in parts:
        lengths = range(1, longest + 1)
        alone = lambda n, own=own: sum(other[-n:] == own[-n:] for other in parts) == 1
        names.append("/".join(own[-next(filter(alone, lengths), longest) :]))
    return names


def _key(index: int, name: str) -> str:
    """A run's colour and name."""
    return f'<span class=run><i class="{curves.colour(index)}"></i><span>{_text(name)}</span></span>'


# --- settings ---------------------------------------------------------------------------------------------------------


def _overview(runs: Sequence[RecordedRun], names: Sequence[str]) -> str:
    """Where each run lies, how far it is, how long it took, and what rang."""
    rows = ""
    for index, (run, label) in enumerate(zip(runs, names, strict=True)):
        rang = dict.fromkeys(name for line in run.metrics for name in line if name.startswith("alarm/") and line[name])
        alarms = ", ".join(metric.removeprefix("alarm/") for metric in rang)
        seconds = run.summary.get("seconds")
        rows += (
            f"<tr><th scope=row>{_key(index, label)}</th><td>{_text(run.state)}</td>"
            f"<td class=amount>{f'{seconds:,.0f} s' if is_number(seconds) else '–'}</td>"
            f"<td>{_text(alarms) or '–'}</td><td>{_text(run.folder)}</td></tr>"
        )
    head = "<tr><th>Run</th><th>State</th><th class=amount>Time</th><th>Alarms</th><th>Folder</th></tr>"
    return f"<section><div class=scroll><table class=runs><thead>{head}</thead><tbody>{rows}</tbody></table></div></section>"


def _settings(runs: Sequence[RecordedRun], names: Sequence[str]) -> str:
    """The settings that differ, and versions and first weights where they do."""
    if len(runs) == 1:
        return ""
    settings = [dict(flat({name: value for name, value in run.config.items() if name != "name"})) for run in runs]
    facts = [dict(flat({name: run.provenance[name] for name in FACTS if name in run.provenance})) for run in runs]
    known = [a | b for a, b in zip(settings, facts, strict=True)]
    every = dict.fromkeys(name for one in (*settings, *facts) for name in one)
    differ = [name for name in every if len({one.get(name) for one in known}) > 1]
    missing = [name for name, run in zip(names, runs, strict=True) if not run.config]
    notes = [f"{len(every) - len(differ)} others are the same in all."]
    notes += [f"There is no config.json in {', '.join(missing)}."] if missing else []
    note = f"<p class=note>{_text(' '.join(notes))}</p>"
    title = "<h2>Settings that differ</h2>"
    if not differ:
        return f"<section>{title}<p class=note>None{'' if every else ': no run has its settings'}.</p></section>"
    head = "".join(f"<th scope=col>{_key(index, name)}</th>" for index, name in enumerate(names))
    cells = lambda name: "".join(f"<td>{_text(one.get(name, '–'))}</td>" for one in known)
    rows = "".join(f"<tr><th scope=row>{_text(name)}</th>{cells(name)}</tr>" for name in differ)
    table = f"<table class=settings><thead><tr><th>Setting</th>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f"<section>{title}<div class=scroll>{table}</div>{note}</section>"


# --- held-out prompts -------------------------------------------------------------------------------------------------


def _held_out(runs: Sequence[RecordedRun], names: Sequence[str]) -> str:
    """All scores overall, then each by category: before, newest, the change, and the newest minus the first run's."""
    before = [run.summary.get("before") or {} for run in runs]
    newest = [run.newest() or (0, {}) for run in runs]
    after = [table for _, table in newest]
    scores = list(dict.fromkeys(name for table in (*before, *after) for name in table))
    if not scores:
        return ""
    when = ["after" if run.finished or not table else f"iteration {step}"
            for run, (step, table) in zip(runs, newest, strict=True)]  # fmt: skip
    of = lambda tables, score, category: [table.get(score, {}).get(category) for table in tables]
    rows = lambda score, category: (of(before, score, category), of(after, score, category))

    def by_category(score: str) -> str:
        found = dict.fromkeys(category for table in (*before, *after) for category in table.get(score, {}))
        first = sorted(found, key=lambda category: category != "overall")
        title = f"<h3>{_text(words(score))}, by category</h3>"
        return title + _table("Category", names, when, {category: rows(score, category) for category in first})

    main = "exact" if "exact" in scores else scores[0]
    others = "".join(by_category(score) for score in scores if score != main)
    more = f"<details><summary>Other scores, by category</summary>{others}</details>" if others else ""
    notes = [f"To first: its newest score minus that of {names[0]}."] if len(runs) > 1 else []
    differ = _judged_differently(runs)
    notes += [f"The runs were not judged alike: {', '.join(f'evaluation.{name}' for name in differ)}."] if differ else []
    note = f"<p class=note>{_text(' '.join(notes))}</p>" if notes else ""
    overall = _table("Overall", names, when, {score: rows(score, "overall") for score in scores})
    titles = {run.judged_on for run in runs}
    title = titles.pop() if len(titles) == 1 else "Prompts of the evaluations"
    return f"<section class=scores><h2>{title}</h2>{note}{overall}{by_category(main)}{more}</section>"


def _judged_differently(runs: Sequence[RecordedRun]) -> list[str]:
    """The settings of the evaluation that differ, but for how often there is one."""
    judged = [run.summary.get("evaluation") for run in runs]
    known = [dict(flat(one)) for one in judged if isinstance(one, Mapping) and one]
    names = dict.fromkeys(name for one in known for name in one if name != "every")
    return [name for name in names if len({one.get(name) for one in known}) > 1]


def _table(corner: str, names: Sequence[str], when: Sequence[str], rows: Mapping[str, tuple[Sequence, Sequence]]) -> str:
    """A row for each (before, newest) of all runs; `when` heads each run's column of newest scores."""
    groups, columns, body = "", "", ""
    for index, (name, newest) in enumerate(zip(names, when, strict=True)):
        groups += f"<th class=begins colspan={4 if index else 3} scope=colgroup>{_key(index, name)}</th>"
        columns += f"<th class=begins>before</th><th>{newest}</th><th>change</th>"
        columns += "<th>to first</th>" if index else ""
    for label, (before, after) in rows.items():
        pairs = enumerate(zip(before, after, strict=True))
        cells = "".join(_cells(index, first, last, after[0]) for index, (first, last) in pairs)
        kind = " class=overall" if label == "overall" else ""
        body += f"<tr{kind}><th scope=row>{_text(words(label))}</th>{cells}</tr>"
    head = f"<tr><th rowspan=2>{corner}</th>{groups}</tr><tr>{columns}</tr>"
    return f"<div class=scroll><table><thead>{head}</thead><tbody>{body}</tbody></table></div>"


def _cells(index: int, first: Any, last: Any, reference: Any) -> str:
    cells = f"<td class=begins>{number(first)}</td><td>{number(last)}</td><td>{change(first, last)}</td>"
    return cells + (f"<td>{change(reference, last)}</td>" if index else "")


# --- samples and curves -----------------------------------------------------------------------------------------------


def _gallery(names: Sequence[str], samples: Sequence[tuple[list[int], page_samples.Pairs]]) -> str:
    """The first and last samples of each run, prompt by prompt; what all runs have drawn comes first."""
    if not any(ends for ends, _ in samples):
        return ""
    drawn = [index for index, (ends, _) in enumerate(samples) if ends]
    as_strips = any(page_samples.are_strips(pairs) for _, pairs in samples)
    show, kind = (page_samples.strips, "stack") if as_strips else (page_samples.halves, "by-run")
    prompts = dict.fromkeys(key for _, pairs in samples for key in pairs)
    cards = ""
    for key in sorted(prompts, key=lambda key: -sum(key in pairs for _, pairs in samples)):
        runs = ""
        for index in drawn:
            ends, pairs = samples[index]
            pictures = show(ends, pairs[key]) if key in pairs else "<p class=note>not sampled</p>"
            runs += f"<div>{_key(index, names[index])}{pictures}</div>"
        cards += f"<article><h3 dir=auto>{_text(key[0])}</h3><div class={kind}>{runs}</div></article>"
    notes = [f"{names[index]}: {known}." for index in drawn if (known := page_samples.right(*samples[index]))]
    missing = [name for name, (ends, _) in zip(names, samples, strict=True) if not ends]
    notes += [f"No samples: {', '.join(missing)}."] if missing else []
    note = "".join(f"<p class=note>{_text(words)}</p>" for words in notes)
    return f"<section><h2>Samples of the same prompts</h2>{note}<div class=stack>{cards}</div></section>"


def _curves(runs: Sequence[RecordedRun], names: Sequence[str]) -> str:
    """A figure for each metric, with a line for each run that has it."""
    lines = [run.lines() for run in runs]
    metrics = dict.fromkeys(name for run in lines for line in run for name in line if name != "step")
    rank = {}
    for name in metrics:
        matching = [n for n, pattern in enumerate(IMPORTANT) if re.fullmatch(pattern, name, re.DOTALL)]
        rank[name] = matching[0] if matching else len(IMPORTANT)
    figures = {
        name: chart(name, [curves.Series(run, points(own, name)) for run, own in zip(names, lines, strict=True)])
        for name in sorted(metrics, key=rank.get)
    }
    shown = "".join(figure for name, figure in figures.items() if rank[name] < len(IMPORTANT))
    others = "".join(figure for name, figure in figures.items() if rank[name] == len(IMPORTANT))
    if not shown and not others:
        return ""
    more = f"<details><summary>Other metrics</summary><div class=charts>{others}</div></details>" if others else ""
    note = "By iteration. Faint: every value. Bold: mean over an eighth of them, at most 25; its last stands above."
    return f"<section><h2>Curves</h2><p class=note>{note}</p><div class=charts>{shown}</div>{more}</section>"
