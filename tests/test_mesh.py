"""Rollout and update on several devices, arranged in every way: the same episodes, the same parameters."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from tests import tiny
from tests.test_weights import VISION, bagel
from unigrpo_jax.config import ConfigError, MeshConfig
from unigrpo_jax.learning import parameters
from unigrpo_jax.learning.objective import Objective
from unigrpo_jax.learning.policy import Policy
from unigrpo_jax.learning.update import UpdateProgram, new_state
from unigrpo_jax.models import tree
from unigrpo_jax.models.bagel import Bagel
from unigrpo_jax.models.building import lora
from unigrpo_jax.parallel import mesh as meshes
from unigrpo_jax.parallel.rules import Layout
from unigrpo_jax.rollout import drawing
from unigrpo_jax.training import evaluation

START = tiny.params()
REFERENCE = tiny.nearby(START, 0.01, seed=8)
LEASH = {"leash_times": (0.25,), "leash_weight": 0.5}


def iteration(devices, fsdp=1, tensor=1, slices=1, learns=True):
    """One rollout and one update, laid out as in training: (episodes, state, metrics); without `learns` the episodes."""
    mesh = meshes.make_mesh(devices, MeshConfig(slice=slices, fsdp=fsdp, tensor=tensor))
    layout, spread = Layout(mesh, Bagel.axes), meshes.spread(mesh)
    model = dataclasses.replace(tiny.MODEL, hold=layout.activations)
    place = layout.condition
    program = tiny.training_rollout(
        tiny.ROLLOUT, model, tiny.PixelAutoencoder(), tiny.GROUP, place=place, parts=meshes.batch_size(mesh)
    )
    rollout = tiny.jit(program.__call__, out_shardings=spread)
    base = tiny.update_program(**LEASH)
    policy = Policy(model=model, tokens=program.tokens, flow=program.flow, leash_times=base.config.leash_times)
    learner = UpdateProgram(objective=Objective(policy=policy, config=base.config), config=base.config)
    lay = lambda params: tree.unflatten(
        {path: jax.device_put(x, layout.parameter(path, x.shape)) for path, x in tree.flatten(params).items()}
    )
    params, reference = lay(START), lay(REFERENCE)
    episodes = rollout(params, {}, tiny.prompts(), 0, 0)
    if not learns:
        return episodes
    state = new_state(START, learner.config, Bagel.trained_by)
    shardings = layout.like_parameters(state)
    update = tiny.jit(learner.__call__, out_shardings=(shardings, meshes.replicated(mesh)))
    _, frozen = parameters.split(params, parameters.groups(params, learner.config, Bagel.trained_by))
    state, metrics = update(
        jax.device_put(state, shardings), frozen, reference, episodes, jax.device_put(tiny.advantages(), spread)
    )
    return jax.block_until_ready((episodes, state, metrics))


@pytest.fixture(scope="module")
def alone():
    """The same without a mesh."""
    return tiny.episodes(), *tiny.updated(tiny.episodes(), tiny.advantages(), START, REFERENCE, **LEASH)


class Sorting(tiny.PixelAutoencoder):
    """A decoder that can be found in a program's text."""

    def decode(self, params, latent_BHWC):
        del params
        return jax.numpy.sort(latent_BHWC, axis=1)


def test_every_device_draws_its_share_of_every_micro_batch(monkeypatch):
    """16 episodes in two micro-batches on four devices: two turns of one image each, not of two on half of the devices."""
    monkeypatch.setattr(drawing, "DECODED_PIXELS", 1)  # one image at a time
    mesh = meshes.make_mesh(4, MeshConfig(fsdp=4))
    layout, spread = Layout(mesh, Bagel.axes), meshes.spread(mesh)
    model = dataclasses.replace(tiny.MODEL, hold=layout.activations)
    settings = dataclasses.replace(tiny.ROLLOUT, micro_batches=2)
    place = layout.condition
    program = tiny.training_rollout(settings, model, Sorting(), tiny.GROUP, place=place, parts=4)
    at = lambda path, x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout.parameter(path, x.shape))
    params = tree.unflatten({path: at(path, x) for path, x in tree.flatten(START).items()})
    text = jax.jit(program.__call__, out_shardings=spread).lower(params, {}, tiny.prompts(), 0, 0).compile().as_text()
    assert set(re.findall(r"f32(\[\d+,12,8,3\])\S* sort\(", text)) == {"[1,12,8,3]"}


@pytest.mark.parametrize(("side", "together"), [(1024, 1), (512, 1), (256, 4), (24, 8)])
def test_a_device_decodes_large_images_one_by_one(side, together):
    """16 episodes in two parts of 8."""
    seen = set()

    class Large(tiny.PixelAutoencoder):
        def decode(self, params, latent_BHWC):
            seen.add(latent_BHWC.shape[0])
            return jax.numpy.zeros((latent_BHWC.shape[0], side, side, 3)) + latent_BHWC[:, :1, :1, :1]

    program = tiny.training_rollout(tiny.ROLLOUT, tiny.MODEL, Large(), tiny.GROUP, parts=2)
    episodes = jax.eval_shape(program.__call__, START, {}, tiny.prompts(), 0, 0)
    assert episodes.segments[-1].image.shape == (16, side, side, 3) and seen == {1, 2 * together}  # 1 to see an image's size


def test_one_device_is_no_mesh():
    tiny.assert_episodes_equal(iteration(1, learns=False), tiny.episodes())


