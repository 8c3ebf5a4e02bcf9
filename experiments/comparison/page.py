"""Pages of a comparison, made from its records alone: Markdown, one HTML file, and the figures of both."""

import base64
import dataclasses
import io
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from experiments.comparison.figures import figure
from experiments.comparison.records import Record, last, over_seeds, read_records, score, spread
from unigrpo_jax.foreign_files import read_json
from unigrpo_jax.foreign_text import for_html, visible
from unigrpo_jax.training.curves import Series
from unigrpo_jax.training.page_shell import page
from unigrpo_jax.training.samples import wrap

ODE, GUIDED = "ode", "guided"
CATEGORIES = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
CURVES = (
    ("held_out", "update", "exact", "Exact, held-out prompts, by update"),
    ("held_out", "seconds", "exact", "Exact, held-out prompts, by seconds of training"),
    ("held_out", "update", "plan_exact", "Thinking right, held-out prompts"),
    ("held_out", "update", "drawing_follows_plan", "Drawing follows plan, held-out prompts"),
    ("curve", "update", "flow/velocity_mse", "Velocity MSE to the start"),
    ("curve", "update", "image/edge_density", "Edge density of the images"),
)
NOTES = "notes.json"
# Averaged weights, which are what is judged, still hold what a run that has since collapsed once learned.
LAST = (
    "Last drawings: the exact share of what a run itself drew in its last ten updates, of training prompts and with its "
    "sampler's noise; all other scores are those of the weights' moving average."
)
ZOOM = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """One ablation as a page shows it.

    Attributes:
      name: for files and notes.
      title: above it.
      question: one sentence.
      metrics: (metric of the curve, title) of each panel.
      arms: (arm, label) of each line.
      evaluation: the one that the table shows.
    """

    name: str
    title: str
    question: str
    metrics: tuple[tuple[str, str], ...]
    arms: tuple[tuple[str, str], ...]
    evaluation: str = ODE


def write_table(out: pathlib.Path, arms: Sequence[str]) -> None:
    """Writes table.md, table.html, samples.png and figures/table.svg; an arm without a record is shown as missing."""
    records = read_records(out)
    known = [arm for arm in arms if arm in records]
    header = [
        "method",
        "thinking",
        "seeds",
        "exact",
        *CATEGORIES,
        "thinking right",
        "follows plan",
        "exact, guided",
        "last drawings",
        "minutes",
    ]
    rows = [_row(records[arm]) if arm in records else [arm, *["missing"] * (len(header) - 1)] for arm in arms]
    if known:
        _mark_best(rows, [3, *range(4, 4 + len(CATEGORIES)), 12])
    words = [*provenance([r for arm in known for r in records[arm]]), ""]
    words.insert(-1, LAST)
    body = ["# The table", "", *words, *markdown([header, *[_cells(row) for row in rows]])]
    html = (
        f"<h1>The table</h1><p class=note>{for_html(' '.join(words))}</p>{html_table([header, *[_cells(r) for r in rows]])}"
    )
    judged = _judged_on([r for arm in known for r in records[arm]])
    lines = lambda *axes: [series(records[arm], *axes) for arm in known if _drawn(records[arm][0], axes[2])]
    panels = [(title.replace("held-out", judged), lines(*axes)) for *axes, title in CURVES]
    if any(line.points for _, lines in panels for line in lines):
        svg = write_figure(out, "table", panels)
        body += [
            "",
            "![Curves](figures/table.svg)",
            "",
            "Lines are means over seeds, bands reach from the lowest to the highest.",
        ]
        html += f"<h2>Curves</h2>{svg}"
    if known:
        shown = {_name(records[arm][0]): records[arm][0]["samples"] for arm in known}
        (out / "samples.png").write_bytes(grid_of(shown))
        body += ["", "![The same prompts, drawn by each](samples.png)"]
        html += f"<h2>The same prompts</h2>{gallery(shown)}"
    write(out / "table.md", "\n".join(body) + "\n")
    write(out / "table.html", page("The table", html))


