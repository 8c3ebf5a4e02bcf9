"""Drift: how far a policy's predictions are from the reference's, all along its own drawings without noise.

    d_t = f_theta(x_t, t | c) - f_ref(x_t, t | c_ref),    x_{t'} = the step without noise from x_t by f_theta

    squared(t) = mean d_t^2,    pattern(t) = mean_c p_c^2 / squared(t),    p_c = mean of d_t over samples and tokens

c and c_ref are what either policy makes of the same prompt and thinking.  What is trained is held to the reference at the
window's states alone; this is measured at all of them.  `pattern` is the share of the drift that is the same in every token
of every sample: a grid in the picture, which a sample's own content is not.

The error of weights in int8 is measured in the same way, theta being those and ref the same weights in full precision:

    relative(t) = sqrt(mean d_t^2 / mean f_ref(x_t, t | c_ref)^2)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from unigrpo_jax.episode import Episodes
from unigrpo_jax.learning.modalities import by_modality
from unigrpo_jax.learning.policy import Policy
from unigrpo_jax.rollout.drawing import predictor


def drift(policy: Policy, params, reference, episodes: Episodes, x, count: int) -> dict[str, dict[str, jax.Array]]:
    """{modality: {"squared": float32 [T], "pattern": float32 [T]}} of the policy's T transitions; `along` says of what."""
    return along(policy, params, reference, episodes, x, count, _measured)


def relative_error(policy: Policy, params, reference, episodes: Episodes, x, count: int) -> dict[str, dict[str, jax.Array]]:
    """{modality: {"relative": float32 [T]}}, as `drift`."""
    return along(policy, params, reference, episodes, x, count, _relative)


def along(
    policy: Policy, params, reference, episodes: Episodes, x, count: int,
    measure: Callable[[jax.Array, jax.Array], dict[str, jax.Array]],
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """{modality: {name: [T]}}: what is measured of both policies' predictions at each of T transitions.

    Args:
      policy: its sampler says the schedule, and the guidance, with which both predict where it acts.
      params: the policy's parameters.
      reference: those that it is compared with.
      episodes: B episodes, for what the last drawing is drawn upon: prompts, pictures, thinkings.
      x: the noise that the last drawing begins at, a pytree of modalities [B, N, C], whole.
      count: of the episodes, the first so many are measured; more may be there, so that they divide over devices.
      measure: (the policy's prediction [count, N, C], the reference's) -> {name: []}.
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
        found = jax.tree.map(lambda a, b: measure(a[:count], b[:count]), output, other(x, t, t_next))
        return flow.noiseless(x, output, t, t_next), found

    found = jax.lax.scan(transition, jax.tree.map(model.hold or (lambda x: x), x), jnp.arange(flow.steps))[1]
    return {name: own for name, (own,) in by_modality(x, found).items()}


def _measured(output_BNC, reference_BNC) -> dict[str, jax.Array]:
    """The mean squared difference, and the share of it that is one pattern; 0 where there is no difference."""
    difference = output_BNC.astype(jnp.float32) - reference_BNC.astype(jnp.float32)
    squared = jnp.mean(difference**2)
    pattern = jnp.mean(jnp.mean(difference, axis=(0, 1)) ** 2)
    share = jnp.where(squared > 0, pattern / jnp.where(squared > 0, squared, 1.0), 0.0)
    return {"squared": squared, "pattern": share}


def _relative(output_BNC, reference_BNC) -> dict[str, jax.Array]:
    """The difference over the reference, root mean squares of both."""
    return {"relative": jnp.sqrt(jnp.mean((output_BNC - reference_BNC) ** 2) / jnp.mean(reference_BNC**2))}
