"""Thinking: tokens sampled one by one on a growing key-value cache.

The policy is softmax(logits / temperature) over the whole vocabulary.  Its log-probability is what the ratio uses, here
and in the update.  top-k and top-p truncate only what is drawn, as a behaviour policy does; they change no
log-probability.
"""

import dataclasses

import jax
import jax.numpy as jnp

from unigrpo_jax.episode import Thinking, TokenBlock
from unigrpo_jax.models.building import context as contexts
from unigrpo_jax.models.verbs import Thinker


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenSampler:
    """How the next token is drawn.

    Attributes:
      temperature: divides the logits; 0 takes the likeliest token.
      top_k: keep the k likeliest tokens; 0 keeps all.
      top_p: keep the likeliest tokens whose probabilities, summed before each, are below top_p; 1 keeps all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def log_probs(self, logits_BV) -> jax.Array:
        """Log-probabilities [..., V] of the policy, float32; a greedy sampler has those of temperature 1."""
        return jax.nn.log_softmax(logits_BV.astype(jnp.float32) / (self.temperature or 1.0), axis=-1)

    def truncate(self, log_probs_BV) -> jax.Array:
        """Log-probabilities with -inf on the tokens that may not be drawn."""
        kept = log_probs_BV
        if 0 < self.top_k < kept.shape[-1]:
            kth = jax.lax.top_k(kept, self.top_k)[0][..., -1:]
            kept = jnp.where(kept >= kth, kept, -jnp.inf)
        if self.top_p < 1:
            ordered = jnp.flip(jnp.sort(kept, axis=-1), axis=-1)
            probs = jax.nn.softmax(ordered, axis=-1)
            inside = jnp.cumsum(probs, axis=-1) - probs < self.top_p
            least = jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1, keepdims=True)
            kept = jnp.where(kept >= least, kept, -jnp.inf)
        return kept

    def draw(self, keys_B, position, log_probs_BV) -> jax.Array:
        """Token ids int32 [B]."""
        if self.temperature == 0:
            return jnp.argmax(log_probs_BV, axis=-1).astype(jnp.int32)
        draw = lambda key, row: jax.random.categorical(jax.random.fold_in(key, position), row)
        return jax.vmap(draw)(keys_B, self.truncate(log_probs_BV)).astype(jnp.int32)


def thinking_block(model: Thinker, thinking: Thinking) -> TokenBlock:
    """The text block that a thinking leaves in the context: BOS, the actions, and EOS if the chain was truncated.

    M + 2 positions; position i < M is the one whose logits the i-th action was drawn from.  Where there is no action, the
    block is empty.
    """
    batch, length = thinking.tokens.shape
    whole = jnp.all(thinking.mask, axis=1) & (thinking.tokens[:, length - 1] != model.config.eos_token)
    first = jnp.full((batch, 1), model.config.bos_token, jnp.int32)
    last = jnp.full((batch, 1), model.config.eos_token, jnp.int32)
    return TokenBlock(
        tokens=jnp.concatenate([first, thinking.tokens, last], axis=1),
        valid=jnp.concatenate([jnp.any(thinking.mask, axis=1)[:, None], thinking.mask, whole[:, None]], axis=1),
    )


def think(model: Thinker, params, context, keys_B, length: int, sampler: TokenSampler):
    """Samples thinking upon a context; stops early when every chain has ended.

    Args:
      model: the network.
      params: its parameters.
      context: what was read so far, for B samples.
      keys_B: one key per episode.
      length: largest number M of actions.
      sampler: how tokens are drawn.

    Returns:
      The thinking, and the context with its block of M + 2 slots.
    """
    model, params = model.cut(params)
    batch, first = context.valid.shape[0], context.slots
    stop = model.config.eos_token

    def store(context, block, k):
        # The block of token k - 1; for k = 0 one that holds nothing, where the first will lie.
        return contexts.write(context, block, first + jnp.maximum(k - 1, 0))

    def unfinished(state):
        k, _, reading, *_ = state
        return (k < length + 2) & jnp.any(reading)

    def read_and_act(state):
        # Stores the block before, reads the token in hand, then draws the next.  A chain ends once its stop token has been
        # read.  A block waits for the next turn, so that the context is written before anything reads it: written after, it
        # would be copied whole for every token, by a compiler that cannot tell that all reading is done by then.
        k, token, reading, block, context, thinking = state
        context = store(context, block, k)
        logits, block = model.decode(params, token, reading, context)
        going = reading & ((token != stop) | (k == 0))
        acting = going & (k < length)
        log_probs = sampler.log_probs(logits)
        action = sampler.draw(keys_B, k, log_probs)
        value = jnp.take_along_axis(log_probs, action[:, None], axis=1)[:, 0]
        slot = jnp.minimum(k, length - 1)
        keep = lambda new, array: array.at[:, slot].set(jnp.where(acting, new, array[:, slot]))
        thinking = Thinking(
            tokens=keep(action, thinking.tokens),
            mask=keep(True, thinking.mask),
            log_probs=keep(value, thinking.log_probs),
        )
        return k + 1, jnp.where(acting, action, stop), going, block, context, thinking

    nothing = Thinking(
        tokens=jnp.full((batch, length), model.config.pad_token, jnp.int32),
        mask=jnp.zeros((batch, length), bool),
        log_probs=jnp.zeros((batch, length), jnp.float32),
    )
    begin = jnp.full(batch, model.config.bos_token, jnp.int32)
    unread = contexts.reserve(model.empty(batch), 1).replace(rope=context.rope)
    state = (jnp.int32(0), begin, jnp.ones(batch, bool), unread, contexts.reserve(context, length + 2), nothing)
    k, _, _, block, context, thinking = jax.lax.while_loop(unfinished, read_and_act, state)
    return thinking, store(context, block, k)
