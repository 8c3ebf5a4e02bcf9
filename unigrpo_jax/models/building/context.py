"""What a decoder has read so far: keys and values of every layer, as an explicit pytree.

The order of what was read never changes.  A slot that holds padding, or that is reserved and not yet written, is not
`valid` and nobody attends to it, so one rectangular cache serves prompts and thoughts of different length.
"""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Context:
    """Keys and values of B samples in S slots.

    Attributes:
      keys: [layers, B, kv_heads, S, K], after the key norm and the rotation; a head's slots lie together, as products read
        them, so that none is transposed for every token that is decoded.
      values: [layers, B, kv_heads, S, K].
      valid: bool [B, S].
      rope: int32 [B], the rotary position of the next token or image block.
    """

    keys: jax.Array
    values: jax.Array
    valid: jax.Array
    rope: jax.Array

    def repeat(self, times: int) -> "Context":
        """Every sample `times` times in a row: the group of a prompt shares one prefill."""
        return Context(
            keys=jnp.repeat(self.keys, times, axis=1),
            values=jnp.repeat(self.values, times, axis=1),
            valid=jnp.repeat(self.valid, times, axis=0),
            rope=jnp.repeat(self.rope, times, axis=0),
        )

    @property
    def slots(self) -> int:
        """Number of slots S, valid or not."""
        return self.valid.shape[1]


def empty(layers: int, kv_heads: int, head_dim: int, batch: int, dtype=jnp.float32) -> Context:
    """A context that has read nothing: zero slots, rotary position 0."""
    kv = jnp.zeros((layers, batch, kv_heads, 0, head_dim), dtype)
    return Context(keys=kv, values=kv, valid=jnp.zeros((batch, 0), bool), rope=jnp.zeros(batch, jnp.int32))


def extend(context: Context, block: Context) -> Context:
    """The context followed by a block that the network computed upon it."""
    return Context(
        keys=jnp.concatenate([context.keys, block.keys], axis=3),
        values=jnp.concatenate([context.values, block.values], axis=3),
        valid=jnp.concatenate([context.valid, block.valid], axis=1),
        rope=block.rope,
    )


def reserve(context: Context, slots: int) -> Context:
    """Appends empty slots, to be filled by `write`."""
    pad = ((0, 0), (0, 0), (0, 0), (0, slots), (0, 0))
    return context.replace(
        keys=jnp.pad(context.keys, pad),
        values=jnp.pad(context.values, pad),
        valid=jnp.pad(context.valid, ((0, 0), (0, slots))),
    )


def write(context: Context, block: Context, slot: jax.Array) -> Context:
    """Stores a block into the reserved slots that begin at `slot` (int32 scalar, may be traced)."""
    put = jax.lax.dynamic_update_slice_in_dim
    return Context(
        keys=put(context.keys, block.keys.astype(context.keys.dtype), slot, axis=3),
        values=put(context.values, block.values.astype(context.values.dtype), slot, axis=3),
        valid=put(context.valid, block.valid, slot, axis=1),
        rope=block.rope,
    )


def compact(context: Context, slots: int) -> Context:
    """The valid slots of each sample first, in their order, and zeros behind them: `slots` slots, further ones are cut off.

    What is read upon it sees the same; only the sums inside an attention run over another number of zeros.
    """
    context = reserve(context, max(0, slots - context.slots))
    order = jnp.argsort(~context.valid, axis=1, stable=True)[:, :slots]
    valid = jnp.take_along_axis(context.valid, order, axis=1)

    def pick(x):
        kept = jnp.take_along_axis(x, order[None, :, None, :, None], axis=3)
        return jnp.where(valid[None, :, None, :, None], kept, jnp.zeros((), x.dtype))

    return Context(keys=pick(context.keys), values=pick(context.values), valid=valid, rope=context.rope)


def cut(context: Context, length: int, slots: int, rope: jax.Array) -> Context:
    """What a compact context was when it had read its first `length` slots: `slots` slots, at position `rope` [B]."""
    valid = context.valid[:, :slots] & (jnp.arange(slots) < length)[None]
    keep = lambda x: jnp.where(valid[None, :, None, :, None], x[:, :, :, :slots], jnp.zeros((), x.dtype))
    return Context(keys=keep(context.keys), values=keep(context.values), valid=valid, rope=rope)
