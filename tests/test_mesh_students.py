"""The updates of a distillation on a mesh: the same student, and the same fake score, as on one device."""

import dataclasses

import jax
import numpy as np
import pytest

from tests import tiny
from unigrpo_jax.config import DistillationConfig, MeshConfig
from unigrpo_jax.learning import parameters
from unigrpo_jax.learning.distillation import Distillation
from unigrpo_jax.learning.distribution_matching import DistributionMatching
from unigrpo_jax.learning.mean_flow import MeanFlow
from unigrpo_jax.learning.update import new_state
from unigrpo_jax.models import tree
from unigrpo_jax.models.bagel import Bagel
from unigrpo_jax.models.building.guidance import Guidance
from unigrpo_jax.models.building.second_time import is_second_time
from unigrpo_jax.parallel import mesh as meshes
from unigrpo_jax.parallel.rules import Layout

TEACHER = tiny.params()
TWO_TIMES = dataclasses.replace(tiny.MODEL, config=dataclasses.replace(tiny.CONFIG, second_time=True))


def student(method: str) -> tuple[Bagel, dict]:
    """A network and its parameters, near to the teacher's; those of a second time say something."""
    if method == "dmd2":
        return tiny.MODEL, tiny.nearby(TEACHER, 0.01, seed=8)
    begun, rng = tree.flatten(TWO_TIMES.with_second_time(TEACHER, jax.random.key(3))), np.random.default_rng(1)
    moved = {path: 0.3 * rng.standard_normal(x.shape, np.float32) for path, x in begun.items() if is_second_time(path)}
    return TWO_TIMES, tree.unflatten(begun | moved)


def updated(method: str, devices: int, fsdp: int):
    """(state, metrics) after one update of the same episodes, laid out as in training."""
    mesh = meshes.make_mesh(devices, MeshConfig(fsdp=fsdp))
    layout = Layout(mesh, Bagel.axes)
    network, params = student(method)
    network = dataclasses.replace(network, hold=layout.activations)
    own = DistillationConfig(fake_steps=1, equal_share=0.5)
    config = dataclasses.replace(tiny.LEARNING, method=method, group_size=1, mse_weight=0.0, distillation=own)
    policy = dataclasses.replace(tiny.policy(), model=network)
    flow = dataclasses.replace(policy.flow, guidance=Guidance(text=2.0))
    both = {"student": policy, "teacher": dataclasses.replace(policy, model=network.one_time, flow=flow), "config": config}
    objective = DistributionMatching(shift=1.0, **both) if method == "dmd2" else MeanFlow(versions=1, **both)
    learner = Distillation(objective=objective, config=config, seed=0)
    place = lambda path, x: jax.device_put(x, layout.parameter(path, x.shape))
    lay = lambda flat: {path: place(path, x) for path, x in flat.items()}
    _, frozen = parameters.split(params, parameters.groups(params, config, Bagel.trained_by))
    state = new_state(params, config, Bagel.trained_by)
    shardings = layout.like_parameters(state)
    update = tiny.jit(learner.__call__, out_shardings=(shardings, meshes.replicated(mesh)))
    given = lay(frozen), tree.unflatten(lay(tree.flatten(TEACHER))), jax.device_put(tiny.episodes(), meshes.spread(mesh))
    return update(jax.device_put(state, shardings), *given, None)


@pytest.mark.parametrize("method", ["dmd2", "mean_flow"])
def test_the_mesh_changes_no_update_of_a_distillation(method):
    """Of four devices, two of which share a parameter, and two their episodes."""
    (state, metrics), (alone, expected) = updated(method, 4, 2), updated(method, 1, 1)
    assert metrics["update/skipped"] == 0 and (state.fake is not None) == (method == "dmd2")
    _, began = student(method)
    began = tree.flatten(began)
    moved = [np.abs(np.asarray(x) - np.asarray(began[path])).max() > 1e-5 for path, x in alone.trained.items()]
    assert np.mean(moved) > 0.9
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6, err_msg=jax.tree_util.keystr(path))
    for name, value in metrics.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=2e-6, err_msg=name)
    for trained in (state.trained, *([state.fake.trained] if state.fake else [])):  # what the rules cut is cut
        up = trained["layers/gen/up_proj/kernel"]
        assert up.addressable_shards[0].data.size * 2 == up.size
