"""Where a program is told to write is tried first: what cannot be is one sentence, and nothing is left behind."""

import dataclasses
import errno
import os
import pathlib
import sys

import pytest

from experiments.command_line import command_line
from experiments.destination import file_to_write, folder_to_write
from tests.command import command
from unigrpo_jax.config import ConfigError


def test_a_place_that_can_be_is_left_as_it_was(tmp_path):
    (tmp_path / "old.json").write_text("old")
    assert file_to_write(tmp_path / "old.json", "--out") == tmp_path / "old.json"
    assert file_to_write(tmp_path / "a" / "b" / "new.json", "--out").name == "new.json"
    assert folder_to_write(tmp_path / "c" / "d", "--out") == tmp_path / "c" / "d"
    assert os.listdir(tmp_path) == ["old.json"] and (tmp_path / "old.json").read_text() == "old"


@pytest.mark.parametrize(
    "place, words",
    [("", "is a folder"), ("file/x", "cannot be written .Not a directory"), ("file/x/y", "written .Not a directory"),
     ("/dev/null", "is no file on a disk"), ("a\0b", "is no path"), ("n" * 300, "is no path that can be used")],
)  # fmt: skip
def test_a_file_that_cannot_be_is_one_sentence(tmp_path, place, words):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=f"^--out.* {words}"):
        file_to_write(os.path.join(tmp_path, place), "--out")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("place, words", [("file", "is a file; name a folder"), ("file/x", "cannot be written")])
def test_a_folder_that_cannot_be_is_one_sentence(tmp_path, place, words):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=f"^--out.* {words}"):
        folder_to_write(tmp_path / place, "--out")


@pytest.mark.parametrize(
    "words",
    [
        ("experiments.pretrain", "--out", "/dev/null/x"),
        ("experiments.train_scorer", "--out", "/dev/null/x.safetensors"),
        ("experiments.generate", "base", "a red circle", "--out", "/dev/null/x.png"),
        ("experiments.generate", "base", "a red circle", "--out", "/dev/null"),
        ("experiments.generate", "base", "--chat", "--out", "/dev/null/x"),
        ("experiments.export", "base", "/dev/null/x"),
        ("experiments.evaluate", "base", "--out", "/dev/null"),
        ("experiments.bench", "--json", "/dev/null"),
        ("experiments.torture", "--json", "/dev/null/x"),
        ("experiments.torture", "--folder", "/dev/null/x"),
        ("experiments.compare", "table", "--out", "/dev/null/x"),
        ("experiments.report", "runs/none", "--out", "/dev/null/x.html"),
    ],
    ids=" ".join,
)
def test_each_command_says_so_before_it_computes(words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    outcome = command(*words, share=False)
    assert outcome.code == 2 and outcome.err.startswith(f"{words[0]}: ") and outcome.err.count("\n") == 1, outcome
    assert pathlib.Path("/dev/null").is_char_device()


@dataclasses.dataclass(frozen=True)
class Nothing:
    """No arguments."""


@command_line
def full(_: Nothing) -> None:
    """A command whose disk is full in the end."""
    raise OSError(errno.ENOSPC, "No space left on device", "/a/page.html")


def test_a_disk_that_fails_later_is_one_sentence_too(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x"])
    monkeypatch.setattr("experiments.command_line.configure_jax", lambda: None)
    with pytest.raises(SystemExit) as stopped:
        full()
    assert stopped.value.code == 1 and capsys.readouterr().err == f"{__name__}: /a/page.html: No space left on device.\n"
