"""Copies of what a run records, for TensorBoard and for Weights & Biases: numbers, sample grids, and tables of words.

A logger has four methods: `numbers(step, {name: number})`, `picture(step, name, image)`, `rows(step, name, header, rows)`
and `close()`.  What is shown there was written by others in part, so hidden characters stand there as escapes.
"""

import importlib
from collections.abc import Mapping, Sequence
from types import ModuleType

import numpy as np
from etils import epath

from unigrpo_jax import foreign_files
from unigrpo_jax.foreign_text import for_html, visible
from unigrpo_jax.training import storage

FLUSH_SECONDS = 10


def extra(module: str, name: str) -> ModuleType:
    """The module that an extra of the package brings; ValueError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"logging to {name} needs {module}: pip install 'unigrpo_jax[{name}]'") from error


class TensorBoard:
    """Event files in `run_dir/tensorboard`, at most `FLUSH_SECONDS` behind.

    On resume TensorBoard hides what was logged from `purge_step` on.
    """

    name = "TensorBoard"

    def __init__(self, module: ModuleType, run_dir: epath.Path, purge_step: int):
        self._writer = module.SummaryWriter(str(run_dir / "tensorboard"), purge_step=purge_step, flush_secs=FLUSH_SECONDS)

    def numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        """Scalars."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, global_step=step)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """An image, uint8 [H, W, 3]."""
        self._writer.add_image(name, image, global_step=step, dataformats="HWC")

    def rows(self, step: int, name: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A Markdown table."""
        lines = [map(_cell, header), ["---"] * len(header), *(map(_cell, row) for row in rows)]
        self._writer.add_text(name, "\n".join(f"| {' | '.join(line)} |" for line in lines), global_step=step)

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()


class WandB:
    """A W&B run; `run_dir/wandb_id` remembers which one a resumed run continues."""

    name = "Weights & Biases"

    def __init__(self, module: ModuleType, run_dir: epath.Path, resume: bool):
        self._module = module
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

    def numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        """Metrics of a step; W&B joins what is logged for the same step."""
        self._run.log(dict(numbers), step=step)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """An image, uint8 [H, W, 3]."""
        self._run.log({name: self._module.Image(image)}, step=step)

    def rows(self, step: int, name: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table of words."""
        data = [[visible(cell, keep="\n") for cell in row] for row in rows]
        self._run.log({name: self._module.Table(columns=[visible(cell) for cell in header], data=data)}, step=step)

    def close(self) -> None:
        """Waits until all is sent."""
        self._run.finish()


def _cell(text: str) -> str:
    """Words inside a Markdown table: no markup, no new column, no new row."""
    escaped = "".join(f"\\{c}" if c in "\\`*_[]|~" else c for c in for_html(text))
    return escaped.replace("\n", "<br>").replace("\t", " ")
