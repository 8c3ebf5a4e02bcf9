"""The numbers of a run: `metrics.jsonl`, one flat JSON object per step, and optional copies for TensorBoard and W&B.

A line holds `step` and named numbers, `{"step": 7, "reward/mean": 0.41, "text/entropy": null}`; null stands for a value
that was not finite.  Steps strictly increase.  Only one process of a multi-host run may hold a writer.
"""

import io
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from unigrpo_jax import foreign_files
from unigrpo_jax.config import ConfigError
from unigrpo_jax.foreign_text import quoted, tell
from unigrpo_jax.training import loggers, storage
from unigrpo_jax.training.samples import Sample, draw_grid

FILE_NAME = "metrics.jsonl"
LONGEST_LINE = 2**20  # bytes
_LARGEST_STEP = 2**53


class MetricsWriter:
    """Appends one line per step to `run_dir/metrics.jsonl`, see `storage.GrowingFile`, and copies for the loggers.

    A logger that fails misses that step and is asked again at the next; its first failure is told, and the run goes on.

    Args:
      run_dir: the run folder; made if it is not there.
      resume_step: None for a new run, which must find no earlier lines.  Otherwise the last step to keep: the lines of
        later steps, which the resumed run computes anew, are dropped; -1 drops all.
      tensorboard: also write event files to `run_dir/tensorboard` (needs tensorboardX).
      wandb: also log to Weights & Biases, under the name of the folder (needs wandb).
      say: tells a person that a logger or an upload fails, in one sentence.

    Raises:
      ConfigError: a logger cannot be opened; `metrics.jsonl` is as it was.
    """

    def __init__(
        self,
        run_dir: storage.Place,
        resume_step: int | None = None,
        *,
        tensorboard: bool = False,
        wandb: bool = False,
        say: Callable[[str], None] = tell,
    ):
        run_dir = epath.Path(run_dir)
        path = run_dir / FILE_NAME
        tensorboard_module = loggers.extra("tensorboardX", "tensorboard") if tensorboard else None
        wandb_module = loggers.extra("wandb", "wandb") if wandb else None

        earlier = read_metrics(path)
        if resume_step is None and earlier:
            raise ValueError(
                f"{path} already holds steps {earlier[0]['step']} to {earlier[-1]['step']}. "
                "Resume that run, or choose another run name, or remove the folder."
            )
        kept = [line for line in earlier if line["step"] <= (-1 if resume_step is None else resume_step)]
        self._last_step = kept[-1]["step"] if kept else -1
        self._path, self._say, self._told, self._loggers = path, say, set(), []
        if wandb_module:
            self._open(lambda: loggers.WandB(wandb_module, run_dir, resume=resume_step is not None), "wandb",
                       "log in by `wandb login`, or set WANDB_MODE=offline, or leave --logging.wandb out")  # fmt: skip
        if tensorboard_module:
            self._open(lambda: loggers.TensorBoard(tensorboard_module, run_dir, purge_step=self._last_step + 1),
                       "tensorboard", "mend that, or leave --logging.tensorboard out")  # fmt: skip
        self._file = storage.GrowingFile(path, "".join(map(_to_json, kept)), say)

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
        self._log(f"step {step}", lambda logger: logger.numbers(step, finite))

    def amend(self, metrics: Mapping[str, Any]) -> None:
        """Adds numbers to the last line, which a run wrote before it knew them; the file is written anew."""
        self._file.close()
        *before, last = read_metrics(self._path)
        last |= {name: _number(name, value) for name, value in metrics.items()}
        self._file = storage.GrowingFile(self._path, "".join(map(_to_json, [*before, last])), self._say)
        finite = {name: last[name] for name in metrics if last[name] is not None}
        self._log(f"step {last['step']}", lambda logger: logger.numbers(last["step"], finite))

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Gives the loggers the grid of a step as `samples`, and its prompts, thinking and verdicts as `samples/words`."""
        if not self._loggers or not samples:
            return
        grid, many = np.asarray(draw_grid(samples)), len(samples[0].rounds) > 1
        header = ["sample", *(["round"] if many else []), "prompt", "thinking", "verdict", "right"]
        rows = []
        for number, sample in enumerate(samples, 1):
            for turn, moment in enumerate(sample.rounds, 1):
                right = {True: "yes", False: "no", None: ""}[moment.correct]
                words = [moment.prompt, moment.thinking, moment.verdict, right]
                rows.append([str(number), *([str(turn)] if many else []), *words])

        def log(logger) -> None:
            logger.picture(step, "samples", grid)
            logger.rows(step, "samples/words", header, rows)

        self._log(f"step {step}", log)

    def table(self, step: int, table: Mapping[str, Mapping[str, float]], split: str) -> None:
        """Gives the loggers an evaluation's {score: {category: number}} as a table that is named as its `split`."""
        categories = list(dict.fromkeys(category for row in table.values() for category in row))
        rows = [[name, *(f"{row[c]:.3f}" if c in row else "" for c in categories)] for name, row in table.items()]
        self._log(f"step {step}", lambda logger: logger.rows(step, split, ["score", *categories], rows))

    def flush(self) -> None:
        """Makes all lines visible and durable."""
        self._file.flush()

    def close(self) -> None:
        """Closes the file and the copies; a second call does nothing."""
        self._file.close()
        self._log("its end", lambda logger: logger.close())
        self._loggers = []

    def _open(self, logger: Callable[[], Any], name: str, mend: str) -> None:
        try:
            self._loggers.append(logger())
        except (Exception, SystemExit) as error:  # as in `_log`
            self._log("its end", lambda opened: opened.close())
            raise ConfigError(f"logging.{name}: it cannot be opened ({_first_line(error)}); {mend}.") from error

    def _log(self, when: str, log: Callable[[Any], None]) -> None:
        """Calls `log` with each logger; what one raises is told the first time, and ends nothing."""
        for logger in self._loggers:
            try:
                log(logger)
            except (Exception, SystemExit) as error:  # a service's own client may raise anything, or leave
                if logger.name in self._told:
                    continue
                self._told.add(logger.name)
                words = f"{logger.name} failed at {when} ({_first_line(error)}); the run goes on"
                self._say(f"{words}, and {FILE_NAME} holds all metrics.")

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        """Closes; where that fails while something else ends the run, it is told, and the reason of the end stays."""
        try:
            self.close()
        except Exception as error:  # whatever a bucket's client raises
            if kind is None:
                raise
            self._say(f"{self._path} could not be closed ({_first_line(error)}); its last lines may be missing.")


def _first_line(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it wanted to end the program, with {error.code!r}"
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200].rstrip(".")


def read_metrics(path: storage.Place) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, by increasing step; [] where there is no file.

    A last line that a crash cut short is left out; a broken line before it is a ValueError.  Of several lines with the
    same step, the last counts.
    """
    path = epath.Path(path)
    if not path.exists():
        return []
    by_step = {}
    with path.open("rb") as opened, io.BufferedReader(opened) as file:  # a bucket's own file reads no bounded line
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
