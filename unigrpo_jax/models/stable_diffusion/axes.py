"""Which axis of which parameter of the U-Net is what, for `parallel.rules`.

`embed` is channels of the pixels that blocks are added to, and of what is read to modulate them; `mlp` is channels between
the two convolutions of a residual block, and the inside of an attention's MLP.
"""

from unigrpo_jax.models.building.flat_axes import convolution_axes, linear_axes, norm_axes

_RESNET, _LAYER = r".*\.resnets\.\d+", r".*\.attentions\.\d+\.transformer_blocks\.0"

AXES = (
    *linear_axes(r"time_embedding\.linear_1", "embed", None),
    *linear_axes(r"time_embedding\.linear_2", None, "embed"),
    *convolution_axes(r"conv_in|.*\.(?:down|up)samplers\.0\.conv|.*\.attentions\.\d+\.proj_(?:in|out)", "embed", None),
    *convolution_axes(r"conv_out", None, "embed"),
    *norm_axes(rf"conv_norm_out|{_RESNET}\.norm1|.*\.attentions\.\d+\.norm|{_LAYER}\.norm[123]", "embed"),
    *convolution_axes(rf"{_RESNET}\.conv1", "mlp", "embed"),
    *linear_axes(rf"{_RESNET}\.time_emb_proj", "mlp", "embed"),
    *norm_axes(rf"{_RESNET}\.norm2", "mlp"),
    *convolution_axes(rf"{_RESNET}\.conv2", "embed", "mlp"),
    *convolution_axes(rf"{_RESNET}\.conv_shortcut", "embed", None),
    *linear_axes(rf"{_LAYER}\.attn[12]\.to_[qkv]", "heads", "embed", bias=False),
    *linear_axes(rf"{_LAYER}\.attn[12]\.to_out\.0", "embed", "heads"),
    *linear_axes(rf"{_LAYER}\.ff\.net\.0\.proj", "mlp", "embed"),
    *linear_axes(rf"{_LAYER}\.ff\.net\.2", "embed", "mlp"),
)
