"""The painters that draw upon texts, whatever they are built of: what they share, on toys of a few thousand weights."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.equations import equations
from tests.test_attention import splash
from tests.test_flops import counted
from unigrpo_jax.config import LoraConfig, MeshConfig, RunConfig
from unigrpo_jax.models.building.first_frame import upon
from unigrpo_jax.models.building.flat_adapters import linears
from unigrpo_jax.models.flux.painter import Flux
from unigrpo_jax.models.flux.transformer import FluxTransformer
from unigrpo_jax.models.hunyuan_video.painter import HunyuanVideo
from unigrpo_jax.models.hunyuan_video.transformer import HunyuanVideoTransformer
from unigrpo_jax.models.paths import scaled_linear
from unigrpo_jax.models.stable_diffusion.painter import StableDiffusion
from unigrpo_jax.models.stable_diffusion.unet import UNet
from unigrpo_jax.models.text_encoders.states import TextStates
from unigrpo_jax.parallel import kernels
from unigrpo_jax.parallel import mesh as meshes
from unigrpo_jax.parallel.rules import RULES, Layout

PATH = scaled_linear(0.00085, 0.012, 1000)
SD = StableDiffusion(
    unet=UNet(channels=4, widths=(16, 32), attends=(True, False), blocks=1, heads=4, text_width=24, groups=8), path=PATH
)
FLUX = Flux(
    transformer=FluxTransformer(
        channels=16, double=2, single=1, heads=4, axes=(2, 4, 2), text_width=24, pooled_width=20, guidance=True
    )
)
VIDEO = HunyuanVideo(  # from a picture
    transformer=HunyuanVideoTransformer(channels=16, double=1, single=1, heads=4, axes=(2, 4, 2), text_width=24,
                                        pooled_width=20, guidance=True, refiner=2, from_picture=True)
)  # fmt: skip
REAL = {
    "sd": StableDiffusion(
        unet=UNet(channels=4, widths=(320, 640, 1280, 1280), attends=(True, True, True, False), blocks=2, heads=8,
                  text_width=768, groups=32), path=PATH,
    ),
    "flux": Flux(
        transformer=FluxTransformer(channels=64, double=19, single=38, heads=24, axes=(16, 56, 56), text_width=4096,
                                    pooled_width=768, guidance=True)
    ),
    "video": HunyuanVideo(
        transformer=HunyuanVideoTransformer(channels=64, double=20, single=40, heads=24, axes=(16, 56, 56), text_width=4096,
                                            pooled_width=768, guidance=True, refiner=2)
    ),
}  # fmt: skip
GRID, ROWS, TEXT, SCALE = (4, 6), 8, 5, 1.7
both = pytest.mark.parametrize("painter", [SD, FLUX], ids=["sd", "flux"])
every = pytest.mark.parametrize("painter", [SD, FLUX, VIDEO], ids=["sd", "flux", "video"])
real = pytest.mark.parametrize("painter", REAL.values(), ids=REAL)


@functools.cache
def fresh(painter):
    return jax.jit(painter.init)(jax.random.key(0))


@functools.cache
def params(painter):
    """No weight is zero, not even those that training starts from so."""
    rng = np.random.default_rng(0)
    moved = lambda x: np.asarray(x) + 0.1 * rng.standard_normal(x.shape, np.float32)
    return {name: jnp.asarray(moved(x)) for name, x in fresh(painter).items()}


def given(painter, grid=GRID, rows=ROWS, text=TEXT):
    """Latent tokens, times and texts; of a video the texts' padding, and the first of two frames where it reads one."""
    rng, n = np.random.default_rng(1), painter.network
    draw = lambda *shape: jnp.asarray(rng.standard_normal((rows, *shape)), jnp.float32)
    pooled = draw(n.pooled_width) if painter.path is not PATH else None
    tokens, channels = painter.latent_shape(grid)
    x, states = draw(tokens, channels), TextStates(draw(text, n.text_width), pooled)
    if isinstance(painter, HunyuanVideo):
        lengths = 1 + np.arange(rows)[:, None] % text
        first = draw(tokens // 2, channels) if n.from_picture else None
        states = upon(states.replace(mask=jnp.asarray(np.arange(text) < lengths)), first)
    return x, jnp.linspace(0.1, 1, rows), states


def predict(painter, p, x, t, text, grid=GRID):
    """Of a video two frames, each of half the rows."""
    grid = (2, grid[0] // 2, grid[1]) if isinstance(painter, HunyuanVideo) else grid
    return painter.predict(p, x, t, grid, text)


def loss(painter, p, *inputs, grid=GRID):
    out = predict(painter, p, *inputs, grid=grid)
    return jnp.mean(jnp.sin(2 * out)), out


@functools.cache
def stepped(painter, grid=GRID):
    """((loss, output), gradient)."""
    return tiny.jit(jax.value_and_grad(functools.partial(loss, painter, grid=grid), has_aux=True))


@functools.cache
def plain(painter):
    """On one device, with nothing special."""
    return jax.block_until_ready(stepped(painter)(params(painter), *given(painter)))


def assert_same(got, want, limit=1e-5):
    """Outputs and gradients, each within `limit` of its largest number."""
    (_, out), gradient = got
    (_, true), gradients = want
    assert np.abs(true).max() > 0.1
    np.testing.assert_allclose(out, true, rtol=0, atol=limit * np.abs(true).max())
    largest = max(float(jnp.abs(g).max()) for g in gradients.values())
    for name, g in gradients.items():
        np.testing.assert_allclose(gradient[name], g, rtol=0, atol=limit * largest, err_msg=name)


# ---- the way of computing


@pytest.mark.parametrize(("painter", "remat"), [(SD, "full"), (FLUX, "dots")])
def test_what_the_backward_pass_makes_again_changes_nothing(painter, remat):
    again = dataclasses.replace(painter, remat=remat)
    assert_same(stepped(again)(params(painter), *given(painter)), plain(painter), 1e-6)


@pytest.mark.parametrize(("remat", "again"), [("none", 0), ("dots", 0), ("full", 1)])
def test_products_with_weights_are_kept_by_dots_and_made_again_by_full(remat, again):
    """Of convolutions, a block's last ones aside, whose results no gradient needs."""

    def count(painter):
        gradient = jax.grad(lambda *given: loss(painter, *given)[0])
        return [e.primitive.name for e in equations(gradient, params(SD), *given(SD))].count("conv_general_dilated")

    needed = sum(name.endswith((".conv1.weight", ".proj_in.weight")) for name in params(SD))
    assert count(dataclasses.replace(SD, remat=remat)) == count(SD) + again * needed


@every
def test_every_block_is_held_to_its_place(painter):
    seen = []
    held = dataclasses.replace(painter, hold=lambda x: seen.append(x.shape[0]) or x)
    jax.eval_shape(functools.partial(predict, held), params(painter), *given(painter))
    # Two streams and what modulates them, and its parts; a refiner's text before them; 8 residual blocks with their time, 4
    # attentions with their text.
    streams = (3 + 2) + (2 + 1) + 1
    assert set(seen) == {ROWS} and len(seen) == {SD: 8 * 2 + 4 * 2, FLUX: streams, VIDEO: streams + (2 + 1)}[painter]


@pytest.mark.parametrize("painter", [SD, VIDEO], ids=["sd", "video"])
def test_a_mesh_changes_neither_outputs_nor_gradients(painter):
    """FLUX's blocks are those of the video."""
    mesh = meshes.make_mesh(8, MeshConfig(data=2, fsdp=2, tensor=2))
    layout, spread = Layout(mesh, painter.axes), meshes.spread(mesh)
    place = {name: layout.parameter(name, x.shape) for name, x in params(painter).items()}
    placed = dataclasses.replace(painter, hold=layout.activations)
    program = tiny.jit(
        jax.value_and_grad(functools.partial(loss, placed), has_aux=True), out_shardings=((None, spread), place)
    )
    laid = {name: jax.device_put(x, place[name]) for name, x in params(painter).items()}
    assert_same(program(laid, *jax.device_put(given(painter), spread)), plain(painter))


@pytest.mark.parametrize(("painter", "grid"), [(SD, (16, 18)), (FLUX, (14, 18))], ids=["sd", "flux"])
def test_a_kernel_changes_neither_outputs_nor_gradients(painter, grid):
    """Pixels of the finest scale among themselves and upon their text, and joint attention, from 256 queries on."""
    inputs = given(painter, grid, 2)
    mesh = meshes.make_mesh(2, MeshConfig(tensor=2))
    kernel = dataclasses.replace(painter, attend=kernels.OnMesh(splash, mesh), remat="full")
    names = {e.primitive.name for e in equations(functools.partial(predict, kernel, grid=grid), params(painter), *inputs)}
    assert {"pallas_call", "shard_map"} <= names
    p = params(painter)
    want, got = (tiny.jit(functools.partial(predict, one, grid=grid))(p, *inputs) for one in (painter, kernel))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


# ---- parameters


@both
def test_fresh_parameters_say_nothing(painter):
    """Matrices have variance 1 / inputs, but for those that start at zero; norms are 1, biases 0."""
    start = fresh(painter)
    assert start.keys() == painter.network.shapes().keys() and not np.any(running(painter)(start, *given(painter)))
    for name, x in start.items():
        assert x.shape == painter.network.shapes()[name] and x.dtype == jnp.float32
        if name.endswith(".bias"):
            assert not x.any(), name
    for name, shape in linears(painter.network).items():
        x = np.asarray(start[f"{name}.weight"])
        assert not x.any() or abs(x.std() * math.sqrt(shape[-1]) - 1) < 0.2, name
    assert any(float(x.min()) == float(x.max()) == 1 for x in start.values())


@both
def test_bfloat16_parameters_are_taken_as_they_are(painter):
    rough = {name: x.astype(jnp.bfloat16) for name, x in params(painter).items()}
    want = {name: x.astype(jnp.float32) for name, x in rough.items()}
    run = tiny.jit(functools.partial(predict, dataclasses.replace(painter, dtype="bfloat16")))
    np.testing.assert_allclose(run(rough, *given(painter)), run(want, *given(painter)), rtol=0, atol=0.02)
    assert run(rough, *given(painter)).dtype == jnp.float32


def adapters(painter, targets=(".*",), rank=3):
    return painter.adapted(params(painter), LoraConfig(rank=rank, targets=targets), jax.random.key(1))


@functools.cache
def running(painter):
    return tiny.jit(functools.partial(predict, painter))


@both
def test_fresh_adapters_change_no_bit_and_trained_ones_are_products_added_to_the_weights(painter):
    scaled = dataclasses.replace(painter, lora_scale=SCALE)
    start, rng = adapters(painter), np.random.default_rng(2)
    want = running(scaled)(params(painter), *given(painter))
    np.testing.assert_array_equal(running(scaled)(start, *given(painter)), want)
    move = lambda name, x: x + 0.1 * rng.standard_normal(x.shape, np.float32) if ".lora_" in name else x
    trained = {name: move(name, x) for name, x in start.items()}
    folded = dict(params(painter))
    for module in linears(painter.network):
        a, b = (np.asarray(trained[f"{module}.lora_{which}.weight"], np.float64) for which in "AB")
        folded[f"{module}.weight"] = jnp.asarray(np.asarray(folded[f"{module}.weight"]) + SCALE * b @ a, jnp.float32)
    got, true = running(scaled)(trained, *given(painter)), running(scaled)(folded, *given(painter))
    np.testing.assert_allclose(got, true, rtol=0, atol=5e-5 * np.abs(true).max())
    assert np.abs(got - want).max() > 0.1


@pytest.mark.parametrize(
    ("painter", "target", "modules", "count"),
    [
        (SD, r".*\.attn[12]\.to_(q|k|v|out\.0)", 32, 32),
        (SD, r"mid_block\..*\.attn1\.to_q", 1, 1),
        (FLUX, r"transformer_blocks\.attn\.to_(q|k|v)", 3, 6),
        (FLUX, r"(single_)?transformer_blocks\.attn\.to_q", 2, 3),
    ],
)
def test_targets_choose_linear_maps_and_say_how_many(painter, target, modules, count):
    """Of 3 attentions on the way of the toy U-Net and one in its middle; of two double blocks and a single one."""
    added = adapters(painter, (target,)).keys() - params(painter).keys()
    assert len(added) == 2 * modules and painter.hits((target,)) == {target: count}
    for name in added:
        module, which = re.fullmatch(r"(.*)\.lora_([AB])\.weight", name).groups()
        *layers, out, width = painter.network.shapes()[f"{module}.weight"]
        x = adapters(painter, (target,))[name]
        assert x.shape == (*layers, *((3, width) if which == "A" else (out, 3))) and bool(x.any()) == (which == "A")


@both
@pytest.mark.parametrize(("target", "words"), [("to_q", "'to_q' matches no linear map; there are "), ("(", "no regular")])
def test_a_target_that_cannot_work_is_one_sentence(painter, target, words):
    with pytest.raises(ValueError) as error:
        adapters(painter, (target,))
    assert words in str(error.value).replace("is not a regular", "is no regular")


@real
def test_every_parameter_has_one_rule_and_every_rule_a_parameter(painter):
    """At the published sizes, with adapters everywhere; what a mesh of those sizes cuts divides."""
    settings = LoraConfig(rank=4, targets=(".*",))
    shapes = jax.eval_shape(lambda: painter.adapted(painter.init(jax.random.key(0)), settings, jax.random.key(0)))
    hits, cut = {pattern: 0 for pattern, _ in painter.axes}, {"fsdp": set(), "tensor": set()}
    for name, x in shapes.items():
        found = [(pattern, names) for pattern, names in painter.axes if re.fullmatch(pattern, name)]
        assert len(found) == 1 and len(found[0][1]) == x.ndim, (name, found)
        hits[found[0][0]] += 1
        for axis, size in zip(found[0][1], x.shape, strict=True):
            if axis is not None:
                cut[RULES[axis]].add(size)
    assert all(hits.values()), [pattern for pattern, count in hits.items() if not count]
    for axis, sizes in cut.items():
        most = math.gcd(*painter.cuts()[axis].values())
        assert most > 1 and math.gcd(*sizes) % most == 0, axis
    layout = Layout(meshes.make_mesh(8, MeshConfig(fsdp=4, tensor=2)), painter.axes)
    parts = [layout.parameter(name, x.shape).shard_shape(x.shape) for name, x in shapes.items()]
    whole, own = (sum(map(math.prod, some)) for some in ((x.shape for x in shapes.values()), parts))
    assert own < 0.16 * whole  # an eighth, but for what one axis alone cuts


# ---- the other verbs


@both
def test_tokens_are_latents(painter):
    grid = painter.grid(64, 96)
    assert grid == ((8, 12) if painter is SD else (4, 6))
    latent = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 12, 4)))
    tokens = painter.to_tokens(latent)
    assert tokens.shape == (2, *painter.latent_shape(grid))
    np.testing.assert_array_equal(painter.to_latent(tokens, grid), latent)


