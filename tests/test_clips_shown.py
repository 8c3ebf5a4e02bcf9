"""Clips as a person looks at them: files beside the samples, strips in the grid, pages that play them or print strips."""

import base64
import io
import json
import re
import sys
import types

import numpy as np
import pytest
from PIL import Image

from tests.moving import FPS, batch, clip
from tests.test_foreign_page import ATTRIBUTES, TAGS, Page
from tests.test_heard import RATE, voice
from unigrpo_jax import clip_files
from unigrpo_jax.clip_files import read_clip, read_clip_sound
from unigrpo_jax.sound_files import read_sound
from unigrpo_jax.training import samples as module
from unigrpo_jax.training.evaluation import _moments
from unigrpo_jax.training.recorded_run import read_run
from unigrpo_jax.training.report import write_report
from unigrpo_jax.training.runs_page import runs_page
from unigrpo_jax.training.samples import Clip, Moment, Sample, draw_grid, load_samples, save_samples, saved_steps
from unigrpo_jax.worlds.prompt import Prompt

EVIL = "<video src=x onerror=alert(1)> \"quoted\" & \x1b[31m"


def sample(colour=0, correct=True, prompt="a red square moves right", sound=None, **size) -> Sample:
    made = Clip.of(clip(colour=colour, **size), FPS, sound)
    return Sample(prompt=prompt, thinking="", clip=made, verdict="moves right", correct=correct)


def without_pyav(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)


@pytest.fixture(params=["mp4", "webp"])
def kind(request, monkeypatch) -> str:
    """What clips are written as: with PyAV and without."""
    if request.param == "mp4":
        pytest.importorskip("av")
    else:
        without_pyav(monkeypatch)
    return request.param


# --- files --------------------------------------------------------------------------------------------------------------


def test_clips_are_files_beside_the_grid_and_come_back_with_their_strips(tmp_path, kind, monkeypatch):
    written = [sample(colour=c, correct=c < 1) for c in range(3)]
    save_samples(tmp_path, 25, written)
    names = ["000025-1", "000025-2", "000025-3"]
    files = [*(f"{name}.{kind}" for name in names), "000025.json", "000025.npz", "000025.png"]
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == sorted(files) and saved_steps(tmp_path) == [25]
    if kind == "mp4":
        frames, fps = read_clip(tmp_path / "samples" / "000025-2.mp4")
        tiny = clip(colour=1).repeat(3, axis=1).repeat(3, axis=2)  # 32 pixels wide: three times, and then 96
        assert fps == FPS and frames.shape == tiny.shape and np.abs(frames.astype(int) - tiny).mean() < 3
    without_pyav(monkeypatch)  # a report needs no decoder
    for before, after in zip(written, load_samples(tmp_path, 25), strict=True):
        assert (after.prompt, after.verdict, after.correct) == (before.prompt, before.verdict, before.correct)
        assert after.clip.words == before.clip.words and after.clip.data == before.clip.data and after.image is None
        np.testing.assert_array_equal(after.still, before.still)


def test_what_the_json_says_of_a_clip(tmp_path, kind):
    save_samples(tmp_path, 0, [sample()])
    (text,) = json.loads((tmp_path / "samples" / "000000.json").read_text())
    assert text["clip"] == {"kind": kind, "frames": 6, "fps": FPS, "tiny": True}
    with np.load(tmp_path / "samples" / "000000.npz") as arrays:
        assert arrays.files == ["strips"]


def test_rounds_of_clips_have_files_of_their_own(tmp_path):
    first = sample(colour=1, correct=False, prompt="a green square")
    before = Moment(prompt=first.prompt, thinking="", clip=first.clip, verdict="", correct=False)
    save_samples(tmp_path, 3, [Sample(**vars(sample()) | {"earlier": (before,)})])
    names = {p.stem for p in (tmp_path / "samples").iterdir()}
    assert names == {"000003", "000003-1", "000003-1-round1"}
    (read,) = load_samples(tmp_path, 3)
    assert read.earlier[0].clip.data == first.clip.data and read.clip.data != first.clip.data


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text, folder: text[0].pop("clip"),
        lambda text, folder: text[0]["clip"].update(kind="../../secret"),
        lambda text, folder: text[0]["clip"].update(kind=["mp4"]),
        lambda text, folder: text[0]["clip"].update(frames=0),
        lambda text, folder: text[0]["clip"].update(frames=True),
        lambda text, folder: text[0]["clip"].update(fps="<b>"),
        lambda text, folder: text[0]["clip"].update(fps=float("nan")),
        lambda text, folder: text[0]["clip"].update(more=1),
        lambda text, folder: [path.unlink() for path in folder.glob("000003-*")],
    ],
)
def test_damaged_clips_are_named(tmp_path, spoil):
    save_samples(tmp_path, 3, [sample()])
    path = tmp_path / "samples" / "000003.json"
    texts = json.loads(path.read_text())
    spoil(texts, path.parent)
    path.write_text(json.dumps(texts))
    with pytest.raises(ValueError, match="does not hold|do not hold|cannot be read"):
        load_samples(tmp_path, 3)


