"""What a student would save, by hand: operations of evaluations over a chip's peak."""

import dataclasses
import math

import pytest

from experiments.presets import bagel_7b, flux_dance
from launch import few_steps
from tests.command import command
from unigrpo_jax.models.families import known
from unigrpo_jax.parallel.chips import CHIPS

CHIP = CHIPS["v5p"]


def test_a_drawing_takes_the_operations_of_its_evaluations_at_the_chips_peak():
    config = flux_dance.config()
    loaded = known(config.model)
    work = loaded.network.work(config, 0)
    one = work.evaluation(0, executed=True) / CHIP.flops
    for steps, passes in ((28, 1), (4, 1), (3, 2)):
        (found,) = few_steps.seconds(config, loaded, CHIP, steps, passes).values()
        assert math.isclose(found, steps * passes * one, rel_tol=1e-6)


def test_weights_that_are_read_longer_than_they_are_multiplied_with_decide():
    """A chip of no bandwidth: each evaluation reads all weights, of one sample as of many."""
    config, slow = flux_dance.config(), dataclasses.replace(CHIP, bandwidth=1.0)
    loaded = known(config.model)
    whole = few_steps.seconds(config, loaded, slow, 4, 1)["drawing"]
    assert math.isclose(few_steps.seconds(config, loaded, slow, 4, 2)["drawing"], 2 * whole, rel_tol=1e-6)
    assert whole > 1e3 * few_steps.seconds(config, loaded, CHIP, 4, 1)["drawing"]


def test_thinking_takes_as_long_for_a_student():
    """And the pass that guides has less to look at, since it sees neither prompt nor thinking."""
    config = bagel_7b.config()
    loaded = known(config.model)
    teacher, student = (few_steps.seconds(config, loaded, CHIP, steps, passes) for steps, passes in ((49, 2), (4, 1)))
    assert teacher["thinking"] == student["thinking"] > 0
    assert 0.97 * 49 * 2 / 4 < teacher["drawing"] / student["drawing"] < 49 * 2 / 4


def test_the_command_prints_a_row_for_each_number_of_transitions():
    done = command("launch.few_steps", "flux_dance", "--teacher", 28, "--students", 4, 2, "--chip", "v6e")
    assert done.code == 0, done
    lines = [line.split() for line in done.out.splitlines()]
    assert [line[-1] for line in lines if line and line[0] in ("teacher", "student,")] == ["1.0", "7.0", "14.0"]


@pytest.mark.parametrize(
    ("given", "words"),
    [(["--teacher", 0], "--teacher 0"), (["--teacher", 3, "--chip", "v9"], "--chip v9"),
     (["--teacher", 3, "--students", 0], "--students 0")],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_sentence(given, words):
    done = command("launch.few_steps", "flux_dance", *given)
    assert done.code != 0 and words in done.err and done.err.strip().count("\n") == 0, done
