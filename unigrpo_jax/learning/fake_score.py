"""The fake score of distribution matching: a network like the teacher's that learns what the student draws.

Its optimizer steps, and reinforcement learning of a student that is held to its teacher by it in the place of a leash.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from unigrpo_jax.config import LearningConfig
from unigrpo_jax.episode import Episodes
from unigrpo_jax.learning import parameters, stepping
from unigrpo_jax.learning.distribution_matching import DistributionMatching
from unigrpo_jax.learning.objective import reduce_metrics
from unigrpo_jax.models import tree
from unigrpo_jax.models.building.second_time import is_second_time
from unigrpo_jax.rollout import randomness


@flax.struct.dataclass
class FakeScore:
    """What is learned of the student's own drawings.

    Attributes:
      trained: {path: float32 master weight} of what draws, but for a second time.
      opt_state: Adam's moments of them.
    """

    trained: dict[str, jax.Array]
    opt_state: optax.OptState

    def params(self, teacher: dict) -> dict:
        """All its parameters as the network takes them; what is not trained is the teacher's."""
        return tree.unflatten(tree.flatten(teacher) | self.trained)


def begun(trained: dict[str, jax.Array], config: LearningConfig, labels: dict[str, str]) -> FakeScore:
    """Before its first step: copies of those of the given that it trains; `labels` are the student's."""
    draws = lambda path: labels[path] == parameters.DENOISING and not is_second_time(path)
    own = {path: jnp.copy(x) for path, x in trained.items() if draws(path)}
    return FakeScore(own, _optimizer(own, config, labels).init(own))


def learned(
    objective: DistributionMatching, fake: FakeScore, labels: dict[str, str], student: dict, teacher: dict,
    pieces: tuple[Episodes, Any], keys: jax.Array, signal, share,
) -> tuple[FakeScore, dict[str, jax.Array]]:  # fmt: skip
    """The fake score after an optimizer step for each of `keys`, and metrics.

    Args:
      objective: its loss.
      fake: before them.
      labels: {path: group} of the student's parameters.
      student: nested parameters of what drew.
      teacher: the same of the teacher.
      pieces: micro-batches of the episodes and their numbers.
      keys: of noise levels and noises, one a step.
      signal: bool [], whether any step is taken.
      share: of its rate, float32 [].
    """

    def step(carry: FakeScore, key):
        def loss(flat, episodes, keys_B):
            own = carry.replace(trained=flat).params(teacher)
            return objective.fake_loss(own, student, episodes, keys_B)

        of = jax.grad(loss, has_aux=True)
        once = lambda piece: of(carry.trained, piece[0], randomness.sample_keys(key, piece[1]))
        grads, metrics = stepping.accumulate(once, pieces)
        transform = _optimizer(carry.trained, objective.config, labels)
        flat, moments, _, finite = stepping.stepped(
            transform, carry.trained, carry.opt_state, grads, metrics, signal, share
        )
        measured = {"fake/loss": metrics["loss"], "fake/grad_norm": optax.tree.norm(grads), "fake/skipped": 1.0 - finite}
        return FakeScore(flat, moments), measured

    fake, metrics = stepping.scan(step, fake, keys)
    return fake, reduce_metrics(metrics)


def _optimizer(own: dict[str, jax.Array], config: LearningConfig, labels: dict[str, str]) -> optax.GradientTransformation:
    """That of the student, for what the fake score trains, at a rate of its own."""
    at_its_rate = dataclasses.replace(config, denoising_lr=config.fake_lr)
    return parameters.optimizer(at_its_rate, {path: labels[path] for path in own})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matching:
    """A student that learns from rewards, held to its teacher (RTDMD): matching_weight times the student's loss of DMD2.

    Attributes:
      objective: both losses.
      seed: of the run, for states, noise levels and noises.
    """

    objective: DistributionMatching
    seed: int

    def keys(self, iteration, number) -> jax.Array:
        """Keys of an optimizer step, as `stepping.keys`: that of the loss, then one for each step of the fake score."""
        return stepping.keys(self.seed, iteration, number, 1 + self.objective.config.distillation.fake_steps)

    def __call__(self, params, fake: FakeScore, teacher: dict, episodes: Episodes, keys_B) -> tuple[jax.Array, dict]:
        """The weighted loss [] of the student's parameters, and metrics."""
        config = self.objective.config
        loss, metrics = self.objective(params, fake.params(teacher), teacher, episodes, keys_B)
        named = {name.replace("flow", "matching", 1): x for name, x in metrics.items() if name != "loss"}
        return config.matching_weight * loss, named
