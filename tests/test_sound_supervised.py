"""What a base model of the world of sound learns from: the shares of faults, and that each is one where it should be."""

import math

import numpy as np
import pytest

from unigrpo_jax.worlds.sound.judge import judge_sounds
from unigrpo_jax.worlds.sound.prompts import by_category
from unigrpo_jax.worlds.sound.supervised import FAULTS, example
from unigrpo_jax.worlds.sound.synthesis import RATE

N = 90
DIMENSIONS = ("content", "motion", "smoothness", "pitch", "clicks", "synchrony", "stereo", "noise")
# The dimension that a fault is in, and what else it may touch.
TOUCHES = {"way": ("motion", {"clicks", "synchrony"}), "pitch": ("pitch", {"stereo"}), "late": ("synchrony", {"stereo"}),
           "missing": ("clicks", {"synchrony", "stereo"}), "swapped": ("stereo", set())}  # fmt: skip


def made(seed: int, n: int, **faults):
    rng, prompts = np.random.default_rng(seed), by_category("train")
    return [example(rng, prompts, **faults) for _ in range(n)]


def judged(members):
    return judge_sounds(np.stack([e.clip for e in members]), np.stack([e.sound for e in members]), RATE,
                        [e.prompt.metadata for e in members])  # fmt: skip


def test_a_clip_with_its_sound_is_exact_where_it_has_no_fault_and_nowhere_else():
    members = made(1, N)
    for e, found in zip(members, judged(members), strict=True):
        assert e.clip.shape == (9, 24, 24, 3) and e.sound.shape == (1152, 2) and e.sound.dtype == np.float32
        assert found.exact == (e.fault is None), (e.fault, found)
    assert {e.fault for e in members} == {None, *FAULTS}
    assert math.isclose(sum(FAULTS.values()), 0.4)


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_can_be_had_alone_and_is_seen_in_its_own_dimension(fault):
    members = [e for e in made(1, 24, faults={fault: 1.0}) if e.fault]
    assert {e.fault for e in members} == {fault} and len(members) >= 8
    own, may = TOUCHES[fault]
    for e, found in zip(members, judged(members), strict=True):
        low = {name for name in DIMENSIONS if getattr(found, name) < 1}
        assert own in low and low <= {own} | may, (e.prompt.text, found)


def test_the_share_of_faulty_examples_is_the_same_for_all_prompts():
    """Where all are to be faulty, all are: what rests can at least sound."""
    assert all(e.fault for e in made(2, 60, faults={name: 0.2 for name in FAULTS}))
    assert {e.fault for e in made(3, 12, faults={})} == {None}


def test_the_same_generator_makes_the_same_examples():
    for one, other in zip(made(4, 5), made(4, 5), strict=True):
        assert one.prompt == other.prompt and one.fault == other.fault
        assert (one.clip == other.clip).all() and (one.sound == other.sound).all()


@pytest.mark.parametrize("faults, words", [
    ({"blur": 0.1}, "blur"), ({"way": 0.8, "late": 0.3}, "sum"), ({"pitch": -0.1}, "0 or"),
])  # fmt: skip
def test_shares_that_are_none_are_refused(faults, words):
    with pytest.raises(ValueError, match=words):
        made(0, 1, faults=faults)
