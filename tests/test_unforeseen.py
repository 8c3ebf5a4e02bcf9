"""What nobody foresaw: whatever is raised within an iteration, the state is saved before the run ends."""

import json

import pytest

from tests.command import REWARD, run_small
from unigrpo_jax.training import image_statistics, loop, trainer
from unigrpo_jax.training.console import Console
from unigrpo_jax.training.health import Watch
from unigrpo_jax.training.metrics import MetricsWriter
from unigrpo_jax.worlds.order import Order

PARTS = {
    "prompts": (Order, "batch"),
    "rollout": (trainer.Trainer, "sample"),
    "reward": (trainer.Trainer, "judge"),
    "statistics": (image_statistics, "edge_density"),
    "update": (trainer.Trainer, "learn"),
    "metrics": (MetricsWriter, "write"),
    "alarms": (Watch, "look"),
    "console": (Console, "iteration"),
    "samples": (loop, "save_samples"),
}


@pytest.mark.parametrize("part", PARTS)
def test_an_error_anywhere_in_an_iteration_ends_with_a_checkpoint(part, tiny_model, tmp_path, monkeypatch):
    (tmp_path / "tiny_reward.py").write_text(REWARD)
    monkeypatch.chdir(tmp_path)
    owner, name = PARTS[part]
    target = trainer if part == "statistics" else owner  # the trainer has it by name
    act, armed = getattr(target, name), []

    def fail(*arguments, **named):
        if armed:
            raise ZeroDivisionError("nobody foresaw this")
        return act(*arguments, **named)

    def arm(self, state, step):
        armed.extend([True] * (step == 1))
        return iteration(self, state, step)

    iteration = loop._Loop._iteration
    monkeypatch.setattr(target, name, fail)
    monkeypatch.setattr(loop._Loop, "_iteration", arm)
    every = ["--logging.samples-every", 1, "--checkpoint.every", 100]
    outcome = run_small(tiny_model, tmp_path / "run", *every)
    assert outcome.code == 1 and outcome.err.count("\n") == 1, outcome
    assert "Iteration 2 raised ZeroDivisionError: nobody foresaw this" in outcome.err
    saved = [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()]
    assert saved == [1 if part in ("prompts", "rollout", "reward", "statistics", "update") else 2]
    assert "nobody foresaw this" in (tmp_path / "run" / "error.txt").read_text()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["before"]
