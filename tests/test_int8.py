"""Sampling in int8: products by hand, every family's outputs, programs that hold int8, and updates from such rollouts."""

import dataclasses
import functools
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.planning import roofline
from launch.planning.compile import prepare
from launch.planning.roofline import Phase
from tests import test_drift, test_painters, tiny
from tests.equations import equations
from tests.test_flops import dots
from tests.test_ltx2_sizes import SMALL
from unigrpo_jax.config import ConfigError, EvaluationConfig, RunConfig
from unigrpo_jax.config_checks import check
from unigrpo_jax.learning import losses
from unigrpo_jax.learning.drift import relative_error
from unigrpo_jax.models import tree
from unigrpo_jax.models.bagel import flops
from unigrpo_jax.models.bagel.layers import Projection
from unigrpo_jax.models.building import flat, int8
from unigrpo_jax.models.ltx2.painter import LTX2
from unigrpo_jax.models.text_encoders.states import TextStates
from unigrpo_jax.models.work import Evaluation, PainterWork, Split
from unigrpo_jax.parallel.chips import CHIPS, Chip
from unigrpo_jax.training.int8_errors import error_table, moved_table, score_errors

RNG = np.random.default_rng(0)
draw = lambda *shape: RNG.standard_normal(shape).astype(np.float32)
SAMPLED = dataclasses.replace(tiny.ROLLOUT, quantised="int8")


def by_hand(x, axis):
    """(integers, scale) of float32 numbers with one scale along axes; the scale is float32, as the rounding is."""
    scale = np.abs(x).max(axis=axis, keepdims=True) * np.float32(127.5 / 127) / np.float32(127.5)
    scale = np.where(scale == 0, np.float32(1), scale)
    return np.rint(x / scale).astype(np.int64), scale.astype(np.float64)


# ---- products


def test_a_linear_map_in_int8_is_the_integers_product_times_both_scales():
    x, weight, bias = 3 * draw(2, 5, 24), draw(7, 24), draw(7)
    x[0, 0], weight[3] = 0, 0  # a token and a channel without anything
    params = {"map.weight": int8.rounded(jnp.asarray(weight), (1,)), "map.bias": bias}
    (p, r), (q, s) = by_hand(x, -1), by_hand(weight, 1)
    want = np.einsum("bti,oi->bto", p, q) * r * s[:, 0] + bias
    got = flat.linear(params, "map", jnp.asarray(x))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert np.abs(want - (x @ weight.T + bias)).max() > 1e-3  # the rounding is there to be seen
    halves = flat.linear(params, "map", jnp.asarray(x, jnp.bfloat16))
    assert halves.dtype == jnp.bfloat16


@pytest.mark.parametrize("axis", [-1, (-2, -1)])
def test_a_projection_of_several_axes_in_int8(axis):
    """[inputs] to [heads, width], and [heads, width] to [outputs]; both with a bias."""
    inputs, outputs = ((12,), (3, 4)) if axis == -1 else ((3, 4), (12,))
    x, kernel, bias = draw(2, 5, *inputs), draw(*inputs, *outputs), draw(*outputs)
    own = tuple(range(len(inputs)))
    layer = Projection(outputs if len(outputs) > 1 else 12, axis=axis, dtype=jnp.float32)
    got = layer.apply({"params": {"kernel": int8.rounded(jnp.asarray(kernel), own), "bias": bias}}, x)
    (p, r), (q, s) = by_hand(x.reshape(2, 5, 12), -1), by_hand(kernel.reshape(12, 12), 0)
    want = (p @ q * r * s).reshape(2, 5, *outputs) + bias
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_an_adapter_beside_weights_in_int8_stays_as_it_is():
    x, weight, a, b = draw(3, 24), draw(7, 24), draw(2, 24), draw(7, 2)
    adapter = {"map.lora_A.weight": a, "map.lora_B.weight": b}
    plain = {"map.weight": int8.rounded(jnp.asarray(weight), (1,))}
    added = flat.linear(plain | adapter, "map", jnp.asarray(x)) - flat.linear(plain, "map", jnp.asarray(x))
    np.testing.assert_allclose(added, x.astype(np.float64) @ a.T @ b.T, rtol=1e-4, atol=1e-4)


def test_the_inputs_of_a_product_may_be_cut_over_devices_and_no_bit_changes():
    """The sum is one of integers."""
    x, weight = jnp.asarray(draw(6, 64)), jnp.asarray(draw(16, 64))
    run = jax.jit(lambda x, weight: int8.product(x, int8.rounded(weight, (1,)), (1,)))
    mesh = jax.make_mesh((4,), ("cut",), axis_types=(jax.sharding.AxisType.Auto,))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "cut"))
    np.testing.assert_array_equal(run(x, weight), run(*jax.device_put((x, weight), place)))


