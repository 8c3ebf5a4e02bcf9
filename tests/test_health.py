"""Alarms on histories made by hand and at random: what rings, what does not, and that a resume hears the same."""

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy import stats

from unigrpo_jax.config import AlarmsConfig, LearningConfig
from unigrpo_jax.training.health import IMAGE, MEANINGS, Watch, alarms, hacked, welch

CONFIG, LEARNING = AlarmsConfig(), LearningConfig(reward_weights={"second": 0.0})
HEALTHY = {
    "reward/mean": (0.5, 0.03), "reward/second/mean": (0.4, 0.05), "judge/exact": (0.4, 0.08),
    "image/edge_density": (0.04, 0.005), "image/colour_entropy": (0.5, 0.06), "text/entropy": (0.6, 0.05),
    "text/truncated_share": (0.1, 0.02), "text/ratio_min": (0.8, 0.02), "text/ratio_max": (1.2, 0.02),
    "flow/ratio_min": (0.999, 1e-4), "flow/ratio_max": (1.001, 1e-4), "reward/failed_share": (0.0, 0.0),
    "update/skipped": (0.0, 0.0), "image/grid_energy": (1e-5, 1e-6), "text/repeated_share": (0.05, 0.01),
}  # fmt: skip


def history(length=60, seed=0, **changes) -> list[dict]:
    """Noise about the healthy means; `changes` are functions of the step's number and the value, "/" written as "__"."""
    rng = np.random.default_rng(seed)
    lines = []
    for step in range(1, length + 1):
        line = {name: mean + spread * rng.standard_normal() for name, (mean, spread) in HEALTHY.items()}
        for name, change in changes.items():
            name = name.replace("__", "/")
            line[name] = change(step, line.get(name))
        lines.append({"step": step, **line})
    return lines


rises = lambda step, value: value + 0.006 * step
falls = lambda step, value: value * (1 - 0.012 * step)


def rung(lines, config=CONFIG):
    return set(alarms(lines, config, LEARNING))


def test_all_is_well_in_a_healthy_run_that_learns():
    lines = history(200, reward__mean=rises, judge__exact=rises, text__entropy=lambda s, x: x * 0.997**s)
    assert all(not alarms(lines[:n], CONFIG, LEARNING) for n in range(1, 201))


CASES = {
    "entropy": {"text__entropy": lambda s, x: x if s < 30 else 0.05},
    "image": {"image__edge_density": lambda s, x: x if s < 30 else 0.3 * x},
    "image, rising": {"image__colour_entropy": lambda s, x: x if s < 30 else 6 * x},
    "truncated": {"text__truncated_share": lambda s, x: 1.0},
    "grid": {"image__grid_energy": lambda s, x: x if s < 30 else 2e-4},
    "repeated": {"text__repeated_share": lambda s, x: x if s < 30 else 0.4},
    "ratio": {"text__ratio_max": lambda s, x: 12.0},
    "ratio, falling": {"text__ratio_min": lambda s, x: 0.0},
    "ratio, flow": {"flow__ratio_min": lambda s, x: 0.9},
    "ratio, of sound": {"flow_audio__ratio_min": lambda s, x: 0.9, "flow_audio__ratio_max": lambda s, x: 1.0},
    "skipped": {"update__skipped": lambda s, x: float(s % 3 == 0)},
    "dropped": {"reward__failed_share": lambda s, x: 0.25},
    "hacking": {"reward__mean": rises, "judge__exact": falls},
    "hacking, image": {"reward__mean": rises, "image__edge_density": falls},
    "hacking, weight 0": {"reward__mean": rises, "reward__second__mean": falls},
}


@pytest.mark.parametrize("name", CASES)
def test_each_alarm_rings_for_its_own_cause_alone(name):
    lines = history(48, **CASES[name])
    assert rung(lines) == {name.partition(",")[0]}
    assert rung(lines, dataclasses.replace(CONFIG, action="off")) == set()
    assert rung(lines[:19]) == set()  # twice the compared iterations are not done


def test_every_alarm_has_a_meaning():
    assert {name.partition(",")[0] for name in CASES} == set(MEANINGS)


def test_a_grid_rings_where_it_rose_far_and_often():
    """From a start that has energy of its own, as a photograph may; and of a level that is small whatever it was."""
    of = lambda first, then: rung(history(48, image__grid_energy=lambda s, x: first if s < 30 else then))
    assert of(0.0, 1.1e-4) == of(1e-3, 6e-3) == {"grid"}
    assert of(0.0, 0.9e-4) == of(1e-3, 4e-3) == of(5e-3, 1e-3) == set()
    bursts = lambda step, x: 1e-2 if step in (3, 4, 40) else 0.0 if step < 30 else 2e-4
    assert rung(history(48, image__grid_energy=bursts)) == {"grid"}  # first steps that show one are not the start's level
    assert rung(history(48, image__grid_energy=lambda s, x: 2e-4 if s > 30 else None)) == set()  # no start is known


@pytest.mark.parametrize(
    "changes",
    [
        {"reward__mean": rises, "judge__exact": rises},
        {"reward__mean": rises},
        {"judge__exact": falls},
        {"reward__mean": lambda s, x: x - 0.006 * s, "judge__exact": falls},
        {"reward__mean": rises, "judge__graded": lambda s, x: 0.5 - 0.003 * s},  # certain, and only 23 % in 38 iterations
        {"reward__mean": rises, "reward__first__mean": lambda s, x: 0.5 - 0.01 * s},  # part of what is trained
        {"reward__mean": rises, "text__entropy": falls},  # no judge
    ],
)
def test_hacking_needs_a_rise_of_the_reward_and_a_large_fall_of_a_judge(changes):
    assert rung(history(48, **changes)) == set()


