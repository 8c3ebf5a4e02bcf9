"""Both policies of an episode, evaluated on what was done: the forward pass that every loss is made of.

The context is computed once, and all window transitions of a drawing share it.
"""

import dataclasses
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp

from unigrpo_jax.episode import Drawing, Episodes, Look, Thinking
from unigrpo_jax.models.building import context as contexts
from unigrpo_jax.models.verbs import Painter
from unigrpo_jax.rollout.dialogue import begin, hear, look
from unigrpo_jax.rollout.drawing import FlowSampler
from unigrpo_jax.rollout.thinking import TokenSampler, thinking_block


@flax.struct.dataclass
class TextView:
    """What a policy says of a thinking.

    Attributes:
      log_probs: float32 [B, M], of the actions; 0 where there is none.
      entropy: float32 [B, M], of the policy at each action, in nats; 0 where there is none.
    """

    log_probs: jax.Array
    entropy: jax.Array


@flax.struct.dataclass
class FlowView:
    """What a policy says of a drawing's window transitions; a latent is a pytree of modalities.

    Attributes:
      output: float32 [B, W, N, C], the network's: a velocity on a rectified flow, a noise on a diffusion.
      mean: float32 [B, W, N, C], of the transition.
      std: float32 [B, W], of the transition; does not depend on the policy.
    """

    output: Any
    mean: Any
    std: jax.Array


View = TextView | FlowView
# Float32 logits of one episode that may lie in memory at once, 256 MiB.  Where `fsdp` cuts the head, each piece gathers it.
LOGITS = 2**26


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """Walks through episodes with given parameters.

    Attributes:
      model: the network.
      system: tokens of the block that is read before the prompt.
      tokens: the sampler, for its temperature.
      flow: schedule and step rule.
      context_gradient: "stop" keeps the flow's gradient out of the context's keys and values.
      window_steps: "scanned" computes a drawing's transitions one after the other, and again in the backward pass, so that
        the activations of only one of them live at a time.
    """

    model: Painter
    system: tuple[int, ...] = ()
    tokens: TokenSampler
    flow: FlowSampler
    context_gradient: Literal["full", "stop"] = "full"
    window_steps: Literal["batched", "scanned"] = "batched"

    def view(self, params, episodes: Episodes) -> tuple[View | None, ...]:
        """One view per segment, under these parameters and their own context; None for what was seen or heard."""
        dialogue = begin(self.model, params, self.system, jax.tree.leaves(episodes.prompt)[0].shape[0])
        if (seen := episodes.picture) is not None:
            dialogue = look(self.model, params, dialogue, seen.latent, seen.patches)
        dialogue = hear(self.model, params, dialogue, episodes.prompt)
        views = []
        for segment in episodes.segments:
            view = None
            if isinstance(segment, Thinking):
                view, context = self._text(params, segment, dialogue.full)
                dialogue = dialogue.replace(full=context)
            elif isinstance(segment, Drawing):
                view = self._flow(params, segment, dialogue.full, dialogue.without_text)
            elif isinstance(segment, Look):
                dialogue = look(self.model, params, dialogue, segment.latent, segment.patches)
            else:
                dialogue = hear(self.model, params, dialogue, segment)
            views.append(view)
        return tuple(views)

    def _text(self, params, thinking: Thinking, context):
        block = thinking_block(self.model, thinking)
        hidden, new = self.model.prefill(params, block.tokens, block.valid, context)
        return self._text_view(params, thinking, hidden), contexts.extend(context, new)

    def _text_view(self, params, thinking: Thinking, hidden) -> TextView:
        length = thinking.tokens.shape[1]
        chosen, entropy = self._tokens(params, hidden[:, :length], thinking.tokens)
        masked = lambda x: jnp.where(thinking.mask, x, 0.0)
        return TextView(log_probs=masked(chosen), entropy=masked(entropy))

    def _tokens(self, params, hidden_BLD, tokens_BL):
        """Log-probabilities of tokens, and the policy's entropies, both [B, L].

        Where an episode's logits are more than `LOGITS`, they are made piece by piece, and again in the backward pass.
        """

        def judge(hidden, tokens):
            log_probs = self.tokens.log_probs(self.model.text_logits(params, hidden))
            chosen = jnp.take_along_axis(log_probs, tokens[:, :, None], axis=2)[:, :, 0]
            return chosen, -jnp.sum(jnp.exp(log_probs) * log_probs, axis=2)

        batch, length = tokens_BL.shape
        count = -(-length * self.model.config.vocab_size // LOGITS)
        if count == 1:
            return judge(hidden_BLD, tokens_BL)
        size = -(-length // count)
        fill = lambda x: jnp.pad(x, ((0, 0), (0, count * size - length)) + ((0, 0),) * (x.ndim - 2))
        cut = lambda x: fill(x).reshape(batch, count, size, *x.shape[2:]).swapaxes(0, 1)
        whole = lambda x: x.swapaxes(0, 1).reshape(batch, -1)[:, :length]
        again = jax.checkpoint(judge, prevent_cse=False)
        return jax.tree.map(whole, jax.lax.map(lambda piece: again(*piece), (cut(hidden_BLD), cut(tokens_BL))))

    def _flow(self, params, drawing: Drawing, context, without_text) -> FlowView:
        if self.context_gradient == "stop":
            context, without_text = jax.lax.stop_gradient((context, without_text))
        t, t_next = self._times(drawing)
        guidance = self.flow.guidance

        def at(x, t_B):
            upon = lambda c: self.model.predict(params, x, t_B, self.flow.grid, c)
            if guidance is None or not guidance.active:
                return upon(context)
            v, without = upon(context), upon(without_text)
            acts = guidance.acts(t_B)[:, None, None]
            return jax.tree.map(lambda v, other: jnp.where(acts, guidance.apply(v, other), v), v, without)

        if self.window_steps == "batched":
            output = jax.vmap(at, in_axes=1, out_axes=1)(drawing.x, t)
        else:
            again = jax.checkpoint(at, prevent_cse=False)
            swapped = lambda tree: jax.tree.map(lambda x: x.swapaxes(0, 1), tree)
            output = swapped(jax.lax.map(lambda step: again(*step), (swapped(drawing.x), t.T)))
        mean, std = jax.vmap(jax.vmap(self.flow.transition))(drawing.x, output, t, t_next)
        return FlowView(output=output, mean=mean, std=std)

    def _times(self, drawing: Drawing) -> tuple[jax.Array, jax.Array]:
        if drawing.times is not None:  # of what has no next one, nothing but the output means anything
            return drawing.times, drawing.times
        times = self.flow.times()
        return times[drawing.steps], times[drawing.steps + 1]
