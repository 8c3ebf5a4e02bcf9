"""Drift: how far a policy's predictions are from the reference's, all along its own drawings without noise.

    d_t = f_theta(x_t, t | c) - f_ref(x_t, t | c_ref),    x_{t'} = the step without noise from x_t by f_theta

    squared(t) = mean d_t^2,    pattern(t) = mean_c p_c^2 / squared(t),    p_c = mean of d_t over samples and tokens

c and c_ref are what either policy makes of the same prompt and thinking.  What is trained is held to the reference at the
window's states alone; this is measured at all of them.  `pattern` is the share of the drift that is the same in every token
of every sample: a grid in the picture, which a sample's own content is not.
"""

import jax
import jax.numpy as jnp

from unigrpo_jax.episode import Episodes
from unigrpo_jax.learning.modalities import by_modality
from unigrpo_jax.learning.policy import Policy
from unigrpo_jax.rollout.drawing import predictor


def drift(policy: Policy, params, reference, episodes: Episodes, x, count: int) -> dict[str, dict[str, jax.Array]]:
    """{modality: {"squared": float32 [T], "pattern": float32 [T]}} of the policy's T transitions.

    Args:
      policy: its sampler says the schedule, and the guidance, with which both predict where it acts.
      params: the policy's parameters.
      reference: those that it is compared with.
      episodes: B episodes, for what the last drawing is drawn upon: prompts, pictures, thinkings.
      x: the noise that the last drawing begins at, a pytree of modalities [B, N, C], whole.
      count: of the episodes, the first so many are measured; more may be there, so that they divide over devices.
    """
    flow, model = policy.flow, policy.model

    def predicts(params):
        upon = policy.drawn_upon(params, episodes)
        return upon.full, predictor(model, params, upon.full, flow, (upon.without_text, upon.without_images))

    (condition, own), (_, other) = predicts(params), predicts(reference)
    x = model.free(x, condition) if model.begins else x
    times = flow.times()

    def transition(x, step):
        t, t_next = times[step], times[step + 1]
        output = own(x, t, t_next)
        found = jax.tree.map(lambda a, b: _measured(a[:count], b[:count]), output, other(x, t, t_next))
        return flow.noiseless(x, output, t, t_next), found

    found = jax.lax.scan(transition, jax.tree.map(model.hold or (lambda x: x), x), jnp.arange(flow.steps))[1]
    is_pair = lambda node: isinstance(node, tuple)
    squared, pattern = (jax.tree.map(lambda pair, n=n: pair[n], found, is_leaf=is_pair) for n in range(2))
    return {name: {"squared": a, "pattern": b} for name, (a, b) in by_modality(x, squared, pattern).items()}


def _measured(output_BNC, reference_BNC) -> tuple[jax.Array, jax.Array]:
    """The mean squared difference [], and the share of it that is one pattern []; 0 where there is no difference."""
    difference = output_BNC.astype(jnp.float32) - reference_BNC.astype(jnp.float32)
    squared = jnp.mean(difference**2)
    pattern = jnp.mean(jnp.mean(difference, axis=(0, 1)) ** 2)
    return squared, jnp.where(squared > 0, pattern / jnp.where(squared > 0, squared, 1.0), 0.0)
