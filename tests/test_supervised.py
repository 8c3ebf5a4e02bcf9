"""Supervised training: the loss by hand, what dropout leaves out, and that it learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import verbs
from tests.test_network import CONFIG, GRID
from tests.verbs import decode_token, prefill, text_logits
from tests.verbs import predict as velocity_of
from unigrpo_jax.episode import Look, Thinking, TokenBlock
from unigrpo_jax.learning.supervised import Round, SupervisedObjective
from unigrpo_jax.models.bagel import Bagel, VisionConfig
from unigrpo_jax.models.bagel.latents import position_ids
from unigrpo_jax.models.building import context as contexts
from unigrpo_jax.rollout.thinking import thinking_block


def a_round(seed=0, seen=None) -> Round:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, CONFIG.vocab_size, (3, 5)).astype(np.int32)
    lengths = np.array([2, 5, 3])
    mask = np.arange(5) < lengths[:, None]
    tokens[np.arange(3), lengths - 1] = CONFIG.eos_token
    prompt = rng.integers(5, CONFIG.vocab_size, (3, 4)).astype(np.int32)
    return Round(
        seen=None if seen is None else Look(latent=seen.reshape(3, *GRID, -1), patches=None),
        heard=TokenBlock(tokens=prompt, valid=np.ones((3, 4), bool)),
        thinking=Thinking(tokens=np.where(mask, tokens, 0), mask=mask, log_probs=np.zeros((3, 5), np.float32)),
        data=rng.normal(size=(3, GRID[0] * GRID[1], CONFIG.latent_width)).astype(np.float32),
    )


@pytest.fixture(scope="module")
def examples():
    return a_round()


OBJECTIVE = SupervisedObjective(model=Bagel(CONFIG), grid=GRID, timestep_shift=2.0, text_dropout=0.0, noise_draws=2)


@jax.jit
def loss_of(params, rounds, key, text_dropout):
    """(loss, metrics) of examples of some rounds."""
    return dataclasses.replace(OBJECTIVE, text_dropout=text_dropout)(params, rounds, key)


@pytest.fixture(scope="module")
def params():
    fresh = verbs.init(Bagel(CONFIG), jax.random.key(0))
    head = 0.1 * jax.random.normal(jax.random.key(1), fresh["llm2vae"]["kernel"].shape)
    return fresh | {"llm2vae": fresh["llm2vae"] | {"kernel": head}}


def test_loss_by_hand(params, examples):
    """Example by example, without padding: next-token loss on the thinking, squared error on the velocity."""
    key = jax.random.key(7)
    total, metrics = loss_of(params, (examples,), key, 0.0)
    _, key_time, key_noise = jax.random.split(key, 3)
    s = 1 / (1 + np.exp(-np.asarray(jax.random.normal(key_time, (2, 3)), np.float64)))
    times = 2.0 * s / (1 + s)
    noise = np.asarray(jax.random.normal(key_noise, (2, *examples.data.shape)), np.float64)
    model, ce, mse = Bagel(CONFIG), [], []
    for b in range(3):
        actions = examples.thinking.tokens[b][examples.thinking.mask[b]]
        read = [*examples.heard.tokens[b], CONFIG.bos_token, *actions]
        tokens = jnp.asarray([read], jnp.int32)
        hidden, context = prefill(model, params, tokens, jnp.ones(tokens.shape, bool), model.empty(1))
        logits = np.asarray(text_logits(model, params, hidden)[0], np.float64)[4 : 4 + len(actions)]
        log_z = np.log(np.exp(logits).sum(axis=1))
        ce += list(log_z - logits[np.arange(len(actions)), actions])
        for d in range(2):
            t = times[d, b]
            x = (1 - t) * examples.data[b] + t * noise[d, b]
            x, t = jnp.asarray(x[None], jnp.float32), jnp.asarray([t], jnp.float32)
            v = velocity_of(model, params, x, t, GRID, context)[0]
            mse.append(np.mean((np.asarray(v, np.float64) - (noise[d, b] - examples.data[b])) ** 2))
    np.testing.assert_allclose(metrics["ce"], np.mean(ce), rtol=1e-5)
    np.testing.assert_allclose(metrics["mse"], np.mean(mse), rtol=1e-5)
    np.testing.assert_allclose(total, np.mean(ce) + np.mean(mse), rtol=1e-5)


def test_a_later_round_is_read_after_the_image_and_the_words_before_it(params, examples):
    """By hand, from the verbs: context of everything so far, then the round's own losses; the whole is their mean."""
    model, key = Bagel(CONFIG), jax.random.key(7)
    rng = np.random.default_rng(5)
    picture, drawn = rng.normal(size=(2, *examples.data.shape)).astype(np.float32)
    drawn_well = np.array([True, False, True])
    rounds = (a_round(1, picture), a_round(2, drawn).replace(heard=None, drawn=drawn_well), a_round(3, drawn))
    total, metrics = loss_of(params, rounds, key, 0.0)
    times, noises, noisy = [], [], []
    for number, one in enumerate(rounds):
        own = key if number == 0 else jax.random.fold_in(key, number)
        _, key_time, key_noise = jax.random.split(own, 3)
        s = 1 / (1 + np.exp(-np.asarray(jax.random.normal(key_time, (2, 3)), np.float64)))
        t = (2.0 * s / (1 + s))[:, :, None, None]
        noise = np.asarray(jax.random.normal(key_noise, (2, *one.data.shape)), np.float64)
        times.append(t[:, :, 0, 0].astype(np.float32))
        noises.append(noise)
        noisy.append(((1 - t) * one.data + t * noise).astype(np.float32))

    @jax.jit
    def read(params):
        """Of each round: logits of the thinking, and the velocities of both noisy images."""
        context, found = model.empty(3), []
        for one, x, t in zip(rounds, noisy, times, strict=True):
            ids = jnp.asarray(position_ids(GRID, CONFIG.max_latent_size))
            args = (one.seen.latent.reshape(3, GRID[0] * GRID[1], -1), jnp.zeros(3), ids, context)
            context = contexts.extend(context, model.network.apply({"params": params}, *args, method="latent_block")[1])
            if one.heard is not None:
                block = model.prefill(params, one.heard.tokens, one.heard.valid, context)[1]
                context = contexts.extend(context, block)
            block = thinking_block(model, one.thinking)
            hidden, new = model.prefill(params, block.tokens, block.valid, context)
            context = contexts.extend(context, new)
            velocities = [model.predict(params, x[d], t[d], GRID, context) for d in range(2)]
            found.append((model.text_logits(params, hidden), velocities))
        return found

    ce, mse = [], []
    for one, (logits, velocities), noise in zip(rounds, read(params), noises, strict=True):
        logits = np.asarray(logits, np.float64)[:, :5]
        log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        chosen = np.take_along_axis(log_probs, one.thinking.tokens[:, :, None], axis=2)[:, :, 0]
        ce.append(-chosen[one.thinking.mask].mean())
        learned = np.ones(3, bool) if one.drawn is None else one.drawn
        for v, e in zip(velocities, noise, strict=True):
            mse.append(np.mean((np.asarray(v, np.float64) - (e - one.data))[learned] ** 2))
    np.testing.assert_allclose(metrics["ce"], np.mean(ce), rtol=1e-5)
    np.testing.assert_allclose(metrics["mse"], np.mean(mse), rtol=1e-5)
    np.testing.assert_allclose(total, np.mean(ce) + np.mean(mse), rtol=1e-5)


