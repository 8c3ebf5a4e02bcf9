"""What a base model of the worlds of motion learns from: the shares of faults, and that each fault is one."""

import math

import numpy as np
import pytest

from unigrpo_jax.worlds.motion.animate import judge_animations
from unigrpo_jax.worlds.motion.judge import judge_clips
from unigrpo_jax.worlds.motion.prompts import by_category, requirements
from unigrpo_jax.worlds.motion.requirement import CATEGORIES
from unigrpo_jax.worlds.motion.scene import places, touches
from unigrpo_jax.worlds.motion.staging import MARGIN, stage
from unigrpo_jax.worlds.motion.supervised import FAULTS, animate_example, example
from unigrpo_jax.worlds.shapes.drawing import CELL

N = 150


def made(which: str, seed: int, n: int, **faults):
    rng = np.random.default_rng(seed)
    if which == "motion":
        prompts = by_category("train")
        return [example(rng, prompts, **faults) for _ in range(n)]
    return [animate_example(rng, **faults) for _ in range(n)]


@pytest.mark.parametrize("which, judge", [("motion", judge_clips), ("animate", judge_animations)])
def test_a_clip_is_exact_where_it_has_no_fault_and_nowhere_else(which, judge):
    members = made(which, 0, N)
    verdicts = judge(np.stack([e.clip for e in members]), [e.prompt.metadata for e in members])
    for e, found in zip(members, verdicts, strict=True):
        assert found.exact == (e.fault is None), (e.fault, found)
    wrong = np.mean([e.fault is not None for e in members])
    assert abs(wrong - 0.4) < 4 * math.sqrt(0.4 * 0.6 / N)
    assert {e.fault for e in members} >= {None, "way", "jump", "swap"}


@pytest.mark.parametrize("which", ["motion", "animate"])
def test_every_fault_can_be_had_alone_and_none_can(which):
    judge = judge_clips if which == "motion" else judge_animations
    for fault in FAULTS:
        members = made(which, 1, 24, faults={fault: 1.0})
        names = {e.fault for e in members}
        assert names <= {fault, None} and fault in names
        faulty = [e for e in members if e.fault]
        verdicts = judge(np.stack([e.clip for e in faulty]), [e.prompt.metadata for e in faulty])
        assert not any(v.exact for v in verdicts)
        if fault in ("way", "speed"):
            assert all(v.content == 1 for v in verdicts)
    assert {e.fault for e in made(which, 2, 12, faults={})} == {None}


def test_an_animated_clip_begins_with_its_picture_whatever_its_fault():
    for e in made("animate", 3, 40, faults={name: 0.25 for name in FAULTS}):
        assert e.clip.shape == (9, 24, 24, 3) and e.clip.dtype == np.uint8
        assert (e.clip[0] == e.prompt.picture()).all()


def test_the_same_generator_makes_the_same_examples():
    for which in ("motion", "animate"):
        for one, other in zip(made(which, 4, 5), made(which, 4, 5), strict=True):
            assert one.prompt == other.prompt and (one.clip == other.clip).all() and one.fault == other.fault


@pytest.mark.parametrize("faults, words", [
    ({"blur": 0.1}, "blur"), ({"way": 0.8, "swap": 0.3}, "sum"), ({"jump": -0.1}, "0 or"),
])  # fmt: skip
def test_shares_that_are_none_are_refused(faults, words):
    with pytest.raises(ValueError, match=words):
        made("motion", 0, 1, faults=faults)


def test_whole_scenes_stand_on_whole_pixels_begin_in_cells_and_touch_only_what_they_are_to():
    rng = np.random.default_rng(3)
    for category in CATEGORIES:
        every = list(requirements(category))
        for requirement in (every[i] for i in rng.integers(len(every), size=30)):
            scene = stage(rng, requirement, whole=True)
            at = places(scene)
            np.testing.assert_array_equal(at, np.rint(at))
            met = touches(scene)
            assert all(touch.time == round(touch.time) for touch in met)
            turns = {actor.motion.course for actor in requirement.actors} & {"bounce", "stop", "meet"}
            assert bool(met) == bool(turns)
            if not turns:
                assert not ((at[0] - MARGIN) % CELL).any()
