"""What `transformer/config.json` and `connectors/config.json` say, as diffusers' LTX-2 classes write them.

A name that is left out has the default of its class, which is that of LTX-2; but the layout of rotary embeddings and the
factors of times, of which released models have others than the classes and no weight would tell, must be said.
"""

import pathlib

from unigrpo_jax.models.folders.settings import Settings, read_settings
from unigrpo_jax.models.ltx2.branch import Branch
from unigrpo_jax.models.ltx2.connectors import Connector, LTX2Connectors
from unigrpo_jax.models.ltx2.positions import Positions
from unigrpo_jax.models.ltx2.rotary import Layout
from unigrpo_jax.models.ltx2.transformer import LTX2Transformer

FILES = "model_index.json, transformer, connectors, vae, audio_vae, vocoder, text_encoder, tokenizer and scheduler"
_ABOUT = {"_class_name", "_diffusers_version", "_name_or_path"}
# What would be another network, with the values that mean that it is not.
_ONLY = {
    "_class_name": ("LTX2VideoTransformer3DModel",),
    **dict.fromkeys(("patch_size", "patch_size_t", "audio_patch_size", "audio_patch_size_t"), (1,)),
    **dict.fromkeys(("attention_bias", "attention_out_bias", "ff_bias", "audio_ff_bias"), (True,)),
    "activation_fn": ("gelu-approximate",),
    "qk_norm": ("rms_norm_across_heads",),
    "norm_elementwise_affine": (False,),
    "norm_eps": (1e-6,),
    "rope_double_precision": (True,),
    "use_keyframes_abs_pos_embedding": (False,),
}
KNOWN = _ABOUT | set(_ONLY) | {
    "in_channels", "out_channels", "num_attention_heads", "attention_head_dim", "cross_attention_dim", "vae_scale_factors",
    "pos_embed_max_pos", "base_height", "base_width", "gated_attn", "cross_attn_mod", "audio_in_channels",
    "audio_out_channels", "audio_num_attention_heads", "audio_attention_head_dim", "audio_cross_attention_dim",
    "audio_scale_factor", "audio_pos_embed_max_pos", "audio_sampling_rate", "audio_hop_length", "audio_gated_attn",
    "audio_cross_attn_mod", "num_layers", "caption_channels", "rope_theta", "rope_type", "causal_offset",
    "timestep_scale_multiplier", "cross_attn_timestep_scale_multiplier", "use_prompt_embeddings", "perturbed_attn",
    "use_prompt_adaln_single"}  # fmt: skip
_CONNECTORS_ONLY = {
    "_class_name": ("LTX2TextConnectors",),
    "rope_double_precision": (True,),
    "causal_temporal_positioning": (False,),
}
CONNECTORS_KNOWN = _ABOUT | set(_CONNECTORS_ONLY) | {
    "caption_channels", "text_proj_in_factor", "connector_rope_base_seq_len", "rope_theta", "rope_type",
    "per_modality_projections", "proj_bias",
    *(f"{name}_{what}" for name in ("video", "audio") for what in (
        "gated_attn", "hidden_dim", *(f"connector_{size}" for size in (
            "num_attention_heads", "attention_head_dim", "num_layers", "num_learnable_registers"))))}  # fmt: skip


def read_transformer(path: pathlib.Path) -> LTX2Transformer:
    """The network that a file describes; ValueError, in one sentence, where it is none or asks for what is not built."""
    found = read_settings(path, FILES)
    for name, values in _ONLY.items():
        found.only(name, *values)
    video = _branch(found, "video", 128)
    audio = _branch(found, "audio", 64)
    if found.flag("cross_attn_mod", False) or found.flag("audio_cross_attn_mod", False):
        found.only("use_prompt_adaln_single", True)
    layout = _layout(found)
    if layout == "split" and video.heads != audio.heads:
        raise found.error("audio_num_attention_heads", f"it must be num_attention_heads = {video.heads} where rope_type is "
                          "split")  # fmt: skip
    scales = found.wholes("vae_scale_factors", (8, 32, 32))
    if len(scales) != 3:
        raise found.error("vae_scale_factors", "it must be three: frames, rows and columns")
    factors = [_said(found, name) for name in ("cross_attn_timestep_scale_multiplier", "timestep_scale_multiplier")]
    return LTX2Transformer(
        video=video,
        audio=audio,
        layers=found.layers("num_layers", 48),
        text_width=found.whole("caption_channels", 3840) if found.flag("use_prompt_embeddings", True) else None,
        layout=layout,
        gate_factor=factors[0] / factors[1],
        theta=found.positive("rope_theta", 10000.0),
        positions=Positions(
            scales=scales,
            causal=found.count("causal_offset", 1),
            seconds=found.whole("pos_embed_max_pos", 20),
            rows=found.whole("base_height", 2048),
            columns=found.whole("base_width", 2048),
            sound_scale=found.whole("audio_scale_factor", 4),
            sound_hop=found.whole("audio_hop_length", 160),
            sound_rate=found.whole("audio_sampling_rate", 16000),
            sound_seconds=found.whole("audio_pos_embed_max_pos", 20),
        ),
        perturbed=found.flag("perturbed_attn", False),
    )


