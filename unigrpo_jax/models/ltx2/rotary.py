"""Rotary embedding by places along axes, where all heads of an attention turn by angles of their own.

A token has one place on each of A axes, p of the axis' length.  The D numbers of all heads together are D / 2 planes;

    plane i A + axis turns by (2 p - 1) f_i,    f_i = theta^(i / (n - 1)) pi / 2,    i < n = D // (2 A)

and as many planes as are left, D / 2 - n A, stand in front and do not turn.

With a theta of 10000 the largest angle is about 15708, where the next float32 is 1e-3 away: angles are formed on the host,
each operation in float32 and in the order of the public programs, so that the tables are theirs.

Letters: B samples, L tokens, D numbers of all heads.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from unigrpo_jax.models.building.token_cut import TokenCut

# Which two numbers are a plane: those with the same place in the two halves of a head, heads one after the other; or two
# neighbours.
Layout = Literal["split", "interleaved"]


@dataclasses.dataclass(frozen=True)
class Turn:
    """How the tokens of one sequence turn.

    Attributes:
      cos: float32 [L, D / 2], a cosine for each plane.
      sin: the sines.
      heads: of the attention.
      layout: of the planes.
    """

    cos: Any
    sin: Any
    heads: int
    layout: Layout

    def cut(self, tokens: TokenCut) -> "Turn":
        """The same of tokens that are cut over devices; what they are filled up with becomes 0."""
        cos, sin = (table if tokens.parts == 1 else tokens.entering(table[None])[0] for table in (self.cos, self.sin))
        return dataclasses.replace(self, cos=cos, sin=sin)

    def of(self, x_BLD):
        """Queries or keys, turned in float32; x's dtype."""
        b, length, width = x_BLD.shape
        x = x_BLD.astype(jnp.float32)
        # The heads that planes are counted in, and the axis of a plane's two numbers.
        heads, axis = (self.heads, -2) if self.layout == "split" else (1, -1)
        size = width // (2 * heads)
        pair = (2, size) if self.layout == "split" else (size, 2)
        first, second = (jnp.squeeze(part, axis) for part in jnp.split(x.reshape(b, length, heads, *pair), 2, axis))
        cos, sin = (part.reshape(1, length, heads, size) for part in (self.cos, self.sin))
        out = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis)
        return out.reshape(x.shape).astype(x_BLD.dtype)


def frequencies(width: int, axes: int, theta: float) -> np.ndarray:
    """f_i of a width D, float32 [n]; a power in float64."""
    return (theta ** np.linspace(0.0, 1.0, width // (2 * axes), dtype=np.float64) * np.pi / 2.0).astype(np.float32)


def turn(places: Sequence[np.ndarray], width: int, theta: float, heads: int, layout: Layout) -> Turn:
    """Of tokens that fill a grid, the first axis slowest.

    A program holds one small table for each axis, and spreads them over the tokens as it runs: those of a long video are
    many megabytes.

    Args:
      places: for each axis, float32 [its places], p of each of them.
      width: D.
      theta: base of the frequencies.
      heads: of the attention.
      layout: of the planes.
    """
    grid, own = tuple(map(len, places)), frequencies(width, len(places), theta)
    angles = [(p[:, None] * np.float32(2) - np.float32(1)) * own[None] for p in places]
    out = []
    for part, still in ((np.cos, 1.0), (np.sin, 0.0)):
        tables = []
        for axis, angle in enumerate(angles):
            others = [other for other in range(len(grid)) if other != axis]
            table = np.expand_dims(part(angle.astype(np.float64)).astype(np.float32), others)
            tables.append(jnp.broadcast_to(table, (*grid, len(own))))
        turning = jnp.stack(tables, axis=-1).reshape(math.prod(grid), len(own) * len(grid))
        pad = width // 2 - turning.shape[1]
        out.append(jnp.pad(turning, ((0, 0), (pad, 0)), constant_values=still))
    return Turn(*out, heads=heads, layout=layout)
