"""The tokens of one clip over several devices (`mesh.sequence`): the same numbers, none computed by two of them."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.presets import hunyuan_dance
from launch.planning import advice
from launch.planning.compile import factorings, prepare, state_bytes
from tests import tiny
from tests.command import command
from tests.test_painters import FLUX, SD
from tests.test_plan import compiled, cpus
from unigrpo_jax.config import ConfigError, LearningConfig, MeshConfig, ModelConfig, RolloutConfig, RunConfig
from unigrpo_jax.learning.update import new_state
from unigrpo_jax.models.building.first_frame import upon
from unigrpo_jax.models.building.token_cut import NOT_CUT, TokenCut
from unigrpo_jax.models.hunyuan_video.painter import HunyuanVideo
from unigrpo_jax.models.hunyuan_video.transformer import HunyuanVideoTransformer
from unigrpo_jax.models.text_encoders.states import TextStates
from unigrpo_jax.parallel import kernels
from unigrpo_jax.parallel import mesh as meshes
from unigrpo_jax.parallel.rules import Layout, check_cuts
from unigrpo_jax.training.programs import Programs

SIZES = {"channels": 12, "double": 1, "single": 1, "heads": 4, "axes": (2, 4, 2), "text_width": 20, "pooled_width": 20}
VIDEO = HunyuanVideo(transformer=HunyuanVideoTransformer(**SIZES, guidance=True, refiner=1))
BEGUN = dataclasses.replace(VIDEO, transformer=dataclasses.replace(VIDEO.transformer, from_picture=True))
ROWS, TEXT = 4, 5
GRIDS = {VIDEO: (3, 1, 5), BEGUN: (3, 1, 5), FLUX: (3, 5)}  # 15 tokens: 2, 4 and 8 divide neither them nor the text's


@functools.cache
def params(painter):
    """No weight is zero."""
    rng = np.random.default_rng(0)
    fresh = jax.jit(painter.init)(jax.random.key(0))
    return {name: np.asarray(x) + 0.1 * rng.standard_normal(x.shape, np.float32) for name, x in fresh.items()}


@functools.cache
def given(painter, rows=ROWS):
    """Latents, times and texts; of a clip their padding, and its first frame where it goes on from one."""
    rng, grid, network = np.random.default_rng(1), GRIDS[painter], painter.network
    draw = lambda *shape: jnp.asarray(rng.standard_normal((rows, *shape)), jnp.float32)
    text = TextStates(draw(TEXT, network.text_width), draw(network.pooled_width))
    if painter is not FLUX:
        mask = jnp.asarray(np.arange(TEXT) < 1 + np.arange(rows)[:, None] % TEXT)
        text = upon(text.replace(mask=mask), draw(math.prod(grid[1:]), network.channels) if painter is BEGUN else None)
    return draw(math.prod(grid), network.channels), jnp.linspace(0.1, 1, rows), text


def placed(painter, **sizes):
    """A painter on a mesh, and the mesh's layout."""
    mesh = meshes.make_mesh(math.prod(sizes.values()), MeshConfig(**sizes))
    layout, attend = Layout(mesh, painter.axes), kernels.attend(ModelConfig(), mesh)
    tokens = layout.sequence(painter.cuts())
    return dataclasses.replace(painter, hold=layout.activations, attend=attend, tokens=tokens), layout


@functools.cache
def stepped(painter, remat="none", **sizes):
    """Output and gradient of every parameter on a mesh, and the compiled program's text."""
    own, layout = placed(painter, **sizes)
    own = dataclasses.replace(own, remat=remat)
    place = {name: layout.parameter(name, x.shape) for name, x in params(painter).items()}
    spread = meshes.spread(layout.mesh)

    def loss(p, x, t, text):
        out = own.predict(p, x, t, GRIDS[painter], text)
        return jnp.mean(jnp.sin(2 * out)), out

    step = jax.jit(jax.value_and_grad(loss, has_aux=True), out_shardings=((None, spread), place))
    laid = {name: jax.device_put(x, place[name]) for name, x in params(painter).items()}
    program = step.lower(laid, *jax.device_put(given(painter), spread)).compile(compiler_options=tiny.OPTIONS)
    (_, out), gradient = program(laid, *jax.device_put(given(painter), spread))
    return jax.block_until_ready((out, gradient)), program.as_text()


