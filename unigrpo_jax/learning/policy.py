"""Both policies of an episode, evaluated on what was done: the forward pass that every loss is made of.

The context is computed once, and all window transitions of a drawing share it.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp

from unigrpo_jax.episode import Drawing, Episodes, Look, Segment, Thinking
from unigrpo_jax.models.building import context as contexts
from unigrpo_jax.models.verbs import Painter
from unigrpo_jax.rollout.dialogue import Dialogue, begin, hear, look
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
      leash: float32 [B, K, N, C], the network's output at the policy's K `leash_times`; None where there are none.
    """

    output: Any
    mean: Any
    std: jax.Array
    leash: Any = None


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
      leash_times: K times beside the window's at which the network is evaluated.
    """

    model: Painter
    system: tuple[int, ...] = ()
    tokens: TokenSampler
    flow: FlowSampler
    context_gradient: Literal["full", "stop"] = "full"
    window_steps: Literal["batched", "scanned"] = "batched"
    leash_times: tuple[float, ...] = ()

    def view(self, params, episodes: Episodes) -> tuple[View | None, ...]:
        """One view per segment, under these parameters and their own context; None for what was seen or heard."""
        views = []
        for segment, dialogue, hidden in self._walk(params, episodes):
            if isinstance(segment, Thinking):
                views.append(self._text_view(params, segment, hidden))
            elif isinstance(segment, Drawing):
                views.append(self._flow(params, segment, dialogue.full, dialogue.without_text))
            else:
                views.append(None)
        return tuple(views)

    def drawn_upon(self, params, episodes: Episodes) -> Dialogue:
        """What the last drawing is drawn upon, under these parameters."""
        return [dialogue for segment, dialogue, _ in self._walk(params, episodes) if isinstance(segment, Drawing)][-1]

    def _walk(self, params, episodes: Episodes) -> Iterator[tuple[Segment, Dialogue, jax.Array | None]]:
        """Each segment, what was read before it, and of a thinking its hidden states."""
        dialogue = begin(self.model, params, self.system, jax.tree.leaves(episodes.prompt)[0].shape[0])
        if (seen := episodes.picture) is not None:
            dialogue = look(self.model, params, dialogue, seen.latent, seen.patches)
        dialogue = hear(self.model, params, dialogue, episodes.prompt)
        for segment in episodes.segments:
            hidden = new = None
            if isinstance(segment, Thinking):
                block = thinking_block(self.model, segment)
                hidden, new = self.model.prefill(params, block.tokens, block.valid, dialogue.full)
            yield segment, dialogue, hidden
            if isinstance(segment, Thinking):
                dialogue = dialogue.replace(full=contexts.extend(dialogue.full, new))
            elif isinstance(segment, Look):
                dialogue = look(self.model, params, dialogue, segment.latent, segment.patches)
            elif not isinstance(segment, Drawing):
                dialogue = hear(self.model, params, dialogue, segment)

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
        width, (x, at_t) = t.shape[1], self._evaluated(drawing, t)
        # As the sampler asks where a transition has noise: for the data.
        to = jnp.zeros_like if self.model.two_times else lambda t_B: None
        at = lambda x, t_B: self.output(params, x, t_B, context, without_text, to(t_B))
        if self.window_steps == "batched":
            output = jax.vmap(at, in_axes=1, out_axes=1)(x, at_t)
        else:
            again = jax.checkpoint(at, prevent_cse=False)
            swapped = lambda tree: jax.tree.map(lambda x: x.swapaxes(0, 1), tree)
            output = swapped(jax.lax.map(lambda step: again(*step), (swapped(x), at_t.T)))
        leash = None
        if self.leash_times:
            cut = lambda first, end: jax.tree.map(lambda x: x[:, first:end], output)
            output, leash = cut(0, width), cut(width, None)
        mean, std = jax.vmap(jax.vmap(self.flow.transition))(drawing.x, output, t, t_next)
        return FlowView(output=output, mean=mean, std=std, leash=leash)

    def output(self, params, x, t_B, condition, without_text, to_B=None) -> Any:
        """The network's output, like x [B, N, C], at times of its own for each sample; guided where the sampler is.

        `to_B` is where a network with two times is asked to arrive, as in `Painter.predict`.
        """
        guidance = self.flow.guidance
        upon = lambda c: self.model.predict(params, x, t_B, self.flow.grid, c, to_B)
        if guidance is None or not guidance.active:
            return upon(condition)
        v, without = upon(condition), upon(without_text)
        acts = guidance.acts(t_B)[:, None, None]
        return jax.tree.map(lambda v, other: jnp.where(acts, guidance.apply(v, other), v), v, without)

    def _evaluated(self, drawing: Drawing, t_BW) -> tuple[Any, jax.Array]:
        """The states [B, W + K, N, C] at which the network is evaluated, and their times [B, W + K].

        Behind the window's stand alpha_t data + sigma_t noise at `leash_times`, of the clean latent that came out and the
        noises of the window in turn: nothing is stored for them.
        """
        if not self.leash_times:
            return drawing.x, t_BW
        times = jnp.asarray(self.leash_times, jnp.float32)
        alpha, sigma = (part[None, :, None, None] for part in self.flow.path.coefficients(times))
        turns = jnp.arange(len(self.leash_times)) % t_BW.shape[1]
        made = lambda data, noise: alpha * data[:, None] + sigma * noise[:, turns]
        join = lambda x, data, noise: jnp.concatenate([x, made(data, noise)], axis=1)
        x = jax.tree.map(join, drawing.x, drawing.latent, drawing.noise)
        return x, jnp.concatenate([t_BW, jnp.broadcast_to(times, (t_BW.shape[0], len(self.leash_times)))], axis=1)

    def _times(self, drawing: Drawing) -> tuple[jax.Array, jax.Array]:
        if drawing.times is not None:  # of what has no next one, nothing but the output means anything
            return drawing.times, drawing.times
        times = self.flow.times()
        return times[drawing.steps], times[drawing.steps + 1]