def test_a_clip_that_is_too_large_for_a_page_is_refused(tmp_path, monkeypatch):
    save_samples(tmp_path, 3, [sample()])
    monkeypatch.setattr(module, "MOST_BYTES", 100)
    with pytest.raises(ValueError, match=r"000003-1\.\w+ is larger than"):
        load_samples(tmp_path, 3)


def test_a_sample_is_an_image_or_a_clip_and_a_step_has_one_kind(tmp_path):
    words = dict(prompt="", thinking="", verdict="", correct=None)
    image = np.zeros((24, 32, 3), np.uint8)
    for both in ({}, {"image": image, "clip": sample().clip}):
        with pytest.raises(ValueError, match="an image or a clip"):
            Sample(**words, **both)
    with pytest.raises(ValueError, match="all images or all clips"):
        save_samples(tmp_path, 0, [sample(), Sample(**words, image=image)])


def test_an_evaluation_makes_clips_of_what_was_drawn():
    videos = np.stack([clip(), clip(colour=1)])
    words = lambda: {"thinking0": ["t", ""], "verdict0": ["v", ""], "correct0": [True, None]}
    asked = [Prompt(text="a", metadata={}), Prompt(text="b", metadata={})]
    first, second = (Sample(**fields) for fields in _moments(words(), asked, 0, {"video": videos}, batch(2)))
    assert first.clip.frames == 6 and first.clip.fps == FPS and (first.prompt, first.correct) == ("a", True)
    assert second.clip.data != first.clip.data
    assert first.clip.sound is None
    (image, _) = (Sample(**fields) for fields in _moments(words(), asked, 0, {"image": videos[:, 0]}, batch(2)))
    assert image.clip is None and image.still is image.image
    sounds = np.stack([voice(0.25), np.full_like(voice(0.25), np.nan)])
    heard = types.SimpleNamespace(fps=FPS, rate=float(RATE))
    found = _moments(words(), asked, 0, {"video": videos, "audio": sounds}, heard)
    assert [fields["clip"].sound.onsets for fields in found] == [(0.25,), ()] and found[0]["clip"].sound.rate == RATE


