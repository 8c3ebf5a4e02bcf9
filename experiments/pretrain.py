"""Makes a base model for the worlds of shapes by supervised learning from sloppy examples.

    python -m experiments.pretrain --out DIR               the world of one round
    python -m experiments.pretrain --rounds --out DIR      reflect, edit and story, from the base of one round
    python -m experiments.pretrain --family flux --out DIR     or stable_diffusion: drawing alone, by another network
    python -m experiments.pretrain --family hunyuan_video --out DIR    the worlds of motion: DIR/motion and DIR/animate

The models inside the package, `base`, `rounds_base`, `shapes_flux_base` and `shapes_sd_base`, were made so, and
`shapes_few_base` of the first by `experiments.distill`; `shapes_world.md` has the exact commands, times and results.  Of
the worlds of motion there is none yet (`motion_worlds.md`).
"""

import dataclasses
import math
import pathlib
import time
from collections.abc import Sequence
from typing import Literal

import numpy as np

from experiments.command_line import command_line
from experiments.destination import folder_to_write
from unigrpo_jax.foreign_text import tell

SIZE, THINKING_TOKENS, PROMPT_TOKENS = 24, 26, 18
# A patch is a cell of the drawing, so that a token is an object.
VISION = {"hidden_size": 128, "intermediate_size": 256, "layers": 1, "heads": 4, "patch": 8, "table_side": 3, "max_side": 3}
FIXED = ("latent_pos_embed", "vit_pos_embed")
# Settings of every family; the others are BAGEL's.
SHARED = ("out", "family", "seed", "steps", "batch", "noise_draws", "learning_rate", "ema_decay", "color_attr_share",
          "text_dropout", "start", "sloppy_plans", "sloppy_drawings")  # fmt: skip
OF_DRAWINGS = ("color_attr_share", "sloppy_plans", "sloppy_drawings")  # of these, what is not read of clips
SIZES = ("hidden_size", "intermediate_size", "layers", "heads", "kv_heads", "latent_patch")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Sizes of the network and settings of supervised training."""

    out: pathlib.Path
    """Folder for the model: llm_config.json, ema.safetensors and the tokenizer; of the other families that of diffusers."""
    family: Literal["bagel", "stable_diffusion", "flux", "hunyuan_video"] = "bagel"
    """Which network.  `stable_diffusion` and `flux` learn the direct prompts of one round, `hunyuan_video` both worlds of
    motion, each with an autoencoder and text encoders of its own, whose sizes stand in experiments/pretraining."""
    rounds: bool = False
    """Learn the worlds of several rounds, beginning with the weights of the shapes base, whose sizes are kept."""
    start: str | None = None
    """Of several rounds: a model folder to begin with, which `--rounds` made, in the place of the shapes base.  Of another
    family: one that it made, to go on from; the text encoders of `hunyuan_video` then stay as they are."""
    seed: int = 0
    """Seed of weights, examples and noise."""
    steps: int | None = None
    """Optimizer steps; default 3600, of several rounds 2000, of another family 3000."""
    batch: int | None = None
    """Examples per step, default 32, of another family 64; of several rounds a third of them of each of the three worlds."""
    reading: int = 0
    """Of several rounds: so many examples more per step, of which only the thinking is learned: half of them edits and half
    second looks, all without mistakes.  To read a picture is learned later than all else.  Every example weighs the same."""
    vision: bool = False
    """Of several rounds: begin with a fresh vision encoder, a token for each cell of the drawing, where there is none."""
    patches_only: bool = False
    """Show images that are only read through the vision encoder alone, without their latents, which are read already: so it
    is learned sooner."""
    noise_draws: int | None = None
    """Noisy versions of each image, or clip; default 3; of several rounds 1, since the base draws already; of another family
    1."""
    learning_rate: float | None = None
    """Peak of Adam's rate, default 2e-3, of several rounds 1.5e-3; warm-up over 100 steps, then a cosine to 2 % of it."""
    ema_decay: float = 0.998
    """Decay of the weight average, which is what is saved."""
    timestep_shift: float = 2.0
    """Shift of the training times towards noise; another family's stands in its scheduler file, that of `hunyuan_video` in
    experiments/pretraining/videos.py."""
    color_attr_share: float = 0.4
    """Share of the examples that are two objects of two colours; the rest is drawn from all categories alike.  To copy each
    colour with its own shape is learned much later than all else."""
    sloppy_plans: float = 0.25
    """Of one round: share of the examples that mistake the prompt."""
    sloppy_drawings: float = 0.4
    """Of one round: share of the examples whose image is not what was planned."""
    text_dropout: float = 0.1
    """Probability of leaving out the prompt, and of leaving out the thinking; where a family is not guided, of neither."""
    seen_noise: float = 0.15
    """Of several rounds: largest standard deviation, of pixels in [-1, 1], of the noise upon an image that is looked at;
    what a model drew is never as clean as what it learned from."""
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
    if config.family == "bagel":
        _bagel(config)
    else:
        _painter(config)


