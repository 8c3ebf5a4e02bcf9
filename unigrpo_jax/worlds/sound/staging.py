"""Makes moving scenes with sound that fulfil a requirement: as those without, and whose clicks can be told apart."""

import numpy as np

from unigrpo_jax.worlds.motion import staging
from unigrpo_jax.worlds.motion.requirement import MotionRequirement
from unigrpo_jax.worlds.motion.scene import MovingScene, touches

LEAST_APART = 1.5  # frames between two touches
_TRIES = 200


def stage(rng: np.random.Generator, requirement: MotionRequirement) -> MovingScene:
    """A scene whose clip and sound of `FRAMES` frames fulfil a requirement; ValueError where many draws gave none."""
    for _ in range(_TRIES):
        scene = staging.stage(rng, requirement)
        times = [touch.time for touch in touches(scene)]
        if all(gap >= LEAST_APART for gap in np.diff(times)):
            return scene
    raise ValueError(f"sound staging: in {_TRIES} scenes of `{requirement.facts()}` two clicks fell together; "
                     "ask for fewer touches")  # fmt: skip
