"""Which axis of which parameter of the transformer is what, for `parallel.rules`."""

from unigrpo_jax.models.building import two_streams_axes
from unigrpo_jax.models.building.flat_axes import linear_axes

AXES = (*linear_axes(r"x_embedder|context_embedder", "embed", None), *two_streams_axes.AXES)
