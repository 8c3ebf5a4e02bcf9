"""Which axis of which parameter of the transformer is what, for `parallel.rules`.

`embed` is the width of a branch, `heads` that of an attention; what times say is cut like an MLP's inside.
"""

from unigrpo_jax.models.building.flat_axes import linear_axes

_BLOCK, _BRANCH = r"transformer_blocks", r"(?:audio_)?"
_ATTENTION = rf"{_BLOCK}\.(?:{_BRANCH}attn[12]|audio_to_video_attn|video_to_audio_attn)"
_TELLS = r"(?:(?:audio_)?(?:time_embed|prompt_adaln)|av_cross_attn_(?:video|audio)_(?:scale_shift|a2v_gate|v2a_gate))"

AXES = (
    *linear_axes(rf"{_BRANCH}proj_in|{_BRANCH}caption_projection\.linear_1", "embed", None),
    *linear_axes(rf"{_BRANCH}caption_projection\.linear_2", None, "embed"),
    *linear_axes(rf"{_TELLS}\.emb\.(?:timestep|gap)_embedder\.linear_1", "embed", None),
    *linear_axes(rf"{_TELLS}\.emb\.(?:timestep|gap)_embedder\.linear_2", None, "embed"),
    *linear_axes(rf"{_TELLS}\.linear", "mlp", "embed"),
    *linear_axes(rf"{_ATTENTION}\.(?:to_[qkv]|to_gate_logits)", "heads", "embed", stacked=True),
    *linear_axes(rf"{_ATTENTION}\.to_out\.0", "embed", "heads", stacked=True),
    (rf"{_ATTENTION}\.norm_[qk]\.weight", (None, "heads")),
    *linear_axes(rf"{_BLOCK}\.{_BRANCH}ff\.net\.0\.proj", "mlp", "embed", stacked=True),
    *linear_axes(rf"{_BLOCK}\.{_BRANCH}ff\.net\.2", "embed", "mlp", stacked=True),
    (rf"{_BLOCK}\.(?:audio_|prompt_|audio_prompt_|(?:video|audio)_a2v_cross_attn_)?scale_shift_table", (None, None, None)),
    (rf"{_BRANCH}scale_shift_table", (None, None)),
    *linear_axes(rf"{_BRANCH}proj_out", None, "embed"),
)
