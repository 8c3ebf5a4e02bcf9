"""Sound in files: what is written is read again, whole or not at all, and what is no sound is one sentence."""

import os
import struct
import wave

import numpy as np
import pytest

from unigrpo_jax import sound_files
from unigrpo_jax.config import ConfigError
from unigrpo_jax.sound_files import encode, read_sound, save_sound

RATE = 24000
HALF_STEP = 2.0**-16


def sound(channels=2, samples=500, seed=0):
    return np.random.default_rng(seed).uniform(-0.99, 0.99, (samples, channels)).astype(np.float32)


def refusal(path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_sound(path)
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text and str(path) in text
    return text


def raw(path, data: bytes, channels=1, width=2, rate=RATE):
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(data)
    return path


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8000, 24000, 44100])
def test_a_sound_comes_back_within_half_a_step_of_16_bits(tmp_path, channels, rate):
    path, samples = tmp_path / "a.wav", sound(channels)
    save_sound(path, samples, rate)
    again, own = read_sound(path)
    assert own == rate and again.shape == samples.shape and again.dtype == np.float32
    assert np.abs(again - samples).max() <= HALF_STEP
    save_sound(path, again, rate)
    np.testing.assert_array_equal(read_sound(path)[0], again, err_msg="what was read is written as it is")
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_pcm_of_16_bits_with_channels_side_by_side():
    data = encode(np.array([[0.5, -1.0], [0.0, 1.0]], np.float32), 8000)
    assert data[:4] == b"RIFF" and data[8:16] == b"WAVEfmt "
    assert struct.unpack("<HHIIHH", data[20:36]) == (1, 2, 8000, 32000, 4, 16)
    assert struct.unpack("<4h", data[-8:]) == (16384, -32768, 0, 32767)


def test_silence_stays_silence_and_what_is_too_loud_is_clipped(tmp_path):
    save_sound(tmp_path / "a.wav", np.zeros((9, 1), np.float32), RATE)
    assert not read_sound(tmp_path / "a.wav")[0].any()
    save_sound(tmp_path / "a.WAV", np.array([[7.0], [-7.0], [1.0]], np.float32), RATE)
    np.testing.assert_array_equal(read_sound(tmp_path / "a.WAV")[0][:, 0], [32767 / 32768, -1, 32767 / 32768])


@pytest.mark.parametrize(
    "width, data, expected",
    [
        (1, bytes([0, 64, 128, 255]), [-1, -0.5, 0, 127 / 128]),
        (2, struct.pack("<4h", -32768, -16384, 0, 32767), [-1, -0.5, 0, 32767 / 32768]),
        (3, bytes([0, 0, 0x80, 0, 0, 0xC0, 1, 0, 0]), [-1, -0.5, 2.0**-23]),
        (4, struct.pack("<3i", -(2**31), -(2**30), 2**29), [-1, -0.5, 0.25]),
    ],
)
def test_whole_numbers_of_every_width_are_read(tmp_path, width, data, expected):
    samples, rate = read_sound(raw(tmp_path / "a.wav", data, width=width))
    np.testing.assert_allclose(samples[:, 0], expected, rtol=1e-7)
    assert rate == RATE


def test_what_is_no_sound_is_one_sentence(tmp_path):
    assert "there is no sound" in refusal(tmp_path / "nothing.wav")
    assert "Is a directory" in refusal(tmp_path)
    floats = bytearray(encode(sound(), RATE))
    floats[20] = 3  # the number of floating-point samples
    for name, data in {"text": b"hello", "empty": b"", "head": encode(sound(), RATE)[:30], "floats": bytes(floats)}.items():
        (tmp_path / f"{name}.wav").write_bytes(data)
        assert f"{name}.wav is not a sound that can be read" in refusal(tmp_path / f"{name}.wav")
    assert "it has 3 channels" in refusal(raw(tmp_path / "three.wav", bytes(12), channels=3))
    assert "it says that it holds 0 samples" in refusal(raw(tmp_path / "none.wav", b""))


@pytest.mark.parametrize("cut", [1, 2, 500, 1900])
def test_a_file_that_is_cut_short_is_refused(tmp_path, cut):
    (tmp_path / "a.wav").write_bytes(encode(sound(), RATE)[:-cut])
    assert f"it says that it holds 500 samples, but there are {500 - -(-cut // 4)}" in refusal(tmp_path / "a.wav")


def test_a_head_that_promises_very_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sound_files, "MOST_NUMBERS", 999)
    (tmp_path / "a.wav").write_bytes(encode(sound(), RATE))
    assert "it holds more than 999 numbers" in refusal(tmp_path / "a.wav")


@pytest.mark.parametrize(
    "samples, rate, words",
    [
        (sound().astype(np.float64), RATE, "a sound is float32 .*, not float64"),
        (sound()[:, 0], RATE, r"not float32 \[500\]"),
        (sound(3), RATE, r"not float32 \[500, 3\]"),
        (sound()[:0], RATE, r"not float32 \[0, 2\]"),
        (np.where(np.arange(4)[:, None] == 1, np.nan, np.zeros((4, 1))).astype(np.float32), RATE, "1 of 4 numbers are not"),
        (np.full((2, 1), np.inf, np.float32), RATE, "2 of 2 numbers are not"),
        (sound(), 0, "1 to 384000 samples per second"),
        (sound(), 22050.5, "a whole number, not 22050.5"),
    ],
)
def test_what_is_no_sound_is_not_encoded(samples, rate, words):
    with pytest.raises(ValueError, match=words):
        encode(samples, rate)


@pytest.mark.parametrize("rate, other", [(48000, 16000), (44100, 16000), (16000, 24000), (1024, 8192)])
def test_a_sound_at_another_rate_is_the_same_sound(rate, other):
    """Cosines with whole numbers of half periods, whose mirrored continuation they are; too high a one is gone."""
    wave = lambda hertz, rate: np.cos(2 * np.pi * hertz * (np.arange(rate // 2) + 0.5) / rate)
    both = np.stack([wave(80, rate), 0.5 * wave(200, rate)], -1).astype(np.float32)
    again = sound_files.resampled(both, rate, other)
    at = np.arange(other // 2) / other + 0.5 / rate  # sample 0 stays where it is, half an old step after the start
    np.testing.assert_allclose(again, np.cos(2 * np.pi * at[:, None] * [80, 200]) * [1, 0.5], atol=1e-5)
    if other < rate:
        high = np.cos(2 * np.pi * (rate // 2 - 400) * (np.arange(rate // 2) + 0.5) / rate).astype(np.float32)[:, None]
        assert np.abs(sound_files.resampled(high, rate, other)).max() < 1e-5
    assert sound_files.resampled(both, rate, rate) is both


def test_what_is_not_finite_is_silent_to_the_ear():
    sound = np.array([[np.nan, 0.5], [np.inf, -np.inf]], np.float32)
    np.testing.assert_array_equal(sound_files.audible(sound), [[0, 0.5], [0, 0]])


def test_a_sound_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    save_sound(path, sound(), RATE)
    old = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk is full")))
    with pytest.raises(OSError, match="disk is full"):
        save_sound(path, sound(seed=1), RATE)
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["a.mp3", "a", ".wav"])
def test_a_name_without_the_suffix_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match=r"give a name that ends in \.wav"):
        save_sound(tmp_path / name, sound(), RATE)
    assert not list(tmp_path.iterdir())
