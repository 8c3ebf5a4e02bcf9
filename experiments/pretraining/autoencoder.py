"""Learns the autoencoders of the shapes worlds: 24 pixels a side to 6, so that an object is about 2 x 2 latent pixels.

    loss = mean (decoded - drawn)^2 + beta * KL(posterior | N(0, 1)),    the KL a mean over the latent's numbers

(arXiv 1312.6114), of scenes with any number of objects, still or moving.  The KL leaves noise in the latents, so that what a
painter draws need not be exact to be seen.  Of clips there is no KL, but a given noise, and colours begin by going straight
through: Adam takes whole steps along a KL however small its weight, and what is not read yet, as colours, is lost.
"""

import dataclasses
import math
import re
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unigrpo_jax.foreign_text import tell
from unigrpo_jax.models.autoencoders.image import ImageAutoencoder
from unigrpo_jax.models.autoencoders.pixels import from_uint8
from unigrpo_jax.models.autoencoders.video import VideoAutoencoder
from unigrpo_jax.models.building.fresh import fresh
from unigrpo_jax.worlds.motion import drawing as moving
from unigrpo_jax.worlds.motion.scene import BOX, FRAMES, ROOM, WALLS, Mover, MovingScene
from unigrpo_jax.worlds.shapes.drawing import render
from unigrpo_jax.worlds.shapes.scene import CELLS, COLOURS, SHAPES, Object, Scene, scene
from unigrpo_jax.worlds.shapes.supervised import index, pick

SIZES = ImageAutoencoder(width=16, multipliers=(1, 2, 2), blocks=1, channels=4, scale=1.0, shift=0.0, groups=8, quant=False)
# Of clips: 6 x 6 x 16 numbers of the first frame, and as many of every four more.
CLIP_SIZES = VideoAutoencoder(widths=(4, 16, 32), blocks=1, channels=16, scale=1.0, groups=2, downsample=4)
MEASURED = 512  # pictures, or clips, whose latents say the scale
OFFSET = 1.0  # of channels before a norm of clips
CUT = (5, 16)  # frames, and pixels along a side, from the first ones or up to the last ones
CUTS, FASTEST, AT_REST = 0.5, 2.4, 0.2  # shares of clips that become another one, and of objects; pixels a frame
SHUT = r".*resnets\.\d\.conv2\.conv|.*to_out\.0"  # modules that begin as 0, where colours are to go straight through
Autoencoder = ImageAutoencoder | VideoAutoencoder
LOG_VARIANCE = (-20.0, 10.0)  # where the published autoencoders clip it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How an autoencoder is learned.

    Attributes:
      steps: of the optimizer.
      batch: drawn for each.
      beta: weight of the KL; 0 is none, and then the posterior's deviation is `noise`.
      noise: of latents as the decoder sees them, as a share of their root mean square.
      cut: of clips, first steps on `CUT` of twice as many, which a step takes a quarter of the time for.
      peak: Adam's rate after 50 steps, from which it falls to 1 % by a cosine.
    """

    steps: int
    batch: int = 32
    beta: float = 0.0
    noise: float = 0.0
    cut: int = 0
    peak: float = 3e-3


IMAGES = Settings(steps=900, beta=0.004)
CLIPS = Settings(steps=2400, batch=8, noise=0.1, cut=2000, peak=1e-3)


@dataclasses.dataclass(frozen=True)
class _Flat:
    """The autoencoder as a network of a component: every parameter has one tensor."""

    autoencoder: Autoencoder

    def shapes(self):
        return self.autoencoder.shapes()

    def stored_names(self, name: str) -> tuple[str, ...]:
        return (name,)


def learn(
    sizes: Autoencoder, draw: Callable[[np.random.Generator], np.ndarray], settings: Settings, seed: int
) -> tuple[Autoencoder, dict[str, jax.Array]]:
    """An autoencoder of these sizes whose latents have a mean square of 1, and its parameters, float32.

    Args:
      sizes: of it; `scale` is 1.
      draw: what it learns from, one uint8 picture [H, W, 3], or clip [F, H, W, 3], a call.
      settings: of learning.
      seed: of weights, pictures and noise.
    """
    params = fresh(_Flat(sizes), SHUT if settings.noise else "", jax.random.key(seed))
    params = _straight(params) if settings.noise else params
    steps, peak = settings.steps, settings.peak
    rate = optax.warmup_cosine_decay_schedule(0.0, peak, min(50, steps // 10), steps, peak * 0.01)
    transform = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.99))

    @jax.jit
    def step(params, state, drawn, number):
        def loss(p):
            pixels = from_uint8(drawn)
            mean, log_variance = sizes.moments(p, pixels)
            if settings.noise:
                log_variance = jnp.log(settings.noise**2 * jnp.mean(mean**2)) + jnp.zeros_like(mean)
            log_variance = jnp.clip(log_variance, *LOG_VARIANCE)
            noise = jax.random.normal(jax.random.fold_in(jax.random.key(seed), number), mean.shape)
            mse = jnp.mean((sizes.decode(p, sizes.sample(mean, log_variance, noise)) - pixels) ** 2)
            kl = 0.5 * jnp.mean(mean**2 + jnp.exp(log_variance) - 1 - log_variance)
            return mse + settings.beta * kl, (mse, kl)

        grads, metrics = jax.grad(loss, has_aux=True)(params)
        updates, state = transform.update(grads, state)
        return optax.apply_updates(params, updates), state, metrics

    rng, state, began = np.random.default_rng(seed), transform.init(params), time.monotonic()
    batch = lambda n: np.stack([draw(rng) for _ in range(n)])
    for number in range(steps):
        drawn = _cut(rng, batch(2 * settings.batch)) if number < settings.cut else batch(settings.batch)
        params, state, (mse, kl) = step(params, state, drawn, number)
        if number % 100 == 0 or number == steps - 1:
            words = f"autoencoder, step {number:4d}  mse {float(mse):.4f}  kl {float(kl):.3f}"
            tell(f"{words}  {time.monotonic() - began:6.0f} s")
    encode = jax.jit(sizes.encode)
    squares = [float(jnp.mean(encode(params, from_uint8(batch(settings.batch))) ** 2))
               for _ in range(-(-MEASURED // settings.batch))]  # fmt: skip
    size = float(np.mean(squares)) ** 0.5
    if settings.noise:
        params = _with_deviation(params, sizes.channels, settings.noise * size)
    return dataclasses.replace(sizes, scale=round(1 / size, 4)), params


def _straight(params: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The same, where the middle of each kernel's last frame also adds channel i of the input to channel i of the output.

    Before each norm every other channel is raised by `OFFSET` and every other one lowered, so its statistics are theirs:
    those of a picture with little in it would make noise as bright as an object, and of a fuller one objects darker.
    """
    out = dict(params)
    for name, p in params.items():
        module = name.rpartition(".")[0]
        if p.ndim == 5 and not re.fullmatch(SHUT, module):
            middle = p.shape[-1] // 2
            out[name] = (0.5 * p).at[:, :, -1, middle, middle].add(jnp.eye(*p.shape[:2]))
        if name.endswith(".conv.bias") and not re.fullmatch(rf"{SHUT}|.*conv_out\.conv", module):
            out[name] = OFFSET * (-1.0) ** jnp.arange(len(p))
    return out


