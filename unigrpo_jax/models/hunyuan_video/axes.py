"""Which axis of which parameter of the transformer is what, for `parallel.rules`."""

from unigrpo_jax.models.building import two_streams_axes
from unigrpo_jax.models.building.flat_axes import linear_axes

_TEXT = r"context_embedder"
_REFINER = rf"{_TEXT}\.token_refiner\.refiner_blocks"

AXES = (
    (r"x_embedder\.proj\.weight", ("embed", None, None, None, None)),
    (r"x_embedder\.proj\.bias", ("embed",)),
    *linear_axes(rf"{_TEXT}\.proj_in|{_TEXT}\.time_text_embed\.[a-z]+_embedder\.linear_1", "embed", None),
    *linear_axes(rf"{_TEXT}\.time_text_embed\.[a-z]+_embedder\.linear_2", None, "embed"),
    *linear_axes(rf"{_REFINER}\.attn\.to_[qkv]", "heads", "embed", stacked=True),
    *linear_axes(rf"{_REFINER}\.attn\.to_out\.0", "embed", "heads", stacked=True),
    *linear_axes(rf"{_REFINER}\.(?:norm_out\.linear|ff\.net\.0\.proj)", "mlp", "embed", stacked=True),
    *linear_axes(rf"{_REFINER}\.ff\.net\.2", "embed", "mlp", stacked=True),
    (rf"{_REFINER}\.norm[12]\.(?:weight|bias)", (None, None)),
    *two_streams_axes.AXES,
)
