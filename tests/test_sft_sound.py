"""Learning from given clips with their sound: what is read, what is refused, and the loss of both by hand."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests import tiny
from tests.moving import FPS, clip
from tests.test_config import refusal
from tests.test_ltx2_painter import TEXT as TEXTS
from tests.test_ltx2_sizes import SMALL
from tests.test_modalities import FLOW, TEXT, Both
from unigrpo_jax.clip_files import has_pyav, has_sound, save_clip
from unigrpo_jax.config import RolloutConfig, RunConfig
from unigrpo_jax.learning.policy import Policy
from unigrpo_jax.learning.teaching import Lessons, Teaching, token_weights
from unigrpo_jax.models.autoencoders.log_mel import LogMel
from unigrpo_jax.models.loaded import SoundForm
from unigrpo_jax.models.ltx2.media import LTX2Media
from unigrpo_jax.models.ltx2.painter import LTX2
from unigrpo_jax.models.ltx2.transformer import LTX2Transformer
from unigrpo_jax.models.paths import RECTIFIED
from unigrpo_jax.models.schedule import timesteps
from unigrpo_jax.rollout import randomness
from unigrpo_jax.rollout.thinking import TokenSampler
from unigrpo_jax.sound_files import save_sound
from unigrpo_jax.training.programs import Inputs, Programs
from unigrpo_jax.training.supervised import SupervisedPrograms, begins, check_examples, check_first_frames
from unigrpo_jax.training.taught import Pictures, read
from unigrpo_jax.worlds.examples import asked, read_examples

# --- the loss -----------------------------------------------------------------------------------------------------------

F, SIDE, B, DRAWS, SAMPLES = 5, 2, 2, 3, 12


@dataclasses.dataclass(frozen=True)
class Painter(Both):
    """A velocity for each modality; tokens are pixels, or the sound's latents."""

    path, prediction = RECTIFIED, "velocity"

    def to_tokens(self, latent):
        return {**latent, "video": latent["video"].reshape(B, -1, 3)}

    def times(self, steps, shift, grid):
        return timesteps(steps, shift)


def noisy(x, keys_B):
    return x + 0.3 * jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys_B)


@dataclasses.dataclass(frozen=True)
class EveryFourth:
    """Latents are the first of every four frames and four samples each, with noise of a posterior."""

    def encode(self, params, media, keys_B):
        video, audio = media["video"][:, ::4], media["audio"].reshape(B, SAMPLES // 4, 8)
        return {"video": noisy(video, keys_B), "audio": noisy(audio, keys_B)}


PARAMS = {"audio": jnp.float32(0.5), "video": jnp.float32(-0.3)}
WEIGHTS = {"audio": 0.5, "video": 3.0}


def learned(**changes):
    """Frames, sound, the drawing, loss and metrics of one batch, and the losses example by example."""
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 256, (B, F, SIDE, SIDE, 3)).astype(np.uint8)
    sound = rng.uniform(-1, 1, (B, SAMPLES, 2)).astype(np.float32)
    for name, row in changes.items():
        assert name == "broken"
        sound[row, 3] = np.nan
    lessons = Lessons(model=Painter(), autoencoder=EveryFourth(), grid=(2, 2, 2), shift=3.0, draws=DRAWS)
    config = dataclasses.replace(tiny.LEARNING, method="sft", group_size=1, flow_weight=1.3, modality_weights=WEIGHTS)
    objective = Teaching(policy=Policy(model=Painter(), tokens=TokenSampler(), flow=FLOW), config=config)

    def once(params):
        episodes = lessons({}, TEXT, None, {"video": frames, "audio": sound}, 5, 3)
        loss = objective(params, episodes, (None,), token_weights(None, B), True)
        return episodes.drawing, loss, objective.losses(params, episodes)

    return frames, sound, *jax.tree.map(np.asarray, jax.jit(once)(PARAMS))


