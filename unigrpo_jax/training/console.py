"""What a run prints: a card before it starts, one live line while it trains, tables when it ends.

On a terminal the line is drawn in place by rich; anywhere else (a file, a pod's log) every call prints plain lines.
Prompts and thinking are other people's text: they are never read as markup, and control characters are shown, not sent.
"""

import collections
import contextlib
import functools
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from unigrpo_jax.foreign_text import for_stream, silence

# column title, the metrics it may show (the first that a line holds), format
COLUMNS = (
    ("reward", ("reward/mean",), "{:.3f}"),
    ("exact", ("judge/exact", "eval/exact"), "{:.3f}"),
    ("velocity MSE", ("flow/velocity_mse",), "{:.2e}"),
    ("thinking", ("text/length",), "{:.1f}"),
)
# In their place where examples are learned, which no reward judges.
TAUGHT = (("text loss", ("text/loss",), "{:.4f}"), ("flow loss", ("flow/loss",), "{:.5f}"),
          ("video loss", ("flow_video/loss",), "{:.5f}"), ("audio loss", ("flow_audio/loss",), "{:.5f}"))
# The second line, on how healthy the run is: the metrics stand beside each other.
HEALTH = (
    ("entropy", ("text/entropy",), "{:.2f}"),
    ("text ratio", ("text/ratio_min", "text/ratio_max"), "{:.3g}"),
    ("flow ratio", ("flow/ratio_min", "flow/ratio_max"), "{:.6f}"),
    ("text clipped", ("text/clip_fraction_below", "text/clip_fraction_above"), "{:.2f}"),
    ("flow clipped", ("flow/clip_fraction_below", "flow/clip_fraction_above"), "{:.2f}"),
    ("groups alike", ("reward/zero_variance_share",), "{:.2f}"),
    ("edges", ("image/edge_density",), "{:.3f}"),
    ("colours", ("image/colour_entropy",), "{:.2f}"),
    ("motion", ("video/frame_difference",), "{:.3f}"),
)
RECENT = 20  # iterations behind the estimate of the time left


def _unless_broken(draw: Callable) -> Callable:
    """A method of the console that does nothing once its stream is broken, and that breaks nothing."""

    @functools.wraps(draw)
    def guarded(self: "Console", *arguments) -> None:
        if self._quiet:
            return
        try:
            draw(self, *arguments)
        except (OSError, ValueError, SystemExit) as error:  # rich leaves the process where a pipe is broken
            if isinstance(error, ValueError) and not self._stream.closed:
                raise
            self._fall_silent()

    return guarded


