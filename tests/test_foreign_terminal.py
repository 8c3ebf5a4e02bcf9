"""What reaches a terminal, a pipe or a log of foreign text: its letters, and nothing that moves a cursor or hides."""

import io
import json
import os
import pathlib
import re
import subprocess
import sys
import unicodedata

import pytest

from tests.command import command
from tests.fuzzing import EVIL_TEXTS
from tests.test_console import Terminal
from unigrpo_jax.foreign_text import JOINERS, tell, visible
from unigrpo_jax.training.console import Console

ROOT = pathlib.Path(__file__).resolve().parent.parent
EVIL = "".join(EVIL_TEXTS[:12])
RICH = re.compile(r"\r?\x1b\[[0-9;?]*[a-zA-Z]")  # the colours and movements that rich sends of its own


def assert_shows_nothing_hidden(text: str) -> None:
    """No control character but a line's end, no half of a surrogate pair, nothing that turns the direction."""
    hidden = [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in "\n" + JOINERS]
    assert hidden == []


def shown(stream, evil: str) -> str:
    """Everything that a console can be asked to show."""
    with Console(stream, clock=iter(range(9)).__next__) as console:
        console.card(evil, [(evil, evil), ("name", evil)])
        console.message(evil)
        console.iteration(1, 3, {"reward/mean": 0.5, evil: 0.25})
        console.table(evil, ["score", evil], [[evil, evil]])
    return stream.getvalue()


@pytest.mark.parametrize("evil", EVIL_TEXTS)
def test_a_console_shows_the_letters_and_sends_no_command(evil):
    assert_shows_nothing_hidden(shown(io.StringIO(), evil))
    terminal = shown(Terminal(), evil)
    assert_shows_nothing_hidden(RICH.sub("", terminal))
    commands, harmless = RICH.findall(terminal), set(RICH.findall(shown(Terminal(), "plain")))
    assert set(commands) <= harmless, "text has added a command of its own"


def test_markup_of_rich_is_text():
    for stream in (io.StringIO(), Terminal()):
        text = shown(stream, "[link=http://e][red]a[/red][/link] :smile:")
        assert "[link=http://e][red]a[/red][/link] :smile:" in text and "\x1b]8" not in text


def test_a_line_that_is_told_is_one_line(tmp_path):
    for encoding in ("ascii", "utf-8"):
        with open(tmp_path / encoding, "w", encoding=encoding) as stream:
            tell(EVIL + "\nx", stream, keep="")
            tell("a\nb", stream)
        lines = (tmp_path / encoding).read_text(encoding=encoding)
        assert lines.endswith("\nx\na\nb\n".replace("\nx", "\\nx")) and lines.count("\n") == 3
        assert_shows_nothing_hidden(lines)


ERRORS = {
    "config.json": {"seed": EVIL},
    "learning": {"learning": {EVIL: 1}},
    "path": {"model": {"path": EVIL.replace("\x00", "")}},
    "rewards": {"rewards": [EVIL]},
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_that_quotes_a_file_is_one_plain_line(tmp_path, name):
    """A run folder from elsewhere, whose config.json holds hostile values."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(ERRORS[name]))
    done = command("experiments.evaluate", tmp_path)
    assert done.code == 2 and done.out == "" and done.err.count("\n") == 1
    assert_shows_nothing_hidden(done.err)


@pytest.mark.parametrize("argument", [EVIL.replace("\x00", ""), "a\nb", "x" * 300])
@pytest.mark.parametrize("module", ["evaluate", "export"])
def test_a_name_on_the_command_line_is_told_in_one_plain_line(tmp_path, monkeypatch, argument, module):
    monkeypatch.chdir(tmp_path)
    done = command(f"experiments.{module}", argument, *(["out"] if module == "export" else []))
    assert done.code == 2 and done.err.count("\n") == 1 and re.search("is no |is neither|is not UTF", done.err)
    assert_shows_nothing_hidden(done.err)


def test_thinking_is_printed_even_where_the_terminal_knows_no_letter_of_it(tmp_path):
    """A real process with an ASCII terminal: `print` would end in a traceback."""
    code = f"from unigrpo_jax.foreign_text import tell; tell({EVIL!r} + 'é')"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0 and done.stderr == b""
    assert done.stdout == visible(EVIL).encode("ascii", "backslashreplace") + b"\\xe9\n"
