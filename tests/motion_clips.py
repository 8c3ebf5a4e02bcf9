"""Clips for the tests of the worlds of motion: scenes of every kind, and what noise, blur and compression make of clips.

    python -m tests.motion_clips 24

prints which share of clean clips the judge gets wrong under each, with that many requirements of each category.
"""

import sys

import numpy as np

from unigrpo_jax.worlds.motion.drawing import render
from unigrpo_jax.worlds.motion.judge import judge_clips
from unigrpo_jax.worlds.motion.prompts import requirements
from unigrpo_jax.worlds.motion.requirement import CATEGORIES, MotionRequirement
from unigrpo_jax.worlds.motion.scene import MovingScene
from unigrpo_jax.worlds.motion.staging import stage


def staged(each: int, seed: int = 0) -> tuple[list[MotionRequirement], list[MovingScene], np.ndarray]:
    """Of each category `each` requirements at even distances (all of them where there are fewer), their scenes and clips."""
    rng = np.random.default_rng(seed)
    chosen = []
    for category in CATEGORIES:
        every = list(requirements(category))
        chosen += [every[i] for i in np.unique(np.linspace(0, len(every) - 1, each).astype(int))]
    scenes = [stage(rng, requirement) for requirement in chosen]
    return chosen, scenes, np.stack([render(scene) for scene in scenes])


def as_bytes(clips: np.ndarray) -> np.ndarray:
    return np.clip(np.round(clips), 0, 255).astype(np.uint8)


def noisy(clips: np.ndarray, std: float, seed: int = 0) -> np.ndarray:
    """Gaussian noise with the given standard deviation, of 255."""
    return as_bytes(clips + np.random.default_rng(seed).normal(0, std, clips.shape))


def blurred(clips: np.ndarray, std: float) -> np.ndarray:
    """A Gaussian blur over rows and columns, in pixels."""
    apart = np.arange(24)[:, None] - np.arange(24)
    weights = np.exp(-(apart**2) / (2 * std**2))
    weights /= weights.sum(1, keepdims=True)
    return as_bytes(np.einsum("yv,bfvwc,xw->bfyxc", weights, clips.astype(float), weights, optimize=True))


def quantised(clips: np.ndarray, step: float) -> np.ndarray:
    """Each 8 x 8 block's cosine transform rounded to multiples of `step`, as JPEG does, all frequencies alike."""
    k, n = np.indices((8, 8))
    cosines = np.cos(np.pi * (2 * n + 1) * k / 16) * np.where(k == 0, np.sqrt(1 / 8), np.sqrt(1 / 4))
    blocks = clips.astype(float).reshape(*clips.shape[:2], 3, 8, 3, 8, 3)
    waves = np.einsum("ky,bfuyvxc,lx->bfukvlc", cosines, blocks, cosines, optimize=True)
    back = np.einsum("ky,bfukvlc,lx->bfuyvxc", cosines, np.round(waves / step) * step, cosines, optimize=True)
    return as_bytes(back.reshape(clips.shape))


LEVELS = {noisy: (10, 20, 25, 30, 40), blurred: (0.4, 0.5, 0.6, 0.65, 0.7), quantised: (40, 60, 80, 100, 120)}

if __name__ == "__main__":
    required, _, clean = staged(int(sys.argv[1]))
    metadata = [r.metadata() for r in required]
    print(f"{len(clean)} clips, clean: {100 * np.mean([not v.exact for v in judge_clips(clean, metadata)]):.1f} % wrong")
    for damage, levels in LEVELS.items():
        for level in levels:
            wrong = np.mean([not v.exact for v in judge_clips(damage(clean, level), metadata)])
            print(f"{damage.__name__} {level}: {100 * wrong:.1f} % wrong", flush=True)