def test_the_loss_of_a_clip_and_its_sound_by_hand():
    """One noise level for both, a mean of squares over each one's own numbers, added by the weights."""
    frames, sound, drawing, (loss, metrics), (text, drawn, each) = learned()
    keys = randomness.round_keys(5, 3, randomness.PICTURE, 0, jnp.arange(B))
    data = {"video": noisy(frames[:, ::4] / np.float32(127.5) - 1, keys), "audio": noisy(sound.reshape(B, 3, 8), keys)}
    data["video"] = data["video"].reshape(B, -1, 3)
    t = drawing.times[:, :, None, None]
    assert drawing.times.shape == (B, DRAWS) and np.unique(drawing.times).size == B * DRAWS
    errors = {}
    for name, own in data.items():
        own, noise = np.asarray(own)[:, None], drawing.noise[name]
        assert noise.shape == (B, DRAWS, *own.shape[2:]) and abs(noise.mean()) < 0.5
        np.testing.assert_allclose(drawing.latent[name], own[:, 0], atol=1e-5)
        np.testing.assert_allclose(drawing.x[name], (1 - t) * own + t * noise, atol=1e-5)
        v = PARAMS[name] * drawing.x[name] + np.asarray(TEXT)[:, None, :, None]
        errors[name] = np.mean((v - (noise - own)) ** 2, axis=(1, 2, 3))
        np.testing.assert_allclose(each[name], errors[name], rtol=1e-5)
        np.testing.assert_allclose(metrics[f"flow_{name}/loss"], errors[name].mean(), rtol=1e-5)
    assert np.abs(drawing.noise["video"][..., :3, :3] - drawing.noise["audio"][..., :3]).min() > 0
    both = 0.5 * errors["audio"] + 3 * errors["video"]
    np.testing.assert_allclose(drawn, both, rtol=1e-5)
    np.testing.assert_allclose(loss, 1.3 * both.mean(), rtol=1e-5)
    assert text is None and "flow/loss" not in metrics


def test_an_example_whose_sound_is_no_number_teaches_nothing():
    _, _, _, (loss, _), (_, whole, _) = learned()
    _, _, drawing, (broken, _), (_, drawn, each) = learned(broken=1)
    assert drawing.finite.tolist() == [True, False] and np.isfinite(loss)
    np.testing.assert_allclose(drawn, [whole[0], 0], rtol=1e-6)
    np.testing.assert_allclose(broken, 1.3 * whole[0] / 2, rtol=1e-6)
    assert each["video"][1] == each["audio"][1] == 0


# --- from a first frame ---------------------------------------------------------------------------------------------------

FRAME, TOKENS = 2, 6  # latents of a frame and of the clip


class Told(LTX2Transformer):
    """Velocities are the parameters, and what each token knows of the others: their mean time, and the first frame."""

    def __call__(self, params, x, times, *_):
        batch = x["audio"].shape[0]
        mean = jnp.broadcast_to(times["video"].reshape(batch, -1), (batch, TOKENS)).mean(1) / 1000
        known = mean + x["video"][:, :FRAME].mean((1, 2))
        return {name: params[name][None] + known[:, None, None] for name in x}


LTX = LTX2(transformer=Told(**{field.name: getattr(SMALL, field.name) for field in dataclasses.fields(SMALL)}))


class AsTheyAre:
    """Latents are pixels and samples, some of which stand there twice."""

    def encode(self, params, media, keys_B):
        frames = lambda x: jnp.concatenate([x, x[..., :2]], axis=-1)
        if not isinstance(media, dict):
            return frames(media)[:, None]
        return {"video": frames(media["video"]), "audio": media["audio"]}