def write_ablations(out: pathlib.Path, studies: Sequence[Study]) -> None:
    """Writes ablations.md, ablations.html and figures/STUDY.svg, with what `notes.json` says of each study."""
    records = read_records(out)
    notes = read_json(out / NOTES) if (out / NOTES).exists() else {}
    words = provenance([r for found in records.values() for r in found])
    body, html = ["# Ablations", "", *words], f"<h1>Ablations</h1><p class=note>{for_html(' '.join(words))}</p>"
    for study in studies:
        rows, lines = [], []
        known = [(arm, label) for arm, label in study.arms if arm in records]
        rewards = [n for arm, _ in known for n in records[arm][0]["evaluations"].get(study.evaluation, {})]
        scored = "scorer" in rewards
        header = ["", "seeds", "exact", "graded", "thinking right", "follows plan", *(["learned reward"] if scored else []),
                  "velocity MSE", "edge density, end / start", "s per update"]  # fmt: skip
        for arm, label in study.arms:
            if arm not in records:
                rows.append([label, *["missing"] * (len(header) - 1)])
                continue
            found = records[arm]
            reads = [score(study.evaluation, n) for n in ("exact", "graded", "plan_exact", "drawing_follows_plan")]
            reads += [score(study.evaluation, "scorer")] if scored else []
            reads += [last("flow/velocity_mse"), _edges, lambda r: r["seconds"]["training"] / max(r["budget"]["updates"], 1)]
            rows.append([label, str(len(found)), *(spread([read(r) for r in found]).words() for read in reads)])
        for metric, title in study.metrics:
            lines.append((title, [series(records[arm], "curve", "update", metric, label) for arm, label in known]))
        metric, title = study.metrics[0]
        by_time = [series(records[arm], "curve", "seconds", metric, label) for arm, label in known]
        lines.append((f"{title}, by seconds of training", by_time))
        note = str(notes.get(study.name, "Not yet described."))
        judged = " Judged with guidance." if study.evaluation == GUIDED else ""
        body += ["", f"## {study.title}", "", study.question + judged, "", *markdown([header, *rows]), "", visible(note)]
        html += f"<h2>{for_html(study.title)}</h2><p>{for_html(study.question + judged)}</p>{html_table([header, *rows])}"
        html += f"<p>{for_html(note)}</p>"
        if any(line.points for _, panel in lines for line in panel):
            html += write_figure(out, study.name, lines)
            body += ["", f"![{study.title}](figures/{study.name}.svg)"]
    write(out / "ablations.md", "\n".join(body) + "\n")
    write(out / "ablations.html", page("Ablations", html))


def _name(record: Record) -> str:
    """An arm's title, and whether it thinks, which tells two arms of one title apart."""
    return record["title"] + ("" if _thinks(record) else ", no thinking")


def _drawn(record: Record, metric: str) -> bool:
    """Whether an arm has a line: it was trained, and thinks where its plans are asked about."""
    return bool(record["curve"]) and (_thinks(record) or "plan" not in metric)


def _thinks(record: Record) -> bool:
    return bool(record.get("evaluated", {}).get(ODE, {}).get("thinking", True))


def _row(records: Sequence[Record]) -> list:
    first = records[0]
    of = lambda read: spread([read(r) for r in records])
    scores = [of(score(ODE, "exact")), *(of(score(ODE, "exact", c)) for c in CATEGORIES)]
    thinks = _thinks(first)
    parts = [of(score(ODE, n)) if thinks else spread([]) for n in ("plan_exact", "drawing_follows_plan")]
    minutes = spread([r["seconds"]["training"] / 60 for r in records]).mean
    return [first["title"], "yes" if thinks else "no", str(len(records)), *scores, *parts, of(score(GUIDED, "exact")),
            of(_last_drawings), f"{minutes:.1f}" if minutes else "–"]  # fmt: skip


def _last_drawings(record: Record) -> float | None:
    """What a run itself still draws right at its end; None of one whose drawings are another policy's."""
    frozen = any(config.get("learning", {}).get("method") == "best_of_n" for config in record.get("configs", ())[-1:])
    return None if frozen else last("judge/exact")(record)


def _mark_best(rows: list[list], columns: Sequence[int]) -> None:
    """Makes the largest mean of each column bold."""
    for column in columns:
        means = [row[column].mean for row in rows if not isinstance(row[column], str) and not math.isnan(row[column].mean)]
        for row in rows:
            if means and not isinstance(row[column], str) and row[column].mean == max(means):
                row[column] = f"**{row[column].words()}**"


def _cells(row: Sequence) -> list[str]:
    return [cell if isinstance(cell, str) else cell.words() for cell in row]


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table's lines; the first row is its head."""
    line = lambda cells: "| " + " | ".join(visible(c).replace("|", "\\|").replace("<", "&lt;") for c in cells) + " |"
    return [line(rows[0]), "|" + "---|" * len(rows[0]), *map(line, rows[1:])]


def html_table(rows: Sequence[Sequence[str]]) -> str:
    """The same as HTML."""

    def cell(text: str, tag: str) -> str:
        bold = text.startswith("**")
        inner = for_html(text.strip("*") if bold else text)
        return f"<{tag}>{f'<b>{inner}</b>' if bold else inner}</{tag}>"

    head = "".join(cell(c, "th") for c in rows[0])
    body = "".join(f"<tr>{cell(row[0], 'th')}{''.join(cell(c, 'td') for c in row[1:])}</tr>" for row in rows[1:])
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def provenance(records: Sequence[Record]) -> list[str]:
    """Where the numbers come from, in sentences."""
    if not records:
        return ["There are no records yet."]
    each = lambda read: ", ".join(sorted({str(read(r)) for r in records}))
    trained = [r for r in records if r["budget"]["updates"]]
    hours = sum(r["seconds"]["total"] for r in records) / 3600
    budgets = sorted({(r["budget"]["updates"], r["budget"]["episodes"]) for r in trained})
    spent = "; ".join(f"{updates} updates from {episodes} episodes" for updates, episodes in budgets)
    return [
        f"{len(records)} records, seeds {each(lambda r: r['seed'])}, {hours:.1f} hours in all; a run is {spent or 'none'}.",
        f"Commit {each(lambda r: str(r.get('commit'))[:12])}; jax {each(lambda r: r.get('versions', {}).get('jax'))}; "
        f"{each(lambda r: _machine(r.get('machine', {})))}.",
        "± is the sample standard deviation over seeds.",
        *([] if (judged := _judged_on(records)) == "held-out" else [f"Judged on {judged} prompts."]),
    ]


