"""The toys of Stable Diffusion and FLUX, and exports with adapters, drawn here and by diffusers: same prompt, same latent.

    python -m tests.against_diffusers DIR            # here: writes folders, latents and images
    python tests/against_diffusers.py DIR theirs     # where torch, diffusers, transformers and peft are: prints differences

Five steps in float32, guidance 5 for Stable Diffusion; a difference is the largest of an image's numbers over the largest.
"""

import pathlib
import sys

import numpy as np

PROMPT, STEPS, SIDE, RANK, ALPHA = "a red circle and the blue square", 5, 32, 3, 7.0
TARGETS = {
    "sd_tiny": (r".*\.attn[12]\.to_[qv]", r".*\.ff\.net\.2"),
    "flux_tiny": (r"transformer_blocks\.attn\.(to_q|add_v_proj|to_out\.0)",
                  r"single_transformer_blocks\.(proj_mlp|proj_out)"),
}  # fmt: skip
GUIDANCE = {"sd_tiny": 5.0, "flux_tiny": 0.0}


def ours(out: pathlib.Path) -> None:
    """Writes NAME/toy, NAME/export and NAME.npz for each toy."""
    import shutil

    import jax
    import jax.numpy as jnp

    from unigrpo_jax.config import LoraConfig, ModelConfig
    from unigrpo_jax.models.families import find_folder, load_model
    from unigrpo_jax.rollout.step_rules import ODE

    jax.config.update("jax_default_matmul_precision", "highest")

    def draw(loaded, params, latent, scale):
        network, grid = loaded.network, loaded.network.grid(SIDE, SIDE)
        text = jax.tree.map(jnp.asarray, loaded.codec.prompts([PROMPT], 0))
        nothing = network.empty(1)
        given, without = network.read(params, text, nothing), network.unread(params, text, nothing)
        times, x = network.times(STEPS, 0.0, grid), network.to_tokens(jnp.asarray(latent))
        for t, t_next in zip(times[:-1], times[1:], strict=True):
            output = network.predict(params, x, jnp.full(1, t), grid, given)
            if scale:
                other = network.predict(params, x, jnp.full(1, t), grid, without)
                output = other + scale * (output - other)
            x = ODE().transition(x, output, t, t_next, t, network.path, network.prediction)[0]
        return np.asarray(loaded.autoencoder.decode(loaded.autoencoder_params(), network.to_latent(x, grid)))

    for name, targets in TARGETS.items():
        folder, rng = out / name, np.random.default_rng(7)
        shutil.copytree(find_folder(name), folder / "toy")
        lora = LoraConfig(rank=RANK, alpha=ALPHA, targets=targets)
        loaded = load_model(ModelConfig(path=str(folder / "toy"), lora=lora))
        params = loaded.with_adapters(loaded.params())
        new = lambda path, x, rng=rng: jnp.asarray(0.2 * rng.standard_normal(x.shape, np.float32)) if ".lora_" in path else x
        params = {path: new(path, x) for path, x in params.items()}
        loaded.export(params, folder / "export", "float32", shard_bytes=150_000)
        latent = rng.standard_normal((1, 8, 8, loaded.autoencoder.channels)).astype(np.float32)
        plain = {path: x for path, x in params.items() if ".lora_" not in path}
        image = lambda params, loaded=loaded, latent=latent, name=name: draw(loaded, params, latent, GUIDANCE[name])
        images = {"toy": image(plain), "trained": image(params)}
        np.savez(out / f"{name}.npz", latent=latent.transpose(0, 3, 1, 2), **images)


def theirs(out: pathlib.Path) -> None:
    """Prints how far diffusers' images are from ours."""
    import torch
    from diffusers import FluxPipeline, StableDiffusionPipeline
    from peft import PeftModel

    def draw(pipe, name, latent):
        latent, settings = torch.from_numpy(latent), {"guidance_scale": GUIDANCE[name]}
        if name == "flux_tiny":
            latent = FluxPipeline._pack_latents(latent, 1, latent.shape[1], 8, 8)
            settings = {"guidance_scale": 3.5, "max_sequence_length": 64}
        with torch.no_grad():
            drawn = pipe(PROMPT, num_inference_steps=STEPS, latents=latent, height=SIDE, width=SIDE, output_type="latent",
                         **settings).images  # fmt: skip
            if name == "flux_tiny":
                drawn = pipe._unpack_latents(drawn, SIDE, SIDE, pipe.vae_scale_factor)
            config = pipe.vae.config
            image = pipe.vae.decode(drawn / config.scaling_factor + (config.shift_factor or 0)).sample
        return image.permute(0, 2, 3, 1).numpy()

    for name, kind, part in (
        ("sd_tiny", StableDiffusionPipeline, "unet"),
        ("flux_tiny", FluxPipeline, "transformer"),
    ):
        seen, folder = np.load(out / f"{name}.npz"), out / name

        def opened(which, kind=kind, folder=folder):
            pipe = kind.from_pretrained(folder / which)
            pipe.set_progress_bar_config(disable=True)
            return pipe

        def show(words, wanted, pipe, name=name, seen=seen):
            far = np.abs(draw(pipe, name, seen["latent"]) - seen[wanted]).max() / np.abs(seen[wanted]).max()
            print(f"{name:10} {words:40} {far:.1e}")

        show("the toy", "toy", opened("toy"))
        show("an export in shards, adapters folded in", "trained", opened("export"))
        pipe = opened("toy")
        pipe.load_lora_weights(folder / "export" / "lora")
        show("the toy and load_lora_weights", "trained", pipe)
        pipe = opened("toy")
        adapted = PeftModel.from_pretrained(getattr(pipe, part), folder / "export" / "lora")
        setattr(pipe, part, adapted.merge_and_unload())
        show("the toy and peft's merge_and_unload", "trained", pipe)


if __name__ == "__main__":
    (theirs if sys.argv[2:] == ["theirs"] else ours)(pathlib.Path(sys.argv[1]))
