"""The world `shapes_animate`: a picture and what is to move in it; the clip begins with the picture.

    picture     red circle at (3, 6), blue square at (12, 15)      `picture(metadata)` draws it
    text        make the circle move to the right
    clip        the picture, then the red circle on its way; the blue square stays where it is

Prompts are made without end: position i of seed s is a function of (s, i) alone, and asks for category i mod 6.  The text
names as much of an object as is needed to mean it and no other; objects that it does not name are to stay still.  All
begin on whole pixels.

The held-out part differs in what is required: a key names the category, every object of the picture and how it moves, and
belongs to one part by its hash, so that no text and picture are in both parts either.

Metadata: those of `MotionRequirement`, where every colour is named, and `scene`, the objects of the picture with their
places.  Exact asks for two things: that the first frame differs from the picture by noise alone, by the rule of `reading`,
and what `judge` asks of a clip.  `first_frame` is 1 where the first holds, else it falls to 0 at twice the permitted root
mean square in any 8 x 8 window, and the grade of a clip that is not exact is multiplied by it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unigrpo_jax.worlds.motion.drawing import render
from unigrpo_jax.worlds.motion.judge import ClipVerdict, judge
from unigrpo_jax.worlds.motion.prompts import PAIRS, short
from unigrpo_jax.worlds.motion.reading import RMS_TOLERANCE, is_noise, read_clips, window_rms
from unigrpo_jax.worlds.motion.requirement import DIRECTIONS, OPPOSITE_WAY, PACES, Actor, Motion, MotionRequirement
from unigrpo_jax.worlds.motion.scene import Mover, MovingScene
from unigrpo_jax.worlds.motion.staging import stage
from unigrpo_jax.worlds.motion.wording import orders
from unigrpo_jax.worlds.order import Drawn
from unigrpo_jax.worlds.prompt import Prompt
from unigrpo_jax.worlds.shapes.change_wording import descriptions
from unigrpo_jax.worlds.shapes.judge import PARTIAL
from unigrpo_jax.worlds.shapes.prompts import HELD_OUT_SHARE, digest
from unigrpo_jax.worlds.shapes.requirement import Wanted
from unigrpo_jax.worlds.shapes.supervised import pick
from unigrpo_jax.worlds.shapes.world import SPLITS, drawn_prompts

CATEGORIES = ("direction", "speed", "wall", "meeting", "one_of_two", "two_object")


@dataclasses.dataclass(frozen=True)
class AnimateVerdict(ClipVerdict):
    """A judgement of a clip that a picture begins; `first_frame` in [0, 1] is 1 where the picture is kept."""

    first_frame: float


def draw_prompt(rng: np.random.Generator, category: str, split: str) -> tuple[Prompt, MovingScene]:
    """A prompt of "train" or "held_out", and a scene that fulfils it from the picture on."""
    if split not in SPLITS:
        raise ValueError(f'motion pictures: no split "{split}"; there are "train" and "held_out"')
    while True:
        requirement = _requirement(rng, category)
        if is_held_out(requirement) == (split == "held_out"):
            break
    scene = stage(rng, requirement, whole=True)
    what = [actor.what for actor in requirement.actors]
    names = [_the(pick(rng, descriptions(kind, [other for other in what if other != kind]))) for kind in what]
    text = pick(rng, short(orders(requirement, names)))
    shown = [{"colour": m.colour, "shape": m.shape, "place": list(m.start)} for m in scene.movers]
    metadata = requirement.metadata() | {"scene": shown}
    return Prompt(text=text, metadata=metadata, picture=_Shown(given_scene(metadata))), scene


def prompts(seed: int, split: str) -> Drawn:
    """All prompts of a part by position, the categories in turn."""
    def draw(rng: np.random.Generator, group: int, split: str) -> Prompt:
        return draw_prompt(rng, CATEGORIES[group], split)[0]

    return drawn_prompts(draw, len(CATEGORIES), seed, split)


def is_held_out(requirement: MotionRequirement) -> bool:
    """Whether a requirement is held out: its key's SHA-256 is in the lowest `HELD_OUT_SHARE` of all values."""
    return int.from_bytes(digest(requirement.metadata()["key"])[:8]) < HELD_OUT_SHARE * 2**64


