"""Attention of a block of tokens over its context and over itself: one definition, three implementations.

    xla      plain products and a softmax; runs everywhere
    splash   JAX's flash-attention kernel for TPUs
    cudnn    cuDNN's flash attention, for NVIDIA GPUs, bfloat16 only

All take (q [B, L, H, K], the block's k and v [B, kv_heads, L, K], the context's k and v [B, kv_heads, S, K], Visibility)
and return [B, L, H, K] in q's dtype.  Query heads are grouped: head h reads key head h // (H / kv_heads).  The scale
K**-0.5 is applied to q in q's dtype, the softmax is float32.  S may be 0, and so may the number of the block's keys
(`of_all`).  A query that sees nothing, which is padding, gets something finite that nobody reads.

The kernels never store the scores, H L (S + L) numbers an episode.  They know nothing of a mesh: `parallel.kernels`
runs them on each device's part.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

MASKED = -1e30  # finite, so that a row which sees nothing (padding) stays finite
# Sides of splash's tiles of queries and keys.  On a v5p 1024 compiles, in twice the time, and 2048 does not; which is the
# fastest has not been measured.
TILES = (256, 384, 512)
# Shorter blocks take `xla`: they would be padded up to one tile, 256-fold where tokens are decoded one by one, and context
# and block would be copied into one array to spare few scores.  So does on a TPU whatever sees fewer keys, as a picture
# that sees a short text: each kernel of a program is compiled, too.
KERNEL_FROM = TILES[0]
CUDNN_WIDEST_HEAD = 128  # what cuDNN takes on every GPU that it takes; Hopper and later take 256


@dataclasses.dataclass(frozen=True)
class Visibility:
    """Which keys a block's queries see.

    Attributes:
      context: bool [B, S], valid slots of the context; every query sees all of them.
      block: bool [B, L], tokens of the block that are no padding.
      causal: a query sees no later token of its own block (text); otherwise it sees all of them (images).
    """

    context: jax.Array
    block: jax.Array
    causal: bool


jax.tree_util.register_dataclass(Visibility, data_fields=["context", "block"], meta_fields=["causal"])


def xla(q_BLHK, k_BJLK, v_BJLK, context_k_BJSK, context_v_BJSK, visible: Visibility):
    """Context and block are two partial products under one softmax, so that the context is read where it lies:

        out = (exp(s_context - m) V_context + exp(s_block - m) V_block) / sum of all exp,    m = max of all scores

    Heads come before positions in every product, so that the scores, its largest arrays, are never transposed.
    """
    batch, length, heads, dim = q_BLHK.shape
    kv_heads = k_BJLK.shape[1]
    q = (q_BLHK * dim**-0.5).reshape(batch, length, kv_heads, heads // kv_heads, dim).transpose(0, 2, 3, 1, 4)
    seen_block = visible.block[:, None, None, None, :]
    if visible.causal:
        seen_block = seen_block & jnp.tril(jnp.ones((length, length), bool))[None, None, None]
    seen_context = visible.context[:, None, None, None, :]
    pieces = [(k_BJLK, v_BJLK, seen_block), (context_k_BJSK, context_v_BJSK, seen_context)]
    pieces = [piece for piece in pieces if piece[0].shape[2]]

    def score(keys, seen):
        product = jnp.einsum("bjglk,bjsk->bjgls", q, keys, preferred_element_type=jnp.float32)
        return product + jnp.where(seen, 0.0, MASKED)

    scores = [score(keys, seen) for keys, _, seen in pieces]
    largest = functools.reduce(jnp.maximum, [jnp.max(s, axis=-1, keepdims=True) for s in scores])
    weights = [jnp.exp(s - jax.lax.stop_gradient(largest)) for s in scores]
    mixed = sum(
        jnp.einsum("bjgls,bjsk->bjglk", w.astype(q.dtype), values, preferred_element_type=jnp.float32)
        for w, (_, values, _) in zip(weights, pieces, strict=True)
    )
    out = mixed / sum(jnp.sum(w, axis=-1, keepdims=True) for w in weights)
    return out.astype(q.dtype).transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, dim)


def of_all(attend: Callable[..., jax.Array], q_BLHK, k_BSHK, v_BSHK, seen_BS=None):
    """Attention [B, L, H, K] of queries that all see the same keys; `attend` is one of these.

    The keys, of which there may be another number, are a context, upon which the queries are a block without keys of its
    own.  `seen_BS`, bool, says which of them are seen; None is all.
    """
    batch, keys, heads, dim = k_BSHK.shape
    none, everything = jnp.zeros((batch, heads, 0, dim), k_BSHK.dtype), jnp.ones((batch, keys), bool)
    seen = everything if seen_BS is None else seen_BS
    visible = Visibility(context=seen, block=jnp.ones((batch, 0), bool), causal=False)
    return attend(q_BLHK, none, none, k_BSHK.swapaxes(1, 2), v_BSHK.swapaxes(1, 2), visible)


def tile(length: int) -> int:
    """The tile that pads `length` least, and of those the longest."""
    return min(TILES, key=lambda side: (-(-length // side) * side, -side))


def splash(q_BLHK, k_BJLK, v_BJLK, context_k_BJSK, context_v_BJSK, visible: Visibility, *, interpret: bool = False):
    """Splash attention; any head width, any float dtype.

    The order of context and block is the kernel's static mask, causal from slot S on or none; what is no valid key
    carries another segment id than the queries, padding up to whole tiles included.  `interpret` runs it on a CPU.
    Its bfloat16 kernels compile under JAX's default matmul precision only, not under "highest".
    """
    length, heads, dim = q_BLHK.shape[1:]
    slots = context_k_BJSK.shape[2]
    keys = slots + k_BJLK.shape[2]
    if min(length, keys) < KERNEL_FROM:
        return xla(q_BLHK, k_BJLK, v_BJLK, context_k_BJSK, context_v_BJSK, visible)
    from jax.experimental.pallas.ops.tpu import splash_attention as kernels  # late: only TPUs need it

    rows, columns = tile(length), tile(keys)
    q, k, v, seen = _whole(q_BLHK * dim**-0.5, k_BJLK, v_BJLK, context_k_BJSK, context_v_BJSK, visible, rows, columns)
    shape = (q.shape[2], k.shape[2])
    mask = kernels.CausalMask(shape, offset=slots) if visible.causal else kernels.FullMask(shape)
    # Two backward kernels: the fused one writes a part of dq for each tile of keys.
    sizes = kernels.BlockSizes(
        block_q=rows, block_kv=columns, block_q_dkv=rows, block_kv_dkv=columns, block_q_dq=rows, block_kv_dq=columns
    )
    kernel = kernels.make_splash_mha_single_device(
        kernels.MultiHeadMask([mask] * heads), block_sizes=sizes, interpret=interpret
    )
    ids = kernels.SegmentIds(q=jnp.ones(shape[0], jnp.int32), kv=seen.astype(jnp.int32))
    one_episode = jax.vmap(kernel, in_axes=(0, 0, 0, kernels.SegmentIds(q=None, kv=0)))
    return one_episode(q, k, v, ids)[:, :, :length].swapaxes(1, 2)


def cudnn(q_BLHK, k_BJLK, v_BJLK, context_k_BJSK, context_v_BJSK, visible: Visibility):
    """cuDNN's flash attention, bfloat16 or float16; heads wider than CUDNN_WIDEST_HEAD take `xla`.

    Who sees whom is a mask [B, 1, L, S + L], shared by all heads.  The backward kernel wants even lengths, and all
    kernels a head width in steps of 8; both are padded.
    """
    length, dim = q_BLHK.shape[1], q_BLHK.shape[3]
    if length < KERNEL_FROM or dim > CUDNN_WIDEST_HEAD:
        return xla(q_BLHK, k_BJLK, v_BJLK, context_k_BJSK, context_v_BJSK, visible)
    q, k, v, seen = _whole(q_BLHK * dim**-0.5, k_BJLK, v_BJLK, context_k_BJSK, context_v_BJSK, visible, 2, 2)
    wide = lambda x: jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, 0), (0, -dim % 8)))
    mask = cudnn_mask(seen, q.shape[2], context_k_BJSK.shape[2], visible.causal)
    return _cudnn(wide(q), wide(k), wide(v), mask)[:, :length, :, :dim]


def cudnn_mask(seen_BS, rows: int, slots: int, causal: bool):
    """bool [B, 1, rows, keys]: who sees whom, where `seen_BS` [B, keys] are the valid keys and the context's come first."""
    mask = seen_BS[:, None, None, :]
    if causal:
        mask = mask & jnp.tril(jnp.ones((rows, seen_BS.shape[1]), bool), slots)[None, None]
    return jnp.broadcast_to(mask, (seen_BS.shape[0], 1, rows, seen_BS.shape[1]))


