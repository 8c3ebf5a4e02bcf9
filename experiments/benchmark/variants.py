"""The same results the long way round, to measure what the short way saves."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from unigrpo_jax.episode import Drawing, Episodes, Thinking
from unigrpo_jax.learning.policy import Policy, TextView, View
from unigrpo_jax.rollout.program import RolloutProgram


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneForwardPerStep(Policy):
    """The policy without a shared context: every window step reads prompt and thinking again, as one whole forward pass.

    An episode of W window steps becomes W rows of one; what is said of the thinking is computed for the first of them.

    Attributes:
      steps: window steps W of an episode.
    """

    steps: int

    def view(self, params, episodes: Episodes) -> tuple[View, ...]:
        """As `Policy.view`."""
        rows = lambda tree: jax.tree.map(lambda x: jnp.repeat(x, self.steps, axis=0), tree)
        single = lambda x: x.reshape(-1, 1, *x.shape[2:])
        alone = [
            Drawing(*jax.tree.map(single, (s.steps, s.x, s.noise, s.mean)), *rows((s.latent, s.media, s.finite)))
            if isinstance(s, Drawing)
            else rows(s)
            for s in episodes.segments
        ]
        given = {"prompt": rows(episodes.prompt), "picture": rows(episodes.picture)}
        views = super().view(params, Episodes(**given, segments=tuple(alone)))
        join = lambda x: x.reshape(-1, self.steps, *x.shape[2:])
        return tuple(v if isinstance(v, TextView) else jax.tree.map(join, v) for v in views)

    def _text_view(self, params, thinking: Thinking, hidden) -> TextView:
        return super()._text_view(params, *jax.tree.map(lambda x: x[:: self.steps], (thinking, hidden)))


def one_forward_per_step(policy: Policy, steps: int) -> OneForwardPerStep:
    """The policy with one whole forward pass for each of its window steps."""
    fields = {field.name: getattr(policy, field.name) for field in dataclasses.fields(policy)}
    return OneForwardPerStep(**fields, steps=steps)


def one_prefill_per_episode(program: RolloutProgram, pieces: int = 1) -> Callable:
    """The rollout with every prompt read once for each episode of its group, and not once for all of them.

    In so many `pieces` of the episodes, one after the other; starts of a group's episodes are no longer shared.
    """
    alone = dataclasses.replace(program, group_size=1, micro_batches=pieces)

    def rollout(params, autoencoder_params, prompt, seed, step):
        prompt = jax.tree.map(lambda x: jnp.repeat(x, program.group_size, axis=0), prompt)
        return alone(params, autoencoder_params, prompt, seed, step)

    return rollout
