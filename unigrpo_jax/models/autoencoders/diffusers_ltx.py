"""LTX-2's autoencoders and its vocoder in diffusers' folders: what each `config.json` describes.

Their weights are opened, read and written by `folders.component`, under the names that the networks say.
"""

import math
import pathlib
from collections.abc import Sequence

from unigrpo_jax.models.autoencoders.ltx_video import Half, Level, LTXVideoAutoencoder
from unigrpo_jax.models.autoencoders.mel_audio import EVERY, LEVELS, MelAutoencoder
from unigrpo_jax.models.autoencoders.vocoder import Stage, Vocoder
from unigrpo_jax.models.folders.settings import MOST_LAYERS, Settings, read_settings

_ABOUT = {"_diffusers_version", "_name_or_path"}
_NULLS = {*_ABOUT, "attn_resolutions", "spatial_compression_ratio", "temporal_compression_ratio"}  # by default
_STEPS = {"spatial": (1, 2, 2), "temporal": (2, 1, 1), "spatiotemporal": (2, 2, 2)}
_EDGES = {"zeros": "constant", "reflect": "reflect"}

_VIDEO_ONLY = {"_class_name": ("AutoencoderKLLTX2Video",), "in_channels": (3,), "out_channels": (3,), "patch_size_t": (1,),
               "timestep_conditioning": (False,)}  # fmt: skip
VIDEO_KNOWN = {
    *_VIDEO_ONLY, *_ABOUT, "block_out_channels", "decoder_block_out_channels", "decoder_causal", "decoder_inject_noise",
    "decoder_layers_per_block", "decoder_spatial_padding_mode", "decoder_spatio_temporal_scaling", "down_block_types",
    "downsample_type", "encoder_causal", "encoder_spatial_padding_mode", "latent_channels", "layers_per_block",
    "patch_size", "resnet_norm_eps", "scaling_factor", "spatial_compression_ratio", "spatio_temporal_scaling",
    "temporal_compression_ratio", "upsample_factor", "upsample_residual", "upsample_type",
}  # fmt: skip

_MEL_ONLY = {"_class_name": ("AutoencoderKLLTX2Audio",), "attn_resolutions": ([],), "causality_axis": ("height",),
             "double_z": (True,), "is_causal": (True,), "mid_block_add_attention": (False,),
             "norm_type": ("pixel",)}  # fmt: skip
MEL_KNOWN = {*_MEL_ONLY, *_ABOUT, "base_channels", "ch_mult", "dropout", "in_channels", "latent_channels", "mel_bins",
             "mel_hop_length", "num_res_blocks", "output_channels", "resolution", "sample_rate"}  # fmt: skip

_VOCODER_ONLY = {"_class_name": ("LTX2Vocoder",), "act_fn": ("leaky_relu",), "antialias": (False,),
                 "final_act_fn": ("tanh",), "final_bias": (True,)}  # fmt: skip
VOCODER_KNOWN = {
    *_VOCODER_ONLY, *_ABOUT, "antialias_kernel_size", "antialias_ratio", "hidden_channels", "in_channels",
    "leaky_relu_negative_slope", "out_channels", "output_sampling_rate", "resnet_dilations", "resnet_kernel_sizes",
    "upsample_factors", "upsample_kernel_sizes",
}  # fmt: skip


def read_video_autoencoder(path: pathlib.Path, files: str) -> LTXVideoAutoencoder:
    """The autoencoder that `vae/config.json` describes; ValueError where it is none or asks for what is not built.

    It cuts no tiles, as that class does not unless told to.  `files` says what the folder holds, for messages.
    """
    found = _settings(path, files, _VIDEO_ONLY, VIDEO_KNOWN)
    channels = found.whole("latent_channels", 128)
    encoder, decoder = _encoder(found, channels), _decoder(found)
    if encoder.step != decoder.step:
        raise found.error("upsample_type", f"the encoder divides frames, rows and columns by {encoder.step} and the decoder "
                          f"multiplies them by {decoder.step}; both must be the same")  # fmt: skip
    patch = found.whole("patch_size", 4)
    found.only("spatial_compression_ratio", patch * encoder.step[1])
    found.only("temporal_compression_ratio", encoder.step[0])
    return LTXVideoAutoencoder(
        channels=channels,
        patch=patch,
        encoder=encoder,
        decoder=decoder,
        scale=found.positive("scaling_factor", 1.0),
    )


