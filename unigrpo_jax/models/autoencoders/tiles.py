"""Clips too large for a network at once, in overlapping tiles that are blended linearly, as diffusers does it.

Tiles are computed one after another, so that the memory of activations is one tile's, and in a gradient, too.  The result
is not that of the whole: a tile's norms see the tile alone, and its edges are made up.  Where it overlaps the tile before it
in n frames (rows, columns), number i of these is that tile's with weight 1 - i / n and its own with weight i / n.

x is [B, frames, rows, columns, channels], before the function and after it, in units of pixels on one side and of latents on
the other.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

Function = Callable[[jax.Array], jax.Array]
Place = tuple[tuple[int, int], ...]  # beginning and length along frames, rows and columns


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tiles:
    """How an axis is cut.

    Attributes:
      size: of a tile; what is no larger stays whole.
      stride: from one tile to the next.
    """

    size: int
    stride: int

    def __post_init__(self):
        """ValueError where tiles would leave gaps."""
        if not 1 <= self.stride <= self.size:
            raise ValueError(f"tiles of {self.size} every {self.stride} leave gaps; a stride is from 1 to the size.")

    @property
    def overlap(self) -> int:
        """What two neighbours share."""
        return self.size - self.stride

    def divided(self, by: int) -> "Tiles":
        """The same in units of so many; ValueError where it does not divide."""
        if self.size % by or self.stride % by:
            raise ValueError(f"tiles of {self.size} every {self.stride} are no whole latents; both are multiples of {by}.")
        return Tiles(size=self.size // by, stride=self.stride // by)


def over_clip(function: Function, x, frames: tuple[Tiles, Tiles] | None, sides: tuple[Tiles, Tiles] | None):
    """`function` of tiles of frames, each in tiles of rows and columns.

    `frames` and `sides` say how x is cut and how the result is, as `over_frames` has them; None is not at all.
    """
    if sides is not None:
        function = functools.partial(over_sides, function, read=sides[0], written=sides[1])
    return function(x) if frames is None else over_frames(function, x, *frames)


def over_frames(function: Function, x, read: Tiles, written: Tiles):
    """`function` of tiles of frames, where the first frame is one of its own before and after.

    A tile is one frame longer than `size`: its first one is context, which only the first tile keeps.

    Args:
      function: a tile to what comes of it.
      x: the whole.
      read: how x is cut.
      written: the same in units of the result.
    """
    frames, *sides = x.shape[1:4]
    if frames <= read.size:
        return function(x)
    whole = tuple((0, side) for side in sides)
    starts = range(0, frames - 1, read.stride)  # of the last frame alone nothing would be kept
    found = _each(function, x, [((start, min(read.size + 1, frames - start)), *whole) for start in starts])
    kept = [found[0], *(tile[:, 1:] for tile in found[1:])]
    for i in range(1, len(kept)):
        kept[i] = blended(kept[i - 1], kept[i], written.overlap, 1)
    ends = [written.stride + 1, *[written.stride] * (len(kept) - 1)]
    return jnp.concatenate([tile[:, :end] for tile, end in zip(kept, ends, strict=True)], axis=1)


def over_sides(function: Function, x, read: Tiles, written: Tiles):
    """`function` of tiles of rows and columns; arguments as of `over_frames`.

    Each tile is blended with the one above it, then with the one before it, both as they were left by their own blending.
    """
    frames, *sides = x.shape[1:4]
    if max(sides) <= read.size:
        return function(x)
    rows, columns = ([(start, min(read.size, side - start)) for start in range(0, side, read.stride)] for side in sides)
    found = iter(_each(function, x, [((0, frames), row, column) for row in rows for column in columns]))
    above, lines = [None] * len(columns), []
    for _ in rows:
        line = []
        for over in above:
            tile = next(found)
            tile = tile if over is None else blended(over, tile, written.overlap, 2)
            line.append(blended(line[-1], tile, written.overlap, 3) if line else tile)
        above = line
        lines.append(jnp.concatenate([tile[:, :, : written.stride, : written.stride] for tile in line], axis=3))
    return jnp.concatenate(lines, axis=2)


def blended(before, after, overlap: int, axis: int):
    """The later of two neighbouring tiles, its first `overlap` entries along an axis blended with the earlier's last ones.

    A tile at the end may be shorter than the overlap; then so is the overlap, and the two still end at one place.
    """
    overlap = min(overlap, before.shape[axis], after.shape[axis])
    weight = np.arange(overlap).reshape([-1 if i == axis else 1 for i in range(after.ndim)]) / max(overlap, 1)
    old = jax.lax.slice_in_dim(before, before.shape[axis] - overlap, None, axis=axis)
    new, rest = jnp.split(after, [overlap], axis=axis)
    mixed = old * (1 - weight).astype(np.float32) + new * weight.astype(np.float32)
    return jnp.concatenate([mixed, rest], axis=axis)


def _each(function: Function, x, places: Iterable[Place]) -> list[jax.Array]:
    """`function` of every part of x; those of one size are a loop, and compiled once."""
    sizes: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for place in places:
        starts, size = zip(*place, strict=True)
        sizes.setdefault(size, []).append(starts)
    function, found = jax.checkpoint(function), {}
    for size, starts in sizes.items():
        part = lambda start, size=size: jax.lax.dynamic_slice(x, (0, *start, 0), (x.shape[0], *size, x.shape[-1]))
        if len(starts) == 1:  # not as a loop of one turn: on CPU, convolutions in a loop are several times slower
            out = [function(part(starts[0]))]
        else:
            out = jax.lax.map(lambda start, part=part: function(part(tuple(start))), jnp.asarray(starts, jnp.int32))
        found |= {tuple(zip(start, size, strict=True)): y for start, y in zip(starts, out, strict=True)}
    return [found[place] for place in places]
