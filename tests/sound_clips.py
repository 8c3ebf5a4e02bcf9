"""Clips with sound for the tests of the world of sound: scenes of every kind, and what damages or falsifies their sound.

    python -m tests.sound_clips 24

prints which share of clean clips with sound the judge gets wrong under each damage, with that many requirements of each
category, and which share of the sounds with a fault it takes for right.
"""

import dataclasses
import sys

import numpy as np

from tests.motion_clips import noisy
from unigrpo_jax.worlds.motion.drawing import render
from unigrpo_jax.worlds.motion.reading import Frame, read_clips
from unigrpo_jax.worlds.motion.requirement import MotionRequirement
from unigrpo_jax.worlds.motion.scene import FRAMES, ROOM, MovingScene
from unigrpo_jax.worlds.sound.hearing import hear
from unigrpo_jax.worlds.sound.judge import judge
from unigrpo_jax.worlds.sound.prompts import CATEGORIES, requirements
from unigrpo_jax.worlds.sound.staging import stage
from unigrpo_jax.worlds.sound.synthesis import FRAME, PITCHES, RATE, Click, Score, play, score, sound


@dataclasses.dataclass(frozen=True)
class Staged:
    """N requirements, the scenes that fulfil them, their clips and sounds, and what is read in the clips."""

    required: list[MotionRequirement]
    scenes: list[MovingScene]
    clips: np.ndarray
    sounds: np.ndarray
    frames: list[tuple[Frame, ...]]

    def take(self, rows) -> "Staged":
        """Those at these positions."""
        rows, pick = list(rows), lambda values: [values[i] for i in rows]
        return Staged(pick(self.required), pick(self.scenes), self.clips[rows], self.sounds[rows], pick(self.frames))


def staged(each: int, seed: int = 0) -> Staged:
    """Of each category `each` requirements at even distances, or all of them where there are fewer."""
    rng, chosen = np.random.default_rng(seed), []
    for category in CATEGORIES:
        every = list(requirements(category))
        chosen += [every[i] for i in np.unique(np.linspace(0, len(every) - 1, each).astype(int))]
    scenes = [stage(rng, requirement) for requirement in chosen]
    clips = np.stack([render(scene) for scene in scenes])
    return Staged(chosen, scenes, clips, np.stack([sound(scene) for scene in scenes]), read_clips(clips))


def verdicts(made: Staged, clips: np.ndarray | None = None, sounds: np.ndarray | None = None):
    """What the judge says, of other clips or sounds where they are given."""
    frames = made.frames if clips is None else read_clips(clips)
    heard = hear(made.sounds if sounds is None else sounds, RATE, FRAMES)
    return [judge(*seen, required.metadata()) for *seen, required in zip(frames, heard, made.required, strict=True)]


def hissing(sounds: np.ndarray, std: float, seed: int = 0) -> np.ndarray:
    """White noise with a standard deviation of so much."""
    return (sounds + np.random.default_rng(seed).normal(0, std, sounds.shape)).astype(np.float32)


def louder(sounds: np.ndarray, factor: float) -> np.ndarray:
    return sounds * np.float32(factor)


def rounded(sounds: np.ndarray, step: float) -> np.ndarray:
    """To multiples of `step`."""
    return (np.round(sounds / step) * step).astype(np.float32)


def shifted(sounds: np.ndarray, frames: float) -> np.ndarray:
    """Later by so many frames, after silence; earlier where it is negative."""
    by, out = round(FRAME * frames), np.zeros_like(sounds)
    if by >= 0:
        out[:, by:] = sounds[:, : sounds.shape[1] - by]
    else:
        out[:, :by] = sounds[:, -by:]
    return out


def another_pitch(music: Score) -> Score:
    """The first that sounds has a pitch of a shape that is not there; where none sounds, one does."""
    pitches, sounding = music.pitches.copy(), music.sounding.copy()
    who = int(sounding.any(0).argmax())
    pitches[who] = next(pitch for pitch in PITCHES.values() if pitch not in music.pitches)
    sounding[:, who] |= not sounding.any()
    return dataclasses.replace(music, pitches=pitches, sounding=sounding)


def without_a_click(music: Score) -> Score:
    return dataclasses.replace(music, clicks=music.clicks[1:])


def with_a_click_more(music: Score) -> Score:
    """At the block that is furthest from all others."""
    blocks = range(len(music.sounding))
    block = max(blocks, key=lambda b: min((abs(b - c.block) for c in music.clicks), default=b == 9))
    return dataclasses.replace(music, clicks=(*music.clicks, Click(block, float(music.x[block, 0]))))


def with_late_clicks(music: Score) -> Score:
    """By two frames."""
    return dataclasses.replace(music, clicks=tuple(dataclasses.replace(c, block=c.block + 4) for c in music.clicks))


def swapped(music: Score) -> Score:
    """Left and right."""
    clicks = tuple(dataclasses.replace(c, x=ROOM - c.x) for c in music.clicks)
    return dataclasses.replace(music, x=ROOM - music.x, clicks=clicks)


def silenced(music: Score) -> Score:
    return dataclasses.replace(music, sounding=np.zeros_like(music.sounding), clicks=())


def clicks(music: Score) -> bool:
    return bool(music.clicks)


def moves(music: Score) -> bool:
    return bool(music.sounding.any())


def is_aside(music: Score) -> bool:
    """Something is heard 3 pixels or more off the middle."""
    return moves(music) and np.abs(music.x - ROOM / 2)[music.sounding].max() >= 3


# What makes a sound wrong -> of which scores it does.
FAULTS = {silenced: moves, another_pitch: lambda music: True, without_a_click: clicks, with_a_click_more: lambda music: True,
          with_late_clicks: clicks, swapped: is_aside}  # fmt: skip


def falsified(made: Staged, fault) -> tuple[Staged, np.ndarray]:
    """Those that the fault makes wrong, and their sounds with it."""
    music = [score(scene) for scene in made.scenes]
    rows = [i for i, own in enumerate(music) if FAULTS[fault](own)]
    return made.take(rows), np.stack([play(fault(music[i])) for i in rows])


LEVELS = {hissing: (0.04, 0.06, 0.07, 0.075, 0.08), louder: (0.4, 0.55, 0.7, 1.5, 1.9, 2.2),
          rounded: (0.05, 0.1, 0.15, 0.2), shifted: (-1.0, -0.5, -0.25, 0.25, 0.5, 1.0, 2.0)}  # fmt: skip

if __name__ == "__main__":
    made = staged(int(sys.argv[1]))
    wrong = lambda found: f"{100 * np.mean([not v.exact for v in found]):.1f} % of {len(found)} wrong"
    print(f"clean: {wrong(verdicts(made))}", flush=True)
    for std in (10, 20, 25, 30):
        print(f"noise of the picture {std}: {wrong(verdicts(made, clips=noisy(made.clips, std)))}", flush=True)
    for damage, levels in LEVELS.items():
        for level in levels:
            print(f"{damage.__name__} {level}: {wrong(verdicts(made, sounds=damage(made.sounds, level)))}", flush=True)
    for fault in FAULTS:
        some, sounds = falsified(made, fault)
        print(f"{fault.__name__}: {wrong(verdicts(some, sounds=sounds))}", flush=True)
