"""The transformer of HunyuanVideo against diffusers: from text, and from a picture; passes, runs, transitions, gradients."""

import dataclasses
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import recorded_gradients
from unigrpo_jax.models.building.computing import PLAIN
from unigrpo_jax.models.building.first_frame import upon
from unigrpo_jax.models.building.flat import layer_norm, linear, of_stack
from unigrpo_jax.models.building.guidance import Guidance
from unigrpo_jax.models.building.two_streams import modulation, rotary, told
from unigrpo_jax.models.folders import component
from unigrpo_jax.models.hunyuan_video.condition import beside_first
from unigrpo_jax.models.hunyuan_video.config import read_transformer
from unigrpo_jax.models.hunyuan_video.painter import HunyuanVideo
from unigrpo_jax.models.hunyuan_video.transformer import REFINER_TOLD, TEXT, HunyuanVideoTransformer
from unigrpo_jax.models.schedule import FlowShift
from unigrpo_jax.models.text_encoders.states import TextStates
from unigrpo_jax.rollout.step_rules import ODE, DanceSDE

FOLDERS = {"t2v": "pipeline", "i2v": "pipeline_i2v"}
SMALL = HunyuanVideoTransformer(
    channels=8, double=1, single=1, heads=2, axes=(2, 4, 2), text_width=6, pooled_width=5, guidance=True, refiner=1
)
both = pytest.mark.parametrize("kind", FOLDERS)


class Recorded:
    """The recorded arrays of one network, latents as tokens, with its painter and its parameters.

    Attributes:
      told: the scale of guidance that the runs tell the network.
      passes: (params, x, time, text, scale) -> velocity, jitted; `text` is (states, mask, pooled).
    """

    def __init__(self, folder, kind):
        self.folder, self.kind, own = folder, kind, folder / FOLDERS[kind]
        network = read_transformer(own / "transformer" / "config.json")
        weights = component.open_weights(own / "transformer", component.DIFFUSERS, network)
        self.params = component.read(weights, network, np.float32)
        shift = json.loads((own / "scheduler" / "scheduler_config.json").read_text())["shift"]
        self.told = float(self.load("run")["guidance"]) if kind == "t2v" else 1.0
        self.painter = HunyuanVideo(transformer=network, shift=FlowShift(shift=shift), guidance_scale=self.told)
        settings = json.loads((folder / "settings.json").read_text())
        self.grid = self.painter.grid(*settings["image_hw"], settings["frames"])
        self.passes = jax.jit(lambda p, x, time, text, scale: network(p, x, time, *text, self.grid, scale))

    @property
    def network(self) -> HunyuanVideoTransformer:
        return self.painter.transformer

    def load(self, name):
        return dict(np.load(self.folder / f"{name}.npz"))

    def tokens(self, latent_BCFHW):
        return self.painter.to_tokens(np.moveaxis(latent_BCFHW, 1, -1))

    def text(self, found, mask="prompt_mask", before="", pooled="pooled"):
        return found[f"{before}prompt_embeds"], found[before + mask] > 0, found[before + pooled]

    def condition(self, before=""):
        """What a run draws upon: a text, and where it goes on from a picture, that."""
        states, valid, pooled = self.text(self.load("text"), before=before, pooled="clip_pooled")
        condition = upon(TextStates(states, pooled, valid), None)
        if self.kind == "t2v":
            return condition
        return self.painter.begun(condition, np.moveaxis(self.load("run")["image_latents"], 1, -1))

    def velocity(self, x, t, before=""):
        """Upon the condition of a run."""
        c, rows = self.condition(before), x.shape[:1]
        x = x if c.first is None else beside_first(x, c.first)
        scale = np.full(rows, 1000 * self.told, np.float32)
        time = np.full(rows, 1000 * np.float32(t), np.float32)
        return self.passes(self.params, x, time, (c.states, c.mask, c.pooled), scale)

    def loss(self, loss):
        """A loss of (parameters) from one of (velocity at x and t), as the painter predicts it."""
        condition = self.condition()
        return lambda p: loss(lambda x, t: self.painter.predict(p, x, t, self.grid, condition))


