"""The bench: every number is there and finite, and what it compares computes the same."""

import dataclasses
import functools
import json
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmark import machine, pipeline, rounds, rows, timing, workload
from experiments.benchmark.variants import OneForwardPerStep, one_forward_per_step, one_prefill_per_episode
from experiments.presets import smoke
from tests import tiny
from tests.command import HEADS, command
from unigrpo_jax.episode import Thinking
from unigrpo_jax.learning.objective import Objective

EXPECTED = {
    "speed": ["matmul rate", "bandwidth", "decoding", "products in decoding", "flow", "update", "prefill", "rollout",
              "update time", "compilations"],
    "savings": ["update without a shared context", "prefill without sharing", "rollout without sharing"],
    "loop": ["outside the programs", "compilations in iterations"],
    "costs": [f"{program}, {setting}" for setting in ("group_size 2", "thinking_tokens 2", "window_size 1")
              for program in ("rollout", "update")],
}  # fmt: skip


@pytest.fixture(scope="module")
def small(tiny_model):
    """A run of the tiny model that trains its heads, 8 episodes of at most 4 tokens and 4 flow steps."""
    full = smoke.config()
    return dataclasses.replace(
        full,
        model=dataclasses.replace(full.model, path=str(tiny_model)),
        rollout=dataclasses.replace(
            full.rollout, prompts_per_iteration=2, thinking_tokens=4, flow_steps=4, window_size=2, window_range=(0, 3)
        ),
        learning=dataclasses.replace(full.learning, group_size=4, frozen=HEADS[1:]),
    )


def test_the_command_prints_its_tables_and_saves_every_row(small, tmp_path, monkeypatch):
    monkeypatch.setitem(workload.SIZES, "small", lambda: workload.of_config(small))
    monkeypatch.setattr(rows, "costs", functools.partial(rows.costs, factors=(0.5,)))
    monkeypatch.setattr(machine, "MATRICES", ((64, 64, 64), (512, 512, 512)))
    monkeypatch.setattr(machine, "LASTS", 0.05)
    outcome = command("experiments.bench", "--sizes", "small", "--repeats", "2", "--json", tmp_path / "bench.json",
                      "--tables", "speed", "savings", "loop", "costs")  # fmt: skip
    assert outcome.code == 0, outcome.err
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found["machine"]["jax"] == jax.__version__ and found["machine"]["cores"] >= 1 and found["machine"]["cpu"]
    names = {}
    for row in found["rows"]:
        names.setdefault(row["table"], []).append(row["name"])
        value, share = row["value"], row["share"]
        count = row["name"].startswith("compilations")
        assert row["size"] == "small" and row["measured"] and value["times"] == (1 if count else 2)
        assert 0 <= value["low"] <= value["median"] <= value["high"] < math.inf
        assert value["high"] == 0 if count else value["low"] > 0, row
        if share is not None:
            assert 0 < share["low"] <= share["median"] <= share["high"] < 1.2, row
        assert row["name"] in outcome.out
    assert names == EXPECTED
    assert [row["name"] for row in found["rows"] if row["share"]] == ["decoding", "flow", "update"]
    for title in EXPECTED:
        assert f"small: {title}" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sizes", "huge"], ["huge", "tiny, shapes, middle"]),
        (["--sizes", "flux_tiny", "--pictures"], ["--pictures are looked at, and flux_tiny only draws; leave them out"]),
        (["--tables", "speed", "--pictures"], ["--pictures is about the table `rounds`"]),
        (["--tables", "speed", "slowness"], ["--tables slowness", "speed, savings, loop, costs, rounds"]),
        (["--repeats", "0"], ["--repeats 0", "at least 1"]),
        (["--tables", "pipeline", "--sizes", "tiny"], ["about models that only draw, and tiny thinks; use --sizes ltx2."]),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(arguments, words):
    outcome = command("experiments.bench", *arguments)
    assert (outcome.code, outcome.out) == (2, "") and outcome.err.count("\n") == 1
    for word in words:
        assert word in outcome.err