def _whole(q, k, v, context_k, context_v, visible: Visibility, rows: int, columns: int):
    """Queries, keys and values [B, heads, length, K], and which keys are valid, bool [B, length].

    Queries are padded to a multiple of `rows`; context and block are one array, padded to a multiple of `columns`.
    """
    fill = lambda x, side: jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % side), (0, 0)))
    join = lambda context, block: fill(jnp.concatenate([context, block], axis=2), columns)
    seen = jnp.concatenate([visible.context, visible.block], axis=1)
    seen = jnp.pad(seen, ((0, 0), (0, -seen.shape[1] % columns)))
    return fill(q.swapaxes(1, 2), rows), join(context_k, k), join(context_v, v), seen


def _fused(q, k, v, mask):
    return jax.nn.dot_product_attention(q, k, v, mask=mask, scale=1.0, implementation="cudnn")


def _fused_gradient(q, k, v, mask, out):
    return jax.vjp(lambda *qkv: _fused(*qkv, mask), q, k, v)[1](out)


def _folded(function: Callable) -> Callable:
    """`function` of arrays [B, ...]; under vmap the new axis becomes a part of B.

    JAX's own batching of cuDNN's attention takes a mask that all heads share for one of a single batch element.
    """
    folding = jax.custom_batching.custom_vmap(function)

    @folding.def_vmap
    def fold(size, batched, *arrays):
        rows = [x if b else jnp.broadcast_to(x, (size, *x.shape)) for x, b in zip(arrays, batched, strict=True)]
        out = folding(*(x.reshape(-1, *x.shape[2:]) for x in rows))
        return jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), out), jax.tree.map(lambda _: True, out)

    return folding


# A folded function has no derivative of its own, so it is given: the backward pass runs the forward kernel once more.
_forward, _backward = _folded(_fused), _folded(_fused_gradient)
_cudnn = jax.custom_vjp(_forward)
_cudnn.defvjp(lambda *given: (_forward(*given), given), lambda given, out: (*_backward(*given, out), None))