@pytest.fixture(scope="module")
def recorded(fixtures):
    """The two networks."""
    return {kind: Recorded(fixtures / "hunyuan_video", kind) for kind in FOLDERS}


def test_single_passes(recorded, assert_close):
    one, other = recorded["t2v"], recorded["i2v"]
    found = one.load("transformer")
    x, text, rest = one.tokens(found["latents"]), one.text(found), (found["timestep"], found["guidance"])
    run = lambda text: one.passes(one.params, x, rest[0], text, rest[1])
    assert_close(run(text), one.tokens(found["t2v_out"]), name="from text")
    everything = (text[0], np.ones_like(text[1]), text[2])
    assert_close(run(everything), one.tokens(found["t2v_out_fullmask"]), name="without padding")
    given = other.tokens(found["i2v_input"])
    out = other.passes(other.params, given, rest[0], text, rest[1])
    assert_close(out, other.tokens(found["i2v_out"]), name="from a picture")
    # Padding is read by nothing: other states there, and no bit is another.
    shorter = text[1] & (np.arange(text[1].shape[1]) < text[1].sum(axis=1).max() - 1)
    spoiled = np.where(shorter[..., None], text[0], 7.0).astype(np.float32)
    np.testing.assert_array_equal(run((spoiled, shorter, text[2])), run((text[0], shorter, text[2])))


def test_stages(recorded, assert_close):
    """What comes before the blocks, then video and text after every recorded one; of a text, what is no padding."""
    one = recorded["t2v"]
    network, params, found = one.network, one.params, one.load("transformer")
    stage = {name.removeprefix("t2v_stage/"): x for name, x in found.items() if name.startswith("t2v_stage/")}
    states, valid, pooled = one.text(found)
    length, time = states.shape[1], found["timestep"]
    layer = lambda stack, i: {name: x[i] for name, x in of_stack(params, stack).items()}
    close = lambda got, name: assert_close(got, stage[name], name=name)
    real = lambda got, name: assert_close(np.asarray(got)[valid], stage[name][valid], name=name)

    turn = rotary(one.grid, length, network.axes, network.theta, np.float32)
    for i, (part, still) in enumerate(zip(turn, (1, 0), strict=True)):
        assert (part[:length] == still).all()
        close(np.repeat(part[length:], 2, axis=1), f"rope.{i}")
    condition = network.condition(params, time, pooled, found["guidance"])
    assert_close(condition, jax.nn.silu(stage["time_text_embed.0"]), name="condition")
    close(network.embedded(params, one.tokens(found["latents"])), "x_embedder")
    mean = np.stack([x[v].mean(axis=0) for x, v in zip(states, valid, strict=True)])
    own = told(params, REFINER_TOLD, time, mean)
    assert_close(own, jax.nn.silu(stage["context_embedder.time_text_embed"]), name="the refiner's condition")
    close(linear(params, f"{TEXT}.proj_in", states), "context_embedder.proj_in")
    real(jax.jit(network.refined)(params, states, valid, time), "context_embedder")

    seen = np.concatenate([valid, np.ones((len(valid), math.prod(one.grid)), bool)], axis=1)
    text, video, out = stage["context_embedder"], stage["x_embedder"], {}
    block = jax.jit(lambda p, text, video: network.double_block(p, text, video, condition, turn, PLAIN, seen))
    for i in range(network.double):
        text, video = block(layer("transformer_blocks", i), text, video)
        out[f"transformer_blocks.{i}"] = video, text
    h = np.concatenate([text, video], axis=1)
    block = jax.jit(lambda p, h: network.single_block(p, h, condition, turn, PLAIN, seen))
    for i in range(network.single):
        h = block(layer("single_transformer_blocks", i), h)
        out[f"single_transformer_blocks.{i}"] = h[:, length:], h[:, :length]
    blocks = {name.rpartition(".")[0] for name in stage if re.match("(single_)?transformer_blocks", name)}
    assert {name.split(".")[0] for name in blocks} == {"transformer_blocks", "single_transformer_blocks"}
    for name in blocks:
        close(out[name][0], f"{name}.0")
        real(out[name][1], f"{name}.1")
    factor, shift = modulation(params, "norm_out.linear", condition, 2, PLAIN)
    plain = {"n.weight": np.ones(network.width, np.float32), "n.bias": np.zeros(network.width, np.float32)}
    close(layer_norm(plain, "n", h[:, length:], 1e-6) * (1 + factor) + shift, "norm_out")


