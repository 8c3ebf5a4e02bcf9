"""Rewards of the sound of clips that need no model: `onsets`, `silence` and `clipping`.  None looks at the prompt.

A sound is float32 [S, channels] in [-1, 1]; what is not finite makes every number of it NaN, so not judged.

    onsets      synchrony      whether sound begins when something in the picture does
    silence     not_silent     the share of the sound that is not silent
    clipping    not_clipped    the share of the samples that are not cut off

Onsets: the energy of every hundredth of a second is taken in decibels, no less than `FLOOR`.  Its rises, summed over the
time of a frame around each step from frame to frame, are the envelope a of the sound; the mean change of the pixels in each
step is the picture's, m.  With r(d) the correlation of a_{t + d} and m_t over those t at which both are known,

    synchrony = max over |d| <= D of r(d) (1 - |d| / (D + 1)),    at least 0, with D half a second in frames

which is 1 where sounds begin exactly with motions and 0 where they have nothing to do with each other.  A sound without any
rise, and a picture that changes evenly, or not, have 0.
"""

import itertools

import numpy as np

from unigrpo_jax.config import RunConfig, require
from unigrpo_jax.rewards.protocol import RewardBatch, RewardFunction

HOP = 0.01  # seconds
FLOOR = -60.0  # decibels of full scale: what is less loud is silent
REACH = 0.5  # seconds that sound and picture may be apart
LEAST_STEPS = 4  # of frames that overlap, to correlate
RUN = 3  # samples in a row at the limit are cut off; a peak may touch it
LIMIT = 0.999


def onsets(argument: str, config: RunConfig) -> RewardFunction:
    """The reward `onsets`."""
    return _alone("onsets", argument, synchrony)


def silence(argument: str, config: RunConfig) -> RewardFunction:
    """The reward `silence`."""
    return _alone("silence", argument, not_silent)


def clipping(argument: str, config: RunConfig) -> RewardFunction:
    """The reward `clipping`."""
    return _alone("clipping", argument, not_clipped)


def _alone(name: str, argument: str, reward: RewardFunction) -> RewardFunction:
    require(not argument, f"rewards: {name}:{argument}: {name} takes no argument; leave it out.")
    return reward


def synchrony(batch: RewardBatch) -> dict[str, np.ndarray]:
    """Synchrony, float64 [B], by the formula above."""
    rows = zip(_finite(batch.audio), batch.videos, strict=True)
    return {"synchrony": np.array([_synchrony(*row, batch.fps, batch.rate) for row in rows])}


def not_silent(batch: RewardBatch) -> dict[str, np.ndarray]:
    """The share of hundredths of a second that are louder than `FLOOR`, float64 [B]."""
    return {"not_silent": np.array([np.nan if x is None else (decibels(x, batch.rate)[1] > FLOOR).mean()
                                    for x in _finite(batch.audio)])}  # fmt: skip


def not_clipped(batch: RewardBatch) -> dict[str, np.ndarray]:
    """1 less the share of samples, of all channels, in runs of `RUN` or more beyond +`LIMIT` or -`LIMIT`: float64 [B]."""
    return {"not_clipped": np.array([np.nan if x is None else 1 - _cut_off(x) for x in _finite(batch.audio)])}


def _finite(sounds: np.ndarray) -> list[np.ndarray | None]:
    """Each sound in float64, None where not all of it is finite."""
    return [x.astype(np.float64) if np.isfinite(x).all() else None for x in sounds]


def _synchrony(samples: np.ndarray | None, frames: np.ndarray, fps: float, rate: float) -> float:
    if samples is None:
        return np.nan
    steps = len(frames) - 1
    changes = np.array([np.abs(np.subtract(b, a, dtype=np.float32)).mean() for a, b in itertools.pairwise(frames)])
    begins, level = decibels(samples, rate)
    rises = np.maximum(np.diff(level, prepend=level[:1]), 0)
    # Step t, from frame t to the next, is seen from (t + 1) / fps on: what begins within half a frame of that belongs to it.
    step = np.floor(begins * fps + 0.5).astype(int) - 1
    known = (step >= 0) & (step < steps)
    sounds = np.bincount(step[known], rises[known], minlength=steps)
    reach = int(REACH * fps)
    best = 0.0
    for lag in range(-reach, reach + 1):
        own, other = sounds[max(lag, 0) : steps + min(lag, 0)], changes[max(-lag, 0) : steps - max(lag, 0)]
        if len(own) >= LEAST_STEPS and own.std() > 1e-9 and other.std() > 1e-9:
            best = max(best, float(np.corrcoef(own, other)[0, 1]) * (1 - abs(lag) / (reach + 1)))
    return best


def decibels(samples: np.ndarray, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """When each hop begins, in seconds, and how loud all channels are, in decibels of full scale, no less than `FLOOR`."""
    power = np.square(samples).mean(1)
    edges = np.arange(0, len(power), max(HOP * rate, 1)).astype(int)
    mean = np.add.reduceat(power, edges) / np.diff(edges, append=len(power))
    return edges / rate, 10 * np.log10(np.maximum(mean, 10 ** (FLOOR / 10)))


def _cut_off(samples: np.ndarray) -> float:
    """The share of samples in runs at the limit."""
    cut = 0
    for at_limit in (samples >= LIMIT, samples <= -LIMIT):
        for channel in at_limit.T:
            ends = np.flatnonzero(np.diff(np.concatenate([[0], channel.astype(np.int8), [0]])))
            lengths = ends[1::2] - ends[::2]
            cut += int(lengths[lengths >= RUN].sum())
    return cut / samples.size
