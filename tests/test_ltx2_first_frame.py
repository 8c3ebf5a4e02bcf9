"""LTX-2 from a first frame: tokens that are given stay as they are, are no action, and all others are drawn upon them."""

import dataclasses
import functools
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests import tiny
from tests.test_flops import counted
from tests.test_ltx2_painter import TEXT, TOY
from tests.test_ltx2_sizes import SMALL, abstract
from unigrpo_jax.config import ConfigError, LearningConfig, ModelConfig, RolloutConfig, RunConfig
from unigrpo_jax.episode import Drawing, Episodes, Look, Picture
from unigrpo_jax.learning.drift import drift
from unigrpo_jax.learning.objective import Objective
from unigrpo_jax.learning.policy import Policy
from unigrpo_jax.models.families import load_model
from unigrpo_jax.models.ltx2.family import FROM_PICTURE
from unigrpo_jax.models.ltx2.flops import evaluation
from unigrpo_jax.models.schedule import timesteps
from unigrpo_jax.rollout.dialogue import begin, hear, look
from unigrpo_jax.rollout.drawing import FlowSampler, denoise
from unigrpo_jax.rollout.program import training_rollout
from unigrpo_jax.rollout.randomness import sample_keys
from unigrpo_jax.rollout.step_rules import DanceSDE
from unigrpo_jax.rollout.thinking import TokenSampler
from unigrpo_jax.training.given import given_pictures, picture_shapes
from unigrpo_jax.training.trainer import check_verbs
from unigrpo_jax.worlds.prompt import Prompt

GRID, FRAME, FREE = (3, 1, 2, 5, 24.0), 2, 4  # latents of the first frame, and of those after it
NOISE, STEPS = 0.3, 3
FLOW = FlowSampler(schedule=tuple(timesteps(STEPS, 1.0).tolist()), rule=DanceSDE(noise_level=NOISE), grid=GRID)
SETTINGS = RolloutConfig(thinking=False, image_height=32, image_width=64, frames=17, flow_steps=STEPS, timestep_shift=1.0,
                         window_size=2, window_range=(0, 2), step_rule="dance_sde", noise_level=NOISE)  # fmt: skip


