"""Transitions of a sampler: one denoising step as a Gaussian, for every step rule, on any Gaussian path.

Time runs from t = 1 (noise) to t = 0 (data), and a path says what x_t is made of (`paths`).  A step rule turns what a
network says at x_t into the mean and standard deviation of x_{t'}:

    x_{t'} = mean + std * eps,    eps ~ N(0, I),    dt = t' - t < 0

Sampling, log-probabilities and the GRPO ratio all follow from those two, so no rule is named outside this file.  The
window says which transitions of a schedule take the stochastic rule; all others take the one without noise.

Everything is float32, whatever the dtype of the inputs.  Times are scalars and may be traced.
"""

import abc
import dataclasses
import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from unigrpo_jax.models.paths import RECTIFIED, Estimates, Path, Prediction, RectifiedFlow, estimates


class StepRule(abc.ABC):
    """A Gaussian transition of the sampler."""

    def transition(
        self, x_BNC, output_BNC, t, t_next, t_second, path: Path = RECTIFIED, prediction: Prediction = "velocity"
    ) -> tuple[jax.Array, jax.Array]:
        """Mean [B, N, C] and standard deviation [] of x_{t_next}, both float32.

        Args:
          x_BNC: the latent at time t.
          output_BNC: what the network predicts there.
          t: the time of departure, in (0, 1].
          t_next: the time of arrival, in [0, t).
          t_second: the schedule's second entry; it stands in for t where a rule would be infinite at t = 1.
          path: where the latents lie.
          prediction: what the network predicts.
        """
        t, t_next, t_second = (jnp.asarray(time, jnp.float32) for time in (t, t_next, t_second))
        said = estimates(path, prediction, x_BNC, output_BNC, t)
        rule = self if self.amount else ODE()
        return rule.step(path, said, t, t_next, t_second)

    @property
    @abc.abstractmethod
    def amount(self) -> float:
        """How much noise there is: of 0 the transition is the one without noise, to the last bit."""

    @abc.abstractmethod
    def step(self, path: Path, e: Estimates, t, t_next, t_second) -> tuple[jax.Array, jax.Array]:
        """The same from what the network says, where `amount` is above 0; all float32."""

    def log_prob(self, x_next_BNC, mean_BNC, std) -> jax.Array:
        """Log-density of x_next under N(mean, std^2), float32 [B], the MEAN over the latent's dimensions.

        A transition without noise (std = 0) has no density; it is deterministic and counts 0, with zero gradient.
        """
        error = x_next_BNC.astype(jnp.float32) - mean_BNC.astype(jnp.float32)
        noisy = std > 0
        scale = jnp.where(noisy, std, 1)  # keeps the branch that is not taken finite, and with it the gradient
        density = _latent_mean(-(error**2) / (2 * scale**2)) - jnp.log(scale) - 0.5 * math.log(2 * math.pi)
        return jnp.where(noisy, density, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ODE(StepRule):
    """mean = alpha' data + sigma' noise: Euler's step of a rectified flow, DDIM (arXiv 2010.02502) of a diffusion.

    The member without noise of every family below.
    """

    amount = 0.0

    def step(self, path, e, t, t_next, t_second):
        """Mean [B, N, C] and standard deviation [] = 0."""
        return path.noiseless(e, t, t_next), jnp.zeros((), jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Levelled(StepRule):
    """A rule with a noise level.

    Attributes:
      noise_level: `a`; 0 gives the ODE.
    """

    noise_level: float

    def __post_init__(self):
        _check_noise_level(self)

    @property
    def amount(self):
        """The noise level."""
        return self.noise_level


class _EulerMaruyama(_Levelled):
    """A step of dx = [u - w^2 / 2 score] dt + w dw, score = -noise / sigma, which has the path's marginals for any w.

    u = dx / dt is the rule without noise, and only what comes to it is taken by Euler's step.
    """

    @abc.abstractmethod
    def rates(self, path: Path, t, t_next, t_second) -> tuple[jax.Array, jax.Array]:
        """w^2 / (2 sigma) and w sqrt(-dt)."""

    def step(self, path, e, t, t_next, t_second):
        """Mean [B, N, C] and standard deviation []."""
        pull, std = self.rates(path, t, t_next, t_second)
        return path.noiseless(e, t, t_next, pull * e.noise), std


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowSDE(_EulerMaruyama):
    """w^2 = a^2 g^2 / 2; on a rectified flow w = a sqrt(t / (1 - t)) (Flow-GRPO, arXiv 2505.05470, eq. 9).

    Attributes:
      noise_level: `a`; 0 gives the ODE.
    """

    def rates(self, path, t, t_next, t_second):
        """On a rectified flow `t_second` stands in for t in 1 - t at t = 1."""
        if not isinstance(path, RectifiedFlow):
            return _rates(path, self.noise_level**2 / 2 * path.diffusion(t), t, t_next)
        remaining = 1 - jnp.where(t < 1, t, t_second)
        # w^2 / (2 t): the t cancels.  One square root, and the product before the quotient: at t = 1 the fraction is then
        # exactly 1, and std = a.
        return self.noise_level**2 / (2 * remaining), self.noise_level * jnp.sqrt(t * -(t_next - t) / remaining)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DanceSDE(_EulerMaruyama):
    """w = a on a rectified flow, w = a g on a diffusion: constant noise level (DanceGRPO, arXiv 2505.07818).

    Attributes:
      noise_level: `a`, 0.3 in the paper; 0 gives the ODE.
    """

    def rates(self, path, t, t_next, t_second):
        """`t_second` is not needed."""
        if not isinstance(path, RectifiedFlow):
            return _rates(path, self.noise_level**2 * path.diffusion(t), t, t_next)
        return self.noise_level**2 / (2 * t), self.noise_level * jnp.sqrt(-(t_next - t))


def _rates(path: Path, square, t, t_next):
    return square / (2 * path.coefficients(t)[1]), jnp.sqrt(square * -(t_next - t))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDIM(StepRule):
    """DDIM with eta (arXiv 2010.02502, eq. 12 and 16), for any path:

        std  = eta sigma' / sigma sqrt(sigma^2 - (alpha sigma' / alpha')^2)
        mean = alpha' data + sqrt(sigma'^2 - std^2) noise

    The total noise, old and new, is that of x_{t'}.  At eta = 1 it is the posterior of the forward process.

    Attributes:
      eta: 0 gives the rule without noise.
    """

    eta: float

    def __post_init__(self):
        if not 0 <= self.eta <= 1:
            raise ValueError(f"DDIM: eta = {self.eta}, but it must be between 0 and 1.")

    @property
    def amount(self):
        """Eta."""
        return self.eta

    def step(self, path, e, t, t_next, t_second):
        """Mean [B, N, C] and standard deviation [], which is 0 where sigma' is."""
        (alpha, sigma), (alpha_next, sigma_next) = path.coefficients(t), path.coefficients(t_next)
        fresh = jnp.maximum(sigma**2 - (alpha * sigma_next / alpha_next) ** 2, 0)
        std = self.eta * sigma_next / sigma * jnp.sqrt(fresh)
        return alpha_next * e.data + jnp.sqrt(jnp.maximum(sigma_next**2 - std**2, 0)) * e.noise, std


@dataclasses.dataclass(frozen=True, kw_only=True)
class CPS(_Levelled):
    """Coefficients-preserving sampling (Flow-CPS, arXiv 2509.05952): data and noise keep the path's coefficients.

        std  = sigma' sin(a pi / 2)
        mean = alpha' data + sqrt(sigma'^2 - std^2) noise

    The total noise, old and new, is that of x_{t'}: sqrt(sigma'^2 - std^2)^2 + std^2 = sigma'^2.

    Attributes:
      noise_level: `a`; 0 gives the ODE, 1 replaces all of the noise.
    """

    def __post_init__(self):
        _check_noise_level(self, largest=2.0)  # beyond it the sine, a standard deviation, is negative

    def step(self, path, e, t, t_next, t_second):
        """Mean [B, N, C] and standard deviation [], which is 0 where sigma' is; `t_second` is not needed."""
        alpha, sigma = path.coefficients(t_next)
        angle = self.noise_level * math.pi / 2
        # sqrt(sigma'^2 - std^2) = sigma' |cos|, without the root whose slope is infinite where its argument vanishes.
        return alpha * e.data + sigma * abs(math.cos(angle)) * e.noise, sigma * math.sin(angle)

    def log_prob(self, x_next_BNC, mean_BNC, std) -> jax.Array:
        """-(x_next - mean)^2, float32 [B], the mean over the latent's dimensions; defined at std = 0, too."""
        return _latent_mean(-((x_next_BNC.astype(jnp.float32) - mean_BNC.astype(jnp.float32)) ** 2))


RuleName = Literal["ode", "flow_sde", "dance_sde", "cps", "ddim"]


def step_rule(name: RuleName, noise_level: float) -> StepRule:
    """The rule of that name; `noise_level` does not concern the ODE."""
    match name:
        case "ode":
            return ODE()
        case "flow_sde":
            return FlowSDE(noise_level=noise_level)
        case "dance_sde":
            return DanceSDE(noise_level=noise_level)
        case "cps":
            return CPS(noise_level=noise_level)
        case "ddim":
            return DDIM(eta=noise_level)
    raise ValueError(f"No step rule is called {name!r}. There are: {', '.join(get_args(RuleName))}.")


def _latent_mean(values: jax.Array) -> jax.Array:
    """Mean over every dimension but the first, [B]."""
    return jnp.mean(values, axis=tuple(range(1, values.ndim)))


def _check_noise_level(rule, largest: float = math.inf) -> None:
    if not 0 <= rule.noise_level <= largest:
        allowed = "at least 0" if largest == math.inf else f"between 0 and {largest:g}"
        raise ValueError(f"{type(rule).__name__}: noise_level = {rule.noise_level}, but it must be {allowed}.")
