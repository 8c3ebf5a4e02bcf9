"""Makes the two base painters of the worlds of motion, which are one network: an autoencoder, then it and its text encoders.

    loss = mean (predict(x_t, t | text, first) - (noise - data))^2,    x_t = (1 - t) data + t noise

Half of the examples are of `shapes_motion`, half of `shapes_animate`.  `first` is the latent of the picture that was given,
and zeros where none was, so that the painter from text alone is the same network without the weights that read a picture.
The examples are as faulty as `worlds.motion.supervised` makes them; a pool of them is made, and encoded, once.
"""

import dataclasses
import math
import pathlib
import shutil
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from experiments.pretraining import autoencoder as autoencoders
from experiments.pretraining import averaged
from experiments.pretraining.painters import DTYPE, Training, write_learned
from experiments.pretraining.video_folder import weights_of, write_settings
from unigrpo_jax.config import ModelConfig, require
from unigrpo_jax.foreign_text import tell
from unigrpo_jax.models import families
from unigrpo_jax.models.autoencoders.pixels import from_uint8
from unigrpo_jax.models.building.first_frame import upon
from unigrpo_jax.models.folders import component
from unigrpo_jax.models.folders.pipelines import Pipeline
from unigrpo_jax.models.hunyuan_video import from_text
from unigrpo_jax.models.text_encoders.states import TextStates
from unigrpo_jax.models.verbs import Params
from unigrpo_jax.worlds.motion import animate, prompts, supervised
from unigrpo_jax.worlds.motion.scene import FRAMES
from unigrpo_jax.worlds.shapes.drawing import SIDE
from unigrpo_jax.worlds.shapes.supervised import pick

FROM_TEXT, FROM_PICTURE = "motion", "animate"  # folders of the two
POOL = 6144  # examples of each world
SEEN = 4096  # clips that the autoencoder learns from
ENCODED = 64  # examples at a time
ASKED = 1200  # prompts of a part of `shapes_animate` whose words are looked at; there are few words


@dataclasses.dataclass(frozen=True)
class Pool:
    """N examples as the loss takes them.

    Attributes:
      data: [N, tokens, C], clips as tokens of latents.
      first: [N, tokens of a frame, C], the picture's, zeros where there is none.
      rows: [N], which text each has.
      ids: for each text encoder ids and mask of all texts, the empty one first.
    """

    data: np.ndarray
    first: np.ndarray
    rows: np.ndarray
    ids: tuple[tuple[np.ndarray, np.ndarray], ...]

    def batches(self, rng: np.random.Generator, count: int, dropout: float) -> Iterator[tuple]:
        """Draws of `count` examples without end: ids, data, first; a share of the texts is left out."""
        while True:
            drawn = rng.integers(len(self.rows), size=count)
            asked = np.where(rng.random(count) < dropout, 0, self.rows[drawn])
            yield jax.tree.map(lambda x, asked=asked: x[asked], self.ids), self.data[drawn], self.first[drawn]


def make(folder: pathlib.Path, training: Training, start: str | None = None, pool: int = POOL,
         clips: autoencoders.Settings = autoencoders.CLIPS) -> None:  # fmt: skip
    """Learns both, and writes a folder of each in diffusers' layout; `start` is what `make` wrote, to go on from."""
    here = folder / FROM_PICTURE
    if start is None:
        here.mkdir(parents=True, exist_ok=True)
        _begin(here, training.seed, clips)
    else:
        begun = pathlib.Path(start) / FROM_PICTURE
        require((begun / "model_index.json").exists(),
                f"--start {start} holds no folder {FROM_PICTURE}; give one that --family hunyuan_video made.")  # fmt: skip
        shutil.copytree(begun, here, dirs_exist_ok=True)
    loaded = families.load_model(ModelConfig(path=str(here)))
    own = loaded.network.init(jax.random.key(training.seed)) if start is None else loaded.params()
    params = _learn(loaded, own, training, _pool(loaded, training.seed, pool))
    write_learned(here, loaded, params)
    from_text.write(here, folder / FROM_TEXT)