def test_an_image_is_read_as_latents_and_then_as_patches(examples):
    """By hand, from the verbs, as a rollout reads it; the encoder learns from what is said of the image."""
    vision = VisionConfig(hidden_size=8, intermediate_size=16, layers=1, heads=2, patch=2, table_side=4, max_side=4)
    model = Bagel(dataclasses.replace(CONFIG, vision=vision))
    rng, shapes = np.random.default_rng(6), jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda s: jnp.asarray(0.2 * rng.standard_normal(s.shape, np.float32)), shapes)
    latent = rng.normal(size=(3, *GRID, CONFIG.latent_width)).astype(np.float32)
    patches = rng.normal(size=(3, 2, 3, vision.patch_width)).astype(np.float32)
    one = examples.replace(seen=Look(latent=latent, patches=patches), data=None)
    loss = dataclasses.replace(OBJECTIVE, model=model)
    (total, _), grads = jax.jit(jax.value_and_grad(lambda p: loss(p, (one,), jax.random.key(0)), has_aux=True))(params)

    @jax.jit
    def by_hand(params):
        tokens, context = latent.reshape(3, -1, CONFIG.latent_width), model.empty(3)
        context = contexts.extend(context, model.see_latents(params, tokens, GRID, context))
        context = contexts.extend(context, model.see_patches(params, patches.reshape(3, 6, -1), (2, 3), context))
        assert context.slots == GRID[0] * GRID[1] + 2 + 6 + 2
        context = contexts.extend(context, model.prefill(params, one.heard.tokens, one.heard.valid, context)[1])
        block = thinking_block(model, one.thinking)
        return jax.nn.log_softmax(model.text_logits(params, model.prefill(params, block.tokens, block.valid, context)[0]))

    log_probs = np.asarray(by_hand(params))[:, :5]
    chosen = np.take_along_axis(log_probs, one.thinking.tokens[:, :, None], axis=2)[:, :, 0]
    np.testing.assert_allclose(total, -chosen[one.thinking.mask].mean(), rtol=1e-5)
    assert np.any(grads["vision"]["patch_embed"]["kernel"]) and np.any(grads["connector"]["fc2"]["kernel"])


