"""The transformer of FLUX.1: a picture's latents and its text in two streams, then in one (`building.two_streams`).

Letters: B pictures, L text tokens, N latent tokens, D width.
"""

import dataclasses

import jax.numpy as jnp

from unigrpo_jax.models.building.computing import PLAIN, Computing
from unigrpo_jax.models.building.flat import Params, Shapes, linear, linear_shapes
from unigrpo_jax.models.building.two_streams import TwoStreams, rotary

THETA = 10000.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class FluxTransformer(TwoStreams):
    """The pass; a token's places are 0, its row and its column."""

    def __call__(
        self, params: Params, x_BNC, t_B, text_BLD, pooled_BP, grid: tuple[int, int], scale_B=None, way: Computing = PLAIN,
        gap_B=None,
    ):  # fmt: skip
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
          gap_B: t minus the time of arrival, where there is a `second_time`; None leaves it out.
        """
        dtype, cut = x_BNC.dtype, way.tokens
        scale = 1000 * scale_B if self.guidance else None
        gap = None if gap_B is None else 1000 * gap_B
        condition = self.condition(params, 1000 * t_B, pooled_BP.astype(dtype), scale, gap)
        text = linear(params, "context_embedder", cut.entering(text_BLD.astype(dtype)))
        picture = linear(params, "x_embedder", cut.entering(x_BNC))
        turn = rotary((1, *grid), text.shape[1], self.axes, THETA)
        mask = cut.filled(jnp.ones(text_BLD.shape[:2], bool)) if cut.parts > 1 else None
        return self.velocity(params, text, picture, condition, turn, way, mask)

    def entrance(self) -> Shapes:
        """Of latents and text."""
        yield from linear_shapes("x_embedder", self.channels, self.width)
        yield from linear_shapes("context_embedder", self.text_width, self.width)