@both
@pytest.mark.parametrize("size", [(64, 100), (0, 64), (-16, 64), (7, 7)])
def test_an_image_that_cannot_be_drawn_is_one_sentence_with_one_that_can(painter, size):
    with pytest.raises(ValueError, match="both sides must be multiples of 16; use ") as error:
        painter.grid(*size)
    near = re.search(r"use (\d+) x (\d+)\.$", str(error.value)).groups()
    assert painter.grid(*map(int, near))


@pytest.mark.parametrize("painter", [SD, FLUX, tiny.MODEL], ids=["sd", "flux", "bagel"])
@pytest.mark.parametrize("frames", [5, 2, 0, -1])
def test_a_clip_is_refused_by_what_draws_images_in_one_sentence(painter, frames):
    assert painter.grid(16, 16, 1) == painter.grid(16, 16)
    with pytest.raises(ValueError, match=f"draws images, not clips of {frames} frames; use 1.$"):
        painter.grid(16, 16, frames)


@both
def test_a_text_is_read_as_it_is_and_guidance_compares_with_the_empty_one(painter):
    _, _, text = given(painter)
    nothing = painter.empty(ROWS)
    empty = TextStates(2 * text.states, text.pooled)
    found = painter.read({}, text.replace(empty=empty), nothing), painter.unread({}, text.replace(empty=empty), nothing)
    tiny.assert_trees_equal(found, (text, empty))
    assert painter.empty(2).repeat(3).states.shape[0] == 6
    with pytest.raises(ValueError, match="there is no text to draw upon; guidance needs a codec"):
        jax.eval_shape(functools.partial(predict, painter), params(painter), *given(painter)[:2],
                       painter.unread({}, text, nothing))  # fmt: skip


