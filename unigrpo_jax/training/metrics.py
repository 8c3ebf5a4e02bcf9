"""The numbers of a run: `metrics.jsonl`, one flat JSON object per step, and optional copies for TensorBoard and W&B.

A line holds `step` and named numbers, `{"step": 7, "reward/mean": 0.41, "text/entropy": null}`; null stands for a value
that was not finite.  Steps strictly increase.  Only one process of a multi-host run may hold a writer.
"""

import importlib
import json
import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from unigrpo_jax import foreign_files
from unigrpo_jax.foreign_text import quoted
from unigrpo_jax.training import storage

FILE_NAME = "metrics.jsonl"
LONGEST_LINE = 2**20  # bytes
_LARGEST_STEP = 2**53


class MetricsWriter:
    """Appends one line per step to `run_dir/metrics.jsonl`; see `storage.GrowingFile`.

    Args:
      run_dir: the run folder; made if it is not there.
      resume_step: None for a new run, which must find no earlier lines.  Otherwise the last step to keep: the lines of
        later steps, which the resumed run computes anew, are dropped; -1 drops all.
      tensorboard: also write event files to `run_dir/tensorboard` (needs tensorboardX).
      wandb: also log to Weights & Biases, under the name of the folder (needs wandb).
    """

    def __init__(
        self,
        run_dir: storage.Place,
        resume_step: int | None = None,
        *,
        tensorboard: bool = False,
        wandb: bool = False,
    ):
        run_dir = epath.Path(run_dir)
        path = run_dir / FILE_NAME
        tensorboard_module = _extra("tensorboardX", "tensorboard") if tensorboard else None
        wandb_module = _extra("wandb", "wandb") if wandb else None

        earlier = read_metrics(path)
        if resume_step is None and earlier:
            raise ValueError(
                f"{path} already holds steps {earlier[0]['step']} to {earlier[-1]['step']}. "
                "Resume that run, or choose another run name, or remove the folder."
            )
        kept = [line for line in earlier if line["step"] <= (-1 if resume_step is None else resume_step)]
        self._last_step = kept[-1]["step"] if kept else -1
        self._file = storage.GrowingFile(path, "".join(map(_to_json, kept)))
        self._sinks = []
        if tensorboard_module:
            self._sinks.append(_TensorBoard(tensorboard_module, run_dir, purge_step=self._last_step + 1))
        if wandb_module:
            self._sinks.append(_WandB(wandb_module, run_dir, resume=resume_step is not None))

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes the line of `step`; values are numbers, arrays of one element or None."""
        step = int(step)
        if step <= self._last_step:
            raise ValueError(f"metrics of step {step} come after those of step {self._last_step}: steps must increase")
        if "step" in metrics:
            raise ValueError("a metric may not be named 'step': it is the line's own key")
        line = {"step": step, **{name: _number(name, value) for name, value in metrics.items()}}
        self._file.add(_to_json(line))
        self._last_step = step
        finite = {name: value for name, value in line.items() if name != "step" and value is not None}
        for sink in self._sinks:
            sink.write(step, finite)

    def flush(self) -> None:
        """Makes all lines visible and durable."""
        self._file.flush()

    def close(self) -> None:
        """Closes the file and the copies; a second call does nothing."""
        self._file.close()
        for sink in self._sinks:
            sink.close()
        self._sinks = []

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def read_metrics(path: storage.Place) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, by increasing step; [] where there is no file.

    A last line that a crash cut short is left out; a broken line before it is a ValueError.  Of several lines with the
    same step, the last counts.
    """
    path = epath.Path(path)
    if not path.exists():
        return []
    by_step = {}
    with path.open("rb") as file:
        number = 0
        while (text := file.readline(LONGEST_LINE)).endswith(b"\n"):
            number += 1
            try:
                line = foreign_files.parse_json(text)
            except ValueError:
                line = None
            if not _is_line(line):
                raise ValueError(f"{path}, line {number}: not a JSON object with a step and numbers: {quoted(text[:80])}")
            by_step[line["step"]] = line
        if len(text) == LONGEST_LINE:
            raise ValueError(f"{path}, line {number + 1}: longer than {LONGEST_LINE} bytes")
    return [by_step[step] for step in sorted(by_step)]


def _is_line(line: Any) -> bool:
    """Whether a value is what `MetricsWriter` writes: a step, and numbers that a float holds, or null."""
    if not isinstance(line, dict) or not isinstance(line.get("step"), int):
        return False
    is_number = lambda value: isinstance(value, int | float) and abs(value) <= sys.float_info.max
    return 0 <= line["step"] <= _LARGEST_STEP and all(value is None or is_number(value) for value in line.values())


def _to_json(line: Mapping[str, Any]) -> str:
    return json.dumps(line, allow_nan=False) + "\n"


def _number(name: str, value: Any) -> int | float | None:
    """A Python number, or None where the value is not finite."""
    if value is None:
        return None
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind in "USOc":
        raise ValueError(f"metric {name!r} must be one real number, not {value!r}")
    if array.dtype.kind in "iub":
        return int(array.item())
    number = float(array.astype(np.float64).item())
    return number if math.isfinite(number) else None


def _extra(module: str, extra: str):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"logging to {extra} needs {module}: pip install 'unigrpo_jax[{extra}]'") from error


class _TensorBoard:
    """Event files in `run_dir/tensorboard`; on resume TensorBoard hides what was logged from `purge_step` on."""

    def __init__(self, module, run_dir: epath.Path, purge_step: int):
        self._writer = module.SummaryWriter(str(run_dir / "tensorboard"), purge_step=purge_step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, global_step=step)

    def close(self) -> None:
        self._writer.close()


class _WandB:
    """A W&B run; `run_dir/wandb_id` remembers which one a resumed run continues."""

    def __init__(self, module, run_dir: epath.Path, resume: bool):
        id_file, config_file = run_dir / "wandb_id", run_dir / "config.json"
        self._run = module.init(
            project="unigrpo_jax",
            name=run_dir.resolve().name,
            dir=None if storage.is_bucket(run_dir) else str(run_dir),
            config=foreign_files.read_json(config_file) if config_file.exists() else None,
            id=id_file.read_text().strip() if resume and id_file.exists() else None,
            resume="allow",
        )
        storage.write_atomically(id_file, self._run.id.encode())

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()