@pytest.mark.parametrize("run", ["t2v", "i2v", "i2v_nocfg"])
def test_whole_runs(recorded, assert_close, run):
    one = recorded[run.removesuffix("_nocfg")]
    found = one.load("run")
    guidance = Guidance(text=float(found["true_cfg"]) if run == "i2v" else 1.0, renorm="none")
    times = one.painter.times(len(found[f"{run}_sigmas"]) - 1, 0, one.grid)
    assert_close(times, found[f"{run}_sigmas"], limit=1e-6, name="times")
    x = one.tokens(found["init"])
    for i in range(len(times) - 1):
        v = one.velocity(x, times[i])
        if guidance.active:
            v = guidance.apply(v, one.velocity(x, times[i], before="neg_"))
        if f"{run}_v" in found:
            assert_close(v, one.tokens(found[f"{run}_v"][i]), limit=2e-4, name=f"velocity {i}")
        x, _ = ODE().transition(x, v, times[i], times[i + 1], times[1])
        assert_close(x, one.tokens(found[f"{run}_x"][i]), limit=2e-4, name=f"latents {i}")


@both
def test_transitions_with_noise(recorded, assert_close, kind):
    one = recorded[kind]
    found = one.load(f"dance_{kind}")
    rule, last = DanceSDE(noise_level=float(found["eta"])), len(found["v"]) - 1
    times = one.painter.times(last + 1, float(found["shift"]), one.grid)
    assert_close(times, found["sigmas"], limit=1e-6, name="times")
    for i in range(last + 1):
        x, x_next, want = (one.tokens(found[name][j]) for name, j in (("x", i), ("x", i + 1), ("v", i)))
        v = one.velocity(x, times[i])
        assert_close(v, want, name=f"velocity {i}")
        mean, std = rule.transition(x, v, times[i], times[i + 1], times[1])
        assert_close(mean, one.tokens(found["mean"][i]), name=f"mean {i}")
        assert_close(std, found["std"][i], name=f"std {i}")
        assert_close(mean + std * one.tokens(found["noises"][i]), x_next, name=f"state {i}")
        np.testing.assert_allclose(rule.log_prob(x_next, mean, std), found["log_prob"][i], rtol=0, atol=1e-3)
        if i == last:
            data, _ = ODE().transition(x, v, times[i], 0.0, times[1])
            assert_close(data, one.tokens(found["x0_last"]), name="data")


def test_the_gradient_of_the_error_in_the_velocity(recorded, assert_close):
    one = recorded["t2v"]
    given = one.load("mse_inputs")
    clean, noise = one.tokens(given["clean"]), one.tokens(given["noise"])
    sigma = given["sigma"][:, None, None]
    noisy = (1 - sigma) * clean + sigma * noise
    loss = one.loss(lambda velocity: jnp.mean((velocity(noisy, given["sigma"]) - (noise - clean)) ** 2))
    recorded_gradients.check(loss, one.params, one.network.stored_names, one.folder, "grad_mse_t2v", assert_close)


