"""Distillation in the loop of every run: who draws what a student learns from, its update, and how it is judged.

With `mean_flow` the teacher draws, guided, in `rollout.flow_steps`; with `dmd2` the student, in the steps that it is made
for, and every state of its way is kept.  The teacher is the start, the reference of other methods; what thinks is not
trained. Rewards measure what is drawn, and teach nothing.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from unigrpo_jax.config import RunConfig, require
from unigrpo_jax.config_checks import check
from unigrpo_jax.config_evaluation import PassesConfig
from unigrpo_jax.learning.distillation import Distillation
from unigrpo_jax.learning.distribution_matching import DistributionMatching
from unigrpo_jax.learning.mean_flow import MeanFlow
from unigrpo_jax.learning.policy import Policy
from unigrpo_jax.learning.update import TrainState
from unigrpo_jax.models import tree
from unigrpo_jax.models.folders.student import Student
from unigrpo_jax.models.loaded import Loaded
from unigrpo_jax.models.paths import RECTIFIED
from unigrpo_jax.parallel import kernels
from unigrpo_jax.rollout.program import RolloutProgram, flow_sampler
from unigrpo_jax.rollout.step_rules import ODE
from unigrpo_jax.rollout.windows import Window
from unigrpo_jax.training import trainer
from unigrpo_jax.training.evaluation import Evaluator, Judged, check_schedule
from unigrpo_jax.training.programs import Inputs, Programs, guidance_of
from unigrpo_jax.training.trainer import OwnEpisodes, Parts, Trainer

SAMPLERS = {"mean_flow": "ode", "dmd2": "sde"}  # of an evaluation, by which a method's student draws
PLAIN = "xla"  # the attention that has a forward-mode derivative


def build(config: RunConfig) -> Parts:
    """As `trainer.build`, of a model that can be distilled; ConfigError says what cannot work."""
    check(config)
    d, judged = config.learning.distillation, config.evaluation.flow_steps
    made = " ".join(map(str, d.steps))
    require(judged in d.steps, f"evaluation.flow_steps = {judged}, but the student is made for learning.distillation.steps "
            f"= {made}; judge it as it draws, by --evaluation.flow-steps {max(d.steps)}.")  # fmt: skip
    _check_judged(config)
    parts = trainer.build(config)
    loaded = parts.loaded
    network, words = loaded.network, f"{loaded.folder} ({loaded.family})"
    require(loaded.student is None or not loaded.student.second_time, f"{words} is a student of average velocities, and a "
            "teacher is asked for the velocity at a time; give the model that it was made of.")  # fmt: skip
    require(loaded.student is None or d.again, f"{words} is a student already; give the model that it was made of, or "
            "--learning.distillation.again to distil it once more.")  # fmt: skip
    require(loaded.student is not None or not d.again, f"learning.distillation.again is for a student, and {words} is none; "
            "leave it out.")  # fmt: skip
    if config.learning.method == "mean_flow":
        require(network.path == RECTIFIED and network.prediction == "velocity", f"learning.method = 'mean_flow' averages a "
                f"velocity along a straight path, but {words} predicts {network.prediction} along another; use 'dmd2'.")
    require(d.guidance <= 1 or loaded.codec.guided, f"learning.distillation.guidance = {d.guidance:g}, but {words} is not "
            "guided by a second pass; use 1.")  # fmt: skip
    for steps in d.steps:
        check_schedule("learning.distillation.steps", steps, config.rollout, loaded)
    return parts


def _check_judged(config: RunConfig) -> None:
    """ConfigError where a student would be judged otherwise than it draws."""
    e, method = config.evaluation, config.learning.method
    require(e.guidance <= 1, f"evaluation.guidance = {e.guidance:g}, but a student is judged as it draws, without; use 1, "
            f"and learning.distillation.guidance {e.guidance:g} for the teacher.")  # fmt: skip
    require(e.passes == PassesConfig(), "evaluation.passes guide, and a student is judged as it draws, without; leave them "
            "out, and name the teacher's text guidance by learning.distillation.guidance.")  # fmt: skip
    sampler = SAMPLERS[method]
    require(e.sampler == sampler, f"evaluation.sampler = {e.sampler!r}, but a student of learning.method = {method!r} draws "
            f"by another; use {sampler!r}.")  # fmt: skip


def student_of(config: RunConfig, loaded: Loaded) -> Student | None:
    """What an export says of what a run has learned; None where it distilled nothing."""
    learning, d = config.learning, config.learning.distillation
    if not learning.distils:
        return None
    return Student(
        method=learning.method, steps=d.steps, second_time=loaded.network.two_times, guidance=d.guidance,
        timestep_shift=config.rollout.timestep_shift, teacher=loaded.folder.resolve().name,
    )  # fmt: skip


def notes(parts: Parts) -> list[str]:
    """What a run of these parts does that its settings do not say, in sentences."""
    config, found = parts.config, []
    if parts.loaded.network.further_passes:
        found.append("The teacher is guided by text alone, by learning.distillation.guidance; a preset's evaluation.passes "
                     "and evaluation.guidance_image are not distilled.")  # fmt: skip
    if config.learning.method == "dmd2":
        (steps,), other = config.learning.distillation.steps, config.rollout.flow_steps
        if steps != other:
            found.append(f"Drawings have the {steps} transitions of learning.distillation.steps; rollout.flow_steps = "
                         f"{other} is not read.")  # fmt: skip
        return found
    chosen = kernels.choose(config.model, parts.layout.mesh.devices.flat[0])
    if chosen != PLAIN:
        found.append(f"The student's derivative is computed with plain attention, since {chosen} has no forward-mode "
                     "derivative.")  # fmt: skip
    return found


class DistilledPrograms(Programs):
    """`rollout` is the teacher's, whose parameters are the reference's, or the student's; `update` is a `Distillation`."""

    def _sampling(self, program: RolloutProgram) -> RolloutProgram:
        learning, r = self.config.learning, self.config.rollout
        if learning.method == "mean_flow":
            flow = flow_sampler(r, self._network, guidance_of(learning.distillation, self._network))
            flow, network = dataclasses.replace(flow, rule=ODE(), noisy=(0, 0)), self._network.one_time
            return dataclasses.replace(program, model=network, flow=flow, window=None)
        (steps,) = learning.distillation.steps
        flow = flow_sampler(dataclasses.replace(r, flow_steps=steps, noise_range=(0, 0)), self._network)
        return dataclasses.replace(program, flow=flow, window=Window(size=steps, range=(0, steps)))

    def _sampled_with(self, inputs: Inputs) -> dict:
        if self.config.learning.method == "dmd2":
            return super()._sampled_with(inputs)
        place = lambda x: x.sharding.with_memory_kind("device")  # wherever it is kept between updates
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(x)), inputs.reference)

    def _learning(self, policy: Policy, autoencoder: Any) -> Callable[..., tuple[TrainState, dict]]:
        learning, r = self.config.learning, self.config.rollout
        guided = lambda guidance: dataclasses.replace(policy, flow=dataclasses.replace(policy.flow, guidance=guidance))
        student, teacher = guided(None), guided(guidance_of(learning.distillation, policy.model))
        both = {"teacher": dataclasses.replace(teacher, model=policy.model.one_time), "config": learning}
        if learning.method == "dmd2":
            objective = DistributionMatching(student=student, shift=r.timestep_shift, **both)
        else:
            plain = kernels.attend(dataclasses.replace(self.config.model, attention=PLAIN), self.layout.mesh)
            network = dataclasses.replace(policy.model, attend=plain)
            objective = MeanFlow(student=dataclasses.replace(student, model=network), versions=r.window_size, **both)
        return Distillation(objective=objective, config=learning, seed=self.config.seed)