def test_only_the_thinking_is_learned_where_there_is_nothing_to_draw(params, examples):
    """The same cross-entropy, and no gradient for what draws alone."""
    key = jax.random.key(3)
    _, both = loss_of(params, (examples,), key, 0.2)
    graded = jax.jit(jax.value_and_grad(dataclasses.replace(OBJECTIVE, text_dropout=0.2), has_aux=True))
    (total, metrics), grads = graded(params, (examples.replace(data=None),), key)
    assert set(metrics) == {"ce"} and total == metrics["ce"]
    np.testing.assert_allclose(total, both["ce"], rtol=1e-6)
    assert not np.any(grads["llm2vae"]["kernel"]) and np.any(grads["lm_head"]["kernel"])


def test_dropped_text_leaves_an_empty_context(params, examples):
    """With certain dropout no token is scored, and the velocity is that upon nothing."""
    other = examples.replace(heard=TokenBlock(tokens=examples.heard.tokens + 1, valid=examples.heard.valid))
    mse = lambda one, dropout: loss_of(params, (one,), jax.random.key(3), dropout)[1]["mse"]
    assert mse(examples, 1.0) == mse(other, 1.0)
    assert mse(examples, 0.0) != mse(other, 0.0) and mse(examples, 1.0) != mse(examples, 0.0)


def test_it_learns_to_say_and_to_draw_one_example(params, examples):
    one = jax.tree.map(lambda x: x[:1].repeat(8, axis=0), examples)
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params, state, key):
        grads, metrics = jax.grad(OBJECTIVE, has_aux=True)(params, (one,), key)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, metrics

    state, history = optimizer.init(params), []
    for i in range(150):
        params, state, metrics = step(params, state, jax.random.key(i))
        history.append((float(metrics["ce"]), float(metrics["mse"])))
    assert history[-1][0] < 0.05 < history[0][0] and np.mean(history[-10:], axis=0)[1] < 0.5 * history[0][1]
    model = Bagel(CONFIG)
    context = model.empty(1)
    _, context = prefill(model, params, one.heard.tokens[:1], one.heard.valid[:1], context)
    context, first = contexts.reserve(context, 5), context.slots
    token, said = jnp.array([CONFIG.bos_token]), []
    while len(said) < 5 and (not said or said[-1] != CONFIG.eos_token):
        logits, block = decode_token(model, params, token, jnp.array([True]), context)
        context, token = contexts.write(context, block, first + len(said)), jnp.argmax(logits, axis=-1)
        said.append(int(token[0]))
    assert said == examples.thinking.tokens[0][examples.thinking.mask[0]].tolist()