def test_a_clips_sound_is_kept_in_its_mp4_or_as_wav_beside_it(tmp_path, kind, monkeypatch):
    """At a rate that players know; what is known of it comes back without a decoder."""
    written = [sample(sound=(voice(0.25), RATE)), sample(colour=1, sound=(voice(0.5), RATE))]
    save_samples(tmp_path, 25, written)
    folder = tmp_path / "samples"
    beside = [] if kind == "mp4" else ["000025-1.wav", "000025-2.wav"]
    assert sorted(p.name for p in folder.glob("*.wav")) == beside
    samples, rate = read_clip_sound(folder / "000025-1.mp4") if kind == "mp4" else read_sound(folder / "000025-1.wav")
    assert rate == 8000 and len(samples) == len(voice(0.25)) * 2
    assert np.abs(samples[: 8000 // 5]).max() < 0.01 < 0.3 < np.abs(samples[8000 // 3 :]).max()
    without_pyav(monkeypatch)
    for before, after in zip(written, load_samples(tmp_path, 25), strict=True):
        assert after.clip.words == before.clip.words and after.clip.wav == before.clip.wav
        assert after.clip.sound == before.clip.sound
        np.testing.assert_array_equal(after.still, before.still)
    (text, _) = json.loads((folder / "000025.json").read_text())
    assert text["clip"]["sound"] == {"rate": RATE, "onsets": [0.25]}


@pytest.mark.parametrize("words", [
    None, [], {"rate": RATE}, {"rate": 0, "onsets": []}, {"rate": 10**9, "onsets": []}, {"rate": True, "onsets": []},
    {"rate": RATE, "onsets": ["<b>"]}, {"rate": RATE, "onsets": [-1]}, {"rate": RATE, "onsets": [1e400]},
    {"rate": RATE, "onsets": 3}, {"rate": RATE, "onsets": [], "more": 1}, {"rate": RATE, "onsets": [0] * 10_001},
])  # fmt: skip
def test_damaged_words_of_a_sound_are_named(tmp_path, words):
    save_samples(tmp_path, 3, [sample(sound=(voice(0.25), RATE))])
    path = tmp_path / "samples" / "000003.json"
    (text,) = json.loads(path.read_text())
    text["clip"]["sound"] = words
    path.write_text(json.dumps([text]))
    with pytest.raises(ValueError, match="does not hold the texts"):
        load_samples(tmp_path, 3)


def test_a_missing_file_of_a_sound_is_named(tmp_path, monkeypatch):
    without_pyav(monkeypatch)
    save_samples(tmp_path, 3, [sample(sound=(voice(0.25), RATE))])
    (tmp_path / "samples" / "000003-1.wav").unlink()
    with pytest.raises(ValueError, match=r"000003-1\.wav cannot be read"):
        load_samples(tmp_path, 3)


# --- strips -------------------------------------------------------------------------------------------------------------


def test_a_strip_holds_the_first_frame_the_last_and_some_between():
    made = Clip.of(clip(frames=9), FPS)
    big = lambda number: clip(frames=9)[number].repeat(3, axis=0).repeat(3, axis=1)
    assert made.strip.shape == (72, 5 * 96 + 4 * module.GAP, 3) and made.tiny
    for place, number in enumerate((0, 2, 4, 6, 8)):
        left = place * (96 + module.GAP)
        np.testing.assert_array_equal(made.strip[:, left : left + 96], big(number))
        assert place == 4 or (made.strip[:, left + 96 : left + 96 + module.GAP] == 255).all()
    large = Clip.of(np.zeros((2, 512, 1024, 3), np.uint8), FPS)
    assert large.strip.shape == (128, 2 * 256 + module.GAP, 3) and not large.tiny


def test_the_strip_of_a_clip_with_sound_has_the_sound_below_its_frames():
    silent, made = Clip.of(clip(), FPS), Clip.of(clip(), FPS, (voice(0.25), RATE))
    high, wide = silent.strip.shape[:2]
    np.testing.assert_array_equal(made.strip[:high], silent.strip)
    assert (made.strip[high : high + module.GAP] == 255).all()
    np.testing.assert_array_equal(made.strip[high + module.GAP :], module.heard.picture(voice(0.25), RATE, wide))
    pixels = np.asarray(draw_grid([sample(sound=(voice(0.25), RATE))]))
    at = module.MARGIN + module.FRAME
    np.testing.assert_array_equal(pixels[at : at + len(made.strip), at : at + wide], made.strip)


def test_the_grid_shows_strips_framed_by_their_verdict():
    grid = draw_grid([sample(colour=c, correct=c < 1) for c in range(4)])
    strip = sample().still
    pixels, left = np.asarray(grid), module.MARGIN + module.FRAME
    np.testing.assert_array_equal(pixels[left : left + strip.shape[0], left : left + strip.shape[1]], strip)
    colours = set(map(tuple, pixels.reshape(-1, 3).tolist()))
    assert module.GREEN in colours and module.RED in colours
    assert grid.width < grid.height * 2, "wide cells stand below each other"


# --- pages --------------------------------------------------------------------------------------------------------------


def fill(folder, prompt="a red square moves right", strips=False, sound=None) -> None:
    """A run folder with clips of two steps, perhaps with a sound."""
    (folder / "config.json").write_text(json.dumps({"name": "clips"}))
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "video/frame_difference": 0.1}) + "\n")
    for step in (0, 40):
        made = [sample(colour=c, correct=step > 0, prompt=f"{prompt} {c}", sound=sound) for c in range(2)]
        if strips:
            made = [Sample(**vars(s) | {"given": (clip()[0],)}) for s in made]
        save_samples(folder, step, made)


def parsed(text: str) -> Page:
    """The page, which holds nothing but our own elements, loads nothing, and is of clips."""
    found = Page(re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL))
    assert set(found.tags) <= TAGS | {"video", "audio"}
    known = set("autoplay loop muted playsinline controls preload".split())
    assert {name for name, _ in found.attributes} <= ATTRIBUTES | known
    assert all(value.startswith("data:") for name, value in found.attributes if name in ("src", "href"))
    return found


