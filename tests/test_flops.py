"""FLOPs by formula against a walk over the programs' matrix products, which knows nothing of the network."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr

from experiments.presets import bagel_7b, bagel_edit
from tests import tiny
from unigrpo_jax.config import LoraConfig, ModelConfig, RunConfig
from unigrpo_jax.models import tree
from unigrpo_jax.models.bagel import Bagel, flops
from unigrpo_jax.models.bagel.config import VisionConfig
from unigrpo_jax.models.bagel.flops import Flops
from unigrpo_jax.models.bagel.release import BAGEL_7B
from unigrpo_jax.models.building.guidance import Guidance
from unigrpo_jax.training.given import picture_shapes

DENSE, SEEN = Flops(tiny.CONFIG, executed=True), Flops(tiny.CONFIG)
RUN = RunConfig(rollout=tiny.ROLLOUT, learning=tiny.LEARNING)
N = tiny.GRID[0] * tiny.GRID[1]
PARAMS = jax.eval_shape(tiny.MODEL.init, jax.random.key(0))


def dots(jaxpr, rounds: int = 0, counts=lambda eqn: True) -> int:
    """2 x multiply-adds of every matrix product and of every convolution, borders filled; a scan's body counts as often as
    it runs, a while's body `rounds` times.

    A product that contracts nothing (angles of the rotation, of the time's sinusoid) is no multiply-add.  Equations that
    `counts` is false of are none.
    """
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general" and counts(eqn):
            (contracted, _), _ = eqn.params["dimension_numbers"]
            if contracted:
                depth = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
                total += 2 * depth * math.prod(eqn.outvars[0].aval.shape)
        if eqn.primitive.name == "conv_general_dilated" and counts(eqn):
            kernel, numbers = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"]
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) // kernel[numbers.rhs_spec[0]]
        times = {"scan": eqn.params.get("length"), "while": rounds}.get(eqn.primitive.name, 1)
        params = dict(eqn.params)
        if params.get("branches_platforms"):  # the same, written for each kind of device
            params["branches"] = params["branches"][:1]
        inner = [x for p in params.values() for x in (p if isinstance(p, tuple | list) else [p])]
        total += times * sum(dots(x, rounds, counts) for x in inner if isinstance(x, ClosedJaxpr | Jaxpr))
    return total


def counted(function, *args, rounds: int = 0) -> int:
    return dots(jax.make_jaxpr(function)(*args), rounds)


def context(batch: int, slots: int):
    c = tiny.CONFIG
    kv = jnp.zeros((c.layers, batch, c.kv_heads, slots, c.head_dim))
    empty = tiny.MODEL.empty(batch)
    return empty.replace(keys=kv, values=kv, valid=jnp.ones((batch, slots), bool))


@pytest.mark.parametrize(("batch", "length", "slots"), [(1, 5, 0), (3, 4, 9)])
def test_a_text_block_executes_what_the_formula_says(batch, length, slots):
    tokens = jnp.zeros((batch, length), jnp.int32)
    got = counted(tiny.MODEL.prefill, PARAMS, tokens, tokens == 0, context(batch, slots))
    assert got == batch * DENSE.text(length, slots) > 0


def test_logits_execute_what_the_formula_says():
    hidden = jnp.zeros((2, 3, tiny.CONFIG.hidden_size))
    assert counted(tiny.MODEL.text_logits, PARAMS, hidden) == 6 * DENSE.logits(1) == 6 * 2 * 32 * 32


@pytest.mark.parametrize("slots", [1, 11])
def test_a_decoded_token_executes_what_the_formula_says(slots):
    tokens = jnp.zeros(2, jnp.int32)
    got = counted(tiny.MODEL.decode, PARAMS, tokens, tokens == 0, context(2, slots))
    assert got == 2 * DENSE.decode(slots)


@pytest.mark.parametrize("slots", [1, 11])
def test_a_velocity_executes_what_the_formula_says(slots):
    x = jnp.zeros((2, N, tiny.CONFIG.latent_width))
    velocity = lambda p, x, t, c: tiny.MODEL.predict(p, x, t, tiny.GRID, c)
    assert counted(velocity, PARAMS, x, jnp.zeros(2), context(2, slots)) == 2 * DENSE.velocity(N, slots)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_rollout_executes_what_the_formula_says(micro_batches):
    """The whole program: thinking that runs to its end, all flow steps, prompts read once per group."""
    system = (1, 5, 2)
    run = dataclasses.replace(RUN, rollout=dataclasses.replace(RUN.rollout, micro_batches=micro_batches))
    program = dataclasses.replace(tiny.rollout_program(micro_batches=micro_batches), system=system)
    n = flops.lengths(run, tiny.CONFIG, len(system))
    got = counted(program, PARAMS, {}, tiny.prompts(), 0, 0, rounds=RUN.rollout.thinking_tokens + 2)
    assert got == sum(flops.rollout(run, DENSE, n).values())


@pytest.mark.parametrize("times", [(), (0.25, 0.5, 0.75)])
def test_a_forward_pass_of_the_update_executes_what_the_formula_says(times):
    run = dataclasses.replace(RUN, learning=dataclasses.replace(RUN.learning, leash_times=times))
    policy = dataclasses.replace(tiny.policy(leash_times=times), system=(1, 5, 2))
    shapes = jax.eval_shape(tiny.rollout_program(), PARAMS, {}, tiny.prompts(), 0, 0)
    passes = flops.update(run, DENSE, flops.lengths(run, tiny.CONFIG, 3))
    assert counted(policy.view, PARAMS, shapes) == passes["forward"]
    assert passes["reference"] == passes["forward"] - RUN.episodes * DENSE.logits(RUN.rollout.thinking_tokens)


def test_a_backward_pass_is_twice_the_forward_but_for_what_needs_no_gradient():
    """Inputs (latents, the time's sinusoid) get no gradient, and neither does a logit's one-hot."""
    shapes = jax.eval_shape(tiny.rollout_program(), PARAMS, {}, tiny.prompts(), 0, 0)
    total = lambda p: sum(jnp.sum(x) for x in jax.tree.leaves(tiny.policy().view(p, shapes_zero)))
    shapes_zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    passes = flops.update(RUN, DENSE, flops.lengths(RUN, tiny.CONFIG, 0))
    got = counted(jax.grad(total), PARAMS)
    missing = RUN.episodes * 2 * RUN.rollout.window_size * (
        N * tiny.CONFIG.latent_width * tiny.CONFIG.hidden_size + tiny.CONFIG.frequency_size * tiny.CONFIG.hidden_size
    )  # fmt: skip
    assert got == passes["forward"] + passes["backward"] - missing


def test_what_is_seen_is_counted_pair_by_pair():
    """Dense attention minus the pairs that a mask hides, listed one by one."""
    length, slots = 5, 3
    pairs = sum(1 for q in range(length) for k in range(slots + length) if k <= slots + q)
    c = tiny.CONFIG
    hidden = length * (slots + length) - pairs
    assert hidden == 10
    assert DENSE.text(length, slots) - SEEN.text(length, slots) == c.layers * 4 * c.hidden_size * hidden
    assert SEEN.velocity(N, slots) == DENSE.velocity(N, slots)  # an image block sees all
    token_by_token = sum(SEEN.text(1, slots + k) for k in range(length))
    assert token_by_token == SEEN.text(length, slots)


def test_the_passes_of_an_update_follow_the_settings():
    n = flops.lengths(RUN, tiny.CONFIG, 3)
    base = flops.update(RUN, SEEN, n)
    change = lambda **kw: dataclasses.replace(RUN, learning=dataclasses.replace(RUN.learning, **kw))
    assert base["old"] == 0 and base["remat"] == 0 and base["backward"] == 2 * base["forward"]
    two = flops.update(change(ppo_epochs=2), SEEN, n)
    assert (two["forward"], two["old"]) == (2 * base["forward"], base["forward"])
    assert flops.update(change(ppo_epochs=2, old_log_probs="rollout"), SEEN, n)["old"] == 0
    held = flops.update(change(ppo_epochs=2, leash_times=(0.5,)), SEEN, n)  # to which the iteration's start says nothing
    one = RUN.episodes * SEEN.velocity(N, n.context)
    assert [held[name] - two[name] for name in ("reference", "old", "forward")] == [one, 0, 2 * one]
    assert flops.update(change(text_kl_weight=0.1), SEEN, n)["reference"] == base["forward"]
    remat = dataclasses.replace(RUN, model=ModelConfig(remat="full"))
    assert flops.update(remat, SEEN, n)["remat"] == 0
    dense = flops.update(remat, DENSE, n)
    assert 0 < dense["remat"] < dense["forward"]
    lora = dataclasses.replace(RUN, model=ModelConfig(lora=LoraConfig(rank=4)))
    assert flops.update(lora, SEEN, n)["backward"] == base["forward"]


def test_without_thinking_nothing_is_thought():
    run = dataclasses.replace(RUN, rollout=dataclasses.replace(RUN.rollout, thinking=False))
    n = flops.lengths(run, tiny.CONFIG, 3)
    assert (n.system, n.thinking, n.context) == (0, None, RUN.rollout.prompt_tokens)
    assert flops.rollout(run, SEEN, n)["thinking"] == 0
    assert flops.update(run, SEEN, n)["forward"] == run.episodes * (SEEN.text(7, 0) + 2 * SEEN.velocity(N, 7))


def test_bytes_of_decoding_are_those_of_the_arrays():
    flat = tree.flatten(PARAMS)
    read = [x for path, x in flat.items() if path.startswith(("layers/und", "lm_head", "norm_und"))]
    assert flops.decode_weight_bytes(tiny.CONFIG, 2) == 2 * sum(math.prod(x.shape) for x in read)
    one = context(1, 9)
    assert flops.cache_bytes(tiny.CONFIG, 9, 4) == one.keys.nbytes + one.values.nbytes


def test_the_real_model_at_its_real_size():
    """By hand: 6.53e9 weights of an expert's layers, so 2 x 6.53e9 x 4098 for the matrices of one velocity at 1024 px."""
    count = Flops(BAGEL_7B)
    assert 28 * count.expert_weights == 28 * (2 * 3584 * 3584 + 2 * 3584 * 512 + 3 * 3584 * 18944)
    run = bagel_7b.config()
    n = flops.lengths(run, BAGEL_7B, 64)
    assert (n.latents, n.context) == (4096, 64 + 128 + 1024 + 2)
    by_hand = 2 * 6525288448 * 4098 + 28 * 4 * 3584 * 4098 * (1218 + 4098)
    assert np.isclose(count.velocity(4096, n.context), by_hand, rtol=1e-3)


def test_the_rounds_of_the_real_model_by_hand():
    """bagel_edit: 1024 px are 4096 latents and, at 980 px of 14, 4900 patches; each looked at between two markers."""
    n = flops.lengths(bagel_edit.config(), BAGEL_7B, 64, pictures=True)
    look = 4096 + 2 + 70 * 70 + 2
    assert n.look == look == 9000 and n.rounds == 2
    assert n.drawn_upon(0) == 64 + look + 128 + 1026
    assert n.context == n.drawn_upon(1) == 64 + look + 128 + 1026 + look + 1026 == 20244
    assert (n.heard(0), n.heard(1), n.said(0)) == (64 + look, 64 + look + 128 + 1026 + look, 64 + 128)
    assert n.blocks() == [
        {"system": 64, "latents": 4098, "patches": 4902, "prompt": 128, "thinking": 1026},
        {"latents": 4098, "patches": 4902, "thinking": 1026},
    ]
    count, run = Flops(BAGEL_7B), bagel_edit.config()
    velocity = lambda slots: 2 * 6525288448 * 4098 + 28 * 4 * 3584 * 4098 * (slots + 4098)
    by_hand = 768 * 25 * (velocity(10218) + velocity(20244))
    assert flops.rollout(run, count, n)["drawing"] == pytest.approx(by_hand, rel=1e-3)
    # One look: latents through both experts upon 10218 slots, patches through one upon 4098 more, and 26 layers of SigLIP.
    block = 2 * 6525288448 * 4902 + 28 * 4 * 3584 * 4902 * (10218 + 4098 + 4902)
    siglip = 4900 * 2 * 26 * (4 * 1152**2 + 2 * 1152 * 4304 + 2 * 1152 * 4900)
    assert flops.rollout(run, count, n)["looking"] == pytest.approx(768 * (velocity(10218) + block + siglip), rel=1e-2)


EYE = VisionConfig(hidden_size=12, intermediate_size=20, layers=3, heads=2, patch=4, table_side=4, max_side=4)
SEEING = dataclasses.replace(tiny.CONFIG, vision=EYE)
EYES = Bagel(SEEING)
TOLD = dataclasses.replace(RUN, rollout=dataclasses.replace(RUN.rollout, rounds=3))


def told(guidance: float):
    """Three rounds with a picture, turns and a system prompt: parameters, program, and what it is given."""
    params = jax.eval_shape(EYES.init, jax.random.key(0))
    program = dataclasses.replace(tiny.rollout_program(model=EYES, rounds=3, guidance=guidance), system=(1, 5, 2))
    picture = picture_shapes(tiny.PROMPTS, EYES, TOLD.rollout)
    picture = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), picture)
    return params, program, ({}, tiny.prompts(), 0, 0, 0, picture, (tiny.prompts(),) * 2)


