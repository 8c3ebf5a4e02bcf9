"""Supervised learning from examples that somebody gives: prompts, pictures or clips, and thinkings where a model thinks.

    loss = text_weight * CE + flow_weight * MSE
    CE   = mean over all the tokens of a batch's thinkings of -log pi(y_k | prompt, y_<k)
    MSE  = mean |f(x_t, t | prompt, thinking) - target(data, noise, t)|^2,    x_t = alpha_t data + sigma_t noise

`data` is a sample of the autoencoder's posterior.  A model that goes on from a picture is given a sample of that picture's
posterior, as in a rollout.  All of `data` is learned, the first frame's latent, too; but where that frame is the picture
itself (`Animator.keeps_first`) that is seen as it is, at time 0, and the mean is over the others.  Times of a flow are drawn
from a logit-normal distribution (arXiv 2403.03206) and shifted as the sampler shifts its own; those of a diffusion uniformly
from the steps that it was trained in.  A clip and its sound share each time, have noises of their own, and

    MSE  = sum_m modality_weights[m] * MSE_m,    MSE_m a mean over the numbers of m alone.

Of an example whose text is left out nothing is learned but to draw upon nothing, which
guidance compares with.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unigrpo_jax.episode import Drawing, Episodes, Look, Thinking, TokenBlock
from unigrpo_jax.learning.forward_process import matching
from unigrpo_jax.learning.losses import masked_mean
from unigrpo_jax.learning.modalities import added, by_modality
from unigrpo_jax.learning.noise_levels import shifted
from unigrpo_jax.learning.objective import Objective
from unigrpo_jax.learning.policy import FlowView, TextView
from unigrpo_jax.models.autoencoders.pixels import from_uint8
from unigrpo_jax.models.loaded import Autoencoder
from unigrpo_jax.models.verbs import Painter
from unigrpo_jax.rollout import randomness
from unigrpo_jax.rollout.drawing import DECODED_PIXELS, in_turn
from unigrpo_jax.rollout.not_finite import finite_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lessons:
    """Examples -> episodes, as if they had been sampled; a pure function of (examples, seed, step), to be jitted.

    Attributes:
      model: the network.
      autoencoder: images or clips to latents.
      grid: latent tokens (rows, columns), of a clip (frames, rows, columns).
      shift: of a flow's times, as `Painter.times` takes it.
      draws: noisy versions of each picture or clip; they share one condition.
      parts: devices that the examples are spread over; on each, a few are encoded at a time; 0 encodes all at once.
    """

    model: Painter
    autoencoder: Autoencoder
    grid: tuple[int, ...]
    shift: float
    draws: int
    parts: int = 0

    def __call__(
        self, autoencoder_params, text: Any, thinking: Thinking | None, image, seed, step, first_id=0, first_BHWC=None
    ) -> Episodes:
        """Episodes whose drawings hold noisy versions of the pictures or clips in the place of a window's transitions.

        Args:
          autoencoder_params: the autoencoder's.
          text: B prompts, as the network reads them.
          thinking: the thinkings, as if they had been sampled; None where nothing is thought.
          image: the pictures, uint8 [B, H, W, 3], or the clips, uint8 [B, F, H, W, 3]; {"video": clips, "audio": sound},
            float32 [B, S, channels], where a model draws both.
          seed: integer scalar of the run.
          step: integer scalar of the iteration.
          first_id: number of the first example, for a batch that is part of a larger one.
          first_BHWC: the pictures that are gone on from, uint8; None where the model goes on from none.
        """
        batch = jax.tree.leaves(image)[0].shape[0]
        ids = first_id + jnp.arange(batch)
        keys = lambda stream: randomness.round_keys(seed, step, stream, 0, ids)
        in_range = lambda x: from_uint8(x) if x.dtype == jnp.uint8 else x
        encode = lambda given: self.autoencoder.encode(autoencoder_params, jax.tree.map(in_range, given[0]), given[1])

        def latents(levels, stream):
            pixels = levels["video"] if isinstance(levels, dict) else levels
            together = DECODED_PIXELS // math.prod(pixels.shape[1:-1])
            return in_turn(encode, (levels, keys(stream)), self.parts, together)

        hold = self.model.hold or (lambda x: x)
        data, first = jax.tree.map(hold, self.model.to_tokens(latents(image, randomness.PICTURE))), None
        finite = functools.reduce(jnp.logical_and, map(finite_rows, jax.tree.leaves(data)))
        if first_BHWC is not None:
            found = hold(latents(first_BHWC, randomness.FIRST))
            finite = finite & finite_rows(found)
            first = Look(latent=jnp.where(finite[:, None, None, None, None], found, 0.0), patches=None)
            data = self.model.free(data, self.model.begun(self.model.empty(batch), first.latent))
        data = jax.tree.map(lambda x: jnp.where(finite[:, None, None], x, 0.0), data)
        t = self.times(keys(randomness.TIMES))
        alpha, sigma = (part[:, :, None, None] for part in self.model.path.coefficients(t))
        several = lambda x: jax.ShapeDtypeStruct((batch, self.draws, *x.shape[1:]), x.dtype)
        noise = randomness.normal_like(keys(randomness.INITIAL_NOISE), 0, jax.tree.map(several, data))
        drawing = Drawing(
            steps=jnp.zeros(t.shape, jnp.int32),
            times=t,
            x=jax.tree.map(lambda data, noise: alpha * data[:, None] + sigma * noise, data, noise),
            noise=noise,
            mean=None,
            latent=data,
            media={},
            finite=finite,
        )
        return Episodes(prompt=text, segments=(drawing,) if thinking is None else (thinking, drawing), picture=first)

    def times(self, keys_B) -> jax.Array:
        """Times to learn at, float32 [B, draws], in (0, 1]."""
        shape, steps = (self.draws,), self.model.path.steps
        if steps:
            return jax.vmap(lambda key: jax.random.randint(key, shape, 1, steps + 1))(keys_B) / steps
        u = jax.nn.sigmoid(jax.vmap(lambda key: jax.random.normal(key, shape))(keys_B))
        return shifted(u, self.model, self.shift, self.grid)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teaching(Objective):
    """The supervised loss of a batch of episodes that `Lessons` made, each with its weight (`token_weights`)."""

    def signal(self, episodes: Episodes, advantage_B) -> jax.Array:
        """An example always teaches."""
        return jnp.bool_(True)

    def anchors(self, params, reference, episodes: Episodes, own_start: bool) -> tuple[None, ...]:
        """None for each segment: nothing is compared with another policy."""
        return (None,) * len(episodes.segments)

    def losses(self, params, episodes: Episodes) -> tuple[jax.Array | None, jax.Array, dict[str, jax.Array]]:
        """Of each example the mean over its thinking's tokens, None where nothing is thought, and over its drawing, [B].

        And where a drawing has several modalities, that of each: {NAME: [B]}.
        """
        text = None
        for segment, view in zip(episodes.segments, self.policy.view(params, episodes), strict=True):
            if isinstance(segment, Thinking):
                text = self._cross_entropy(segment, view)
            else:
                error = self._error(segment, view)
        return text, added(error, self.config), error if isinstance(error, dict) else {}

    def _text(self, thinking: Thinking, view: TextView, anchor, weight_B, on_policy, moved, goals):
        loss = jnp.mean(self._cross_entropy(thinking, view) * weight_B)
        return self.config.text_weight * loss, {"text/loss": loss}

    def _flow(self, drawing: Drawing, view: FlowView, anchor, weight_B, on_policy, moved, goals):
        error = self._error(drawing, view)
        metrics = {f"{name}/loss": jnp.mean(own) for name, (own,) in by_modality(error, error).items()}
        return self.config.flow_weight * jnp.mean(added(error, self.config)), metrics

    def _cross_entropy(self, thinking: Thinking, view: TextView) -> jax.Array:
        return -masked_mean(view.log_probs, thinking.mask, axis=1)

    def _error(self, drawing: Drawing, view: FlowView):
        """[B] of each modality; 0 of an example whose latents are not finite."""
        error = matching(self.policy.flow, drawing, view.output, drawing.times[:, :, None, None])
        return jax.tree.map(lambda own: jnp.where(drawing.finite, own, 0.0), error)


def token_weights(thinking: Thinking | None, batch: int) -> np.ndarray:
    """Weights float32 [B] by which a mean over examples of means over their tokens is the mean over all tokens.

    1 where nothing is thought, and in a batch that has no token.
    """
    counts = np.zeros(batch) if thinking is None else np.asarray(thinking.mask).sum(axis=1)
    return (counts / counts.mean() if counts.any() else np.ones(batch)).astype(np.float32)


def left_out(text: Any, thinking: Thinking | None, dropped_B: np.ndarray) -> tuple[Any, Thinking | None]:
    """The texts of B examples, arrays of the host, without those that are dropped: as guidance leaves them out.

    `text` is a text block, which is then empty, or comes with its `empty`, which then stands in its place.
    """
    if thinking is not None:
        thinking = thinking.replace(mask=thinking.mask & ~dropped_B[:, None])
    if isinstance(text, TokenBlock):
        return text.replace(valid=text.valid & ~dropped_B[:, None]), thinking
    pick = lambda other, own: np.where(dropped_B.reshape(-1, *(1,) * (own.ndim - 1)), other, own)
    return jax.tree.map(pick, text.empty, text.replace(empty=None)).replace(empty=text.empty), thinking