@pytest.mark.parametrize(("painter", "sizes"), [
    (BEGUN, {"sequence": 2}),
    (BEGUN, {"fsdp": 2, "sequence": 2, "remat": "full"}),
    (BEGUN, {"data": 2, "sequence": 2, "tensor": 2}),
    (BEGUN, {"sequence": 8}),
    (FLUX, {"fsdp": 2, "sequence": 4}),
], ids=["two", "fsdp", "tensor", "eight", "flux"])  # fmt: skip
def test_tokens_on_several_devices_change_neither_outputs_nor_gradients(painter, sizes):
    """Tokens and texts of which no number of devices is a divisor; SkyReels' first frame; padding of texts."""
    (out, gradient), _ = stepped(painter, **sizes)
    (true, gradients), _ = stepped(painter, data=1)
    assert np.abs(true).max() > 0.1
    np.testing.assert_allclose(out, true, rtol=0, atol=1e-5 * np.abs(true).max())
    largest = max(float(jnp.abs(g).max()) for g in gradients.values())
    for name, g in gradients.items():
        np.testing.assert_allclose(gradient[name], g, rtol=0, atol=1e-5 * largest, err_msg=name)
    cut = math.prod(sizes.get(axis, 1) for axis in ("fsdp", "sequence"))
    weight = gradient["transformer_blocks.attn.to_out.0.weight"]  # heads lie along `tensor`
    assert weight.addressable_shards[0].data.size * cut * sizes.get("tensor", 1) == weight.size


# ---- a whole iteration


class Frames:
    """Latents of three channels are the clip."""

    def decode(self, params, latent_BFHWC):
        del params
        return latent_BFHWC


ROLLOUT = RolloutConfig(thinking=False, prompts_per_iteration=2, image_height=16, image_width=64, frames=9, flow_steps=3,
                        window_size=2, window_range=(0, 2))  # fmt: skip
LEARNING = LearningConfig(group_size=2, flow_clip=0.002, mse_weight=0.0, reference="none", window_steps="scanned",
                          adam_eps=0.01, denoising_lr=2e-2)  # fmt: skip