def test_a_guided_rollout_of_rounds_with_pictures_and_turns_executes_what_the_formula_says():
    params, program, given = told(guidance=2.0)
    run = dataclasses.replace(TOLD, rollout=dataclasses.replace(TOLD.rollout, guidance=2.0))
    n = flops.lengths(run, SEEING, 3, pictures=True, turns=True)
    assert (n.patches, n.look, n.turn) == (6, 8 + 8, 7)
    amount = flops.rollout(run, Flops(SEEING, executed=True), n)
    # The context without images, which only image guidance needs and a compiler leaves out, reads the texts once more.
    text = Flops(SEEING, executed=True).text
    texts = tiny.PROMPTS * text(7, 3) + run.episodes * (text(7, 3 + 7) + text(7, 3 + 14))
    got = counted(program, params, *given, rounds=run.rollout.thinking_tokens + 2)
    assert got == sum(amount.values()) + texts and amount["looking"] > 0


def test_a_forward_pass_of_rounds_executes_what_the_formula_says():
    params, program, given = told(guidance=1.0)
    policy = dataclasses.replace(tiny.policy(), model=EYES, system=(1, 5, 2), flow=program.flow)
    shapes = jax.eval_shape(program, params, *given)
    count = Flops(SEEING, executed=True)
    passes = flops.update(TOLD, count, flops.lengths(TOLD, SEEING, 3, pictures=True, turns=True))
    texts = TOLD.episodes * (count.text(7, 3) + count.text(7, 10) + count.text(7, 17))
    assert counted(policy.view, params, shapes) == passes["forward"] + texts
    assert passes["backward"] == 2 * (passes["forward"] - TOLD.episodes * 3 * count.encoder(6))  # the encoder is frozen


def test_guidance_evaluates_the_network_once_more_for_each_thing_it_compares_with():
    assert [Guidance(text=text, image=image).passes for text, image in ((1, 3), (2, 1), (2, 3))] == [1, 2, 3]
    n = flops.lengths(TOLD, SEEING, 3, pictures=True, turns=True)
    count = Flops(SEEING)
    drawing = lambda passes: flops.rollout(TOLD, count, n, passes)["drawing"] / TOLD.episodes / TOLD.rollout.flow_steps
    plain = [3 + 16 + 7 + 8 + turn * (16 + 7 + 8) for turn in range(3)]
    before_text = [3 + 16, *(slots - 8 - 7 for slots in plain[1:])]
    texts = [3 + 7, 3 + 14, 3 + 21]
    total = lambda slots: sum(count.velocity(N, s) for s in slots)
    assert [drawing(passes) for passes in (1, 2, 3)] == pytest.approx(
        [total(plain), total(plain + before_text), total(plain + before_text + texts)]
    )
