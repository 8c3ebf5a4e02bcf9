"""Layers that LTX-2's transformer and its text connectors share, over flat parameters; norms and softmax are float32.

Letters: B samples, L and S tokens, D and E widths, H heads.
"""

import jax
import jax.numpy as jnp

from unigrpo_jax.models.building.computing import Computing
from unigrpo_jax.models.building.flat import Params, Shapes, linear, linear_shapes, rms_norm
from unigrpo_jax.models.ltx2.rotary import Turn

EPS, MLP = 1e-6, 4


def rms(x):
    """x / sqrt(mean(x^2) + eps) along the last axis, without a weight, in x's dtype."""
    h = x.astype(jnp.float32)
    return (h * jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + EPS)).astype(x.dtype)


def attention(
    p: Params,
    name: str,
    heads: int,
    query_BLD,
    context_BSE,
    way: Computing,
    turns: tuple[Turn, Turn] | None = None,
    seen_BS=None,
    unmixed_B=None,
):
    """What each token of `query_BLD` takes from `context_BSE`, [B, L, D]; queries and keys are normed over all heads.

    Where there are weights for it, each head's result is multiplied by 2 sigmoid of what the queries' token says.

    Args:
      p: the parameters.
      name: of the attention among them.
      heads: H.
      query_BLD: tokens that ask.
      context_BSE: tokens that are asked.
      way: of computing.
      turns: of queries and of keys; None where places do not matter.
      seen_BS: bool, which of the context are seen, at least one; None is all.
      unmixed_B: bool, samples whose tokens keep their own values instead of attending; None is none.
    """
    q, k = (rms_norm(p, f"{name}.norm_{which}", linear(p, f"{name}.to_{which}", x), EPS)
            for which, x in (("q", query_BLD), ("k", context_BSE)))  # fmt: skip
    if turns is not None:
        q, k = turns[0].of(q), turns[1].of(k)
    q, k, v = (x.reshape(*x.shape[:2], heads, -1) for x in (q, k, linear(p, f"{name}.to_v", context_BSE)))
    mixed = way.attention(q, k, v, seen_BS)
    if unmixed_B is not None:
        mixed = jnp.where(unmixed_B[:, None, None, None], v, mixed)
    if f"{name}.to_gate_logits.weight" in p:
        mixed = mixed * (2 * jax.nn.sigmoid(linear(p, f"{name}.to_gate_logits", query_BLD)))[..., None]
    return linear(p, f"{name}.to_out.0", mixed.reshape(*mixed.shape[:2], -1))


def attention_shapes(name: str, heads: int, inner: int, width: int, context: int, gated: bool) -> Shapes:
    """Of `attention`, from tokens of `width` to `context`, over heads that are `inner` numbers together."""
    for which, size in (("q", width), ("k", context), ("v", context)):
        yield from linear_shapes(f"{name}.to_{which}", size, inner)
    for which in "qk":
        yield f"{name}.norm_{which}.weight", (inner,)
    yield from linear_shapes(f"{name}.to_out.0", inner, width)
    if gated:
        yield from linear_shapes(f"{name}.to_gate_logits", width, heads)


def feed_forward(p: Params, name: str, x):
    """An MLP, MLP times as wide inside."""
    return linear(p, f"{name}.net.2", jax.nn.gelu(linear(p, f"{name}.net.0.proj", x), approximate=True))


def feed_forward_shapes(name: str, width: int) -> Shapes:
    """Of `feed_forward`."""
    yield from linear_shapes(f"{name}.net.0.proj", width, MLP * width)
    yield from linear_shapes(f"{name}.net.2", MLP * width, width)