@pytest.mark.parametrize("strips", [False, True])
def test_clips_play_on_the_page_and_strips_stand_in_their_place_on_paper(tmp_path, kind, strips):
    fill(tmp_path, strips=strips)
    text = write_report(tmp_path).read_text()
    found = parsed(text)
    sources = [value for name, value in found.attributes if name == "src"]
    head = {"mp4": "data:video/mp4;base64,", "webp": "data:image/webp;base64,"}[kind]
    played = [base64.b64decode(value.removeprefix(head)) for value in sources if value.startswith(head)]
    own = lambda step, row: (tmp_path / "samples" / f"{step:06d}-{row}.{kind}").read_bytes()
    assert played == [own(step, row) for row in (1, 2) for step in (0, 40)], "each as it lies in the folder"
    assert text.count("on-paper\"") == 4 and found.tags.count("video") == (4 if kind == "mp4" else 0)
    assert ("media-src data:" in text) == (kind == "mp4") and "clip drawn at step 40" in text
    assert "6 frames at 8 per second" in text and "frames of the clip drawn at step 0" in text
    assert "@media print { .plays { display: none; } img.on-paper { display: block; }" in text
    assert "Difference from frame to frame" in text and "step 0: 0 of 2 right; step 40: 2 of 2 right" in text


@pytest.mark.parametrize("strips", [False, True])
def test_a_clip_with_sound_is_played_with_it_and_shows_it(tmp_path, kind, strips):
    """Nothing begins by itself, and nothing is muted; the strip with the spectrogram stands on the screen, too."""
    fill(tmp_path, strips=strips, sound=(voice(0.25), RATE))
    text = write_report(tmp_path).read_text()
    found = parsed(text)
    tags, folder = found.tags, tmp_path / "samples"
    assert (tags.count("video"), tags.count("audio")) == ((4, 0) if kind == "mp4" else (0, 4))
    assert "media-src data:" in text and not {"muted", "autoplay", "loop"} & {name for name, _ in found.attributes}
    assert text.count("heard\" alt=") == 4 and "on-paper\"" not in text
    assert text.count("<p class=note>Onsets at 0.25 s; spectrogram up to 2 kHz.</p>") == 4
    sources = [value for name, value in found.attributes if name == "src"]
    wavs = [value for value in sources if value.startswith("data:audio/wav;base64,")]
    if kind == "webp":
        assert base64.b64decode(wavs[0].partition(",")[2]) == (folder / "000000-1.wav").read_bytes()
    data = re.search(r'heard" alt="[^"]*, and its sound" src="data:image/png;base64,([^"]*)"', text)[1]
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        np.testing.assert_array_equal(np.asarray(picture), sample(sound=(voice(0.25), RATE)).still)


def test_a_page_of_images_knows_nothing_of_clips(tmp_path):
    image = np.zeros((24, 24, 3), np.uint8)
    save_samples(tmp_path, 0, [Sample(prompt=EVIL, thinking="", image=image, verdict="", correct=None)])
    text = write_report(tmp_path).read_text()
    assert "media-src" not in text and "on-paper" not in text and "plays" not in text
    Page.of(tmp_path)


def test_hostile_prompts_of_clips_are_text(tmp_path):
    fill(tmp_path, EVIL)
    found = parsed(write_report(tmp_path).read_text())
    assert found.tags.count("video") in (0, 4) and "onerror" not in {name for name, _ in found.attributes}
    assert "\\x1b[31m" in "".join(found.words)


def test_several_runs_show_their_clips_side_by_side(tmp_path, kind):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        fill(tmp_path / name)
    text = runs_page([read_run(tmp_path / name) for name in ("a", "b")])
    found = parsed(text)
    assert found.tags.count("video") == (8 if kind == "mp4" else 0) and text.count("on-paper\"") == 8
    assert text.count("@media print { .plays") == 1
    assert "video/frame_difference" in text and "Other metrics" not in text


def test_the_strip_of_a_clip_is_a_png_on_the_page(tmp_path):
    fill(tmp_path)
    text = write_report(tmp_path).read_text()
    data = re.search(r'on-paper" alt="[^"]*" src="data:image/png;base64,([^"]*)"', text)[1]
    (tmp_path / "strip.png").write_bytes(base64.b64decode(data))
    with Image.open(tmp_path / "strip.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), sample().still)


def test_what_is_written_follows_what_is_installed():
    assert clip_files.best_kind() == ("mp4" if clip_files.has_pyav() else "webp")