@pytest.mark.parametrize("begun", [True, False])
def test_of_a_clip_from_a_first_frame_all_later_frames_and_the_sound_are_learned_by_hand(begun):
    """The picture is seen clean and at time 0, and its velocity has no gradient; without one all tokens are learned."""
    rng = np.random.default_rng(2)
    frames, first = (rng.integers(0, 256, (B, *shape, 1, 2, 3)).astype(np.uint8) for shape in ((3,), ()))
    sound = rng.uniform(-1, 1, (B, 5, 3)).astype(np.float32)
    params = {"video": rng.standard_normal((TOKENS, 5)), "audio": rng.standard_normal((5, 3))}
    grid = (3, 1, 2, 5, 24.0)
    lessons = Lessons(model=LTX, autoencoder=AsTheyAre(), grid=grid, shift=1.0, draws=DRAWS)
    flow = dataclasses.replace(FLOW, grid=grid)
    config = dataclasses.replace(tiny.LEARNING, method="sft", group_size=1, modality_weights=WEIGHTS)
    objective = Teaching(policy=Policy(model=LTX, tokens=TokenSampler(), flow=flow), config=config)

    def once(params):
        episodes = lessons({}, TEXTS, None, {"video": frames, "audio": sound}, 5, 3, 0, first if begun else None)
        _, loss, each = objective.losses(params, episodes)
        return loss.sum(), (episodes, each)

    given = jax.tree.map(jnp.float32, params)
    pull, (episodes, each) = jax.tree.map(np.asarray, tiny.jit(jax.grad(once, has_aux=True))(given))
    latent = lambda x: np.concatenate([x, x[..., :2]], axis=-1).reshape(B, -1, 5) / 127.5 - 1
    drawing, t, kept = episodes.drawing, episodes.drawing.times[:, :, None, None], FRAME if begun else 0
    data = {"video": latent(frames)[:, kept:], "audio": sound}
    seen = latent(first)[:, None] if begun else drawing.x["video"][:, :, :FRAME]
    known = t * (TOKENS - kept) / TOKENS + seen.mean((2, 3), keepdims=True)
    for name, own in data.items():
        noise = drawing.noise[name]
        np.testing.assert_allclose(drawing.x[name], (1 - t) * own[:, None] + t * noise, atol=1e-5)
        v = params[name][kept if name == "video" else 0 :] + known
        np.testing.assert_allclose(each[name], np.mean((v - (noise - own[:, None])) ** 2, axis=(1, 2, 3)), rtol=1e-4)
    assert (np.abs(pull["video"]).max(-1) > 0).tolist() == [False] * kept + [True] * (TOKENS - kept)
    assert (pull["audio"] != 0).all() and (episodes.picture is not None) == begun


def test_first_frames_come_with_all_clips_of_a_file_or_with_none(tmp_path):
    """But where a model always begins with a picture, which is then the clip's own; and where it never does."""
    Image.new("RGB", (40, 20), "red").save(tmp_path / "a.png")
    begun = GOOD | {"image": "a.png"}
    networks = {name: types.SimpleNamespace(begins=name != "never", needs_picture=name == "always")
                for name in ("never", "either", "always")}  # fmt: skip
    for lines, right in (([GOOD] * 2, "never either always"), ([begun] * 2, "either always"), ([begun, GOOD], "always")):
        found = examples(write(tmp_path, *lines))
        for name, network in networks.items():
            if name in right:
                check_first_frames(found, network, "FOLDER")
                assert begins(network, found) == (name == "always" or lines[0] is begun)
                continue
            text = refusal(check_first_frames, found, network, "FOLDER")
            said = "FOLDER learns to go on from no picture" if name == "never" else "line 2: has no \"image\" beside its"
            assert said in text and (name == "never" or f"and {tmp_path / 'data.jsonl'}, line 1 has one" in text), text


@pytest.mark.parametrize("shows", [False, True])
def test_a_first_frame_is_a_part_of_a_lesson_where_examples_have_one(monkeypatch, shows):
    programs = object.__new__(SupervisedPrograms)
    programs.config, programs.spread, programs._form = RunConfig(rollout=ROLLOUT), None, FORM
    programs._network = types.SimpleNamespace(needs_picture=False)
    nothing = Inputs(state=None, frozen={}, reference={}, autoencoder={}, prompt={})
    monkeypatch.setattr(Programs, "inputs", lambda *given: nothing)
    first = programs.inputs({}, {}, None, False, shows).first
    assert first is None if not shows else first.shape == (programs.config.episodes, 24, 32, 3)


# --- latents of both ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Part:
    """An autoencoder that says what it was given."""

    hop: int = 160
    rate: int = 16000
    bins: int = 8
    sides: int = 2

    def frames(self, latents):
        return 4 * latents - 3

    def encode(self, params, x, keys_B):
        return params["scale"] * x, keys_B


@pytest.mark.parametrize("latents", [2, 9])
def test_a_clip_and_its_sound_are_encoded_each_by_its_own(latents):
    """The spectrogram is that of the whole sound, up to what so many latents become again."""
    media = LTX2Media(video=Part(), audio=Part(), vocoder=None)
    form = media.sound_form(latents)
    assert form == SoundForm(samples=640 * latents, channels=2, rate=16000)
    sound = np.random.default_rng(0).uniform(-1, 1, (1, form.samples, 2)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 1)
    params = {"vae.scale": 2.0, "audio_vae.scale": 3.0}
    found = media.encode(params, {"video": jnp.ones((1, 9, 4, 4, 3)), "audio": sound}, keys)
    (video, video_keys), (audio, audio_keys) = found["video"], found["audio"]
    assert (np.asarray(video) == 2).all() and audio.shape == (1, 4 * latents - 3, 8, 2)
    np.testing.assert_allclose(audio, 3 * LogMel(bins=8)(sound)[:, : 4 * latents - 3], rtol=1e-5)
    assert not (jax.random.key_data(video_keys) == jax.random.key_data(audio_keys)).all()
    assert media.encode(params, {"video": jnp.ones((1, 9, 4, 4, 3)), "audio": sound})["audio"][1] is None


