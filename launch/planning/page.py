"""The numbers of a plan as one self-contained HTML page: a stacked bar per program, the limit as a line, and the tables."""

from typing import Any

from unigrpo_jax.foreign_text import for_html

GIB = 2**30
COLOURS = {
    "trained": "#4269d0",
    "optimizer": "#6cc5b0",
    "average": "#9c6b4e",
    "frozen": "#97bbf5",
    "reference": "#a463f2",
    "fake score": "#d4526e",
    "inputs": "#9498a0",
    "cache": "#efb118",
    "episodes": "#3ca951",
    "temporaries": "#ff8a5c",
    "results": "#e377c2",
}
MEANING = {
    "trained": "trained parameters",
    "optimizer": "optimizer's moments",
    "average": "moving average",
    "frozen": "frozen parameters, autoencoder",
    "reference": "reference policy, or the teacher",
    "fake score": "fake score and its moments",
    "inputs": "other inputs, padding",
    "cache": "keys and values",
    "episodes": "episodes",
    "temporaries": "temporaries",
    "results": "other results",
}
STYLE = """
:root { color-scheme: light dark; --ink: #1b1e23; --dim: #667; --line: #d8dbe0; --page: #fff; --limit: #c0262d; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --dim: #9aa; --line: #3a3f47; --page: #16181c; --limit: #ff6b70; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 60rem; margin: 2rem auto;
       padding: 0 1.2rem; }
h1 { font-size: 1.4rem; margin: 0 } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem } p { margin: .3rem 0 }
.dim { color: var(--dim) }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid var(--line); font-weight: normal }
th { color: var(--dim); font-size: .85rem } td:first-child, th:first-child, .left { text-align: left }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .45em }
svg { width: 100%; height: auto; display: block } svg text { fill: var(--ink); font: 13px system-ui, sans-serif }
.good { color: #23863a } .bad { color: var(--limit); font-weight: 600 } code { font-size: .9em } strong { font-weight: 600 }
"""


def page(numbers: dict[str, Any]) -> str:
    """The page of what `launch.plan.plan` returns."""
    text = for_html
    mesh = " × ".join(f"{name} {size}" for name, size in numbers["mesh"].items())
    estimate = numbers["estimate"]
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{text(numbers['name'])} on {text(numbers['topology'])}</title><style>{STYLE}</style>",
        f"<h1>{text(numbers['name'])} on {text(numbers['topology'])}</h1>",
        f"<p class=dim>{numbers['chips']} chips, mesh {text(mesh)}, {numbers['episodes']} episodes an iteration</p>",
        f"<p>At least <strong>{estimate['seconds']:.1f} s</strong> an iteration, at most "
        f"<strong>{estimate['samples_per_chip_hour']:.1f} samples per chip-hour</strong>, by the roofline.</p>",
        *(f"<p class=bad>The {text(name)} was not compiled; {text(words)}</p>" for name, words in numbers["failed"].items()),
        "<h2>Memory of one device</h2>",
        bars(numbers["programs"], numbers["limit"]),
        _memory(numbers, text),
        *_rounds(numbers["cache"], text),
        "<h2>Seconds of an iteration</h2>",
        _phases(numbers, text),
    ]
    for name, found in numbers["advice"].items():
        parts.append(f"<h2>{text(name)} does not fit: what would help, by estimate</h2>")
        cells = lambda k: [f"<code>{text(k['change'])}</code>", _gib(k["saves"]), "yes" if k["enough"] else "not alone"]
        rows = [cells(k) for k in found]
        parts.append(_table(["change", "saves, GiB", "enough"], rows))
    parts += ["<h2>What is sent, per device and iteration</h2>", _sent(numbers, text)]
    if numbers.get("sweep"):
        shown = lambda value: "" if value is None else f"{value:.1f}"
        rows = [[f"<code>{text(o['flags'])}</code>", shown(o["samples_per_chip_hour"]), shown(o["seconds"]),
                 "" if o["failed"] else _gib(o["peak"]), text(o["failed"]) or ("yes" if o["fits"] else "no")]
                for o in numbers["sweep"]]  # fmt: skip
        parts += ["<h2>Other settings</h2>", _table(["settings", "samples per chip-hour", "s", "GiB", "fits"], rows)]
    parts += ["<h2>Notes</h2>", *(f"<p class=dim>{text(note)}</p>" for note in numbers["notes"])]
    return "\n".join(parts) + "\n"