class DistilledTrainer(Trainer):
    """Drawings and updates of a distillation."""

    programs_of = DistilledPrograms

    def params(self, state: TrainState) -> dict:
        """The parameters that draw: the teacher's with `mean_flow`, else the student's."""
        return super().first_params() if self.parts.config.learning.method == "mean_flow" else super().params(state)

    def first_params(self) -> dict:
        """The parameters that the run started from, with what was fresh then."""
        return tree.unflatten(tree.flatten(super().first_params()) | self.fresh())

    def judge(self, own: OwnEpisodes, times: dict[str, float]) -> tuple[np.ndarray, dict[str, float]]:
        """Weights [B], all 1, in the place of advantages, and what is measured of the drawings, where there are rewards."""
        metrics = super().judge(own, times)[1] if self.parts.config.rewards else {}
        for name in ("mean", "std", "zero_variance_share"):  # of what is rewarded
            metrics.pop(f"reward/{name}", None)
        return np.ones(self.parts.config.episodes, np.float32), metrics


class DistilledEvaluator(Evaluator):
    """As every run's, and the same scores in each number of steps that the student is made for, as `NAME_STEPS`."""

    def __init__(self, parts: Parts):
        config = parts.config
        evaluation, what = config.evaluation, (config.rollout, parts.loaded, parts.world, parts.judging, parts.layout)
        super().__init__(evaluation, *what, config.logging.samples)
        in_steps = lambda steps: dataclasses.replace(evaluation, flow_steps=steps, drift=0)
        others = [steps for steps in config.learning.distillation.steps if steps != evaluation.flow_steps]
        self._others = {steps: Evaluator(in_steps(steps), *what) for steps in others}

    def __call__(self, params, autoencoder_params, reference: Callable[[], Any] | None = None) -> Judged:
        """What a run's evaluation finds, in each number of steps."""
        judged = super().__call__(params, autoencoder_params, reference)
        table = dict(judged.table)
        for steps, other in self._others.items():
            other.alive = self.alive
            table |= {f"{name}_{steps}": row for name, row in other(params, autoencoder_params).table.items()}
        return dataclasses.replace(judged, table=table)
