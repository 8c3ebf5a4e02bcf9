"""Clips in files: MP4 (H.264, yuv420p) through PyAV, or animated WebP through Pillow; MP4, GIF and WebP are read.

A clip is uint8 [F, height, width, 3] with a number of frames per second.  MP4 needs the extra `video`, which is imported
only when a clip is written or read.  What is written loses a little: yuv420p keeps colours at half the resolution and takes
even sides only, so a side that is odd gets its last row or column twice.

An MP4 may hold a sound (AAC) beside its pictures, as `sound_files` has it: float32 [S, channels] in [-1, 1], mono or stereo.
One with a number of samples per second that AAC does not know is written with the next one that it knows.
"""

import importlib.util
import io
import pathlib
import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from unigrpo_jax.config import ConfigError, require
from unigrpo_jax.picture_files import rgb
from unigrpo_jax.sound_files import MOST_NUMBERS, check_sound, resampled
from unigrpo_jax.whole_files import write_whole

Sound = tuple[np.ndarray, int]  # samples [S, channels], and how many there are per second
KINDS = {"mp4": "video/mp4", "webp": "image/webp"}  # suffix of what is written, and its media type
MOST_PIXELS = 2**28  # of all frames of a file; a small one may unpack to any number
LEAST_FPS, MOST_FPS = 0.1, 240
MISSING_SECONDS = 0.1  # of an animation's frame that says nothing, as browsers have it
WITHOUT_PYAV = "PyAV is not installed: pip install 'unigrpo_jax[video]'"
_QUALITY = {"crf": "18", "preset": "veryfast"}
_BT709, _LIMITED = 1, 1  # numbers of the H.264 standard
AAC_RATES = (7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
_LAYOUTS = ("mono", "stereo")
_AAC_BITS = 96_000  # per second and channel


def has_pyav() -> bool:
    """Whether MP4 can be written and read."""
    return importlib.util.find_spec("av") is not None


def best_kind() -> str:
    """What a clip is written as where nobody says it: "mp4", or "webp" where PyAV is not installed."""
    return "mp4" if has_pyav() else "webp"


def playable(sound: Sound) -> Sound:
    """The sound with a number of samples per second that AAC, and every player, knows: its own, or else the next above."""
    samples, rate = sound
    if rate in AAC_RATES:
        return sound
    other = min((known for known in AAC_RATES[1:] if known > rate), default=AAC_RATES[-1])
    return resampled(samples, rate, other), other


def spread(count: int, most: int) -> np.ndarray:
    """At most `most` of `count` frames: the first, the last, and others evenly between, int; of one alone the first."""
    return np.unique(np.rint(np.linspace(0, count - 1, min(count, most))).astype(int))


def encode(frames_FHWC: np.ndarray, fps: float, kind: str, sound: Sound | None = None) -> bytes:
    """The file of a clip, uint8 [F, H, W, 3], of a kind of `KINDS`, with a sound where there is one.

    A sound is as long as it is; what is beyond [-1, 1] is clipped.  ValueError where it is no such clip or sound, or
    files of that kind have none.
    """
    if frames_FHWC.dtype != np.uint8 or frames_FHWC.ndim != 4 or frames_FHWC.shape[-1] != 3 or not frames_FHWC.size:
        raise ValueError(f"a clip is uint8 [F, H, W, 3], not {frames_FHWC.dtype} {list(frames_FHWC.shape)}")
    if not LEAST_FPS <= fps <= MOST_FPS:
        raise ValueError(f"a clip has {LEAST_FPS} to {MOST_FPS} frames per second, not {fps}")
    if kind == "mp4":
        return _mp4(frames_FHWC, fps, sound)
    if sound is not None:
        raise ValueError("a WebP file has no sound; write an MP4, or the sound as a WAV file")
    return _webp(frames_FHWC, fps)


def save_clip(path: pathlib.Path, frames_FHWC: np.ndarray, fps: float, sound: Sound | None = None) -> None:
    """Writes a clip as its suffix says, .mp4 or .webp, whole or not at all; ValueError as `encode`.

    ConfigError where the suffix is another, or PyAV is not there for an MP4; OSError where it cannot be written.
    """
    kind = path.suffix.lower().removeprefix(".")
    require(kind in KINDS, f"{path} cannot hold a clip; give a name that ends in .mp4 or .webp.")
    require(kind != "mp4" or has_pyav(), f"{path}: {WITHOUT_PYAV}; or give a name that ends in .webp.")
    write_whole(path, encode(frames_FHWC, fps, kind, sound))


def read_clip(path: pathlib.Path) -> tuple[np.ndarray, float]:
    """The frames of an MP4, GIF or WebP file, uint8 [F, H, W, 3], and how many there are per second.

    A frame that an animation shows longer than others stands there as often.  ConfigError where there is no such file, it is
    no clip, or it holds more than MOST_PIXELS.
    """
    return _read(path, _read_mp4, _read_animation)


def read_clip_sound(path: pathlib.Path) -> Sound | None:
    """The sound of an MP4 file, which AAC may leave a little beyond [-1, 1]; None where it has none, as GIF and WebP.

    ConfigError as `read_clip`, and where it is neither mono nor stereo or holds more than MOST_NUMBERS.
    """
    return _read(path, _read_mp4_sound, _no_sound)


def has_sound(path: pathlib.Path) -> bool:
    """Whether a file has a sound, by its head; GIF and WebP have none.  ConfigError as `check_clip`."""
    return _is_mp4(path) and _read(path, _mp4_has_sound, _no_sound)


def _read(path: pathlib.Path, of_mp4: Callable[[pathlib.Path], Any], of_animation: Callable[[pathlib.Path], Any]) -> Any:
    """What one of two readers says of a file, by what it is; whatever a reader raises becomes a ConfigError."""
    is_mp4 = _is_mp4(path)
    try:
        with warnings.catch_warnings(action="ignore"):
            return of_mp4(path) if is_mp4 else of_animation(path)
    except Exception as error:  # a broken file makes decoders raise nearly anything
        words = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ConfigError(f"{path} is not a clip that can be read ({words}); give an MP4, GIF or WebP file.") from None


def check_clip(path: pathlib.Path) -> None:
    """ConfigError where the head of a file, which alone is read, is not that of a clip that `read_clip` takes here."""
    _is_mp4(path)


def _is_mp4(path: pathlib.Path) -> bool:
    """Whether a file is an MP4 by its first bytes, else a GIF or WebP; ConfigError where it is none, or PyAV is missing."""
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except FileNotFoundError:
        raise ConfigError(f"there is no clip {path}; give an existing file.") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); give an MP4, GIF or WebP file.") from None
    is_mp4, is_webp = head[4:8] == b"ftyp", head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    why = "its first bytes are those of another kind" if head else "it is empty"
    require(is_mp4 or is_webp or head[:4] == b"GIF8",
            f"{path} is not a clip that can be read ({why}); give an MP4, GIF or WebP file.")  # fmt: skip
    require(not is_mp4 or has_pyav(), f"{path}: {WITHOUT_PYAV}; or give a GIF or WebP file.")
    return is_mp4


