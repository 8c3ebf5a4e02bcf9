"""Thinking: what is drawn, what is recorded, where a chain ends, and the context that it leaves."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracle, tiny
from tests.tiny import EOS, PAD
from unigrpo_jax.models.bagel import Bagel
from unigrpo_jax.rollout import randomness
from unigrpo_jax.rollout.thinking import TokenSampler, think, thinking_block

LENGTH = tiny.ROLLOUT.thinking_tokens


def thinker(model=tiny.MODEL, **sampler):
    """(params, prompts, seed) -> thinking and context, with the keys of a rollout at step 0."""
    sampler = TokenSampler(**sampler)

    def run(params, prompt, seed):
        _, block = model.prefill(params, prompt.tokens, prompt.valid, model.empty(tiny.PROMPTS))
        keys = randomness.sample_keys(
            randomness.stream_key(seed, 0, randomness.TOKENS), jnp.arange(tiny.EPISODES)
        )
        return think(model, params, block.repeat(tiny.GROUP), keys, LENGTH, sampler)

    return tiny.jit(run)


@pytest.fixture(scope="module")
def thought():
    """Thinking and context of a rollout."""
    return thinker(temperature=tiny.ROLLOUT.temperature)(tiny.params(), tiny.prompts(), 0)


def logits_of(params, episode):
    """The oracle's logits that each action was drawn from, [actions, V]."""
    logits, _ = oracle.forward(params, episode.prompt + episode.thought())
    return logits[len(episode.prompt) :][: len(episode.actions)]


def rows(thinking):
    """Oracle episodes of a thinking upon the prompts."""
    batch = tiny.episodes()
    batch = batch.replace(segments=(thinking, batch.drawing))
    return [oracle.episode(batch, i) for i in range(tiny.EPISODES)]


def draw_many(sampler, logits, count=40_000):
    keys = jax.random.split(jax.random.key(1), count)
    log_probs = sampler.log_probs(jnp.asarray(logits, jnp.float32))
    table = jnp.broadcast_to(log_probs, (count, len(logits)))
    return np.bincount(np.asarray(sampler.draw(keys, 3, table)), minlength=len(logits))


def chi_square(counts, probs):
    expected = counts.sum() * probs
    return np.sum((counts - expected) ** 2 / expected)


def test_log_probs_are_softmax_of_logits_over_temperature():
    logits = np.random.default_rng(0).normal(size=(3, 32)) * 4
    for temperature in (0.3, 1.0, 1.7):
        out = TokenSampler(temperature=temperature).log_probs(jnp.asarray(logits, jnp.bfloat16))
        exact = np.asarray(jnp.asarray(logits, jnp.bfloat16).astype(jnp.float32), np.float64)
        assert out.dtype == jnp.float32
        np.testing.assert_allclose(out, oracle.log_softmax(exact / temperature), atol=5e-6)
    greedy = TokenSampler(temperature=0).log_probs(jnp.asarray(logits, jnp.float32))
    np.testing.assert_allclose(greedy, oracle.log_softmax(logits), atol=5e-6)


def test_drawn_frequencies_follow_softmax_of_logits_over_temperature():
    logits = np.random.default_rng(1).normal(size=32) * 1.5
    probs = np.exp(oracle.log_softmax(logits / 0.7))
    assert chi_square(draw_many(TokenSampler(temperature=0.7), logits), probs) < 31 + 5 * np.sqrt(2 * 31)
    assert chi_square(draw_many(TokenSampler(temperature=1.0), logits), probs) > 1000  # the bound can tell


def test_truncated_frequencies_are_the_renormalised_rest():
    logits = np.random.default_rng(2).normal(size=32) * 1.5
    order, probs = np.argsort(-logits), np.exp(oracle.log_softmax(logits))
    for sampler, kept in (
        (TokenSampler(top_k=5), order[:5]),
        (TokenSampler(top_p=0.6), order[: np.searchsorted(np.cumsum(probs[order]), 0.6) + 1]),
    ):
        counts = draw_many(sampler, logits)
        assert set(np.flatnonzero(counts)) == set(kept)
        assert chi_square(counts[kept], probs[kept] / probs[kept].sum()) < len(kept) + 5 * np.sqrt(2 * len(kept))


