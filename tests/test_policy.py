"""The policy's view of an episode against the oracle, and what it must not depend on."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracle, tiny
from tests.equations import equations
from unigrpo_jax.learning import policy as policies


def near_zero(limit):
    return {"rtol": 0, "atol": limit}


def test_view_is_that_of_a_full_forward_pass_without_cache():
    """Under other parameters than those that sampled; two places of the window."""
    other = tiny.nearby(tiny.params(), 0.03)
    exact = oracle.to64(other)
    for step in (0, 2):
        batch = tiny.episodes(0, step)
        text, flow = jax.tree.map(np.asarray, tiny.view()(other, batch))
        for row in range(tiny.EPISODES):
            e = oracle.episode(batch, row)
            view, mask = oracle.view(exact, e), np.asarray(batch.thinking.mask[row])
            np.testing.assert_allclose(text.log_probs[row][mask], view.log_probs, **near_zero(5e-5))
            np.testing.assert_allclose(text.entropy[row][mask], view.entropy, **near_zero(5e-5))
            assert (text.log_probs[row][~mask] == 0).all() and (text.entropy[row][~mask] == 0).all()
            np.testing.assert_allclose(flow.output[row], view.output, **near_zero(1e-4))
            np.testing.assert_allclose(flow.mean[row], view.mean, **near_zero(1e-4))
            np.testing.assert_allclose(flow.std[row], view.std, **near_zero(1e-6))


def test_view_under_the_sampling_parameters_is_what_the_rollout_recorded():
    batch = tiny.episodes()
    text, flow = tiny.view()(tiny.params(), batch)
    np.testing.assert_allclose(text.log_probs, batch.thinking.log_probs, **near_zero(1e-5))
    np.testing.assert_allclose(flow.mean, batch.drawing.mean, **near_zero(1e-5))


def test_masked_positions_do_not_matter():
    """Other tokens in the padding of prompts and behind the end of thinkings: the same bits."""
    batch = tiny.episodes()
    tiny.assert_trees_equal(tiny.view()(tiny.params(), tiny.spoil(batch)), tiny.view()(tiny.params(), batch))


def test_noisy_images_are_invisible():
    """Neither the thinking nor another transition sees the latent of a transition."""
    batch = tiny.episodes()
    text, flow = tiny.view()(tiny.params(), batch)
    drawing = batch.drawing.replace(x=batch.drawing.x.at[:, 1].add(3.0))
    text2, flow2 = tiny.view()(tiny.params(), batch.replace(segments=(batch.thinking, drawing)))
    tiny.assert_trees_equal(text, text2)
    np.testing.assert_array_equal(flow.output[:, 0], flow2.output[:, 0])
    np.testing.assert_array_equal(flow.mean[:, 0], flow2.mean[:, 0])
    assert (np.abs(np.asarray(flow.output[:, 1] - flow2.output[:, 1])).max(axis=(1, 2)) > 0.1).all()


def test_the_velocity_depends_on_the_text_and_on_the_parameters_that_read_it():
    """A reference reads prompt and thinking itself: with another `und` expert its velocity is another."""
    batch, params = tiny.episodes(), tiny.params()
    _, flow = tiny.view()(params, batch)
    spread = lambda a, b: np.abs(np.asarray(a - b)).max(axis=(1, 2, 3))
    und = tiny.nearby(params["layers"]["und"], 0.05)
    reader = params | {"layers": params["layers"] | {"und": und}}
    assert (spread(tiny.view()(reader, batch)[1].output, flow.output) > 1e-3).all()
    words = params["embed"]["embedding"].at[5:].add(0.3)  # neither the markers nor BOS and EOS
    _, other = tiny.view()(params | {"embed": {"embedding": words}}, batch)
    assert (spread(other.output, flow.output) > 1e-3).all()
    tokens = jnp.where(batch.thinking.mask, jnp.roll(batch.thinking.tokens, 1, axis=0), batch.thinking.tokens)
    thought = batch.thinking.replace(tokens=tokens)
    _, other = tiny.view()(params, batch.replace(segments=(thought, batch.drawing)))
    changed = np.asarray((tokens != batch.thinking.tokens).any(axis=1))
    assert changed.any() and (spread(other.output, flow.output)[changed] > 1e-5).all()


def weighted(policy):
    """A number that every entry of both views moves, with its views."""

    def loss(params, episodes):
        views = policy.view(params, episodes)
        weight = lambda x: jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)
        return sum(jnp.sum(weight(x) * x) for x in jax.tree.leaves(views)), views

    return loss


@functools.cache
def views_and_gradient(window_steps, logits):
    """Of `tiny`'s policy, where so many logits of an episode may live at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policies, "LOGITS", logits)
        program = jax.value_and_grad(weighted(tiny.policy(window_steps=window_steps)), has_aux=True)
        (_, views), gradient = tiny.jit(program)(tiny.params(), tiny.episodes())
    return views, gradient


WHOLE = 6 * 32  # thinking tokens times vocabulary


@pytest.mark.parametrize(("window_steps", "logits"), [("scanned", WHOLE // 2), ("batched", 60)])
def test_neither_scanned_windows_nor_pieces_of_logits_change_values_or_gradients(window_steps, logits):
    """Two pieces of three tokens; four of two, the last of them empty."""
    views, gradient = views_and_gradient("batched", WHOLE)
    other_views, other_gradient = views_and_gradient(window_steps, logits)
    for a, b in zip(jax.tree.leaves(other_views), jax.tree.leaves(views), strict=True):
        assert np.abs(b).max() > 0.01
        np.testing.assert_allclose(a, b, **near_zero(2e-5))
    largest = max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(gradient))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(other_gradient), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, b, **near_zero(1e-5 * largest), err_msg=jax.tree_util.keystr(path))


def largest_array(function, *args):
    """Elements of the largest array that a function's program makes."""
    return max(x.aval.size for equation in equations(function, *args) for x in equation.outvars)


def test_long_logits_are_never_whole(monkeypatch):
    """With a vocabulary of 4096 they are the largest array of values and gradients; the bound halves it."""
    config = dataclasses.replace(tiny.CONFIG, vocab_size=4096)
    policy = dataclasses.replace(tiny.policy(), model=dataclasses.replace(tiny.MODEL, config=config))
    shapes = jax.eval_shape(policy.model.init, jax.random.key(0))
    gradient = jax.grad(lambda *args: weighted(policy)(*args)[0])
    logits = tiny.EPISODES * 6 * 4096
    assert largest_array(gradient, shapes, tiny.episodes()) == logits
    monkeypatch.setattr(policies, "LOGITS", 3 * 4096)
    assert largest_array(gradient, shapes, tiny.episodes()) == logits // 2
