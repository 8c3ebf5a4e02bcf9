"""Transitions of the flow sampler: one denoising step as a Gaussian, for every step rule.

Time runs from t = 1 (noise) to t = 0 (data), x_t = (1 - t) * data + t * noise, and the network predicts the velocity
v = noise - data; so x - t * v estimates the data and x + (1 - t) * v estimates the noise.  A step rule turns (x_t, v)
into the mean and standard deviation of x_{t'}:

    x_{t'} = mean + std * eps,    eps ~ N(0, I),    dt = t' - t < 0

Sampling, log-probabilities and the GRPO ratio all follow from those two, so no rule is named outside this file.  The
window says which transitions of a schedule take the stochastic rule; all others take the ODE.

Everything is float32, whatever the dtype of the inputs.  Times are scalars and may be traced.
"""

import abc
import dataclasses
import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp


class StepRule(abc.ABC):
    """A Gaussian transition of the flow sampler."""

    @abc.abstractmethod
    def transition(self, x_BNC, v_BNC, t, t_next, t_second) -> tuple[jax.Array, jax.Array]:
        """Mean [B, N, C] and standard deviation [] of x_{t_next}, both float32.

        Args:
          x_BNC: the latent at time t.
          v_BNC: the velocity that the network predicts there.
          t: the time of departure, in (0, 1].
          t_next: the time of arrival, in [0, t).
          t_second: the schedule's second entry; it stands in for t where a rule would be infinite at t = 1.
        """

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
    """The Euler step of the flow, mean = x + v dt: the member without noise of every family below."""

    def transition(self, x_BNC, v_BNC, t, t_next, t_second):
        """Mean [B, N, C] and standard deviation [] = 0; `t_second` is not needed."""
        x, v, t, t_next = _float32(x_BNC, v_BNC, t, t_next)
        return x + v * (t_next - t), jnp.zeros((), jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowSDE(StepRule):
    """The SDE with the flow's marginals (Flow-GRPO, arXiv 2505.05470, eq. 9).

        sigma_t = a sqrt(t / (1 - t))
        mean    = x + [v + sigma_t^2 / (2 t) (x + (1 - t) v)] dt
        std     = sigma_t sqrt(-dt)

    Attributes:
      noise_level: `a`; 0 gives the ODE.
    """

    noise_level: float

    def __post_init__(self):
        _check_noise_level(self)

    def transition(self, x_BNC, v_BNC, t, t_next, t_second):
        """Mean [B, N, C] and standard deviation []; `t_second` stands in for t in 1 - t at t = 1."""
        x, v, t, t_next, t_second = _float32(x_BNC, v_BNC, t, t_next, t_second)
        dt = t_next - t
        remaining = 1 - jnp.where(t < 1, t, t_second)
        score_drift = self.noise_level**2 / (2 * remaining) * (x + (1 - t) * v)  # sigma^2 / (2 t): the t cancels
        # One square root, and the product before the quotient: at t = 1 the fraction is then exactly 1, and std = a.
        std = self.noise_level * jnp.sqrt(t * -dt / remaining)
        return x + (v + score_drift) * dt, std


@dataclasses.dataclass(frozen=True, kw_only=True)
class DanceSDE(StepRule):
    """The same SDE with constant noise, sigma_t = a (DanceGRPO, arXiv 2505.07818).

    Attributes:
      noise_level: `a`, 0.3 in the paper; 0 gives the ODE.
    """

    noise_level: float

    def __post_init__(self):
        _check_noise_level(self)

    def transition(self, x_BNC, v_BNC, t, t_next, t_second):
        """Mean [B, N, C] and standard deviation []; `t_second` is not needed."""
        x, v, t, t_next = _float32(x_BNC, v_BNC, t, t_next)
        dt = t_next - t
        score_drift = self.noise_level**2 / (2 * t) * (x + (1 - t) * v)
        return x + (v + score_drift) * dt, self.noise_level * jnp.sqrt(-dt)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CPS(StepRule):
    """Coefficients-preserving sampling (Flow-CPS, arXiv 2509.05952): data and noise keep the flow's coefficients.

        std  = t' sin(a pi / 2)
        mean = (1 - t') (x - t v) + sqrt(t'^2 - std^2) (x + (1 - t) v)

    The total noise, old and new, is that of x_{t'}: sqrt(t'^2 - std^2)^2 + std^2 = t'^2.

    Attributes:
      noise_level: `a`; 0 gives the ODE, 1 replaces all of the noise.
    """

    noise_level: float

    def __post_init__(self):
        _check_noise_level(self, largest=2.0)  # beyond it the sine, a standard deviation, is negative

    def transition(self, x_BNC, v_BNC, t, t_next, t_second):
        """Mean [B, N, C] and standard deviation [], which is 0 at t_next = 0; `t_second` is not needed."""
        x, v, t, t_next = _float32(x_BNC, v_BNC, t, t_next)
        angle = self.noise_level * math.pi / 2
        # sqrt(t'^2 - std^2) = t' |cos|, without the root whose slope is infinite where its argument vanishes.
        mean = (1 - t_next) * (x - t * v) + t_next * abs(math.cos(angle)) * (x + (1 - t) * v)
        return mean, t_next * math.sin(angle)

    def log_prob(self, x_next_BNC, mean_BNC, std) -> jax.Array:
        """-(x_next - mean)^2, float32 [B], the mean over the latent's dimensions; defined at std = 0, too."""
        return _latent_mean(-((x_next_BNC.astype(jnp.float32) - mean_BNC.astype(jnp.float32)) ** 2))


RuleName = Literal["ode", "flow_sde", "dance_sde", "cps"]


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
    raise ValueError(f"No step rule is called {name!r}. There are: {', '.join(get_args(RuleName))}.")


def _float32(*values):
    return (jnp.asarray(value, jnp.float32) for value in values)


def _latent_mean(values: jax.Array) -> jax.Array:
    """Mean over every dimension but the first, [B]."""
    return jnp.mean(values, axis=tuple(range(1, values.ndim)))


def _check_noise_level(rule, largest: float = math.inf) -> None:
    if not 0 <= rule.noise_level <= largest:
        allowed = "at least 0" if largest == math.inf else f"between 0 and {largest:g}"
        raise ValueError(f"{type(rule).__name__}: noise_level = {rule.noise_level}, but it must be {allowed}.")
