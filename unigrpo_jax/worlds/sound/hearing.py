"""Hears sounds: which of the four pitches are in each frame and from where, which clicks there are and when, what is left.

Each block is taken apart by least squares into a cosine and a sine of each pitch, so that the phase of a tone does not
matter; in 64 samples a tone has whole cycles, and the eight are orthogonal.  What is left holds the clicks.  The loudest
stretch of `SPAN` samples of it is a click where its energy is at least `LEAST_CLICK` and at least `SHORT` of the energy in
the `AROUND` samples around it; then it is taken out, else passed by, and so on, `MOST` stretches in all.  The rest is noise.
Samples that are not finite are silence with endless noise.
"""

import dataclasses

import numpy as np

from unigrpo_jax.worlds.sound.synthesis import BLOCK, BURST, CLICK, FRAME, PITCHES, RATE, TONE

SPAN = 8
AROUND = BLOCK
SHORT = 0.5
LEAST_CLICK = 0.18 * CLICK**2 * float(np.square(BURST).sum())
MOST = 8

_FEW = 8  # samples before and after a click that are taken out with it
_MEDIAN = 0.455  # of the square of a normal number, whose mean is 1
_OMEGA = np.pi * np.array(list(PITCHES.values()))[:, None] * (np.arange(BLOCK) + 0.5) / BLOCK
_WAVES = np.concatenate([np.cos(_OMEGA), np.sin(_OMEGA)]) * np.sqrt(2 / BLOCK)  # [8, BLOCK], orthonormal


@dataclasses.dataclass(frozen=True)
class HeardClick:
    """A click: when, in frames, and from where, an angle from 0 (left) to pi / 2 (right)."""

    time: float
    angle: float


@dataclasses.dataclass(frozen=True)
class Heard:
    """What one sound of F frames holds.

    Attributes:
      levels: float64 [F, 4], how loud each of `PITCHES` is, in terms of a tone as it should be.
      angles: float64 [F, 4], from where, 0 (left) to pi / 2 (right).
      clicks: in the order of time.
      noise: float64 [F], the root mean square of what is neither.
    """

    levels: np.ndarray
    angles: np.ndarray
    clicks: tuple[HeardClick, ...]
    noise: np.ndarray


def hear(sounds: np.ndarray, rate: float, frames: int) -> list[Heard]:
    """What B sounds hold, float32 [B, `FRAME` frames, 2] in `RATE` samples a second; ValueError where they are others."""
    if sounds.dtype != np.float32 or sounds.shape[1:] != (FRAME * frames, 2) or rate != RATE:
        raise ValueError(f"sound hearing: a sound of {frames} frames is float32 [B, {FRAME * frames}, 2] in {RATE} samples "
                         f"a second, got {sounds.dtype} {list(sounds.shape)} in {rate:g}")  # fmt: skip
    return [_hear(samples.astype(np.float64)) for samples in sounds]


def _hear(samples: np.ndarray) -> Heard:
    finite = np.isfinite(samples)
    blocks = np.where(finite, samples, 0).reshape(-1, BLOCK, 2)
    parts = np.einsum("ws,ksc->kwc", _WAVES, blocks)  # [K, 8, 2]
    rest = (blocks - np.einsum("ws,kwc->ksc", _WAVES, parts)).reshape(-1, 2)
    energy = np.square(parts).reshape(-1, 2, 2, len(PITCHES), 2).sum(2).mean(1)  # [F, 4, 2], of a block
    clicks, rest = _clicks(rest)
    return Heard(
        np.sqrt(energy.sum(-1) / (TONE**2 * BLOCK / 2)),
        np.arctan2(np.sqrt(energy[..., 1]), np.sqrt(energy[..., 0])),
        tuple(sorted(clicks, key=lambda click: click.time)),
        np.sqrt(np.where(finite, np.square(rest), np.inf).reshape(-1, FRAME * 2).mean(1)),
    )


def _clicks(rest: np.ndarray) -> tuple[list[HeardClick], np.ndarray]:
    """The clicks in what is left beside tones, [S, 2], and what is left then."""
    floor = SPAN * np.median(np.square(rest), axis=0) / _MEDIAN
    rest, found = rest.copy(), []
    passed = np.zeros(len(rest), bool)
    for _ in range(MOST):
        energy = _sums(np.square(rest).sum(-1) * ~passed, SPAN)
        start = int(energy.argmax())
        if not energy[start] >= LEAST_CLICK:
            break
        middle = start + SPAN // 2
        whole = np.square(rest[max(0, middle - AROUND // 2) : middle + AROUND // 2]).sum()
        here = slice(max(0, start - _FEW), start + SPAN + _FEW)
        if energy[start] < SHORT * whole:
            passed[here] = True
            continue
        sides = np.sqrt(np.maximum(np.square(rest[start : start + SPAN]).sum(0) - floor, 0))
        found.append(HeardClick(start / FRAME, float(np.arctan2(sides[1], sides[0]))))
        rest[here] = 0
    return found, rest


def _sums(values: np.ndarray, span: int) -> np.ndarray:
    """Sums of `span` values from each place on, as many as there are places for them."""
    sums = np.concatenate([[0.0], values.cumsum()])
    return sums[span:] - sums[:-span]
