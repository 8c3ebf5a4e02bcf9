"""LTX-2 without its sound: the video's branch alone draws, as if there were nothing to be heard; and passes that need it."""

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.test_flops import counted
from tests.test_ltx2_first_frame import FRAME, FREE, GRID, given
from tests.test_ltx2_painter import TEXT, TOY
from tests.test_ltx2_sizes import SMALL, SMALL_NEWER, abstract
from unigrpo_jax.config import (
    ConfigError,
    EvaluationConfig,
    LearningConfig,
    ModelConfig,
    RolloutConfig,
    RunConfig,
)
from unigrpo_jax.config_checks import check
from unigrpo_jax.config_evaluation import PassesConfig
from unigrpo_jax.learning import parameters
from unigrpo_jax.models.families import find_folder, load_model
from unigrpo_jax.models.loaded import sound_rate
from unigrpo_jax.models.ltx2.transformer import HEARD, Without
from unigrpo_jax.rollout.program import training_rollout
from unigrpo_jax.training.evaluation import check_evaluation, evaluation_rollout
from unigrpo_jax.training.given import picture_shapes
from unigrpo_jax.training.supervised import lessons_of

SILENT = dataclasses.replace(TOY, sound=False)
SILENT_GRID = (*GRID[:3], 0, GRID[4])


def test_the_clip_is_drawn_as_if_it_heard_nothing():
    """With the picture's tokens among them: as the whole network says where neither modality hears the other."""
    params, text, first, noise = given()
    condition = SILENT.read({}, text, SILENT.begun(SILENT.empty(2), first))
    deaf = Without(other=jnp.ones(2, bool))

    def both(params, x, t):
        alone = SILENT.predict(params, x["video"][:, FRAME:], t, SILENT_GRID, condition)
        seen = {**x, "video": jnp.concatenate([first.reshape(2, FRAME, 5), x["video"][:, FRAME:]], 1)}
        own = jnp.concatenate([jnp.zeros((2, FRAME)), jnp.repeat(1000 * t[:, None], FREE, 1)], 1)
        texts, levels = {"video": text.states, "audio": text.audio}, dict.fromkeys(x, 1000 * t)
        return alone, SMALL(params, seen, levels | {"video": own}, texts, GRID[:3], 24.0, None, levels, deaf)["video"]

    alone, want = tiny.jit(both)(params, noise, jnp.asarray([0.3, 0.9]))
    assert alone.shape == (2, FREE, 5) and np.abs(alone).max() > 0.1
    np.testing.assert_allclose(alone, want[:, FRAME:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("transformer", [SMALL, SMALL_NEWER], ids=["2", "2.3"])
def test_what_is_only_heard_is_not_read_and_not_trained(transformer):
    painter = dataclasses.replace(SILENT, transformer=transformer)
    params = abstract(transformer)
    seen = {name: x for name, x in params.items() if not re.fullmatch(HEARD, name)}
    widths = [transformer.text_width or branch.width for branch in transformer.branches.values()]
    text = TEXT.replace(states=jnp.zeros((2, 6, widths[0])), audio=None)
    run = lambda p: painter.predict(p, jnp.zeros((2, FRAME + FREE, 5)), jnp.ones(2), SILENT_GRID, painter.read({}, text,
                                    painter.empty(2)))  # fmt: skip
    assert jax.eval_shape(run, seen).shape == (2, FRAME + FREE, 5)
    labels = parameters.groups(params, LearningConfig(), painter.trained_by)
    assert {name for name, group in labels.items() if group == "denoising"} == set(seen) != set(params)
    assert set(parameters.groups(params, LearningConfig(), TOY.trained_by).values()) == {"denoising"}
    for name in seen:  # and all of that is: without it nothing can be said
        if name.endswith("_table") or name == "proj_in.weight":
            with pytest.raises(KeyError):
                jax.eval_shape(run, {other: x for other, x in seen.items() if other != name})


def test_its_cost_is_that_of_one_branch():
    settings = RolloutConfig(image_height=32, image_width=64, frames=17, prompt_tokens=6)
    work = SILENT.work(RunConfig(rollout=settings), 0)
    text = jax.tree.map(lambda x: x[:1], TEXT)
    run = lambda p: SILENT.predict(p, jnp.zeros((1, FRAME + FREE, 5)), jnp.ones(1), SILENT_GRID, SILENT.read({}, text,
                                   SILENT.empty(1)))  # fmt: skip
    assert SILENT.grid(*settings.size) == SILENT_GRID and work.evaluation() == counted(run, abstract(SMALL))
    assert work.each.weights < TOY.work(RunConfig(rollout=settings), 0).each.weights


@pytest.fixture(scope="module")
def silent():
    return load_model(ModelConfig(path="ltx2_tiny", sound=False))


def test_episodes_hold_a_clip_and_nothing_else(silent):
    """From shapes alone, from a text and from a picture."""
    settings = RolloutConfig(thinking=False, image_height=32, image_width=32, frames=9, flow_steps=3, timestep_shift=0.0,
                             window_size=1, window_range=(0, 2))  # fmt: skip
    shapes = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in silent.autoencoder.shapes().items()}
    assert sound_rate(silent) == 0 and all(name.startswith("vae.") for name in shapes)
    assert set(silent.autoencoder_params()) == set(shapes)
    program = training_rollout(settings, silent.network, silent.autoencoder, 2)
    run = lambda picture: jax.eval_shape(program.__call__, silent.stored_params(), shapes, silent.codec.shapes(2, 0), 0, 0,
                                         0, picture)  # fmt: skip
    for picture, tokens in ((None, 8), (picture_shapes(2, silent.network, settings), 4)):
        episodes = run(picture)
        assert {name: x.shape for name, x in episodes.drawing.media.items()} == {"video": (4, 9, 32, 32, 3)}
        assert episodes.drawing.x.shape == (4, 1, tokens, 8) and episodes.rate is None and episodes.fps == 24


def test_a_folder_whose_vocoder_is_not_built_draws_without_sound(tmp_path):
    """LTX-2.3 has another vocoder, which is all of it that is not built."""
    folder = shutil.copytree(find_folder("ltx2_tiny"), tmp_path / "folder")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"vocoder": ["diffusers", "LTX2VocoderWithBWE"]}))
    (folder / "vocoder" / "config.json").write_text(json.dumps({"_class_name": "LTX2VocoderWithBWE", "of_its_own": 1}))
    with pytest.raises(ConfigError, match="says that vocoder is 'LTX2VocoderWithBWE', but only LTX2Vocoder is built"):
        load_model(ModelConfig(path=str(folder)))
    loaded = load_model(ModelConfig(path=str(folder), sound=False))
    loaded.check_weights()
    assert sound_rate(loaded) == 0 and not loaded.unknown_settings