# --- what is read ---------------------------------------------------------------------------------------------------------

ROLLOUT = RolloutConfig(thinking=False, image_height=24, image_width=32, frames=6, frames_per_second=FPS)
FORM = SoundForm(samples=740, channels=2, rate=1000)  # of 0.75 s, less a hundredth
GOOD = {"prompt": "it sounds", "video": "a.webp", "audio": "a.wav"}


def tone(seconds=0.75, rate=1000, channels=2):
    t = np.arange(round(seconds * rate))[:, None] / rate
    return (np.sin(2 * np.pi * 100 * t) * [[0.5, 0.25][:channels]]).astype(np.float32)


def write(folder, *lines):
    """FILE.jsonl of lines, and a.webp of 6 frames, 0.75 s, with a.wav."""
    folder.mkdir(exist_ok=True)
    save_clip(folder / "a.webp", clip(), FPS)
    save_sound(folder / "a.wav", tone(), 1000)
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "data.jsonl"


def examples(file, clips=True):
    return read_examples(str(file), "--data", False, clips)


def test_a_line_is_a_prompt_a_clip_and_a_sound(tmp_path):
    file = write(tmp_path, {"prompt": "silent", "video": "a.webp", "audio": None}, GOOD)
    found = examples(file)
    silent, heard = found.prompts
    assert str(found.heard) == f"{file}, line 2" and found.unread == () and not silent.clip.has_sound
    assert heard.clip.has_sound and "audio" not in asked(heard).metadata
    drawn, first = read(heard, ROLLOUT, False, FORM)
    assert first is None and drawn["audio"].dtype == np.float32
    np.testing.assert_allclose(drawn["audio"], tone()[:740], atol=1e-4)
    np.testing.assert_array_equal(drawn["video"], read(silent, ROLLOUT, False)[0])
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    both, _ = Pictures(ROLLOUT, 2, place, form=FORM)([heard, heard])
    np.testing.assert_array_equal(both["video"], [drawn["video"]] * 2)
    np.testing.assert_array_equal(both["audio"], [drawn["audio"]] * 2)


def test_a_sound_is_one_that_is_listed_where_pictures_are_learned(tmp_path):
    write(tmp_path)
    save_clip(tmp_path / "a.webp", clip(), FPS)
    (tmp_path / "data.jsonl").write_text(json.dumps({"prompt": "x", "image": "a.webp", "audio": 3}))
    assert examples(tmp_path / "data.jsonl", clips=False).unread == ("audio",)


@pytest.mark.skipif(not has_pyav(), reason="PyAV writes MP4")
def test_the_sound_of_an_mp4_is_its_own_unless_another_is_named(tmp_path):
    own, none = {"prompt": "own", "video": "a.mp4"}, {"prompt": "no", "video": "b.mp4"}
    file = write(tmp_path, own, GOOD | {"video": "a.mp4"}, none)
    save_clip(tmp_path / "a.mp4", clip(), FPS, (tone(rate=8000), 8000))
    save_clip(tmp_path / "b.mp4", clip(), FPS)
    own, other, none = examples(file).prompts
    assert has_sound(tmp_path / "a.mp4") and not has_sound(tmp_path / "b.mp4")
    heard = read(own, ROLLOUT, False, FORM)[0]["audio"]
    assert heard.shape == (740, 2) and np.abs(heard - tone()[:740])[100:-100].max() < 0.05
    np.testing.assert_allclose(read(other, ROLLOUT, False, FORM)[0]["audio"], tone()[:740], atol=1e-4)
    assert "line 3): its clip b.mp4 has no sound, and a clip is learned with it" in refusal(read, none, ROLLOUT, False, FORM)