def iteration(**sizes):
    """Episodes, and the parameters after an update from them."""
    network, layout = placed(dataclasses.replace(VIDEO, remat="full"), **sizes)
    start = params(VIDEO)
    programs = Programs(RunConfig(rollout=ROLLOUT, learning=LEARNING), network, Frames(), (), layout, start)
    laid = {name: jax.device_put(x, layout.parameter(name, x.shape)) for name, x in start.items()}
    text = jax.device_put(given(VIDEO, 2)[2], programs.everywhere)
    episodes = programs.rollout(laid, {}, text, np.int32(0), np.int32(0), np.int32(0))
    for recorded in (episodes.drawing.x, episodes.drawing.noise, episodes.drawing.mean):  # 12 tokens
        held = {shard.data.shape for shard in recorded.addressable_shards}
        assert held == {(4 // sizes.get("fsdp", 1), 2, 12 // sizes.get("sequence", 1), 12)}
    state = jax.device_put(new_state(laid, LEARNING, network.trained_by), programs.state_shardings)
    advantages = jax.device_put(jnp.asarray([0.7, -1.2, 1.5, -0.4]), programs.spread)
    state, metrics = programs.update(state, {}, {}, episodes, advantages)
    return jax.device_get((episodes, state.trained, metrics))


def test_recorded_transitions_are_cut_where_tokens_and_episodes_divide():
    layout = placed(VIDEO, fsdp=2, sequence=4)[1]
    held = lambda *shape: layout.transitions(shape).shard_shape(shape)
    assert held(4, 2, 12, 3) == (2, 2, 3, 3) and held(4, 2, 15, 3) == (2, 2, 15, 3) and held(3, 2, 12, 3) == (3, 2, 3, 3)


def test_an_iteration_on_several_devices_draws_the_same_clips_and_learns_the_same():
    episodes, trained, metrics = iteration(fsdp=2, sequence=2)
    alone, learned, others = iteration(data=1)
    tiny.assert_episodes_equal(episodes, alone)
    assert episodes.drawing.media["video"].shape == (4, 3, 2, 8, 3)
    for name, x in learned.items():
        np.testing.assert_allclose(trained[name], x, rtol=1e-5, atol=1e-6, err_msg=name)
        if name.endswith("weight"):  # a bias of keys is seen by nothing
            assert np.abs(x - params(VIDEO)[name]).max() > 2e-5, name
    for name, value in others.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=2e-6, err_msg=name)


# ---- what lies where


def test_text_and_latents_are_joined_device_by_device():
    """Of 3 tokens of text and 5 latents on two devices, each holds two and three, 0 where they are filled up."""
    cut, text, latents = TokenCut(2), jnp.asarray([[1, 2, 3]]), jnp.asarray([[10, 11, 12, 13, 14]])
    both = cut.joined(cut.filled(text), cut.filled(latents))
    np.testing.assert_array_equal(both, [[1, 2, 10, 11, 12, 3, 0, 13, 14, 0]])
    again = cut.parted(both, 4)
    np.testing.assert_array_equal(again[0], [[1, 2, 3, 0]])
    np.testing.assert_array_equal(cut.leaving(again[1], 5), latents)
    np.testing.assert_array_equal(cut.of_both(jnp.arange(9), 4), [0, 1, 4, 5, 6, 2, 3, 7, 8, 0])
    np.testing.assert_array_equal(NOT_CUT.joined(text, latents), [[1, 2, 3, 10, 11, 12, 13, 14]])


def test_no_device_holds_the_stream_of_more_tokens_than_its_own():
    """Two rows of 6 + 16 tokens with their filling, 3 + 8 of them on each of two devices; 32 wide, an MLP 128."""
    _, text = stepped(BEGUN, remat="full", fsdp=2, sequence=2)
    shapes = {tuple(map(int, found.split(","))) for found in re.findall(r"\bf32\[([\d,]+)\]", text)}
    assert {(2, 11, 32), (2, 3, 32), (2, 8, 32), (2, 11, 128), (2, 8, 128)} <= shapes
    whole = {6, 15, 16, 20, 22}
    assert not [shape for shape in shapes if len(shape) > 2 and set(shape[:-1]) & whole and shape[-1] >= 32]


def test_of_the_tokens_keys_and_values_are_gathered_and_nothing_else():
    """Keys and values [4, heads, tokens, 8] of three attentions, whose gradients are scattered, and the output."""
    _, text = stepped(BEGUN, sequence=2)

    def sent(kind):
        """Shapes of more than two axes; weights and what modulates all tokens have two."""
        lines = re.findall(rf"= ([^=]*) {kind}(?:-start)?\(", text)
        return sorted(shape for line in lines for shape in re.findall(r"f32\[((?:\d+,){2,}\d+)\]", line))

    assert sent("all-gather") == ["4,16,12"] + 4 * ["4,4,22,8"] + 2 * ["4,4,6,8"]
    assert sent("reduce-scatter") == 4 * ["4,4,11,8"] + 2 * ["4,4,3,8"]
    assert not any(map(sent, ("all-reduce", "all-to-all", "collective-permute")))


# ---- what a plan knows


def test_a_plan_counts_the_devices_of_a_sequence_and_says_when_more_would_help():
    """512 trained clips in four steps of 32 pieces are one for each of 4 devices, whose tokens are cut over two."""
    config = hunyuan_dance.config()
    config = dataclasses.replace(config, mesh=MeshConfig(fsdp=4, sequence=2),
                                 learning=dataclasses.replace(config.learning, micro_batches=32))  # fmt: skip
    setting = prepare(config, cpus(30.0))
    assert (setting.split.batch, setting.split.sequence, setting.split.tensor) == (4, 2, 1) and setting.rows == 12
    latents, blocks, width = 14 * 30 * 30, 60, 3072
    assert setting.work.latents == latents and setting.work.each.keys == 2 * blocks * width * (latents + 256)
    assert state_bytes(setting)["optimizer"] == pytest.approx(2 * 4 * 12_821_012_544 / 8, rel=0.01)  # two moments
    found = factorings(config, 8, setting.model)
    assert (1, 4, 1) in found and all(d * f * t == 4 and 3072 % (2 * f) == 0 for d, f, t in found)
    knobs = {knob.change: knob.saves for knob in advice.knobs(setting, "update", compiled(50.0, trained=6.0))}
    assert knobs["--mesh.fsdp 2 --mesh.sequence 4 --learning.micro-batches 64"] == 22 * 2**30
    assert not any(change.startswith("--learning.micro-batches") for change in knobs)


def test_a_mesh_that_does_not_divide_lists_those_that_do_with_their_sequence():
    config = dataclasses.replace(hunyuan_dance.config(), mesh=MeshConfig(fsdp=2, sequence=2, tensor=5))
    with pytest.raises(ConfigError, match="--mesh.data 1 --mesh.fsdp 4 --mesh.sequence 2 --mesh.tensor 1"):
        prepare(config, cpus(30.0))


# ---- what cannot be


def test_a_size_that_does_not_divide_names_both_axes_that_cut_it():
    mesh = meshes.make_mesh(8, MeshConfig(fsdp=2, sequence=4))
    with pytest.raises(ConfigError) as error:
        check_cuts({"fsdp": {"width": 28}, "sequence": {}}, mesh)
    over = "mesh.fsdp * mesh.sequence"
    words = f"28 does not divide over {over} = 2 * 4 = 8 (28 / 8 = 3.50); use {over} = 7."
    assert str(error.value) == f"width = {words}"
    with pytest.raises(ConfigError) as error:
        Layout(mesh, VIDEO.axes).parameter("x_embedder.proj.bias", (28,))
    assert str(error.value) == f"x_embedder.proj.bias: its axis 'embed' = {words}"


@pytest.mark.parametrize("painter", [SD, tiny.MODEL], ids=["sd", "bagel"])
def test_a_model_whose_tokens_cannot_be_cut_says_so(painter):
    layout = Layout(meshes.make_mesh(2, MeshConfig(sequence=2)), painter.axes)
    with pytest.raises(ConfigError, match="mesh.sequence = 2 cuts the latent tokens .* cannot; use mesh.sequence = 1.$"):
        layout.sequence(painter.cuts())
    alone = Layout(meshes.make_mesh(2, MeshConfig(fsdp=2)), painter.axes)
    assert alone.sequence(painter.cuts()) is NOT_CUT


@pytest.mark.parametrize("sequence, words", [(3, "mesh.sequence = 3"), (-1, "mesh.sequence = -1"), (2, "cannot; use")])
def test_a_run_that_cannot_be_is_one_sentence(sequence, words, tmp_path):
    own = ("--devices", 2, "--mesh.sequence", sequence)
    outcome = command("experiments.run", "sd_tiny", "--run-dir", tmp_path / "run", *own)
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and words in outcome.err, outcome


def test_the_sizes_of_a_mesh_multiply_with_those_of_a_sequence():
    mesh = meshes.make_mesh(8, MeshConfig(fsdp=2, sequence=2))
    assert dict(mesh.shape) == {"slice": 1, "data": 2, "fsdp": 2, "sequence": 2, "tensor": 1}
    assert meshes.batch_size(mesh) == 4 and meshes.make_mesh(8, MeshConfig(data=2, sequence=0)).shape["sequence"] == 4
    with pytest.raises(ConfigError, match=r"mesh.fsdp = 2 \* mesh.sequence = 3 \* mesh.tensor = 1 = 6 \* \? does not give"):
        meshes.make_mesh(8, MeshConfig(fsdp=2, sequence=3))