# --- MP4 ----------------------------------------------------------------------------------------------------------------


def _mp4(frames: np.ndarray, fps: float, sound: Sound | None) -> bytes:
    import av

    if sound is not None:
        check_sound(*sound)
        sound = playable(sound)
    odd = [(0, 0), *((0, side % 2) for side in frames.shape[1:3]), (0, 0)]
    frames, buffer = np.pad(frames, odd, "edge"), io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=_QUALITY)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        context = stream.codec_context
        context.thread_count = 1  # the same bytes on every machine; many clips are encoded beside each other
        # How its colours are meant: players guess otherwise, and differ.
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED
        voice = None if sound is None else _sound_stream(file, sound)  # before any packet, for the file's head
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture = picture.reformat(format="yuv420p", dst_colorspace=_BT709, dst_color_range=_LIMITED)
            file.mux(stream.encode(picture))
        file.mux(stream.encode())
        if voice is not None:
            file.mux(voice.encode(_sound_frame(sound)))
            file.mux(voice.encode())
    return buffer.getvalue()


def _sound_stream(file, sound: Sound):
    stream = file.add_stream("aac", rate=int(sound[1]))
    channels = sound[0].shape[1]
    stream.codec_context.layout, stream.codec_context.bit_rate = _LAYOUTS[channels - 1], channels * _AAC_BITS
    return stream


