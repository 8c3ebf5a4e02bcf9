"""Stand-ins for gcloud, kubectl, sbatch, srun and python: programs on PATH that record calls and play a scenario."""

import json
import os
import pathlib
import sys

import pytest

# What every stand-in begins with: `argv`, `calls` (all stand-ins write into one file), and a `world` that they may change.
_HEAD = """\
#!{python} -S
import json, os, pathlib, signal, subprocess, sys, time
here = pathlib.Path({folder!r})
argv = sys.argv[1:]
def record(**more):
    with open(here / "calls.jsonl", "a") as calls:
        calls.write(json.dumps({{"program": {name!r}, "argv": argv, **more}}) + "\\n")
def load():
    return json.loads((here / "world.json").read_text())
def save(world):
    (here / "world.json").write_text(json.dumps(world))
"""

# Records what it was started with and ends with the exit code CODE.
PYTHON = """
record(environment=dict(os.environ), folder=os.getcwd())
print("trained")
sys.exit(int(os.environ.get("CODE", "0")))
"""


class Stand:
    """A folder of stand-ins that is PATH."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder

    @classmethod
    def on_path(cls, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> "Stand":
        """An empty stand that is all of PATH, so that no program of this machine can be reached."""
        folder = tmp_path / "programs"
        folder.mkdir()
        monkeypatch.setenv("PATH", str(folder))
        monkeypatch.chdir(tmp_path)
        return cls(folder)

    def add(self, name: str, body: str) -> None:
        """Puts a stand-in there."""
        path = self.folder / name
        path.write_text(_HEAD.format(python=sys.executable, folder=str(self.folder), name=name) + body)
        path.chmod(0o755)

    def world(self, **world) -> None:
        """Sets what the stand-ins share."""
        (self.folder / "world.json").write_text(json.dumps(world))

    def calls(self, program: str | None = None) -> list[dict]:
        """What was called so far, in order."""
        path = self.folder / "calls.jsonl"
        calls = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [call for call in calls if program in (None, call["program"])]

    def environment(self, **more: str) -> dict[str, str]:
        """Variables for a shell that finds the stand-ins before the machine's own programs."""
        return {"PATH": f"{self.folder}{os.pathsep}/usr/bin{os.pathsep}/bin", "LANG": "C.UTF-8", **more}
