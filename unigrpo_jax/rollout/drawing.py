"""Drawing: the sampler as one scan over the schedule, stochastic where it is told and the path's own rule elsewhere.

Only what the update needs is kept: the states, noises and means of the window's transitions.

A network with two times, u(x, t, s), is asked to arrive where a step without noise does, x' = x - (t - t') u(x, t, t').
Where there is noise, it is asked for the data, x - t u(x, t, 0), and the step rule goes on from there.  CPS at noise level 1
is then the sampler of consistency models (arXiv 2303.01469): x' = (1 - t') data + t' new noise.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unigrpo_jax.episode import Drawing
from unigrpo_jax.models.autoencoders.pixels import to_uint8
from unigrpo_jax.models.building.guidance import Guiding
from unigrpo_jax.models.paths import RECTIFIED, Path, Prediction
from unigrpo_jax.models.verbs import Painter
from unigrpo_jax.rollout import randomness
from unigrpo_jax.rollout.not_finite import finite_rows
from unigrpo_jax.rollout.step_rules import ODE, StepRule

# Pixels that a device decodes at a time.  A decoder's activations are many times an image (in BAGEL's, a gibibyte for each
# of several layers at 1024 px), so an image of 512 px is decoded alone; small ones, one by one, would leave a device idle.
DECODED_PIXELS = 512 * 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowSampler:
    """A path, a schedule on it, and a step rule; latents are pytrees of modalities.

    Attributes:
      schedule: T + 1 times, from the noise to the data.
      rule: the transition inside the window; outside it is the rule without noise.
      grid: of the latents, as `Painter.grid` has it.
      guidance: None for none, as in UniGRPO, where an episode stays linear.
      path: where the latents lie.
      prediction: what the network predicts.
      noisy: [first, end) of transitions that are the rule's, with noise, wherever the window lies.
    """

    schedule: tuple[float, ...]
    rule: StepRule
    grid: tuple[float, ...]
    guidance: Guiding | None = None
    path: Path = RECTIFIED
    prediction: Prediction = "velocity"
    noisy: tuple[int, int] = (0, 0)

    @property
    def steps(self) -> int:
        """Transitions T."""
        return len(self.schedule) - 1

    def transition(self, x, output, t, t_next) -> tuple[Any, jax.Array]:
        """Mean, like x, and standard deviation [] of the next latent inside the window; `StepRule.transition`."""
        second = self.times()[1]
        of = lambda x, output: self.rule.transition(x, output, t, t_next, second, self.path, self.prediction)
        found = jax.tree.map(of, x, output)
        mean = jax.tree.map(lambda x, both: both[0], x, found)
        return mean, jax.tree.leaves(found)[-1]  # the same for each modality

    def noiseless(self, x, output, t, t_next) -> Any:
        """The next latent, like x, outside the window."""
        rule = lambda x, output: ODE().transition(x, output, t, t_next, t, self.path, self.prediction)[0]
        return jax.tree.map(rule, x, output)

    def arrival(self, t_next, inside) -> jax.Array:
        """Where a network with two times is asked to arrive, [], inside the window and outside."""
        return jnp.where(inside, 0.0, t_next) if self.rule.amount else t_next

    def times(self) -> jax.Array:
        """The schedule, float32 [T + 1]."""
        return jnp.asarray(np.asarray(self.schedule, np.float32))


def predictor(model: Painter, params, condition, sampler: FlowSampler, others=None) -> Callable[..., Any]:
    """(x, t, to) -> the network's output for x [B, N, C] at time t [] upon a condition, guided where the sampler is.

    `to` [] is where it is asked to arrive, which one with one time does not heed.  The arguments are those of `denoise`.
    """
    guidance = sampler.guidance if sampler.guidance is not None and sampler.guidance.active else None

    def predict(x, t, to):
        batch = jax.tree.leaves(x)[0].shape[0]
        to_B = jnp.full(batch, to) if model.two_times else None
        upon = lambda c: model.predict(params, x, jnp.full(batch, t), sampler.grid, c, to_B)
        v = upon(condition)
        if guidance is None:
            return v
        return jax.lax.cond(guidance.acts(t), lambda: guidance.guided(upon, x, t, v, condition, others), lambda: v)

    return predict


def denoise(model: Painter, params, condition, x, noise_keys_B, window_W, sampler: FlowSampler, others=None):
    """Samples a latent upon a condition.

    Args:
      model: the network.
      params: its parameters.
      condition: prompt and thinking of B samples.
      x: the noise at t = 1, a pytree of modalities [B, N, C].
      noise_keys_B: keys of the transitions' noise; None with an empty window.
      window_W: int32 [W] increasing indices of the stochastic transitions; W may be 0, which is the pure ODE.
      sampler: schedule and step rule.
      others: what guidance compares the condition with: the one without the last text and the thinking, and the one
        without images and the thinking; None without guidance.

    Returns:
      The latent at t = 0, like x, and the window's states, noises and means, like x with [B, W, N, C].
    """
    batch, width = jax.tree.leaves(x)[0].shape[0], window_W.shape[0]
    times = sampler.times()
    predict = predictor(model, params, condition, sampler, others)

    def transition(carry, step):
        x, kept = carry
        t, t_next = times[step], times[step + 1]
        if not width:
            return (sampler.noiseless(x, predict(x, t, t_next), t, t_next), kept), None
        first, end = sampler.noisy
        inside = jnp.any(step == window_W) | ((first <= step) & (step < end))
        v = predict(x, t, sampler.arrival(t_next, inside))
        mean = sampler.noiseless(x, v, t, t_next)
        mean_in, std = sampler.transition(x, v, t, t_next)
        mean = jax.tree.map(lambda a, b: jnp.where(inside, a, b), mean_in, mean)
        noise = randomness.normal_like(noise_keys_B, step, x)
        x_next = jax.tree.map(lambda m, e: m + jnp.where(inside, std, 0.0) * e, mean, noise)
        # Slot of this transition: the first window index that is not behind it.  What lands in a slot too early is
        # overwritten when the slot's own transition comes; behind the last slot nothing is kept.
        slot = jnp.sum(window_W < step)
        kept = jax.tree.map(lambda a, b: a.at[:, slot].set(b, mode="drop"), kept, (x, noise, mean))
        return (x_next, kept), None

    kept = (jax.tree.map(lambda x: jnp.zeros((batch, width, *x.shape[1:]), jnp.float32), x),) * 3
    (x, kept), _ = jax.lax.scan(transition, (x, kept), jnp.arange(sampler.steps))
    return x, kept


def in_turn(function, x_B, parts: int, together: int = 1):
    """`function` of a batch that lies in `parts` equal parts on as many devices: a few elements of each part at a time.

    The batch is an array or a pytree of arrays.  At most `together`, as many as divide a part.  A batch that does not
    divide, or `parts` = 0, is computed at once.  `function` may return several arrays.
    """
    batch = jax.tree.leaves(x_B)[0].shape[0]
    if not parts or batch % parts:
        return function(x_B)
    each = batch // parts
    few = max(k for k in range(1, min(max(together, 1), each) + 1) if each % k == 0)
    if few == each:
        return function(x_B)  # not as a loop of one turn: on CPU, convolutions in a loop are several times slower
    cut = lambda x: x.reshape(parts, each // few, few, *x.shape[1:]).swapaxes(0, 1)
    turns = jax.tree.map(lambda x: cut(x).reshape(each // few, parts * few, *x.shape[1:]), x_B)
    out = jax.lax.map(function, turns)
    in_order = lambda y: y.reshape(each // few, parts, few, *y.shape[2:]).swapaxes(0, 1).reshape(batch, *y.shape[2:])
    return jax.tree.map(in_order, out)


def draw(
    model: Painter, params, condition, x, noise_keys_B, window_W, sampler: FlowSampler, decode, others=None, parts=0
) -> Drawing:
    """Samples an image or a clip upon a condition: `denoise`, and `decode`.

    `decode` makes latents, [B, rows, columns, channels] those of images, into images [B, height, width, 3] or clips
    [B, F, height, width, 3], in [-1, 1]; or those of modalities into {"video": clips, "audio": sound [B, samples, channels]
    in [-1, 1]}.  `parts` is that of `in_turn`.  A clip of one frame is an image.
    """
    hold = model.hold or (lambda x: x)  # else a partitioner may put several devices' images on one of them
    with jax.named_scope("drawing"):
        start = jax.tree.map(hold, x)
        tokens, kept = denoise(model, params, condition, start, noise_keys_B, window_W, sampler, others)
    with jax.named_scope("images"):
        latent = model.to_latent(model.whole(tokens, condition) if model.begins else tokens, sampler.grid)
        named = lambda latent: out if isinstance(out := decode(latent), dict) else {"video": out}
        shape = jax.eval_shape(named, jax.tree.map(lambda x: x[:1], latent))["video"].shape
        medium, pixels = "video" if len(shape) == 5 and shape[1] > 1 else "image", math.prod(shape[1:-1])

        def shown(latent):
            out = named(jax.tree.map(hold, latent))
            finite = functools.reduce(jnp.logical_and, map(finite_rows, out.values()))
            levels = to_uint8(out.pop("video"))
            return {medium: levels[:, 0] if levels.ndim == 5 and medium == "image" else levels, **out}, finite

        media, finite = in_turn(shown, latent, parts, DECODED_PIXELS // pixels)
    x, noise, mean = kept
    steps = jnp.broadcast_to(window_W, jax.tree.leaves(x)[0].shape[:2])
    for array in jax.tree.leaves((tokens, x, mean)):
        finite = finite & finite_rows(array)
    return Drawing(steps=steps, x=x, noise=noise, mean=mean, latent=tokens, media=media, finite=finite)