@pytest.mark.parametrize("rate, channels, form", [
    (8000, 2, FORM), (48000, 1, FORM), (1000, 1, FORM),
    (8000, 2, dataclasses.replace(FORM, channels=1)), (4000, 2, SoundForm(samples=12000, channels=2, rate=16000)),
])  # fmt: skip
def test_a_sound_of_another_rate_or_channel_count_is_taken_as_the_model_hears_it(tmp_path, rate, channels, form):
    file = write(tmp_path, GOOD)
    save_sound(tmp_path / "a.wav", tone(rate=rate, channels=channels), rate)
    heard = read(examples(file).prompts[0], ROLLOUT, False, form)[0]["audio"]
    wanted = tone(rate=form.rate)[: form.samples]
    sides = wanted[:, [0, 0]] if channels == 1 else wanted if form.channels == 2 else wanted.mean(1, keepdims=True)
    assert heard.shape == (form.samples, form.channels)
    np.testing.assert_allclose(heard[20:-20], sides[20:-20], atol=2e-3)


@pytest.mark.parametrize("seconds", [0.63, 0.74, 0.87])
def test_a_sound_that_is_a_frame_shorter_or_longer_is_filled_up_or_cut(tmp_path, seconds):
    file = write(tmp_path, GOOD)
    save_sound(tmp_path / "a.wav", tone(seconds), 1000)
    heard = read(examples(file).prompts[0], ROLLOUT, False, FORM)[0]["audio"]
    count = min(740, round(1000 * seconds))
    np.testing.assert_allclose(heard[:count], tone(seconds)[:count], atol=1e-4)
    assert heard.shape == (740, 2) and not heard[count:].any()


@pytest.mark.parametrize("seconds", [0.5, 0.62, 0.88, 3])
def test_a_sound_of_another_length_is_refused(tmp_path, seconds):
    file = write(tmp_path, GOOD)
    save_sound(tmp_path / "a.wav", tone(seconds), 1000)
    text = refusal(read, examples(file).prompts[0], ROLLOUT, False, FORM)
    assert f"line 1): its sound lasts {seconds:.3f} s, but its 6 frames, 8 per second (rollout.frames_per_second)" in text
    assert "last 0.750 s; cut the sound or fill it up with silence (ffmpeg -i IN -af apad -t 0.750 OUT.wav)" in text


def test_a_clip_of_other_frames_per_second_is_told_to_set_them(tmp_path):
    file = write(tmp_path, GOOD)
    slow = dataclasses.replace(ROLLOUT, frames_per_second=4.0)
    text = refusal(read, examples(file).prompts[0], slow, False, FORM)
    assert "sound lasts 0.750 s, but its 6 frames, 4 per second" in text and "use --rollout.frames-per-second 8." in text


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (GOOD | {"audio": 3}, ['"audio" is 3; write the path of a sound there']),
        (GOOD | {"audio": "b.wav"}, ["\"audio\" is 'b.wav', but there is no such file"]),
        (GOOD | {"audio": "../a.wav"}, ["leaves the folder", "put the sound there"]),
        (GOOD | {"audio": "a.webp"}, ["a.webp is not a sound that can be read", "give a WAV file, mono or stereo"]),
        (GOOD | {"audio": "six.wav"}, ["six.wav is not a sound", "it has 6 channels: `ffmpeg -i IN -ac 2"]),
    ],
)
def test_what_is_no_sound_is_refused_with_its_line(tmp_path, line, words):
    folder = tmp_path / "data"
    file = write(folder, GOOD, line)
    (tmp_path / "a.wav").write_bytes((folder / "a.wav").read_bytes())
    head = bytearray((folder / "a.wav").read_bytes())
    head[22] = 6
    head[32:34] = (12).to_bytes(2, "little")
    (folder / "six.wav").write_bytes(head)
    text = refusal(examples, file)
    assert text.startswith(f"{file}, line 2: ") and all(word in text for word in words), text


def test_every_clip_must_have_a_sound_before_anything_compiles(tmp_path):
    """Also behind those that are decoded; its own line is named."""

    class Codec:
        check_lengths = lambda *_: None
        unknown_words = lambda *_: []

    silent = {"prompt": "x", "video": "a.webp"}
    found = examples(write(tmp_path, *[GOOD] * 2, silent))
    check_examples(found, Codec(), ROLLOUT)
    text = refusal(check_examples, found, Codec(), ROLLOUT, FORM)
    assert "line 3" in text and "its clip a.webp has no sound" in text and 'a WAV file under "audio"' in text
