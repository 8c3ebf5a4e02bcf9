"""Clips in files: what is written is read again, whole or not at all, and what is no clip is one sentence."""

import io
import os
import sys

import numpy as np
import pytest
from PIL import Image

from tests.moving import FPS, clip
from unigrpo_jax import clip_files
from unigrpo_jax.clip_files import encode, has_pyav, playable, read_clip, read_clip_sound, save_clip, spread
from unigrpo_jax.config import ConfigError


def refusal(path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_clip(path)
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text
    return text


def animation(path, frames, durations, **more):
    first, *rest = map(Image.fromarray, frames)
    first.save(path, save_all=True, append_images=rest, duration=durations, **more)


@pytest.mark.parametrize("kind", ["mp4", "webp"])
@pytest.mark.parametrize("fps", [FPS, 24.0, 23.976])
def test_a_clip_comes_back_with_its_frames_and_its_speed(tmp_path, kind, fps):
    pytest.importorskip("av")
    path, frames = tmp_path / f"clip.{kind}", clip()
    save_clip(path, frames, fps)
    again, speed = read_clip(path)
    assert again.shape == frames.shape and again.dtype == np.uint8
    assert speed == pytest.approx(fps, rel=0.02 if kind == "webp" else 1e-5)  # WebP counts whole milliseconds
    assert np.abs(again.astype(int) - frames).mean() < 3  # both lose a little, at edges most
    assert list(tmp_path.iterdir()) == [path]


def test_colours_are_the_same_ones_where_chroma_has_its_time():
    pytest.importorskip("av")
    colours = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 30, 120)], np.uint8)
    frames = np.broadcast_to(colours[:, None, None], (4, 16, 16, 3)).copy()
    import av

    with av.open(io.BytesIO(encode(frames, FPS, "mp4"))) as file:
        stream = file.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.codec_context.colorspace == 1, "BT.709 is said, which players would have to guess"
        again = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(stream)])
    assert np.abs(again.astype(int) - frames).max() <= 3


@pytest.mark.parametrize("height, width", [(23, 32), (24, 31), (1, 1), (3, 5)])
def test_an_odd_side_gets_its_last_row_or_column_twice(tmp_path, height, width):
    pytest.importorskip("av")
    frames = np.full((2, height, width, 3), 90, np.uint8)
    save_clip(tmp_path / "odd.mp4", frames, FPS)
    again, _ = read_clip(tmp_path / "odd.mp4")
    assert again.shape == (2, height + height % 2, width + width % 2, 3)
    assert np.abs(again.astype(int) - 90).max() <= 2


def test_an_animations_frame_that_stands_longer_is_there_as_often(tmp_path):
    a, b, c, _ = (np.full((8, 8, 3), level, np.uint8) for level in (0, 120, 240, 0))
    animation(tmp_path / "a.gif", [a, b, c], [100, 200, 100])
    frames, fps = read_clip(tmp_path / "a.gif")
    assert [int(frame.mean()) for frame in frames] == [0, 120, 120, 240] and fps == pytest.approx(10)
    animation(tmp_path / "silent.gif", [a, b], 0)  # as browsers have it, a tenth of a second each
    assert read_clip(tmp_path / "silent.gif")[1] == pytest.approx(10)


def test_transparency_lies_on_white(tmp_path):
    frames = np.zeros((2, 8, 8, 4), np.uint8)
    frames[1, :, :4] = (0, 0, 0, 255)
    animation(tmp_path / "a.webp", frames, 100, lossless=True)
    again, _ = read_clip(tmp_path / "a.webp")
    assert again[0].min() == 255 and again[1, :, :4].max() == 0 and again[1, :, 4:].min() == 255


def test_what_is_no_clip_is_one_sentence(tmp_path):
    assert "there is no clip" in refusal(tmp_path / "nothing.mp4")
    assert "Is a directory" in refusal(tmp_path)
    for name, data in {"text.mp4": b"hello", "empty.gif": b"", "half.webp": encode(clip(), FPS, "webp")[:99]}.items():
        (tmp_path / name).write_bytes(data)
        assert f"{name} is not a clip that can be read" in refusal(tmp_path / name)
    Image.fromarray(clip()[0]).save(tmp_path / "still.gif")
    assert "it is a single picture" in refusal(tmp_path / "still.gif")
    Image.fromarray(clip()[0]).save(tmp_path / "still.png")
    assert "give an MP4, GIF or WebP file" in refusal(tmp_path / "still.png")