@pytest.mark.parametrize(
    ("settings", "support"),
    [
        ({}, {0, 1, 2, 3, 4}),
        ({"top_k": 1}, {0}),
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 3}, {0, 1, 2, 3}),  # 2 and 3 are equally likely: both stay
        ({"top_k": 5}, {0, 1, 2, 3, 4}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        ({"top_p": 1e-6}, {0}),  # one token always stays
        ({"top_p": 0.49}, {0}),
        ({"top_p": 0.51}, {0, 1}),
        ({"top_p": 0.76}, {0, 1, 2, 3}),
        ({"top_p": 0.99}, {0, 1, 2, 3, 4}),
        ({"top_k": 2, "top_p": 0.6}, {0}),  # 1/2 of the 3/4 that top-k left is 2/3
        ({"top_k": 2, "top_p": 0.7}, {0, 1}),
    ],
)
def test_top_k_and_top_p_keep_the_right_tokens(settings, support):
    probs = np.array([0.5, 0.25, 0.1, 0.1, 0.05])
    shuffle = np.array([3, 0, 4, 2, 1])
    log_probs = jnp.log(jnp.asarray(probs[shuffle], jnp.float32))[None]
    kept = np.asarray(TokenSampler(**settings).truncate(log_probs))[0]
    assert {int(shuffle[i]) for i in np.flatnonzero(np.isfinite(kept))} == support
    np.testing.assert_array_equal(kept[np.isfinite(kept)], np.asarray(log_probs)[0, np.isfinite(kept)])


def test_greedy_takes_the_first_of_the_likeliest():
    log_probs = jnp.log(jnp.array([[0.2, 0.3, 0.3, 0.2], [0.1, 0.2, 0.3, 0.4]]))
    keys = jax.random.split(jax.random.key(0), 2)
    assert TokenSampler(temperature=0).draw(keys, 0, log_probs).tolist() == [1, 3]


def test_the_rollout_thinks_with_these_keys(thought):
    tiny.assert_episodes_equal(thought[0], tiny.episodes().thinking)


def test_recorded_log_probs_are_those_of_a_full_forward_pass_without_cache(thought):
    params = oracle.to64(tiny.params())
    for e in rows(thought[0]):
        table = oracle.log_softmax(logits_of(params, e) / tiny.ROLLOUT.temperature)
        np.testing.assert_allclose(e.log_probs, table[np.arange(len(e.actions)), e.actions], atol=2e-5)


def test_the_stop_token_is_an_action_and_nothing_follows_it(thought):
    tokens, mask, log_probs = (np.asarray(a) for a in jax.tree.leaves(thought[0]))
    lengths = mask.sum(1)
    assert (mask == (np.arange(LENGTH) < lengths[:, None])).all() and (lengths >= 1).all()
    ended = np.array([t[n - 1] == EOS for t, n in zip(tokens, lengths, strict=True)])
    assert ended.any() and not ended.all()  # the batch has chains that stop and chains that are cut
    assert (lengths[~ended] == LENGTH).all()
    assert all((t[: n - 1] != EOS).all() for t, n in zip(tokens, lengths, strict=True))
    assert (tokens[~mask] == PAD).all() and (log_probs[~mask] == 0).all() and (log_probs[mask] < 0).all()


def test_the_context_is_that_of_reading_the_whole_block_at_once(thought):
    """Keys, values and rotary position after BOS + y + EOS; a chain that was cut gets its EOS, which is no action."""
    thinking, context = thought
    params, cut = oracle.to64(tiny.params()), 0
    for row, e in enumerate(rows(thinking)):
        text = e.prompt + e.thought()
        assert text[-1] == EOS
        cut += e.actions[-1] != EOS
        _, _, keys, values = oracle.forward(params, text, keep_kv=True)
        valid = np.asarray(context.valid[row])
        assert valid.sum() == len(text) == int(context.rope[row])
        np.testing.assert_allclose(context.keys[:, row][:, :, valid].swapaxes(1, 2), keys, atol=5e-5)
        np.testing.assert_allclose(context.values[:, row][:, :, valid].swapaxes(1, 2), values, atol=5e-5)
    assert cut
    block = thinking_block(tiny.MODEL, thinking)
    np.testing.assert_array_equal(context.valid[:, -LENGTH - 2 :], block.valid)
    for row, e in enumerate(rows(thinking)):
        assert np.asarray(block.tokens[row])[np.asarray(block.valid[row])].tolist() == e.thought()