# ---- what it costs


@every
def test_an_evaluation_executes_what_the_formula_says(painter):
    """Counted over the traced program, its convolutions with their borders."""
    run = functools.partial(predict, painter)
    each = painter.evaluation(GRID[0] * GRID[1], TEXT)
    assert counted(run, params(painter), *given(painter)) == ROWS * (each.layers + each.others)
    weights = [math.prod(x.shape) for name, x in params(painter).items() if name.endswith("weight")]
    assert 0.95 * sum(weights) < each.weights <= sum(weights)


@real
def test_the_compiler_counts_what_the_formula_says_at_the_published_size(painter):
    """Of one block each, since it counts a loop once, and no pixels beyond a border; other operations are under 1 %."""
    grid, text = (64, 64), 77
    if painter is not REAL["sd"]:
        one = {name: 1 for name in ("double", "single", "refiner") if hasattr(painter.transformer, name)}
        painter = dataclasses.replace(painter, transformer=dataclasses.replace(painter.transformer, **one))
    shapes = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in painter.network.shapes().items()}
    inputs = jax.eval_shape(functools.partial(given, painter, grid, 1, text))
    found = jax.jit(functools.partial(predict, painter, grid=grid)).lower(shapes, *inputs).cost_analysis()["flops"]
    each = painter.evaluation(grid[0] * grid[1], text)
    assert 0.975 < found / (each.layers + each.others) < 1.01


def test_published_sizes_cost_what_is_known_of_them():
    """FLUX.1 at 1024 px 74 TFLOPs an evaluation, Stable Diffusion 1.4 at 512 px 0.80."""
    for name, size, text, tera, weights in (("flux", 1024, 512, 74.4, 11.90e9), ("sd", 512, 77, 0.803, 0.859e9)):
        run = dataclasses.replace(RunConfig().rollout, image_height=size, image_width=size, prompt_tokens=text)
        work = REAL[name].work(dataclasses.replace(RunConfig(), rollout=run), 0)
        assert work.evaluation() / 1e12 == pytest.approx(tera, rel=1e-3)
        assert work.each.weights == pytest.approx(weights, rel=1e-3)
