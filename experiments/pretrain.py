"""Makes a base model for the shapes world by supervised learning from sloppy examples.

    python -m experiments.pretrain --out DIR

The base inside the package was made by exactly this command with its defaults; see the README for time and result.
"""

import dataclasses
import pathlib
import time

from experiments.command_line import command_line


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Sizes of the network and settings of supervised training."""

    out: pathlib.Path
    """Folder for the model: llm_config.json, ema.safetensors and the tokenizer."""
    seed: int = 0
    """Seed of weights, examples and noise."""
    steps: int = 3600
    """Optimizer steps."""
    batch: int = 32
    """Examples per step."""
    noise_draws: int = 3
    """Noisy versions of each image."""
    learning_rate: float = 2e-3
    """Peak of Adam's rate; warm-up over 100 steps, then a cosine down to 2 % of it."""
    ema_decay: float = 0.998
    """Decay of the weight average, which is what is saved."""
    timestep_shift: float = 2.0
    """Shift of the training times towards noise."""
    color_attr_share: float = 0.4
    """Share of the examples that are two objects of two colours; the rest is drawn from all categories alike.  To copy each
    colour with its own shape is learned much later than all else."""
    text_dropout: float = 0.1
    """Probability of leaving out the prompt, and of leaving out the thinking."""
    hidden_size: int = 128
    """Width of the network."""
    intermediate_size: int = 384
    """Width of its MLPs."""
    layers: int = 4
    """Decoder layers."""
    heads: int = 4
    """Query heads."""
    kv_heads: int = 2
    """Key and value heads."""
    latent_patch: int = 4
    """Pixels along the side of a latent token."""


@command_line
def main(config: PretrainConfig) -> None:
    """Trains, evaluates nothing, writes the model folder."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from unigrpo_jax.episode import Thinking
    from unigrpo_jax.learning.supervised import Examples, SupervisedObjective
    from unigrpo_jax.models.bagel import Bagel, BagelConfig, latents
    from unigrpo_jax.models.bagel.text import TextCodec, load_tokenizer, special_tokens
    from unigrpo_jax.models.folder import save_model
    from unigrpo_jax.worlds.shapes import prompts, supervised, tokenizer

    size, thinking_tokens, prompt_tokens = 24, 26, 18
    config.out.mkdir(parents=True, exist_ok=True)
    words = tokenizer.save(config.out)
    codec_tokenizer = load_tokenizer(config.out)
    model_config = BagelConfig(
        **special_tokens(codec_tokenizer, config.out),
        vocab_size=-(-words // 16) * 16,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        layers=config.layers,
        heads=config.heads,
        kv_heads=config.kv_heads,
        rope_theta=1e4,
        latent_channels=3,
        latent_patch=config.latent_patch,
        max_latent_size=-(-size // config.latent_patch),
    )
    model = Bagel(model_config, unroll=config.layers)
    codec = TextCodec(codec_tokenizer, model_config)
    objective = SupervisedObjective(
        model=model,
        grid=model_config.grid(size, size),
        timestep_shift=config.timestep_shift,
        text_dropout=config.text_dropout,
        noise_draws=config.noise_draws,
    )
    by_category = prompts.by_category("train")
    bound = {"color_attr": by_category["color_attr"]}
    rng = np.random.default_rng(config.seed)

    def batch() -> Examples:
        drawn = [
            supervised.example(rng, bound if rng.random() < config.color_attr_share else by_category)
            for _ in range(config.batch)
        ]
        tokens = np.full((config.batch, thinking_tokens), model_config.pad_token, np.int32)
        mask = np.zeros((config.batch, thinking_tokens), bool)
        for row, example in enumerate(drawn):
            ids = codec.ids(example.thinking)[1:]
            tokens[row, : len(ids)], mask[row, : len(ids)] = ids, True
        images = latents.from_uint8(np.stack([example.image for example in drawn]))
        return Examples(
            prompt=codec.prompts([example.prompt.text for example in drawn], prompt_tokens),
            thinking=Thinking(tokens=tokens, mask=mask, log_probs=np.zeros_like(tokens, np.float32)),
            data=latents.patchify(images, config.latent_patch),
        )

    warm_up = min(100, config.steps // 10)
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, warm_up, config.steps, config.learning_rate * 0.02
    )
    transform = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.99))
    key = jax.random.key(config.seed)
    params = model.init(key)
    trainable = lambda tree: {k: v for k, v in tree.items() if k != "latent_pos_embed"}
    state = (params, transform.init(trainable(params)), params)

    @jax.jit
    def step(state, examples, number):
        params, opt_state, ema = state
        fixed = {"latent_pos_embed": params["latent_pos_embed"]}
        loss = lambda tree: objective(tree | fixed, examples, jax.random.fold_in(key, number))
        grads, metrics = jax.grad(loss, has_aux=True)(trainable(params))
        updates, opt_state = transform.update(grads, opt_state)
        params = optax.apply_updates(trainable(params), updates) | fixed
        decay = jnp.minimum(config.ema_decay, (1 + number) / (10 + number))
        return (params, opt_state, jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, ema, params)), metrics

    start = time.monotonic()
    for number in range(config.steps):
        state, metrics = step(state, batch(), number)
        if number % 100 == 0 or number == config.steps - 1:
            values = "  ".join(f"{name} {float(value):.4f}" for name, value in metrics.items())
            print(f"step {number:5d}  {values}  {time.monotonic() - start:6.0f} s", flush=True)
    save_model(config.out, model_config, state[2])
    print(f"wrote {config.out}")


if __name__ == "__main__":
    main()