def test_a_truncated_sampler_records_the_whole_distribution():
    """top-k decides what is drawn; the log-probability stays that of softmax(logits / temperature) over all tokens."""
    thinking, _ = thinker(temperature=0.7, top_k=2)(tiny.params(), tiny.prompts(), 0)
    params, ranks = oracle.to64(tiny.params()), set()
    for e in rows(thinking):
        logits = logits_of(params, e)
        at = np.arange(len(e.actions))
        np.testing.assert_allclose(e.log_probs, oracle.log_softmax(logits / 0.7)[at, e.actions], atol=2e-5)
        ranks |= set(np.sum(logits > logits[at, e.actions][:, None], axis=1))
    assert ranks == {0, 1}


def test_greedy_thinking_is_the_argmax_of_every_step():
    thinking, _ = thinker(temperature=0)(tiny.params(), tiny.prompts(), 0)
    params = oracle.to64(tiny.params())
    for e in rows(thinking):
        logits = logits_of(params, e)
        assert logits.argmax(1).tolist() == e.actions
        np.testing.assert_allclose(e.log_probs, oracle.log_softmax(logits).max(1), atol=2e-5)
    for group in np.asarray(thinking.tokens).reshape(tiny.PROMPTS, tiny.GROUP, LENGTH):
        assert (group == group[0]).all()


def test_layers_in_arrays_of_their_own_think_alike(thought):
    """All layers unrolled, decoding reads each layer's parameters from arrays of their own."""
    apart = dataclasses.replace(tiny.MODEL, unroll=tiny.CONFIG.layers)
    model, laid_out = apart.cut(tiny.params())
    assert not model.stacked and "layers" not in laid_out
    found = thinker(apart, temperature=tiny.ROLLOUT.temperature)(tiny.params(), tiny.prompts(), 0)
    np.testing.assert_array_equal(found[0].tokens, thought[0].tokens)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(thought), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


CALLS = []


@dataclasses.dataclass(frozen=True)
class CountingBagel(Bagel):
    """Notes every token position that is really decoded."""

    def decode(self, params, token_B, valid_B, context):
        jax.debug.callback(lambda reading: CALLS.append(np.asarray(reading)), valid_B)
        return super().decode(params, token_B, valid_B, context)


def test_decoding_stops_when_every_chain_has_ended():
    run = thinker(CountingBagel(tiny.CONFIG), temperature=0.7)
    # A residual stream that is one large constant, and an LM head that reads EOS from it.
    params, counts = jax.tree.map(lambda x: x, tiny.params()), []
    params["embed"] = {"embedding": jnp.full_like(params["embed"]["embedding"], 1e4)}
    params["lm_head"] = {"kernel": jnp.zeros_like(params["lm_head"]["kernel"]).at[:, EOS].set(10.0)}
    for weights in (tiny.params(), params):
        CALLS.clear()
        thinking, _ = jax.block_until_ready(run(weights, tiny.prompts(), 0))
        jax.effects_barrier()
        longest = int(np.asarray(thinking.mask).sum(1).max())
        cut = bool(np.any(np.asarray(thinking.mask)[:, -1] & (np.asarray(thinking.tokens)[:, -1] != EOS)))
        assert len(CALLS) == 1 + longest + cut  # BOS, the actions, and the EOS of a chain that was cut
        counts.append((len(CALLS), longest))
    assert counts == [(LENGTH + 2, LENGTH), (2, 1)]


def test_no_token_copies_the_context():
    """The compiled loop holds keys and values where they are: nothing of their whole shape is copied.

    Layers are unrolled, as in `shapes`: then the compiler sees no loop over them that ends before the context is written.
    """
    run, given = thinker(Bagel(tiny.CONFIG, unroll=2), temperature=0.7), (tiny.params(), tiny.prompts(), 0)
    keys = jax.eval_shape(run, *given)[1].keys
    program, shape = run.lower(*given).compile().as_text(), ",".join(map(str, keys.shape))
    assert f"f32[{shape}]" in program
    assert not re.search(rf"f32\[{shape}\]\S* copy\(", program)
