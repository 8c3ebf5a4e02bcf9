"""Makes moving scenes with sound that fulfil a requirement: as those without, and whose clicks can be told apart."""

from collections.abc import Callable

import numpy as np

from unigrpo_jax.worlds.motion import staging
from unigrpo_jax.worlds.motion.requirement import MotionRequirement
from unigrpo_jax.worlds.motion.scene import MovingScene, touches

LEAST_APART = 1.5  # frames between two touches
_TRIES = 200


def stage(rng: np.random.Generator, requirement: MotionRequirement, whole: bool = False) -> MovingScene:
    """A scene whose clip and sound of `FRAMES` frames fulfil a requirement, `whole` or not as `motion.staging` says.

    ValueError where many draws gave none.
    """
    return told_apart(lambda: staging.stage(rng, requirement, whole))


def told_apart(draw: Callable[[], MovingScene]) -> MovingScene:
    """The first of the scenes drawn in which touches are `LEAST_APART` or more apart; ValueError where none is."""
    for _ in range(_TRIES):
        scene = draw()
        if (np.diff([touch.time for touch in touches(scene)]) >= LEAST_APART).all():
            return scene
    raise ValueError(f"sound staging: two clicks fell together in all of {_TRIES} scenes; ask for fewer touches")