def test_what_rounds_cost(small):
    """Every number is there; memory and operations grow with the rounds, and guidance is counted and timed beside them."""
    found = {row.name: row for row in rounds.rounds(workload.of_config(small), 2, most=2)}
    value = lambda name: found[name].value.median
    for what in ("rollout operations", "update operations", "rollout memory", "update memory", "keys and values"):
        one, two = value(f"{what}, 1 round"), value(f"{what}, 2 rounds")
        assert 0 < one < two
        assert value(f"{what}, slope") == pytest.approx(two - one)
        assert value(f"{what}, intercept") == pytest.approx(2 * one - two)
        assert value(f"{what}, largest deviation") == pytest.approx(0, abs=1e-9)  # two points lie on a line
    for program in ("rollout", "update"):
        assert found[f"{program}, 1 round"].value.times == found[f"{program}, 2 rounds"].value.times == 2
        assert value(f"{program}, 1 round") > 0 and found[f"{program} time, slope"].value.times == 2
    named = ("no guidance", "text guidance", "text and image guidance")
    assert [value(f"evaluations per transition, {name}") for name in named] == [1, 2, 3]
    assert 1 < value("rollout operations, text guidance") < value("rollout operations, text and image guidance") < 3
    assert 1 < value("update operations, text guidance") < 2
    assert all(value(f"rollout time, {name}") > 0 for name in named[1:])
    # An image of 24 px is 9 latents of 8 px; the prompt's bucket has 18 tokens, a thinking 4 and the two around it.
    slot, n = 2 * tiny.CONFIG.layers * tiny.CONFIG.kv_heads * tiny.CONFIG.head_dim * 4, 9 + 2
    assert value("keys and values, 1 round") == 8 * slot * (18 + 6) / 2**20
    assert value("keys and values, 2 rounds") == 8 * slot * (18 + 6 + n + 6) / 2**20


def test_a_picture_before_the_prompt_costs_one_look_more(small):
    """So many slots more, and operations; the rollout takes the picture."""
    plain = workload.of_config(small)
    pictured = plain.pictured()
    slot, n = 2 * tiny.CONFIG.layers * tiny.CONFIG.kv_heads * tiny.CONFIG.head_dim * 4, 9 + 2
    assert rounds.cache(pictured) - rounds.cache(plain) == 8 * slot * n
    for program, operations in rounds.executed(plain).items():
        assert rounds.executed(pictured)[program] > operations
    levels = jax.tree.leaves(pictured.sampling()[-1])[0]
    assert levels.shape == (2, 24, 24, 3) and -1 <= levels.min() < levels.max() <= 1
    image = lambda load: jax.eval_shape(load.programs.rollout, *load.sampling()).drawing.image.shape
    assert image(pictured) == image(plain) == (8, 24, 24, 3)


def test_the_line_through_rounds_by_hand():
    """Through 1, 2, 4 at 1, 2, 3: slope 3/2 through 7/3 at 2, so 5/6, 14/6, 23/6, the first a fifth off."""
    got = rounds.line([1.0, 2.0, 4.0])
    assert (got.slope, got.intercept) == (pytest.approx(1.5), pytest.approx(-2 / 3))
    assert got.deviation == pytest.approx((1 - 5 / 6) / (5 / 6))
    assert rounds.line([3.0, 5.0, 7.0, 9.0]).deviation == pytest.approx(0, abs=1e-9)


@pytest.fixture(scope="module")
def whole() -> OneForwardPerStep:
    return one_forward_per_step(tiny.policy(), tiny.ROLLOUT.window_size)


def test_one_forward_per_step_says_what_the_shared_context_says(whole):
    expected = tiny.view()(tiny.params(), tiny.episodes())
    actual = tiny.jit(whole.view)(tiny.params(), tiny.episodes())
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_one_forward_per_step_has_the_same_loss_and_gradient(whole):
    """Away from the start, where clips and ratios matter, too."""
    params, episodes = tiny.nearby(tiny.params(), 0.02), tiny.episodes()

    def loss(params, policy, anchors):
        return Objective(policy=policy, config=tiny.LEARNING)(params, episodes, anchors, tiny.advantages(), False)[0]

    anchors = tiny.jit(lambda p: tiny.objective().anchors(p, p, episodes, False))(tiny.params())
    value = tiny.jit(jax.value_and_grad(loss), static_argnums=1)
    expected, actual = value(params, tiny.policy(), anchors), value(params, whole, anchors)
    assert abs(expected[0]) > 1e-3
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1.0, float(jnp.max(jnp.abs(b)))))


