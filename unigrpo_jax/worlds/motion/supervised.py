"""What a base model of the worlds of motion learns from: prompts with clips, of which a share is faulty.

A fault is another clip as sharp as any, never blur or noise, so that a model that learns from these examples has right and
wrong modes to choose between:

    way      an object moves another way; with a picture given, from its place, where it has room for `LEAST_ROOM` pixels
    speed    an object of slow pace is fast, or the other way round
    jump     from some frame on an object is elsewhere, `LEAST_JUMP` pixels away or more
    swap     from some frame on an object has another shape or another colour

All of them stand on whole pixels (`staging`).  Where a fault cannot be made, as a wrong speed where none is asked for,
another one of those with a share is, so that the share of faulty clips is the same for all prompts.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from unigrpo_jax.worlds.motion import animate
from unigrpo_jax.worlds.motion.drawing import draw, kinds
from unigrpo_jax.worlds.motion.requirement import DIRECTIONS, OPPOSITE_WAY, MotionRequirement, from_metadata
from unigrpo_jax.worlds.motion.scene import BOX, ROOM, Mover, MovingScene, places
from unigrpo_jax.worlds.motion.staging import between, speed_of, stage
from unigrpo_jax.worlds.prompt import Prompt
from unigrpo_jax.worlds.shapes.drawing import CELL
from unigrpo_jax.worlds.shapes.scene import COLOURS, SHAPES
from unigrpo_jax.worlds.shapes.supervised import index, pick

FAULTS = {"way": 0.12, "speed": 0.08, "jump": 0.10, "swap": 0.10}
LEAST_JUMP = 4.0
LEAST_ROOM = 4.0


@dataclasses.dataclass(frozen=True)
class MotionExample:
    """One example: a prompt, a clip, uint8 [9, 24, 24, 3], and its fault, None where it is right.

    Where the prompt has a picture, that is the first frame.
    """

    prompt: Prompt
    clip: np.ndarray
    fault: str | None


def example(
    rng: np.random.Generator, prompts: Mapping[str, Sequence[Prompt]], faults: Mapping[str, float] = FAULTS
) -> MotionExample:
    """An example of `shapes_motion`.

    Args:
      rng: where everything random comes from.
      prompts: those of each category, which is drawn uniformly.
      faults: the share of each fault among all clips; their sum is at most 1.
    """
    prompt = pick(rng, prompts[pick(rng, tuple(prompts))])
    return _made(rng, prompt, None, faults)


def animate_example(
    rng: np.random.Generator, split: str = "train", faults: Mapping[str, float] = FAULTS
) -> MotionExample:
    """An example of `shapes_animate`; the categories are drawn uniformly, and every clip begins with its picture."""
    prompt, scene = animate.draw_prompt(rng, pick(rng, animate.CATEGORIES), split)
    return _made(rng, prompt, scene, faults)


def _made(rng: np.random.Generator, prompt: Prompt, given: MovingScene | None, faults: Mapping[str, float]) -> MotionExample:
    """A clip of a scene that fulfils the prompt's requirement, the given one if there is one, with a fault at times."""
    if unknown := [name for name in faults if name not in FAULTS]:
        raise ValueError(f"motion examples: no fault `{unknown[0]}`; there are {', '.join(FAULTS)}")
    if min(faults.values(), default=0) < 0 or sum(faults.values()) > 1 + 1e-9:
        raise ValueError(f"motion examples: the shares {dict(faults)} are no shares; each is 0 or more, the sum 1 at most")
    requirement = from_metadata(prompt.metadata)
    fault = _fault(rng, requirement, faults)
    scene = given or stage(rng, requirement, whole=True)
    if fault in ("way", "speed"):
        scene = (wrong_way if fault == "way" else _wrong_pace)(rng, scene, requirement, given is not None)
    path = places(scene)
    colours, shapes = (np.repeat(numbers[None], len(path), 0) for numbers in kinds(scene))
    if fault == "jump":
        path = _with_jump(rng, path)
    if fault == "swap":
        colours, shapes = _with_swap(rng, colours, shapes)
    return MotionExample(prompt, draw(colours, shapes, path), fault)