def test_a_broken_mp4_and_one_without_pictures_are_one_sentence(tmp_path):
    av = pytest.importorskip("av")
    whole = encode(clip(), FPS, "mp4")
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    assert "half.mp4 is not a clip that can be read" in refusal(tmp_path / "half.mp4")
    with av.open(str(tmp_path / "sound.mp4"), "w") as file:
        stream = file.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        file.mux(stream.encode(sound))
        file.mux(stream.encode())
    assert "it holds no pictures" in refusal(tmp_path / "sound.mp4")


def test_a_small_file_that_unpacks_to_very_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(clip_files, "MOST_PIXELS", 4 * 24 * 32)
    save_clip(tmp_path / "long.webp", clip(5), FPS)
    assert f"more than {4 * 24 * 32} pixels" in refusal(tmp_path / "long.webp")
    white, black = np.full((24, 32, 3), 255, np.uint8), np.zeros((24, 32, 3), np.uint8)
    animation(tmp_path / "slow.gif", [white, black], [20, 60_000])  # two pictures, of which one stands for 3000 frames
    assert "pixels together" in refusal(tmp_path / "slow.gif")
    if clip_files.has_pyav():
        save_clip(tmp_path / "long.mp4", clip(5), FPS)
        assert "pixels together" in refusal(tmp_path / "long.mp4")


@pytest.mark.parametrize(
    "frames, fps",
    [(clip().astype(np.float32), 8), (clip()[0], 8), (clip()[..., :1], 8), (clip()[:0], 8), (clip(), 0), (clip(), np.nan)],
)
def test_what_is_no_clip_is_not_encoded(frames, fps):
    with pytest.raises(ValueError, match="a clip"):
        encode(frames, fps, "webp")


def voice(rate, seconds=0.75, channels=2):
    """A tone in each channel, float32 [S, channels]."""
    time = np.arange(round(rate * seconds))[:, None] / rate
    return (0.5 * np.sin(2 * np.pi * np.array([[440.0, 1000.0]])[:, :channels] * time)).astype(np.float32)


@pytest.mark.parametrize("rate, channels", [(24000, 2), (16000, 1), (44100, 2)])
def test_an_mp4_gives_back_its_pictures_and_its_sound(tmp_path, rate, channels):
    """AAC loses a little, but not a sample of length or of place, and neither channel is taken for the other."""
    pytest.importorskip("av")
    path, frames, sound = tmp_path / "clip.mp4", clip(), voice(rate, channels=channels)
    save_clip(path, frames, FPS, (sound, rate))
    again, fps = read_clip(path)
    assert fps == FPS and np.abs(again.astype(int) - frames).mean() < 3
    heard, own = read_clip_sound(path)
    assert own == rate and heard.dtype == np.float32 and heard.shape == sound.shape
    middle = slice(2048, -2048)  # a tone that begins at once is not a tone at its ends
    assert np.abs(heard - sound)[middle].max() < 0.06  # of 0.5


def test_a_clip_without_sound_has_none(tmp_path):
    save_clip(tmp_path / "clip.webp", clip(), FPS)
    assert read_clip_sound(tmp_path / "clip.webp") is None
    (tmp_path / "text.webp").write_bytes(b"hello")
    with pytest.raises(ConfigError, match="text.webp is not a clip that can be read"):
        read_clip_sound(tmp_path / "text.webp")
    if clip_files.has_pyav():
        save_clip(tmp_path / "clip.mp4", clip(), FPS)
        assert read_clip_sound(tmp_path / "clip.mp4") is None


def test_silence_longer_than_its_pictures_and_what_is_too_loud_are_written(tmp_path):
    pytest.importorskip("av")
    save_clip(tmp_path / "silent.mp4", clip(2), FPS, (np.zeros((24000, 2), np.float32), 24000))
    heard, _ = read_clip_sound(tmp_path / "silent.mp4")
    assert heard.shape == (24000, 2) and np.abs(heard).max() < 1e-4
    save_clip(tmp_path / "loud.mp4", clip(2), FPS, (np.full((8000, 1), 9.0, np.float32), 8000))
    assert 0.5 < np.median(read_clip_sound(tmp_path / "loud.mp4")[0]) < 1.2


@pytest.mark.parametrize(
    "sound, words",
    [
        ((voice(24000), 0), "1 to 384000 samples per second"),
        ((voice(24000).astype(np.float64), 24000), "a sound is float32"),
        ((voice(24000) * np.nan, 24000), "a sound is finite"),
        ((voice(24000)[:0], 24000), "a sound is float32"),
        ((np.zeros((9, 3), np.float32), 24000), "a sound is float32"),
    ],
)
def test_what_is_no_sound_of_an_mp4_is_refused(sound, words):
    pytest.importorskip("av")
    with pytest.raises(ValueError, match=words):
        encode(clip(), FPS, "mp4", sound)