def test_one_forward_per_step_reads_the_context_once_for_each_step(whole):
    """Otherwise there would be nothing to compare: products of the context grow with the window."""
    cost = lambda policy: tiny.jit(policy.view).lower(tiny.params(), tiny.episodes()).cost_analysis()["flops"]
    assert cost(whole) > 1.1 * cost(tiny.policy())


def test_one_prefill_per_episode_samples_the_same_episodes_one_at_a_time():
    rollout = tiny.jit(one_prefill_per_episode(tiny.rollout_program(), pieces=tiny.EPISODES))
    episodes = rollout(tiny.params(), {}, tiny.prompts(), 0, 0)
    tiny.assert_episodes_equal(episodes, tiny.episodes())


@pytest.fixture(scope="module")
def steps() -> list[pipeline.Way]:
    """From the straightforward loop to the settings of `ltx2`, and without guidance."""
    return pipeline.ways(workload.SIZES["ltx2"]())


def test_a_straightforward_loop_comes_to_the_settings_one_part_after_the_other(steps):
    """Two prompts of eight clips, nine of fifteen noisy transitions trained, guidance 3: as `ltx2_rlhf` says of its own."""
    seen = lambda way: (way.load.config.rollout.window_size, way.load.config.learning.micro_batches,
                        way.load.config.rollout.guidance, way.kept, way.alone, way.same)  # fmt: skip
    assert {way.name: seen(way) for way in steps} == {
        "straightforward": (15, 16, 3.0, False, True, True),
        "texts kept": (15, 16, 3.0, True, True, True),
        "batches": (15, 1, 3.0, True, False, True),
        "window": (9, 1, 3.0, True, False, True),
        "no guidance": (9, 1, 1.0, True, False, False),
    }
    assert steps[0].load is steps[1].load, "both have the same programs"
    assert {way.load.config.rollout.flow_steps for way in steps} == {16}


def test_parts_add_up_to_iterations_whose_ratios_are_taken_within_a_round(steps):
    """Two rounds, the second ten times as slow; what is drawn in batches differs by a tenth of its deviation, 0.5."""
    first = {"texts, straightforward": 4.0, "texts, kept": 1.0}
    first |= {f"{part}, {way.name}": time for part in ("rollout", "update")
              for way, time in zip(steps[1:], (8.0, 4.0, 2.0, 1.0), strict=True)}  # fmt: skip
    one = np.array([0.0, 1.0] * 4)
    drawn = {way.name: {"video": one, "audio": one} for way in steps[1:]}
    drawn["batches"] = {"video": one, "audio": one + 0.05 * (np.arange(8) == 3)}
    found = {row.name: row for row in pipeline.table(steps, {name: (x, 10 * x) for name, x in first.items()}, drawn)}
    whole = {"straightforward": 20.0, "texts kept": 17.0, "batches": 9.0, "window": 5.0, "no guidance": 3.0}
    for name, seconds in whole.items():
        row = found[f"iteration, {name}"]
        assert (row.value.low, row.value.high, row.unit) == (seconds, 10 * seconds, "s")
    for before, after in zip(whole, list(whole)[1:], strict=False):
        assert found[f"times as fast by {after}"].value.median == pytest.approx(whole[before] / whole[after])
    for name in ("batches", "window", "no guidance"):
        row = found[f"times as fast by all up to {name}"]
        assert row.value.low == row.value.high == pytest.approx(20 / whole[name])
    apart = {name: row.value.median for name, row in found.items() if name.startswith("samples apart")}
    assert apart == {"samples apart, batches": pytest.approx(0.1), "samples apart, window": 0.0}


