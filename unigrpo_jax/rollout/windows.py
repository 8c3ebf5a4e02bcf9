"""Which transitions of a drawing are stochastic and trained: W of them, the same for all episodes of an iteration."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

Kind = Literal["contiguous", "random", "sliding"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """A rule that picks W transitions inside [first, end).

    | kind | which | source |
    |---|---|---|
    | contiguous | W in a row; the start is uniform over {first, ..., end - W} | Flow-GRPO-Fast (arXiv 2505.05470) |
    | random | any W, each subset as likely as the next | DanceGRPO (arXiv 2505.07818) |
    | sliding | W in a row; moves on by `stride` every `every` iterations, and begins anew behind its end | MixGRPO |

    MixGRPO is arXiv 2507.21802; it moves from noise to data, as here.

    Attributes:
      size: W.
      range: [first, end).
      kind: see above.
      every: iterations that a sliding window rests.
      stride: transitions that it moves on by.
    """

    size: int
    range: tuple[int, int]
    kind: Kind = "contiguous"
    every: int = 25
    stride: int = 1

    def __post_init__(self):
        first, end = self.range
        if not (first >= 0 and 1 <= self.size <= end - first):
            raise ValueError(
                f"An SDE window of {self.size} transitions does not fit into the range [{first}, {end}), "
                f"which holds {max(end - first, 0)}. Use a size from 1 to {end - first} or a wider range."
                if 0 <= first < end
                else f"The range [{first}, {end}) of the SDE window is empty or negative. Use 0 <= first < end."
            )

    def draw(self, key: jax.Array, step) -> jax.Array:
        """Increasing indices int32 [W] in iteration `step`, an integer scalar from 0 on; `key` is not used by `sliding`."""
        first, end = self.range
        if self.kind == "random":
            return jnp.sort(jax.random.permutation(key, jnp.arange(first, end, dtype=jnp.int32))[: self.size])
        last = end - self.size
        if self.kind == "sliding":
            starts = -(-(last - first + 1) // self.stride)
            start = first + jnp.asarray(step, jnp.int32) // self.every % starts * self.stride
        else:
            start = jax.random.randint(key, (), first, last + 1, dtype=jnp.int32)
        return start + jnp.arange(self.size, dtype=jnp.int32)