def words() -> list[str]:
    """Every word of both worlds' prompts."""
    texts = [p.text for part in ("train", "held_out") for group in prompts.by_category(part).values() for p in group]
    texts += [p.text for part in ("train", "held_out") for p in animate.prompts(0, part).batch(0, ASKED)]
    return sorted({word for text in texts for word in text.split()})


def _begin(folder: pathlib.Path, seed: int, clips: autoencoders.Settings) -> None:
    """Writes the folder from a picture with a learned autoencoder; all other weights are random."""
    rng = np.random.default_rng(seed)
    drawn = [autoencoders.any_clip(rng) for _ in range(SEEN)]
    autoencoder, params = autoencoders.learn(autoencoders.CLIP_SIZES, lambda rng: pick(rng, drawn), clips, seed)
    write_settings(folder, autoencoder, words())
    component.write(folder / "vae", component.DIFFUSERS, autoencoder, params, DTYPE)
    weights_of(folder, seed)


def _pool(loaded: Pipeline, seed: int, count: int) -> Pool:
    """So many examples of each world, encoded."""
    rng, autoencoder = np.random.default_rng(seed), loaded.autoencoder_params()
    tokens = lambda clips, keys: loaded.network.to_tokens(loaded.autoencoder.encode(autoencoder, from_uint8(clips), keys))
    whole, picture = jax.jit(lambda clips: tokens(clips, None)), jax.jit(tokens)
    by_category, texts, data, first, rows = prompts.by_category("train"), {"": 0}, [], [], []
    for start in range(0, 2 * count, ENCODED):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), start), ENCODED)
        given = start >= count
        drawn = [supervised.animate_example(rng) if given else supervised.example(rng, by_category) for _ in range(ENCODED)]
        clips = np.stack([one.clip for one in drawn])
        data.append(np.asarray(whole(clips)))
        of_frame = data[-1].shape[1] // loaded.network.grid(SIDE, SIDE, FRAMES)[0]
        first.append(np.asarray(picture(clips[:, :1], keys)) if given else np.zeros_like(data[-1][:, :of_frame]))
        rows += [texts.setdefault(one.prompt.text, len(texts)) for one in drawn]
    tell(f"{len(rows)} examples with {len(texts) - 1} texts")
    ids = tuple(encoder.coder(list(texts)) for encoder in loaded.codec.encoders.parts)
    return Pool(np.concatenate(data), np.concatenate(first), np.array(rows), ids)


def _learn(loaded: Pipeline, own: Params, training: Training, pool: Pool) -> tuple:
    """Averaged parameters of the network, which begins with `own`, and of each encoder."""
    painter, encoders = loaded.network, loaded.codec.encoders.parts
    grid = painter.grid(SIDE, SIDE, FRAMES)
    params = (own, *(encoder.read(None) for encoder in encoders))

    def loss(params, key, ids, data, first):
        key_time, key_noise = jax.random.split(key)
        said = {}
        for encoder, own, rows in zip(encoders, params[1:], ids, strict=True):
            said |= encoder(own, *rows)
        condition = upon(TextStates(**said), first).repeat(training.noise_draws)
        data = jnp.repeat(data, training.noise_draws, axis=0)
        t = averaged.flow_times(painter.shift.of(math.prod(grid)), key_time, len(data))
        noise, wide = jax.random.normal(key_noise, data.shape), t[:, None, None]
        says = painter.predict(params[0], (1 - wide) * data + wide * noise, t, grid, condition)
        return jnp.mean((says - (noise - data)) ** 2)

    batches = pool.batches(np.random.default_rng([training.seed, 1]), training.batch, training.text_dropout)
    return averaged.learn(loss, params, batches, steps=training.steps, learning_rate=training.learning_rate,
                          ema_decay=training.ema_decay, key=jax.random.key(training.seed))  # fmt: skip
