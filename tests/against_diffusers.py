"""The toys of diffusers' families, and exports with adapters, drawn here and by diffusers: same prompt, same latent.

    python -m tests.against_diffusers DIR            # here: writes folders, latents, images and clips
    python tests/against_diffusers.py DIR theirs     # where torch, diffusers, transformers and peft are: prints differences
    python -m tests.against_diffusers DIR joined     # here: reads the folder that diffusers made of two

Five steps in float32, guidance 5 for Stable Diffusion and SkyReels; a difference is the largest of an array's numbers over
the largest.  SkyReels' picture is the mean of its posterior, of which diffusers samples.
"""

import pathlib
import sys

import numpy as np

PROMPT, STEPS, SIDE, RANK, ALPHA = "a red circle and the blue square", 5, 32, 3, 7.0
TWO_STREAMS = (r"transformer_blocks\.attn\.(to_q|add_v_proj|to_out\.0)", r"single_transformer_blocks\.(proj_mlp|proj_out)")
TARGETS = {
    "sd_tiny": (r".*\.attn[12]\.to_[qv]", r".*\.ff\.net\.2"),
    "flux_tiny": TWO_STREAMS,
    "hunyuan_tiny": TWO_STREAMS,
    "skyreels_tiny": TWO_STREAMS,
}
GUIDANCE = {"sd_tiny": 5.0, "skyreels_tiny": 5.0}  # by a second pass
FRAMES = {"hunyuan_tiny": 9, "skyreels_tiny": 9}