def _sound_frame(sound: Sound):
    import av

    samples, rate = sound
    planes = np.ascontiguousarray(np.clip(samples, -1, 1).T)
    frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=_LAYOUTS[len(planes) - 1])
    frame.sample_rate, frame.time_base, frame.pts = int(rate), Fraction(1, int(rate)), 0
    return frame


def _opened(data):
    """An open file as MP4 alone: other formats name further files, or addresses, that would be read, too."""
    import av

    return av.open(data, format="mp4")


def _mp4_has_sound(path: pathlib.Path) -> bool:
    with open(path, "rb") as data, _opened(data) as file:
        return bool(file.streams.audio)


def _read_mp4_sound(path: pathlib.Path) -> Sound | None:
    import av

    with open(path, "rb") as data, _opened(data) as file:
        if not file.streams.audio:
            return None
        stream, planes, numbers = file.streams.audio[0], [], 0
        rate, channels = stream.codec_context.sample_rate, stream.codec_context.channels
        if channels not in (1, 2):
            raise ValueError(f"its sound has {channels} channels: `ffmpeg -i IN -c:v copy -ac 2 OUT.mp4` makes two of them")
        as_floats = av.AudioResampler(format="fltp", layout=_LAYOUTS[channels - 1], rate=rate)
        for frame in file.decode(stream):
            numbers += frame.samples * channels
            if numbers > MOST_NUMBERS:
                raise ValueError(f"its sound has more than {MOST_NUMBERS} numbers")
            planes += [own.to_ndarray() for own in as_floats.resample(frame)]
        length = round((stream.duration or 0) * stream.time_base * rate)
    if not planes:
        raise ValueError("its sound is empty")
    return np.ascontiguousarray(np.concatenate(planes, axis=1)[:, : length or None].T), rate


def _read_mp4(path: pathlib.Path) -> tuple[np.ndarray, float]:
    frames, pixels = [], 0
    with open(path, "rb") as data, _opened(data) as file:
        if not file.streams.video:
            raise ValueError("it holds no pictures")
        stream = file.streams.video[0]
        for frame in file.decode(stream):
            pixels = _counted(pixels, frame.width, frame.height)
            turned = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
            frames.append(turned)
        rate = stream.average_rate
    if not frames:
        raise ValueError("it holds no frames")
    if not rate:
        raise ValueError("it does not say how many frames it has per second")
    return np.stack(frames), float(rate)


# --- animations ---------------------------------------------------------------------------------------------------------


def _webp(frames: np.ndarray, fps: float) -> bytes:
    from PIL import Image

    buffer, times = io.BytesIO(), np.rint(np.arange(len(frames) + 1) * 1000 / fps).astype(int)
    first, *rest = map(Image.fromarray, frames)
    first.save(buffer, "WEBP", save_all=True, append_images=rest, duration=np.diff(times).tolist(), loop=0, quality=90)
    return buffer.getvalue()


def _read_animation(path: pathlib.Path) -> tuple[np.ndarray, float]:
    from PIL import Image, ImageSequence

    frames, seconds, pixels = [], [], 0
    with Image.open(path, formats=("GIF", "WEBP")) as file:
        if not getattr(file, "is_animated", False):
            raise ValueError("it is a single picture")
        for frame in ImageSequence.Iterator(file):
            pixels = _counted(pixels, frame.width, frame.height)
            frames.append(np.asarray(rgb(frame, file.format)))
            seconds.append(frame.info.get("duration", 0) / 1000 or MISSING_SECONDS)
    times = [max(1, round(own / min(seconds))) for own in seconds]
    for again in times:
        pixels = _counted(pixels, frames[0].shape[1] * (again - 1), frames[0].shape[0])
    again = [frame for frame, count in zip(frames, times, strict=True) for _ in range(count)]
    return np.stack(again), sum(times) / sum(seconds)


def _no_sound(path: pathlib.Path) -> None:
    """Nothing, of what is an animation."""
    from PIL import Image

    with Image.open(path, formats=("GIF", "WEBP")):
        return


def _counted(pixels: int, width: int, height: int) -> int:
    """The pixels so far with those of one more frame; ValueError where they are too many."""
    if pixels + width * height > MOST_PIXELS:
        raise ValueError(f"its frames have more than {MOST_PIXELS} pixels together")
    return pixels + width * height
