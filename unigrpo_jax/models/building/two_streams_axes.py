"""Which axis of which parameter of `two_streams` is what, for `parallel.rules`.

`embed` is the width of the streams; what modulates them is cut like an MLP's inside, since it is a third of all weights.
"""

from unigrpo_jax.models.building.flat_axes import linear_axes

_DOUBLE, _SINGLE = r"transformer_blocks", r"single_transformer_blocks"

# Of everything but a family's entrance.
AXES = (
    *linear_axes(r"time_text_embed\.[a-z]+_embedder\.linear_1", "embed", None),
    *linear_axes(r"time_text_embed\.[a-z]+_embedder\.linear_2", None, "embed"),
    *linear_axes(rf"{_DOUBLE}\.attn\.(?:to_[qkv]|add_[qkv]_proj)|{_SINGLE}\.attn\.to_[qkv]", "heads", "embed", stacked=True),
    *linear_axes(rf"{_DOUBLE}\.attn\.(?:to_out\.0|to_add_out)", "embed", "heads", stacked=True),
    (rf"(?:{_DOUBLE}|{_SINGLE})\.attn\.norm_(?:added_)?[qk]\.weight", (None, None)),
    *linear_axes(rf"{_DOUBLE}\.norm1(?:_context)?\.linear|{_SINGLE}\.norm\.linear", "mlp", "embed", stacked=True),
    *linear_axes(rf"{_DOUBLE}\.ff(?:_context)?\.net\.0\.proj|{_SINGLE}\.proj_mlp", "mlp", "embed", stacked=True),
    *linear_axes(rf"{_DOUBLE}\.ff(?:_context)?\.net\.2|{_SINGLE}\.proj_out", "embed", "mlp", stacked=True),
    *linear_axes(r"norm_out\.linear", "mlp", "embed"),
    *linear_axes(r"proj_out", None, "embed"),
)