def test_functions_take_turns_and_their_first_call_is_not_counted():
    calls = []
    seconds = timing.alternate({name: functools.partial(calls.append, name) for name in "abc"}, 3)
    assert "".join(calls) == "abc" + "abc" + "cba" + "abc"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_ratios_are_taken_within_a_round():
    """A machine that is ten times slower in the second round has the same ratio in both."""
    assert timing.spread(timing.ratios([2.0, 20.0], [1.0, 10.0])) == timing.Spread(2.0, 2.0, 2.0, 2)


def test_a_new_shape_is_a_compilation_and_a_known_one_is_none():
    function = jax.jit(lambda x: x * 3 + 1)
    one, two = jnp.ones(1), jnp.ones(2)
    function(one)
    with timing.Compilations() as compiled:
        function(one)
        assert compiled.count == 0
        function(two)
    assert compiled.count == 1
    jax.jit(lambda x: x * 5 + 1)(one)
    assert compiled.count == 1, "the listener must be gone"


def test_token_steps_are_those_of_the_longest_chain():
    """BOS, the actions, and EOS where a chain was cut: 1 + 2, and 1 + 4 + 1."""
    tokens = jnp.array([[7, tiny.EOS, 0, 0], [7, 8, 9, 7]])
    mask = jnp.array([[True, True, False, False], [True] * 4])
    chains = Thinking(tokens=tokens, mask=mask, log_probs=jnp.zeros((2, 4)))
    load = types.SimpleNamespace(network=tiny.MODEL)
    assert rows.token_steps(load, chains) == 6
    assert rows.token_steps(load, jax.tree.map(lambda x: x[:1], chains)) == 3


def test_decoding_reads_the_text_expert_the_head_and_the_filled_slots():
    config = dataclasses.replace(smoke.config(), rollout=tiny.ROLLOUT, learning=tiny.LEARNING)
    load = workload.Workload(config, tiny.MODEL, None, (), tiny.params(), {}, {}, tiny.prompts())
    text = tiny.params()["layers"]["und"], tiny.params()["norm_und"], tiny.params()["lm_head"]
    weights = sum(x.size for x in jax.tree.leaves(text))
    slot = 2 * tiny.CONFIG.layers * tiny.CONFIG.kv_heads * tiny.CONFIG.head_dim
    cache = sum(tiny.EPISODES * slot * (5 + step) for step in range(4))
    assert load.work.measured(prompt=5.0, thinking=3.0).decoded(4, itemsize=4) == 4 * (4 * weights + cache)


@pytest.mark.parametrize(
    ("platform", "kind", "chip"),
    [
        ("cpu", "cpu", None), ("tpu", "TPU v4", "v4"), ("tpu", "TPU v5 lite", "v5e"), ("tpu", "TPU v5p", "v5p"),
        ("tpu", "TPU v5", "v5p"), ("tpu", "TPU v6 lite", "v6e"), ("gpu", "NVIDIA H200", "h200"), ("gpu", "Some card", None),
    ],
)  # fmt: skip
def test_an_accelerator_is_found_by_its_name(platform, kind, chip):
    assert machine.published(types.SimpleNamespace(platform=platform, device_kind=kind)) == chip


def test_the_limits_of_an_accelerator_are_its_vendors(monkeypatch):
    monkeypatch.setattr(machine, "published", lambda device: "h200")
    limit = machine.matmul_limit()
    assert (limit.work, limit.run) == (989e12, None) and machine.bandwidth_limit().work == 4.8e12


def test_the_middle_size_is_as_described():
    shapes = jax.eval_shape(tiny.MODEL.init, jax.random.key(0))  # the same tree, other sizes
    model = workload.MIDDLE
    assert (model.hidden_size, model.layers, model.heads, model.kv_heads) == (512, 8, 8, 2)
    assert (model.intermediate_size, model.vocab_size, model.grid(64, 64)) == (1408, 2048, (16, 16))
    assert set(shapes) == set(jax.eval_shape(workload.Bagel(model).init, jax.random.key(0)))
