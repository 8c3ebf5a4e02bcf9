"""Text and latents as two streams that meet in every attention, then as one: the blocks of FLUX.1's kind of transformer.

Its parameters are the tensors of diffusers' `transformer/`, a flat dict under their own names and in their own layout, but
for the blocks, which are scanned: `transformer_blocks.attn.to_q.weight` [layers, out, in] holds those of all
`transformer_blocks.N.attn.to_q.weight`.  It computes in the dtype of its input; time, angles, norms and softmax are float32.

Text comes first where both are one sequence; what a token gets does not depend on that order.  On a mesh that cuts tokens
every stream is filled up to equal parts (`token_cut`), and so are L and N in here.

Letters: B samples, L text tokens, N latent tokens, D width, H heads, K head dim.
"""

import dataclasses
import math

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
from unigrpo_jax.models.building.second_time import NAME

EPS, MLP, SINUSOID = 1e-6, 4, 256
DOUBLE, SINGLE = "transformer_blocks", "single_transformer_blocks"
TOLD = "time_text_embed"  # what embeds time, text and scale of guidance


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoStreams:
    """Sizes, and the pass through the blocks; a family says what comes before.

    Attributes:
      channels: numbers in a latent token.
      double: blocks with two streams.
      single: blocks with one.
      heads: of attention.
      axes: widths of a head that turn with each of a token's three places; their sum is the head's width K.
      text_width: of the text's states.
      pooled_width: of the state that stands for the whole text.
      guidance: whether it was distilled from guidance, whose scale it is then told.
      second_time: whether it is told where a velocity is to arrive, as `second_time` has it.
    """

    channels: int
    double: int
    single: int
    heads: int
    axes: tuple[int, ...]
    text_width: int
    pooled_width: int
    guidance: bool
    second_time: bool = False

    @property
    def width(self) -> int:
        """D."""
        return self.heads * sum(self.axes)

    def condition(self, params: Params, time_B, pooled_BP, scale_B=None, gap_B=None):
        """What every block is modulated by, [B, D]: `told` of the time, the text and, where `guidance`, its scale."""
        return told(params, TOLD, time_B, pooled_BP, scale_B if self.guidance else None, gap_B)

    def velocity(self, params: Params, text_BLD, latent_BND, condition, turn, way: Computing, mask_BL=None):
        """What the blocks make of both streams, float32 [B, N, channels].

        Args:
          params: the parameters.
          text_BLD: the text, filled up.
          latent_BND: the latents, filled up.
          condition: from `condition`.
          turn: cosines and sines, from `rotary`, of the text that was filled up and of the latents that were not.
          way: of computing.
          mask_BL: bool, tokens of the text that are no padding; no token sees the others.  None where all are.

        Returns:
          The latents' alone, without what was filled up.
        """
        cut, length, seen = way.tokens, text_BLD.shape[1], None
        latents = turn[0].shape[0] - length
        if mask_BL is not None:
            seen = cut.joined(mask_BL, cut.filled(jnp.ones((latent_BND.shape[0], latents), bool)))
        turn = tuple(cut.of_both(table, length) for table in turn)
        double = way.block(lambda p, *streams: self.double_block(p, *streams, turn, way, seen), scanned=True)
        single = way.block(lambda p, *streams: self.single_block(p, *streams, turn, way, seen), scanned=True)
        both, step = (text_BLD, latent_BND), lambda h, p: (double(p, *h, condition), None)
        streams, _ = jax.lax.scan(step, both, of_stack(params, DOUBLE))
        h = cut.joined(*streams)
        h, _ = jax.lax.scan(lambda h, p: (single(p, h, condition), None), h, of_stack(params, SINGLE))
        factor, shift = modulation(params, "norm_out.linear", condition, 2, way)  # in this order, here
        _, latent = cut.parted(h, length)
        out = linear(params, "proj_out", _norm(latent) * (1 + factor) + shift)
        return cut.leaving(out, latents).astype(jnp.float32)

    def double_block(self, p: Params, text, latent, condition, turn, way: Computing = PLAIN, seen=None):
        """Two streams with weights of their own; their attention is one, and sees the keys `seen` [B, L + N] or all."""
        streams = []
        for x, norm, names in ((text, "norm1_context", "add_{}_proj norm_added_{}"), (latent, "norm1", "to_{} norm_{}")):
            shift, factor, gate, shift_mlp, factor_mlp, gate_mlp = modulation(p, f"{norm}.linear", condition, 6, way)
            heads = self._heads(p, _norm(x) * (1 + factor) + shift, *(f"attn.{name}" for name in names.split()))
            streams.append((x, gate, shift_mlp, factor_mlp, gate_mlp, heads))
        q, k, v = (way.tokens.joined(*both) for both in zip(*(stream[-1] for stream in streams), strict=True))
        of_text, of_latent = way.tokens.parted(_attend(q, k, v, turn, way, seen), text.shape[1])
        ways, out = ((of_text, "to_add_out", "ff_context"), (of_latent, "to_out.0", "ff")), []
        for (x, gate, shift, factor, gate_mlp, _), (own, project, mlp) in zip(streams, ways, strict=True):
            x = x + gate * linear(p, f"attn.{project}", own)
            h = jax.nn.gelu(linear(p, f"{mlp}.net.0.proj", _norm(x) * (1 + factor) + shift), approximate=True)
            out.append(x + gate_mlp * linear(p, f"{mlp}.net.2", h))
        return tuple(out)

    def single_block(self, p: Params, x, condition, turn, way: Computing = PLAIN, seen=None):
        """One stream; attention and MLP read the same and are projected together."""
        shift, factor, gate = modulation(p, "norm.linear", condition, 3, way)
        h = _norm(x) * (1 + factor) + shift
        attended = _attend(*self._heads(p, h, "attn.to_{}", "attn.norm_{}"), turn, way, seen)
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
        for stack, (layers, _) in self.stacks().items():
            if name.startswith(f"{stack}."):
                return layer_names(name, stack, layers)
        return (name,)

    def cuts(self) -> dict[str, dict[str, int]]:
        """Sizes that an axis of a mesh must divide, {axis of the mesh: {what is cut: size}}."""
        return {"fsdp": {"width": self.width}, "sequence": {}, "tensor": {"heads": self.heads, "MLP": MLP * self.width}}

    def stacks(self) -> dict[str, tuple[int, Shapes]]:
        """The scanned blocks, {their name: (layers, parameters of one)}."""
        return {DOUBLE: (self.double, self._double_shapes()), SINGLE: (self.single, self._single_shapes())}

    def entrance(self) -> Shapes:
        """The parameters of what comes before the blocks and is the family's own."""
        raise NotImplementedError

    def _shapes(self) -> Shapes:
        yield from self.entrance()
        yield from told_shapes(TOLD, self.width, self.pooled_width, self.guidance, self.second_time)
        for stack, (layers, shapes) in self.stacks().items():
            yield from ((f"{stack}.{name}", (layers, *shape)) for name, shape in shapes)
        yield from linear_shapes("norm_out.linear", self.width, 2 * self.width)
        yield from linear_shapes("proj_out", self.width, self.channels)

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


