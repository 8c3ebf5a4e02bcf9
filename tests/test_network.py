"""Properties of the network that no recorded number shows: what may not change a result."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import verbs
from tests.equations import equations
from unigrpo_jax.models.autoencoders.pixels import PixelAutoencoder, from_uint8, to_uint8
from unigrpo_jax.models.bagel import Bagel, BagelConfig
from unigrpo_jax.models.bagel.config import VisionConfig
from unigrpo_jax.models.building import context as contexts
from unigrpo_jax.models.building.patches import patchify, unpatchify

CONFIG = BagelConfig(
    vocab_size=40, hidden_size=32, intermediate_size=48, layers=3, heads=4, kv_heads=2, bos_token=1, eos_token=2,
    image_start_token=3, image_end_token=4, pad_token=0, latent_channels=3, latent_patch=2, max_latent_size=6,
)  # fmt: skip
GRID = (3, 2)


@pytest.fixture(scope="module")
def params():
    """Random weights, the flow head included, which starts at zero."""
    rng, fresh = np.random.default_rng(1), verbs.init(Bagel(CONFIG), jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(x + 0.1 * rng.standard_normal(x.shape, np.float32)), fresh)


@pytest.fixture(scope="module")
def inputs():
    key = jax.random.key(2)
    tokens = jax.random.randint(key, (2, 7), 5, CONFIG.vocab_size)
    x = jax.random.normal(key, (2, GRID[0] * GRID[1], CONFIG.latent_width))
    return tokens, x, jnp.array([0.3, 0.9])


def velocity(model, params, tokens, x, t):
    _, context = verbs.prefill(model, params, tokens, jnp.ones(tokens.shape, bool), model.empty(2))
    return verbs.predict(model, params, x, t, GRID, context)


def test_fresh_flow_head_predicts_zero(inputs):
    model = Bagel(CONFIG)
    assert not velocity(model, verbs.init(model, jax.random.key(0)), *inputs).any()


def test_remat_and_unroll_change_neither_output_nor_gradient(params, inputs):
    tokens, x, t = inputs

    def loss(params, model):
        return jnp.sum(jnp.sin(velocity(model, params, tokens, x, t)))

    both = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    plain = both(params, Bagel(CONFIG))
    for change in ({"remat": "full"}, {"remat": "dots", "unroll": 3}):
        for expected, found in zip(plain, both(params, Bagel(CONFIG, **change)), strict=True):
            scale = max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(expected))
            error = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), expected, found)
            assert max(jax.tree.leaves(error)) < 1e-5 * scale, change


def products(model, params, inputs):
    """Numbers of products in a gradient's program: with weights, and of the attention, which have batch dimensions."""
    found = equations(jax.grad(lambda p: jnp.sum(velocity(model, p, *inputs))), params)
    batched = [bool(e.params["dimension_numbers"][1][0]) for e in found if e.primitive.name == "dot_general"]
    return {"weights": batched.count(False), "attention": batched.count(True)}


def test_dots_keeps_products_with_weights_and_makes_attention_again(params, inputs):
    none, dots, full = (products(Bagel(CONFIG, remat=remat), params, inputs) for remat in ("none", "dots", "full"))
    assert none["weights"] == dots["weights"] < full["weights"]
    assert none["attention"] < dots["attention"] == full["attention"]


def test_bfloat16_stays_within_two_percent(params, inputs):
    exact = velocity(Bagel(CONFIG), params, *inputs)
    rough = velocity(Bagel(CONFIG, "bfloat16"), params, *inputs)
    assert rough.dtype == jnp.float32
    assert jnp.sqrt(jnp.mean((rough - exact) ** 2)) < 0.02 * jnp.sqrt(jnp.mean(exact**2))


def test_one_block_equals_two_blocks_equals_token_by_token(params, inputs):
    tokens, _, _ = inputs
    model, valid = Bagel(CONFIG), jnp.ones((2, 7), bool)
    hidden, whole = verbs.prefill(model, params, tokens, valid, model.empty(2))
    first, block = verbs.prefill(model, params, tokens[:, :3], valid[:, :3], model.empty(2))
    second, rest = verbs.prefill(model, params, tokens[:, 3:], valid[:, 3:], block)
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), hidden, atol=2e-5)
    written = contexts.reserve(block, 6)  # two slots more than are needed
    for i in range(3, 7):
        logits, one = verbs.decode_token(model, params, tokens[:, i], valid[:, i], written)
        written = contexts.write(written, one, jnp.int32(i))
        np.testing.assert_allclose(logits, verbs.text_logits(model, params, hidden[:, i]), atol=5e-5)
    for context in (contexts.extend(block, rest), written):
        np.testing.assert_allclose(context.keys[:, :, :, :7], whole.keys, atol=2e-5)
        np.testing.assert_array_equal(context.rope, whole.rope)
    np.testing.assert_array_equal(written.valid, np.broadcast_to(np.arange(9) < 7, (2, 9)))


