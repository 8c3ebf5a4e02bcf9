"""The rollout program: an episode depends on its prompt, seed, step and global id, and on nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from unigrpo_jax.config import RunConfig
from unigrpo_jax.rollout import randomness
from unigrpo_jax.training import trainer


def part(tree, rows):
    return jax.tree.map(lambda x: x[rows], tree)


def group(number):
    return slice(number * tiny.GROUP, (number + 1) * tiny.GROUP)


@pytest.mark.parametrize("micro_batches", [2, 4])
def test_micro_batches_change_no_episode(micro_batches):
    program = tiny.jit(tiny.rollout_program(micro_batches=micro_batches).__call__)
    tiny.assert_episodes_equal(program(tiny.params(), {}, tiny.prompts(), 0, 0, 0), tiny.episodes())


def test_neither_the_batch_nor_the_neighbours_change_an_episode():
    """Two halves with their own first id are the whole; a prompt among strangers does as before."""
    whole, prompts = tiny.episodes(), tiny.prompts()
    strangers = tiny.prompts((4, 4, 1, 5), seed=8)
    among = jax.tree.map(lambda a, b: a.at[2].set(b[2]), strangers, prompts)
    mixed = tiny.rollout()(tiny.params(), {}, among, 0, 0, 0)
    tiny.assert_episodes_equal(part(mixed, group(2)), part(whole, group(2)))
    assert not np.array_equal(mixed.thinking.tokens[group(1)], whole.thinking.tokens[group(1)])

    half = tiny.jit(tiny.rollout_program().__call__)
    run = lambda prompt, first: half(tiny.params(), {}, prompt, 0, 0, first)
    halves = [run(part(prompts, slice(0, 2)), 0), run(part(prompts, slice(2, 4)), 2 * tiny.GROUP)]
    tiny.assert_episodes_equal(jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *halves), whole)
    second = run(part(among, slice(1, 3)), tiny.GROUP)  # the third prompt again, now second of two
    tiny.assert_episodes_equal(part(second, group(1)), part(whole, group(2)))


def test_padding_changes_nothing():
    """Another token in the padded slots, and a longer bucket of them."""
    whole, garbage = tiny.episodes(), tiny.prompts(garbage=17)
    tiny.assert_episodes_equal(
        tiny.rollout()(tiny.params(), {}, garbage, 0, 0, 0).segments, whole.segments, limit=0
    )
    longer = tiny.jit(tiny.rollout_program().__call__)(tiny.params(), {}, tiny.prompts(bucket=11, garbage=30), 0, 0)
    tiny.assert_episodes_equal(longer.segments, whole.segments)


def test_no_two_draws_share_a_key():
    """Seeds, steps, streams, global ids and positions all reach the key."""
    seen = [
        jax.random.key_data(jax.vmap(lambda key: jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(8)))(keys))
        for seed in (0, 1, 2)
        for step in (0, 1, 2)
        for stream in (randomness.TOKENS, randomness.INITIAL_NOISE, randomness.STEP_NOISE)
        for keys in [randomness.sample_keys(randomness.stream_key(seed, step, stream), jnp.arange(96))]
    ]
    rows = np.concatenate([np.asarray(s).reshape(-1, 2) for s in seen])
    assert len(np.unique(rows, axis=0)) == len(rows) == 27 * 96 * 8


def test_no_noise_repeats_across_episodes_transitions_iterations_and_seeds():
    batches = [tiny.episodes(seed, step).drawing for seed in (0, 1) for step in (0, 1, 2)]
    noise = np.concatenate([np.asarray(d.noise).reshape(-1, d.noise[0, 0].size) for d in batches])
    assert len(noise) == 6 * tiny.EPISODES * 2
    similarity = np.corrcoef(noise) - np.eye(len(noise))
    assert np.abs(similarity).max() < 0.35  # six sigma of 288 independent numbers
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    first = np.concatenate([np.asarray(d.x[:, 0]).reshape(tiny.EPISODES, -1) for d in batches if d.steps[0, 0] == 0])
    assert len(first) >= tiny.EPISODES and len(np.unique(first[:, 0])) == len(first)


def test_members_of_a_group_think_and_draw_differently():
    thinking = np.asarray(tiny.episodes().thinking.tokens).reshape(tiny.PROMPTS, tiny.GROUP, -1)
    assert all(len(np.unique(rows, axis=0)) > 1 for rows in thinking)
    images = np.asarray(tiny.episodes().drawing.image).reshape(tiny.EPISODES, -1)
    assert len(np.unique(images, axis=0)) == tiny.EPISODES


def test_what_an_episode_looks_like():
    e, b, w, n, c = tiny.episodes(), tiny.EPISODES, 2, 6, 48
    shapes = jax.tree.map(lambda x: (x.dtype.name, x.shape), {"t": e.thinking.__dict__, "d": e.drawing.__dict__})
    latent = ("float32", (b, w, n, c))
    assert shapes == {
        "t": {"tokens": ("int32", (b, 6)), "mask": ("bool", (b, 6)), "log_probs": ("float32", (b, 6))},
        "d": {
            "steps": ("int32", (b, w)), "x": latent, "noise": latent, "mean": latent,
            "latent": ("float32", (b, n, c)), "media": {"image": ("uint8", (b, 12, 8, 3))}, "finite": ("bool", (b,)),
            "times": None,
        },
    }  # fmt: skip
    prompts = tiny.prompts()
    np.testing.assert_array_equal(e.prompt.tokens, np.repeat(prompts.tokens, tiny.GROUP, axis=0))
    np.testing.assert_array_equal(e.prompt.valid, np.repeat(prompts.valid, tiny.GROUP, axis=0))


def test_nothing_is_traced_again_for_another_seed_step_window_or_id():
    run = tiny.rollout()
    before = run._cache_size()
    starts = set()
    for step in range(6):
        out = run(tiny.params(), {}, tiny.prompts(seed=step), 11, step, step * 100)
        starts.add(int(out.drawing.steps[0, 0]))
    assert run._cache_size() == max(before, 1) == 1
    assert len(starts) > 1


def test_training_is_not_guided_unless_asked():
    """The default episode is linear: one context per transition."""
    assert tiny.rollout_program().flow.guidance is None
    assert RunConfig().rollout.guidance == 1


def test_each_thinking_and_each_drawing_before_another_thinking_is_told():
    """Of two micro-batches: thought, drawn, thought, drawn; the seconds of a stopwatch by hand are those of the thinking."""
    told = []
    program = tiny.rollout_program(micro_batches=2)
    program = dataclasses.replace(program, thought=lambda _, thinking: told.append(bool(thinking)))
    jax.block_until_ready(jax.jit(program.__call__)(tiny.params(), {}, tiny.prompts(), 0, 0, 0))
    jax.effects_barrier()
    assert told == [True, False, True, False]


def test_a_stopwatch_adds_the_seconds_of_thinking(monkeypatch):
    now = iter([10.0, 11.0, 11.5, 14.0, 16.0, 17.0])
    monkeypatch.setattr(trainer.time, "monotonic", lambda: next(now))
    watch = trainer.Stopwatch()
    assert watch.start() == 10.0
    for thinking in (True, True, False, True, False):  # the first one told by two devices
        watch(None, thinking)
    assert watch.seconds == pytest.approx(1.0 + 2.0)  # 10 to 11, 14 to 16