# ---- families


@functools.cache
def bagel():
    """A thinker's condition and latents: (painter, parameters, (x, t, condition), grid)."""
    model, params = tiny.MODEL, tiny.params()
    condition = tiny.jit(lambda p: model.read(p, tiny.prompts(), model.empty(4)))(params)
    return model, params, (jnp.asarray(draw(4, 6, tiny.CONFIG.latent_width)), jnp.linspace(0.2, 1, 4), condition), tiny.GRID


@functools.cache
def ltx2(sound: bool = True):
    painter = LTX2(transformer=SMALL, sound=sound)
    params = {name: jnp.asarray(draw(*shape) / (shape[-1] ** 0.5 if len(shape) > 2 else 3) + ("norm" in name))
              for name, shape in SMALL.shapes().items()}  # fmt: skip
    grid = painter.grid(32, 64, 9)
    is_shape = lambda node: isinstance(node, tuple)
    x = jax.tree.map(lambda shape: jnp.asarray(draw(2, *shape)), painter.latent_shape(grid), is_leaf=is_shape)
    text = painter.read({}, TextStates(jnp.asarray(draw(2, 6, 7)), audio=jnp.asarray(draw(2, 6, 7))), painter.empty(2))
    return painter, params, (x, jnp.linspace(0.5, 1, 2), text), grid


def painters(which):
    painter = {"sd": test_painters.SD, "flux": test_painters.FLUX, "video": test_painters.VIDEO}[which]
    grid = (2, 2, 6) if which == "video" else test_painters.GRID
    return painter, test_painters.params(painter), test_painters.given(painter), grid


FAMILIES = {"bagel": bagel, "ltx2": ltx2, "ltx2_silent": functools.partial(ltx2, False)}
FAMILIES |= {name: functools.partial(painters, name) for name in ("sd", "flux", "video")}


@functools.cache
def outputs(family):
    """((painter, parameters, inputs, grid), output in full precision, in int8, equations of the latter)."""
    found = painter, params, (x, t, condition), grid = FAMILIES[family]()
    predict = lambda params: painter.predict(params, x, t, grid, condition)
    small = lambda params: predict(painter.in_int8(params))
    return found, tiny.jit(predict)(params), tiny.jit(small)(params), jax.make_jaxpr(small)(params)


every = pytest.mark.parametrize("family", FAMILIES)


@every
def test_what_a_network_says_in_int8_is_off_by_a_few_percent_and_not_by_nothing(family):
    _, full, small, _ = outputs(family)
    for want, got in zip(jax.tree.leaves(full), jax.tree.leaves(small), strict=True):
        assert 1e-4 < float(jnp.linalg.norm(got - want) / jnp.linalg.norm(want)) < 0.05


@every
def test_so_many_products_are_in_int8_as_the_formula_says(family):
    (painter, _, (x, _, condition), grid), *_, jaxpr = outputs(family)
    if family == "bagel":
        own = flops.ExpertFlops(tiny.CONFIG, executed=True).velocity(6, condition.valid.shape[1])
    elif family.startswith("ltx2"):
        rollout = dataclasses.replace(tiny.ROLLOUT, image_height=32, image_width=64, frames=9, prompt_tokens=6)
        own = painter.work(RunConfig(rollout=rollout), 0).each.int8
    else:
        own = painter.evaluation(math.prod(grid), test_painters.TEXT).int8
    assert in_int8(jaxpr) == own * jax.tree.leaves(x)[0].shape[0] > 0


def in_int8(jaxpr) -> int:
    """Operations of a jaxpr's products of int8 numbers, which all add up in int32."""

    def is_int8(eqn) -> bool:
        kinds = [v.aval.dtype for v in eqn.invars]
        assert jnp.int8 not in kinds or kinds == [jnp.int8] * 2 and eqn.outvars[0].aval.dtype == jnp.int32
        return kinds == [jnp.int8] * 2

    return dots(jaxpr, counts=is_int8)


@every
def test_weights_of_the_blocks_are_held_in_int8_and_all_others_are_the_same_arrays(family):
    painter, params, *_ = FAMILIES[family]()
    before, after = tree.flatten(params), tree.flatten(painter.in_int8(params))
    held = {name for name, x in after.items() if int8.is_int8(x)}
    assert {name for name in after if after[name] is not before[name]} == held and set(after) == set(before)
    for name in held:
        assert after[name].qvalue.dtype == jnp.int8 and after[name].qvalue.shape == before[name].shape
        assert after[name].scale.size * 4 < before[name].size
    apart = ("norm", "embed", "lm_head", "2llm", "llm2", "time", "conv", "proj_in", "context", "gate_logits", "refiner")
    assert not [name for name in held if any(word in name for word in apart) and "ff_context" not in name]
    assert len(held) == {"bagel": 14, "sd": 40, "flux": 17, "video": 17, "ltx2": 28, "ltx2_silent": 10}[family]


