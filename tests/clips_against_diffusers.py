"""HunyuanVideo's autoencoder with random weights, here and in diffusers: clips above a tile, and pictures in tiles.

    python -m tests.clips_against_diffusers DIR            # here: writes a folder, clips and latents, and what comes of them
    python tests/clips_against_diffusers.py DIR theirs     # where torch and diffusers are: prints differences

In float32; a difference is the largest of an array's numbers over the largest.
"""

import pathlib
import sys

import numpy as np

# Frames, height and width; size and stride of tiles of frames, and of sides (0: not cut).
CASES = {"frames, as by default": ((29, 8, 16), (16, 12), (0, 0)), "rows and columns": ((1, 24, 32), (16, 12), (16, 8))}


def ours(out: pathlib.Path) -> None:
    """Writes DIR/vae and DIR/clips.npz."""
    import dataclasses
    import json

    import jax

    from unigrpo_jax.models.autoencoders import diffusers_video as folders
    from unigrpo_jax.models.autoencoders.tiles import Tiles
    from unigrpo_jax.models.folders import component
    from unigrpo_jax.models.folders.toys import save_weights

    jax.config.update("jax_default_matmul_precision", "highest")
    folder, rng, arrays = out / "vae", np.random.default_rng(3), {}
    folder.mkdir(parents=True)
    config = {"_class_name": "AutoencoderKLHunyuanVideo", "block_out_channels": [4, 8, 8], "layers_per_block": 1,
              "down_block_types": ["HunyuanVideoDownBlock3D"] * 3, "up_block_types": ["HunyuanVideoUpBlock3D"] * 3,
              "latent_channels": 4, "norm_num_groups": 2}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    autoencoder = folders.read_autoencoder(folder / "config.json", "vae")
    save_weights(folder, component.DIFFUSERS, autoencoder.shapes(), seed=5)
    params = folders.read(folders.open_autoencoder(folder, autoencoder), autoencoder)
    for name, (size, time, side) in CASES.items():
        sides = Tiles(size=side[0], stride=side[1]) if side[0] else None
        cut = dataclasses.replace(autoencoder, time_tiles=Tiles(size=time[0], stride=time[1]), side_tiles=sides)
        clip = rng.uniform(-1, 1, (1, *size, 3)).astype(np.float32)
        latent = rng.standard_normal((1, *cut.latent_size(*size), cut.channels)).astype(np.float32)
        mean, log_variance = jax.jit(cut.moments)(params, clip)
        decoded = jax.jit(cut.decode)(params, cut.scale * latent)
        found = {"clip": clip, "mean": mean, "log-variance": log_variance, "latent": latent, "decoded": decoded}
        arrays |= {f"{name}/{what}": np.moveaxis(np.asarray(array), -1, 1) for what, array in found.items()}
    np.savez(out / "clips.npz", **arrays)


def theirs(out: pathlib.Path) -> None:
    """Prints how far diffusers' latents and clips are from ours."""
    import torch
    from diffusers import AutoencoderKLHunyuanVideo

    arrays = np.load(out / "clips.npz")
    for name, (_, time, side) in CASES.items():
        vae = AutoencoderKLHunyuanVideo.from_pretrained(out / "vae").eval()
        if side[0]:
            vae.enable_tiling(side[0], side[0], time[0], side[1], side[1], time[1])
        with torch.no_grad():
            posterior = vae.encode(torch.from_numpy(arrays[f"{name}/clip"])).latent_dist
            decoded = vae.decode(torch.from_numpy(arrays[f"{name}/latent"])).sample
        for what, found in (("mean", posterior.mean), ("log-variance", posterior.logvar), ("decoded", decoded)):
            far = np.abs(found.numpy() - arrays[f"{name}/{what}"]).max() / np.abs(found.numpy()).max()
            print(f"{name:24} {what:14} {far:.1e}")


if __name__ == "__main__":
    (theirs if sys.argv[2:] == ["theirs"] else ours)(pathlib.Path(sys.argv[1]))