def ours(out: pathlib.Path) -> None:
    """Writes NAME/toy, NAME/export and NAME.npz for each toy."""
    import shutil

    import jax
    import jax.numpy as jnp

    from unigrpo_jax.config import LoraConfig, ModelConfig
    from unigrpo_jax.models.families import find_folder, load_model
    from unigrpo_jax.rollout.step_rules import ODE

    jax.config.update("jax_default_matmul_precision", "highest")

    def draw(loaded, params, name, latent, picture):
        network, scale = loaded.network, GUIDANCE.get(name, 0.0)
        grid, autoencoder = network.grid(SIDE, SIDE, FRAMES.get(name, 1)), loaded.autoencoder_params()
        text, nothing = jax.tree.map(jnp.asarray, loaded.codec.prompts([PROMPT], 0)), network.empty(1)
        if network.needs_picture:
            nothing = network.begun(nothing, loaded.autoencoder.encode(autoencoder, picture[None] / 127.5 - 1))
        given, without = network.read(params, text, nothing), network.unread(params, text, nothing)
        times, x = network.times(STEPS, 0.0, grid), network.to_tokens(jnp.asarray(latent))
        predict = jax.jit(network.predict, static_argnums=3)
        for t, t_next in zip(times[:-1], times[1:], strict=True):
            output = predict(params, x, jnp.full(1, t), grid, given)
            if scale:
                other = predict(params, x, jnp.full(1, t), grid, without)
                output = other + scale * (output - other)
            x = ODE().transition(x, output, t, t_next, t, network.path, network.prediction)[0]
        return np.asarray(jax.jit(loaded.autoencoder.decode)(autoencoder, network.to_latent(x, grid)))

    for name, targets in TARGETS.items():
        folder, rng = out / name, np.random.default_rng(7)
        shutil.copytree(find_folder(name), folder / "toy")
        lora = LoraConfig(rank=RANK, alpha=ALPHA, targets=targets)
        loaded = load_model(ModelConfig(path=str(folder / "toy"), lora=lora))
        params = loaded.with_fresh(loaded.params())
        new = lambda path, x, rng=rng: jnp.asarray(0.2 * rng.standard_normal(x.shape, np.float32)) if ".lora_" in path else x
        params = {path: new(path, x) for path, x in params.items()}
        loaded.export(params, folder / "export", "float32", shard_bytes=150_000)
        side = SIDE // loaded.autoencoder.downsample
        frames = (1 + (FRAMES[name] - 1) // 4,) if name in FRAMES else ()
        latent = rng.standard_normal((1, *frames, side, side, loaded.autoencoder.channels)).astype(np.float32)
        picture = rng.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
        plain = {path: x for path, x in params.items() if ".lora_" not in path}
        drawn = {"toy": draw(loaded, plain, name, latent, picture), "trained": draw(loaded, params, name, latent, picture)}
        np.savez(out / f"{name}.npz", latent=np.moveaxis(latent, -1, 1), picture=picture, **drawn)


def theirs(out: pathlib.Path) -> None:
    """Prints how far diffusers' images and clips are from ours; joins two folders into one of SkyReels."""
    import torch
    from diffusers import (
        FluxPipeline,
        HunyuanSkyreelsImageToVideoPipeline,
        HunyuanVideoPipeline,
        HunyuanVideoTransformer3DModel,
        StableDiffusionPipeline,
    )
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
    from peft import PeftModel
    from PIL import Image

    DiagonalGaussianDistribution.sample = lambda self, generator=None: self.mode()

    def draw(pipe, name, seen):
        latent, config = torch.from_numpy(seen["latent"]), pipe.vae.config
        settings = {"sd_tiny": {"guidance_scale": GUIDANCE["sd_tiny"]},
                    "flux_tiny": {"guidance_scale": 3.5, "max_sequence_length": 64},
                    "hunyuan_tiny": {"guidance_scale": 6.0, "num_frames": 9},
                    "skyreels_tiny": {"guidance_scale": 1.0, "num_frames": 9, "true_cfg_scale": GUIDANCE["skyreels_tiny"],
                                      "negative_prompt": "", "image": Image.fromarray(seen["picture"])}}[name]  # fmt: skip
        if name == "flux_tiny":
            latent = FluxPipeline._pack_latents(latent, 1, latent.shape[1], 8, 8)
        with torch.no_grad():
            found = pipe(prompt=PROMPT, num_inference_steps=STEPS, latents=latent, height=SIDE, width=SIDE,
                         output_type="latent", **settings)  # fmt: skip
            drawn = found.frames if name in FRAMES else found.images
            if name == "flux_tiny":
                drawn = pipe._unpack_latents(drawn, SIDE, SIDE, pipe.vae_scale_factor)
            shift = getattr(config, "shift_factor", None) or 0
            return pipe.vae.decode(drawn / config.scaling_factor + shift).sample.movedim(1, -1).numpy()

    for name, kind, part in (
        ("sd_tiny", StableDiffusionPipeline, "unet"),
        ("flux_tiny", FluxPipeline, "transformer"),
        ("hunyuan_tiny", HunyuanVideoPipeline, "transformer"),
        ("skyreels_tiny", HunyuanSkyreelsImageToVideoPipeline, "transformer"),
    ):
        seen, folder = np.load(out / f"{name}.npz"), out / name

        def opened(which, kind=kind, folder=folder):
            pipe = kind.from_pretrained(folder / which)
            pipe.set_progress_bar_config(disable=True)
            return pipe

        def show(words, wanted, pipe, name=name, seen=seen):
            far = np.abs(draw(pipe, name, seen) - seen[wanted]).max() / np.abs(seen[wanted]).max()
            print(f"{name:13} {words:40} {far:.1e}", flush=True)

        show("the toy", "toy", opened("toy"))
        show("an export in shards, adapters folded in", "trained", opened("export"))
        pipe = opened("toy")
        pipe.load_lora_weights(folder / "export" / "lora")
        show("the toy and load_lora_weights", "trained", pipe)
        pipe = opened("toy")
        adapted = PeftModel.from_pretrained(getattr(pipe, part), folder / "export" / "lora")
        setattr(pipe, part, adapted.merge_and_unload())
        show("the toy and peft's merge_and_unload", "trained", pipe)

    alone = HunyuanVideoTransformer3DModel.from_pretrained(out / "skyreels_tiny" / "toy" / "transformer")
    pipe = HunyuanSkyreelsImageToVideoPipeline.from_pretrained(out / "hunyuan_tiny" / "toy", transformer=alone)
    pipe.save_pretrained(out / "joined")


def joined(out: pathlib.Path) -> None:
    """Reads what diffusers joined: SkyReels' transformer, and all else of HunyuanVideo's folder."""
    from unigrpo_jax.config import ModelConfig
    from unigrpo_jax.models.families import load_model

    both, toys = load_model(ModelConfig(path=str(out / "joined"))), {}
    for name in ("skyreels_tiny", "hunyuan_tiny"):
        toys[name] = load_model(ModelConfig(path=str(out / name / "toy")))
    same = lambda a, b: a.keys() == b.keys() and all((np.asarray(a[name]) == np.asarray(b[name])).all() for name in a)
    print("goes on from a picture:", both.network.needs_picture, "guided:", both.codec.guided)
    print("the transformer is SkyReels':", same(both.params(), toys["skyreels_tiny"].params()))
    print("the autoencoder is HunyuanVideo's:", same(both.autoencoder_params(), toys["hunyuan_tiny"].autoencoder_params()))
    print("settings not read:", both.unknown_settings, "files not read:", both.unread_files)


if __name__ == "__main__":
    {"theirs": theirs, "joined": joined}.get("".join(sys.argv[2:]), ours)(pathlib.Path(sys.argv[1]))
