"""Gaussian paths from noise to data, x_t = alpha_t data + sigma_t noise, and what a network says on them.

Time runs from t = 1 (noise) to t = 0 (data).  A network predicts one of

    velocity    noise - data
    noise
    v           alpha noise - sigma data      (progressive distillation, arXiv 2202.00512)
    data

and here is the one place that converts any of them into estimates of data and noise, and back.  Everything is float32;
times are scalars, or have the shape of a batch with axes of 1 behind it, and may be traced.
"""

import abc
import dataclasses
import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

Prediction = Literal["velocity", "noise", "v", "data"]


@dataclasses.dataclass(frozen=True)
class Estimates:
    """What a network says at x_t, float32 arrays like x.

    Attributes:
      x: the latent.
      data: the estimate of the data.
      noise: the estimate of the noise.
      velocity: noise - data.
    """

    x: jax.Array
    data: jax.Array
    noise: jax.Array
    velocity: jax.Array


class Path(abc.ABC):
    """A Gaussian path, and the SDE dx = f x dt + g dw whose marginals it has, f = d ln(alpha) / dt.

    Attributes:
      steps: K, where its times are k / K; 0 where they are all of (0, 1].
    """

    steps: int = 0

    @abc.abstractmethod
    def coefficients(self, t) -> tuple[jax.Array, jax.Array]:
        """alpha_t and sigma_t, float32 of the shape of t."""

    @abc.abstractmethod
    def diffusion(self, t) -> jax.Array:
        """g^2, float32: the variance that the SDE adds per unit of time."""

    @abc.abstractmethod
    def noiseless(self, e: Estimates, t, t_next, push: jax.Array | float = 0.0) -> jax.Array:
        """alpha' data + sigma' noise, float32 like x: Euler's step of a rectified flow, DDIM of a diffusion.

        `push`, like x or a number, is a rate that is added to dx / dt for the whole step.
        """


@dataclasses.dataclass(frozen=True)
class RectifiedFlow(Path):
    """alpha = 1 - t, sigma = t, t in [0, 1]; its ODE is dx / dt = velocity."""

    def coefficients(self, t):
        """1 - t and t."""
        t = jnp.asarray(t, jnp.float32)
        return 1 - t, t

    def diffusion(self, t):
        """2 t / (1 - t), infinite at t = 1."""
        t = jnp.asarray(t, jnp.float32)
        return 2 * t / (1 - t)

    def noiseless(self, e: Estimates, t, t_next, push=0.0):
        """x + (velocity + push) (t' - t)."""
        return e.x + (e.velocity + push) * (t_next - t)


RECTIFIED = RectifiedFlow()


@dataclasses.dataclass(frozen=True)
class VariancePreserving(Path):
    """A diffusion in K steps, alpha^2 = product of the first k of 1 - beta, sigma^2 = 1 - alpha^2, at the times t = k / K.

    A network that counts its steps from 0 is fed k - 1.  Between two times the nearest counts.

    Attributes:
      betas: K variances, in (0, 1).
    """

    betas: tuple[float, ...]

    def __post_init__(self):
        if not self.betas or not all(0 < beta < 1 for beta in self.betas):
            raise ValueError("VariancePreserving: betas must be numbers between 0 and 1, at least one.")

    @property
    def steps(self) -> int:
        """K."""
        return len(self.betas)

    @functools.cached_property
    def _tables(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        betas = np.asarray(self.betas, np.float64)
        kept = np.concatenate([[1.0], np.cumprod(1 - betas)])
        rates = len(betas) * np.concatenate([betas[:1], betas])
        return tuple(x.astype(np.float32) for x in (np.sqrt(kept), np.sqrt(1 - kept), rates))

    def _at(self, table: int, t) -> jax.Array:
        step = jnp.round(jnp.asarray(t, jnp.float32) * len(self.betas)).astype(jnp.int32)
        return jnp.asarray(self._tables[table])[step]

    def coefficients(self, t):
        """sqrt of the product, and sqrt(1 - it)."""
        return self._at(0, t), self._at(1, t)

    def diffusion(self, t):
        """K beta_k: a step of 1 / K adds beta_k."""
        return self._at(2, t)

    def noiseless(self, e: Estimates, t, t_next, push=0.0):
        """alpha' data + sigma' noise + push (t' - t)."""
        alpha, sigma = self.coefficients(t_next)
        return alpha * e.data + sigma * e.noise + push * (t_next - t)


def scaled_linear(first: float, last: float, steps: int) -> VariancePreserving:
    """Stable Diffusion's betas, whose square roots are evenly spaced between those of `first` and `last`."""
    return VariancePreserving(tuple(np.linspace(first**0.5, last**0.5, steps, dtype=np.float64) ** 2))


def estimates(path: Path, prediction: Prediction, x, output, t) -> Estimates:
    """What an output of the network at x_t means.

    Args:
      path: where x_t lies.
      prediction: what the network predicts.
      x: the latent at time t.
      output: the network's, like x.
      t: the time, in (0, 1]; noise cannot be told from a prediction of the data at sigma = 0.
    """
    x, output = (jnp.asarray(value, jnp.float32) for value in (x, output))
    alpha, sigma = path.coefficients(t)
    match prediction:
        case "velocity" if isinstance(path, RectifiedFlow):  # alpha + sigma = 1
            return Estimates(x, x - sigma * output, x + alpha * output, output)
        case "velocity":
            data, noise = (x - sigma * output) / (alpha + sigma), (x + alpha * output) / (alpha + sigma)
            return Estimates(x, data, noise, output)
        case "noise":
            data, noise = (x - sigma * output) / alpha, output
        case "v":
            norm = alpha**2 + sigma**2
            data, noise = (alpha * x - sigma * output) / norm, (sigma * x + alpha * output) / norm
        case "data":
            data, noise = output, (x - alpha * output) / sigma
        case _:
            raise ValueError(f"No prediction is called {prediction!r}. There are: {', '.join(get_args(Prediction))}.")
    return Estimates(x, data, noise, noise - data)


def target(path: Path, prediction: Prediction, data, noise, t) -> jax.Array:
    """What a network should predict where x_t is made of this data and noise; float32 like them."""
    data, noise = (jnp.asarray(value, jnp.float32) for value in (data, noise))
    alpha, sigma = path.coefficients(t)
    match prediction:
        case "velocity":
            return noise - data
        case "noise":
            return noise
        case "v":
            return alpha * noise - sigma * data
        case "data":
            return data
    raise ValueError(f"No prediction is called {prediction!r}. There are: {', '.join(get_args(Prediction))}.")
