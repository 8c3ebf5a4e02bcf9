"""Sound in files: WAV (PCM of 16 bits) is written, WAV of 8 to 32 bits is read.

A sound is float32 [S, channels] in [-1, 1], mono or stereo, with a number of samples per second.
"""

import io
import pathlib
import wave
from collections.abc import Callable
from typing import Any

import numpy as np

from unigrpo_jax.config import ConfigError, require
from unigrpo_jax.whole_files import write_whole

MOST_RATE = 384_000  # samples per second
MOST_NUMBERS = 2**28  # of a file: samples times channels
_STEPS = 2**15  # from 0 to 1


def check_sound(samples_SC: np.ndarray, rate: int) -> None:
    """ValueError where it is no sound: not float32, none at all, not finite, of more channels, or without a rate."""
    if samples_SC.dtype != np.float32 or samples_SC.ndim != 2 or samples_SC.shape[1] not in (1, 2) or not samples_SC.size:
        raise ValueError(f"a sound is float32 [S, 1] or [S, 2], not {samples_SC.dtype} {list(samples_SC.shape)}")
    if wrong := np.count_nonzero(~np.isfinite(samples_SC)):
        raise ValueError(f"a sound is finite, but {wrong} of {samples_SC.size} numbers are not")
    if not 1 <= rate <= MOST_RATE or int(rate) != rate:
        raise ValueError(f"a sound has 1 to {MOST_RATE} samples per second, a whole number, not {rate}")


def audible(samples_SC: np.ndarray) -> np.ndarray:
    """The sound with silence in the place of numbers that are not finite."""
    return np.nan_to_num(samples_SC, posinf=0, neginf=0)


def resampled(samples_SC: np.ndarray, rate: float, other: float) -> np.ndarray:
    """The sound at another number of samples per second: the same frequencies, none above half the lower of both rates.

    It is as long, to half a sample; beyond its ends it is taken as mirrored.  float32 [round(S other / rate), channels].
    """
    if rate == other:
        return samples_SC
    count, wanted = len(samples_SC), max(1, round(len(samples_SC) * other / rate))
    spectrum = np.fft.rfft(np.concatenate([samples_SC, samples_SC[::-1]]).astype(np.float64), axis=0)
    again = np.fft.irfft(spectrum[: wanted + 1], 2 * wanted, axis=0) * (wanted / count)
    return again[:wanted].astype(np.float32)


def encode(samples_SC: np.ndarray, rate: int) -> bytes:
    """The WAV file of a sound, rounded to 16 bits; what is beyond [-1, 1] is clipped.  ValueError as `check_sound`."""
    check_sound(samples_SC, rate)
    whole = np.clip(np.rint(samples_SC * np.float32(_STEPS)), -_STEPS, _STEPS - 1).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(whole.shape[1])
        file.setsampwidth(2)
        file.setframerate(int(rate))
        file.writeframes(whole.tobytes())
    return buffer.getvalue()


def save_sound(path: pathlib.Path, samples_SC: np.ndarray, rate: int) -> None:
    """Writes a WAV file, whole or not at all; ConfigError where the name has another suffix, ValueError as `encode`."""
    require(path.suffix.lower() == ".wav", f"{path} cannot hold a sound; give a name that ends in .wav.")
    write_whole(path, encode(samples_SC, rate))


def read_sound(path: pathlib.Path) -> tuple[np.ndarray, int]:
    """The samples of a WAV file, float32 [S, channels] in [-1, 1), and how many there are per second.

    ConfigError where there is no such file, it is no WAV file of whole numbers, is cut short, is neither mono nor stereo, or
    holds more than MOST_NUMBERS.
    """
    return _opened(path, lambda file: (_samples(file), file.getframerate()))


def check_sound_file(path: pathlib.Path) -> None:
    """ConfigError where the head of a file, which alone is read, is not that of a sound that `read_sound` takes."""
    _opened(path, _check_head)


def _opened(path: pathlib.Path, found: Callable[[wave.Wave_read], Any]) -> Any:
    """What `found` finds in a WAV file; whatever it raises becomes a ConfigError."""
    try:
        with open(path, "rb") as data, wave.open(data) as file:
            return found(file)
    except FileNotFoundError:
        raise ConfigError(f"there is no sound {path}; give an existing file.") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); give a WAV file.") from None
    except Exception as error:  # a broken header makes `wave` raise nearly anything
        words = str(error) or "it ends in its header"
        raise ConfigError(f"{path} is not a sound that can be read ({words}); give a WAV file, mono or stereo.") from None


def _check_head(file: wave.Wave_read) -> None:
    channels, width, rate, count = file.getparams()[:4]
    if channels not in (1, 2):
        raise ValueError(f"it has {channels} channels: `ffmpeg -i IN -ac 2 OUT.wav` makes two of them")
    if not 1 <= rate <= MOST_RATE or not 1 <= width <= 4:
        raise ValueError(f"it has {rate} samples per second of {8 * width} bits each")
    if count * channels > MOST_NUMBERS:
        raise ValueError(f"it says that it holds more than {MOST_NUMBERS} numbers")


def _samples(file: wave.Wave_read) -> np.ndarray:
    _check_head(file)
    channels, width, _, count = file.getparams()[:4]
    data = file.readframes(count)
    if not count or len(data) != count * channels * width:
        raise ValueError(f"it says that it holds {count} samples, but there are {len(data) // (channels * width)}")
    if width == 1:  # which alone has no sign
        whole = np.frombuffer(data, np.uint8).astype(np.int32) - 128
    else:
        wide = np.zeros((count * channels, 4), np.uint8)  # little-endian, from its largest byte down
        wide[:, 4 - width :] = np.frombuffer(data, np.uint8).reshape(-1, width)
        whole = wide.view("<i4")[:, 0] >> 8 * (4 - width)
    return (whole.reshape(count, channels) / 2.0 ** (8 * width - 1)).astype(np.float32)
