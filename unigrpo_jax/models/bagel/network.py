"""The unified network as pure functions of its parameters: `init`, `prefill`, `decode`, `text_logits`, `velocity`.

Text blocks run through the `und` expert, causally.  An image block is image_start, N latent tokens, image_end: all at one
rotary position, all seeing each other and the whole context; the two markers go through `und`, the latents through `gen`.
A noisy image is read by `velocity` and never enters a context, so nothing later sees it.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from unigrpo_jax.models.bagel import context as contexts
from unigrpo_jax.models.bagel import latents
from unigrpo_jax.models.bagel.config import BagelConfig
from unigrpo_jax.models.bagel.context import Context
from unigrpo_jax.models.bagel.layers import DecoderLayer, RMSNorm, Visibility, rotary_table

Params = dict[str, Any]


def time_sinusoid(t, width: int):
    """[cos(t f_i), sin(t f_i)] with f_i = exp(-ln(10000) i / (width / 2)), float32 [..., width]; t in [0, 1], not scaled."""
    frequency = jnp.exp(-jnp.log(10000.0) * jnp.arange(width // 2, dtype=jnp.float32) / (width // 2))
    angle = jnp.einsum("...,k->...k", t.astype(jnp.float32), frequency, precision="highest")
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class TimeEmbedder(nn.Module):
    """Sinusoid -> linear -> SiLU -> linear."""

    config: BagelConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, t):
        """t [...] to [..., D]."""
        h = nn.Dense(self.config.hidden_size, dtype=self.dtype, name="fc1")(time_sinusoid(t, self.config.frequency_size))
        return nn.Dense(self.config.hidden_size, dtype=self.dtype, name="fc2")(nn.silu(h))


class Network(nn.Module):
    """The parameters and the passes over them; use it through `Bagel`."""

    config: BagelConfig
    dtype: jnp.dtype = jnp.float32
    remat: bool = False
    unroll: int = 1

    def setup(self):
        """Layers are stacked along a leading axis and scanned."""
        c = self.config
        layer = nn.remat(DecoderLayer, prevent_cse=False, static_argnums=()) if self.remat else DecoderLayer
        self.layers = nn.scan(
            layer,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=c.layers,
            unroll=min(self.unroll, c.layers),
        )(c, self.dtype)
        self.embed = nn.Embed(c.vocab_size, c.hidden_size, dtype=self.dtype)
        self.lm_head = nn.Dense(c.vocab_size, use_bias=False, dtype=self.dtype)
        self.norm_und = RMSNorm(c.rms_norm_eps)
        self.norm_gen = RMSNorm(c.rms_norm_eps)
        self.time_embedder = TimeEmbedder(c, self.dtype)
        self.vae2llm = nn.Dense(c.hidden_size, dtype=self.dtype)
        self.llm2vae = nn.Dense(c.latent_width, dtype=self.dtype, kernel_init=nn.initializers.zeros)
        table = lambda key: jnp.asarray(latents.position_table(c.max_latent_size, c.hidden_size))
        self.latent_pos_embed = self.param("latent_pos_embed", table)

    def run(self, streams, positions, valid, causal: bool, context: Context):
        """All layers over one block; returns the streams before the final norm, and the block's keys and values."""
        rotary = rotary_table(positions, self.config.head_dim, self.config.rope_theta)
        visible = Visibility(context=context.valid, block=valid, causal=causal)
        return self.layers(streams, (context.keys, context.values), rotary, visible)

    def text(self, tokens, valid, context: Context):
        """Hidden states [B, L, D] after the final norm, and the text block as a context of its own L slots."""
        positions = context.rope[:, None] + jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1
        positions = jnp.where(valid, positions, 0)
        (und, _), (keys, values) = self.run((self.embed(tokens), None), positions, valid, True, context)
        rope = context.rope + jnp.sum(valid, axis=1, dtype=jnp.int32)
        return self.norm_und(und), Context(keys=keys, values=values, valid=valid, rope=rope)

    def flow(self, x_BNC, t_B, position_ids_N, context: Context):
        """Velocity [B, N, C], float32, of the noisy latent tokens."""
        c, batch = self.config, x_BNC.shape[0]
        markers = jnp.broadcast_to(jnp.array([c.image_start_token, c.image_end_token]), (batch, 2))
        place = self.latent_pos_embed[position_ids_N].astype(self.dtype)
        latent = self.vae2llm(x_BNC.astype(self.dtype)) + self.time_embedder(t_B)[:, None] + place[None]
        length = 2 + x_BNC.shape[1]
        positions = jnp.broadcast_to(context.rope[:, None], (batch, length))
        everything = jnp.ones((batch, length), bool)
        (_, gen), _ = self.run((self.embed(markers), latent), positions, everything, False, context)
        return self.llm2vae(self.norm_gen(gen)).astype(jnp.float32)

    def logits(self, hidden):
        """LM head, float32 [..., V]."""
        return self.lm_head(hidden).astype(jnp.float32)

    def everything(self, tokens, x_BNC, t_B, position_ids_N):
        """Touches every parameter once; only for `init`."""
        context = contexts.empty(self.config, tokens.shape[0], self.dtype)
        hidden, block = self.text(tokens, jnp.ones(tokens.shape, bool), context)
        return self.logits(hidden), self.flow(x_BNC, t_B, position_ids_N, block)


