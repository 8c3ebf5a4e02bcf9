"""Makes the two base painters of the worlds of motion, which are one network: an autoencoder, then it and its text encoders.

    loss = mean (predict(x_t, t | text, first) - (noise - data))^2,    x_t = (1 - t) data + t noise

Times are those of a shift of `SHIFT`, since what is drawn, and where, is decided early.  Half of the examples are of
`shapes_motion`, half of `shapes_animate`.  `first` is the latent of the picture that was given, and zeros where none was, so
that the painter from text alone is the same network without the weights that read a picture.  The examples are as faulty as
`worlds.motion.supervised` makes them; a pool of them is made, and encoded, once.

Who goes on from a folder leaves its text encoders as they are, as those of the published models are, so that what they say
of each text is computed once, too.
"""

import dataclasses
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.pretraining import autoencoder as autoencoders
from experiments.pretraining import averaged
from experiments.pretraining.painters import DTYPE, Training, say, write_learned
from experiments.pretraining.video_folder import weights_of, write_settings
from unigrpo_jax.config import ModelConfig, require
from unigrpo_jax.foreign_text import tell
from unigrpo_jax.models import families
from unigrpo_jax.models.autoencoders.pixels import from_uint8
from unigrpo_jax.models.building.first_frame import upon
from unigrpo_jax.models.folders import component
from unigrpo_jax.models.folders.pipelines import Pipeline
from unigrpo_jax.models.hunyuan_video import from_text
from unigrpo_jax.models.text_encoders.encoder import Encoder
from unigrpo_jax.models.text_encoders.states import TextStates
from unigrpo_jax.models.verbs import Params
from unigrpo_jax.worlds.motion import animate, prompts, supervised
from unigrpo_jax.worlds.motion.scene import FRAMES
from unigrpo_jax.worlds.shapes.drawing import SIDE
from unigrpo_jax.worlds.shapes.supervised import pick

FROM_TEXT, FROM_PICTURE = "motion", "animate"  # folders of the two
POOL = 6144  # examples of each world
SEEN = 4096  # clips that the autoencoder learns from
ENCODED = 64  # examples, or texts, at a time
SHIFT = 4.0  # of training times towards noise
ASKED = 1200  # prompts of a part of `shapes_animate` whose words are looked at; there are few words


@dataclasses.dataclass(frozen=True)
class Pool:
    """N examples as the loss takes them.

    Attributes:
      data: [N, tokens, C], clips as tokens of latents.
      first: [N, tokens of a frame, C], the picture's, zeros where there is none.
      rows: [N], which text each has.
      texts: of all texts, the empty one first: ids and mask for each text encoder, or what the encoders say.
    """

    data: np.ndarray
    first: np.ndarray
    rows: np.ndarray
    texts: Any

    def batches(self, rng: np.random.Generator, count: int, dropout: float) -> Iterator[tuple]:
        """Draws of `count` examples without end: texts, data, first; a share of the texts is left out."""
        while True:
            drawn = rng.integers(len(self.rows), size=count)
            asked = np.where(rng.random(count) < dropout, 0, self.rows[drawn])
            yield jax.tree.map(lambda x, asked=asked: x[asked], self.texts), self.data[drawn], self.first[drawn]


def make(folder: pathlib.Path, training: Training, start: str | None = None, pool: int = POOL,
         clips: Sequence[autoencoders.Settings] = (autoencoders.CLIPS, autoencoders.CLIPS_ON)) -> None:  # fmt: skip
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
    examples, encoders = _pool(loaded, training.seed, pool), loaded.codec.encoders.parts
    told = tuple(encoder.read(None) for encoder in encoders)
    if start is None:
        own, *told = _learn(loaded, (loaded.network.init(jax.random.key(training.seed)), *told), training, examples)
    else:
        (own,) = _learn(loaded, (loaded.params(),), training, _said(examples, encoders, told))
    write_learned(here, loaded, (own, *told))
    from_text.write(here, folder / FROM_TEXT)


def words() -> list[str]:
    """Every word of both worlds' prompts."""
    texts = [p.text for part in ("train", "held_out") for group in prompts.by_category(part).values() for p in group]
    texts += [p.text for part in ("train", "held_out") for p in animate.prompts(0, part).batch(0, ASKED)]
    return sorted({word for text in texts for word in text.split()})


def _begin(folder: pathlib.Path, seed: int, clips: Sequence[autoencoders.Settings]) -> None:
    """Writes the folder from a picture with a learned autoencoder, of any clips, then of examples; the rest is random."""
    rng, by_category = np.random.default_rng(seed), prompts.by_category("train")
    autoencoder, params = autoencoders.CLIP_SIZES, None
    examples = (lambda: supervised.example(rng, by_category).clip, lambda: supervised.animate_example(rng).clip)
    for settings, draw in zip(clips, (lambda: autoencoders.any_clip(rng), lambda: pick(rng, examples)()), strict=True):
        drawn = [draw() for _ in range(SEEN)]
        take = lambda rng, drawn=drawn: pick(rng, drawn)
        autoencoder, params = autoencoders.learn(autoencoder, take, settings, seed, params)
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


def _said(pool: Pool, encoders: Sequence[Encoder], params: Sequence[Params]) -> Pool:
    """The pool with what is said of its texts in the place of their ids."""
    told, count = jax.jit(lambda texts: say(encoders, params, texts)), len(pool.texts[0][0])
    some = lambda start: jax.tree.map(lambda x: x[np.arange(start, start + ENCODED).clip(0, count - 1)], pool.texts)
    parts = [jax.tree.map(np.asarray, told(some(start))) for start in range(0, count, ENCODED)]
    return dataclasses.replace(pool, texts=jax.tree.map(lambda *x: np.concatenate(x)[:count], *parts))


def _learn(loaded: Pipeline, params: tuple, training: Training, pool: Pool) -> tuple:
    """Averaged parameters, of the network and, where they are among `params`, the ones to begin with, of each encoder."""
    painter, encoders = loaded.network, loaded.codec.encoders.parts
    grid = painter.grid(SIDE, SIDE, FRAMES)

    def loss(params, key, texts, data, first):
        key_time, key_noise = jax.random.split(key)
        said = say(encoders, params[1:], texts) if params[1:] else texts
        condition = upon(TextStates(**said), first).repeat(training.noise_draws)
        data = jnp.repeat(data, training.noise_draws, axis=0)
        t = averaged.flow_times(SHIFT, key_time, len(data))
        noise, wide = jax.random.normal(key_noise, data.shape), t[:, None, None]
        says = painter.predict(params[0], (1 - wide) * data + wide * noise, t, grid, condition)
        return jnp.mean((says - (noise - data)) ** 2)

    batches = pool.batches(np.random.default_rng([training.seed, 1]), training.batch, training.text_dropout)
    return averaged.learn(loss, params, batches, steps=training.steps, learning_rate=training.learning_rate,
                          ema_decay=training.ema_decay, key=jax.random.key(training.seed))  # fmt: skip
