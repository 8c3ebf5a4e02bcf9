"""The order of prompts is a function of (seed, position), and weights decide the shares of several sources."""

import collections
import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unigrpo_jax.config import ConfigError
from unigrpo_jax.worlds.order import Drawn, InTurn, Mixture, PromptOrder
from unigrpo_jax.worlds.prompt import Prompt
from unigrpo_jax.worlds.world import load_world

sizes = st.lists(st.integers(1, 7), min_size=1, max_size=4)


def groups_of(sizes):
    return [[Prompt(text=f"{g}.{i}") for i in range(size)] for g, size in enumerate(sizes)]


@given(sizes, st.integers(0, 2**31 - 1), st.lists(st.integers(0, 200), min_size=1, max_size=20))
def test_a_prompt_depends_on_seed_and_position_alone(sizes, seed, positions):
    """Asked in any order, by fresh objects or by one that has been asked before."""
    groups = groups_of(sizes)
    one = PromptOrder(groups, seed)
    assert [one.at(p) for p in positions] == [PromptOrder(groups, seed).at(p) for p in positions]


@given(sizes, st.integers(0, 2**31 - 1), st.integers(0, 3))
def test_each_pass_takes_every_prompt_of_a_group_once(sizes, seed, epoch):
    groups = groups_of(sizes)
    order, count = PromptOrder(groups, seed), len(groups)
    for number, group in enumerate(groups):
        rounds = range(epoch * len(group), (epoch + 1) * len(group))
        assert sorted(order.at(i * count + number).text for i in rounds) == sorted(p.text for p in group)


def test_batches_are_consecutive_and_take_equal_shares_of_the_groups():
    order = PromptOrder(groups_of([30, 5, 9]), seed=3)
    assert [p for step in range(4) for p in order.batch(step, 6)] == [order.at(i) for i in range(24)]
    shares = collections.Counter(p.text.split(".")[0] for p in order.batch(2, 6))
    assert shares == {"0": 2, "1": 2, "2": 2}


def test_seeds_and_passes_differ():
    groups = groups_of([50])
    first = [p.text for p in PromptOrder(groups, 0).batch(0, 50)]
    assert first != [p.text for p in PromptOrder(groups, 1).batch(0, 50)]
    assert first != [p.text for p in PromptOrder(groups, 0).batch(1, 50)]


def test_no_prompts_are_refused():
    for groups in ([], [[]], [[Prompt(text="a")], []]):
        with pytest.raises(ConfigError):
            PromptOrder(groups, 0)


def test_the_order_is_the_recorded_one():
    """As it was when the results in experiments/results were made: they and every resume rest on it."""
    order = PromptOrder(groups_of([5, 3]), seed=1)
    drawn = "0.4 1.2 0.0 1.0 0.1 1.1 0.2 1.1 0.3 1.2 0.2 1.0 0.4 1.1"
    assert [p.text for p in order.batch(0, 14)] == drawn.split()
    shapes = "\n".join(p.text for p in load_world(["shapes"]).train(0).batch(0, 9000))
    assert hashlib.sha256(shapes.encode()).hexdigest() == "93885b4f500b3c2e9eb8dc14651272d5089507e500567096361df8d01d3abbbf"


def test_orders_of_another_stream_are_independent():
    groups = groups_of([50])
    assert PromptOrder(groups, 0, 1).batch(0, 50) != PromptOrder(groups, 0).batch(0, 50)


def mixture(weights, lengths=None, seed=0):
    lengths = lengths or [11] * len(weights)
    sources = [[[Prompt(text=f"{s}.{i}") for i in range(n)]] for s, n in enumerate(lengths)]
    return Mixture([PromptOrder(groups, seed, s) for s, groups in enumerate(sources)], weights)


def source_of(prompt):
    return int(prompt.text.split(".")[0])


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 30))
def test_whole_weights_are_met_exactly_after_every_multiple_of_their_sum(weights, period):
    total = sum(weights)
    counts = collections.Counter(map(source_of, mixture(weights).batch(period, total)))
    assert [counts[s] for s in range(len(weights))] == weights


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=4), st.integers(1, 400))
def test_shares_are_near_the_weights_at_every_position(weights, positions):
    """Each split rounds once: the source number s is off by less than s + 1 prompts."""
    counts = collections.Counter(map(source_of, mixture(weights).batch(0, positions)))
    for number, weight in enumerate(weights):
        assert abs(counts[number] - positions * weight / sum(weights)) < number + 1 + 1e-6


@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.lists(st.integers(0, 300), min_size=1, max_size=10))
def test_a_prompt_of_a_mixture_depends_on_seed_and_position_alone(weights, positions):
    one = mixture(weights, seed=4)
    assert [one.at(p) for p in positions] == [mixture(weights, seed=4).at(p) for p in positions]


def test_a_mixture_takes_each_source_in_its_own_order():
    """What source 1 gives within the mixture is what it gives alone, one prompt after the other."""
    taken = [p for p in mixture([3, 2], [7, 5], seed=9).batch(0, 50) if source_of(p) == 1]
    alone = PromptOrder([[Prompt(text=f"1.{i}") for i in range(5)]], 9, 1)
    assert taken == alone.batch(0, 20)


def test_a_mixture_of_one_is_that_one_and_equal_weights_alternate():
    assert mixture([2.5], [7]).batch(3, 9) == PromptOrder([[Prompt(text=f"0.{i}") for i in range(7)]], 0).batch(3, 9)
    assert [source_of(p) for p in mixture([1, 1]).batch(0, 6)] == [1, 0] * 3


def test_decimal_weights_mean_what_they_say():
    """0.1 is no binary number, yet of 10 prompts exactly one is of that source."""
    counts = collections.Counter(source_of(p) for p in mixture([0.1, 0.2, 0.7]).batch(10**9, 10))
    assert counts == {0: 1, 1: 2, 2: 7}


def test_groups_in_turn_take_their_prompts_in_their_own_order():
    taken = [p.text for p in InTurn(groups_of([2, 1])).batch(0, 6)]
    assert taken == ["0.0", "1.0", "0.1", "1.0", "0.0", "1.0"]


def test_drawn_prompts_are_of_the_groups_in_turn_and_a_function_of_seed_stream_and_position():
    """The text tells the group and a number of the generator that was given."""
    draw = lambda rng, group: Prompt(text=f"{group} {rng.integers(10**9)}")
    taken = [p.text for p in Drawn(draw, 3, seed=5, stream=1).batch(0, 30)]
    assert taken == [f"{i % 3} {np.random.default_rng([5, 1, i]).integers(10**9)}" for i in range(30)]
    assert Drawn(draw, 3, seed=5, stream=1).batch(4, 5) == [Prompt(text=text) for text in taken[20:25]]
    assert not set(taken) & {p.text for other in ((5, 0), (6, 1)) for p in Drawn(draw, 3, *other).batch(0, 30)}
