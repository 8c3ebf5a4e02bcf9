"""Whether a clip is smooth, whatever it shows: nothing appears, vanishes, turns into something else, or jumps."""

import itertools
from collections.abc import Sequence

import numpy as np

from unigrpo_jax.worlds.motion.reading import Frame, Sighting

LARGEST_STEP = 3.0  # pixels a frame, on each axis
JUMP_TOLERANCE = 0.75


def smooth_steps(frames: Sequence[Frame]) -> np.ndarray:
    """Which of the F - 1 steps from frame to frame are smooth, bool [F - 1].

    A step is smooth where both frames hold the same kinds of objects and nothing unclear, no object moves further than
    `LARGEST_STEP`, and the step of each lies, up to `JUMP_TOLERANCE`, between those of the same object just before and just
    after; the first and the last step between the next two.  So a turn at a wall is smooth, in whichever part of a frame
    it falls.  Objects of one kind are told apart by the least way.
    """
    ways, order = [], None
    for before, after in itertools.pairwise(frames):
        order = order if order is not None else sorted(before.objects, key=_kind)
        following = _follow(order, after.objects) if not (before.unclear or after.unclear) else None
        ways.append(None if following is None else _places(following) - _places(order))
        order = following
    return np.array([_is_smooth(ways, t) for t in range(len(ways))], bool)


def _is_smooth(ways: Sequence[np.ndarray | None], t: int) -> bool:
    own = ways[t]
    if own is None or (own.size and np.abs(own).max() > LARGEST_STEP):
        return False
    near = {0: (1, 2), len(ways) - 1: (t - 1, t - 2)}.get(t, (t - 1, t + 1))
    others = [ways[s] for s in near if 0 <= s < len(ways) and ways[s] is not None and len(ways[s]) == len(own)]
    if not others or not own.size:
        return True
    outside = np.maximum(np.min(others, 0) - own, own - np.max(others, 0))
    return bool(outside.max() <= JUMP_TOLERANCE)


def _follow(order: Sequence[Sighting], objects: Sequence[Sighting]) -> list[Sighting] | None:
    """The same objects one frame later, in the same order; None where they are not the same kinds."""
    if sorted(map(_kind, order)) != sorted(map(_kind, objects)):
        return None
    fitting = [way for way in itertools.permutations(objects) if list(map(_kind, way)) == list(map(_kind, order))]
    return list(min(fitting, key=lambda way: np.abs(_places(way) - _places(order)).sum()))


def _places(objects: Sequence[Sighting]) -> np.ndarray:
    return np.array([o.place for o in objects], float).reshape(-1, 2)


def _kind(o: Sighting) -> tuple[str, str]:
    return o.colour, o.shape
