"""What a base model of the world of sound learns from: prompts with clips and sounds, of which a share is faulty.

A fault is another clip, or another sound, as sharp as any, never noise, so that a model that learns from these examples has
right and wrong modes to choose between, in picture, sound, and what binds them:

    way        an object moves another way than asked for, and is heard as it moves
    pitch      an object sounds as another shape would; one at rest, where none moves, sounds as its own
    late       a click comes `LATE` blocks after what is met
    missing    a click is not there
    swapped    left and right are exchanged, where something is heard off the middle by `LEAST_OFF` pixels

All objects stand on whole pixels (`motion.staging`).  Where a fault cannot be made, as a late click where none is asked
for, another one of those with a share is, so that the share of faulty examples is the same for all prompts.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from unigrpo_jax.worlds.motion.drawing import render
from unigrpo_jax.worlds.motion.requirement import from_metadata
from unigrpo_jax.worlds.motion.scene import ROOM, MovingScene
from unigrpo_jax.worlds.motion.supervised import wrong_way
from unigrpo_jax.worlds.prompt import Prompt
from unigrpo_jax.worlds.shapes.supervised import index, pick
from unigrpo_jax.worlds.sound.staging import stage, told_apart
from unigrpo_jax.worlds.sound.synthesis import PITCHES, Score, play, score

FAULTS = {"way": 0.10, "pitch": 0.08, "late": 0.08, "missing": 0.06, "swapped": 0.08}
LATE = (4, 5, 6)  # blocks, of which a frame has two
LEAST_OFF = 3.0


@dataclasses.dataclass(frozen=True)
class SoundExample:
    """One example: a prompt, a clip, uint8 [9, 24, 24, 3], its sound, float32 [1152, 2], and the fault, None if right."""

    prompt: Prompt
    clip: np.ndarray
    sound: np.ndarray
    fault: str | None


def example(
    rng: np.random.Generator, prompts: Mapping[str, Sequence[Prompt]], faults: Mapping[str, float] = FAULTS
) -> SoundExample:
    """An example of `shapes_sound`.

    Args:
      rng: where everything random comes from.
      prompts: those of each category, which is drawn uniformly.
      faults: the share of each fault among all examples; their sum is at most 1.
    """
    if unknown := [name for name in faults if name not in FAULTS]:
        raise ValueError(f"sound examples: no fault `{unknown[0]}`; there are {', '.join(FAULTS)}")
    if min(faults.values(), default=0) < 0 or sum(faults.values()) > 1 + 1e-9:
        raise ValueError(f"sound examples: the shares {dict(faults)} are no shares; each is 0 or more, the sum 1 at most")
    prompt = pick(rng, prompts[pick(rng, tuple(prompts))])
    requirement = from_metadata(prompt.metadata)
    scene = stage(rng, requirement, whole=True)
    music = score(scene)
    fault = _fault(rng, scene, music, faults)
    if fault == "way":
        scene = told_apart(functools.partial(wrong_way, rng, scene, requirement, from_picture=False))
        music = score(scene)
    elif fault is not None:
        music = {"pitch": _wrong_pitch, "late": _late, "missing": _missing, "swapped": _swapped}[fault](rng, music)
    return SoundExample(prompt, render(scene), play(music), fault)


def _fault(rng: np.random.Generator, scene: MovingScene, music: Score, faults: Mapping[str, float]) -> str | None:
    if rng.random() >= sum(faults.values()):
        return None
    clicks, off = bool(music.clicks), np.abs(music.x - ROOM / 2)[music.sounding]
    possible = {"way": any(any(m.velocity) for m in scene.movers), "pitch": True, "late": clicks, "missing": clicks,
                "swapped": bool(off.size) and off.max() >= LEAST_OFF}  # fmt: skip
    names = [name for name, share in faults.items() if share > 0 and possible[name]]
    shares = np.array([faults[name] for name in names])
    return names[int(rng.choice(len(names), p=shares / shares.sum()))] if names else None


def _wrong_pitch(rng: np.random.Generator, music: Score) -> Score:
    who = np.flatnonzero(music.sounding.any(0))
    if not len(who):
        sounding = music.sounding.copy()
        sounding[:, index(rng, sounding.shape[1])] = True
        return dataclasses.replace(music, sounding=sounding)
    pitches = music.pitches.copy()
    pitches[pick(rng, who)] = pick(rng, [pitch for pitch in PITCHES.values() if pitch not in music.pitches])
    return dataclasses.replace(music, pitches=pitches)


def _late(rng: np.random.Generator, music: Score) -> Score:
    i = index(rng, len(music.clicks))
    late = dataclasses.replace(music.clicks[i], block=min(music.clicks[i].block + pick(rng, LATE), len(music.sounding) - 1))
    return dataclasses.replace(music, clicks=(*music.clicks[:i], late, *music.clicks[i + 1 :]))


def _missing(rng: np.random.Generator, music: Score) -> Score:
    i = index(rng, len(music.clicks))
    return dataclasses.replace(music, clicks=(*music.clicks[:i], *music.clicks[i + 1 :]))


def _swapped(rng: np.random.Generator, music: Score) -> Score:
    clicks = tuple(dataclasses.replace(click, x=ROOM - click.x) for click in music.clicks)
    return dataclasses.replace(music, x=ROOM - music.x, clicks=clicks)
