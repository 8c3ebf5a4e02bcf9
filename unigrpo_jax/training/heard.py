"""Sound that is seen: how a person who looks at samples finds out what is to be heard in one, and when.

A picture of a sound has time from left to right.  Its top are ticks where the sound begins; below lies the spectrogram, low
frequencies at the bottom, a row an equal step on the mel scale up to half the rate, from black (`QUIET` decibels of full
scale, or less) to pale yellow (0, a sine as loud as can be).  Of stereo the louder side counts.
"""

import dataclasses
import itertools
from typing import Any

import numpy as np

from unigrpo_jax.rewards.sound import decibels
from unigrpo_jax.sound_files import MOST_RATE

ROWS, ROW, COLUMN, TICKS = 32, 2, 4, 8  # of a picture: rows; pixels of a row, of a column, of the ticks' height
QUIET = -80.0
WINDOW = 0.04  # seconds of a column's spectrum, to a power of two of samples
RISE, BEFORE = 6.0, 5  # a sound begins where it is so many decibels louder than in each of so many hundredths before
MOST_SAID = 8
MOST_ONSETS = 10_000  # that are read again
_COLOURS = np.array([(0, 0, 0), (70, 20, 110), (190, 50, 90), (245, 140, 40), (252, 250, 190)], float)
_PAPER, _TICK = 236, 32  # grey levels


@dataclasses.dataclass(frozen=True)
class Heard:
    """What is known of a sound beside its file.

    Attributes:
      rate: samples per second as it was made; its file may have more.
      onsets: when it begins, in seconds, in order.
    """

    rate: int
    onsets: tuple[float, ...]

    @classmethod
    def of(cls, samples_SC: np.ndarray, rate: int) -> "Heard":
        """That of a sound, float32 [S, channels], finite."""
        return cls(rate=rate, onsets=tuple(round(float(t), 2) for t in onsets(samples_SC, rate)))

    @classmethod
    def from_words(cls, words: dict[str, Any]) -> "Heard":
        """From what `words` gave."""
        return cls(rate=words["rate"], onsets=tuple(words["onsets"]))

    @property
    def words(self) -> dict[str, Any]:
        """JSON values."""
        return {"rate": self.rate, "onsets": list(self.onsets)}

    @property
    def caption(self) -> str:
        """Of its picture, in words: when it begins, and how high the picture reaches."""
        times = ", ".join(f"{t:g}" for t in self.onsets[:MOST_SAID]) + (", ..." if len(self.onsets) > MOST_SAID else "")
        found = f"Onsets at {times} s" if times else "No onsets"
        return f"{found}; spectrogram up to {self.rate / 2000:g} kHz."


def are_words(value: Any) -> bool:
    """Whether a value is what `Heard.words` gives."""
    if not isinstance(value, dict) or value.keys() != {"rate", "onsets"} or type(value["rate"]) is not int:
        return False
    times = value["onsets"]
    if not 0 < value["rate"] <= MOST_RATE or not isinstance(times, list) or len(times) > MOST_ONSETS:
        return False
    return all(type(t) in (int, float) and 0 <= t < 10**6 for t in times)


def onsets(samples_SC: np.ndarray, rate: float) -> np.ndarray:
    """When a sound begins, in seconds, to a hundredth: where it gets louder by `RISE`, but not at its very start.

    A sound that goes on rising begins once; one that is there from the start has not begun.
    """
    begins, level = decibels(samples_SC.astype(np.float64), rate)
    padded = np.concatenate([np.repeat(level[:1], BEFORE), level])
    loudest = np.lib.stride_tricks.sliding_window_view(padded[:-1], BEFORE).max(1)
    rises = np.flatnonzero(level >= loudest + RISE)
    apart = [b for a, b in itertools.pairwise([-BEFORE - 1, *rises]) if b - a > BEFORE]
    return begins[apart]


def spectrogram(samples_SC: np.ndarray, rate: float, columns: int) -> np.ndarray:
    """Decibels [ROWS, columns], the lowest row first: in each band the loudest frequency, a full sine's 0."""
    window = 2 ** max(5, round(np.log2(WINDOW * rate)))
    middles = np.floor((np.arange(columns) + 0.5) * len(samples_SC) / columns).astype(int)
    padded = np.pad(samples_SC.astype(np.float64), ((window // 2, window), (0, 0)), "symmetric")
    seen = padded[middles[:, None] + np.arange(window)] * np.hanning(window + 1)[:-1, None]
    size = 4 * window  # so that each of the low bands has a frequency
    loudness = np.abs(np.fft.rfft(seen, size, axis=1)).max(-1) / (window / 4)
    mels = np.linspace(0, 2595 * np.log10(1 + rate / 2 / 700), ROWS + 1)[:-1]
    first = np.ceil(700 * (10 ** (mels / 2595) - 1) * size / rate).astype(int)
    bands = np.maximum.reduceat(loudness, first, axis=1)
    return 20 * np.log10(np.maximum(bands, 10 ** (QUIET / 20))).T


def picture(samples_SC: np.ndarray, rate: float, width: int) -> np.ndarray:
    """The picture of a sound, float32 [S, channels], finite: uint8 [TICKS + ROW * ROWS, width, 3]."""
    level = 1 - spectrogram(samples_SC, rate, -(-width // COLUMN))[::-1] / QUIET
    place = np.linspace(0, 1, len(_COLOURS))
    colours = np.stack([np.interp(level, place, own) for own in _COLOURS.T], -1)
    drawn = np.rint(colours).astype(np.uint8).repeat(ROW, axis=0).repeat(COLUMN, axis=1)[:, :width]
    ticks = np.full((TICKS, width, 3), _PAPER, np.uint8)
    for time in onsets(samples_SC, rate):
        left = int(time * rate / len(samples_SC) * width)
        ticks[:, left : left + 2] = _TICK
    return np.concatenate([ticks, drawn])