@both
def test_the_gradient_of_a_transitions_log_probability(recorded, assert_close, kind):
    one = recorded[kind]
    run = one.load(f"dance_{kind}")
    step = recorded_gradients.step_of(one.folder, f"grad_logprob_{kind}", run["log_prob"])
    rule, (x, x_next) = DanceSDE(noise_level=float(run["eta"])), map(one.tokens, run["x"][step : step + 2])
    times = one.painter.times(len(run["sigmas"]) - 1, float(run["shift"]), one.grid)

    def loss(velocity):
        v = velocity(x, jnp.full(len(x), times[step]))
        mean, std = rule.transition(x, v, times[step], times[step + 1], times[1])
        return jnp.sum(rule.log_prob(x_next, mean, std))

    names = one.network.stored_names
    recorded_gradients.check(one.loss(loss), one.params, names, one.folder, f"grad_logprob_{kind}", assert_close)


@pytest.mark.parametrize("name, data, count", [
    ("transformer", {}, 12_821_012_544),
    ("transformer_skyreels_i2v", {"in_channels": 32}, 12_821_209_152),
])  # fmt: skip
def test_every_name_and_shape_of_the_published_size(fixtures, tmp_path, name, data, count):
    published = json.loads((fixtures / "hunyuan_video" / "param_shapes_full.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(data))
    network = read_transformer(tmp_path / "config.json")
    assert component.wanted(network) == {name: tuple(shape) for name, shape in published["shapes"][name].items()}
    assert component.count(network) == published["param_count"][name] == count


def test_tokens_are_squares_of_a_frame_and_latents_again():
    """By hand: frames before rows before columns; inside a token channels before rows before columns."""
    painter = HunyuanVideo(transformer=SMALL)
    grid = painter.grid(32, 48, 9)
    assert grid == (3, 2, 3) and painter.latent_shape(grid) == (18, 8)
    latent = np.random.default_rng(0).standard_normal((2, 3, 4, 6, 2))
    tokens = painter.to_tokens(latent)
    want = [
        latent[:, f, 2 * r + i, 2 * c + j, k]
        for f in range(3)
        for r in range(2)
        for c in range(3)
        for k in range(2)
        for i in range(2)
        for j in range(2)
    ]
    np.testing.assert_array_equal(tokens, np.stack(want, axis=1).reshape(2, 18, 8))  # fmt: skip
    np.testing.assert_array_equal(painter.to_latent(tokens, grid), latent)


def test_a_picture_stands_beside_the_first_frame_and_zeros_beside_the_others():
    x, first = np.ones((2, 6, 4), np.float32), np.full((2, 2, 4), 3.0)
    want = np.concatenate([x, np.concatenate([first, np.zeros((2, 4, 4))], axis=1)], axis=-1)
    np.testing.assert_array_equal(beside_first(x, first), want)


def test_guidance_compares_with_the_empty_text_upon_the_same_picture():
    painter = HunyuanVideo(transformer=SMALL)
    texts = [TextStates(np.full((2, 3, 6), i, np.float32), np.full((2, 5), i), np.full((2, 3), i > 0)) for i in range(2)]
    begun = painter.begun(painter.empty(2), np.ones((2, 1, 4, 4, 2), np.float32))
    read, unread = (verb({}, texts[0].replace(empty=texts[1]), begun) for verb in (painter.read, painter.unread))
    for found, text in ((read, texts[0]), (unread, texts[1])):
        assert found.first.shape == (2, 4, 8) and found.empty is None
        for name in ("states", "pooled", "mask"):
            np.testing.assert_array_equal(getattr(found, name), getattr(text, name))
    assert painter.read({}, texts[0], painter.empty(2)).first is None
    assert painter.unread({}, texts[0], begun) is begun or painter.unread({}, texts[0], begun).states.shape == (2, 0, 0)
    assert begun.repeat(3).first.shape == (6, 4, 8)


@pytest.mark.parametrize("frames, near", [(0, 1), (-3, 1), (2, 1), (6, 5), (12, 13), (128, 129)])
def test_a_number_of_frames_that_cannot_be_drawn_is_one_sentence_with_one_that_can(frames, near):
    painter = HunyuanVideo(transformer=SMALL)
    with pytest.raises(ValueError, match=f"a video of {frames} frames cannot be drawn: .* multiple of 4; use {near}.$"):
        painter.grid(32, 48, frames)
    assert painter.grid(32, 48, near) == (1 + (near - 1) // 4, 2, 3)
    with pytest.raises(ValueError, match="both sides must be multiples of 16; use 32 x 48.$"):
        painter.grid(33, 48, near)


@pytest.mark.parametrize(
    "from_picture, tokens, words",
    [
        (False, 4, "reads no picture"),
        (True, 0, "there is no first frame to go on from"),
        (True, 6, "the picture has 6 latent tokens, but a frame has 2 x 2 = 4; use a picture of the video's size"),
    ],
)
def test_a_picture_that_is_missing_or_does_not_belong_is_one_sentence(from_picture, tokens, words):
    painter = HunyuanVideo(transformer=dataclasses.replace(SMALL, from_picture=from_picture))
    text = TextStates(jnp.zeros((1, 3, 6)), jnp.zeros((1, 5)))
    condition = upon(text, jnp.zeros((1, tokens, 8)) if tokens else None)
    with pytest.raises(ValueError, match=words):
        painter.predict({}, jnp.zeros((1, 8, 8)), jnp.ones(1), (2, 2, 2), condition)


def test_bfloat16_stays_what_it_is_before_the_blocks_and_the_velocity_is_float32():
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SMALL.shapes().items()}
    text, mask = jax.ShapeDtypeStruct((2, 3, 6), jnp.bfloat16), jax.ShapeDtypeStruct((2, 3), bool)
    refined = jax.eval_shape(SMALL.refined, params, text, mask, jax.ShapeDtypeStruct((2,), jnp.float32))
    assert (refined.shape, refined.dtype) == ((2, 3, SMALL.width), jnp.bfloat16)
    painter = HunyuanVideo(transformer=SMALL, dtype="bfloat16")
    condition = upon(TextStates(jnp.zeros((2, 3, 6)), jnp.zeros((2, 5))), None)
    predict = lambda p: painter.predict(p, jnp.zeros((2, 8, 8)), jnp.ones(2), (2, 2, 2), condition)
    out = jax.eval_shape(predict, params)
    assert (out.shape, out.dtype) == ((2, 8, 8), jnp.float32)


def test_adapters_are_found_in_every_stack():
    painter = HunyuanVideo(transformer=dataclasses.replace(SMALL, double=3, single=4, refiner=2))
    hits = painter.hits((r".*refiner_blocks\.attn\.to_q", r"transformer_blocks\.attn\.add_q_proj", r".*\.attn\.to_k"))
    assert list(hits.values()) == [2, 3, 2 + 3 + 4]


@pytest.mark.parametrize("data, words", [
    ({"_class_name": "FluxTransformer2DModel"}, "this network knows only 'HunyuanVideoTransformer3DModel'"),
    ({"patch_size": 1}, "patch_size = 1, but this network knows only 2"),
    ({"patch_size_t": 2}, "patch_size_t = 2, but this network knows only 1"),
    ({"mlp_ratio": 2.0}, "mlp_ratio = 2.0, but this network knows only 4"),
    ({"qk_norm": "layer_norm"}, "this network knows only 'rms_norm'"),
    ({"image_condition_type": "token_replace"}, "this network does not have that"),
    ({"in_channels": 33}, "in_channels = 33, but it must be out_channels = 16, or 32 for image to video"),
    ({"rope_axes_dim": [16, 57, 55]}, "three even widths whose sum is attention_head_dim = 128"),
    ({"rope_theta": 0}, "it must be a number above 0"),
])  # fmt: skip
def test_what_would_be_another_network_is_refused(tmp_path, data, words):
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(ValueError) as error:
        read_transformer(tmp_path / "config.json")
    assert words in str(error.value)


def test_channels_out_that_are_null_are_those_in(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"in_channels": 24, "out_channels": None}))
    network = read_transformer(tmp_path / "config.json")
    assert (network.channels, network.from_picture) == (96, False)
