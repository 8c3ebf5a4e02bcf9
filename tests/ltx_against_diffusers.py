"""LTX-2's autoencoders and vocoder with random weights, here and in diffusers, where recorded numbers do not reach.

    python -m tests.ltx_against_diffusers DIR            # here: writes folders, inputs, and what comes of them
    python tests/ltx_against_diffusers.py DIR theirs     # where torch and diffusers are: prints differences

In float32; a difference is the largest of an array's numbers over the largest.
"""

import json
import pathlib
import sys

import numpy as np

KINDS = ["spatial", "temporal", "spatiotemporal", "spatiotemporal"]
LATER = {
    "block_out_channels": [8, 8, 16, 16], "layers_per_block": [1, 2, 1, 1, 2], "latent_channels": 4, "patch_size": 2,
    "downsample_type": KINDS, "decoder_block_out_channels": [8, 16, 16, 32], "decoder_layers_per_block": [1, 1, 2, 1, 1],
    "decoder_spatio_temporal_scaling": [True] * 4, "decoder_inject_noise": [False] * 5, "upsample_residual": [False] * 4,
    "upsample_type": ["spatiotemporal", "spatiotemporal", "temporal", "spatial"], "upsample_factor": [2, 2, 1, 2],
    "decoder_causal": False, "decoder_spatial_padding_mode": "zeros", "spatial_compression_ratio": 16,
    "temporal_compression_ratio": 8,
}  # fmt: skip
PAST = LATER | {"upsample_residual": [True, False, True, True], "encoder_causal": False, "decoder_causal": True,
                "encoder_spatial_padding_mode": "reflect", "decoder_spatial_padding_mode": "reflect"}  # fmt: skip
MEL = {"base_channels": 12, "ch_mult": [1, 3, 2], "num_res_blocks": 2, "latent_channels": 3, "mel_bins": 16}
VOICE = {"in_channels": 32, "hidden_channels": 16, "upsample_kernel_sizes": [7, 3, 5], "upsample_factors": [3, 3, 2],
         "resnet_kernel_sizes": [3, 5], "resnet_dilations": [[1, 2], [1, 3, 4]],
         "leaky_relu_negative_slope": 0.2}  # fmt: skip
# Class, settings, and size and stride of tiles of sides (0: not cut).
CASES = {
    "vae later": ("AutoencoderKLLTX2Video", LATER, (0, 0)),
    "vae past": ("AutoencoderKLLTX2Video", PAST, (0, 0)),
    "vae in tiles": ("AutoencoderKLLTX2Video", LATER, (64, 32)),
    "audio_vae": ("AutoencoderKLLTX2Audio", MEL, (0, 0)),
    "vocoder": ("LTX2Vocoder", VOICE, (0, 0)),
}  # fmt: skip


def ours(out: pathlib.Path) -> None:
    """Writes a folder for each case, and DIR/arrays.npz."""
    import dataclasses
    import os

    from tests.quick import FLAGS

    os.environ.setdefault("XLA_FLAGS", FLAGS)  # compiling is most of the time
    import jax

    from unigrpo_jax.models.autoencoders import diffusers_ltx as folders
    from unigrpo_jax.models.autoencoders.tiles import Tiles
    from unigrpo_jax.models.folders import component
    from unigrpo_jax.models.folders.toys import save_weights

    jax.config.update("jax_default_matmul_precision", "highest")
    readers = {"AutoencoderKLLTX2Video": folders.read_video_autoencoder, "LTX2Vocoder": folders.read_vocoder,
               "AutoencoderKLLTX2Audio": folders.read_mel_autoencoder}  # fmt: skip
    rng, arrays = np.random.default_rng(3), {}
    for name, (kind, config, (size, stride)) in CASES.items():
        folder = out / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"_class_name": kind} | config))
        network = readers[kind](folder / "config.json", "a config.json")
        save_weights(folder, component.DIFFUSERS, network.shapes(), seed=5)
        weights = component.open_weights(folder, component.DIFFUSERS, network)
        # Means of 0 and deviations of 1: that class's verbs do not normalise.
        params = component.read(weights, network, np.float32) | {
            own: np.full(network.shapes()[own], value, np.float32)
            for own, value in (("latents_mean", 0), ("latents_std", 1)) if own in network.shapes()
        }  # fmt: skip
        if kind == "LTX2Vocoder":
            mel = rng.standard_normal((1, 6, 16, 2)).astype(np.float32)
            found = {"mel": mel, "sound": np.asarray(jax.jit(network.waveform)(params, mel))}
        elif kind == "AutoencoderKLLTX2Audio":
            mel = rng.standard_normal((1, 15, 16, 2)).astype(np.float32)
            mean, log_variance = jax.jit(network.moments)(params, mel)
            z = np.swapaxes(np.asarray(mean), 2, 3)
            found = {"mel": mel, "mean": mean, "log-variance": log_variance,
                     "decoded": jax.jit(network.decode)(params, z.reshape(*z.shape[:2], -1))}  # fmt: skip
        else:
            network = dataclasses.replace(network, side_tiles=Tiles(size=size, stride=stride) if size else None)
            sides = (96, 80) if size else (32, 48)
            clip = rng.uniform(-1, 1, (1, 9, *sides, 3)).astype(np.float32)
            mean, log_variance = jax.jit(network.moments)(params, clip)
            decoded = jax.jit(network.decode)(params, mean)
            found = {"clip": clip, "mean": mean, "log-variance": log_variance, "decoded": decoded}
        arrays |= {f"{name}/{what}": np.moveaxis(np.asarray(array), -1, 1) for what, array in found.items()}
    np.savez(out / "arrays.npz", **arrays)


def theirs(out: pathlib.Path) -> None:
    """Prints how far diffusers' numbers are from ours."""
    import diffusers
    import torch
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

    arrays = np.load(out / "arrays.npz")
    for name, (kind, _, (size, stride)) in CASES.items():
        given = lambda what, name=name: torch.from_numpy(arrays[f"{name}/{what}"])
        network = getattr(diffusers, kind, LTX2Vocoder).from_pretrained(out / name).eval()
        if size:
            network.enable_tiling(size, size, None, stride, stride)
        with torch.no_grad():
            if kind == "LTX2Vocoder":
                found = {"sound": network(given("mel"))}
            else:
                posterior = network.encode(given("mel" if kind.endswith("Audio") else "clip")).latent_dist
                decoded = network.decode(given("mean")).sample
                found = {"mean": posterior.mean, "log-variance": posterior.logvar, "decoded": decoded}
        for what, own in found.items():
            own, mine = own.numpy(), arrays[f"{name}/{what}"]
            own = own[:, : mine.shape[1]] if what == "log-variance" else own  # one channel for all there is repeated
            print(f"{name:14} {what:14} {np.abs(own - mine).max() / np.abs(own).max():.1e}")


if __name__ == "__main__":
    (theirs if sys.argv[2:] == ["theirs"] else ours)(pathlib.Path(sys.argv[1]))