def _fault(rng: np.random.Generator, requirement: MotionRequirement, faults: Mapping[str, float]) -> str | None:
    if rng.random() >= sum(faults.values()):
        return None
    motions = [actor.motion for actor in requirement.actors]
    possible = {"way": any(m.direction for m in motions), "speed": any(m.pace for m in motions), "jump": True, "swap": True}
    names = [name for name, share in faults.items() if share > 0 and possible[name]]
    shares = np.array([faults[name] for name in names])
    return names[int(rng.choice(len(names), p=shares / shares.sum()))] if names else None


def wrong_way(
    rng: np.random.Generator, scene: MovingScene, requirement: MotionRequirement, from_picture: bool
) -> MovingScene:
    """A scene in which one object, of two that meet both, has another direction: staged anew, or from a picture's places."""
    actors = requirement.actors
    i = pick(rng, [i for i, actor in enumerate(actors) if actor.motion.direction])
    others = [way for way in DIRECTIONS if way != actors[i].motion.direction]
    if from_picture:
        mover = scene.movers[i]
        axis, sign = DIRECTIONS[pick(rng, [way for way in others if _room(mover, way) >= LEAST_ROOM])]
        velocity = np.where(np.arange(2) == axis, sign * np.linalg.norm(mover.velocity), 0)
        turned = dataclasses.replace(mover, velocity=tuple(velocity.tolist()))
        return dataclasses.replace(scene, movers=(*scene.movers[:i], turned, *scene.movers[i + 1 :]))
    way = pick(rng, others)
    ways = [actor.motion.direction for actor in actors]
    if actors[i].motion.course == "meet":
        ways = [OPPOSITE_WAY[way]] * len(actors)
    ways[i] = way
    changed = tuple(
        dataclasses.replace(actor, motion=dataclasses.replace(actor.motion, direction=own))
        for actor, own in zip(actors, ways, strict=True)
    )
    return stage(rng, dataclasses.replace(requirement, actors=changed), whole=True)


def _room(mover: Mover, way: str) -> float:
    """Pixels from where an object begins to the wall in a direction."""
    axis, sign = DIRECTIONS[way]
    return ROOM - mover.start[axis] if sign > 0 else mover.start[axis]


def _wrong_pace(
    rng: np.random.Generator, scene: MovingScene, requirement: MotionRequirement, from_picture: bool
) -> MovingScene:
    """A scene at the other pace: staged anew, or from a picture's places, where a wall may come up."""
    other = {"slow": "fast", "fast": "slow", None: None}
    motions = [dataclasses.replace(a.motion, pace=other[a.motion.pace]) for a in requirement.actors]
    if not from_picture:
        actors = tuple(dataclasses.replace(a, motion=m) for a, m in zip(requirement.actors, motions, strict=True))
        return stage(rng, dataclasses.replace(requirement, actors=actors), whole=True)
    movers = tuple(
        dataclasses.replace(mover, velocity=tuple(speed_of(rng, motion.pace, whole=True) * np.sign(mover.velocity)))
        if motion.pace else mover
        for mover, motion in zip(scene.movers, motions, strict=True)
    )  # fmt: skip
    return dataclasses.replace(scene, movers=movers)


def _with_jump(rng: np.random.Generator, path: np.ndarray) -> np.ndarray:
    """The path [F, n, 2] with one object elsewhere from some frame on, inside the walls and beside the others."""
    while True:
        begins, who = 2 + index(rng, len(path) - 3), index(rng, path.shape[1])
        jumped = path.copy()
        jumped[begins:, who] += between(rng, np.full(2, -ROOM), ROOM, whole=True, step=CELL)
        after = jumped[begins:]
        inside = ((after >= 0) & (after <= ROOM)).all()
        beside = all(np.abs(after[:, who] - after[:, i]).max(-1).min() >= BOX for i in range(path.shape[1]) if i != who)
        far = np.abs(jumped[begins, who] - path[begins, who]).max() >= LEAST_JUMP
        if inside and beside and far:
            return jumped


def _with_swap(rng: np.random.Generator, colours: np.ndarray, shapes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colours and shapes, [F, n] each, with one object's shape or colour another one from some frame on."""
    begins, who = 2 + index(rng, len(colours) - 3), index(rng, colours.shape[1])
    changed, options = pick(rng, ((colours, len(COLOURS)), (shapes, len(SHAPES))))
    changed[begins:, who] = (changed[0, who] + 1 + index(rng, options - 1)) % options
    return colours, shapes
