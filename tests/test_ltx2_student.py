"""LTX-2 with a second time: each modality is told its gap, and a picture that is there already has none."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.test_ltx2_first_frame import FRAME, GRID, TOY, given
from unigrpo_jax.config import LearningConfig, ModelConfig
from unigrpo_jax.learning import parameters
from unigrpo_jax.models.building.second_time import is_second_time
from unigrpo_jax.models.families import load_model
from unigrpo_jax.models.folders.student import Student
from unigrpo_jax.models.ltx2.tiny import tiny_folder
from unigrpo_jax.parallel import mesh as meshes
from unigrpo_jax.parallel.rules import Layout

TWO = dataclasses.replace(TOY, transformer=dataclasses.replace(TOY.transformer, second_time=True))
T = jnp.asarray([0.9, 0.4])
both = pytest.mark.parametrize("begun", [False, True])


def condition(begun):
    params, text, first, _ = given()
    found = TOY.empty(2).replace(states=text.states, audio=text.audio)
    return found.replace(first=first.reshape(2, FRAME, 5)) if begun else found


def moved():
    begun, rng = TWO.with_second_time(given()[0], jax.random.key(0)), np.random.default_rng(1)
    return {name: 0.3 * rng.standard_normal(x.shape, np.float32) if is_second_time(name) else x for name, x in begun.items()}


@both
def test_it_begins_as_its_teacher_wherever_it_is_asked_to_arrive(begun):
    params, c = given()[0], condition(begun)
    x = TOY.free(given()[3], c)
    teacher = tiny.jit(lambda p: TOY.predict(p, x, T, GRID, c))(params)
    says = tiny.jit(lambda p, s: TWO.predict(p, x, T, GRID, c, s))
    fresh = TWO.with_second_time(params, jax.random.key(0))
    for s in (0.0, 0.2, 0.4):
        tiny.assert_trees_equal(says(fresh, jnp.full(2, s)), teacher)
    tiny.assert_trees_equal(tiny.jit(lambda p: TWO.predict(p, x, T, GRID, c))(params), teacher)
    other = says(moved(), jnp.zeros(2))
    for name in teacher:
        assert (np.abs(np.asarray(other[name] - teacher[name])).max(-1) > 1e-5).all(), name


@both
def test_the_forward_derivative_is_that_of_finite_differences(begun):
    c, params, step = condition(begun), moved(), 4e-5
    x, s = TOY.free(given()[3], c), jnp.asarray([0.3, 0.1])
    average = lambda p: lambda x, t, s: TWO.predict(p, x, t, GRID, c, s)
    says = tiny.jit(lambda p, *at: average(p)(*at))
    tangents = jax.tree.map(jnp.cos, x), jnp.ones(2), jnp.zeros(2)
    for tangent in (tangents, (jax.tree.map(jnp.zeros_like, x), jnp.zeros(2), jnp.ones(2))):
        slope = tiny.jit(lambda p, *tangent: jax.jvp(average(p), (x, T, s), tangent)[1])(params, *tangent)
        at = lambda sign, tangent=tangent: jax.tree.map(lambda a, b: a + sign * step * b, (x, T, s), tangent)
        ahead, behind = (says(params, *at(sign)) for sign in (1, -1))
        for name, found in slope.items():
            wanted = (np.asarray(ahead[name], np.float64) - np.asarray(behind[name])) / (2 * step)
            assert 1e-2 < np.abs(wanted).max() and np.abs(found - wanted).max() < 0.03 * np.abs(wanted).max(), name


def test_each_modality_has_an_embedder_which_is_learned_and_cut_as_that_of_its_time():
    own = {name: x for name, x in TWO.with_second_time({}, jax.random.key(0)).items() if is_second_time(name)}
    assert {name.split(".emb.")[0] for name in own} == {"time_embed", "audio_time_embed"} and len(own) == 8
    layout, like = Layout(meshes.make_mesh(1), TWO.axes), given()[0]
    for name, x in own.items():
        assert x.shape == like[name.replace("gap_embedder", "timestep_embedder")].shape
        assert bool((np.asarray(x) != 0).any()) == name.endswith("linear_1.weight")
        layout.parameter(name, x.shape)
    silent = dataclasses.replace(TWO, sound=False)
    labels = parameters.groups({**given()[0], **own}, LearningConfig(), silent.trained_by)
    assert {name: labels[name] for name in own} == {
        name: "frozen" if name.startswith("audio_") else "denoising" for name in own
    }


def test_a_folder_of_a_student_gives_back_what_was_written(tmp_path):
    student = Student(method="mean_flow", steps=(4,), second_time=True, guidance=3.0, timestep_shift=0.0, teacher="a toy")
    fresh = load_model(ModelConfig(path=str(tiny_folder()), second_time=True))
    params, rng = fresh.with_fresh(fresh.params()), np.random.default_rng(2)
    params |= {name: rng.standard_normal(x.shape, np.float32) for name, x in params.items() if is_second_time(name)}
    fresh.export(params, tmp_path / "out", "float32", student=student)
    loaded = load_model(ModelConfig(path=str(tmp_path / "out")))
    assert loaded.student == student and loaded.network == dataclasses.replace(fresh.network, fresh_time=False)
    tiny.assert_trees_equal(loaded.params(), {name: jnp.asarray(x) for name, x in params.items()})
    assert loaded.published.evaluation["guidance"] == 1 and loaded.published.rollout["frames"] == 121