def test_clips_without_sound_can_be_learned_from_examples(silent):
    """From shapes alone: noisy versions of all of a clip's tokens."""
    config = RunConfig(rollout=RolloutConfig(image_height=32, image_width=32, frames=9, window_size=3, timestep_shift=0.0))
    lessons = lessons_of(config, silent.network, silent.autoencoder, 0)
    shapes = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in silent.autoencoder.shapes().items()}
    clips = jax.ShapeDtypeStruct((2, 9, 32, 32, 3), np.uint8)
    episodes = jax.eval_shape(lessons.__call__, shapes, silent.codec.shapes(2, 0), None, clips, 0, 0)
    assert episodes.drawing.x.shape == (2, 3, 8, 8) and episodes.drawing.latent.shape == (2, 8, 8)


def test_a_model_that_makes_no_sound_has_no_such_setting():
    with pytest.raises(ConfigError, match="model.sound is a setting of ltx2 alone, and .* leave it out.$"):
        load_model(ModelConfig(path="sd_tiny", sound=False))


# ---- passes of guidance that are asked for where they are not


def asked(**passes):
    return EvaluationConfig(thinking=False, flow_steps=2, guidance=3.0, passes=PassesConfig(**passes))


CLIP = RolloutConfig(thinking=False, image_height=32, image_width=32, frames=9, timestep_shift=0.0)


def test_evaluations_take_passes_where_the_model_has_them():
    loaded = load_model(ModelConfig(path="ltx2_tiny"))
    released = asked(sound=7.0, mixing=1.0, blocks=(1,), other=3.0, rescale=0.7)
    guidance = evaluation_rollout(released, CLIP, loaded).flow.guidance
    assert guidance.passes == ("text", "unmixed", "alone") and guidance.unmixed == (False, True)
    assert (guidance.video.text, guidance.audio.text) == (3.0, 7.0)
    with pytest.raises(ConfigError, match="renorm = global is not built beside evaluation.passes, .* leave it out.$"):
        check_evaluation(dataclasses.replace(asked(other=3.0), guidance_renorm="global"), CLIP, loaded)
    with pytest.raises(ConfigError, match="passes: there is no block 28 to leave unmixed; the network has 0 to 1.$"):
        check_evaluation(asked(mixing=1.0, blocks=(28,)), CLIP, loaded)


def test_other_models_have_no_such_passes(silent):
    with pytest.raises(ConfigError, match=r"evaluation.passes: .* is a model \(stable_diffusion\) that has no such passes"):
        check_evaluation(asked(rescale=0.5), CLIP, load_model(ModelConfig(path="sd_tiny")))
    with pytest.raises(ConfigError, match="evaluation.passes: no sound is drawn .*; leave them out.$"):
        check_evaluation(asked(other=3.0), CLIP, silent)


@pytest.mark.parametrize("passes, words", [
    ({"sound": 0.5}, "passes.sound = 0.5, but it must be 1"),
    ({"mixing": -1.0, "blocks": (0,)}, "passes.mixing = -1.0, but it must be 0"),
    ({"mixing": 1.0}, "mixing = 1 with blocks = none; give both"),
    ({"blocks": (3, 4)}, "mixing = 0 with blocks = 3 4; give both"),
    ({"other": 0.9}, "passes.other = 0.9, but it must be 1"),
    ({"rescale": 1.1}, "passes.rescale = 1.1, but it must be from 0 to 1"),
])  # fmt: skip
def test_scales_that_mean_nothing_are_one_sentence(passes, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        check(RunConfig(evaluation=EvaluationConfig(passes=PassesConfig(**passes))))
