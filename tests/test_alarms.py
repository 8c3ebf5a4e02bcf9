"""Alarms in real runs: told, recorded, shown, the same after a resume; and a reward made to be hacked."""

import importlib
import pathlib

import numpy as np
import pytest

from tests.command import HEADS, REWARD, command, run_small
from unigrpo_jax.training.metrics import read_metrics

QUICK = ["--alarms.compared", 2, "--alarms.window", 4, "--alarms.sigmas", 2, "--alarms.fall", 0.2,
         "--learning.reward-weights", "second", 0,
         "--alarms.truncated-share", 1, "--alarms.image-range", 0, 1e9, "--alarms.repeated-share", 1]  # fmt: skip


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
    own = [*QUICK, *HEADS, "--rewards", "alarming_reward:score"]
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
    smoke --devices 1 --rewards my_module:saturated --iterations 16 --learning.denoising-lr 3e-4
    --learning.frozen layers/und embed norm_und lm_head --rollout.flow-steps 6 --rollout.window-range 1 5
    --evaluation.prompts 6 --evaluation.batch 6 --evaluation.flow-steps 2 --evaluation.no-thinking --evaluation.drift 0
    --logging.samples-every 0 --checkpoint.every 100 --alarms.action stop --alarms.compared 7
""".split()


def test_a_reward_that_can_be_hacked_rings_without_the_regulariser_and_not_with_it(tmp_path, monkeypatch):
    """It likes vivid colours, whatever is drawn: without the leash every image becomes a field of them.  The thinking is
    frozen, since the velocity MSE does not hold it: it would learn to plan more objects."""
    (tmp_path / "my_module.py").write_text(SATURATED)
    monkeypatch.syspath_prepend(tmp_path)
    train = lambda name, *words: command("experiments.run", *HACKED, "--run-dir", tmp_path / name, *words)
    done, loose = train("loose", "--learning.mse-weight", 0), lines(tmp_path / "loose")
    assert done.code == 1 and "alarm hacking: the reward rises while judge/" in done.err, done
    assert 14 <= loose[-1]["step"] < 16 and loose[-1]["alarm/hacking"] == 1
    assert loose[-1]["reward/saturated/mean"] > 2 * loose[0]["reward/saturated/mean"] and loose[-1]["judge/exact"] == 0

    done, held = train("held", "--learning.mse-weight", 0.1), lines(tmp_path / "held")
    assert done.code == 0, done
    assert len(held) == 16 and not any(name.startswith("alarm/") for line in held for name in line)
    assert np.mean([line["judge/exact"] for line in held[-7:]]) > 0.2
