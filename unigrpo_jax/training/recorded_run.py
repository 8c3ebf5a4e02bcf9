"""A run as its folder records it, in progress or finished: what the pages show is read from here.

The files are `config.json`, `metrics.jsonl`, `summary.json` and `provenance.json`, whichever are there.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from unigrpo_jax import foreign_files
from unigrpo_jax.config import ConfigError, require
from unigrpo_jax.training import storage
from unigrpo_jax.training.metrics import FILE_NAME, read_metrics
from unigrpo_jax.training.storage import Place
from unigrpo_jax.training.summary import read_summary

HELD_OUT = "eval/"  # what the metrics of an evaluation during training are called
SPLITS = {"held_out": "Held-out prompts", "validation": "Validation prompts"}  # titles of what `evaluation.split` names


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """What the files of a run folder say.

    Attributes:
      folder: the run folder.
      config: the settings; {} where they are not there.
      metrics: lines of metrics.jsonl by increasing step.
      summary: see `read_summary`.
      provenance: versions and checksum of the first weights; {} where they are not there.
    """

    folder: epath.Path
    config: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any]
    provenance: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def judged_on(self) -> str:
        """The title of the prompts that it is judged on."""
        evaluation = self.config.get("evaluation")
        split = evaluation.get("split") if isinstance(evaluation, Mapping) else None
        return SPLITS.get(split if isinstance(split, str) else "", SPLITS["held_out"])

    @property
    def done(self) -> int:
        """The last iteration of which there are metrics; 0 where there are none."""
        return self.metrics[-1]["step"] if self.metrics else 0

    @property
    def total(self) -> int | None:
        """How many iterations the run is to have; None where no config says it."""
        return _whole(self.config.get("iterations"))

    @property
    def finished(self) -> bool:
        """Whether the evaluation after the last iteration is there; that of a run which then went on does not count."""
        judged = _whole(self.summary.get("iterations"))
        return bool(self.summary.get("after")) and (judged is None or judged >= max(self.total or 0, self.done))

    @property
    def state(self) -> str:
        """How far the run is, such as "after iteration 7 of 30: unfinished"."""
        reached = f"after iteration {self.done}" if self.metrics else "no steps recorded yet"
        of = f" of {self.total}" if self.metrics and self.total is not None else ""
        if self.finished:
            return f"{reached}{of}: finished"
        waiting = ", no evaluation after training yet" if self.metrics and self.done == self.total else ""
        return f"{reached}{of}: unfinished{waiting}"

    def evaluations(self) -> list[tuple[int, Mapping[str, Mapping[str, float]]]]:
        """(iteration, {score: {category: number}}) of every evaluation, that before training at 0.

        Those during training are metrics, and so have "overall" alone.
        """
        tables = {0: self.summary["before"]} if self.summary.get("before") else {}
        for line in self.metrics:
            scores = {name.removeprefix(HELD_OUT): value for name, value in line.items() if name.startswith(HELD_OUT)}
            if scores := {name: {"overall": value} for name, value in scores.items() if value is not None}:
                tables[line["step"]] = scores
        if self.summary.get("after"):
            judged = _whole(self.summary.get("iterations"))
            tables[self.done if judged is None else judged] = self.summary["after"]
        return sorted(tables.items(), key=lambda item: item[0])

    def newest(self) -> tuple[int, Mapping[str, Mapping[str, float]]] | None:
        """The newest of the evaluations but for that before training; None where there is none."""
        found = self.evaluations()[1 if self.summary.get("before") else 0 :]
        return found[-1] if found else None

    def lines(self) -> list[Mapping[str, Any]]:
        """The metrics, and in them the overall scores of the evaluations before and after training."""
        by_step = {line["step"]: dict(line) for line in self.metrics}
        for step, table in self.evaluations():
            scores = {f"{HELD_OUT}{name}": row["overall"] for name, row in table.items() if "overall" in row}
            by_step[step] = by_step.get(step, {"step": step}) | scores
        return [by_step[step] for step in sorted(by_step)]


def read_run(run_dir: Place) -> RecordedRun:
    """The run in a folder; ValueError where there is no folder or a file of it is damaged."""
    folder = epath.Path(run_dir)
    if not folder.is_dir():
        raise ValueError(f"no run folder {folder}")
    return RecordedRun(
        folder=folder,
        config=_read_object(folder / "config.json"),
        metrics=read_metrics(folder / FILE_NAME),
        summary=read_summary(folder),
        provenance=_read_object(folder / "provenance.json"),
    )


def read_runs(places: Sequence[Place]) -> list[RecordedRun]:
    """The runs in some folders, each once; ConfigError where one holds no run, ValueError where one is damaged."""
    runs = {}
    for place in places:
        folder = storage.path(place)
        require(folder.exists(), f"there is no folder {folder}; give a run folder, such as runs/shapes.")
        require(folder.is_dir(), f"{folder} is a file; give the run folder that it lies in.")
        if not _holds_run(folder):
            inside = sorted(str(path) for path in folder.iterdir() if path.is_dir() and _holds_run(path))
            hint = f"give the runs in it: {', '.join(inside[:5])}" if inside else "give a run folder, such as runs/shapes"
            raise ConfigError(f"{folder} holds no run (neither config.json nor {FILE_NAME}); {hint}.")
        runs.setdefault(str(folder) if storage.is_bucket(folder) else os.path.realpath(folder), folder)
    return [read_run(folder) for folder in runs.values()]


def _holds_run(folder: epath.Path) -> bool:
    return (folder / FILE_NAME).exists() or (folder / "config.json").exists()


def _read_object(path: epath.Path) -> dict[str, Any]:
    """The object in the file; {} where there is no file."""
    if not path.exists():
        return {}
    value = foreign_files.read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path} is not a JSON object")
    return value


def _whole(value: Any) -> int | None:
    """A count as a file may hold it; None where it is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2**53 else None