def _judged_on(records: Sequence[Record]) -> str:
    """Which prompts: held-out, validation, or both."""
    splits = {e.get("split", "held_out") for r in records for e in r.get("evaluated", {}).values() if isinstance(e, Mapping)}
    return " and ".join(sorted(visible(str(split)).replace("_", "-") for split in splits)) or "held-out"


def _machine(facts: Mapping[str, Any]) -> str:
    """What a record ran on, in words."""
    where = f"{facts.get('cpu', 'a processor')} with {facts.get('cores', '?')} cores"
    return visible(where if facts.get("platform", "cpu") == "cpu" else f"{facts.get('device')}, {where}")


def series(records: Sequence[Record], points: str, x: str, y: str, label: str | None = None) -> Series:
    """One arm's line: the mean of its seeds with a band from the lowest to the highest."""
    mean, low, high = over_seeds(records, points, x, y)
    several = len(records) > 1
    return Series(label or _name(records[0]), mean, low if several else (), high if several else ())


def _edges(record: Record) -> float | None:
    """Edge density of the last ten updates over that of the first."""
    known = [p["image/edge_density"] for p in record["curve"] if isinstance(p.get("image/edge_density"), int | float)]
    return sum(known[-10:]) / len(known[-10:]) / known[0] if known and known[0] > 0 else None


def write_figure(out: pathlib.Path, name: str, panels) -> str:
    """Writes figures/NAME.svg; the same as an image for a page."""
    svg = figure(panels)
    write(out / "figures" / f"{name}.svg", svg)
    data = base64.b64encode(svg.encode()).decode()
    return f'<p><img style="max-width:100%;border:0" alt="curves" src="data:image/svg+xml;base64,{data}"></p>'


def gallery(shown: dict[str, list[dict]]) -> str:
    """One row per prompt, one column per arm."""
    head = "".join(f"<th>{for_html(name)}</th>" for name in shown)
    rows = []
    for row, first in enumerate(next(iter(shown.values()))):
        cells = []
        for samples in shown.values():
            s = samples[row] if row < len(samples) else None
            if s is None:
                cells.append("<td>–</td>")
                continue
            state, mark = {True: ("right", "✓"), False: ("wrong", "✗")}.get(s["correct"], ("", ""))
            title = for_html(f"{s['thinking']} — {s['verdict']}")
            data = base64.b64encode(base64.b64decode(s["image"])).decode()
            cells.append(f'<td><img class="{state} tiny" style="width:72px" title="{title}" alt="{title}" '
                         f'src="data:image/png;base64,{data}"><span class="{state}">{mark}</span></td>')  # fmt: skip
        rows.append(f"<tr><th>{for_html(first['prompt'])}</th>{''.join(cells)}</tr>")
    return (
        f"<div class=scroll><table><thead><tr><th>prompt</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def grid_of(shown: dict[str, list[dict]]) -> bytes:
    """The same as a PNG: columns are arms, rows are prompts, a green frame is right and a red one wrong."""
    font = ImageFont.load_default(12)
    count = max(len(samples) for samples in shown.values())
    pictures = {name: [_picture(s["image"]) for s in samples] for name, samples in shown.items()}
    side = max(p.width for column in pictures.values() for p in column) if count else 0
    left, top, cell = 330, 34, max(side + 14, 96)
    grid = Image.new("RGB", (left + cell * len(shown), top + (side + 12) * count + 4), "white")
    pen = ImageDraw.Draw(grid)
    for column, (name, samples) in enumerate(shown.items()):
        x = left + column * cell
        for number, line in enumerate(wrap(visible(name), font, cell - 4, 2)):
            pen.text((x, 2 + 14 * number), line, fill="#202020", font=font)
        for row, s in enumerate(samples):
            y = top + row * (side + 12)
            if column == 0:
                pen.text((6, y + side // 2 - 6), visible(s["prompt"])[:52], fill="#202020", font=font)
            colour = {True: "#1a8a48", False: "#c83030"}.get(s["correct"], "#bebebe")
            picture = pictures[name][row]
            pen.rectangle((x, y, x + picture.width + 5, y + picture.height + 5), outline=colour, width=3)
            grid.paste(picture, (x + 3, y + 3))
    buffer = io.BytesIO()
    exact = grid.quantize(256, Image.Quantize.MAXCOVERAGE)  # median cut would turn a rare pure blue into navy
    exact.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _picture(data: str) -> Image.Image:
    picture = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
    if max(picture.size) <= 32:
        return picture.resize((picture.width * ZOOM, picture.height * ZOOM), Image.Resampling.NEAREST)
    picture.thumbnail((96, 96))
    return picture


def write(path: pathlib.Path, text: str) -> None:
    """Writes a file, and its folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
