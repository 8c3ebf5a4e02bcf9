"""What the decoders share whose states frozen text encoders say: grouped heads that see what a mask says, and a gated MLP.

Names are those of transformers' files.  Letters: B texts, L tokens, M tokens that are seen, H heads of queries, J heads of
keys and values, each of which H / J heads of queries share, K head dim.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from unigrpo_jax.models.building.attention import MASKED
from unigrpo_jax.models.building.flat import Params, Shapes, linear, linear_shapes
from unigrpo_jax.models.building.rotary import rotate
from unigrpo_jax.models.folders.settings import Settings

Rotary = tuple[jax.Array, jax.Array]  # cosines and sines [1 or B, L, K]


def steps_back(length: int):
    """int [L, L]: how far before a token another one stands; below 0 where it stands behind."""
    place = jnp.arange(length)
    return place[:, None] - place[None]


def attention(p: Params, h, head_dim: int, rotary: Rotary, seen_BLM, scale: float,
              normed: Callable[[str, jax.Array], jax.Array] = lambda name, x: x):  # fmt: skip
    """Self-attention [B, L, D] of h [B, L, D]; scores and softmax are float32.

    Args:
      p: the parameters of a layer.
      h: what is read.
      head_dim: K.
      rotary: of queries and keys.
      seen_BLM: bool, which tokens a token sees; one that sees none, which is padding, gets something finite.
      scale: of the scores.
      normed: name of a norm and the heads [B, L, H, K] of queries or keys to these normed, before they turn.
    """
    heads = lambda which: linear(p, f"self_attn.{which}_proj", h).reshape(*h.shape[:2], -1, head_dim)
    q, k = (rotate(normed(f"self_attn.{which}_norm", heads(which)), *rotary) for which in "qk")
    return linear(p, "self_attn.o_proj", attended(q, k, heads("v"), seen_BLM, scale))


def attended(q_BLHK, k_BMJK, v_BMJK, seen_BLM, scale: float):
    """[B, L, H * K] in the dtype of the values."""
    batch, length, _, dim = q_BLHK.shape
    q = q_BLHK.reshape(batch, length, k_BMJK.shape[2], -1, dim)
    scores = jnp.einsum("bljgk,bmjk->bjglm", q, k_BMJK, preferred_element_type=jnp.float32) * scale
    weights = jax.nn.softmax(jnp.where(seen_BLM[:, None, None], scores, MASKED))
    return jnp.einsum("bjglm,bmjk->bljgk", weights.astype(v_BMJK.dtype), v_BMJK).reshape(batch, length, -1)


def gated_mlp(p: Params, h, activation: Callable[[jax.Array], jax.Array]):
    """down(activation(gate(h)) * up(h))."""
    return linear(p, "mlp.down_proj", activation(linear(p, "mlp.gate_proj", h)) * linear(p, "mlp.up_proj", h))


def matrix_shapes(width: int, heads: int, kv_heads: int, head_dim: int, mlp: int) -> Shapes:
    """Of the matrices of a layer."""
    yield from linear_shapes("self_attn.q_proj", width, heads * head_dim, bias=False)
    for which in "kv":
        yield from linear_shapes(f"self_attn.{which}_proj", width, kv_heads * head_dim, bias=False)
    yield from linear_shapes("self_attn.o_proj", heads * head_dim, width, bias=False)
    for which in ("gate", "up"):
        yield from linear_shapes(f"mlp.{which}_proj", width, mlp, bias=False)
    yield from linear_shapes("mlp.down_proj", mlp, width, bias=False)


def check_heads(found: Settings, heads: int, kv_heads: int, head_dim: int) -> None:
    """ValueError where heads cannot share keys, or the numbers of one cannot turn."""
    if heads % kv_heads:
        raise found.error("num_key_value_heads", f"it must divide num_attention_heads = {heads}")
    if head_dim % 2:
        raise found.error("head_dim", f"the {head_dim} numbers of a head are turned in pairs, so it must be even")
