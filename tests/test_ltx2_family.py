"""LTX-2's folder as the house asks for one: recorded texts, clip and sound through it, a toy, and what does not fit."""

import json
import shutil

import jax
import numpy as np
import pytest

from tests import tiny
from unigrpo_jax.config import ConfigError, EmbeddingsConfig, ModelConfig, RolloutConfig, RunConfig
from unigrpo_jax.models.families import load_model
from unigrpo_jax.models.folders import component
from unigrpo_jax.models.folders.toys import save, save_weights
from unigrpo_jax.models.loaded import SoundForm, sound_form
from unigrpo_jax.models.ltx2.config import read_connectors
from unigrpo_jax.models.ltx2.tiny import make_tiny
from unigrpo_jax.rollout.program import training_rollout
from unigrpo_jax.training.evaluation import by_round
from unigrpo_jax.training.supervised import lessons_of
from unigrpo_jax.training.trainer import token_size
from unigrpo_jax.worlds.prompt import Prompt


@pytest.fixture(scope="module")
def loaded(fixtures, tmp_path_factory):
    """The recorded folder."""
    kept = EmbeddingsConfig(folder=str(tmp_path_factory.mktemp("texts")))
    return load_model(ModelConfig(path=str(fixtures / "ltx2" / "pipeline"), embeddings=kept))


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A folder of the toy."""
    folder = tmp_path_factory.mktemp("ltx2") / "toy"
    make_tiny(folder)
    return folder


def test_recorded_texts_through_gemma_and_connectors(loaded, fixtures, assert_close):
    settings = json.loads((fixtures / "ltx2" / "settings.json").read_text())
    found = np.load(fixtures / "ltx2" / "text.npz")
    with jax.default_matmul_precision("highest"):
        texts = loaded.codec.prompts(settings["prompts"], 0)
    assert_close(texts.states, found["video_embeds"], name="for the video")
    assert_close(texts.audio, found["audio_embeds"], name="for the sound")
    empty = settings["prompts"].index("")
    for own, want in ((texts.empty.states, "video_embeds"), (texts.empty.audio, "audio_embeds")):
        assert_close(own, np.repeat(found[want][empty][None], len(own), axis=0), name=f"empty: {want}")
    assert texts.mask is None and loaded.codec.guided


def test_a_recorded_clip_and_its_sound(loaded, fixtures, assert_close):
    run, settings = np.load(fixtures / "ltx2" / "run.npz"), json.loads((fixtures / "ltx2" / "settings.json").read_text())
    grid = loaded.network.grid(*settings["image_hw"], settings["frames"], settings["fps"])
    latent = loaded.network.to_latent({name: run[f"full_{name}"][-1] for name in ("video", "audio")}, grid)
    out = tiny.jit(loaded.autoencoder.decode)(loaded.autoencoder_params(), latent)
    assert_close(out["video"], np.moveaxis(run["full_clip"], 1, -1), 2e-4, "clip")
    assert_close(out["audio"], np.moveaxis(run["full_waveform"], 1, -1), 2e-4, "sound")
    said = json.loads((fixtures / "ltx2" / "pipeline" / "vocoder" / "config.json").read_text())
    assert loaded.autoencoder.rate == said["output_sampling_rate"]
    assert not loaded.unknown_settings and not loaded.unread_files


def test_episodes_of_the_toy_are_judged_with_their_sound(toy):
    """From shapes alone: two prompts, two episodes each, 9 frames at 8 a second, so 28 latents of sound at 25 a second."""
    model = load_model(ModelConfig(path=str(toy)))
    settings = RolloutConfig(thinking=False, image_height=32, image_width=32, frames=9, frames_per_second=8.0, flow_steps=3,
                             timestep_shift=0.0, window_size=1, window_range=(0, 2), guidance=2.0)  # fmt: skip
    program = training_rollout(settings, model.network, model.autoencoder, 2)
    shapes = {name: jax.ShapeDtypeStruct(x, np.float32) for name, x in model.autoencoder.shapes().items()}
    texts = model.codec.shapes(2, 0)
    episodes = jax.eval_shape(program.__call__, model.stored_params(), shapes, texts, 0, 0, 0)
    samples = model.autoencoder.vocoder.samples(4 * 28 - 3)
    assert {name: x.shape for name, x in episodes.drawing.media.items()} == {
        "video": (4, 9, 32, 32, 3), "audio": (4, samples, 2)}  # fmt: skip
    prompts = [Prompt(text="a", metadata={})] * 4
    (batch,) = by_round(episodes, prompts, model.codec, lambda x: np.zeros(x.shape, x.dtype), None)
    assert batch.audio.shape == (4, samples, 2) and (batch.rate, batch.fps, batch.size) == (4000, 8, (32, 32))


@pytest.mark.parametrize("frames, fps", [(9, 8.0), (17, 24.0)])
def test_a_latent_token_of_a_clip_with_sound_has_the_pictures_size(toy, frames, fps):
    """Whatever stands in the grid for the sound: as many pixels of height and width as the picture has for each."""
    model = load_model(ModelConfig(path=str(toy)))
    side = model.network.downsample
    rollout = RolloutConfig(image_height=3 * side, image_width=side, frames=frames, frames_per_second=fps)
    assert token_size(model.network, rollout) == (side, side)


def test_a_folder_goes_in_and_out_unchanged(toy, tmp_path):
    model = load_model(ModelConfig(path=str(toy)))
    model.export(model.params(), tmp_path / "out", "float32")
    again = load_model(ModelConfig(path=str(tmp_path / "out")))
    assert again.network == model.network and again.autoencoder == model.autoencoder
    for name, x in model.params().items():
        np.testing.assert_array_equal(again.params()[name], x, err_msg=name)


CHANGES = {
    "transformer": [
        ({"vae_scale_factors": [8, 32, 32]}, "vae_scale_factors = (8, 32, 32), but that of .*vae is (8, 16, 16)"),
        ({"audio_hop_length": 80}, "audio_hop_length = 80, but that of .*audio_vae is 160"),
        ({"caption_channels": 32}, "does not fit"),
        ({"rope_type": None}, "rope_type = None, but it must be said"),
    ],
    "connectors": [
        ({"text_proj_in_factor": 5}, "text_proj_in.weight has shape [24, 96], the config asks for [24, 120]"),
        ({"video_connector_num_learnable_registers": 48}, "48 registers do not fill texts of 32 tokens; pad them to 48"),
    ],
    "vocoder": [({"in_channels": 64}, "in_channels = 64, but spectrograms of .*audio_vae have 2 x 16 = 32 numbers")],
}


@pytest.mark.parametrize("part, data, words", [(part, *case) for part, cases in CHANGES.items() for case in cases])
def test_parts_that_do_not_fit_together_are_one_sentence(toy, tmp_path, part, data, words):
    folder = tmp_path / "toy"
    shutil.copytree(toy, folder)
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | data))
    with pytest.raises(ConfigError) as error:
        load_model(ModelConfig(path=str(folder)))
    before, _, behind = words.partition(".*")
    assert before in str(error.value) and behind in str(error.value) and "\n" not in str(error.value)


def test_connectors_for_another_encoder_are_one_sentence(toy, tmp_path):
    """Their weights fit their config."""
    folder = tmp_path / "toy"
    shutil.copytree(toy, folder)
    own = folder / "connectors"
    save(own / "config.json", json.loads((own / "config.json").read_text()) | {"text_proj_in_factor": 5})
    save_weights(own, component.DIFFUSERS, component.wanted(read_connectors(own / "config.json")), 0)
    with pytest.raises(ConfigError, match="factor are 24 and 5, but the text encoder says 4 states of 24 numbers.$"):
        load_model(ModelConfig(path=str(folder)))


def test_a_missing_part_is_one_sentence(toy, tmp_path):
    folder = tmp_path / "toy"
    shutil.copytree(toy, folder)
    shutil.rmtree(folder / "vocoder")
    with pytest.raises(ConfigError, match="holds no folder vocoder; such a model's holds "):
        load_model(ModelConfig(path=str(folder)))


def test_examples_of_the_toy_become_latents_of_the_clip_and_of_its_sound(toy):
    """From shapes alone: 9 frames at 8 a second, so 28 latents of sound, which take 28 x 640 samples at 16 kHz."""
    model = load_model(ModelConfig(path=str(toy)))
    rollout = RolloutConfig(image_height=32, image_width=32, frames=9, frames_per_second=8.0, window_size=2)
    form = sound_form(model.network, model.autoencoder, rollout)
    assert form == SoundForm(samples=28 * 640, channels=2, rate=16000) and model.autoencoder.rate == 4000
    lessons = lessons_of(RunConfig(rollout=rollout), model.network, model.autoencoder, 1)
    shapes = {name: jax.ShapeDtypeStruct(x, np.float32) for name, x in model.autoencoder.shapes().items()}
    given = {"video": jax.ShapeDtypeStruct((3, 9, 32, 32, 3), np.uint8),
             "audio": jax.ShapeDtypeStruct((3, form.samples, 2), np.float32)}  # fmt: skip
    found = jax.eval_shape(lessons.__call__, shapes, model.codec.shapes(3, 0), None, given, 0, 0).drawing
    size = model.network.latent_shape(lessons.grid)
    assert size["video"] == (2 * 2 * 2, 8) and size["audio"] == (28, 8)
    for name, own in size.items():
        assert found.latent[name].shape == (3, *own) and found.x[name].shape == (3, 2, *own) == found.noise[name].shape
    assert found.times.shape == (3, 2) and found.finite.shape == (3,)