@dataclasses.dataclass(frozen=True)
class Bagel:
    """The verbs of the network; every one is a pure function of `params`, a nested dict of float32 arrays.

    Attributes:
      config: sizes and special tokens.
      dtype: compute dtype, "float32" or "bfloat16"; statistics, softmax, logits and velocities are float32 in both.
      remat: recompute each layer in the backward pass instead of storing its activations.
      unroll: layers per iteration of the scan over layers; more compiles longer and may run faster on CPU.
    """

    config: BagelConfig
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    unroll: int = 1

    @functools.cached_property
    def network(self) -> Network:
        """The Linen module behind the verbs."""
        return Network(self.config, jnp.dtype(self.dtype), self.remat, self.unroll)

    def _apply(self, params: Params, method: str, *args):
        return self.network.apply({"params": params}, *args, method=method)

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters; the flow head starts at zero, as the original does."""
        tokens, x = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 1, self.config.latent_width))
        return self.network.init(key, tokens, x, jnp.zeros(1), jnp.zeros(1, jnp.int32), method="everything")["params"]

    def empty(self, batch: int) -> Context:
        """A context of `batch` samples that have read nothing."""
        return contexts.empty(self.config, batch, jnp.dtype(self.dtype))

    def prefill(self, params: Params, tokens_BL, valid_BL, context: Context) -> tuple[jax.Array, Context]:
        """Reads a text block upon a context.

        Args:
          params: the parameters.
          tokens_BL: int32 [B, L] token ids.
          valid_BL: bool [B, L]; False marks padding, on either side or inside.
          context: what was read before.

        Returns:
          Hidden states [B, L, D] after the final norm, for `text_logits`, and the block alone, a context of L slots to be
          appended by `context.extend` or `context.write`.
        """
        return self._apply(params, "text", tokens_BL, valid_BL, context)

    def decode(self, params: Params, token_B, valid_B, context: Context) -> tuple[jax.Array, Context]:
        """Reads one token upon a context: float32 logits [B, V] of the next token, and the block of one slot."""
        hidden, block = self.prefill(params, token_B[:, None], valid_B[:, None], context)
        return self.text_logits(params, hidden[:, 0]), block

    def text_logits(self, params: Params, hidden) -> jax.Array:
        """LM head: hidden [..., D] to float32 logits [..., V]."""
        return self._apply(params, "logits", hidden)

    def velocity(self, params: Params, x_BNC, t_B, grid: tuple[int, int], context: Context) -> jax.Array:
        """Velocity v = noise - data, float32 [B, N, C], of noisy latent tokens upon a context, which stays as it is.

        Args:
          params: the parameters.
          x_BNC: latent tokens at time t, N = rows * columns of `grid`.
          t_B: times in [0, 1], 1 is noise.
          grid: latent tokens (rows, columns).
          context: prompt and thinking.
        """
        ids = latents.position_ids(grid, self.config.max_latent_size)
        return self._apply(params, "flow", x_BNC, t_B, jnp.asarray(ids), context)
