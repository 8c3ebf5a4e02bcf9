"""Learns the autoencoders of the shapes worlds: 24 pixels a side to 6, so that an object is about 2 x 2 latent pixels.

    loss = mean (decoded - drawn)^2 + beta * KL(posterior | N(0, 1)),    the KL a mean over the latent's numbers

(arXiv 1312.6114), of scenes with any number of objects, still or moving.  The KL leaves noise in the latents, so that what a
painter draws need not be exact to be seen.  Of clips there is no KL, but a given noise, and colours begin by going straight
through: Adam takes whole steps along a KL however small its weight, and what is not read yet, as colours, is lost.  From
there it goes on with the clips that a painter learns from, and with more noise.
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
from optax.contrib import MuonDimensionNumbers, muon

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
# Of clips: as it is learned, 6 x 6 x 32 numbers of the first frame, and as many of every four more.
CLIP_SIZES = VideoAutoencoder(widths=(12, 24, 48), blocks=1, channels=32, scale=1.0, groups=2, downsample=4)
MEASURED = 512  # pictures, or clips, whose latents say the scale
OFFSET = 1.0  # of channels before a norm of clips
CUTS, FASTEST, AT_REST = 0.2, 2.4, 0.2  # shares of clips that become another one, and of objects; pixels a frame
SHUT = r".*resnets\.\d\.conv2\.conv|.*to_out\.0"  # modules that begin as 0, where colours are to go straight through
Autoencoder = ImageAutoencoder | VideoAutoencoder
LOG_VARIANCE = (-20.0, 10.0)  # where the published autoencoders clip it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How an autoencoder is learned.

    Attributes:
      steps: of the optimizer.
      batch: drawn for each.
      beta: weight of the KL; 0 is none, and then the posterior's deviation is given: `noise`, and in the end `DEVIATION`.
      noise: of latents as the decoder sees them while it learns, as a share of their root mean square.
      muon: kernels by Muon (https://kellerjordan.github.io/posts/muon), whose steps have a root mean square of 0.2 of the
        rate, as Adam's about have (arXiv 2502.16982); all else, and everything where it is off, by Adam.
      kept: principal channels of the latents that are kept in the end; 0 keeps all as they are.
      peak: the rate after 50 steps, from which it falls to 1 % by a cosine.
    """

    steps: int
    batch: int = 32
    beta: float = 0.0
    noise: float = 0.0
    muon: bool = False
    kept: int = 0
    peak: float = 3e-3


IMAGES = Settings(steps=900, beta=0.004)
CLIPS = Settings(steps=4500, batch=4, noise=0.1, muon=True, kept=16, peak=2e-3)
CLIPS_ON = Settings(steps=1500, batch=4, noise=0.3, muon=True, peak=1e-3)  # from there on
DEVIATION = 0.1  # of the posterior that is written where there was no KL, as a share of the latents' root mean square


@dataclasses.dataclass(frozen=True)
class _Flat:
    """The autoencoder as a network of a component: every parameter has one tensor."""

    autoencoder: Autoencoder

    def shapes(self):
        return self.autoencoder.shapes()

    def stored_names(self, name: str) -> tuple[str, ...]:
        return (name,)


