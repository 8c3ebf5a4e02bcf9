"""The shell of every page: it loads nothing, runs no script but the one it is made with, and serves light, dark, print."""

import base64
import hashlib

from unigrpo_jax.foreign_text import for_html


def page(title: str, body: str, script: str = "") -> str:
    """A whole HTML page; `title` is escaped, `body` is HTML, `script` runs at its end, and no other one can."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    policy += "; media-src data:" if "<video" in body or "<audio" in body else ""
    if script:
        policy += f"; script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        body = f"{body}\n<script>{script}</script>"
    return _PAGE.format(title=for_html(title), policy=policy, style=_STYLE, body=body)


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1d2229; --soft: #626b76; --rule: #dfe3e8; --panel: #f6f7f9;
  --right: #1a8a48; --wrong: #c83030;
  --c0: #2563b0; --c1: #d0661a; --c2: #2b8a57; --c3: #8a4fb5; --c4: #b53a5e; --c5: #6d6b1f;
  --c6: #1f8a92; --c7: #7a5230; --c8: #444c56; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --ink: #e4e7eb; --soft: #9aa4b0; --rule: #2f363e;
  --panel: #1c2126; --right: #4cc07f; --wrong: #f07070;
  --c0: #6ea8f0; --c1: #f0a060; --c2: #66cf9a; --c3: #c095e6; --c4: #f084a5; --c5: #cfcb6a;
  --c6: #5cc8d0; --c7: #c99a6f; --c8: #aab2bd; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 24px 20px 48px; background: var(--page); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { margin: 0; font-size: 28px; overflow-wrap: anywhere; }
h2 { margin: 36px 0 10px; font-size: 19px; }
h3 { margin: 0 0 4px; font-size: 14px; overflow-wrap: anywhere; }
p { margin: 0; }
.note { color: var(--soft); font-size: 13px; margin: 2px 0 8px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px; margin-top: 16px; }
.tile { display: flex; flex-direction: column; gap: 2px; padding: 12px 14px; background: var(--panel);
  border: 1px solid var(--rule); border-radius: 6px; }
.tile .name { flex: 1; color: var(--soft); font-size: 13px; }
.tile .pair { font-size: 21px; font-variant-numeric: tabular-nums; white-space: nowrap; }
.change { font-size: 13px; color: var(--soft); } .up { color: var(--right); } .down { color: var(--wrong); }
.scroll { overflow-x: auto; margin-bottom: 16px; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 12px; border-bottom: 1px solid var(--rule); text-align: right; white-space: nowrap; }
th { font-weight: 500; } thead th { color: var(--soft); font-size: 13px; }
th:first-child { text-align: left; padding-left: 0; } th[colspan] { text-align: center; }
thead tr + tr th:first-child { text-align: right; padding-left: 12px; }
.overall th, .overall td { font-weight: 700; }
.settings th, .settings td { text-align: left; white-space: normal; overflow-wrap: anywhere; font-size: 13px; }
.settings th { color: var(--soft); vertical-align: top; min-width: 150px; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); gap: 14px; }
article { padding: 12px 14px; border: 1px solid var(--rule); border-radius: 6px; break-inside: avoid; }
.halves { display: grid; gap: 14px; } .n2 { grid-template-columns: 1fr 1fr; }
figure { margin: 0; min-width: 0; } .step { color: var(--soft); font-size: 12px; }
img { display: block; width: 100%; max-width: 320px; border: 3px solid var(--rule); border-radius: 3px; }
img.tiny { image-rendering: pixelated; max-width: 160px; }
img.right { border-color: var(--right); } img.wrong { border-color: var(--wrong); }
.verdict { margin: 4px 0; font-size: 13px; overflow-wrap: anywhere; }
.verdict.right { color: var(--right); } .verdict.wrong { color: var(--wrong); }
.thinking { color: var(--soft); font-size: 12.5px; white-space: pre-wrap; overflow-wrap: anywhere; max-height: 11em;
  overflow-y: auto; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 420px), 1fr)); gap: 20px 28px; }
.chart { break-inside: avoid; min-width: 0; } svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 11px; } .rule { stroke: var(--rule); stroke-width: 1; }
.legend { display: flex; flex-wrap: wrap; gap: 0 14px; margin: 0; padding: 0; list-style: none; font-size: 12.5px;
  color: var(--soft); overflow-wrap: anywhere; } .legend b { color: var(--ink); font-weight: 600; }
.legend i { display: inline-block; width: 14px; height: 3px; margin-right: 5px; vertical-align: middle;
  background: var(--c); }
.c0 { --c: var(--c0); } .c1 { --c: var(--c1); } .c2 { --c: var(--c2); } .c3 { --c: var(--c3); } .c4 { --c: var(--c4); }
.c5 { --c: var(--c5); } .c6 { --c: var(--c6); } .c7 { --c: var(--c7); } .c8 { --c: var(--c8); }
polyline { fill: none; stroke: var(--c); stroke-linejoin: round; } circle { fill: var(--c); }
.raw { stroke-width: 1; opacity: .3; } .mean { stroke-width: 2; } .dashed { stroke-dasharray: 5 4; }
.legend i.dashed { background: repeating-linear-gradient(90deg, var(--c) 0 4px, transparent 4px 6px); }
 .band { fill: var(--c); opacity: .14; }
details { margin-top: 28px; } summary { cursor: pointer; font-size: 16px; font-weight: 600; margin-bottom: 10px; }
@media print { body { max-width: none; padding: 0; font-size: 12px; } .thinking { max-height: none; }
  .charts { grid-template-columns: 1fr 1fr; } h2 { break-after: avoid; } tr { break-inside: avoid; } }
"""

# Beside it, where a page shows clips: they play on a screen, and on paper strips of their frames stand in their place.
CLIPS = """
video { display: block; width: 100%; max-width: 320px; border: 3px solid var(--rule); border-radius: 3px; }
video.right { border-color: var(--right); } video.wrong { border-color: var(--wrong); }
video.tiny { image-rendering: pixelated; max-width: 160px; }
img.on-paper { display: none; max-width: none; }
img.heard { max-width: none; margin-top: 4px; } audio { display: block; width: 100%; max-width: 320px; }
.listen .tiny { max-width: 320px; } .halves:has(.heard) { grid-template-columns: 1fr; }
@media print { .plays { display: none; } img.on-paper { display: block; } .by-run .halves { max-width: none; }
  .halves.n2, .gallery, .by-run { grid-template-columns: 1fr; } }
"""

# Beside it, where a page shows episodes of several rounds: one row each, which scrolls where it is too wide.
STRIPS = """
.strips { display: grid; gap: 14px; } .strip .step { margin-top: 6px; }
.strip { display: grid; grid-auto-flow: column; grid-auto-columns: 170px; grid-template-rows: repeat(3, auto); gap: 4px 14px;
  overflow-x: auto; margin-bottom: 10px; }
.strip figure { display: grid; grid-row: span 3; grid-template-rows: subgrid; } .strip figcaption { align-self: start; }
.said { align-self: end; margin: 2px 0 0; font-size: 13px; overflow-wrap: anywhere; }
@media print { .strip { overflow: visible; } }
"""
