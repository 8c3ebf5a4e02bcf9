"""Drawing: the flow sampler as one scan over the schedule, stochastic inside the window and Euler outside.

Only what the update needs is kept: the states, noises and means of the window's transitions.
"""

import dataclasses

import jax
import jax.numpy as jnp

from unigrpo_jax.episode import Drawing
from unigrpo_jax.models.autoencoders.pixels import to_uint8
from unigrpo_jax.models.bagel.network import Bagel
from unigrpo_jax.models.building.guidance import Guidance
from unigrpo_jax.models.building.patches import unpatchify
from unigrpo_jax.models.paths import RECTIFIED, Path, Prediction
from unigrpo_jax.models.schedule import timesteps
from unigrpo_jax.rollout import randomness
from unigrpo_jax.rollout.not_finite import finite_rows
from unigrpo_jax.rollout.step_rules import ODE, StepRule

# Pixels that a device decodes at a time.  A decoder's activations are many times an image (in BAGEL's, a gibibyte for each
# of several layers at 1024 px), so an image of 512 px is decoded alone; small ones, one by one, would leave a device idle.
DECODED_PIXELS = 512 * 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowSampler:
    """A path, a schedule on it, and a step rule.

    Attributes:
      steps: transitions T.
      shift: timestep shift of the schedule.
      rule: the transition inside the window; outside it is the rule without noise.
      grid: latent tokens (rows, columns).
      guidance: None for none, as in UniGRPO, where an episode stays linear.
      path: where the latents lie.
      prediction: what the network predicts.
    """

    steps: int
    shift: float
    rule: StepRule
    grid: tuple[int, int]
    guidance: Guidance | None = None
    path: Path = RECTIFIED
    prediction: Prediction = "velocity"

    def transition(self, x_BNC, output_BNC, t, t_next) -> tuple[jax.Array, jax.Array]:
        """Mean [B, N, C] and standard deviation [] of the next latent inside the window; `StepRule.transition`."""
        return self.rule.transition(x_BNC, output_BNC, t, t_next, self.times()[1], self.path, self.prediction)

    def noiseless(self, x_BNC, output_BNC, t, t_next) -> jax.Array:
        """The next latent [B, N, C] outside the window."""
        return ODE().transition(x_BNC, output_BNC, t, t_next, t, self.path, self.prediction)[0]

    def times(self) -> jax.Array:
        """The schedule, float32 [T + 1]."""
        return jnp.asarray(timesteps(self.steps, self.shift))


def denoise(model: Bagel, params, context, x_BNC, noise_keys_B, window_W, sampler: FlowSampler, others=None):
    """Samples latent tokens upon a context.

    Args:
      model: the network.
      params: its parameters.
      context: prompt and thinking of B samples.
      x_BNC: the noise at t = 1.
      noise_keys_B: keys of the transitions' noise; None with an empty window.
      window_W: int32 [W] increasing indices of the stochastic transitions; W may be 0, which is the pure ODE.
      sampler: schedule and step rule.
      others: what guidance compares the context with: the context without the last text and the thinking, and the one
        without images and the thinking; None without guidance.

    Returns:
      The latent tokens [B, N, C] at t = 0, and the window's states, noises and means, [B, W, N, C] each.
    """
    batch, *shape = x_BNC.shape
    width = window_W.shape[0]
    times = sampler.times()
    guidance = sampler.guidance if sampler.guidance is not None and sampler.guidance.active else None

    def velocity(x, t):
        upon = lambda c: model.velocity(params, x, jnp.full(batch, t), sampler.grid, c)
        v = upon(context)
        if guidance is None:
            return v
        guided = lambda: guidance.apply(v, *(upon(c) for c in others[: 1 + guidance.with_image]))
        return jax.lax.cond(guidance.acts(t), guided, lambda: v)

    def transition(carry, step):
        x, kept = carry
        t, t_next = times[step], times[step + 1]
        v = velocity(x, t)
        mean = sampler.noiseless(x, v, t, t_next)
        if not width:
            return (mean, kept), None
        inside = jnp.any(step == window_W)
        mean_in, std = sampler.transition(x, v, t, t_next)
        mean = jnp.where(inside, mean_in, mean)
        noise = randomness.normal(noise_keys_B, step, tuple(shape))
        x_next = mean + jnp.where(inside, std, 0.0) * noise
        # Slot of this transition: the first window index that is not behind it.  What lands in a slot too early is
        # overwritten when the slot's own transition comes; behind the last slot nothing is kept.
        slot = jnp.sum(window_W < step)
        kept = tuple(a.at[:, slot].set(b, mode="drop") for a, b in zip(kept, (x, noise, mean), strict=True))
        return (x_next, kept), None

    kept = (jnp.zeros((batch, width, *shape), jnp.float32),) * 3
    (x, kept), _ = jax.lax.scan(transition, (x_BNC, kept), jnp.arange(sampler.steps))
    return x, kept


def in_turn(function, x_B, parts: int, together: int = 1):
    """`function` of a batch that lies in `parts` equal parts on as many devices: a few elements of each part at a time.

    At most `together`, as many as divide a part.  A batch that does not divide, or `parts` = 0, is computed at once.
    `function` may return several arrays.
    """
    batch = x_B.shape[0]
    if not parts or batch % parts:
        return function(x_B)
    each = batch // parts
    few = max(k for k in range(1, min(max(together, 1), each) + 1) if each % k == 0)
    if few == each:
        return function(x_B)  # not as a loop of one turn: on CPU, convolutions in a loop are several times slower
    turns = x_B.reshape(parts, each // few, few, *x_B.shape[1:]).swapaxes(0, 1)
    out = jax.lax.map(function, turns.reshape(each // few, parts * few, *x_B.shape[1:]))
    in_order = lambda y: y.reshape(each // few, parts, few, *y.shape[2:]).swapaxes(0, 1).reshape(batch, *y.shape[2:])
    return jax.tree.map(in_order, out)


def draw(
    model: Bagel, params, context, x_BNC, noise_keys_B, window_W, sampler: FlowSampler, decode, others=None, parts=0
) -> Drawing:
    """Samples an image upon a context: `denoise`, and `decode`.

    `decode` makes latents [B, rows, columns, channels] into images [B, height, width, 3] in [-1, 1]; `parts` is that of
    `in_turn`.
    """
    hold = model.hold or (lambda x: x)  # else a partitioner may put several devices' images on one of them
    with jax.named_scope("drawing"):
        tokens, (x, noise, mean) = denoise(model, params, context, hold(x_BNC), noise_keys_B, window_W, sampler, others)
    with jax.named_scope("images"):
        latent = unpatchify(tokens, sampler.grid, model.config.latent_patch)
        _, height, width, _ = jax.eval_shape(decode, latent[:1]).shape

        def picture(latent):
            image = decode(hold(latent))
            return to_uint8(image), finite_rows(image)

        image, finite = in_turn(picture, latent, parts, DECODED_PIXELS // (height * width))
    steps = jnp.broadcast_to(window_W, x.shape[:2])
    finite = finite & finite_rows(tokens) & finite_rows(x) & finite_rows(mean)
    return Drawing(steps=steps, x=x, noise=noise, mean=mean, latent=tokens, image=image, finite=finite)