def given_scene(metadata: Mapping[str, Any]) -> MovingScene:
    """The objects of the picture that a prompt is about, at rest."""
    return MovingScene(tuple(Mover(o["colour"], o["shape"], tuple(o["place"])) for o in metadata["scene"]))


def picture(metadata: Mapping[str, Any]) -> np.ndarray:
    """The picture that a prompt is about, uint8 [24, 24, 3]."""
    return render(given_scene(metadata), frames=1)[0]


def judge_animations(clips: np.ndarray, metadata: Sequence[Mapping[str, Any]]) -> list[AnimateVerdict]:
    """A verdict for each clip, uint8 [B, F, 24, 24, 3], by its prompt's metadata."""
    read = read_clips(clips)
    given = np.stack([picture(facts) for facts in metadata]) if len(metadata) else clips[:, 0]
    kept = first_frames_kept(clips[:, 0], given)
    return [_with_first(judge(frames, facts), float(k)) for frames, facts, k in zip(read, metadata, kept, strict=True)]


def first_frames_kept(first: np.ndarray, given: np.ndarray) -> np.ndarray:
    """How far N first frames are the pictures given, uint8 [N, 24, 24, 3] each: in [0, 1] as above."""
    rest = (first.astype(np.float32) - given.astype(np.float32)) / 255
    most = window_rms(rest).max((1, 2))
    return np.where(is_noise(rest).all((1, 2)), 1.0, np.clip(2 - most / RMS_TOLERANCE, 0, 0.99))


def _with_first(verdict: ClipVerdict, kept: float) -> AnimateVerdict:
    own = {field.name: getattr(verdict, field.name) for field in dataclasses.fields(verdict)}
    if kept == 1:
        return AnimateVerdict(**own, first_frame=kept)
    graded = PARTIAL * kept if verdict.exact else verdict.graded * kept
    faults = "the first frame is not the picture" + ("" if verdict.exact else f"; {verdict.reason}")
    return AnimateVerdict(**own | {"exact": False, "graded": graded, "reason": faults}, first_frame=kept)


def _requirement(rng: np.random.Generator, category: str) -> MotionRequirement:
    """A random requirement; every colour is named, and two objects differ in both shape and colour or in one of them."""
    first, second = pick(rng, PAIRS)
    straight = Motion("straight", pick(rng, tuple(DIRECTIONS)))
    alone = {
        "direction": straight,
        "speed": dataclasses.replace(straight, pace=pick(rng, [pace for pace in PACES if pace])),
        "wall": dataclasses.replace(straight, course=pick(rng, ("bounce", "stop"))),
    }
    if category in alone:
        return MotionRequirement(category, (Actor(first, alone[category]),))
    if rng.random() < 0.5:  # alike in one of the two, so that the text must name the other
        second = Wanted(first.shape, second.colour) if rng.random() < 0.5 else Wanted(second.shape, first.colour)
    motions = {
        "meeting": (dataclasses.replace(straight, course="meet"), Motion("meet", OPPOSITE_WAY[straight.direction])),
        "one_of_two": (straight, Motion("still")),
        "two_object": (straight, Motion("straight", pick(rng, tuple(DIRECTIONS)))),
    }[category]
    return MotionRequirement(category, (Actor(first, motions[0]), Actor(second, motions[1])))


@dataclasses.dataclass(frozen=True)
class _Shown:
    """The picture of a prompt; equal where the scenes are."""

    scene: MovingScene

    def __call__(self) -> np.ndarray:
        return render(self.scene, frames=1)[0]


def _the(what: Wanted) -> str:
    return f"the {what.colour} {what.shape}" if what.colour else f"the {what.shape}"
