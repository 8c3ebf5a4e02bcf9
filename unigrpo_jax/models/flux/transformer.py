"""The transformer of FLUX.1: text and picture as two streams that meet in every attention, then as one.

Its parameters are the tensors of diffusers' `transformer/`, a flat dict under their own names and in their own layout, but
for the blocks, which are scanned: `transformer_blocks.attn.to_q.weight` [layers, out, in] holds those of all
`transformer_blocks.N.attn.to_q.weight`.  It computes in the dtype of its input; time, angles, norms and softmax are float32.

Letters: B pictures, L text tokens, N latent tokens, D width, H heads, K head dim.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from unigrpo_jax.models.building.computing import PLAIN, Computing
from unigrpo_jax.models.building.flat import (
    Params,
    Shapes,
    layer_names,
    linear,
    linear_shapes,
    normed,
    of_stack,
    rms_norm,
    sinusoid,
)

EPS, MLP, SINUSOID, THETA = 1e-6, 4, 256, 10000.0
DOUBLE, SINGLE = "transformer_blocks", "single_transformer_blocks"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FluxTransformer:
    """Sizes, and the pass.

    Attributes:
      channels: numbers in a latent token.
      double: blocks with two streams.
      single: blocks with one.
      heads: of attention.
      axes: widths of a head that turn with the token's place, its row and its column; their sum is the head's width K.
      text_width: of the text's states.
      pooled_width: of the state that stands for the whole text.
      guidance: whether it was distilled from guidance, whose scale it is then told.
    """

    channels: int
    double: int
    single: int
    heads: int
    axes: tuple[int, ...]
    text_width: int
    pooled_width: int
    guidance: bool

    @property
    def width(self) -> int:
        """D."""
        return self.heads * sum(self.axes)

    def __call__(
        self, params: Params, x_BNC, t_B, text_BLD, pooled_BP, grid: tuple[int, int], scale_B=None, way: Computing = PLAIN
    ):
        """Velocity v = noise - data, float32 [B, N, C].

        Args:
          params: the parameters.
          x_BNC: latent tokens, N = rows * columns of `grid`, row by row.
          t_B: times in [0, 1], 1 is noise.
          text_BLD: the text's states.
          pooled_BP: the state that stands for the whole text.
          grid: latent tokens (rows, columns).
          scale_B: scale of guidance, where `guidance`; else it is not read.
          way: of computing.
        """
        dtype, length = x_BNC.dtype, text_BLD.shape[1]
        condition = self.condition(params, t_B, pooled_BP.astype(dtype), scale_B)
        text = linear(params, "context_embedder", text_BLD.astype(dtype))
        picture = linear(params, "x_embedder", x_BNC)
        turn = rotary(grid, length, self.axes)
        double = way.block(lambda p, *streams: self.double_block(p, *streams, turn, way), scanned=True)
        single = way.block(lambda p, *streams: self.single_block(p, *streams, turn, way), scanned=True)
        streams, _ = jax.lax.scan(lambda h, p: (double(p, *h, condition), None), (text, picture), of_stack(params, DOUBLE))
        h = jnp.concatenate(streams, axis=1)
        h, _ = jax.lax.scan(lambda h, p: (single(p, h, condition), None), h, of_stack(params, SINGLE))
        factor, shift = modulation(params, "norm_out.linear", condition, 2, way)  # in this order, here
        return linear(params, "proj_out", _norm(h[:, length:]) * (1 + factor) + shift).astype(jnp.float32)

    def condition(self, params: Params, t_B, pooled_BP, scale_B=None):
        """SiLU of what time, text and scale of guidance say together, [B, D], which every block is modulated by."""
        two = lambda name, h: linear(params, f"{name}.linear_2", jax.nn.silu(linear(params, f"{name}.linear_1", h)))
        dtype = pooled_BP.dtype
        h = two("time_text_embed.timestep_embedder", sinusoid(1000 * t_B, SINUSOID).astype(dtype))
        if self.guidance:
            h = h + two("time_text_embed.guidance_embedder", sinusoid(1000 * scale_B, SINUSOID).astype(dtype))
        return jax.nn.silu(h + two("time_text_embed.text_embedder", pooled_BP))

    def double_block(self, p: Params, text, picture, condition, turn, way: Computing = PLAIN):
        """Two streams with weights of their own; their attention is one, text first."""
        streams = []
        for x, norm, names in ((text, "norm1_context", "add_{}_proj norm_added_{}"), (picture, "norm1", "to_{} norm_{}")):
            shift, factor, gate, shift_mlp, factor_mlp, gate_mlp = modulation(p, f"{norm}.linear", condition, 6, way)
            heads = self._heads(p, _norm(x) * (1 + factor) + shift, *(f"attn.{name}" for name in names.split()))
            streams.append((x, gate, shift_mlp, factor_mlp, gate_mlp, heads))
        q, k, v = (jnp.concatenate(both, axis=1) for both in zip(*(stream[-1] for stream in streams), strict=True))
        attended = _attend(q, k, v, turn, way)
        length, out = text.shape[1], []
        ways = (attended[:, :length], "to_add_out", "ff_context"), (attended[:, length:], "to_out.0", "ff")
        for (x, gate, shift, factor, gate_mlp, _), (own, project, mlp) in zip(streams, ways, strict=True):
            x = x + gate * linear(p, f"attn.{project}", own)
            h = jax.nn.gelu(linear(p, f"{mlp}.net.0.proj", _norm(x) * (1 + factor) + shift), approximate=True)
            out.append(x + gate_mlp * linear(p, f"{mlp}.net.2", h))
        return tuple(out)

    def single_block(self, p: Params, x, condition, turn, way: Computing = PLAIN):
        """One stream; attention and MLP read the same and are projected together."""
        shift, factor, gate = modulation(p, "norm.linear", condition, 3, way)
        h = _norm(x) * (1 + factor) + shift
        attended = _attend(*self._heads(p, h, "attn.to_{}", "attn.norm_{}"), turn, way)
        wide = jax.nn.gelu(linear(p, "proj_mlp", h), approximate=True)
        return x + gate * linear(p, "proj_out", jnp.concatenate([attended, wide], axis=-1))

    def _heads(self, p: Params, h, project: str, norm: str):
        """Queries and keys, normed, and values, [B, L, H, K]."""
        q, k, v = (linear(p, project.format(which), h).reshape(*h.shape[:2], self.heads, -1) for which in "qkv")
        return *(rms_norm(p, norm.format(which), x, EPS) for x, which in ((q, "q"), (k, "k"))), v

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter and its shape."""
        return dict(self._shapes())

    def stored_names(self, name: str) -> tuple[str, ...]:
        """The file's names of a parameter, one per layer where it is scanned."""
        for stack, layers in ((DOUBLE, self.double), (SINGLE, self.single)):
            if name.startswith(f"{stack}."):
                return layer_names(name, stack, layers)
        return (name,)

    def _shapes(self) -> Shapes:
        width = self.width
        yield from linear_shapes("x_embedder", self.channels, width)
        yield from linear_shapes("context_embedder", self.text_width, width)
        embedders = {"timestep": SINUSOID, "guidance": SINUSOID, "text": self.pooled_width}
        for name, size in embedders.items():
            if name != "guidance" or self.guidance:
                yield from linear_shapes(f"time_text_embed.{name}_embedder.linear_1", size, width)
                yield from linear_shapes(f"time_text_embed.{name}_embedder.linear_2", width, width)
        stacks = (DOUBLE, self.double, self._double_shapes()), (SINGLE, self.single, self._single_shapes())
        for stack, layers, shapes in stacks:
            yield from ((f"{stack}.{name}", (layers, *shape)) for name, shape in shapes)
        yield from linear_shapes("norm_out.linear", width, 2 * width)
        yield from linear_shapes("proj_out", width, self.channels)

    def _double_shapes(self) -> Shapes:
        width = self.width
        for norm, mlp in (("norm1", "ff"), ("norm1_context", "ff_context")):
            yield from linear_shapes(f"{norm}.linear", width, 6 * width)
            yield from linear_shapes(f"{mlp}.net.0.proj", width, MLP * width)
            yield from linear_shapes(f"{mlp}.net.2", MLP * width, width)
        for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"):
            yield from linear_shapes(f"attn.{name}", width, width)
        for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            yield f"attn.{name}.weight", (sum(self.axes),)

    def _single_shapes(self) -> Shapes:
        width = self.width
        yield from linear_shapes("norm.linear", width, 3 * width)
        yield from linear_shapes("proj_mlp", width, MLP * width)
        yield from linear_shapes("proj_out", (1 + MLP) * width, width)
        for name in ("to_q", "to_k", "to_v"):
            yield from linear_shapes(f"attn.{name}", width, width)
        for name in ("norm_q", "norm_k"):
            yield f"attn.{name}.weight", (sum(self.axes),)