def _encoder(found: Settings, channels: int) -> Half:
    widths = found.wholes("block_out_channels", (256, 512, 1024, 2048))
    kind = "LTX2VideoDownBlock3D"
    _as_many(found, "down_block_types", found.words("down_block_types", [kind] * len(widths), kind), len(widths))
    _always(found, "spatio_temporal_scaling", True, len(widths))
    *blocks, middle = _layers(found, "layers_per_block", (4, 6, 6, 2, 2), len(widths) + 1)
    steps = _steps(found, "downsample_type", ("spatial", "temporal", "spatiotemporal", "spatiotemporal"), len(widths))
    before = channels
    for width, step in zip(widths, steps, strict=True):
        moved = math.prod(step)
        if width % moved or before * moved % width:
            raise found.error("block_out_channels", f"{width} behind {before} must divide by the {moved} pixels that are "
                              f"moved into channels there, and divide {before * moved}")  # fmt: skip
        before = width
    levels = [Level(blocks=own, width=width, step=step) for own, width, step in zip(blocks, widths, steps, strict=True)]
    return Half(
        width=channels,
        levels=tuple(levels),
        middle=middle,
        causal=found.flag("encoder_causal", True),
        edges=_EDGES[found.word("encoder_spatial_padding_mode", "zeros", *_EDGES)],
    )


def _decoder(found: Settings) -> Half:
    """All its lists but `upsample_type` begin at the pixels, as that class has them."""
    widths = found.wholes("decoder_block_out_channels", (256, 512, 1024))[::-1]
    _always(found, "decoder_spatio_temporal_scaling", True, len(widths))
    _always(found, "decoder_inject_noise", False, len(widths) + 1)
    middle, *blocks = _layers(found, "decoder_layers_per_block", (5, 5, 5, 5), len(widths) + 1)[::-1]
    steps = _steps(found, "upsample_type", ("spatiotemporal",) * 3, len(widths))
    factors = found.wholes("upsample_factor", (2, 2, 2))[::-1]
    _as_many(found, "upsample_factor", factors, len(widths))
    past = found.flags("upsample_residual", True, len(widths))[::-1]
    levels, before = [], widths[0]
    for own, width, step, factor, moved in zip(blocks, widths, steps, factors, past, strict=True):
        if width != before or width % factor:
            raise found.error("decoder_block_out_channels", f"from its end, each must divide by its entry of "
                              f"upsample_factor, and the next must be what comes of that; {width} is not so")  # fmt: skip
        before = width // factor
        if moved and (width % math.prod(step) or math.prod(step) % factor):
            raise found.error("upsample_residual", f"{width} channels do not become {before} by moving {math.prod(step)} "
                              "pixels out of them and repeating them")  # fmt: skip
        levels.append(Level(blocks=own, width=before, step=step, past=moved))
    return Half(
        width=widths[0],
        levels=tuple(levels),
        middle=middle,
        causal=found.flag("decoder_causal", True),
        edges=_EDGES[found.word("decoder_spatial_padding_mode", "reflect", *_EDGES)],
    )


