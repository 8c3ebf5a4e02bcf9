"""The unified network as pure functions of its parameters: `init`, `prefill`, `decode`, `text_logits`, `velocity`, and
`see_latents` and `see_patches`, which read an image into the context.

Text blocks run through the `und` expert, causally.  An image block is image_start, N tokens, image_end: all at one rotary
position, all seeing each other and the whole context; the two markers and a vision encoder's patches go through `und`,
latents through `gen`.  A noisy image is read by `velocity` and never enters a context, so nothing later sees it; an image
that is looked at enters as its clean latents (t = 0), then as patches, and each of the two takes one rotary position.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from unigrpo_jax.config import LoraConfig, RunConfig
from unigrpo_jax.episode import Picture, TokenBlock
from unigrpo_jax.models.bagel import flops, latents
from unigrpo_jax.models.bagel.axes import AXES
from unigrpo_jax.models.bagel.config import BagelConfig
from unigrpo_jax.models.bagel.layers import DecoderLayer
from unigrpo_jax.models.bagel.pictures import picture, see_again
from unigrpo_jax.models.bagel.vision import Connector, VisionEncoder
from unigrpo_jax.models.bagel.work import BagelWork
from unigrpo_jax.models.building import attention, int8, lora
from unigrpo_jax.models.building import context as contexts
from unigrpo_jax.models.building.attention import Visibility
from unigrpo_jax.models.building.context import Context
from unigrpo_jax.models.building.frames import check_image
from unigrpo_jax.models.building.norms import RMSNorm
from unigrpo_jax.models.building.patches import patchify, unpatchify
from unigrpo_jax.models.building.rotary import rotary_table
from unigrpo_jax.models.building.second_time import NAME, check_second_time
from unigrpo_jax.models.paths import RECTIFIED
from unigrpo_jax.models.schedule import timesteps
from unigrpo_jax.models.tree import flatten, unflatten

Params = dict[str, Any]
# Paths of the two experts' parameters, matched whole.  Never trained are the fixed tables, and the vision encoder with its
# connector, through which images are read.
TRAINED_BY = MappingProxyType({
    "reasoning": r"layers/und/.*|norm_und/.*|embed/.*|lm_head/.*",
    "denoising": r"layers/gen/.*|norm_gen/.*|vae2llm/.*|llm2vae/.*|(time|gap)_embedder/.*",
    "frozen": r"latent_pos_embed|vit_pos_embed|vision/.*|connector/.*",
})
# The fixed tables, and the vision encoder, whose norms compute in float32.
FLOAT32_PATHS = r"latent_pos_embed|vit_pos_embed|vision/.*"
Remat = Literal["none", "full", "dots"]
# What a layer keeps for the backward pass.  A product with weights has no batch dimension, one inside the attention has:
# scores and mixed values are made again.
KEPT = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


def time_sinusoid(t, width: int):
    """[cos(t f_i), sin(t f_i)] with f_i = exp(-ln(10000) i / (width / 2)), float32 [..., width]; t in [0, 1], not scaled."""
    frequency = jnp.exp(-jnp.log(10000.0) * jnp.arange(width // 2, dtype=jnp.float32) / (width // 2))
    angle = jnp.einsum("...,k->...k", t.astype(jnp.float32), frequency, precision="highest")
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class TimeEmbedder(nn.Module):
    """Sinusoid -> linear -> SiLU -> linear, the last of which may start at zero."""

    config: BagelConfig
    dtype: jnp.dtype
    silent: bool = False

    @nn.compact
    def __call__(self, t):
        """t [...] to [..., D]."""
        h = nn.Dense(self.config.hidden_size, dtype=self.dtype, name="fc1")(time_sinusoid(t, self.config.frequency_size))
        begin = {"kernel_init": nn.initializers.zeros} if self.silent else {}
        return nn.Dense(self.config.hidden_size, dtype=self.dtype, name="fc2", **begin)(nn.silu(h))


class Network(nn.Module):
    """The parameters and the passes over them; use it through `Bagel`."""

    config: BagelConfig
    dtype: jnp.dtype = jnp.float32
    remat: Remat = "none"
    unroll: int = 1
    lora_scale: float = 1.0
    hold: Callable[[jax.Array], jax.Array] | None = None
    attend: Callable[..., jax.Array] = attention.xla
    stacked: bool = True

    def setup(self):
        """Layers are stacked along a leading axis and scanned, or where they are not `stacked`, run one after the other."""
        c = self.config
        layer = DecoderLayer
        if self.remat != "none":
            layer = nn.remat(layer, prevent_cse=False, static_argnums=(), policy=KEPT[self.remat])
        scan = nn.scan(
            layer,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=c.layers,
            unroll=min(self.unroll, c.layers),
        )
        given = (c, self.dtype, self.lora_scale, self.hold, self.attend)
        self.layers = scan(*given) if self.stacked else [layer(*given) for _ in range(c.layers)]
        self.embed = nn.Embed(c.vocab_size, c.hidden_size, dtype=self.dtype)
        self.lm_head = nn.Dense(c.vocab_size, use_bias=False, dtype=self.dtype)
        self.norm_und = RMSNorm(c.rms_norm_eps)
        self.norm_gen = RMSNorm(c.rms_norm_eps)
        self.time_embedder = TimeEmbedder(c, self.dtype)
        if c.second_time:
            self.gap_embedder = TimeEmbedder(c, self.dtype, silent=True)
        self.vae2llm = nn.Dense(c.hidden_size, dtype=self.dtype)
        self.llm2vae = nn.Dense(c.latent_width, dtype=self.dtype, kernel_init=nn.initializers.zeros)
        table = lambda key: jnp.asarray(latents.position_table(c.max_latent_size, c.hidden_size))
        self.latent_pos_embed = self.param("latent_pos_embed", table)
        if c.vision is not None:
            self.vision = VisionEncoder(c.vision, self.dtype, self.hold)
            self.connector = Connector(c.hidden_size, self.dtype)
            table = lambda key: jnp.asarray(latents.position_table(c.vision.max_side, c.hidden_size))
            self.vit_pos_embed = self.param("vit_pos_embed", table)

    def run(self, streams, positions, valid, causal: bool, context: Context):
        """All layers over one block; returns the streams before the final norm, and the block's keys and values."""
        rotary = rotary_table(positions, self.config.head_dim, self.config.rope_theta)
        visible = Visibility(context=context.valid, block=valid, causal=causal)
        if self.stacked:
            return self.layers(streams, (context.keys, context.values), rotary, visible)
        blocks = []
        for i, layer in enumerate(self.layers):
            streams, block = layer(streams, (context.keys[i], context.values[i]), rotary, visible)
            blocks.append(block)
        return streams, jax.tree.map(lambda *layers: jnp.stack(layers), *blocks)

    def text(self, tokens, valid, context: Context):
        """Hidden states [B, L, D] after the final norm, and the text block as a context of its own L slots."""
        positions = context.rope[:, None] + jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1
        positions = jnp.where(valid, positions, 0)
        (und, _), (keys, values) = self.run((self.embed(tokens), None), positions, valid, True, context)
        rope = context.rope + jnp.sum(valid, axis=1, dtype=jnp.int32)
        return self.norm_und(und), Context(keys=keys, values=values, valid=valid, rope=rope)

    def markers(self, batch: int):
        """Embeddings [B, 2, D] of image_start and image_end."""
        tokens = jnp.array([self.config.image_start_token, self.config.image_end_token])
        return self.embed(jnp.broadcast_to(tokens, (batch, 2)))

    def image(self, streams, context: Context):
        """All layers over an image block; the streams before the final norm, and the block as a context."""
        batch, length = streams[0].shape[0], sum(x.shape[1] for x in streams if x is not None)
        positions = jnp.broadcast_to(context.rope[:, None], (batch, length))
        everything = jnp.ones((batch, length), bool)
        streams, (keys, values) = self.run(streams, positions, everything, False, context)
        return streams, Context(keys=keys, values=values, valid=everything, rope=context.rope + 1)

    def latent_block(self, x_BNC, t_B, position_ids_N, context: Context, to_B=None):
        """An image block of latent tokens at time t: the `und` stream holds its markers, the `gen` stream its tokens.

        `to_B` is the time where the velocity is to arrive, of a network that has a second time; None leaves it out.
        """
        place = self.latent_pos_embed[position_ids_N].astype(self.dtype)
        time = self.time_embedder(t_B) if to_B is None else self.time_embedder(t_B) + self.gap_embedder(t_B - to_B)
        latent = self.vae2llm(x_BNC.astype(self.dtype)) + time[:, None] + place[None]
        return self.image((self.markers(x_BNC.shape[0]), latent), context)

    def flow(self, x_BNC, t_B, position_ids_N, context: Context, to_B=None):
        """Velocity [B, N, C], float32, of the noisy latent tokens."""
        (_, gen), _ = self.latent_block(x_BNC, t_B, position_ids_N, context, to_B)
        return self.llm2vae(self.norm_gen(gen)).astype(jnp.float32)

    def patch_tokens(self, patches_BNP, position_ids_N):
        """Image patches as tokens of the network, [B, N, D]."""
        features = self.connector(self.vision(patches_BNP, position_ids_N))
        return features + self.vit_pos_embed[position_ids_N].astype(self.dtype)[None]

    def patch_block(self, patches_BNP, position_ids_N, context: Context):
        """An image block of patches: all of it is the `und` stream, in order."""
        start, end = jnp.split(self.markers(patches_BNP.shape[0]), 2, axis=1)
        tokens = self.patch_tokens(patches_BNP, position_ids_N)
        return self.image((jnp.concatenate([start, tokens, end], axis=1), None), context)

    def logits(self, hidden):
        """LM head, float32 [..., V]."""
        return self.lm_head(hidden).astype(jnp.float32)

    def everything(self):
        """Touches every parameter once; only for `init`."""
        c, one = self.config, jnp.zeros(1, jnp.int32)
        nothing = contexts.empty(c.layers, c.kv_heads, c.head_dim, 1, self.dtype)
        hidden, block = self.text(one[None], jnp.ones((1, 1), bool), nothing)
        seen = None if c.vision is None else self.patch_block(jnp.zeros((1, 1, c.vision.patch_width)), one, block)
        to = jnp.zeros(1) if c.second_time else None
        return self.logits(hidden), self.flow(jnp.zeros((1, 1, c.latent_width)), jnp.zeros(1), one, block, to), seen


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _call(network: Network, method: str, params: Params, *args):
    """One pass; jitted, so that a program of many passes traces each once for its shapes, and inlined, so that what is
    compiled is as if it were not: the same bits."""
    return network.apply({"params": params}, *args, method=method)