@pytest.mark.parametrize(
    ("devices", "fsdp", "tensor", "slices"),
    [(8, 1, 1, 1), (4, 4, 1, 1), (8, 2, 2, 2)],
)
def test_the_mesh_changes_neither_episodes_nor_update(alone, devices, fsdp, tensor, slices):
    episodes, state, metrics = iteration(devices, fsdp, tensor, slices)
    tiny.assert_episodes_equal(episodes, alone[0])
    for x in jax.tree.leaves(episodes):
        assert x.addressable_shards[0].data.shape[0] == tiny.EPISODES * tensor // devices
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(alone[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=jax.tree_util.keystr(path))
    for name, value in metrics.items():
        np.testing.assert_allclose(value, alone[2][name], rtol=1e-4, atol=2e-6, err_msg=name)
    assert float(metrics["text/ratio_min"]) == float(metrics["text/ratio_max"]) == 1.0
    # What the rules cut is cut: a device holds its part of weights and of both moments.
    for arrays in (state.trained, *(x for x in jax.tree.leaves(state.opt_state, is_leaf=lambda x: isinstance(x, dict))
                                    if isinstance(x, dict))):  # fmt: skip
        up = arrays.get("layers/gen/up_proj/kernel")
        if up is not None:
            assert up.addressable_shards[0].data.size * fsdp * tensor == up.size


def test_every_parameter_has_one_rule_and_every_rule_a_parameter():
    """Of a model with all parts and adapters everywhere."""
    key, targets = jax.random.key(0), ("layers/.*",)
    params = jax.eval_shape(lambda: lora.attach(Bagel(bagel(32, VISION)).init(key), 2, targets, key))
    hits = {pattern: 0 for pattern, _ in Bagel.axes}
    for path, x in tree.flatten(params).items():
        first = next(pattern for pattern, _ in Bagel.axes if re.fullmatch(pattern, path))
        hits[first] += 1
        assert len(dict(Bagel.axes)[first]) == x.ndim, path
    assert all(hits.values()), [pattern for pattern, count in hits.items() if not count]


def test_what_does_not_divide_is_an_error_with_the_arithmetic():
    layout = Layout(meshes.make_mesh(8, MeshConfig(fsdp=1, tensor=8)), Bagel.axes)
    with pytest.raises(ConfigError, match=r"'kv_heads' = 2 does not divide over mesh.tensor = 8 \(2 / 8 = 0.25\)"):
        layout.parameter("layers/und/k_proj/kernel", (2, 32, 2, 8))
    with pytest.raises(ConfigError, match=r"no rule says where parameter vit/kernel of shape \[3\] lies"):
        layout.parameter("vit/kernel", (3,))


@pytest.mark.parametrize(
    ("devices", "sizes", "words"),
    [
        (9, {}, r"devices = 9, but JAX sees 8 \(cpu\); use 0 for all of them"),
        (8, {"fsdp": 3}, r"mesh.data = \? \* mesh.fsdp = 3 \* mesh.tensor = 1 = 3 \* \? does not give the 8 devices"),
        (8, {"data": 2, "fsdp": 2}, r"= 4 does not give the 8 devices; let the sizes multiply to 8"),
        (8, {"fsdp": 0}, r"at most one size may be 0"),
    ],
)
def test_a_mesh_that_cannot_be_is_one_sentence(devices, sizes, words):
    with pytest.raises(ConfigError, match=words):
        meshes.make_mesh(devices, MeshConfig(**sizes))


def test_sizes_that_are_not_given_are_inferred():
    assert meshes.make_mesh(0).shape == {"slice": 1, "data": 8, "fsdp": 1, "sequence": 1, "tensor": 1}
    assert meshes.make_mesh(3).size == 3
    assert meshes.make_mesh(8, MeshConfig(fsdp=2, tensor=2)).shape["data"] == 2
    assert meshes.make_mesh(8, MeshConfig(data=2, fsdp=0, tensor=1)).shape["fsdp"] == 4


class Device:
    """Stands for a device of a pod of several slices; a mesh needs no more of it."""

    platform, device_kind, process_index = "cpu", "cpu", 0

    def __init__(self, number, slice_index):
        self.id, self.slice_index = number, slice_index


def test_slices_are_the_outermost_axis_and_are_counted_by_themselves():
    """Devices come mixed; those of one slice must end up together."""
    devices = [Device(number, number % 2) for number in range(8)]
    mesh = meshes.make_mesh(0, MeshConfig(fsdp=2), devices)
    assert dict(mesh.shape) == {"slice": 2, "data": 2, "fsdp": 2, "sequence": 1, "tensor": 1}
    assert meshes.batch_size(mesh) == 8
    for index, island in enumerate(mesh.devices):
        assert {device.slice_index for device in island.flat} == {index}
    with pytest.raises(ConfigError, match=r"mesh.slice = 4, but the 8 devices lie in 2 slices; use 2"):
        meshes.make_mesh(0, MeshConfig(slice=4), devices)
    with pytest.raises(ConfigError, match=r"mesh.slice = 2 \* mesh.data = 3"):
        meshes.make_mesh(0, MeshConfig(slice=2, data=3))


@pytest.mark.parametrize(
    ("devices", "prompts", "images", "expected"),
    [(1, 5, 3, 5), (8, 6, 1, 8), (8, 8, 1, 8), (8, 3, 4, 4), (4, 5, 6, 6), (8, 1, 8, 1), (6, 5, 4, 6)],
)
def test_an_evaluation_is_filled_up_to_what_divides_over_the_devices(devices, prompts, images, expected):
    mesh = meshes.make_mesh(devices, MeshConfig())
    found = evaluation.whole_prompts(prompts, images, mesh)
    assert found == expected and found * images % devices == 0
    assert all(count * images % devices for count in range(prompts, found))