@pytest.mark.parametrize("rate, known", [(8000, 8000), (1024, 8000), (23000, 24000), (96000, 96000), (192000, 96000)])
def test_a_rate_that_aac_does_not_know_becomes_the_next_that_it_does(tmp_path, rate, known):
    """As long, and a tone of 200 Hz stays one."""
    tone = lambda rate: 0.5 * np.sin(2 * np.pi * 200 * np.arange(rate // 2) / rate).astype(np.float32)[:, None]
    samples, own = playable((tone(rate), rate))
    assert own == known and samples.shape == (known // 2, 1) and samples.dtype == np.float32
    np.testing.assert_allclose(samples[known // 20 : -known // 20], tone(known)[known // 20 : -known // 20], atol=0.01)
    if has_pyav():
        save_clip(tmp_path / "a.mp4", clip(), FPS, (tone(rate), rate))
        heard, own = read_clip_sound(tmp_path / "a.mp4")
        assert own == known and heard.shape == samples.shape


def test_a_webp_has_no_sound():
    with pytest.raises(ValueError, match="a WebP file has no sound; write an MP4, or the sound as a WAV file"):
        encode(clip(), FPS, "webp", (voice(24000), 24000))


def test_a_broken_sound_is_one_sentence(tmp_path, monkeypatch):
    av = pytest.importorskip("av")
    whole = encode(clip(), FPS, "mp4", (voice(24000), 24000))
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "whole.mp4").write_bytes(whole)
    with pytest.raises(ConfigError, match="half.mp4 is not a clip that can be read"):
        read_clip_sound(tmp_path / "half.mp4")
    # With what the file holds in front, so that it can be read up to where it ends.
    with av.open(str(tmp_path / "early.mp4"), "w", options={"movflags": "faststart"}) as file:
        stream = file.add_stream("aac", rate=24000)
        stream.codec_context.layout = "stereo"
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(voice(24000, 3).T), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = 24000, 0
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    assert read_clip_sound(tmp_path / "early.mp4")[0].shape == (72000, 2)
    data = (tmp_path / "early.mp4").read_bytes()
    (tmp_path / "early.mp4").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(ConfigError, match="early.mp4 is not a clip that can be read"):
        read_clip_sound(tmp_path / "early.mp4")
    monkeypatch.setattr(clip_files, "MOST_NUMBERS", 1000)
    with pytest.raises(ConfigError, match="its sound has more than 1000 numbers"):
        read_clip_sound(tmp_path / "whole.mp4")


def test_a_clip_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "clip.webp"
    save_clip(path, clip(), FPS)
    old = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk is full")))
    with pytest.raises(OSError, match="disk is full"):
        save_clip(path, clip(colour=1), FPS)
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["clip.png", "clip.avi", "clip", ".mp4"])
def test_a_name_without_a_clips_suffix_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match=r"give a name that ends in \.mp4 or \.webp"):
        save_clip(tmp_path / name, clip(), FPS)
    assert not list(tmp_path.iterdir())


def test_without_pyav_clips_are_animated_webp(tmp_path, monkeypatch):
    if clip_files.has_pyav():
        (tmp_path / "made.mp4").write_bytes(encode(clip(), FPS, "mp4"))
    else:
        (tmp_path / "made.mp4").write_bytes(b"\0\0\0\x20ftypisom")
    monkeypatch.setitem(sys.modules, "av", None)
    assert clip_files.best_kind() == "webp"
    with pytest.raises(ConfigError, match=r"pip install 'unigrpo_jax\[video\]'; or give a name that ends in \.webp"):
        save_clip(tmp_path / "clip.mp4", clip(), FPS)
    assert "pip install 'unigrpo_jax[video]'; or give a GIF or WebP file" in refusal(tmp_path / "made.mp4")
    save_clip(tmp_path / "clip.webp", clip(), FPS)
    assert len(read_clip(tmp_path / "clip.webp")[0]) == 6


def test_frames_are_taken_from_end_to_end():
    assert spread(53, 5).tolist() == [0, 13, 26, 39, 52] and spread(3, 8).tolist() == [0, 1, 2]
    assert spread(9, 1).tolist() == [0] and spread(1, 4).tolist() == [0]