def _painter(config: PretrainConfig) -> None:
    from experiments.pretraining import painters, videos
    from experiments.pretraining.painters import Training
    from unigrpo_jax.config import require

    clips = config.family == "hunyuan_video"
    given = [f.name for f in dataclasses.fields(config) if getattr(config, f.name) != f.default]
    others = [name for name in given if name not in SHARED]
    whose = "bagel alone" if others else "flux and stable_diffusion"
    others = others or [name for name in given if clips and name in OF_DRAWINGS]
    flags = ", ".join(f"--{name.replace('_', '-')}" for name in others)
    require(not others, f"{flags} {'is' if len(others) == 1 else 'are'} for --family {whose}; leave out what is not of "
            f"{config.family}.")  # fmt: skip
    require(config.batch != 0, "--batch 0 leaves nothing to learn; leave it out, or give a number from 1 on.")
    out = folder_to_write(config.out, "--out")
    training = Training(
        seed=config.seed,
        steps=config.steps or 3000,
        batch=64 if config.batch is None else config.batch,
        noise_draws=config.noise_draws or 1,
        learning_rate=config.learning_rate or 2e-3,
        ema_decay=config.ema_decay,
        color_attr_share=config.color_attr_share,
        text_dropout=config.text_dropout,
        sloppy=(config.sloppy_plans, config.sloppy_drawings),
    )
    if clips:
        videos.make(out, training, config.start)
    else:
        painters.make(config.family, out, training, config.start)
    tell(f"wrote {out}")


