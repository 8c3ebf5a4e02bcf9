"""What a drawing's steps compute again and again of what was asked: next to nothing, at the released models' sizes.

Every product of matrices of one evaluation is followed through its program: whether the latent or the time reaches it, or
the parameters and the condition alone.  The text encoders, BAGEL's context and LTX-2's connectors are no part of it.
"""

import math

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import Literal

from experiments.presets import bagel_7b, flux_dance, hunyuan_dance, ltx2_rlhf, sd_dance
from launch.planning.compile import find_model


def operations(jaxpr, varies) -> tuple[dict[bool, float], list[bool]]:
    """Operations of products {whether they vary: number}, and which outputs vary, given which inputs do."""
    known = dict(zip(jaxpr.invars, varies, strict=True))
    read = lambda x: not isinstance(x, Literal) and known.get(x, False)
    total = {True: 0.0, False: 0.0}

    def add(found, times=1):
        for kind, number in found.items():
            total[kind] += times * number

    for equation in jaxpr.eqns:
        p, given = equation.params, [read(x) for x in equation.invars]
        outputs = [any(given)] * len(equation.outvars)
        if equation.primitive.name == "scan":
            first, end = p["num_consts"], p["num_consts"] + p["num_carry"]
            while True:  # until no more of what is carried varies
                found, outputs = operations(p["jaxpr"].jaxpr, given)
                carried = [a or b for a, b in zip(given[first:end], outputs[: end - first], strict=True)]
                if carried == given[first:end]:
                    break
                given[first:end] = carried
            add(found, p["length"])
        elif equation.primitive.name == "cond":
            found, outputs = operations(p["branches"][-1].jaxpr, given[1:])
            add(found)
        elif equation.primitive.name == "dot_general":
            contracted = math.prod(equation.invars[0].aval.shape[i] for i in p["dimension_numbers"][0][0])
            total[any(given)] += 2 * math.prod(equation.outvars[0].aval.shape) * contracted
        elif equation.primitive.name == "conv_general_dilated":
            kernel, spec = equation.invars[1].aval.shape, p["dimension_numbers"].rhs_spec
            total[any(given)] += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / kernel[spec[0]]
        else:
            inner = [x for x in p.values() if hasattr(x, "jaxpr") or hasattr(x, "eqns")]
            assert len(inner) <= 1, equation.primitive
            for one in inner:
                found, outputs = operations(getattr(one, "jaxpr", one), given)
                add(found)
        known |= dict(zip(equation.outvars, outputs, strict=True))
    return total, [read(x) for x in jaxpr.outvars]


@pytest.mark.parametrize(
    ("preset", "most"), [(bagel_7b, 1e-6), (sd_dance, 0.01), (flux_dance, 0.001), (hunyuan_dance, 0.001), (ltx2_rlhf, 0.025)]
)
def test_of_what_was_asked_a_step_computes_next_to_nothing(preset, most):
    config = preset.config()
    model = find_model(config.model)
    network, grid = model.network, model.network.grid(*config.rollout.size)
    text, params = model.codec.shapes(1, config.rollout.prompt_tokens), model.abstract_params()
    condition = jax.eval_shape(lambda params, text: network.read(params, text, network.empty(1)), params, text)
    of = lambda shape: jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    x = jax.tree.map(of, network.latent_shape(grid), is_leaf=lambda shape: isinstance(shape, tuple))
    evaluation = lambda params, condition, x, t: network.predict(params, x, t, grid, condition)
    jaxpr = jax.make_jaxpr(evaluation)(params, condition, x, of(())).jaxpr
    given = len(jax.tree.leaves((params, condition)))
    total, outputs = operations(jaxpr, [i >= given for i in range(len(jaxpr.invars))])
    share = total[False] / sum(total.values())
    print(config.name, f"{total[True]:.3g} {share:.4f}")
    assert all(outputs) and total[True] > 1e11
    assert share <= most


def test_what_varies_is_followed_through_loops():
    """x is carried, and reaches y only in the second turn."""

    def program(w, x):
        def turn(carry, _):
            x, y = carry
            return (x @ w, jnp.sin(x) @ jnp.cos(w) + (w @ w)), y @ w

        return jax.lax.scan(turn, (x, jnp.zeros((2, 2))), length=5)

    jaxpr = jax.make_jaxpr(program)(jnp.ones((2, 2)), jnp.ones((2, 2))).jaxpr
    total, outputs = operations(jaxpr, [False, True])
    assert total == {True: 5 * 3 * 16, False: 5 * 16} and all(outputs)
