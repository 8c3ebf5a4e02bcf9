"""Makes a base painter of the shapes world: an autoencoder, then a network and its text encoders, learned together.

    loss = mean (predict(x_t, t | text) - target)^2,    x_t = alpha_t data + sigma_t noise          (`models.paths`)

A flow's times are `averaged.flow_times`, with the shift that it samples with; a diffusion's are uniform over its steps.  The
examples are those of the base that thinks, without the thinking: of direct prompts, and as sloppy.
"""

import dataclasses
import itertools
import pathlib
import shutil
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.pretraining import autoencoder as autoencoders
from experiments.pretraining import averaged
from experiments.pretraining.folder import weights_of, write_settings
from unigrpo_jax.config import ModelConfig, require
from unigrpo_jax.models import families
from unigrpo_jax.models.autoencoders.diffusers import stored_shapes
from unigrpo_jax.models.autoencoders.pixels import from_uint8
from unigrpo_jax.models.folders import component, stored
from unigrpo_jax.models.folders.pipelines import Pipeline
from unigrpo_jax.models.hunyuan_video.config import FILES as HUNYUAN_VIDEO
from unigrpo_jax.models.paths import RectifiedFlow, target
from unigrpo_jax.models.text_encoders.encoder import ClipEncoder, Encoder
from unigrpo_jax.models.text_encoders.llama import LAYERS, Llama, read_llama
from unigrpo_jax.models.text_encoders.states import TextStates
from unigrpo_jax.models.verbs import Params
from unigrpo_jax.worlds.shapes import prompts, supervised

SIZE, DTYPE = 24, "float16"  # pixels along a side; of the files


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """Settings of supervised training.

    Attributes:
      seed: of weights, examples and noise.
      steps: of the optimizer.
      batch: examples of a step.
      noise_draws: noisy versions of each image.
      learning_rate: peak of AdamW's; warm-up over 100 steps, then a cosine to 2 % of it.
      ema_decay: of the weights that are saved.
      color_attr_share: of the examples that are two objects of two colours; the rest is of all categories alike.
      text_dropout: probability of the empty text, where the family is guided by it.
      sloppy: shares of the examples that mistake the prompt, and that mistake what was planned (`supervised`).
    """

    seed: int
    steps: int
    batch: int
    noise_draws: int
    learning_rate: float
    ema_decay: float
    color_attr_share: float
    text_dropout: float
    sloppy: tuple[float, float]


def make(family: str, folder: pathlib.Path, training: Training, start: str | None = None) -> None:
    """Learns "stable_diffusion" or "flux", and writes its folder in diffusers' layout; `start` is one to go on from."""
    if start is None:
        folder.mkdir(parents=True, exist_ok=True)
        _begin(family, folder, training.seed)
    else:
        begun = families.load_model(ModelConfig(path=start))
        require(begun.family == family, f"--start {start} is of {begun.family}; give a folder that --family {family} made.")
        shutil.copytree(begun.folder, folder, dirs_exist_ok=True)
    loaded = families.load_model(ModelConfig(path=str(folder)))
    own = loaded.network.init(jax.random.key(training.seed)) if start is None else loaded.params()
    write_learned(folder, loaded, _learn(loaded, own, training))


def write_learned(folder: pathlib.Path, loaded: Pipeline, params: tuple) -> None:
    """Writes the weights of the network and of its text encoders; layers of Llama that are not read stay as they are.

    Args:
      folder: the model's.
      loaded: what it holds.
      params: of the network, then of each encoder.
    """
    component.write(folder / loaded.part, component.DIFFUSERS, loaded.network.network, params[0], DTYPE)
    for encoder, own in zip(loaded.codec.encoders.parts, params[1:], strict=True):
        place, network = encoder.files[0].parent, encoder.network
        if isinstance(encoder, ClipEncoder):
            network.write(place, own, DTYPE)
            continue
        if isinstance(network, Llama):
            network = read_llama(place / "config.json", HUNYUAN_VIDEO)
            there = component.read(encoder.weights, network, "float32")
            own = {name: jnp.concatenate([p, there[name][len(p) :]]) if name.startswith(LAYERS) else p
                   for name, p in own.items()}  # fmt: skip
        component.write(place, component.TRANSFORMERS, network, own, DTYPE)