def bars(programs: dict[str, dict], limit: int) -> str:
    """One stacked bar per program with the limit as a line, as SVG."""
    left, width, height, gap = 80, 800, 34, 22
    most = max([limit, *(p["peak"] for p in programs.values())]) * 1.04
    scale = lambda value: width * value / most
    bottom = 26 + len(programs) * (height + gap)
    out = [f"<svg viewBox='0 0 {left + width + 80} {bottom}' role=img>"]
    for number, (name, p) in enumerate(programs.items()):
        y, x = 26 + number * (height + gap), float(left)
        out.append(f"<text x=0 y={y + 22}>{for_html(name)}</text>")
        for part, value in p["memory"].items():
            if value > 0:
                size = scale(value)
                title = f"{MEANING[part]}: {value / GIB:.2f} GiB"
                out.append(f"<rect x={x:.1f} y={y} width={size:.1f} height={height} fill='{COLOURS[part]}'>"
                           f"<title>{for_html(title)}</title></rect>")  # fmt: skip
                x += size
        out.append(f"<text x={x + 6:.1f} y={y + 22}>{p['peak'] / GIB:.1f} GiB</text>")
    x = left + scale(limit)
    out.append(f"<line x1={x:.1f} x2={x:.1f} y1=18 y2={bottom - 8} stroke='var(--limit)' stroke-width=2 />")
    out.append(f"<text x={x:.1f} y=12 text-anchor=middle style='fill:var(--limit)'>limit {limit / GIB:.1f} GiB</text></svg>")
    return "".join(out)


def _gib(value: float) -> str:
    return f"{value / GIB:.2f}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    line = lambda cells, tag: "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"
    return "<table>" + line(head, "th") + "".join(line(row, "td") for row in rows) + "</table>"


def _memory(numbers: dict[str, Any], text) -> str:
    programs = numbers["programs"]
    rows = []
    for part, colour in COLOURS.items():
        values = [p["memory"][part] for p in programs.values()]
        if any(values):
            rows.append([f"<span class=key style='background:{colour}'></span>{MEANING[part]}", *map(_gib, values)])
    rows.append(["<strong>together</strong>", *(f"<strong>{_gib(p['peak'])}</strong>" for p in programs.values())])
    verdict = lambda p: f"<span class={'good' if p['fits'] else 'bad'}>{'fits' if p['fits'] else 'too much'}</span>"
    rows.append([f"of {_gib(numbers['limit'])}", *map(verdict, programs.values())])
    rows.append(["compiled in, s", *(f"{p['seconds']:.0f}" for p in programs.values())])
    host = f"<p class=dim>Host memory while compiling: {_gib(numbers['host'])} GiB.</p>"
    return _table(["GiB", *map(text, programs)], rows) + host


def _rounds(cache: dict[str, Any], text) -> list[str]:
    """The keys and values that each of several rounds adds."""
    if len(cache["rounds"]) < 2 or not cache["slot"]:
        return []
    words = lambda blocks: text(", ".join(f"{name} {slots:.0f}" for name, slots in blocks.items()))
    rows = [[str(i), f"{r['slots']:.0f}", _gib(r["bytes"]), words(r["blocks"])] for i, r in enumerate(cache["rounds"], 1)]
    what = f"{cache['rows']} episodes that a device samples at a time, {cache['slot']} bytes a slot."
    head = "<h2>Keys and values by round</h2>"
    return [head, _table(["round", "slots", "GiB", "filled by"], rows), f"<p class=dim>{text(what)}</p>"]


def _phases(numbers: dict[str, Any], text) -> str:
    rows = []
    for phase in numbers["phases"]:
        bounds = phase["bounds"]
        largest = max(bounds, key=bounds.get)
        cell = lambda name, b=bounds, m=largest: f"<strong>{b[name]:.2f}</strong>" if name == m else f"{b[name]:.2f}"
        rows.append([text(phase["name"]), cell("compute"), cell("memory"), cell("links"), f"{phase['seconds']:.2f}"])
    return _table(["phase", "compute", "memory", "links", "the largest"], rows)


def _sent(numbers: dict[str, Any], text) -> str:
    rows = []
    for name, p in numbers["programs"].items():
        for row in p["collectives"]:
            if row["bytes"] >= 1e6:
                times = f"{row['times']:,}{' (assumed)' if row['assumed'] else ''}"
                over = f"{text(row['axes'])} ({row['group']})"
                where = f"{text(name)}, {text(row['phase'])}"
                rows.append([where, text(row["kind"]), over, times, f"{row['bytes'] / 1e9:,.2f}"])
    return _table(["program, phase", "collective", "over (devices)", "times", "GB"], rows)
