"""The shapes world's student in the package, and the preset that goes on with it."""

import dataclasses

import numpy as np
import pytest

from experiments.presets import shapes, shapes_few
from unigrpo_jax.config import ModelConfig
from unigrpo_jax.learning import parameters
from unigrpo_jax.models.families import load_model
from unigrpo_jax.models.folders.student import Student
from unigrpo_jax.models.tree import flatten
from unigrpo_jax.training import student_checks


@pytest.fixture(scope="module")
def student():
    return load_model(shapes_few.config().model)


def test_it_thinks_as_the_base_and_draws_otherwise(student):
    """A distillation trains what draws; all else is the base's to the bit."""
    assert not student.unknown_settings and not student.unread_files
    teacher = load_model(ModelConfig())
    own, taught = flatten(student.params()), flatten(teacher.params())
    assert own.keys() == taught.keys()
    by = student.network.trained_by
    groups = {path: parameters.group_of(path, by, ()) for path in own}
    for group, same in ((parameters.REASONING, True), (parameters.DENOISING, False)):
        kernels = [path for path, of in groups.items() if of == group and own[path].ndim > 1]
        assert kernels and all(np.array_equal(own[path], taught[path]) == same for path in kernels), group


def test_the_preset_asks_of_it_what_it_was_made_for(student):
    config = shapes_few.config()
    assert student.student == Student(
        method="dmd2", steps=(4,), second_time=False, guidance=2.0, timestep_shift=3.0, teacher="base"
    )
    assert student_checks.warnings(student, config.rollout, config.evaluation, trains=True) == []
    # But for 4 transitions in rollouts and evaluations, their noise, where it is drawn, and a sampler.
    usual = dataclasses.replace(shapes.config(), model=config.model)
    assert len(student_checks.warnings(student, usual.rollout, usual.evaluation, trains=True)) == 5


def test_the_transition_that_is_never_trained_is_held_where_it_begins():
    """The times of 4 steps: 1, 3/4, 1/2 and 1/4 of the way, shifted by t = 3 u / (1 + 2 u): 1, 0.9, 0.75, 0.5."""
    config = shapes_few.config()
    assert config.rollout.window_range == config.rollout.noise_range == (0, 3)
    assert config.learning.leash_times == (0.5,) and config.learning.leash_weight == 0.02
