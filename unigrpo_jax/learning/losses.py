"""The losses of both phases and their regularisers, as plain functions of arrays.

Text (arXiv 2603.23500) is clipped GRPO over tokens; flow is Flow-GRPO (arXiv 2505.05470) with the RatioNorm of
GRPO-Guard (arXiv 2510.22319).  A loss is to be minimised.  Functions return one number per sample, [B], and the caller
averages over samples and window steps, so that a micro-batched update equals the whole-batch one.

Everything is float32, whatever the dtype of the inputs.  `eps` is the noise of the rollout, x' = mean_old + std * eps;
`old` is the policy that sampled, `new` the one that is trained, `ref` the frozen start.

A rollout in int8 samples around mean_s = mean_old + e, where e is the error of the rounding and mean_old is recomputed in
full precision.  A transition's ratio is then that of `eps` as it was drawn, x' = mean_s + std * eps: what acts is the policy
N(mean + e, std^2), and while an update lasts e is a number.  So x' - mean_s = std * eps, and mean_s - (mean_new + e) =
mean_old - mean_new: e leaves the closed forms below, which stand as they are.  Their gradient at the start is that of the
policy that acted, E[A eps] / std, through the full-precision mean; eps has mean 0 under what sampled, so that neither a
baseline nor what a state is worth moves it.  With eps' = (x' - mean_old) / std = eps + e / std, the noise that full
precision would have needed, it would be E[A eps] / std + E[A] e / std^2: where a state is worth more than its group, the
update would learn the rounding.  Of tokens no such thing can be said: their ratio is that of full precision at tokens that
int8 sampled, as far off its own policy as `text/log_prob_gap_mean` says.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


def clipped_surrogate(log_ratio, advantage, clip_low: float, clip_high: float) -> jax.Array:
    """PPO's loss max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high)), elementwise, r = exp(log_ratio).

    It is computed from r - 1, because 1 + 1e-6, the flow's clip range, has only eight float32 numbers above 1.  At
    log_ratio = 0 the value is exactly -A.  `advantage` has the rank of `log_ratio`, or is a scalar.
    """
    advantage = _float32(advantage)
    excess = jnp.expm1(_float32(log_ratio))
    clipped = jnp.clip(excess, -clip_low, clip_high)
    return jnp.maximum(-advantage * excess, -advantage * clipped) - advantage


def text_loss(log_prob_new_BL, log_prob_old_BL, mask_BL, advantage_B, clip_low: float, clip_high: float) -> jax.Array:
    """Clipped GRPO of the thinking, [B]: each sequence's mean over its own tokens (seq-mean-token-mean).

    Args:
      log_prob_new_BL: log-probabilities of the sampled tokens under the trained policy.
      log_prob_old_BL: the same under the policy that sampled them.
      mask_BL: which positions are sampled tokens; the others may hold anything.  No token at all gives 0.
      advantage_B: one per episode.
      clip_low: the ratio is clipped below at 1 - clip_low.
      clip_high: and above at 1 + clip_high.
    """
    log_ratio_BL = _float32(log_prob_new_BL) - _float32(log_prob_old_BL)
    log_ratio_BL = jnp.where(_bool(mask_BL), log_ratio_BL, 0)  # before exp: its gradient must not meet a stray inf
    loss_BL = clipped_surrogate(log_ratio_BL, _float32(advantage_B)[:, None], clip_low, clip_high)
    return masked_mean(loss_BL, mask_BL, axis=1)


def ratio_norm(eps_BNC, mean_old_BNC, mean_new_BNC) -> jax.Array:
    """RatioNorm's log-ratio of one transition, [B] (GRPO-Guard, arXiv 2510.22319), in closed form:

        w (log r + mean_d(dmu^2) / (2 w^2)) = -mean_d(eps * dmu),    dmu = mean_old - mean_new

    The two sides are equal for every transition std w.  The right one subtracts no two log-densities of size 1, whose
    rounding, about 1e-7, would be a tenth of the clip range 1e-6; and it is exactly 0 where the means agree.
    """
    return -_latent_mean(_float32(eps_BNC) * (_float32(mean_old_BNC) - _float32(mean_new_BNC)))


def log_ratio(eps_BNC, mean_old_BNC, mean_new_BNC, std) -> jax.Array:
    """Flow-GRPO's log-ratio of one Gaussian transition, [B], the mean over dimensions, in closed form:

        log r = -mean_d(eps * dmu) / w - mean_d(dmu^2) / (2 w^2),    dmu = mean_old - mean_new,    w = std > 0

    `std` is w, [] or [B].  CPS leaves 1 / (2 w^2) out of its log-probability: its log-ratio is this one times 2 w^2.
    """
    difference = _float32(mean_old_BNC) - _float32(mean_new_BNC)
    return ratio_norm(eps_BNC, mean_old_BNC, mean_new_BNC) / std - _latent_mean(difference**2) / (2 * std**2)


def flow_loss(log_ratio_B, advantage_B, clip_low: float, clip_high: float, weight=1.0) -> jax.Array:
    """Clipped GRPO of one transition in the window, [B].

    Args:
      log_ratio_B: from `ratio_norm`, or `log_ratio` for the loss without RatioNorm.
      advantage_B: one per episode.
      clip_low: the ratio is clipped below at 1 - clip_low.
      clip_high: and above at 1 + clip_high.
      weight: factor of this transition; GRPO-Guard's is 1 / |dt|, UniGRPO has none.
    """
    return weight * clipped_surrogate(log_ratio_B, advantage_B, clip_low, clip_high)


def velocity_mse(v_new_BNC, v_ref_BNC) -> jax.Array:
    """UniGRPO's regulariser mean_d((v_new - v_ref)^2), [B]; the same weight at every noise level."""
    return _latent_mean((_float32(v_new_BNC) - _float32(v_ref_BNC)) ** 2)


