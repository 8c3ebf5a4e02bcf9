"""Drawing: the flow sampler as one scan over the schedule, stochastic inside the window and Euler outside.

Only what the update needs is kept: the states, noises and means of the window's transitions.
"""

import dataclasses

import jax
import jax.numpy as jnp

from unigrpo_jax.episode import Drawing
from unigrpo_jax.models.bagel import latents
from unigrpo_jax.models.bagel.guidance import Guidance
from unigrpo_jax.models.bagel.network import Bagel
from unigrpo_jax.rollout import randomness
from unigrpo_jax.rollout.schedule import timesteps
from unigrpo_jax.rollout.step_rules import ODE, StepRule


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowSampler:
    """A schedule and a step rule.

    Attributes:
      steps: transitions T.
      shift: timestep shift of the schedule.
      rule: the transition inside the window.
      grid: latent tokens (rows, columns).
      guidance: for evaluation; None in training, where an episode must stay linear.
    """

    steps: int
    shift: float
    rule: StepRule
    grid: tuple[int, int]
    guidance: Guidance | None = None

    def times(self) -> jax.Array:
        """The schedule, float32 [T + 1]."""
        return jnp.asarray(timesteps(self.steps, self.shift))


def draw(model: Bagel, params, context, initial_keys_B, noise_keys_B, window_W, sampler: FlowSampler, decode):
    """Samples an image upon a context.

    Args:
      model: the network.
      params: its parameters.
      context: prompt and thinking of B samples.
      initial_keys_B: keys of x at t = 1.
      noise_keys_B: keys of the transitions' noise.
      window_W: int32 [W] increasing indices of the stochastic transitions; W may be 0, which is the pure ODE.
      sampler: schedule and step rule.
      decode: latents [B, rows, columns, channels] to images [B, height, width, 3] in [-1, 1].
    """
    batch, tokens = context.valid.shape[0], sampler.grid[0] * sampler.grid[1]
    shape = (tokens, model.config.latent_width)
    width = window_W.shape[0]
    times = sampler.times()
    uncond = model.empty(batch) if sampler.guidance is not None and sampler.guidance.active else None

    def velocity(x, t):
        t_B = jnp.full(batch, t)
        v = model.velocity(params, x, t_B, sampler.grid, context)
        if uncond is None:
            return v
        return sampler.guidance.apply(v, model.velocity(params, x, t_B, sampler.grid, uncond), t)

    def transition(carry, step):
        x, kept = carry
        t, t_next = times[step], times[step + 1]
        v = velocity(x, t)
        mean, _ = ODE().transition(x, v, t, t_next, times[1])
        if not width:
            return (mean, kept), None
        inside = jnp.any(step == window_W)
        mean_in, std = sampler.rule.transition(x, v, t, t_next, times[1])
        mean = jnp.where(inside, mean_in, mean)
        noise = randomness.normal(noise_keys_B, step, shape)
        x_next = mean + jnp.where(inside, std, 0.0) * noise
        # Slot of this transition: the first window index that is not behind it.  What lands in a slot too early is
        # overwritten when the slot's own transition comes; behind the last slot nothing is kept.
        slot = jnp.sum(window_W < step)
        kept = tuple(a.at[:, slot].set(b, mode="drop") for a, b in zip(kept, (x, noise, mean), strict=True))
        return (x_next, kept), None

    x = randomness.normal(initial_keys_B, 0, shape)
    kept = (jnp.zeros((batch, width, *shape), jnp.float32),) * 3
    (x, kept), _ = jax.lax.scan(transition, (x, kept), jnp.arange(sampler.steps))
    latent = latents.unpatchify(x, sampler.grid, model.config.latent_patch)
    image = latents.to_uint8(decode(latent))
    steps = jnp.broadcast_to(window_W, (batch, width))
    return Drawing(steps=steps, x=kept[0], noise=kept[1], mean=kept[2], image=image)
