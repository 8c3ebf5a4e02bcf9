"""The policy's view of an episode against the oracle, and what it must not depend on."""

import jax
import jax.numpy as jnp
import numpy as np

from tests import oracle, tiny


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
            np.testing.assert_allclose(flow.velocity[row], view.velocity, **near_zero(1e-4))
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
    np.testing.assert_array_equal(flow.velocity[:, 0], flow2.velocity[:, 0])
    np.testing.assert_array_equal(flow.mean[:, 0], flow2.mean[:, 0])
    assert (np.abs(np.asarray(flow.velocity[:, 1] - flow2.velocity[:, 1])).max(axis=(1, 2)) > 0.1).all()


def test_the_velocity_depends_on_the_text_and_on_the_parameters_that_read_it():
    """A reference reads prompt and thinking itself: with another `und` expert its velocity is another."""
    batch, params = tiny.episodes(), tiny.params()
    _, flow = tiny.view()(params, batch)
    spread = lambda a, b: np.abs(np.asarray(a - b)).max(axis=(1, 2, 3))
    und = tiny.nearby(params["layers"]["und"], 0.05)
    reader = params | {"layers": params["layers"] | {"und": und}}
    assert (spread(tiny.view()(reader, batch)[1].velocity, flow.velocity) > 1e-3).all()
    words = params["embed"]["embedding"].at[5:].add(0.3)  # neither the markers nor BOS and EOS
    _, other = tiny.view()(params | {"embed": {"embedding": words}}, batch)
    assert (spread(other.velocity, flow.velocity) > 1e-3).all()
    tokens = jnp.where(batch.thinking.mask, jnp.roll(batch.thinking.tokens, 1, axis=0), batch.thinking.tokens)
    thought = batch.thinking.replace(tokens=tokens)
    _, other = tiny.view()(params, batch.replace(segments=(thought, batch.drawing)))
    changed = np.asarray((tokens != batch.thinking.tokens).any(axis=1))
    assert changed.any() and (spread(other.velocity, flow.velocity)[changed] > 1e-5).all()