def rotary(grid: tuple[int, int], length: int, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines [L + N, K / 2], float32, of tokens at (0, row, column); text is at (0, 0, 0) and does not turn."""
    rows, columns = np.meshgrid(*map(np.arange, grid), indexing="ij")
    ids = np.zeros((length + rows.size, len(axes)))
    ids[length:, 1], ids[length:, 2] = rows.reshape(-1), columns.reshape(-1)
    angle = [ids[:, i, None] * THETA ** (-np.arange(0, width, 2) / width) for i, width in enumerate(axes)]
    angle = np.concatenate(angle, axis=1)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def modulation(p: Params, name: str, condition, parts: int, way: Computing):
    """What a condition [B, D] says of every token, `parts` times [B, 1, D].

    It is held before it is cut: on a mesh the weights are cut elsewhere, and parts that lie otherwise than the tokens that
    they meet have been seen to give the tokens of other samples.
    """
    return jnp.split(way.held(linear(p, name, condition))[:, None], parts, axis=-1)


def _attend(q_BLHK, k_BLHK, v_BLHK, turn, way: Computing):
    """All see all; [B, L, D]."""
    return way.attention(_turned(q_BLHK, turn), _turned(k_BLHK, turn), v_BLHK).reshape(*q_BLHK.shape[:2], -1)


def _turned(x_BLHK, turn):
    """Neighbours (2 i, 2 i + 1) are a plane that turns."""
    cos, sin = (part[None, :, None, :, None] for part in turn)
    pairs = x_BLHK.astype(jnp.float32).reshape(*x_BLHK.shape[:-1], -1, 2)
    first, second = pairs[..., :1], pairs[..., 1:]
    out = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return out.reshape(x_BLHK.shape).astype(x_BLHK.dtype)


def _norm(x):
    """Without weights, in x's dtype."""
    return normed(x, EPS).astype(x.dtype)