def test_a_network_without_such_products_is_one_sentence():
    with pytest.raises(ValueError, match="no product that is made in int8"):
        int8.held({}, {})


# ---- programs


def test_a_loop_over_steps_carries_the_weights_in_int8_and_none_of_them_in_full():
    painter, params, (x, *given), grid = FAMILIES["flux"]()

    def drawn(params):
        small = painter.in_int8(params)
        return jax.lax.scan(lambda x, _: (painter.predict(small, x, given[0], grid, given[1]), None), x, length=3)[0]

    text = tiny.jit(drawn).lower(params).compile().as_text()
    loop = next(line.split(" while(")[0] for line in text.splitlines() if " while(" in line and "s8[1,32,160]" in line)
    for layers, out, width in ((2, 128, 32), (2, 32, 128), (1, 32, 160), (1, 128, 32)):
        assert f"s8[{layers},{out},{width}]" in loop and f"f32[{layers},{out},{width}]" not in loop


def test_nothing_is_touched_where_nothing_is_quantised():
    program, params = tiny.rollout_program(), tiny.params()
    assert program.quantised == "none" and program.weights(params) is params
    kinds = {v.aval.dtype for eqn in equations(program.__call__, params, {}, tiny.prompts(), 0, 0, 0)
             for v in eqn.outvars if hasattr(v.aval, "dtype")}  # fmt: skip
    assert jnp.dtype("int8") not in kinds


@functools.cache
def sampled():
    """Episodes in int8, thought and drawn."""
    return tiny.jit(tiny.rollout_program(quantised="int8").__call__)(tiny.params(), {}, tiny.prompts(), 0, 0, 0)


def test_an_update_from_a_rollout_in_int8_starts_at_ratio_1_and_says_how_far_off_the_rollout_was():
    start, advantages = tiny.params(), tiny.advantages()
    _, metrics = tiny.updated(sampled(), advantages, start)
    _, usual = tiny.updated(tiny.episodes(), advantages, start)
    for name in ("text", "flow"):
        for kind in ("mean", "min", "max"):
            assert metrics[f"{name}/ratio_{kind}"] == 1
        assert metrics[f"{name}/log_prob_gap_mean"] > 20 * usual[f"{name}/log_prob_gap_mean"] > 0
    assert metrics["grad_norm/denoising"] > 0 and metrics["update/skipped"] == 0


def test_the_noise_that_was_drawn_gives_the_gradient_of_the_policy_that_acted():
    """By quadrature, in float64: a reward of x', drawn around a mean that the rounding moved by e.

    d/dm E[R(x')] at the moved mean; the noise that full precision would have needed adds E[R] e / std^2.
    """
    mean, e, std = 0.3, 0.05, 0.4
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()
    reward = lambda x: 2.0 + np.sin(3 * x)
    x = mean + e + std * nodes
    value = lambda m: np.sum(weights * reward(m + std * nodes))
    true = (value(mean + e + 1e-5) - value(mean + e - 1e-5)) / 2e-5

    def gradient(eps):
        one = lambda x: jnp.full((1, 1, 1), x)
        ratio = lambda new, eps: losses.log_ratio(one(eps), one(mean), one(new), std)[0]
        slopes = jax.vmap(jax.grad(ratio), (None, 0))(jnp.float32(mean), jnp.asarray(eps, jnp.float32))
        return np.sum(weights * reward(x) * np.asarray(slopes, np.float64))

    assert gradient(nodes) == pytest.approx(true, rel=1e-5)
    assert gradient((x - mean) / std) - true == pytest.approx(value(mean + e) * e / std**2, rel=1e-4)


# ---- what is said of it


def test_relative_errors_along_a_drawing_by_hand(monkeypatch):
    monkeypatch.setattr(test_drift, "drift", relative_error)
    shift = np.array([0.1, -0.2, 0.05, 0.4])
    found, x = test_drift.measured(test_drift.line(scale=0.5, shift=shift, seen=0.0), test_drift.line(scale=0.5, seen=0.0))
    want = np.sqrt(np.mean(shift**2) / np.mean((0.5 * x) ** 2))
    np.testing.assert_allclose(found["flow"]["relative"][0], want, rtol=1e-5)
    assert set(found["flow"]) == {"relative"} and found["flow"]["relative"].shape == (5,)


