"""Supervised training of a unified model: next-token loss on the thinking and flow matching on the image.

    loss = mean CE + mean (v_theta(x_t, t | context) - (noise - data))^2,    x_t = (1 - t) data + t noise
    t = shift s / (1 + (shift - 1) s),    s = sigmoid(u),    u ~ N(0, 1)

(BAGEL, arXiv 2505.14683, section on training; every weight 1.)  Each text block is left out of the context with a small
probability, so that the model also draws without thinking, and without any text for classifier-free guidance.  Of several
rounds the loss is the mean: each is read as a rollout reads it, after the image of the one before.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from unigrpo_jax.episode import Look, Thinking, TokenBlock
from unigrpo_jax.models.building import context as contexts
from unigrpo_jax.models.building.context import Context
from unigrpo_jax.models.verbs import Thinker
from unigrpo_jax.rollout.dialogue import read_image
from unigrpo_jax.rollout.thinking import thinking_block


@flax.struct.dataclass
class Round:
    """One round of a batch of supervised examples.

    Attributes:
      seen: the image that is looked at first; None where there is none.
      heard: what the user says then; None where nothing is said.
      thinking: the right thinking as if it had been sampled; its log_probs are not read.
      data: float32 [B, N, C], clean latent tokens of the image to draw; None where only the thinking is learned.
      drawn: bool [B], whether that image is one to learn; None where all are.
    """

    seen: Look | None
    heard: TokenBlock | None
    thinking: Thinking
    data: jax.Array | None
    drawn: jax.Array | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SupervisedObjective:
    """The loss of a batch of examples.

    Attributes:
      model: the network.
      grid: latent tokens (rows, columns).
      timestep_shift: of the training times.
      text_dropout: probability of leaving a text block out of an example.
      noise_draws: noisy versions of each image; they share one context.
    """

    model: Thinker
    grid: tuple[int, int]
    timestep_shift: float
    text_dropout: float
    noise_draws: int

    def __call__(self, params, rounds: tuple[Round, ...], key) -> tuple[jax.Array, dict]:
        """Loss [] and metrics of B examples, each of so many rounds."""
        context, found = self.model.empty(rounds[0].thinking.tokens.shape[0]), []
        for number, one in enumerate(rounds):
            own = jax.random.fold_in(key, number) if number else key
            context, metrics = self._round(params, one, context, own)
            found.append(metrics)
        metrics = jax.tree.map(lambda *x: sum(x) / len(x), *found)
        return sum(metrics.values()), metrics

    def _round(self, params, one: Round, context: Context, key) -> tuple[Context, dict]:
        """The context after a round's thinking, and the losses [] of thinking and drawing."""
        batch = one.thinking.tokens.shape[0]
        key_text, key_time, key_noise = jax.random.split(key, 3)
        keep_heard, keep_thinking = jax.random.bernoulli(key_text, 1 - self.text_dropout, (2, batch, 1))
        if one.seen is not None:
            context = read_image(self.model, params, context, one.seen.latent, one.seen.patches)
        if one.heard is not None:
            _, new = self.model.prefill(params, one.heard.tokens, one.heard.valid & keep_heard, context)
            context = contexts.extend(context, new)
        block = thinking_block(self.model, one.thinking)
        hidden, new = self.model.prefill(params, block.tokens, block.valid & keep_thinking, context)
        length = one.thinking.tokens.shape[1]
        log_probs = jax.nn.log_softmax(self.model.text_logits(params, hidden[:, :length]))
        chosen = jnp.take_along_axis(log_probs, one.thinking.tokens[:, :, None], axis=2)[:, :, 0]
        scored = one.thinking.mask & keep_thinking
        ce = -jnp.sum(jnp.where(scored, chosen, 0.0)) / jnp.sum(scored)

        context = contexts.extend(context, new)
        if one.data is None:
            return context, {"ce": ce}
        s = jax.nn.sigmoid(jax.random.normal(key_time, (self.noise_draws, batch)))
        t = self.timestep_shift * s / (1 + (self.timestep_shift - 1) * s)
        noise = jax.random.normal(key_noise, (self.noise_draws, *one.data.shape))
        x = (1 - t[:, :, None, None]) * one.data[None] + t[:, :, None, None] * noise
        velocity = jax.vmap(lambda x, t: self.model.predict(params, x, t, self.grid, context))(x, t)
        error = (velocity - (noise - one.data[None])) ** 2
        if one.drawn is None:
            mse = jnp.mean(error)
        else:
            mse = jnp.sum(jnp.mean(error, axis=(0, 2, 3)) * one.drawn) / jnp.maximum(jnp.sum(one.drawn), 1)
        return context, {"ce": ce, "mse": mse}