def test_the_change_is_that_of_welch():
    rng = np.random.default_rng(1)
    for scale in (0.1, 3.0):
        a, b = rng.normal(0, 1, 7), rng.normal(0.5, scale, 11)
        assert welch(a, b) == pytest.approx(stats.ttest_ind(b, a, equal_var=False).statistic)
    assert welch([1, 1], [1, 1]) == 0 and welch([1, 1], [2, 2]) == math.inf and welch([2, 2], [1, 1]) == -math.inf
    assert math.isnan(welch([1], [2, 3])) and math.isnan(welch([], []))


def test_the_bounds_of_hacking_are_exactly_those_that_are_set():
    """First 0, 2 and last 10, 12: a change of 10 and a standard error of sqrt(2/2 + 2/2)."""
    t = 10 / math.sqrt(2)
    lines = [{"reward/mean": r, "judge/j": 100 - r} for r in (0.0, 2.0, 50.0, 10.0, 12.0)]
    for sigmas, fall, rings in ((t - 1e-9, 0.1, True), (t + 1e-9, 0.1, False), (t - 1e-9, 10 / 99 - 1e-9, True),
                                (t - 1e-9, 10 / 99 + 1e-9, False)):  # fmt: skip
        config = AlarmsConfig(compared=2, window=5, sigmas=sigmas, fall=fall)
        assert bool(hacked(lines, config, ["judge/j"])) == rings


def test_only_the_window_counts():
    """A change that is over before the window begins."""
    lines = history(300, reward__mean=lambda s, x: x + 0.5 * (s > 100), judge__exact=lambda s, x: x - 0.3 * (s > 100))
    rings = [n for n in range(1, 301) if "hacking" in alarms(lines[:n], CONFIG, LEARNING)]
    assert rings[0] in range(103, 111) and rings[-1] in range(190, 200)


@pytest.mark.parametrize("learns", [False, True])
def test_noise_rings_in_at_most_one_of_a_hundred_histories(learns):
    """400 runs of 60 iterations, each looked at after every iteration; also where the reward truly rises, so that the
    noise of one second judge is enough.  The noise is that of the shapes preset or more: judges independent from one
    iteration to the next with 15 % of their level, image statistics AR(0.5) with 12 %."""
    rng, names = np.random.default_rng(2), ["reward/mean", "judge/exact", "judge/plan_exact", *IMAGE]
    spread, alike = np.array([0.1, 0.15, 0.15, 0.12, 0.12]), np.array([0, 0, 0, 0.5, 0.5])
    false = 0
    for _ in range(400):
        noise = rng.standard_normal((60, 5))
        for step in range(1, 60):
            noise[step] = alike * noise[step - 1] + np.sqrt(1 - alike**2) * noise[step]
        values = 1 + spread * noise
        values[:, 0] += 0.02 * np.arange(60) * learns
        lines = [dict(zip(names, row, strict=True)) for row in values.tolist()]
        false += any(hacked(lines[:n], CONFIG, names[1:]) for n in range(20, 61))
    assert false <= 4, false


def test_values_that_are_missing_or_not_finite_are_left_out():
    bad = {"judge__exact": lambda s, x: None if s % 3 else falls(s, x), "reward__mean": rises}
    assert rung(history(48, **bad)) == set()  # less than half are left
    some = {"judge__exact": lambda s, x: math.nan if s % 3 == 0 else falls(s, x), "reward__mean": rises}
    assert rung(history(48, **some)) == {"hacking"}
    nothing = [{"step": n} for n in range(1, 50)]
    assert alarms(nothing, CONFIG, LEARNING) == {}


def test_a_long_history_is_not_kept_and_rings_as_the_whole_one():
    """What is looked at is the first K lines and the last window."""
    config = dataclasses.replace(CONFIG, window=3 * CONFIG.compared)
    lines = history(200, **CASES["hacking"])
    watch, heard = Watch(config, LEARNING), set()
    for number, line in enumerate(lines):
        found, _ = watch.look(line)
        assert set(found) == {f"alarm/{name}" for name in alarms(lines[: number + 1], config, LEARNING)}
        heard |= set(found)
    assert heard == {"alarm/hacking"} and len(watch._history) == 4 * config.compared


def test_a_resume_hears_what_the_run_without_a_stop_hears():
    """The history goes through JSON, where NaN becomes null, at every point where the run may have been stopped."""
    lines = history(48, **CASES["hacking"], text__entropy=lambda s, x: math.nan if s % 7 == 0 else x)
    straight = Watch(CONFIG, LEARNING)
    heard = [straight.look(line) for line in lines]
    assert heard[-1][0] == {"alarm/hacking": 1}
    assert [bool(told) for _, told in heard].count(True) == 1  # not again and again while it lasts
    saved = [{**line, **found} for line, (found, _) in zip(lines, heard, strict=True)]
    saved = [{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in line.items()} for line in saved]
    for stop in (1, 20, 40, 47):
        resumed = Watch(CONFIG, LEARNING, json.loads(json.dumps(saved[:stop])))
        assert [resumed.look(line) for line in lines[stop:]] == heard[stop:]
