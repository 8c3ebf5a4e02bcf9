"""The decoder layer of BAGEL: two experts, one attention (Mixture of Transformers, arXiv 2505.14683).

A block of tokens is two streams: `und` holds text tokens and the two markers around an image, `gen` holds latent tokens.
Each stream has its own norms, projections and MLP; queries, keys and values of both meet in one softmax.  Attention does
not know the order of its keys, only their rotary positions, so the streams are simply laid one after the other.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from unigrpo_jax.models.bagel.config import BagelConfig
from unigrpo_jax.models.building import attention, int8
from unigrpo_jax.models.building.attention import Visibility
from unigrpo_jax.models.building.norms import RMSNorm
from unigrpo_jax.models.building.rotary import rotate


class Projection(nn.DenseGeneral):
    """A linear map, plus lora_scale * x A B where the parameters hold an adapter (LoRA, arXiv 2106.09685).

    Its kernel may be one in int8 (`building.int8`).
    A [inputs, r] is `lora_a`, B [r, outputs] is `lora_b`, beside `kernel`; they are attached by `lora.attach`, and without
    them this is the plain map.
    """

    lora_scale: float = 1.0

    def __call__(self, x):
        """x [..., inputs] to [..., outputs]."""
        y = self._in_int8(x) if self.has_variable("params", "kernel") else None
        y = super().__call__(x) if y is None else y
        if not self.has_variable("params", "lora_a"):
            return y
        a, b = (self.get_variable("params", name).astype(self.dtype) for name in ("lora_a", "lora_b"))
        inputs = a.ndim - 1
        low = jax.lax.dot_general(x, a, ((tuple(range(x.ndim - inputs, x.ndim)), tuple(range(inputs))), ((), ())))
        return y + self.lora_scale * jnp.tensordot(low, b, 1)

    def _in_int8(self, x):
        """The map by an int8 kernel; None where it is none."""
        kernel = self.get_variable("params", "kernel")
        if not int8.is_int8(kernel):
            return None
        inputs = 1 if isinstance(self.axis, int) else len(self.axis)
        y = int8.product(x.astype(self.dtype), kernel, tuple(range(inputs)))
        if not self.use_bias:
            return y
        bias = self.get_variable("params", "bias").astype(self.dtype)
        return y + jnp.broadcast_to(bias, y.shape)


class Expert(nn.Module):
    """One expert's half of a decoder layer: everything but the attention itself."""

    config: BagelConfig
    dtype: jnp.dtype
    lora_scale: float

    def setup(self):
        """Names follow the original's, without the `_moe_gen` suffix."""
        c = self.config
        dense = lambda features, **kw: Projection(features, dtype=self.dtype, lora_scale=self.lora_scale, **kw)
        self.input_norm = RMSNorm(c.rms_norm_eps)
        self.q_proj = dense((c.heads, c.head_dim))
        self.k_proj = dense((c.kv_heads, c.head_dim))
        self.v_proj = dense((c.kv_heads, c.head_dim))
        self.q_norm = RMSNorm(c.rms_norm_eps)
        self.k_norm = RMSNorm(c.rms_norm_eps)
        self.o_proj = dense(c.hidden_size, axis=(-2, -1), use_bias=False)
        self.post_norm = RMSNorm(c.rms_norm_eps)
        self.gate_proj = dense(c.intermediate_size, use_bias=False)
        self.up_proj = dense(c.intermediate_size, use_bias=False)
        self.down_proj = dense(c.hidden_size, use_bias=False)

    def project(self, x_BLD, cos_BLK, sin_BLK):
        """Rotated queries [B, L, H, K], rotated keys and plain values [B, L, kv_heads, K]."""
        h = self.input_norm(x_BLD)
        q = rotate(self.q_norm(self.q_proj(h)), cos_BLK, sin_BLK)
        k = rotate(self.k_norm(self.k_proj(h)), cos_BLK, sin_BLK)
        return q, k, self.v_proj(h)

    def finish(self, x_BLD, attended_BLHK):
        """Output projection and MLP, both residual; [B, L, D]."""
        x = x_BLD + self.o_proj(attended_BLHK)
        h = self.post_norm(x)
        return x + self.down_proj(nn.silu(self.gate_proj(h)) * self.up_proj(h))


class DecoderLayer(nn.Module):
    """One layer over the two streams of a block; the `gen` stream may be absent (None), as in text."""

    config: BagelConfig
    dtype: jnp.dtype
    lora_scale: float = 1.0
    hold: Callable[[jax.Array], jax.Array] | None = None
    attend: Callable[..., jax.Array] = attention.xla

    def setup(self):
        """The two experts."""
        self.und = Expert(self.config, self.dtype, self.lora_scale)
        self.gen = Expert(self.config, self.dtype, self.lora_scale)

    def __call__(self, streams, context_kv, rotary, visible: Visibility):
        """Returns the streams after the layer, and the block's keys and values [B, kv_heads, L, K].

        Args:
          streams: (und [B, Lu, D], gen [B, Lg, D] or None); L = Lu + Lg in this order.
          context_kv: keys and values of this layer's context, [B, kv_heads, S, K] each.
          rotary: cosines and sines [B, L, K].
          visible: who sees whom.
        """
        if self.hold is not None:
            streams = tuple(None if x is None else self.hold(x) for x in streams)
        present = [(e, x) for e, x in zip((self.und, self.gen), streams, strict=True) if x is not None]
        starts = [0, present[0][1].shape[1]]
        cut = lambda a, i, x: a[:, starts[i] : starts[i] + x.shape[1]]
        parts = [e.project(x, *(cut(r, i, x) for r in rotary)) for i, (e, x) in enumerate(present)]
        q, k, v = (jnp.concatenate(p, axis=1) for p in zip(*parts, strict=True))
        k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
        attended = self.attend(q, k, v, *context_kv, visible)
        after = [e.finish(x, cut(attended, i, x)) for i, (e, x) in enumerate(present)]
        streams = (after[0], after[1] if len(after) == 2 else None)
        self.sow("intermediates", "hidden", streams)
        return streams, (k, v)
