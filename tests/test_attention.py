"""One attention, three implementations: against the rule of who sees whom, against each other, alone and on a mesh.

The kernels run from 256 queries on.  Splash is run by JAX's interpreter of TPU kernels; cuDNN's mask is applied by hand.
"""

import dataclasses
import functools
import importlib.util
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.planning.compile import nothing_cached
from tests import tiny
from tests.equations import equations
from unigrpo_jax.config import ConfigError, MeshConfig, ModelConfig
from unigrpo_jax.models import tree
from unigrpo_jax.models.bagel import Bagel, BagelConfig
from unigrpo_jax.models.building import attention
from unigrpo_jax.models.building.attention import Visibility
from unigrpo_jax.parallel import kernels
from unigrpo_jax.parallel import mesh as meshes
from unigrpo_jax.parallel.rules import Layout

splash = functools.partial(attention.splash, interpret=True)
BATCH, HEADS, KV_HEADS = 4, 4, 2
KINDS = {  # queries, slots of the context, causal
    "text over a context": (300, 70, True),
    "image over a context": (300, 70, False),
    "prompt": (300, 0, True),
    "image over nothing": (257, 0, False),
    "text of several tiles": (600, 150, True),
}


def case(kind, dim=24, dtype=jnp.float32):
    """Arrays and visibility.

    Episodes: all valid; left-padded upon a context with holes; upon a context whose last slots are not written, padded in
    the middle and at the end; nothing valid at all.  An image block has no padding.
    """
    length, slots, causal = KINDS[kind]
    rng = np.random.default_rng(len(kind))
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    block, context = np.ones((BATCH, length), bool), np.ones((BATCH, slots), bool)
    context[1] = rng.random(slots) < 0.5
    context[2, slots // 3 :] = False
    context[3] = False
    if causal:
        block[1, : length // 3] = False
        block[2, 5:9] = block[2, -40:] = False
        block[3] = False
    arrays = (draw(BATCH, length, HEADS, dim), *(draw(BATCH, KV_HEADS, n, dim) for n in (length, length, slots, slots)))
    return arrays, Visibility(jnp.asarray(context), jnp.asarray(block), causal)


def sees(visible, row, query):
    """The keys that a query sees, by the rule: valid slots of the context, valid tokens of its block, none from later on."""
    context, block = visible.context[row].tolist(), visible.block[row].tolist()
    slots = [slot for slot, valid in enumerate(context) if valid]
    tokens = [token for token, valid in enumerate(block) if valid and (token <= query or not visible.causal)]
    return slots + [len(context) + token for token in tokens]


@functools.cache
def oracle(kind, dim=24):
    """Attention in float64, one query and one head at a time; NaN where a query sees nothing."""
    arrays, visible = case(kind, dim)
    visible = jax.tree.map(np.asarray, visible)
    q, k, v, context_k, context_v = (np.asarray(x, np.float64) for x in arrays)
    keys, values = np.concatenate([context_k, k], axis=2), np.concatenate([context_v, v], axis=2)
    out = np.full(q.shape, np.nan)
    for row in range(BATCH):
        for query in range(q.shape[1]):
            seen = sees(visible, row, query)
            for head in range(HEADS if seen else 0):
                group = head // (HEADS // KV_HEADS)
                weight = np.exp(keys[row, group, seen] @ q[row, query, head] / np.sqrt(dim))
                out[row, query, head] = weight @ values[row, group, seen] / weight.sum()
    return out


@functools.cache
def gradients(attend):
    """(arrays, visible) -> the attention, and the gradients of a weighted sum of its valid rows."""

    def run(arrays, visible):
        weight = jnp.sin(jnp.arange(arrays[0].size, dtype=jnp.float32)).reshape(arrays[0].shape)
        weight = weight * visible.block[:, :, None, None]
        loss = lambda *arrays: jnp.sum(weight * attend(*arrays, visible))
        return attend(*arrays, visible), jax.grad(loss, argnums=tuple(range(5)))(*arrays)

    return tiny.jit(run)


def assert_equal(got, want, visible, limit=5e-6):
    """Outputs where a query sees something, all gradients; everything is finite."""
    (out, grads), (true_out, true_grads) = got, want
    some = np.asarray(visible.context).any(axis=1)[:, None] | np.asarray(visible.block)
    assert some[:3].any(axis=1).all() and not some[3].all() == visible.causal
    np.testing.assert_allclose(np.asarray(out)[some], np.asarray(true_out)[some], rtol=0, atol=limit)
    for x, y in zip(grads, true_grads, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=limit * 4)
    assert all(np.isfinite(x).all() for x in (out, *grads))


@pytest.mark.parametrize("kind", KINDS)
def test_xla_follows_the_rule_of_who_sees_whom(kind):
    want = oracle(kind)
    some = np.isfinite(want)
    assert some[:3].any(axis=(1, 2, 3)).all()
    got = np.asarray(tiny.jit(attention.xla)(*case(kind)[0], case(kind)[1]))
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got[some], want[some], rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_splash_equals_xla_in_values_and_gradients(kind):
    arrays, visible = case(kind)
    assert_equal(gradients(splash)(arrays, visible), gradients(attention.xla)(arrays, visible), visible)


@pytest.mark.parametrize("attend", [attention.xla, splash, attention.cudnn], ids=["xla", "splash", "cudnn"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.usefixtures("by_hand")
def test_all_keys_are_seen_or_the_same_some_where_there_is_another_number_of_them(attend, padded):
    """Pixels upon a text: 257 queries, 77 keys, of which a part may be padding, against a softmax in float64."""
    q, k, v = (np.random.default_rng(0).standard_normal((2, n, 4, 8)) for n in (257, 77, 77))
    seen = np.arange(77) < np.array([[50], [1]]) if padded else np.ones((2, 77), bool)
    weights = np.exp(np.einsum("blhk,bshk->bhls", q, k) / np.sqrt(8)) * seen[:, None, None]
    want = np.einsum("bhls,bshk->blhk", weights / weights.sum(axis=-1, keepdims=True), v)
    given = [jnp.asarray(x, jnp.float32) for x in (q, k, v)] + [jnp.asarray(seen)] * padded
    got = tiny.jit(lambda *given: attention.of_all(attend, *given))(*given)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dim", [8, 128])
def test_splash_takes_any_head_width(dim):
    kind = "image over a context"
    arrays, visible = case(kind, dim)
    want = oracle(kind, dim)
    some = np.isfinite(want)
    np.testing.assert_allclose(np.asarray(tiny.jit(splash)(*arrays, visible))[some], want[some], rtol=0, atol=2e-6)


@pytest.mark.parametrize("attend", [attention.xla, splash], ids=["xla", "splash"])
def test_bfloat16_has_a_float32_softmax(attend):
    """Two keys with scores 256.0 and 256.5, which bfloat16 cannot tell apart; the second's weight is 0.62, not a half."""
    zeros = lambda *shape: jnp.zeros(shape, jnp.bfloat16)
    q = zeros(1, 256, 1, 16).at[..., 0].set(4.0).at[..., 1].set(4.0)  # scaled by 1/4: 1
    context_k = zeros(1, 1, 2, 16).at[..., 0].set(256.0).at[0, 0, 1, 1].set(0.5)
    context_v = zeros(1, 1, 2, 16).at[0, 0, 1].set(1.0)
    nothing = Visibility(jnp.ones((1, 2), bool), jnp.zeros((1, 256), bool), False)
    block = zeros(1, 1, 256, 16)
    out = tiny.jit(attend)(q, block, block, context_k, context_v, nothing)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float32), 1 / (1 + np.exp(-0.5)), atol=0.003)


def windowed(attend):
    """Three transitions over one context, as the policy reads them: queries and block vmapped, the context shared."""

    def run(q, k, v, context_k, context_v, visible):
        three = [jnp.stack([x, 0.5 * x, -x]) for x in (q, k, v)]
        out = jax.vmap(lambda q, k, v: attend(q, k, v, context_k, context_v, visible))(*three)
        return out[0] + 2 * out[1] + 3 * out[2]

    return run


@functools.cache
def windowed_twins():
    return gradients(windowed(attention.xla)), gradients(windowed(splash))


def test_splash_under_vmap_equals_xla():
    arrays, visible = case("image over a context")
    plain, kernel = windowed_twins()
    assert_equal(kernel(arrays, visible), plain(arrays, visible), visible, 2e-5)


@pytest.fixture
def by_hand(monkeypatch):
    """`jax.nn.dot_product_attention`, which cannot run here, by hand."""

    def attend(q, k, v, *, mask, scale, implementation):
        assert implementation == "cudnn" and scale == 1.0 and q.shape[3] % 8 == 0
        assert q.shape[1] % 2 == k.shape[1] % 2 == 0 and mask.shape == (q.shape[0], 1, q.shape[1], k.shape[1])
        grouped = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[3])
        scores = jnp.einsum("bqjgk,bsjk->bjgqs", grouped, k) + jnp.where(mask, 0.0, -(2.0**41))[:, :, None]
        return jnp.einsum("bjgqs,bsjk->bqjgk", jax.nn.softmax(scores), v).reshape(q.shape)

    monkeypatch.setattr(jax.nn, "dot_product_attention", attend)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("by_hand")
def test_cudnns_mask_is_the_rule(kind):
    """Applied by hand it gives the oracle's numbers, and xla's gradients; odd lengths and widths of 20 are filled up."""
    arrays, visible = case(kind, 20)
    got = gradients.__wrapped__(attention.cudnn)(arrays, visible)
    assert_equal(got, gradients(attention.xla)(arrays, visible), visible)
    want = oracle(kind, 20)
    np.testing.assert_allclose(np.asarray(got[0])[np.isfinite(want)], want[np.isfinite(want)], rtol=0, atol=2e-6)


@pytest.mark.usefixtures("by_hand")
def test_cudnn_under_vmap_equals_xla():
    arrays, visible = case("image over a context")
    got = gradients.__wrapped__(windowed(attention.cudnn))(arrays, visible)
    assert_equal(got, windowed_twins()[0](arrays, visible), visible, 2e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_cudnn_lowers_to_its_kernels_forward_and_backward(monkeypatch, causal):
    from jax._src.cudnn import fused_attention_stablehlo as fused

    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)  # asks a library that only GPU machines have
    (q, *rest), visible = case("text over a context" if causal else "image over a context", 128, jnp.bfloat16)
    loss = lambda q: jnp.sum(windowed(attention.cudnn)(q, *rest, visible).astype(jnp.float32))
    program = jax.jit(jax.grad(loss)).trace(q).lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmhaScaleBiasSoftmax(" in program and "__cudnn$fmhaScaleBiasSoftmaxBackward(" in program


def primitives(function, *args):
    """Names of all primitives of a function."""
    return {equation.primitive.name for equation in equations(function, *args)}


@pytest.mark.parametrize("attend", [attention.splash, attention.cudnn], ids=["splash", "cudnn"])
@pytest.mark.parametrize(("length", "dim", "kernel"), [(1, 24, False), (255, 24, False), (256, 24, True), (256, 136, None)])
@pytest.mark.usefixtures("by_hand")
def test_short_blocks_take_no_kernel(attend, length, dim, kernel):
    """Nor does cuDNN take heads wider than 128.  Both kernels come with a gradient of their own."""
    (q, k, v, *context), visible = case("text over a context", dim)
    given = (q[:, :length], k[:, :, :length], v[:, :, :length], *context)
    names = primitives(attend, *given, dataclasses.replace(visible, block=visible.block[:, :length]))
    expected = attend is attention.splash if kernel is None else kernel
    assert any(name.startswith("custom_vjp") for name in names) == expected


def test_tiles_pad_little():
    assert [attention.tile(n) for n in (1, 256, 257, 512, 1026, 4098, 5300)] == [256, 256, 384, 512, 384, 384, 384]


CONFIG = BagelConfig(
    vocab_size=32, hidden_size=32, intermediate_size=48, layers=2, heads=4, kv_heads=2, bos_token=1, eos_token=2,
    image_start_token=3, image_end_token=4, pad_token=0, latent_channels=3, latent_patch=2, max_latent_size=16,
    frequency_size=16,
)  # fmt: skip
GRID = (16, 16)  # 256 latent tokens and two markers


def drawing_loss(model):
    """A prompt of 260 tokens, some noisy images upon it: everything that an update does with the network."""

    def loss(params, tokens, valid, x):
        _, context = model.prefill(params, tokens, valid, model.empty(tokens.shape[0]))
        t = jnp.full(tokens.shape[0], 0.7)
        velocity = jax.vmap(lambda x: model.predict(params, x, t, GRID, context), in_axes=1, out_axes=1)(x)
        return jnp.sum(jnp.sin(velocity)), velocity

    return loss


@functools.cache
def stepped(model):
    """The gradient of `drawing_loss`."""
    return tiny.jit(jax.value_and_grad(drawing_loss(model), has_aux=True))


@pytest.mark.parametrize(("sizes", "remat"), [({"fsdp": 2}, "full"), ({"tensor": 2}, "dots")])
def test_a_network_with_kernels_on_a_mesh_equals_the_plain_one(sizes, remat):
    """Through the scan over layers, rematerialisation, vmap and shard_map; a left-padded and an empty prompt."""
    mesh = meshes.make_mesh(2, MeshConfig(**sizes))
    layout = Layout(mesh, Bagel.axes)
    shapes = jax.eval_shape(Bagel(CONFIG).init, jax.random.key(0))
    rng = np.random.default_rng(3)
    params = jax.tree.map(lambda s: jnp.asarray(0.2 * rng.standard_normal(s.shape), jnp.float32), shapes)
    tokens, x = jnp.asarray(rng.integers(5, 32, (2, 260))), jnp.asarray(rng.normal(size=(2, 3, 256, 12)), jnp.float32)
    valid = jnp.asarray(np.arange(260)[None] >= np.array([[30], [260]]))
    model = Bagel(CONFIG, remat=remat, hold=layout.activations, attend=kernels.OnMesh(splash, mesh))
    assert {"shard_map", "pallas_call"} <= primitives(drawing_loss(model), params, tokens, valid, x)
    laid = tree.unflatten(
        {path: jax.device_put(x, layout.parameter(path, x.shape)) for path, x in tree.flatten(params).items()}
    )
    (_, got), grads = stepped(model)(laid, tokens, valid, x)
    (_, want), true = stepped(Bagel(CONFIG))(params, tokens, valid, x)
    assert np.abs(want).max() > 0.1
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
    for path, a in tree.flatten(grads).items():
        b = np.asarray(tree.flatten(true)[path])
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * max(np.abs(b).max(), 1.0), err_msg=path)


def test_a_batch_that_does_not_divide_takes_no_kernel():
    """One system prompt on two devices."""
    mesh = meshes.make_mesh(2, MeshConfig(fsdp=2))
    arrays, visible = case("prompt")
    for rows, kernel in ((1, False), (4, True)):
        given = jax.tree.map(lambda x, n=rows: x[:n], (*arrays, visible))
        assert ("pallas_call" in primitives(kernels.OnMesh(splash, mesh), *given)) == kernel


def device(platform, **more):
    return types.SimpleNamespace(platform=platform, device_kind=f"a {platform}", **more)


HOPPER = device("gpu", compute_capability="9.0")


@pytest.mark.parametrize(
    ("found", "dtype", "name"),
    [
        (device("cpu"), "bfloat16", "xla"),
        (device("tpu"), "float32", "splash"),
        (device("tpu"), "bfloat16", "splash"),
        (HOPPER, "bfloat16", "cudnn"),
        (HOPPER, "float32", "xla"),
        (device("gpu", compute_capability="10.0"), "bfloat16", "cudnn"),
        (device("gpu", compute_capability="7.5"), "bfloat16", "xla"),
        (device("gpu", compute_capability="gfx942"), "bfloat16", "xla"),
    ],
)
def test_auto_takes_what_the_device_has(found, dtype, name):
    assert kernels.choose(ModelConfig(dtype=dtype), found) == name
    if name != "xla":
        assert kernels.choose(ModelConfig(dtype=dtype, attention=name), found) == name
    assert kernels.choose(ModelConfig(dtype=dtype, attention="xla"), found) == "xla"


@pytest.mark.parametrize(
    ("name", "dtype", "found", "words"),
    [
        ("splash", "bfloat16", HOPPER, r"'splash' is a kernel for TPUs, but the devices are gpu; use auto or xla"),
        (
            "cudnn",
            "bfloat16",
            device("tpu"),
            r"'cudnn' is a kernel for NVIDIA GPUs .* the devices are tpu \(a tpu\); use auto",
        ),
        ("cudnn", "bfloat16", device("gpu", compute_capability="7.5"), r"of compute capability 8.0 or later"),
        (
            "cudnn",
            "float32",
            HOPPER,
            r"computes in 16 bits, but model.dtype = 'float32'; use model.dtype = 'bfloat16', or xla",
        ),
    ],
)
def test_a_kernel_that_cannot_run_is_one_sentence(name, dtype, found, words):
    with pytest.raises(ConfigError, match=words):
        kernels.choose(ModelConfig(attention=name, dtype=dtype), found)


def test_a_mesh_of_cpus_has_no_kernels():
    mesh = meshes.make_mesh(2)
    assert kernels.attend(ModelConfig(), mesh) is attention.xla
    with pytest.raises(ConfigError, match="kernel for TPUs, but the devices are cpu"):
        kernels.attend(ModelConfig(attention="splash"), mesh)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler, libtpu")
def test_splash_compiles_for_a_tpu(monkeypatch):
    """Forward and gradient of prefill and velocity on four chips, heads of 128 as BAGEL's."""
    from jax.experimental import topologies

    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU to ask about itself
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # other tests' processes compile, too
    chips = topologies.get_topology_desc(platform="tpu", topology_name="v5p:2x2x1").devices
    mesh = meshes.make_mesh(0, MeshConfig(fsdp=2, tensor=2), chips)
    layout, attend = Layout(mesh, Bagel.axes), kernels.attend(ModelConfig(), mesh)
    assert attend == kernels.OnMesh(attention.splash, mesh)
    config = dataclasses.replace(CONFIG, hidden_size=512)
    model = Bagel(config, "bfloat16", "full", hold=layout.activations, attend=attend)
    shapes = tree.flatten(jax.eval_shape(model.init, jax.random.key(0)))
    at = lambda shape, dtype, sharding: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
    params = tree.unflatten({path: at(x.shape, x.dtype, layout.parameter(path, x.shape)) for path, x in shapes.items()})
    rows = meshes.spread(mesh)
    given = (at((4, 260), jnp.int32, rows), at((4, 260), bool, rows), at((4, 1, 256, 12), jnp.float32, rows))
    step = jax.jit(jax.value_and_grad(drawing_loss(model), has_aux=True))
    # As in a run: the tests' "highest" is none that bfloat16 kernels have.
    with nothing_cached(), jax.default_matmul_precision("default"):
        program = step.lower(params, *given).compile().as_text()
    assert "splash_mha_fwd" in program and "splash_mha_dkv" in program and "splash_mha_dq" in program


@pytest.mark.parametrize("keys", [77, 300])
def test_what_sees_few_keys_needs_no_kernel_and_says_the_same(keys):
    rng = np.random.default_rng(keys)
    q, k, v = (jnp.asarray(rng.normal(size=(1, n, HEADS, 24)), jnp.float32) for n in (300, keys, keys))
    attend = lambda kind: functools.partial(attention.of_all, kind)
    assert ("pallas_call" in str(jax.make_jaxpr(attend(splash))(q, k, v))) == (keys >= attention.KERNEL_FROM)
    np.testing.assert_allclose(attend(splash)(q, k, v), attend(attention.xla)(q, k, v), atol=2e-6)