def test_padding_on_either_side_changes_nothing(params, inputs):
    tokens, x, t = inputs
    model = Bagel(CONFIG)
    want = velocity(model, params, *inputs)
    for left, right in ((3, 0), (0, 4), (2, 2)):
        garbage = jnp.pad(tokens, ((0, 0), (left, right)), constant_values=17)
        valid = jnp.pad(jnp.ones((2, 7), bool), ((0, 0), (left, right)))
        _, context = verbs.prefill(model, params, garbage, valid, model.empty(2))
        got = verbs.predict(model, params, x, t, GRID, context)
        np.testing.assert_allclose(got, want, atol=2e-5)


def test_a_row_of_nothing_but_padding_stays_finite(params, inputs):
    tokens, x, t = inputs
    model = Bagel(CONFIG)
    valid = jnp.zeros((2, 7), bool).at[0].set(True)
    _, context = verbs.prefill(model, params, tokens, valid, model.empty(2))
    got = verbs.predict(model, params, x, t, GRID, context)
    np.testing.assert_allclose(got[1], verbs.predict(model, params, x, t, GRID, model.empty(2))[1], atol=2e-5)


def test_every_image_token_sees_every_other_and_the_whole_context(params, inputs):
    """A change anywhere moves the velocity everywhere."""
    tokens, x, t = inputs
    model = Bagel(CONFIG)
    base = velocity(model, params, tokens, x, t)
    for changed in (velocity(model, params, tokens, x.at[:, -1].add(1.0), t),
                    velocity(model, params, tokens.at[:, 0].set(39), x, t)):  # fmt: skip
        assert (jnp.max(jnp.abs(changed - base), axis=-1) > 1e-6).all()


def test_text_sees_no_later_token(params, inputs):
    tokens, _, _ = inputs
    model, valid = Bagel(CONFIG), jnp.ones((2, 7), bool)
    before, _ = verbs.prefill(model, params, tokens, valid, model.empty(2))
    after, _ = verbs.prefill(model, params, tokens.at[:, 4].set(39), valid, model.empty(2))
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert (before[:, 4:] != after[:, 4:]).any(axis=-1).all()


def test_markers_run_through_und_and_latents_through_gen(params, inputs):
    """Each expert's last layer moves only its own rows' outputs, and velocities are read from gen's."""
    tokens, x, t = inputs
    model = Bagel(CONFIG)
    last = lambda tree, expert: jax.tree.map(lambda a: a, tree) | {
        "layers": tree["layers"] | {expert: jax.tree.map(lambda a: a, tree["layers"][expert])}
    }
    base = velocity(model, params, tokens, x, t)
    for expert, moves in (("und", False), ("gen", True)):
        changed = last(params, expert)
        kernel = changed["layers"][expert]["down_proj"]["kernel"]
        changed["layers"][expert]["down_proj"] = {"kernel": kernel.at[-1].add(1.0)}
        assert bool((velocity(model, changed, tokens, x, t) != base).any()) == moves


def test_images_wider_than_the_position_table_are_refused():
    with pytest.raises(ValueError, match="14 x 4 pixels has 7 x 2 latent tokens.*largest side is 12 pixels"):
        CONFIG.grid(14, 4)
    with pytest.raises(ValueError, match="does not divide into latent tokens of 2 px"):
        CONFIG.grid(5, 4)
    with pytest.raises(ValueError, match="heads = 5"):
        dataclasses.replace(CONFIG, heads=5)


def test_pixels_survive_the_way_to_latents_and_back():
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), np.uint8)
    auto = PixelAutoencoder()
    tokens = patchify(auto.encode({}, from_uint8(images)), 2)
    back = to_uint8(auto.decode({}, unpatchify(tokens, (2, 3), 2)))
    assert np.abs(np.asarray(back, int) - images).max() <= 1  # uint8 is truncated, as in the original


def test_the_streams_of_vision_encoder_and_layers_are_held_to_their_place():
    """Else a mesh that cuts the encoder's width may compute all pictures on every device."""
    eye = VisionConfig(hidden_size=12, intermediate_size=20, layers=3, heads=2, patch=4, table_side=4, max_side=4)
    held = []
    model = Bagel(dataclasses.replace(CONFIG, vision=eye), hold=lambda x: held.append(x.shape) or x)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    held.clear()
    patches = jnp.zeros((2, 6, eye.patch_width))
    jax.eval_shape(lambda p: model.see_patches(p, patches, (3, 2), model.empty(2)), shapes)
    assert set(held) == {(2, 6, 12), (2, 6 + 2, CONFIG.hidden_size)}