def read_mel_autoencoder(path: pathlib.Path, files: str) -> MelAutoencoder:
    """The autoencoder that `audio_vae/config.json` describes; ValueError where it is none or asks for what is not built."""
    found = _settings(path, files, _MEL_ONLY, MEL_KNOWN)
    multipliers = found.wholes("ch_mult", (1, 2, 4))
    _as_many(found, "ch_mult", multipliers, LEVELS, "levels, of which two halve the frames")
    bins, channels = found.whole("mel_bins", 64), found.whole("latent_channels", 8)
    if bins % EVERY:
        raise found.error("mel_bins", f"it must be a multiple of {EVERY}")
    sides = found.whole("in_channels", 2)
    if sides != found.whole("output_channels", 2):
        raise found.error("output_channels", f"it must be in_channels, {sides}")
    autoencoder = MelAutoencoder(
        width=found.whole("base_channels", 128),
        multipliers=multipliers,
        blocks=found.layers("num_res_blocks", 2),
        channels=channels,
        sides=sides,
        bins=bins,
        rate=found.whole("sample_rate", 16000),
        hop=found.whole("mel_hop_length", 160),
    )
    if autoencoder.width != autoencoder.numbers:  # that class makes as many statistics as it has channels
        raise found.error("base_channels", f"latents have latent_channels * mel_bins / 4 = {autoencoder.numbers} numbers, "
                          "and there must be as many statistics")  # fmt: skip
    return autoencoder


def read_vocoder(path: pathlib.Path, files: str) -> Vocoder:
    """The vocoder that `vocoder/config.json` describes; ValueError where it is none or asks for what is not built."""
    found = _settings(path, files, _VOCODER_ONLY, VOCODER_KNOWN)
    factors = found.wholes("upsample_factors", (6, 5, 2, 2, 2))
    kernels = found.wholes("upsample_kernel_sizes", (16, 15, 8, 4, 4))
    _as_many(found, "upsample_kernel_sizes", kernels, len(factors))
    for factor, kernel in zip(factors, kernels, strict=True):
        if kernel < factor:
            raise found.error("upsample_kernel_sizes", f"{kernel} is below {factor} of upsample_factors")
    width = found.whole("hidden_channels", 1024)
    if width % 2 ** len(factors):
        raise found.error("hidden_channels", f"it must divide by {2 ** len(factors)}, two for each of upsample_factors")
    sides = found.wholes("resnet_kernel_sizes", (3, 7, 11))
    dilations = found.lists("resnet_dilations", [[1, 3, 5]] * 3)
    _as_many(found, "resnet_dilations", dilations, len(sides))
    if any(side % 2 == 0 for side in sides):
        raise found.error("resnet_kernel_sizes", "this network knows only odd ones")
    return Vocoder(
        inputs=found.whole("in_channels", 128),
        width=width,
        stages=tuple(Stage(factor=factor, kernel=kernel) for factor, kernel in zip(factors, kernels, strict=True)),
        blocks=tuple(zip(sides, dilations, strict=True)),
        sides=found.whole("out_channels", 2),
        rate=found.whole("output_sampling_rate", 24000),
        slope=found.positive("leaky_relu_negative_slope", 0.1),
    )


def _settings(path: pathlib.Path, files: str, only: dict[str, tuple], known: set[str]) -> Settings:
    """The settings of a file; ValueError where one has another value than those of `only`, or null means another network."""
    found = read_settings(path, files)
    for name in sorted(found.nulls & (known - _NULLS)):
        raise found.error(name, "null is not the default and asks for what is not built; leave the name out for the default")
    for name, values in only.items():
        found.only(name, *values)
    return found


def _as_many(found: Settings, name: str, values: Sequence, count: int, what: str = "entries, one for each level") -> None:
    if len(values) != count:
        raise found.error(name, f"it must have {count} {what}")


def _always(found: Settings, name: str, value: bool, count: int) -> None:
    if any(own != value for own in found.flags(name, value, count)):
        raise found.error(name, f"this network knows only {value} in every level")


def _layers(found: Settings, name: str, default: Sequence[int], count: int) -> tuple[int, ...]:
    values = found.wholes(name, default)
    if len(values) != count or max(values) > MOST_LAYERS:
        raise found.error(name, f"it must have {count} entries, one more than there are levels, each at most {MOST_LAYERS}")
    return values


def _steps(found: Settings, name: str, default: Sequence[str], count: int) -> list[tuple[int, int, int]]:
    kinds = found.words(name, default, *_STEPS)
    _as_many(found, name, kinds, count)
    return [_STEPS[kind] for kind in kinds]
