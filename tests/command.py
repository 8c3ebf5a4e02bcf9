"""Runs an entry point as its command line would, without a new process."""

import contextlib
import dataclasses
import importlib
import io
import os
import pathlib
import sys

import pytest

from tests.shared_programs import shared_programs

# Settings of `smoke` that compile and run in seconds with the tiny model.
SMALL = """
    --devices 1 --iterations 6 --rewards tiny_reward:score --rollout.prompts-per-iteration 2 --learning.group-size 4
    --rollout.thinking-tokens 4 --rollout.flow-steps 4 --rollout.window-size 2 --rollout.window-range 0 3
    --evaluation.prompts 6 --evaluation.batch 6 --evaluation.flow-steps 2 --evaluation.no-thinking
    --logging.samples-every 0 --logging.samples 2 --evaluation.drift 0
    --judging.retries 0 --checkpoint.every 2 --checkpoint.keep 10 --learning.reasoning-lr 1e-3 --learning.denoising-lr 1e-3
""".split()
# For runs whose subject is not what is learned: the heads alone are trained, and no gradient of a layer is compiled.
HEADS = ("--learning.frozen", "layers", "embed", "time_embedder", "vae2llm")

REWARD = """
import numpy as np

calls, at = 0, {}  # at[n](batch) is called, and returned where it is not None, instead of the n-th call


def score(batch):
    global calls
    calls += 1
    special = at.get(calls, at.get("always", lambda batch: None))(batch)
    return {"red": batch.images[..., 0].mean((1, 2)) / 255} if special is None else special
"""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Exit code and what was printed."""

    code: int
    out: str
    err: str


def command(module: str, *arguments, share: bool = True) -> Outcome:
    """`python -m module arguments` in this process; `share` with the compiled programs of earlier ones."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    programs = shared_programs() if share else contextlib.nullcontext()
    with pytest.MonkeyPatch.context() as patch, programs, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", [module, *map(str, arguments)])
        patch.setattr(os, "_exit", sys.exit)
        patch.setattr("experiments.command_line.keep_freed", lambda: False)  # a worker of the tests gives back what it can
        patch.setenv("JAX_COMPILATION_CACHE_DIR", "that of the tests")
        try:
            importlib.import_module(module).main()
        except SystemExit as exit_:
            code = exit_.code or 0
    return Outcome(code, out.getvalue(), err.getvalue())


def run_small(model: pathlib.Path, run_dir: pathlib.Path, *arguments, share: bool = True) -> Outcome:
    """A small run of `experiments.run` in `run_dir`."""
    words = ["smoke", "--model.path", model, "--run-dir", run_dir, *SMALL, *arguments]
    return command("experiments.run", *words, share=share)


class JobHere:
    """Stands for the process that `experiments.compare` starts for a job, and does it in this one."""

    def __init__(self, words, **_):
        _, _, module, job = words
        self._outcome = command(module, job)

    def wait(self) -> int:
        """0, or what it said."""
        assert self._outcome.code == 0, self._outcome
        return 0