def _with_deviation(params: dict[str, jax.Array], channels: int, deviation: float) -> dict[str, jax.Array]:
    """The same with a posterior of this deviation, whatever is encoded."""
    weight, bias = params["quant_conv.weight"], params["quant_conv.bias"]
    own = {"quant_conv.weight": weight.at[channels:].set(0.0),
           "quant_conv.bias": bias.at[channels:].set(2 * math.log(deviation))}  # fmt: skip
    return params | own


def _cut(rng: np.random.Generator, clips: np.ndarray) -> np.ndarray:
    """Each clip's part of `CUT`, at a corner and at its begin or end."""
    (frames, side), out = CUT, []
    for clip in clips:
        t, y, x = (pick(rng, (0, n - kept)) for n, kept in zip(clip.shape, (frames, side, side), strict=False))
        out.append(clip[t : t + frames, y : y + side, x : x + side])
    return np.stack(out)


def any_picture(rng: np.random.Generator) -> np.ndarray:
    """The picture of any scene, uint8 [24, 24, 3]."""
    return render(any_scene(rng))


def any_scene(rng: np.random.Generator) -> Scene:
    """Any number of any objects in any cells."""
    cells = rng.permutation(len(CELLS))[: rng.integers(len(CELLS) + 1)]
    return scene(*(Object(pick(rng, tuple(COLOURS)), pick(rng, SHAPES), CELLS[i]) for i in cells))


def any_clip(rng: np.random.Generator) -> np.ndarray:
    """The clip of any moving scene, or of one that becomes another at some frame, uint8 [9, 24, 24, 3]."""
    clip = moving.render(any_moving_scene(rng))
    if rng.random() < CUTS:
        begins = 1 + index(rng, FRAMES - 1)
        clip[begins:] = moving.render(any_moving_scene(rng))[begins:]
    return clip


def any_moving_scene(rng: np.random.Generator) -> MovingScene:
    """None to four of any objects at any places apart, each at rest or on any way, along an axis or not."""
    starts, count = [], pick(rng, (0, 1, 2, 2, 3, 3, 4, 4))
    while len(starts) < count:
        start = rng.uniform(0, ROOM, 2)
        starts += [start] if all(np.abs(start - other).max() >= BOX for other in starts) else []
    movers = []
    for start in starts:
        velocity = rng.uniform(-FASTEST, FASTEST, 2) * pick(rng, ((1, 0), (0, 1), (1, 0), (0, 1), (0.7, 0.7)))
        velocity *= rng.random() >= AT_REST
        movers.append(Mover(pick(rng, tuple(COLOURS)), pick(rng, SHAPES), tuple(start.tolist()), tuple(velocity.tolist())))
    return MovingScene(tuple(movers), pick(rng, WALLS))