def read_connectors(path: pathlib.Path) -> LTX2Connectors:
    """The connectors that a file describes; ValueError likewise."""
    found = read_settings(path, FILES)
    for name, values in _CONNECTORS_ONLY.items():
        found.only(name, *values)
    width, each = found.whole("caption_channels", 3840), found.flag("per_modality_projections", False)
    video, audio = (_connector(found, name) for name in ("video", "audio"))
    for name, own, default in (("video", video, 4096), ("audio", audio, 2048)):
        wanted = found.whole(f"{name}_hidden_dim", default) if each else width
        if own.width != wanted:
            raise found.error(f"{name}_connector_num_attention_heads", f"with {name}_connector_attention_head_dim = "
                              f"{own.head_dim} it must make the {wanted} numbers that are projected to")  # fmt: skip
    return LTX2Connectors(
        text_width=width,
        states=found.layers("text_proj_in_factor", 49),
        video=video,
        audio=audio,
        layout=_layout(found),
        positions=found.whole("connector_rope_base_seq_len", 4096),
        theta=found.positive("rope_theta", 10000.0),
        each=each,
        bias=found.flag("proj_bias", False),
    )


def _branch(found: Settings, modality: str, head_dim: int) -> Branch:
    """One branch; ValueError where its output or its text has another width than the network takes."""
    pre = "" if modality == "video" else "audio_"
    channels, heads = found.whole(f"{pre}in_channels", 128), found.whole(f"{pre}num_attention_heads", 32)
    found.only(f"{pre}out_channels", channels)
    own = found.whole(f"{pre}attention_head_dim", head_dim)
    if own % 2:
        raise found.error(f"{pre}attention_head_dim", "it must be even: two numbers turn together")
    if found.whole(f"{pre}cross_attention_dim", 32 * head_dim) != heads * own:
        raise found.error(f"{pre}cross_attention_dim", f"it must be the branch's width, {heads} x {own} = {heads * own}")
    return Branch(
        modality=modality,
        channels=channels,
        heads=heads,
        head_dim=own,
        gated=found.flag(f"{pre}gated_attn", False),
        times_text=found.flag(f"{pre}cross_attn_mod", False),
    )


def _connector(found: Settings, modality: str) -> Connector:
    sizes = lambda what, default: found.whole(f"{modality}_connector_{what}", default)
    registers = f"{modality}_connector_num_learnable_registers"
    head_dim = sizes("attention_head_dim", 128)
    if head_dim % 2:
        raise found.error(f"{modality}_connector_attention_head_dim", "it must be even: two numbers turn together")
    return Connector(
        layers=found.layers(f"{modality}_connector_num_layers", 2),
        heads=sizes("num_attention_heads", 30),
        head_dim=head_dim,
        registers=None if registers in found.nulls else found.whole(registers, 128),
        gated=found.flag(f"{modality}_gated_attn", False),
    )


def _layout(found: Settings) -> Layout:
    if "rope_type" not in found:
        raise found.error("rope_type", "it must be said, since no weight tells it: split or interleaved")
    return found.word("rope_type", "", "split", "interleaved")


def _said(found: Settings, name: str) -> float:
    if name not in found:
        raise found.error(name, "it must be said, since no weight tells it; released models have 1000")
    return found.positive(name, 0.0)