class Console:
    """Prints to `stream`, standard output unless told; a context manager that takes the live line down.

    `clock` gives seconds; the durations between calls of `iteration` are measured with it.  `quiet` prints nothing: one of
    several processes speaks for all.  A stream that breaks, as a pipe that nobody reads or a terminal that is closed, is
    not written to again.
    """

    def __init__(self, stream: TextIO | None = None, *, clock: Callable[[], float] = time.monotonic, quiet: bool = False):
        self._stream = sys.stdout if stream is None else stream
        self._quiet = quiet
        self._clock = clock
        self._previous: float | None = None
        self._durations: collections.deque[float] = collections.deque(maxlen=RECENT)
        self._rich = None
        self._live = None
        if self._stream.isatty() and not quiet:
            import rich.console

            self._rich = rich.console.Console(file=self._stream, markup=False, emoji=False, highlight=False)

    @_unless_broken
    def card(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        """A titled list of names and values: what is about to run."""
        rows = [(self._one_line(name), self._one_line(value)) for name, value in rows]
        if self._rich is None:
            width = max((len(name) for name, _ in rows), default=0)
            self._plain([self._one_line(title), *(f"  {name:<{width}}  {value}" for name, value in rows)])
            return
        from rich import panel, table, text

        grid = table.Table.grid(padding=(0, 2))
        for name, value in rows:
            grid.add_row(text.Text(name, style="dim"), text.Text(value))
        self._rich.print(panel.Panel(grid, title=text.Text(self._one_line(title), style="bold"), expand=False))

    @_unless_broken
    def iteration(self, step: int, total: int, metrics: Mapping[str, Any]) -> None:
        """Shows that `step` of `total` iterations are done, with the chosen numbers of `metrics`.

        Seconds per iteration and time left appear from the second call on: the first iteration compiles.
        """
        now = self._clock()
        if self._previous is not None:
            self._durations.append(now - self._previous)
        self._previous = now
        columns = COLUMNS if "reward/mean" in metrics else (*TAUGHT, *COLUMNS)
        cells = [(title, _shown(metrics, names, form)) for title, names, form in columns]
        cells = [(title, value) for title, value in cells if value is not None]
        if self._durations:
            seconds = statistics.median(self._durations)  # so that a checkpoint or an evaluation does not move it
            cells += [("s/it", f"{seconds:.2f}"), ("ETA", format_seconds(seconds * max(0, total - step)))]
        health = [(title, " ".join(_shown(metrics, [name], form) for name in names))
                  for title, names, form in (*HEALTH, *_components(metrics)) if set(names) <= metrics.keys()]  # fmt: skip
        if self._rich is None:
            say = lambda first, cells: "  ".join([first, *(f"{self._one_line(title)} {value}" for title, value in cells)])
            self._plain([say(f"step {step}/{total}", cells), *([say(" ", health)] if health else [])])
            return
        from rich import console, live, progress_bar, table
        from rich.text import Text

        line = table.Table(box=None, padding=(0, 1), header_style="dim", collapse_padding=True)
        for title in ["step", "", *(title for title, _ in cells)]:
            line.add_column(title, justify="right", no_wrap=True)
        bar = progress_bar.ProgressBar(total=max(1, total), completed=step, width=20)
        line.add_row(f"{step}/{total}", bar, *(value for _, value in cells))
        if self._live is None:
            self._live = live.Live(console=self._rich, auto_refresh=False)
            self._live.start()
        words = Text("  ".join(f"{self._one_line(title)} {value}" for title, value in health), style="dim")
        self._live.update(console.Group(line, words), refresh=True)

    @_unless_broken
    def message(self, text: str) -> None:
        """One line or paragraph, above the live line."""
        text = self._safe(text)
        if self._rich is None:
            self._plain([text])
            return
        from rich.text import Text

        self._rich.print(Text(text))

    @_unless_broken
    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table; cells are shown as `str` gives them, all columns but the first to the right."""
        header = [self._one_line(cell) for cell in header]
        rows = [[self._one_line(cell) for cell in row] for row in rows]
        for row in rows:
            if len(row) != len(header):
                raise ValueError(f"table {title!r} has {len(header)} columns, but one row has {len(row)}: {row}")
        if self._rich is None:
            widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
            align = lambda row: "  ".join(
                f"{cell:<{width}}" if index == 0 else f"{cell:>{width}}"
                for index, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            self._plain([self._one_line(title), *(f"  {align(row).rstrip()}" for row in [header, *rows])])
            return
        from rich import table
        from rich.text import Text

        grid = table.Table(title=Text(self._one_line(title), style="bold"), title_justify="left")
        for index, cell in enumerate(header):
            grid.add_column(Text(cell), justify="right" if index else "left")
        for row in rows:
            grid.add_row(*map(Text, row))
        self._rich.print(grid)

    def close(self) -> None:
        """Leaves the last state of the live line on the screen and frees the terminal; a second call does nothing."""
        if self._live is not None:
            with contextlib.suppress(OSError):
                self._live.stop()
            self._live = None

    def __enter__(self) -> "Console":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _fall_silent(self) -> None:
        """Prints nothing from here on."""
        self._quiet, self._rich, self._live = True, None, None
        silence(self._stream)

    def _plain(self, lines: Sequence[str]) -> None:
        self._stream.write("".join(f"{line}\n" for line in lines))
        self._stream.flush()

    def _safe(self, text: Any) -> str:
        """The text with hidden characters as escapes, and only what the stream can encode."""
        return for_stream(str(text).expandtabs(4), self._stream)

    def _one_line(self, text: Any) -> str:
        return " ".join(self._safe(text).split("\n"))


def format_seconds(seconds: float) -> str:
    """`9 s`, `2:05` (minutes) or `3:00:07` (hours)."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _components(metrics: Mapping[str, Any]) -> list[tuple[str, tuple[str], str]]:
    """A column for each of several rewards."""
    names = [name for name in metrics if name.startswith("reward/") and name.count("/") > 1 and name.endswith("/mean")]
    return [(name[len("reward/") : -len("/mean")], (name,), "{:.3f}") for name in names] if len(names) > 1 else []


def _shown(metrics: Mapping[str, Any], names: Sequence[str], form: str) -> str | None:
    """The first of the named metrics as text; "-" where it is not finite, None where none is there."""
    for name in names:
        if name in metrics:
            value = metrics[name]
            return form.format(float(value)) if value is not None and math.isfinite(float(value)) else "-"
    return None
