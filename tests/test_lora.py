"""Adapters: nothing at the start, W + scale A B afterwards, a reference without a copy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from unigrpo_jax.config import LearningConfig, MeshConfig
from unigrpo_jax.learning import parameters
from unigrpo_jax.learning.objective import Objective
from unigrpo_jax.learning.policy import Policy
from unigrpo_jax.learning.update import UpdateProgram, new_state
from unigrpo_jax.models import tree
from unigrpo_jax.models.bagel import Bagel, weights
from unigrpo_jax.models.building import lora
from unigrpo_jax.parallel import mesh as meshes
from unigrpo_jax.parallel.rules import Layout

RANK, SCALE = 3, 1.7
ALL = ("layers/(und|gen)/(q|k|v|o|gate|up|down)_proj",)
MODEL = Bagel(tiny.CONFIG, lora_scale=SCALE)
BASE = tiny.params()


def trained(params, size=0.1):
    """The adapters moved away from their start, where B is 0."""
    rng = np.random.default_rng(0)
    move = lambda path, x: x + size * rng.standard_normal(x.shape, np.float32) if lora.is_adapter(path) else x
    return tree.unflatten({path: jnp.asarray(move(path, x)) for path, x in tree.flatten(params).items()})


def folded(params):
    """Every adapter multiplied out in float64 and added to its kernel: the definition."""
    flat = {path: np.asarray(x, np.float64) for path, x in tree.flatten(params).items()}
    for path in [p for p in flat if p.endswith("/lora_a")]:
        place = path.removesuffix("/lora_a")
        a, b, kernel = flat.pop(f"{place}/lora_a"), flat.pop(f"{place}/lora_b"), flat[f"{place}/kernel"]
        layers, rank = a.shape[0], a.shape[-1]
        product = a.reshape(layers, -1, rank) @ b.reshape(layers, rank, -1)
        flat[f"{place}/kernel"] = kernel + SCALE * product.reshape(kernel.shape)
    return tree.unflatten({path: jnp.asarray(x, jnp.float32) for path, x in flat.items()})


def look(params, model=MODEL):
    """Logits and velocities of a prompt and an image."""
    prompt = tiny.prompts()
    hidden, context = model.prefill(params, prompt.tokens, prompt.valid, model.empty(4))
    x = jax.random.normal(jax.random.key(0), (4, 6, tiny.CONFIG.latent_width))
    return model.text_logits(params, hidden), model.predict(params, x, jnp.full(4, 0.6), tiny.GRID, context)


ADAPTED = lora.attach(BASE, RANK, ALL, jax.random.key(1))
look_at = tiny.jit(look)


def program_of(model=MODEL, **changes):
    base = tiny.update_program(**changes)
    policy = Policy(model=model, tokens=base.objective.policy.tokens, flow=base.objective.policy.flow)
    return UpdateProgram(objective=Objective(policy=policy, config=base.config), config=base.config)


START = trained(ADAPTED, 0.05)
FROZEN = parameters.split(START, parameters.groups(START, LearningConfig(), Bagel.trained_by))[1]
PROGRAM = program_of()
run = tiny.jit(PROGRAM.__call__)


def updated(params):
    """One update of these adapters."""
    return run(new_state(params, PROGRAM.config, Bagel.trained_by), FROZEN, BASE, tiny.episodes(), tiny.advantages())


def test_fresh_adapters_change_no_bit():
    tiny.assert_trees_equal(look_at(ADAPTED), look_at(BASE))


@pytest.mark.parametrize("targets", [ALL, ("layers/gen/q_proj", "layers/und/o_proj"), ("layers/und/.*",)])
def test_adapters_are_the_products_added_to_the_kernels(targets):
    params = trained(lora.attach(BASE, RANK, targets, jax.random.key(1)))
    got, want, start = look_at(params), look_at(folded(params)), look_at(BASE)
    for a, b, c in zip(got, want, start, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-5 * float(jnp.max(jnp.abs(b))))
        assert float(jnp.max(jnp.abs(a - c))) > 0.01


def test_targets_choose_projections_of_each_expert():
    flat = tree.flatten(lora.attach(BASE, RANK, ("layers/gen/(q|down)_proj",), jax.random.key(0)))
    added = {path for path in flat if lora.is_adapter(path)}
    assert added == {f"layers/gen/{n}_proj/lora_{x}" for n in ("q", "down") for x in "ab"}
    c = tiny.CONFIG
    assert flat["layers/gen/q_proj/lora_b"].shape == (c.layers, RANK, c.heads, c.head_dim)
    assert flat["layers/gen/down_proj/lora_a"].shape == (c.layers, c.intermediate_size, RANK)
    o = tree.flatten(lora.attach(BASE, RANK, ("layers/und/o_proj",), jax.random.key(0)))
    assert o["layers/und/o_proj/lora_a"].shape == (c.layers, c.heads, c.head_dim, RANK)
    a = np.asarray(ADAPTED["layers"]["und"]["down_proj"]["lora_a"])
    assert abs(a.std() * c.intermediate_size**0.5 - 1) < 0.2 and not ADAPTED["layers"]["und"]["o_proj"]["lora_b"].any()


@pytest.mark.parametrize(
    ("target", "words"), [("layers/gen/r_proj", "matches no projection; there are layers/gen/down_proj"), ("(", "regular")]
)
def test_a_target_that_cannot_work_is_one_sentence(target, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        lora.attach(BASE, RANK, (target,), jax.random.key(0))


def test_adapters_alone_are_trained_in_their_experts_groups():
    labels = parameters.groups(ADAPTED, LearningConfig(), Bagel.trained_by)
    for path, group in labels.items():
        expert = parameters.REASONING if "/und/" in path else parameters.DENOISING
        assert group == (expert if lora.is_adapter(path) else parameters.FROZEN), path


def test_an_update_moves_the_adapters_and_is_on_policy():
    """The reference is the tree without adapters; the frozen weights are given once and come back nowhere."""
    state = new_state(START, PROGRAM.config, Bagel.trained_by)
    assert set(FROZEN) == set(tree.flatten(BASE)) and all(map(lora.is_adapter, state.trained))
    after, metrics = updated(START)
    for name in ("text", "flow"):
        assert float(metrics[f"{name}/ratio_min"]) == float(metrics[f"{name}/ratio_max"]) == 1.0
    assert float(metrics["flow/velocity_mse"]) > 1e-8 and float(metrics["update/skipped"]) == 0
    assert {path for path, x in after.trained.items() if (x != state.trained[path]).any()} == set(state.trained)
    _, metrics = updated(ADAPTED)
    assert float(metrics["flow/velocity_mse"]) < 1e-10  # adapters that do nothing are the reference


def test_stored_tensors_have_the_adapters_folded_in():
    params = trained(ADAPTED)
    ours = dict(weights.stored_tensors(tiny.CONFIG, params, SCALE))
    want = dict(weights.stored_tensors(tiny.CONFIG, folded(params)))
    plain = dict(weights.stored_tensors(tiny.CONFIG, BASE))
    assert ours.keys() == want.keys() == plain.keys()
    for name, value in ours.items():
        np.testing.assert_allclose(value, want[name], atol=1e-6, err_msg=name)
        assert ("_proj" in name and name.endswith("weight")) == bool((np.abs(value - plain[name]) > 1e-3).any()), name


def test_gradients_are_those_of_the_kernels_by_the_chain_rule():
    """dL/dA = scale dL/dW B^T, dL/dB = scale A^T dL/dW, with dL/dW taken at the folded weights, which hold no adapter."""

    def loss(params):
        logits, velocities = look(params)
        return jnp.mean(jnp.sin(3 * logits)) + jnp.mean(jnp.sin(2 * velocities))

    gradient = tiny.jit(jax.grad(loss))
    own, whole = tree.flatten(gradient(START)), tree.flatten(gradient(folded(START)))
    flat = {path: np.asarray(x, np.float64) for path, x in tree.flatten(START).items()}
    for path in [p for p in flat if p.endswith("/lora_a")]:
        place = path.removesuffix("lora_a")
        a, b = flat[path], flat[f"{place}lora_b"]
        layers, rank = a.shape[0], a.shape[-1]
        a2, b2 = a.reshape(layers, -1, rank), b.reshape(layers, rank, -1)
        w = np.asarray(whole[f"{place}kernel"], np.float64).reshape(layers, a2.shape[1], b2.shape[2])
        for name, want in (("lora_a", SCALE * w @ b2.swapaxes(1, 2)), ("lora_b", SCALE * a2.swapaxes(1, 2) @ w)):
            got = np.asarray(own[place + name]).reshape(want.shape)
            np.testing.assert_allclose(got, want, atol=2e-4 * np.abs(want).max(), err_msg=place + name)
            assert np.abs(want).max() > 1e-7


def test_micro_batches_and_devices_change_no_update():
    """One piece on one device, and four pieces on four devices, over two of which each adapter is cut."""
    mesh = meshes.make_mesh(4, MeshConfig(tensor=2))
    layout, spread = Layout(mesh, Bagel.axes), meshes.spread(mesh)
    program = program_of(dataclasses.replace(MODEL, hold=layout.activations), micro_batches=4)
    state = new_state(START, program.config, Bagel.trained_by)
    state = jax.device_put(state, layout.like_parameters(state))
    lay = lambda flat: {path: jax.device_put(x, layout.parameter(path, x.shape)) for path, x in flat.items()}
    given = lay(FROZEN), tree.unflatten(lay(tree.flatten(BASE)))
    episodes, advantages = jax.device_put((tiny.episodes(), tiny.advantages()), spread)
    state, metrics = tiny.jit(program.__call__)(state, *given, episodes, advantages)
    cut = state.trained["layers/und/up_proj/lora_b"]
    assert cut.addressable_shards[0].data.size * 2 == cut.size
    for path, x in updated(START)[0].trained.items():
        np.testing.assert_allclose(state.trained[path], x, atol=1e-6, err_msg=path)
    assert float(metrics["text/ratio_min"]) == float(metrics["flow/ratio_max"]) == 1.0
