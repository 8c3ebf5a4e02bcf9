"""What a run prints, on a terminal and elsewhere."""

import io
import os
import re
import subprocess
import sys

import pytest

from unigrpo_jax.foreign_text import tell
from unigrpo_jax.training.console import Console, format_seconds


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def plain(text):
    """The text without the terminal's own colours and movements."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def show(stream, evil="x"):
    ticks = iter(range(0, 100, 2))
    with Console(stream, clock=lambda: next(ticks)) as console:
        console.card("A run", [("devices", "1 x cpu"), ("prompts", evil)])
        console.message(evil)
        for step in (1, 2):
            health = {"text/ratio_min": 0.91, "text/ratio_max": 1.2, "image/edge_density": 0.0412}
            parts = {"reward/first/mean": 0.4, f"reward/{evil}/mean": None}
            given = {"reward/mean": 0.25, "flow/velocity_mse": 0.001, "text/length": float("nan")}
            console.iteration(step, 3, given | health | parts)
        console.table("Scores", ["score", "overall"], [["exact", "0.4 -> 0.6"]])
    return stream.getvalue()


def test_elsewhere_than_on_a_terminal_every_line_is_plain():
    text = show(io.StringIO())
    assert "\x1b" not in text and "devices  1 x cpu" in text
    assert "step 1/3  reward 0.250  velocity MSE 1.00e-03  thinking -" in text
    assert "s/it 2.00  ETA 2 s" in text and "0.4 -> 0.6" in text
    assert "\n   text ratio 0.91 1.2  edges 0.041  first 0.400  x -\n" in text


def test_a_terminal_shows_the_same_facts():
    text = plain(show(Terminal()))
    for fact in ("A run", "1 x cpu", "2/3", "0.250", "text ratio 0.91 1.2", "Scores", "0.4 -> 0.6"):
        assert fact in text


def test_foreign_text_is_neither_markup_nor_a_command_to_the_terminal():
    evil = "[bold red]prompt[/] \x1b]0;owned\x07 \x1b[2J"
    for stream in (io.StringIO(), Terminal()):
        text = show(stream, evil)
        assert "\x1b]0;" not in text and "\x1b[2J" not in text and "\x07" not in text
        assert "[bold red]prompt[/]" in plain(text)


def test_durations_in_words():
    assert [format_seconds(s) for s in (9.4, 125, 10807)] == ["9 s", "2:05", "3:00:07"]


@pytest.mark.parametrize("terminal", [False, True])
def test_a_stream_whose_reader_has_gone_falls_silent(terminal):
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        stream.isatty = lambda: terminal
        os.close(reader)
        with Console(stream) as console:
            console.card("A run", [("devices", "1")])
            console.message("words")
            console.iteration(1, 2, {"reward/mean": 0.5})
            console.table("Scores", ["score", "overall"], [["exact", "0.4"]])


CLOSED = """
import os, sys
from experiments.command_line import given_arguments
given_arguments()
print("to nobody"); print("to nobody", file=sys.stderr); assert sys.stdin.read() == ""
assert os.open(os.devnull, os.O_RDONLY) > 2
os._exit(7)
"""


def test_standard_streams_that_are_closed_lead_nowhere_and_no_file_gets_their_numbers():
    closing = ["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, CLOSED]
    assert subprocess.run(closing, timeout=120).returncode == 7


def test_what_is_told_to_a_pipe_that_nobody_reads_breaks_nothing():
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream:
        tell("a", stream)
        tell("b", stream)
        print("c", file=stream, flush=True)
