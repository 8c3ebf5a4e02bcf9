"""Compute in bfloat16: close to float32, its statistics in float32, and on-policy ratios of exactly 1."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny, verbs
from unigrpo_jax.learning import parameters
from unigrpo_jax.learning.objective import Objective
from unigrpo_jax.learning.policy import Policy
from unigrpo_jax.learning.update import UpdateProgram, new_state
from unigrpo_jax.models.bagel import Bagel
from unigrpo_jax.models.building import context as contexts

ROUGH = Bagel(tiny.CONFIG, "bfloat16")


def test_velocities_of_the_public_system_within_two_percent(reference):
    """With bfloat16 compute over float32 weights, and over bfloat16 weights."""
    model = Bagel(reference.config, "bfloat16")
    halved = jax.tree.map(lambda x: x.astype(jnp.bfloat16), reference.params)
    d = np.load(reference.folder / "velocity.npz")
    for params in (reference.params, halved):
        context = model.empty(1)
        for ids in (d["prompt_ids"], d["think_ids"]):
            block = reference.block(ids)
            context = contexts.extend(context, verbs.prefill(model, params, block.tokens, block.valid, context)[1])
        assert context.keys.dtype == jnp.bfloat16
        for kind in ("sq", "ns"):
            grid, x = tuple(map(int, d[f"{kind}_grid_hw"])), jnp.asarray(d[f"{kind}_x_t"])[None]
            velocity = lambda t, p=params, x=x, g=grid, c=context: verbs.predict(model, p, x, t[None], g, c)[0]
            got, want = np.stack([velocity(t) for t in d["t"]]), d[f"{kind}_v_cond"]
            assert got.dtype == np.float32
            error = np.sqrt(np.mean((got - want) ** 2, axis=(1, 2)) / np.mean(want**2, axis=(1, 2)))
            assert (error > 1e-4).all() and (error < 0.02).all(), (kind, error)


def primitives(jaxpr, found):
    """(name, operand dtypes) of every equation, those of inner programs included."""
    for equation in jaxpr.eqns:
        found.append((equation.primitive.name, [v.aval.dtype for v in equation.invars if hasattr(v.aval, "dtype")]))
        for value in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "jaxpr") or hasattr(p, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                primitives(inner, found)
    return found


def test_statistics_softmax_angles_and_transitions_are_float32():
    """No exponential, logarithm, root, angle or sum of a forward pass has a bfloat16 operand; products do."""
    policy = dataclasses.replace(tiny.policy(), model=ROUGH)
    found = primitives(jax.make_jaxpr(policy.view)(tiny.params(), tiny.episodes()).jaxpr, [])
    careful = {"exp", "log", "rsqrt", "sqrt", "cos", "sin", "reduce_sum", "reduce_max", "div", "integer_pow"}
    names = {name for name, _ in found}
    assert {"exp", "log", "rsqrt", "cos", "sin", "reduce_sum", "dot_general"} <= names
    rough = [(name, dtypes) for name, dtypes in found if name in careful and jnp.bfloat16 in dtypes]
    assert not rough, rough
    products = [dtypes for name, dtypes in found if name == "dot_general"]
    assert sum(jnp.bfloat16 in dtypes for dtypes in products) > len(products) / 2


@pytest.fixture(scope="module")
def episodes():
    return tiny.jit(tiny.rollout_program(model=ROUGH).__call__)(tiny.params(), {}, tiny.prompts(), 0, 0)


def test_recomputed_ratios_are_exactly_one_and_the_gap_to_the_rollout_is_reported(episodes):
    base = tiny.update_program()
    policy = Policy(model=ROUGH, tokens=base.objective.policy.tokens, flow=base.objective.policy.flow)
    program = UpdateProgram(objective=Objective(policy=policy, config=base.config), config=base.config)
    _, frozen = parameters.split(tiny.params(), parameters.groups(tiny.params(), base.config, Bagel.trained_by))
    state = new_state(tiny.params(), base.config, Bagel.trained_by)
    state, metrics = tiny.jit(program.__call__)(state, frozen, tiny.params(), episodes, tiny.advantages())
    assert ratios(metrics) == [1.0] * 4
    assert gaps_are_small(metrics)
    assert all(x.dtype == jnp.float32 and np.isfinite(x).all() for x in state.trained.values())


def test_ratios_to_what_the_rollout_recorded_are_not_one(episodes):
    base = tiny.objective(old_log_probs="rollout")
    loss = dataclasses.replace(base, policy=dataclasses.replace(base.policy, model=ROUGH))

    def measured(params, episodes, advantages):
        return loss(params, episodes, loss.anchors(params, params, episodes, True), advantages, True)

    value, metrics = tiny.jit(measured)(tiny.params(), episodes, tiny.advantages())
    assert ratios(metrics) != [1.0] * 4 and np.isfinite(value)
    assert gaps_are_small(metrics)


def ratios(metrics):
    return [float(metrics[f"{name}/ratio_{end}"]) for name in ("text", "flow") for end in ("min", "max")]


def gaps_are_small(metrics):
    gaps = [float(metrics[f"{name}/log_prob_gap_max"]) for name in ("text", "flow")]
    return 0 < gaps[0] < 0.5 and 0 <= gaps[1] < 0.5