@functools.cache
def given():
    """Parameters, texts, two different first frames, and noise."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    params = {name: draw(*shape) / (shape[-1] ** 0.5 if len(shape) > 1 else 3) + ("norm" in name)
              for name, shape in SMALL.shapes().items()}  # fmt: skip
    text = dataclasses.replace(TEXT, states=draw(2, 6, 7), audio=draw(2, 6, 7))
    noise = {name: draw(2, *shape) for name, shape in TOY.latent_shape(GRID).items()}
    return params, text, draw(2, 1, 1, FRAME, 5), noise


@functools.cache
def drawn():
    """What is drawn upon both pictures, and the condition."""

    def run(params, text, first, noise):
        dialogue = look(TOY, params, begin(TOY, params, (), 2), first)
        condition = hear(TOY, params, dialogue, text).full
        keys = sample_keys(jax.random.key(0), jnp.arange(2))
        x = TOY.free(noise, condition)
        return denoise(TOY, params, condition, x, keys, jnp.arange(2), FLOW), condition

    (end, (x, noise, mean)), condition = tiny.jit(run)(*given())
    steps = jnp.broadcast_to(jnp.arange(2), (2, 2))
    drawing = Drawing(steps=steps, x=x, noise=noise, mean=mean, latent=end, media={}, finite=jnp.ones(2, bool))
    picture = Look(latent=given()[2], patches=None)
    return Episodes(prompt=given()[1], segments=(drawing,), picture=picture), condition


POLICY = Policy(model=TOY, tokens=TokenSampler(), flow=FLOW)
view = functools.cache(lambda: tiny.jit(POLICY.view)(given()[0], drawn()[0])[0])


def test_the_log_probability_of_a_clip_is_that_of_its_free_tokens_by_hand():
    """In float64 from the transformer's own words: all tokens go in, the picture's at time 0, and those do not count.

    Both modalities' noise level is the sampler's, whatever the picture's tokens have.
    """
    params, text, first, _ = given()
    texts = {"video": text.states, "audio": text.audio}
    transformer = tiny.jit(lambda p, x, times, levels: SMALL(p, x, times, texts, GRID[:3], 24.0, sigmas=levels))
    (drawing,), times = drawn()[0].segments, np.asarray(FLOW.schedule, np.float64)
    for slot in range(2):
        t, dt = times[slot], times[slot] - times[slot + 1]
        x = {name: np.asarray(own[:, slot], np.float64) for name, own in drawing.x.items()}
        assert {name: own.shape[1] for name, own in x.items()} == {"video": FREE, "audio": 5}
        seen = {"video": jnp.concatenate([first.reshape(2, FRAME, 5), drawing.x["video"][:, slot]], 1),
                "audio": drawing.x["audio"][:, slot]}  # fmt: skip
        own = jnp.asarray([[0.0] * FRAME + [1000 * t] * FREE] * 2, jnp.float32)
        level = jnp.full(2, 1000 * t, jnp.float32)
        said = transformer(params, seen, {"video": own, "audio": level}, {"video": level, "audio": level})
        for name, v in (("video", said["video"][:, FRAME:]), ("audio", said["audio"])):
            v = np.asarray(v, np.float64)
            mean = x[name] - dt * (v + NOISE**2 / (2 * t) * (x[name] + (1 - t) * v))
            std = NOISE * math.sqrt(dt)
            np.testing.assert_allclose(view().mean[name][:, slot], mean, rtol=0, atol=2e-5)
            after = np.asarray(drawing.mean[name][:, slot], np.float64) + std * np.asarray(drawing.noise[name][:, slot])
            terms = -((after - mean) ** 2) / (2 * std**2) - math.log(std) - 0.5 * math.log(2 * math.pi)
            got = FLOW.rule.log_prob(after, view().mean[name][:, slot], view().std[0, slot])
            np.testing.assert_allclose(got, terms.sum((1, 2)) / terms[0].size, rtol=0, atol=1e-3)


def test_nothing_of_a_loss_pulls_at_the_pictures_tokens():
    """By what a network says of all tokens: surrogate, leash and KL have no gradient at the picture, and have elsewhere."""
    episodes, condition = drawn()
    (drawing,) = episodes.segments
    objective = Objective(policy=POLICY, config=LearningConfig(text_weight=0.0, mse_weight=0.3, latent_kl_weight=0.1))
    t = FLOW.times()[drawing.steps]
    whole = jax.vmap(lambda x: TOY.whole(x, condition), in_axes=1, out_axes=1)

    def loss(said):
        output = jax.vmap(lambda v: TOY.free(v, condition), in_axes=1, out_axes=1)(said)
        mean, std = jax.vmap(jax.vmap(FLOW.transition))(drawing.x, output, t, FLOW.times()[drawing.steps + 1])
        new = view().replace(output=output, mean=mean, std=std)
        anchor = objective.anchors(None, given()[0], episodes, own_start=True)[0]
        anchor = anchor.replace(old=drawing.mean, reference=view().output)
        return objective._flow(drawing, new, anchor, jnp.asarray([1.0, -1.0]), jnp.bool_(False), True, None)[0]

    said = jax.tree.map(lambda v: 1.01 * v, whole(view().output))
    pull = tiny.jit(jax.grad(loss))(said)["video"]
    assert not pull[:, :, :FRAME].any() and (np.abs(pull[:, :, FRAME:]).max(-1) > 0).all()


def test_another_first_frame_changes_all_that_is_drawn():
    params, text, first, noise = given()
    _, condition = drawn()
    x = TOY.free(noise, condition)
    predict = tiny.jit(lambda p, first: TOY.predict(p, x, jnp.full(2, 0.7), GRID, condition.replace(first=first)))
    one, other = (predict(params, frame.reshape(2, FRAME, 5)) for frame in (first, first[::-1]))
    for name, change in jax.tree.map(lambda a, b: np.abs(a - b).max(-1), one, other).items():
        assert change.shape == (2, {"video": FREE, "audio": 5}[name]) and (change > 1e-4).all(), name


def test_a_whole_latent_begins_with_the_picture_whatever_was_drawn():
    _, condition = drawn()
    latent = TOY.to_latent(TOY.whole(drawn()[0].drawing.latent, condition), GRID)
    np.testing.assert_array_equal(latent["video"][:, :1], given()[2])
    assert TOY.free(given()[3], TOY.empty(2)) is TOY.whole(given()[3], TOY.empty(2)) is given()[3]


class Media:
    """Latents of 32 x 32 pixels of a picture, frames of 32 x 32 pixels and samples of latents, from their first numbers."""

    rate = 24000

    def encode(self, params, image, keys_B=None):
        return jnp.repeat(image[:, None, ::32, ::32, :1], 5, axis=-1)

    def decode(self, params, latent):
        sides = jnp.repeat(jnp.repeat(latent["video"][..., :3], 32, axis=2), 32, axis=3)
        return {"video": jnp.repeat(sides, 8, axis=1)[:, 7:], "audio": jnp.repeat(latent["audio"][..., :2], 960, axis=1)}


def test_episodes_from_a_picture_hold_actions_of_the_later_frames_alone():
    """From shapes alone: two prompts, two episodes each; drift and update take them, too."""
    program = training_rollout(SETTINGS, TOY, Media(), 2)
    picture = picture_shapes(2, TOY, SETTINGS)
    rollout = lambda picture: jax.eval_shape(program.__call__, abstract(SMALL), {}, TEXT, 0, 0, 0, picture)
    episodes = rollout(picture)
    drawing = episodes.drawing
    assert drawing.media["video"].shape == (4, 17, 32, 64, 3) and episodes.picture.latent.shape == (4, 1, 1, 2, 5)
    for kept in (drawing.x, drawing.noise, drawing.mean):
        assert {name: x.shape for name, x in kept.items()} == {"video": (4, 2, FREE, 5), "audio": (4, 2, 18, 3)}
    assert rollout(None).drawing.x["video"].shape == (4, 2, FRAME + FREE, 5)  # the same program without
    policy = Policy(model=TOY, tokens=TokenSampler(), flow=program.flow)
    measure = lambda params, episodes, x: drift(policy, params, params, episodes, x, 4)
    found = jax.eval_shape(measure, abstract(SMALL), episodes, program.latent(4))
    assert {name: own["squared"].shape for name, own in found.items()} == {"flow_video": (STEPS,), "flow_audio": (STEPS,)}


def test_the_cost_of_a_time_for_each_token_is_counted():
    condition = jax.eval_shape(lambda: TOY.empty(1).replace(states=TEXT.states[:1], audio=TEXT.audio[:1],
                                                            first=jnp.zeros((1, FRAME, 5))))  # fmt: skip
    x = jax.eval_shape(lambda: {"video": jnp.zeros((1, FREE, 5)), "audio": jnp.zeros((1, 5, 3))})
    run = lambda p, x, c: TOY.predict(p, x, jnp.ones(1), GRID, c)
    each = evaluation(SMALL, FRAME + FREE, 5, 6, begun=True)
    assert each.layers + each.others == counted(run, abstract(SMALL), x, condition)
    work = TOY.work(RunConfig(rollout=SETTINGS), 0, pictures=True)
    assert work.evaluation() > TOY.work(RunConfig(rollout=SETTINGS), 0).evaluation()


def test_a_picture_of_another_size_is_one_sentence():
    params, _, first, noise = given()
    condition = drawn()[1].replace(first=first.reshape(2, FRAME, 5)[:, :1])
    with pytest.raises(ValueError, match="the picture has 1 latent tokens, but a frame has 1 x 2 = 2; use a picture of the"):
        TOY.predict(params, noise, jnp.ones(2), GRID, condition)


# ---- the folder


@pytest.fixture(scope="module")
def toy():
    return load_model(ModelConfig(path="ltx2_tiny"))


def test_a_folder_of_either_class_draws_with_pictures_and_without(toy, tmp_path):
    shutil.copytree(toy.folder, tmp_path / "toy")
    index = tmp_path / "toy" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": FROM_PICTURE}))
    again = load_model(ModelConfig(path=str(tmp_path / "toy")))
    assert again.network == toy.network and again.family == "ltx2"
    for shows in (False, True):
        check_verbs(again, dataclasses.replace(SETTINGS, rounds=1), shows)


def test_pictures_are_read_where_prompts_have_them_and_none_is_needed(toy, tmp_path):
    Image.new("RGB", (40, 20), "red").save(tmp_path / "a.png")
    settings = RolloutConfig(image_height=32, image_width=32, frames=9)
    pictured = Prompt(text="it moves", metadata={}, picture=lambda: np.asarray(Image.open(tmp_path / "a.png")))
    found = given_pictures([pictured], toy.network, settings)
    assert isinstance(found, Picture) and found.pixels.shape == (1, 32, 32, 3) and found.patches is None
    assert given_pictures([Prompt(text="it moves", metadata={})], toy.network, settings) is None
    with pytest.raises(ConfigError, match="rollout.frames = 1 leaves nothing else to draw; use --rollout.frames 9"):
        given_pictures([pictured], toy.network, dataclasses.replace(settings, frames=1))
    with pytest.raises(ConfigError, match="rollout.frames = 1 leaves nothing else to draw; use --rollout.frames 9"):
        picture_shapes(2, toy.network, dataclasses.replace(settings, frames=1))  # as a plan asks


def test_a_pictures_latents_are_the_posteriors_mean_whatever_the_keys(toy):
    params = toy.autoencoder_params()
    pixels = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (1, 32, 32, 3)), jnp.float32)
    encode = tiny.jit(lambda params, pixels, keys: toy.autoencoder.encode(params, pixels, keys))
    found = encode(params, pixels, jax.random.split(jax.random.key(0), 1))
    own = {name.removeprefix("vae."): x for name, x in params.items() if name.startswith("vae.")}
    np.testing.assert_array_equal(found, tiny.jit(toy.autoencoder.video.encode)(own, pixels))
    assert found.shape == (1, 1, 2, 2, 8)
