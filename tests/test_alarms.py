"""Alarms in real runs: told, recorded, shown, the same after a resume; and a reward made to be hacked."""

import importlib
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests.command import REWARD, run_small
from unigrpo_jax.training.metrics import read_metrics

QUICK = ["--alarms.compared", 2, "--alarms.window", 4, "--alarms.sigmas", 2, "--alarms.fall", 0.2,
         "--learning.reward-weights", "second", 0,
         "--alarms.truncated-share", 1, "--alarms.image-range", 0, 1e9]  # fmt: skip


@pytest.fixture
def reward(tmp_path, monkeypatch):
    """A reward that rises by 0.1 an iteration, beside one of weight 0 that falls by as much."""
    (tmp_path / "alarming_reward.py").write_text(REWARD)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("alarming_reward")
    module.calls = 0  # call 1 judges the held-out prompts, call n + 1 is iteration n
    like = lambda batch, value: np.full(len(batch.prompts), value, np.float32)
    module.at["always"] = lambda batch: {
        "red": like(batch, 0.1 * module.calls), "second": like(batch, 1 - 0.1 * module.calls)}  # fmt: skip
    return module


def lines(run_dir: pathlib.Path) -> list[dict]:
    timed = lambda name: name.startswith("time/") or name.endswith("_per_second")
    return [{n: x for n, x in line.items() if not timed(n)} for line in read_metrics(run_dir / "metrics.jsonl")]


def test_a_run_tells_its_alarms_and_one_that_stops_goes_on_alike(tiny_model, reward, tmp_path):
    own = [*QUICK, "--rewards", "alarming_reward:score"]
    warned = run_small(tiny_model, tmp_path / "warned", *own)
    assert warned.code == 0, warned.err
    told = [line for line in warned.out.splitlines() if ": alarm " in line]
    assert told == ["step 4: alarm hacking: the reward rises while reward/second/mean falls from 0.75 to 0.55."]
    assert [line.get("alarm/hacking") for line in lines(tmp_path / "warned")] == [None, None, None, 1, 1, 1]
    assert "<h2>Alarms" in (tmp_path / "warned" / "report.html").read_text()

    reward.calls = 0
    stopped = run_small(tiny_model, tmp_path / "stopped", *own, "--alarms.action", "stop")
    assert stopped.code == 1 and stopped.err.count("\n") == 1, stopped
    assert "alarm hacking: the reward rises" in stopped.err and "iteration 4 with a checkpoint" in stopped.err
    assert len(lines(tmp_path / "stopped")) == 4 and (tmp_path / "stopped" / "checkpoints" / "4").is_dir()
    assert "<h2>Alarms" in (tmp_path / "stopped" / "report.html").read_text()
    reward.calls = 5
    resumed = run_small(tiny_model, tmp_path / "stopped", *own, "--resume", "--alarms.action", "stop")
    assert resumed.code == 0, resumed.err
    assert lines(tmp_path / "stopped") == lines(tmp_path / "warned")


SATURATED = """
def saturated(batch):
    images = batch.images / 255
    return {"saturated": (images.max(axis=-1) - images.min(axis=-1)).mean(axis=(1, 2))}
"""
HACKED = """
    smoke --rewards my_module:saturated --iterations 30 --learning.reasoning-lr 0 --learning.denoising-lr 3e-4
    --evaluation.prompts 6 --evaluation.batch 6 --logging.samples-every 0 --checkpoint.every 100 --alarms.action stop
""".split()


def train(folder: pathlib.Path, name: str, *arguments) -> tuple[int, str, list[dict]]:
    """Exit code, what stderr says and the metrics of a run as a user would start it, at the compiler's full speed."""
    root = pathlib.Path(__file__).resolve().parent.parent
    own = {"PYTHONPATH": str(root), "XLA_FLAGS": "", "JAX_COMPILATION_CACHE_DIR": str(root / ".cache" / "jax")}
    done = subprocess.run(
        [sys.executable, "-m", "experiments.run", *HACKED, "--name", name, *map(str, arguments)],
        cwd=folder, env=os.environ | own, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    return done.returncode, done.stderr, lines(folder / "runs" / name)


def test_a_reward_that_can_be_hacked_rings_without_the_regulariser_and_not_with_it(tmp_path):
    """It likes vivid colours, whatever is drawn: without the leash every image becomes a field of them.  The thinking is
    held, since the velocity MSE does not hold it: it would learn to plan more objects."""
    (tmp_path / "my_module.py").write_text(SATURATED)
    code, said, loose = train(tmp_path, "loose", "--learning.mse-weight", 0)
    assert code == 1 and "alarm hacking: the reward rises while judge/" in said, said
    assert 20 <= loose[-1]["step"] < 30 and loose[-1]["alarm/hacking"] == 1
    assert loose[-1]["reward/saturated/mean"] > 3 * loose[0]["reward/saturated/mean"] and loose[-1]["judge/exact"] == 0

    code, said, held = train(tmp_path, "held", "--learning.mse-weight", 0.1)
    assert code == 0, said
    assert len(held) == 30 and not any(name.startswith("alarm/") for line in held for name in line)
    assert np.mean([line["judge/exact"] for line in held[-10:]]) > 0.2