def _bagel(config: PretrainConfig) -> None:
    import jax
    import jax.numpy as jnp
    import optax

    from unigrpo_jax.config import MeshConfig, ModelConfig, require
    from unigrpo_jax.learning.supervised import SupervisedObjective
    from unigrpo_jax.models.bagel import Bagel, BagelConfig, VisionConfig
    from unigrpo_jax.models.bagel.folder import save_model
    from unigrpo_jax.models.bagel.text import TextCodec, special_tokens
    from unigrpo_jax.models.families import load_model
    from unigrpo_jax.models.text_encoders.tokenizer import load_tokenizer
    from unigrpo_jax.parallel import mesh as meshes
    from unigrpo_jax.worlds.shapes import tokenizer

    require(config.rounds or not (config.start or config.reading or config.vision),
            "--start, --reading and --vision are for --rounds; add it.")  # fmt: skip
    require(not config.patches_only or (config.reading and config.vision),
            "--patches-only is about what a vision encoder reads; add --reading and --vision.")  # fmt: skip
    config = dataclasses.replace(config, batch=32 if config.batch is None else config.batch)
    require(config.batch > 0 or config.reading > 0, "--batch 0 leaves nothing to learn but what is read; add --reading.")
    start = load_model(ModelConfig(path=config.start)) if config.rounds else None
    devices = jax.device_count()
    share = 3 if config.rounds else 1  # of the batch, to each world; on one device what is left over is left out
    for name, parts in ("batch", devices * share if devices > 1 else 1), ("reading", 2 * devices):
        where = f"{devices} device{'s' * (devices > 1)}"
        require(getattr(config, name) % parts == 0,
                f"--{name} {getattr(config, name)} must be a multiple of {parts}, for {where}.")  # fmt: skip
    if start is not None:
        sizes = {name: getattr(start.network.config, name) for name in SIZES}
        asked = {name: getattr(config, name) for name in SIZES}
        require(asked == sizes, f"--rounds begins with the shapes base, whose sizes are {sizes}; leave them out.")
    out = folder_to_write(config.out, "--out")
    out.mkdir(parents=True, exist_ok=True)
    words = tokenizer.save(out, config.rounds)
    codec_tokenizer = load_tokenizer(out)
    key = jax.random.key(config.seed)
    if start is not None:
        model_config = start.network.config
        if config.vision and model_config.vision is None:
            model_config = dataclasses.replace(model_config, vision=VisionConfig(**VISION))
        # Bound to no device, as fresh ones are.
        params = Bagel(model_config).init(key) | jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), start.params())
        require(words == model_config.vocab_size, f"the worlds of several rounds have {words} words, and the shapes base "
                f"{model_config.vocab_size} rows for them; make the base again, without --rounds.")  # fmt: skip
    else:
        model_config = BagelConfig(
            **special_tokens(codec_tokenizer, out),
            vocab_size=-(-words // 16) * 16,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            layers=config.layers,
            heads=config.heads,
            kv_heads=config.kv_heads,
            rope_theta=1e4,
            latent_channels=3,
            latent_patch=config.latent_patch,
            max_latent_size=-(-SIZE // config.latent_patch),
        )
        params = Bagel(model_config).init(key)
    model = Bagel(model_config, unroll=1 if config.rounds else model_config.layers)  # six rounds compile long enough
    codec = TextCodec(codec_tokenizer, model_config)
    objective = SupervisedObjective(
        model=model,
        grid=model_config.grid(SIZE, SIZE),
        timestep_shift=config.timestep_shift,
        text_dropout=config.text_dropout,
        noise_draws=config.noise_draws or (1 if config.rounds else 3),
    )
    reading = dataclasses.replace(objective, text_dropout=0.0)  # of what was left out nothing can be read
    steps = config.steps or (2000 if config.rounds else 3600)
    peak = config.learning_rate or (1.5e-3 if config.rounds else 2e-3)
    rate = optax.warmup_cosine_decay_schedule(0.0, peak, min(100, steps // 10), steps, peak * 0.02)
    transform = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.99))
    trainable = lambda tree: {k: v for k, v in tree.items() if k not in FIXED}
    state = (params, transform.init(trainable(params)), params)

    @jax.jit
    def step(state, worlds, number):
        params, opt_state, ema = state
        fixed = {k: v for k, v in params.items() if k in FIXED}
        now = jax.random.fold_in(key, number)
        own = lambda world: jax.random.fold_in(now, world) if world else now

        def loss(tree):
            loss_of = lambda rounds: reading if rounds[0].data is None else objective
            found = [loss_of(rounds)(tree | fixed, rounds, own(world)) for world, rounds in enumerate(worlds)]
            counts = [rounds[0].thinking.tokens.shape[0] for rounds in worlds]
            total = sum(count * x for count, (x, _) in zip(counts, found, strict=True))
            return total / sum(counts), [metrics for _, metrics in found]

        grads, metrics = jax.grad(loss, has_aux=True)(trainable(params))
        updates, opt_state = transform.update(grads, opt_state)
        params = optax.apply_updates(trainable(params), updates) | fixed
        decay = jnp.minimum(config.ema_decay, (1 + number) / (10 + number))
        return (params, opt_state, jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, ema, params)), metrics

    mesh = meshes.make_mesh(0, MeshConfig())
    state = jax.device_put(state, meshes.replicated(mesh))
    began, draw, noise = time.monotonic(), examples(config), np.random.default_rng([config.seed, 1])
    for number in range(steps):
        drawn = tuple(batch(one, codec, config, noise) for one in draw())
        state, metrics = step(state, jax.device_put(drawn, meshes.spread(mesh)), number)
        if number % 100 == 0 or number == steps - 1:
            values = "   ".join("  ".join(f"{n} {float(v):.4f}" for n, v in found.items()) for found in metrics)
            tell(f"step {number:5d}  {values}  {time.monotonic() - began:6.0f} s")
    save_model(out, model_config, state[2])
    tell(f"wrote {out}")


@dataclasses.dataclass(frozen=True)
class Group:
    """Examples of one world, of as many rounds each; `images` says whether the images that they draw are to be learned."""

    examples: Sequence
    images: bool = True


def examples(config: PretrainConfig):
    """A function without arguments that gives the examples of the next step, a `Group` for each world that is learned."""
    from unigrpo_jax.worlds.shapes import prompts, rounds_supervised, supervised

    by_category = prompts.by_category("train")
    bound = {"color_attr": by_category["color_attr"]}
    rng = np.random.default_rng(config.seed)
    categories = lambda: bound if rng.random() < config.color_attr_share else by_category

    def one_round():
        drawn = supervised.example(rng, categories(), config.sloppy_plans, config.sloppy_drawings)
        only = rounds_supervised.Round(drawn.prompt.text, drawn.thinking, drawn.image)
        return rounds_supervised.RoundsExample(drawn.prompt, None, (only,))

    reflect = lambda sloppy=True: rounds_supervised.reflect_example(rng, categories(), sloppy)
    edit = lambda sloppy=True: rounds_supervised.edit_example(rng, sloppy=sloppy)
    story = lambda: rounds_supervised.story_example(rng)
    worlds = (reflect, edit, story) if config.rounds else (one_round,)
    read = (edit, reflect) if config.reading else ()

    def draw() -> list[Group]:
        learned = [Group([world() for _ in range(config.batch // len(worlds))]) for world in worlds if config.batch]
        return learned + [Group([world(sloppy=False) for _ in range(config.reading // 2)], images=False) for world in read]

    return draw


def batch(group: Group, codec, config: PretrainConfig, rng: np.random.Generator) -> tuple:
    """Examples (`rounds_supervised.RoundsExample`) of one world as the objective takes them, a `Round` for each round."""
    from unigrpo_jax.episode import Look, Thinking
    from unigrpo_jax.learning.supervised import Round
    from unigrpo_jax.models.autoencoders.pixels import from_uint8
    from unigrpo_jax.models.building.patches import patchify

    drawn, pad, patch, seen = group.examples, codec.config.pad_token, codec.config.latent_patch, None
    pixels_of = lambda images: np.asarray(from_uint8(np.stack(images)))
    cut = lambda pixels, side: np.asarray(patchify(pixels, side), np.float32)

    def look(images):
        pixels = pixels_of(images)
        pixels = pixels + rng.uniform(0, config.seen_noise, (len(pixels), 1, 1, 1)) * rng.normal(size=pixels.shape)
        vision, square = codec.config.vision, lambda x: x.reshape(len(x), math.isqrt(x.shape[1]), -1, x.shape[2])
        patches = None if vision is None else square(cut(pixels, vision.patch))
        latent = None if config.patches_only and not group.images else square(cut(pixels, patch))
        return Look(latent=latent, patches=patches)

    if drawn[0].picture is not None:
        seen = look([example.picture for example in drawn])
    out = []
    for number in range(last := len(drawn[0].rounds)):
        rounds = [example.rounds[number] for example in drawn]
        tokens = np.full((len(drawn), THINKING_TOKENS), pad, np.int32)
        mask = np.zeros((len(drawn), THINKING_TOKENS), bool)
        for row, one in enumerate(rounds):
            ids = codec.ids(one.thinking)[1:]
            tokens[row, : len(ids)], mask[row, : len(ids)] = ids, True
        says, clear = rounds[0].text is not None, np.array([one.clear for one in rounds])
        out.append(
            Round(
                seen=seen,
                heard=codec.prompts([one.text for one in rounds], PROMPT_TOKENS) if says else None,
                thinking=Thinking(tokens=tokens, mask=mask, log_probs=np.zeros_like(tokens, np.float32)),
                data=cut(pixels_of([one.image for one in rounds]), patch) if group.images else None,
                drawn=clear if last > 1 and group.images else None,
            )
        )
        seen = look([one.image for one in rounds]) if number + 1 < last else None
    return tuple(out)


if __name__ == "__main__":
    main()
