"""What is not finite, or teaches nothing, has a defined outcome: a poisoned episode moves no parameter."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from unigrpo_jax.learning.advantages import group_advantages, zero_variance_share
from unigrpo_jax.learning.update import UpdateProgram, new_state
from unigrpo_jax.models import tree
from unigrpo_jax.models.autoencoders.pixels import PixelAutoencoder
from unigrpo_jax.models.bagel import Bagel
from unigrpo_jax.rollout.drawing import in_turn
from unigrpo_jax.rollout.not_finite import blank, finite_rows
from unigrpo_jax.rollout.program import training_rollout

START = tiny.params()
TRAINED, REFERENCE = tiny.nearby(START, 0.02), tiny.nearby(START, 0.03, seed=8)
POISON, ILL = 31, 2  # a token whose embedding is not finite, and the number of the prompt that holds it
ADVANTAGES = np.asarray(tiny.advantages())
OF_GROUP = np.arange(tiny.EPISODES) // tiny.GROUP


def poisoned(params, value=np.nan):
    return params | {"embed": {"embedding": params["embed"]["embedding"].at[POISON].set(value)}}


def rows(batch, keep):
    return jax.tree.map(lambda x: x[keep], batch)


@functools.cache
def gradient():
    """(params, episodes, advantages) -> ((loss, metrics), gradients), off-policy, with every regulariser."""
    objective = tiny.objective(text_kl_weight=0.1, latent_kl_weight=0.2)

    def run(params, start, reference, episodes, advantages):
        anchors = objective.anchors(start, reference, episodes, own_start=False)
        return jax.value_and_grad(objective, has_aux=True)(params, episodes, anchors, advantages, False)

    return tiny.jit(run)


@functools.cache
def updating():
    """(state, frozen, reference, episodes, advantages, mse_weight) -> (state, metrics), one optimizer step."""
    base = tiny.update_program()

    def run(state, frozen, reference, episodes, advantages, mse_weight):
        config = dataclasses.replace(base.config, mse_weight=mse_weight)
        objective = dataclasses.replace(base.objective, config=config)
        return UpdateProgram(objective=objective, config=config)(state, frozen, reference, episodes, advantages)

    return tiny.jit(run)


def update(params=START, batch=None, advantages=None, mse_weight=0.3, state=None):
    state = new_state(params, tiny.update_program().config, Bagel.trained_by) if state is None else state
    frozen = {path: x for path, x in tree.flatten(params).items() if path not in state.trained}
    batch = tiny.episodes() if batch is None else batch
    return updating()(state, frozen, REFERENCE, batch, jnp.asarray(advantages), mse_weight)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_episode_that_is_not_finite_leaves_the_rollout_blank_and_no_other_changes(value):
    """One prompt holds a token that the policy cannot read; the tokens of the others are what they are without it."""
    block = tiny.prompts()
    block = block.replace(tokens=block.tokens.at[ILL, -2].set(POISON))
    batch = tiny.rollout()(poisoned(START, value), {}, block, 0, 0, 0)
    well = tiny.rollout()(START, {}, block, 0, 0, 0)
    ill = OF_GROUP == ILL
    np.testing.assert_array_equal(batch.drawing.finite, ~ill)
    tiny.assert_trees_equal(rows(batch, ~ill), rows(well, ~ill))
    assert all(np.isfinite(np.asarray(x, np.float64)).all() for x in jax.tree.leaves(batch))
    assert not np.any(batch.thinking.mask[ill]) and not np.any(batch.drawing.x[ill]) and not np.any(batch.drawing.noise[ill])
    assert np.asarray(batch.prompt.valid)[ill].sum(axis=1).tolist() == [1] * tiny.GROUP
    assert np.asarray(batch.prompt.tokens)[ill][:, -1].tolist() == [tiny.EOS] * tiny.GROUP


def test_an_image_that_is_not_finite_is_noticed_though_its_pixels_hide_it():
    class Fragile(PixelAutoencoder):
        def decode(self, params, latent_BHWC):
            return jnp.where(latent_BHWC[:, :1, :1, :1] > 0.5, jnp.nan, latent_BHWC)

    run = tiny.jit(training_rollout(tiny.ROLLOUT, tiny.MODEL, Fragile(), tiny.GROUP).__call__)
    batch = run(START, {}, tiny.prompts(), 0, 0, 0)
    broken = np.asarray(tiny.episodes().drawing.image)[:, 0, 0, 0] >= 0.75 * 255
    assert 0 < broken.sum() < tiny.EPISODES
    np.testing.assert_array_equal(batch.drawing.finite, ~broken)
    assert not np.any(batch.drawing.x[broken]) and np.all(finite_rows(batch.drawing.mean))


def test_a_function_of_several_arrays_is_computed_in_turn():
    x = np.arange(24.0).reshape(12, 2)
    for parts in (0, 2, 3):
        square, big = jax.jit(lambda x, parts=parts: in_turn(lambda y: (y**2, y[:, 0] > 5), x, parts, 1))(x)
        np.testing.assert_array_equal(square, x**2)
        np.testing.assert_array_equal(big, x[:, 0] > 5)


@pytest.mark.parametrize("what", ["x", "mean", "image", "log_probs"])
def test_the_gradient_is_that_of_the_other_episodes(what):
    """Its group has advantage 0; the sum over the other 15 episodes, of all losses and regularisers, is divided by 16."""
    batch, ill = tiny.episodes(), 5
    thinking, drawing = batch.segments
    match what:
        case "x" | "mean":
            drawing = drawing.replace(**{what: getattr(drawing, what).at[ill, 0, 1, 2].set(jnp.inf)})
            drawing = drawing.replace(finite=finite_rows(getattr(drawing, what)))
        case "image":
            drawing = drawing.replace(finite=drawing.finite.at[ill].set(False))
        case "log_probs":
            thinking = thinking.replace(log_probs=thinking.log_probs.at[ill, 0].set(jnp.nan))
    advantages = np.where(OF_GROUP == OF_GROUP[ill], 0.0, ADVANTAGES).astype(np.float32)
    mended = blank(batch.replace(segments=(thinking, drawing)), tiny.EOS)
    assert np.flatnonzero(~np.asarray(mended.drawing.finite)).tolist() == [ill]
    (loss, metrics), grads = gradient()(TRAINED, START, REFERENCE, mended, advantages)
    others = np.arange(tiny.EPISODES) != ill
    (expected, _), without = gradient()(TRAINED, START, REFERENCE, rows(batch, others), advantages[others])
    share = others.sum() / tiny.EPISODES
    np.testing.assert_allclose(loss, share * expected, rtol=1e-5)
    for path, value in tree.flatten(without).items():
        np.testing.assert_allclose(tree.flatten(grads)[path], share * value, rtol=1e-4, atol=1e-6, err_msg=path)
    assert all(np.isfinite(x) for x in metrics.values())
    assert float(metrics["flow/log_prob_gap_max"]) < 1 and float(metrics["flow/ratio_max"]) < 1.1


def test_only_where_it_is_blank_is_the_update_finite():
    batch, advantages = tiny.episodes(), np.where(OF_GROUP == 1, 0.0, ADVANTAGES).astype(np.float32)
    drawing = batch.drawing.replace(x=batch.drawing.x.at[5].set(jnp.nan))
    spoilt = batch.replace(segments=(batch.thinking, drawing))
    mended = blank(batch.replace(segments=(batch.thinking, drawing.replace(finite=finite_rows(drawing.x)))), tiny.EOS)
    assert [float(update(batch=b, advantages=advantages)[1]["update/skipped"]) for b in (spoilt, mended)] == [1, 0]


def test_where_every_group_is_constant_no_step_is_taken():
    """Advantages exactly 0: the losses of both phases are 0, and the leash, which is there, moves nothing alone."""
    rewards = np.repeat(np.float32([0.1, 0.7, 1 / 3, 5e8])[:, None], tiny.GROUP, axis=1)
    advantages = np.asarray(group_advantages(rewards))
    assert not advantages.any() and float(zero_variance_share(rewards)) == 1
    still, metrics = update(advantages=advantages.reshape(-1))
    assert float(metrics["text/loss"]) == float(metrics["flow/loss"]) == 0 == float(metrics["update/skipped"])
    np.testing.assert_allclose(metrics["loss"], 0.3 * metrics["flow/velocity_mse"], rtol=1e-6)
    assert float(metrics["flow/velocity_mse"]) > 0 and float(metrics["update/without_signal"]) == 1
    for path, value in still.trained.items():
        np.testing.assert_array_equal(value, tree.flatten(START)[path], err_msg=path)


def test_where_every_chain_is_truncated_the_share_is_one_and_the_update_is_finite():
    thinking, drawing = tiny.episodes().segments
    tokens = jnp.where(thinking.mask & (thinking.tokens != tiny.EOS), thinking.tokens, 7)
    cut = thinking.replace(tokens=tokens, mask=jnp.ones_like(thinking.mask))
    _, metrics = update(batch=tiny.episodes().replace(segments=(cut, drawing)), advantages=ADVANTAGES)
    assert float(metrics["text/truncated_share"]) == 1 and float(metrics["text/length"]) == tiny.ROLLOUT.thinking_tokens
    assert float(metrics["update/skipped"]) == 0 < float(metrics["update_norm/reasoning"])
