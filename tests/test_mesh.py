"""Rollout and update on 1, 2, 4 and 8 devices: the same episodes, the same parameters."""

import jax
import numpy as np
import pytest

from tests import tiny
from unigrpo_jax.config import ConfigError
from unigrpo_jax.learning import parameters
from unigrpo_jax.learning.update import new_state
from unigrpo_jax.models.bagel import Context
from unigrpo_jax.parallel import mesh as meshes

START = tiny.params()
REFERENCE = tiny.nearby(START, 0.01, seed=8)


def iteration(devices):
    """One rollout and one update, laid out as in training: parameters everywhere, episodes spread."""
    mesh = meshes.make_mesh(devices)
    everywhere, spread, by_slot = meshes.replicated(mesh), meshes.spread(mesh), meshes.spread(mesh, axis=1)
    layout = Context(keys=by_slot, values=by_slot, valid=spread, rope=spread)
    place = lambda context: jax.lax.with_sharding_constraint(context, layout)
    program = tiny.training_rollout(
        tiny.ROLLOUT, tiny.MODEL, tiny.PixelAutoencoder(), tiny.GROUP, place=place
    )
    rollout = tiny.jit(program.__call__, out_shardings=spread)
    learner = tiny.update_program()
    update = tiny.jit(learner.__call__, donate_argnums=0, out_shardings=everywhere)
    params, reference = jax.device_put((START, REFERENCE), everywhere)
    episodes = rollout(params, {}, tiny.prompts(), 0, 0)
    state = jax.device_put(new_state(jax.tree.map(jax.numpy.copy, params), learner.config), everywhere)
    _, frozen = parameters.split(params, parameters.groups(params, learner.config))
    state, metrics = update(state, frozen, reference, episodes, jax.device_put(tiny.advantages(), spread))
    return jax.block_until_ready((episodes, state, metrics))


@pytest.fixture(scope="module")
def alone():
    return iteration(1)


def test_one_device_is_no_mesh(alone):
    tiny.assert_episodes_equal(alone[0], tiny.episodes())


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_the_mesh_changes_neither_episodes_nor_update(alone, devices):
    episodes, state, metrics = iteration(devices)
    tiny.assert_episodes_equal(episodes, alone[0])
    for x in jax.tree.leaves(episodes):
        assert len(x.sharding.device_set) == devices
        assert x.addressable_shards[0].data.shape[0] == tiny.EPISODES // devices
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(state))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(alone[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=jax.tree_util.keystr(path))
    for name, value in metrics.items():
        np.testing.assert_allclose(value, alone[2][name], rtol=1e-4, atol=2e-6, err_msg=name)
    assert float(metrics["text/ratio_min"]) == float(metrics["text/ratio_max"]) == 1.0


def test_more_devices_than_there_are_is_an_error():
    with pytest.raises(ConfigError, match=r"devices = 9, but JAX sees 8 \(cpu\); use 0 for all of them"):
        meshes.make_mesh(9)
    assert meshes.make_mesh(0).size == 8 and meshes.make_mesh(3).size == 3