def latent_kl(mean_new_BNC, mean_ref_BNC, std) -> jax.Array:
    """Flow-GRPO's regulariser mean_d((mean_new - mean_ref)^2) / (2 std^2), [B]: a KL. `std` > 0 is [] or [B]."""
    return velocity_mse(mean_new_BNC, mean_ref_BNC) / (2 * std**2)


def k3_kl(log_prob_new, log_prob_ref) -> jax.Array:
    """The k3 estimate of KL(new || ref) per token: exp(d) - d - 1, d = log_prob_ref - log_prob_new.

    (http://joschu.net/blog/kl-approx.html).  Never negative, exactly 0 where the two agree.  Its gradient, 1 - exp(d),
    pulls towards the reference; that of k1 = -d is 1 whatever the reference is, so k1 is no loss.
    """
    difference = _float32(log_prob_ref) - _float32(log_prob_new)
    return jnp.expm1(difference) - difference


def masked_mean(values, mask, axis=None) -> jax.Array:
    """Mean of the values where the mask is set, over `axis` (all by default); 0 where it is set nowhere."""
    mask = _bool(mask)
    count = jnp.sum(mask, axis=axis, dtype=jnp.float32)
    return jnp.sum(jnp.where(mask, _float32(values), 0), axis=axis) / jnp.maximum(count, 1)


def ratio_statistics(log_ratio, above, below) -> dict[str, jax.Array]:
    """Metrics [] of a flow's clipped ratios r, of any shape.

    `ratio_mean`, `ratio_min`, `ratio_max`; `log_ratio_mean`, which float32 tells from 0 where it does not tell r from 1;
    `ratio_square`, the mean of (r - 1)^2, from which a std is made once all pieces are there; and the shares of those that
    are clipped, `ClipFractions` over all.
    """
    ratio = jnp.exp(log_ratio)
    return {
        "ratio_mean": jnp.mean(ratio),
        "log_ratio_mean": jnp.mean(log_ratio),
        "ratio_square": jnp.mean(jnp.expm1(log_ratio) ** 2),
        "ratio_min": jnp.min(ratio),
        "ratio_max": jnp.max(ratio),
        "clip_fraction_above": above,
        "clip_fraction_below": below,
    }


class ClipFractions(NamedTuple):
    """Shares of the entries that the clip takes out of the gradient: r too large, r too small."""

    above: jax.Array
    below: jax.Array


def clip_fractions(log_ratio, advantage, clip_low: float, clip_high: float, mask=None, axis=None) -> ClipFractions:
    """Shares of the masked entries (all by default) where the clip is active, over `axis` (all by default).

    The surrogate clips on one side only: above 1 + clip_high where A > 0, below 1 - clip_low where A < 0.
    """
    excess, advantage = jnp.expm1(_float32(log_ratio)), _float32(advantage)
    above = (advantage > 0) & (excess > clip_high)
    below = (advantage < 0) & (excess < -clip_low)
    mask = jnp.ones_like(above) if mask is None else mask
    return ClipFractions(above=masked_mean(above, mask, axis), below=masked_mean(below, mask, axis))


def _float32(values) -> jax.Array:
    return jnp.asarray(values, jnp.float32)


def _bool(mask) -> jax.Array:
    return jnp.asarray(mask, jnp.bool_)


def _latent_mean(values: jax.Array) -> jax.Array:
    """Mean over every dimension but the first, [B]."""
    return jnp.mean(values, axis=tuple(range(1, values.ndim)))