def told(params: Params, place: str, time_B, pooled_BP, scale_B=None, gap_B=None):
    """SiLU of what time, scale of guidance (None: none) and text say together, [B, D], in the dtype of the text.

    Time and scale are what the sinusoids take, 1000 times those of a flow; so is the gap of two times (None: none).
    """
    two = lambda name, h: linear(params, f"{name}.linear_2", jax.nn.silu(linear(params, f"{name}.linear_1", h)))
    dtype = pooled_BP.dtype
    h = two(f"{place}.timestep_embedder", sinusoid(time_B, SINUSOID).astype(dtype))
    if gap_B is not None:
        h = h + two(f"{place}.{NAME}", sinusoid(gap_B, SINUSOID).astype(dtype))
    if scale_B is not None:
        h = h + two(f"{place}.guidance_embedder", sinusoid(scale_B, SINUSOID).astype(dtype))
    return jax.nn.silu(h + two(f"{place}.text_embedder", pooled_BP))


def told_shapes(place: str, width: int, pooled_width: int, guidance: bool, second_time: bool = False) -> Shapes:
    """Of `told`."""
    sizes = {"timestep_embedder": SINUSOID} | ({"guidance_embedder": SINUSOID} if guidance else {})
    sizes |= {"text_embedder": pooled_width} | ({NAME: SINUSOID} if second_time else {})
    for name, size in sizes.items():
        yield from linear_shapes(f"{place}.{name}.linear_1", size, width)
        yield from linear_shapes(f"{place}.{name}.linear_2", width, width)


def rotary(grid: tuple[int, int, int], length: int, axes: tuple[int, ...], theta: float, dtype: type = np.float64):
    """Cosines and sines [L + N, K / 2], float32, of tokens at (frame, row, column); text is at (0, 0, 0) and does not turn.

    Angles are computed in `dtype`.  A program holds one small table for each of the places, and spreads them over the
    tokens as it runs: those of a long video are many megabytes.
    """
    out = []
    for part, at_rest in ((np.cos, jnp.ones), (np.sin, jnp.zeros)):
        tables = []
        for i, (places, width) in enumerate(zip(grid, axes, strict=True)):
            power = np.arange(0, width, 2, dtype=dtype) / width
            table = part(np.arange(places, dtype=dtype)[:, None] * theta**-power).astype(np.float32)
            others = [other for other in range(len(grid)) if other != i]
            tables.append(jnp.broadcast_to(np.expand_dims(table, others), (*grid, width // 2)))
        turning = jnp.concatenate(tables, axis=-1).reshape(math.prod(grid), -1)
        out.append(jnp.concatenate([at_rest((length, turning.shape[1]), jnp.float32), turning]))
    return tuple(out)


def modulation(p: Params, name: str, condition, parts: int, way: Computing):
    """What a condition [B, D] says of every token, `parts` times [B, 1, D].

    It is held before it is cut: on a mesh the weights are cut elsewhere, and parts that lie otherwise than the tokens that
    they meet have been seen to give the tokens of other samples.
    """
    return jnp.split(way.held(linear(p, name, condition))[:, None], parts, axis=-1)


def _attend(q_BLHK, k_BLHK, v_BLHK, turn, way: Computing, seen):
    """All see all keys that are seen; [B, L, D]."""
    return way.attention(_turned(q_BLHK, turn), _turned(k_BLHK, turn), v_BLHK, seen).reshape(*q_BLHK.shape[:2], -1)


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