def say(encoders: Sequence[Encoder], params: Sequence[Params], texts) -> dict[str, jax.Array]:
    """What encoders with these parameters say of texts, ids and mask [B, L] for each encoder; the fields of `TextStates`."""
    said = {}
    for encoder, own, rows in zip(encoders, params, texts, strict=True):
        said |= encoder(own, *rows)
    return said


def _begin(family: str, folder: pathlib.Path, seed: int) -> None:
    """Writes the folder with a learned autoencoder; all other weights are random."""
    words = {word for split in ("train", "held_out") for text in _texts(split) for word in text.split()}
    autoencoder, decoder = autoencoders.learn(autoencoders.SIZES, autoencoders.any_picture, autoencoders.IMAGES, seed)
    write_settings(folder, family, autoencoder, sorted(words))
    names = stored_shapes(autoencoder)
    stored.write(folder / "vae", component.DIFFUSERS, dict(names.values()),
                 ((theirs, np.asarray(decoder[name]).reshape(shape)) for name, (theirs, shape) in names.items()),
                 DTYPE)  # fmt: skip
    weights_of(folder, family, seed)


def _learn(loaded: Pipeline, own: Params, training: Training) -> tuple:
    """Averaged parameters of the network, which begins with `own`, and of each encoder."""
    painter, encoders, guided = loaded.network, loaded.codec.encoders.parts, loaded.codec.guided
    grid, flow = painter.grid(SIZE, SIZE), isinstance(painter.path, RectifiedFlow)
    decoder = loaded.autoencoder_params()
    params = (own, *(encoder.read(None) for encoder in encoders))

    def loss(params, key, ids, images):
        key_time, key_noise = jax.random.split(key)
        text = TextStates(**say(encoders, params[1:], ids)).repeat(training.noise_draws)
        data = painter.to_tokens(loaded.autoencoder.encode(decoder, from_uint8(images)))
        data = jnp.repeat(data, training.noise_draws, axis=0)
        t = _times(painter, flow, key_time, len(data), grid)
        noise, wide = jax.random.normal(key_noise, data.shape), t[:, None, None]
        alpha, sigma = painter.path.coefficients(wide)
        says = painter.predict(params[0], alpha * data + sigma * noise, t, grid, text)
        return jnp.mean((says - target(painter.path, painter.prediction, data, noise, wide)) ** 2)

    def batches():
        rows = {text: tuple(encoder.coder([text]) for encoder in encoders) for text in ["", *_texts("train")]}
        rng, by_category = np.random.default_rng(training.seed), prompts.direct("train")
        bound = {"color_attr": by_category["color_attr"]}
        while True:
            groups = (bound if rng.random() < training.color_attr_share else by_category for _ in range(training.batch))
            drawn = [supervised.example(rng, group, *training.sloppy) for group in groups]
            asked = ["" if guided and rng.random() < training.text_dropout else one.prompt.text for one in drawn]
            ids = jax.tree.map(lambda *x: np.concatenate(x), *(rows[text] for text in asked))
            yield ids, np.stack([one.image for one in drawn])

    return averaged.learn(loss, params, batches(), steps=training.steps, learning_rate=training.learning_rate,
                          ema_decay=training.ema_decay, key=jax.random.key(training.seed))  # fmt: skip


def _times(painter, flow: bool, key: jax.Array, count: int, grid: tuple[int, int]) -> jax.Array:
    """Training times [count]."""
    if flow:
        return averaged.flow_times(painter.shift.of(grid[0] * grid[1]), key, count)
    most = painter.schedule.train_steps
    return jax.random.randint(key, (count,), 1, most + 1) / most


def _texts(split: str) -> list[str]:
    return [prompt.text for prompt in itertools.chain.from_iterable(prompts.direct(split).values())]
