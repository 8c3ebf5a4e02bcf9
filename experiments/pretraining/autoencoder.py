"""Learns the autoencoder of the shapes world: 24 pixels a side to 6 x 6 x 4 numbers, so that an object is 2 x 2 of them.

    loss = mean (decoded - image)^2 + BETA * KL(posterior | N(0, 1)),    the KL a mean over the latent's numbers

(arXiv 1312.6114), of scenes with any number of objects.  The KL leaves noise in the latents, so that what a painter draws
need not be exact to be seen.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unigrpo_jax.foreign_text import tell
from unigrpo_jax.models.autoencoders.image import ImageAutoencoder
from unigrpo_jax.models.autoencoders.pixels import from_uint8
from unigrpo_jax.models.building.fresh import fresh
from unigrpo_jax.worlds.shapes.drawing import render
from unigrpo_jax.worlds.shapes.scene import CELLS, COLOURS, SHAPES, Object, Scene, scene
from unigrpo_jax.worlds.shapes.supervised import pick

SIZES = ImageAutoencoder(width=16, multipliers=(1, 2, 2), blocks=1, channels=4, scale=1.0, shift=0.0, groups=8, quant=False)
STEPS, BATCH, BETA, PEAK, MEASURED = 900, 32, 0.004, 3e-3, 512
LOG_VARIANCE = (-20.0, 10.0)  # where the published autoencoders clip it


@dataclasses.dataclass(frozen=True)
class _Flat:
    """The autoencoder as a network of a component: every parameter has one tensor."""

    autoencoder: ImageAutoencoder

    def shapes(self):
        return self.autoencoder.shapes()

    def stored_names(self, name: str) -> tuple[str, ...]:
        return (name,)


def learn(steps: int, seed: int) -> tuple[ImageAutoencoder, dict[str, jax.Array]]:
    """An autoencoder whose latents have a mean square of 1, and its parameters, float32."""
    params = fresh(_Flat(SIZES), "", jax.random.key(seed))
    rate = optax.warmup_cosine_decay_schedule(0.0, PEAK, min(50, steps // 10), steps, PEAK * 0.01)
    transform = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.99))

    @jax.jit
    def step(params, state, images, number):
        def loss(p):
            image = from_uint8(images)
            mean, log_variance = SIZES.moments(p, image)
            log_variance = jnp.clip(log_variance, *LOG_VARIANCE)
            noise = jax.random.normal(jax.random.fold_in(jax.random.key(seed), number), mean.shape)
            mse = jnp.mean((SIZES.decode(p, SIZES.sample(mean, log_variance, noise)) - image) ** 2)
            kl = 0.5 * jnp.mean(mean**2 + jnp.exp(log_variance) - 1 - log_variance)
            return mse + BETA * kl, (mse, kl)

        grads, metrics = jax.grad(loss, has_aux=True)(params)
        updates, state = transform.update(grads, state)
        return optax.apply_updates(params, updates), state, metrics

    rng, state = np.random.default_rng(seed), transform.init(params)
    images = lambda n: np.stack([render(any_scene(rng)) for _ in range(n)])
    for number in range(steps):
        params, state, (mse, kl) = step(params, state, images(BATCH), number)
        if number % 100 == 0 or number == steps - 1:
            tell(f"autoencoder, step {number:4d}  mse {float(mse):.4f}  kl {float(kl):.3f}")
    latents = jax.jit(SIZES.encode)(params, from_uint8(images(MEASURED)))
    return dataclasses.replace(SIZES, scale=round(float(jnp.mean(latents**2) ** -0.5), 4)), params


def any_scene(rng: np.random.Generator) -> Scene:
    """Any number of any objects in any cells."""
    cells = rng.permutation(len(CELLS))[: rng.integers(len(CELLS) + 1)]
    return scene(*(Object(pick(rng, tuple(COLOURS)), pick(rng, SHAPES), CELLS[i]) for i in cells))