@dataclasses.dataclass(frozen=True)
class Bagel:
    """The verbs of the network; every one is a pure function of `params`, a nested dict of float32 arrays.

    Attributes:
      config: sizes and special tokens.
      dtype: compute dtype, "float32" or "bfloat16"; statistics, softmax, logits and velocities are float32 in both.
      remat: what the backward pass recomputes instead of storing it: "none"; "full", each layer from its input; "dots",
        each layer but its products with weights.
      unroll: layers per iteration of the scan over layers; more compiles longer and may run faster on CPU, see `cut`.
      lora_scale: factor of the adapters' products, alpha / rank; read only where the parameters hold adapters.
      hold: applied to the residual stream before each layer, to hold it to its place on a mesh; None leaves it free.
      attend: the attention, with the signature of `attention.xla`.
      stacked: whether the parameters hold all layers as one stack, as `init` makes them, or as `cut` leaves them.
      fresh_time: whether its second time is new, so that no file holds the embedder.
    """

    config: BagelConfig
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Remat = "none"
    unroll: int = 1
    lora_scale: float = 1.0
    hold: Callable[[jax.Array], jax.Array] | None = None
    attend: Callable[..., jax.Array] = attention.xla
    stacked: bool = True
    fresh_time: bool = False

    path, prediction, thinks, guidance_renorm = RECTIFIED, "velocity", True, "global"
    begins = needs_picture = further_passes = False
    axes, trained_by, float32_paths = AXES, TRAINED_BY, FLOAT32_PATHS

    @property
    def sees(self) -> bool:
        """Whether there is a vision encoder."""
        return self.config.vision is not None

    @property
    def two_times(self) -> bool:
        """Whether it is told where a velocity is to arrive."""
        return self.config.second_time

    @property
    def one_time(self) -> "Bagel":
        """The same without the second time, whose parameters it does not read."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, second_time=False), fresh_time=False)

    @property
    def stored_config(self) -> BagelConfig:
        """Sizes of what files hold."""
        return dataclasses.replace(self.config, second_time=False) if self.fresh_time else self.config

    @functools.cached_property
    def network(self) -> Network:
        """The Linen module behind the verbs."""
        given = (self.remat, self.unroll, self.lora_scale, self.hold, self.attend, self.stacked)
        return Network(self.config, jnp.dtype(self.dtype), *given)

    def _apply(self, params: Params, method: str, *args):
        return _call(self.network, method, params, *args)

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters; the flow head starts at zero, as the original does."""
        return self.network.init(key, method="everything")["params"]

    def cut(self, params: Params) -> tuple["Bagel", Params]:
        """The same network, each layer's parameters in arrays of their own; as they are unless all layers are unrolled.

        For a loop that reads all parameters for few tokens at a time, as decoding does: on a CPU each read of a stack copies
        a layer out of it, which takes as long as its products.  Until the loop ends the layers lie in memory twice.
        """
        if not self.stacked or self.unroll < self.config.layers:
            return self, params
        layers = {f"layers_{i}": jax.tree.map(lambda x, i=i: x[i], params["layers"]) for i in range(self.config.layers)}
        others = {name: value for name, value in params.items() if name != "layers"}
        return dataclasses.replace(self, stacked=False), others | layers

    def in_int8(self, params: Params) -> Params:
        """The parameters with the weights of both experts' projections in int8 (`building.int8`)."""
        flat = flatten(params)
        kernels = filter(re.compile(r"layers(?:_\d+)?/.*_proj/kernel").fullmatch, flat)
        first = int(self.stacked)  # behind the axis of layers
        contracted = {path: tuple(range(first, first + 1 + ("/o_proj/" in path))) for path in kernels}
        return unflatten(int8.held(flat, contracted))

    def cuts(self) -> dict[str, dict[str, int]]:
        """Sizes that an axis of a mesh must divide, {axis of the mesh: {what is cut: size}}."""
        c = self.config
        widths = {"width": c.hidden_size} | ({"vision encoder's width": c.vision.hidden_size} if c.vision else {})
        heads = {"heads of keys": c.kv_heads, "heads": c.heads}
        return {"fsdp": widths, "tensor": heads | {"MLP": c.intermediate_size, "vocabulary": c.vocab_size}}

    def work(self, run: RunConfig, system: int, pictures: bool = False, turns: bool = False) -> BagelWork:
        """What the episodes of a run cost; see `models.work`."""
        return BagelWork(run=run, config=self.config, lengths=flops.lengths(run, self.config, system, pictures, turns))

    def empty(self, batch: int) -> Context:
        """A context of `batch` samples that have read nothing."""
        c = self.config
        return contexts.empty(c.layers, c.kv_heads, c.head_dim, batch, jnp.dtype(self.dtype))

    def read(self, params: Params, text: TokenBlock, context: Context) -> Context:
        """The context after a text block [B, L]."""
        return contexts.extend(context, self.prefill(params, text.tokens, text.valid, context)[1])

    def unread(self, params: Params, text: TokenBlock, context: Context) -> Context:
        """The context without the text block: as it was."""
        return context

    def times(self, steps: int, shift: float, grid: tuple[int, int]) -> np.ndarray:
        """A sampler's schedule, float32 [steps + 1]: shifted, whatever the size."""
        return timesteps(steps, shift)

    def grid(self, height: int, width: int, frames: int = 1, fps: float = 24.0) -> tuple[int, int]:
        """Latent tokens (rows, columns); ValueError where an image does not divide, into too many, or is a clip."""
        check_image(frames)
        return self.config.grid(height, width)

    def latent_shape(self, grid: tuple[int, int]) -> tuple[int, int]:
        """(N, C) of an image's latent tokens."""
        return grid[0] * grid[1], self.config.latent_width

    def to_tokens(self, latent_BHWC):
        """Latents as tokens [B, N, C]."""
        return patchify(latent_BHWC, self.config.latent_patch)

    def to_latent(self, tokens_BNC, grid: tuple[int, int]):
        """Tokens as latents [B, h, w, channels]."""
        return unpatchify(tokens_BNC, grid, self.config.latent_patch)

    def adapted(self, params: Params, settings: LoraConfig, key: jax.Array) -> Params:
        """The parameters with fresh adapters (`lora.attach`); ValueError where a target matches no projection."""
        return lora.attach(params, settings.rank, settings.targets, key)

    def with_second_time(self, params: Params, key: jax.Array) -> Params:
        """The parameters with a fresh embedder of the second time, float32."""
        return params | {NAME: TimeEmbedder(self.config, jnp.float32, silent=True).init(key, jnp.zeros(1))["params"]}

    def see_again(self, image_BHWC) -> tuple[jax.Array, jax.Array | None]:
        """A drawn image as the network looks at it (`pictures.see_again`)."""
        return see_again(image_BHWC, self.config)

    def look_at(self, image) -> Picture:
        """What the network looks at, of one Pillow RGB image, resized by its rules; a batch of one."""
        return picture(image, self.config)

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

    def predict(self, params: Params, x_BNC, t_B, grid: tuple[int, int], context: Context, to_B=None) -> jax.Array:
        """Velocity v = noise - data, float32 [B, N, C], of noisy latent tokens upon a context, which stays as it is.

        Args:
          params: the parameters.
          x_BNC: latent tokens at time t, N = rows * columns of `grid`.
          t_B: times in [0, 1], 1 is noise.
          grid: latent tokens (rows, columns).
          context: prompt and thinking.
          to_B: times in [0, t], of a network with two: the average velocity on the way there; None tells none.
        """
        ids = latents.position_ids(grid, self.config.max_latent_size)
        check_second_time(self.two_times, to_B)
        return self._apply(params, "flow", x_BNC, t_B, jnp.asarray(ids), context, *(() if to_B is None else (to_B,)))

    def see_latents(self, params: Params, x_BNC, grid: tuple[int, int], context: Context) -> Context:
        """Reads an image's clean latent tokens upon a context; returns the block alone, N + 2 slots, one rotary position.

        Args:
          params: the parameters.
          x_BNC: latent tokens, N = rows * columns of `grid`; read at t = 0.
          grid: latent tokens (rows, columns).
          context: what was read before.
        """
        ids = jnp.asarray(latents.position_ids(grid, self.config.max_latent_size))
        return self._apply(params, "latent_block", x_BNC, jnp.zeros(x_BNC.shape[0]), ids, context)[1]

    def see_patches(self, params: Params, patches_BNP, grid: tuple[int, int], context: Context) -> Context:
        """Reads an image through the vision encoder upon a context; returns the block alone, as `see_latents` does.

        Args:
          params: the parameters.
          patches_BNP: patches of the image in [-1, 1], as `patchify` cuts them.
          grid: patches (rows, columns).
          context: what was read before.
        """
        ids = jnp.asarray(latents.position_ids(grid, self.config.vision.max_side))
        return self._apply(params, "patch_block", patches_BNP, ids, context)[1]