def learn(
    sizes: Autoencoder,
    draw: Callable[[np.random.Generator], np.ndarray],
    settings: Settings,
    seed: int,
    begun: dict[str, jax.Array] | None = None,
) -> tuple[Autoencoder, dict[str, jax.Array]]:
    """An autoencoder of these sizes whose latents have a mean square of 1, and its parameters, float32.

    Args:
      sizes: of it.
      draw: what it learns from, one uint8 picture [H, W, 3], or clip [F, H, W, 3], a call.
      settings: of learning.
      seed: of weights, pictures and noise.
      begun: parameters to go on from; None begins with random ones.
    """
    sizes, params = dataclasses.replace(sizes, scale=1.0), begun
    if params is None:
        params = fresh(_Flat(sizes), SHUT if settings.noise else "", jax.random.key(seed))
        params = _straight(params) if settings.noise else params
    steps, peak = settings.steps, settings.peak
    rate = optax.warmup_cosine_decay_schedule(0.0, peak, min(50, steps // 10), steps, peak * 0.01)
    transform = optax.chain(optax.clip_by_global_norm(1.0), _optimizer(settings, rate, params))

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
        updates, state = transform.update(grads, state, params)
        return optax.apply_updates(params, updates), state, metrics

    rng, state, began = np.random.default_rng(seed), transform.init(params), time.monotonic()
    batch = lambda n: np.stack([draw(rng) for _ in range(n)])
    for number in range(steps):
        params, state, (mse, kl) = step(params, state, batch(settings.batch), number)
        if number % 100 == 0 or number == steps - 1:
            words = f"autoencoder, step {number:4d}  mse {float(mse):.4f}  kl {float(kl):.3f}"
            tell(f"{words}  {time.monotonic() - began:6.0f} s")
    encode = jax.jit(sizes.encode)
    latents = np.stack([encode(params, from_uint8(batch(settings.batch))) for _ in range(-(-MEASURED // settings.batch))])
    if settings.kept:
        sizes, params, latents = _principal(sizes, params, latents, settings.kept)
    size = float(np.mean(latents**2)) ** 0.5
    if settings.noise:
        params = _with_deviation(params, sizes.channels, DEVIATION * size)
    return dataclasses.replace(sizes, scale=round(1 / size, 4)), params


def _optimizer(settings: Settings, rate: optax.Schedule, params: dict[str, jax.Array]) -> optax.GradientTransformation:
    if not settings.muon:
        return optax.adam(rate, b2=0.99)
    kernel = lambda p: MuonDimensionNumbers(reduction_axis=tuple(range(1, p.ndim)), output_axis=0)
    kinds = {name: kernel(p) if p.ndim > 1 else None for name, p in params.items()}
    return muon(rate, muon_weight_dimension_numbers=kinds, consistent_rms=0.2, adam_b2=0.99)


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


def _principal(sizes: VideoAutoencoder, params: dict[str, jax.Array], latents: np.ndarray, kept: int) -> tuple:
    """The same with the principal channels of these latents [..., C], around their mean: sizes, parameters, new latents.

    What turns them lies in the convolutions beside the 1 x 1 ones, which become the identity; a posterior has no deviation.
    """
    flat = latents.reshape(-1, sizes.channels).astype(np.float64)
    mean = flat.mean(0)
    turn = np.linalg.eigh(np.cov((flat - mean).T))[1][:, ::-1][:, :kept]  # [C, kept]
    p = {name: np.asarray(x, np.float64) for name, x in params.items()}
    said, given = p["quant_conv.weight"][:, :, 0, 0, 0], p["post_quant_conv.weight"][:, :, 0, 0, 0]
    last = np.einsum("ok,oj,jwabc->kwabc", turn, said[: sizes.channels], p["encoder.conv_out.conv.weight"])
    bias = said[: sizes.channels] @ p["encoder.conv_out.conv.bias"] + p["quant_conv.bias"][: sizes.channels]
    first, same = p["decoder.conv_in.conv.weight"], np.eye(2 * kept)[..., None, None, None]
    constant = np.einsum("wcabt,c->w", first, given @ mean + p["post_quant_conv.bias"])
    p |= {
        "encoder.conv_out.conv.weight": np.concatenate([last, 0 * last]),
        "encoder.conv_out.conv.bias": np.concatenate([turn.T @ (bias - mean), np.zeros(kept)]),
        "quant_conv.weight": same, "quant_conv.bias": np.zeros(2 * kept),
        "post_quant_conv.weight": same[:kept, :kept], "post_quant_conv.bias": np.zeros(kept),
        "decoder.conv_in.conv.weight": np.einsum("wcabt,cd,dk->wkabt", first, given, turn),
        "decoder.conv_in.conv.bias": p["decoder.conv_in.conv.bias"] + constant,
    }  # fmt: skip
    own = {name: jnp.asarray(x, jnp.float32) for name, x in p.items()}
    return dataclasses.replace(sizes, channels=kept), own, (flat - mean) @ turn


def _with_deviation(params: dict[str, jax.Array], channels: int, deviation: float) -> dict[str, jax.Array]:
    """The same with a posterior of this deviation, whatever is encoded."""
    weight, bias = params["quant_conv.weight"], params["quant_conv.bias"]
    own = {"quant_conv.weight": weight.at[channels:].set(0.0),
           "quant_conv.bias": bias.at[channels:].set(2 * math.log(deviation))}  # fmt: skip
    return params | own


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
    """None to two of any objects at any places apart, each at rest or on any way, along an axis or not."""
    starts, count = [], pick(rng, (0, 1, 1, 2, 2, 2))
    while len(starts) < count:
        start = rng.uniform(0, ROOM, 2)
        starts += [start] if all(np.abs(start - other).max() >= BOX for other in starts) else []
    movers = []
    for start in starts:
        velocity = rng.uniform(-FASTEST, FASTEST, 2) * pick(rng, ((1, 0), (0, 1), (1, 0), (0, 1), (0.7, 0.7)))
        velocity *= rng.random() >= AT_REST
        movers.append(Mover(pick(rng, tuple(COLOURS)), pick(rng, SHAPES), tuple(start.tolist()), tuple(velocity.tolist())))
    return MovingScene(tuple(movers), pick(rng, WALLS))
