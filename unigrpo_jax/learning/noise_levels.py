"""Times at which a network is taught, spaced as its sampler's."""

import jax
import jax.numpy as jnp
import numpy as np

from unigrpo_jax.models.verbs import Painter

POINTS = 1000  # of the schedule whose shift times are given; between two of them it is a line


def shifted(u, model: Painter, shift: float, grid: tuple[float, ...]) -> jax.Array:
    """Times like u, float32 in (0, 1], of numbers in (0, 1) that are spaced as a sampler's times before the shift.

    A diffusion's are not shifted: they are the nearest of the steps that it was trained in.

    Args:
      u: float32.
      model: the network.
      shift: as `Painter.times` takes it.
      grid: of the latents.
    """
    steps = model.path.steps
    if steps:
        return jnp.maximum(jnp.round(u * steps), 1) / steps
    return jnp.interp(u, np.linspace(0, 1, POINTS + 1, dtype=np.float32), model.times(POINTS, shift, grid)[::-1])
