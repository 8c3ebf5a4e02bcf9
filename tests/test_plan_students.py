"""Plans of distillations, and of students that are held to a teacher: what lies on a device, and operations by hand."""

import dataclasses
import math

import jax
import pytest

from experiments.distill import settings
from experiments.presets import bagel_7b, bagel_tiny, flux_dance
from launch.planning import roofline
from launch.planning.compile import find_model, find_work, prepare, state_bytes
from launch.planning.given import Given
from tests.command import command
from tests.test_plan import cpus
from unigrpo_jax.config import ConfigError, DistillationConfig, LoraConfig, MeshConfig, RunConfig
from unigrpo_jax.models import tree
from unigrpo_jax.models.work import Split

ALONE = Split(chips=1, batch=1, tensor=1)


def held(config: RunConfig) -> RunConfig:
    """The same, held to a teacher in the place of the start."""
    teacher = DistillationConfig(teacher="the/teacher", guidance=4.0, fake_steps=3)
    learning = dataclasses.replace(config.learning, mse_weight=0.0, text_kl_weight=0.0, latent_kl_weight=0.0, leash_times=(),
                                   matching_weight=0.001, distillation=teacher, reference="device")  # fmt: skip
    return dataclasses.replace(config, learning=learning)


def evaluations(config: RunConfig) -> tuple[float, float]:
    """Of an iteration's rollout and of its update, in those of the network for one drawing."""
    work = find_work(config, find_model(config.model), Given())
    phases = {phase.name: phase.flops for phase in roofline.phases(config, work, ALONE, 0.0)}
    return tuple(phases[name] / work.evaluation(0, executed=True) for name in ("drawing", "update"))


def test_a_distillations_evaluations_are_counted():
    """The student's: one, one along the times, and a backward pass of two, or of one where adapters are trained.

    Several versions that follow one another are computed again in the backward pass; of one the compiler keeps what it has.
    """
    base = dataclasses.replace(flux_dance.config(), model=dataclasses.replace(flux_dance.config().model, remat="none"))
    many = settings(base, "mean_flow")
    many = dataclasses.replace(many, model=dataclasses.replace(many.model, lora=LoraConfig()))
    of = lambda config, **d: dataclasses.replace(config, learning=dataclasses.replace(
        config.learning, distillation=dataclasses.replace(config.learning.distillation, **d)))  # fmt: skip
    drawn, update = evaluations(of(many, guidance=3.0))
    count, steps = many.episodes, many.learning.ppo_epochs
    assert many.model.lora.rank == 0 and many.rollout.window_size == 1
    assert math.isclose(drawn, 2 * count * many.rollout.flow_steps, rel_tol=1e-6)
    assert math.isclose(update, count * steps * (2 + 1 + 3), rel_tol=1e-6)
    two = dataclasses.replace(many, rollout=dataclasses.replace(many.rollout, window_size=2, window_range=(0, 2)))
    together = dataclasses.replace(two, learning=dataclasses.replace(two.learning, window_steps="batched"))
    assert two.learning.window_steps == "scanned"
    for config, backward in ((two, 3), (together, 2)):
        _, update = evaluations(of(config, guidance=3.0))
        assert math.isclose(update, 2 * count * steps * (2 + 1 + 1 + backward), rel_tol=1e-6)
    few = settings(base, "dmd2")
    back = 1 if few.model.lora.rank else 2
    drawn, update = evaluations(of(few, guidance=1.0, fake_steps=3))
    assert math.isclose(drawn, few.episodes * 4, rel_tol=1e-6)  # in the steps of its student
    each = 3 * (1 + 1 + back) + (1 + back) + 1 + 1
    assert math.isclose(update, few.episodes * few.learning.ppo_epochs * each, rel_tol=1e-6)


def test_what_holds_a_student_is_added_to_what_it_learns_from_rewards():
    base = dataclasses.replace(flux_dance.config(), model=dataclasses.replace(flux_dance.config().model, remat="none"))
    alone = dataclasses.replace(held(base).learning, matching_weight=0.0, distillation=DistillationConfig())
    (_, before), (_, after) = evaluations(dataclasses.replace(base, learning=alone)), evaluations(held(base))
    back = 1 if base.model.lora.rank else 2
    each = 3 * (1 + 1 + back) + (1 + back) + 1 + 2
    assert math.isclose(after - before, base.trained_episodes * base.learning.ppo_epochs * each, rel_tol=1e-6)


def test_a_fake_score_is_another_copy_of_what_draws_and_of_its_moments():
    base = dataclasses.replace(bagel_7b.config(), mesh=MeshConfig(fsdp=8))
    state = state_bytes(prepare(settings(base, "dmd2"), cpus()))
    assert abs(state["fake score"] - state["trained"] - state["optimizer"]) < 100  # but for Adam's counts
    setting = prepare(held(base), cpus())
    state = state_bytes(setting)
    draws = sum(x.size for path, x in tree.flatten(setting.inputs.state.trained).items() if "und" not in path)
    whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(setting.inputs.reference))
    parts = 8
    assert 3 * 4 * draws / parts <= state["fake score"] < 3.3 * 4 * draws / parts
    assert state["fake score"] < 0.8 * (state["trained"] + state["optimizer"])
    assert whole / parts <= state["reference"] < 1.1 * whole / parts  # all of the teacher, frozen or not


@pytest.mark.parametrize("kind", ["mean_flow", "dmd2", "held"])
def test_both_programs_are_laid_out_from_shapes(kind):
    base = bagel_tiny.config()
    config = held(base) if kind == "held" else settings(base, kind)
    config = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, prompts_per_iteration=8))
    setting = prepare(config, cpus())
    rollout, update = setting.traced
    state, metrics = update.out_info
    assert state.trained.keys() == setting.inputs.state.trained.keys()
    assert (state.fake is None) == (kind == "mean_flow") and ("matching/loss" in metrics) == (kind == "held")
    assert rollout.out_info.drawing.latent.shape[0] == config.episodes


def test_the_command_plans_a_distillation_where_its_method_is_named(monkeypatch):
    """With the defaults of experiments.distill, which the preset's own would contradict."""
    found = []

    def plan(config, *given, **named):
        raise ConfigError(str(found.append(config)))

    monkeypatch.setattr("launch.plan.plan", plan)
    for words in ((), ("--learning.method", "dmd2", "--learning.distillation.fake-steps", 2)):
        assert command("launch.plan", "flux_dance", "--topology", "v5p:2x2x1", *words).code == 2
    run, distilled = found
    base = settings(flux_dance.config(), "dmd2")
    teacher = dataclasses.replace(base.learning.distillation, fake_steps=2)
    assert run == flux_dance.config()
    assert distilled == dataclasses.replace(base, learning=dataclasses.replace(base.learning, distillation=teacher))