def test_scores_are_compared_pair_by_pair():
    own = {"exact": np.array([1.0, 0, 1, np.nan]), "rare": np.array([1.0, np.nan, np.nan, np.nan])}
    full = {"exact": np.array([1.0, 1, 1, 1]), "rare": np.ones(4)}
    found = score_errors(own, full)
    assert set(found) == {"exact"}
    assert found["exact"] == {"own": 0.666667, "full": 1.0, "difference": -0.333333, "standard_error": 0.333333,
                              "absolute": 0.333333}  # fmt: skip
    assert moved_table(found)[1] == [["exact", "0.667", "1.000", "-0.333", "0.333", "0.333"]]
    error = {"flow_audio": {"times": [1.0, 0.25], "relative": [0.0123, None]}}
    assert error_table(error) == (["t", "1", "0.25"], [["audio relative", "0.0123", "-"]])


def test_a_phase_in_int8_has_its_own_peak_and_reads_a_byte_a_weight():
    chip = Chip(kind="gpu", flops=100.0, int8=200.0, memory=1.0, bandwidth=10.0, links=5.0, source="made up")
    assert Phase("drawing", flops=300.0, read=20.0, int8=100.0).bounds(chip)["compute"] == 3.5
    each = Evaluation(layers=90.0, others=10.0, weights=1000, summed=64.0, kept=7.0, int8=60.0)
    run = RunConfig(rollout=dataclasses.replace(SAMPLED, thinking=False), learning=tiny.LEARNING)
    work = PainterWork(run=run, latents=6, each=each, int8_weights=800)
    alone = Split(chips=1, batch=1, tensor=1)
    drawing, update = roofline.phases(run, work, alone, optimizer_bytes=0.0)
    assert (drawing.flops, drawing.int8, drawing.read) == (16 * 5 * 40, 16 * 5 * 60, 5 * (200 * 4 + 800))
    assert update.int8 == 0 and update.read == work.read(alone)["update"]
    plain = dataclasses.replace(run, rollout=dataclasses.replace(run.rollout, quantised="none"))
    plain = dataclasses.replace(work, run=plain)
    assert plain.int8() == {} and plain.read(alone)["drawing"] == 5 * 4000


def test_a_thinkers_phases_in_int8_by_hand():
    work = lambda rollout: tiny.MODEL.work(RunConfig(rollout=rollout, learning=tiny.LEARNING), 0)
    small, full, alone = work(SAMPLED), work(tiny.ROLLOUT), Split(chips=1, batch=1, tensor=1)
    expert = tiny.CONFIG.layers * flops.Flops(tiny.CONFIG).expert_weights
    assert full.int8() == {}
    prefill, thinking, drawing = 4 * 7, 16 * 8, 16 * 5 * 8  # tokens that go through an expert
    assert small.int8() == {"prefill": prefill * 2 * expert, "thinking": thinking * 2 * expert,
                            "drawing": drawing * 2 * expert}  # fmt: skip
    before, after = full.read(alone), small.read(alone)
    assert before["drawing"] - after["drawing"] == 5 * 2 * 3 * expert
    assert before["thinking"] - after["thinking"] == 8 * 3 * expert and before["update"] == after["update"]


# ---- refusals


@pytest.mark.parametrize(
    ("learning", "words"),
    [
        ({"method": "fpo"}, "recomputes what is compared in full precision, but learning.method = 'fpo'"),
        ({"method": "best_of_n", "best": 1}, "is for learning.method = 'grpo'"),
        ({"old_log_probs": "rollout"}, "the error of the rounding into every ratio; use 'recompute'"),
    ],
)
def test_a_rollout_in_int8_that_nothing_recomputes_is_refused(learning, words):
    with pytest.raises(ConfigError, match=words):
        check(RunConfig(rollout=SAMPLED, learning=dataclasses.replace(tiny.LEARNING, **learning)))


def test_without_qwix_one_sentence_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(ConfigError, match=r"rollout.quantised = 'int8' needs qwix: pip install 'unigrpo_jax\[int8\]'"):
        tiny.rollout_program(quantised="int8")
    tiny.rollout_program()  # which nobody needs it for


def test_a_chip_of_unknown_speed_in_int8_is_not_planned_for():
    class Unknown:
        name, chip = "b200:8", CHIPS["b200"]

    assert Unknown.chip.int8 is None and CHIPS["v6e"].int8 == 2 * CHIPS["v6e"].flops
    with pytest.raises(ConfigError, match="no peak of b200:8 in int8 is known"):
        prepare(RunConfig(rollout=SAMPLED, learning=tiny.LEARNING), Unknown)


def test_settings_of_before_sample_in_full_precision():
    assert tiny.ROLLOUT.quantised == EvaluationConfig().quantised == "none"
