"""UniGRPO's loss of a batch of episodes: both clipped ratios, and the leash on the velocity field.

    loss = text_weight * L_text + flow_weight * L_flow + mse_weight * L_mse  (+ leash_weight * L_leash, + KL terms)

(arXiv 2603.23500; L_leash, which is not in it, is L_mse at `leash_times` in the place of the window.  A drawing of several
modalities has these terms of each, `modalities`.)  Every term is a mean over the episodes of the batch of a mean over an
episode's actions, so the mean over equal micro-batches is the whole batch's value.  A blank episode (rollout.not_finite)
counts in these means with 0: it moves no parameter.  The leash of a policy that has the reference's weights is exactly 0,
and so is its gradient: two compilations of one network differ by rounding, which Adam, dividing by its own root, would make
whole steps of.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from unigrpo_jax.config import LearningConfig
from unigrpo_jax.episode import Drawing, Episodes, Thinking
from unigrpo_jax.learning import losses, modalities
from unigrpo_jax.learning.policy import FlowView, Policy, TextView
from unigrpo_jax.rollout.step_rules import CPS


@flax.struct.dataclass
class TextAnchor:
    """What the trained policy of a thinking is compared with.

    Attributes:
      old: float32 [B, M], log-probabilities at the iteration's start; None where they are the trained policy's own.
      reference: float32 [B, M], under the frozen weights; None where nothing needs them.
    """

    old: jax.Array | None
    reference: jax.Array | None


@flax.struct.dataclass
class FlowAnchor:
    """What the trained policy of a drawing is compared with.

    Attributes:
      old: what `Objective.compared` makes of the old policy: float32 [B, W, N, C], transition means; None as above.
      reference: float32 [B, W, N, C], the network's outputs with frozen weights upon their own context; None where there
        is no reference.
      leash: float32 [B, K, N, C], the same at `leash_times`; None where there are none.
    """

    old: Any
    reference: Any
    leash: Any = None


def reduce_metrics(metrics: dict[str, jax.Array], axis=0) -> dict[str, jax.Array]:
    """Combines the metrics of equal pieces: minima and maxima by name, means otherwise."""
    how = lambda name: jnp.min if name.endswith("_min") else jnp.max if name.endswith("_max") else jnp.mean
    return {name: how(name)(value, axis=axis) for name, value in metrics.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """The loss and everything that is measured on the way.

    Attributes:
      policy: walks through episodes.
      config: weights, clip ranges, regularisers.
    """

    policy: Policy
    config: LearningConfig

    def prepare(self, episodes: Episodes, step) -> Episodes:
        """The whole batch as the losses take it, before it is cut into pieces; `step` is the iteration, int32 []."""
        return episodes

    def signal(self, episodes: Episodes, advantage_B) -> jax.Array:
        """Whether anything of a whole batch teaches, bool []: some advantage is not 0."""
        return jnp.any(jnp.stack([jnp.any(x != 0) for x in jax.tree.leaves(advantage_B)]))

    def compared(self, drawing: Drawing, view: FlowView) -> Any:
        """What of a policy's view of a drawing is compared with another policy's: the means of its transitions."""
        return view.mean

    def anchors(self, params, reference, episodes: Episodes, own_start: bool) -> tuple[Any, ...]:
        """One anchor per segment; None for what was seen or heard.

        Args:
          params: parameters of the old policy: those at the start of the iteration, where no others sampled.
          reference: the frozen parameters; not read where the config keeps none.
          episodes: the batch.
          own_start: the batch takes a single optimizer step, so that its old policy is the trained one itself.
        """
        recorded = self.config.old_log_probs == "rollout"
        nothing = (None,) * len(episodes.segments)
        window = dataclasses.replace(self.policy, leash_times=())  # nothing is held to the start
        start = nothing if recorded or own_start else window.view(params, episodes)
        frozen = self.policy.view(reference, episodes) if self.config.keeps_start else nothing
        out = []
        for segment, old, ref in zip(episodes.segments, start, frozen, strict=True):
            if isinstance(segment, Thinking):
                log_probs = segment.log_probs if recorded else None if old is None else old.log_probs
                keep = self.config.text_kl_weight > 0
                out.append(TextAnchor(old=log_probs, reference=ref.log_probs if keep else None))
            elif isinstance(segment, Drawing):
                kept = segment.mean if recorded else None if old is None else self.compared(segment, old)
                held = (None, None) if ref is None else (ref.output, ref.leash)
                out.append(FlowAnchor(kept, *held))
            else:
                out.append(None)
        return tuple(out)

    def __call__(self, params, episodes: Episodes, anchors, advantage_B, on_policy, moved=True) -> tuple[jax.Array, dict]:
        """Loss [] and metrics of a batch.

        Args:
          params: trained parameters.
          episodes: the batch of B episodes.
          anchors: from `anchors`.
          advantage_B: one advantage per episode, for all its actions, [B]; or one per round, [B, R]; or a thinking's and a
            drawing's per round, [B, R, 2], R being 1 where all rounds have the same; or {modality: [B]} of all drawings of
            episodes without thinking.
          on_policy: bool [], no step was taken yet; the old policy is then the trained one, and every ratio exactly 1,
            unless the config asks for the rollout's own log-probabilities.
          moved: bool [], the parameters are not the reference's, which holds them; else the leash is exactly 0.
        """
        views, turn = self.policy.view(params, episodes), 0
        found: dict[str, list] = {"text": [], "flow": []}
        for segment, view, anchor in zip(episodes.segments, views, anchors, strict=True):
            if view is None:
                continue
            args = (segment, view, anchor, _own(advantage_B, turn, segment), on_policy, moved, episodes.goals)
            if isinstance(segment, Thinking):
                found["text"].append(self._text(*args))
            else:
                found["flow"].append(self._flow(*args))
                turn += 1
        total, metrics = jnp.zeros(()), {}
        for terms in filter(None, found.values()):  # the mean over rounds
            values, measured = zip(*terms, strict=True)
            total = total + sum(values) / len(values)
            metrics |= measured[0] if len(terms) == 1 else reduce_metrics(jax.tree.map(lambda *x: jnp.stack(x), *measured))
        return total, metrics | {"loss": total}

    def _old(self, anchored, new, on_policy):
        """The old policy's value: a constant, and the new one's own bits where no step was taken yet."""
        if self.config.old_log_probs == "rollout":
            return anchored
        new = jax.lax.stop_gradient(new)
        return new if anchored is None else jax.tree.map(lambda a, b: jnp.where(on_policy, a, b), new, anchored)

    def _held(self, anchored, new, moved):
        """The reference's value, or the new one's own bits where the weights are the reference's; None without a value."""
        if anchored is None:
            return None
        return jax.tree.map(lambda a, b: jnp.where(moved, a, jax.lax.stop_gradient(b)), anchored, new)

    def _text(self, thinking: Thinking, view: TextView, anchor: TextAnchor, advantage_B, on_policy, moved, goals):
        c, mask = self.config, thinking.mask
        old = self._old(anchor.old, view.log_probs, on_policy)
        loss = jnp.mean(losses.text_loss(view.log_probs, old, mask, advantage_B, c.text_clip, c.text_clip))
        mean = lambda values: jnp.mean(losses.masked_mean(values, mask, axis=1))
        log_ratio = jnp.where(mask, view.log_probs - old, 0.0)
        ratio = jnp.exp(log_ratio)
        clipped = losses.clip_fractions(log_ratio, advantage_B[:, None], c.text_clip, c.text_clip, mask, axis=1)
        gap = jnp.where(mask, jnp.abs(view.log_probs - thinking.log_probs), 0.0)
        length = jnp.sum(mask, axis=1)
        truncated = mask[:, -1] & (thinking.tokens[:, -1] != self.policy.model.config.eos_token)
        metrics = {
            "text/loss": loss,
            "text/ratio_mean": mean(ratio),
            "text/ratio_square": mean(ratio**2),
            "text/ratio_min": jnp.min(jnp.where(mask, ratio, jnp.inf)),
            "text/ratio_max": jnp.max(jnp.where(mask, ratio, -jnp.inf)),
            "text/clip_fraction_above": jnp.mean(clipped.above),
            "text/clip_fraction_below": jnp.mean(clipped.below),
            "text/log_prob_gap_mean": mean(gap),
            "text/log_prob_gap_max": jnp.max(gap),
            "text/entropy": mean(view.entropy),
            "text/approx_kl": mean(losses.k3_kl(old, view.log_probs)),
            "text/length": jnp.mean(length.astype(jnp.float32)),
            "text/truncated_share": jnp.mean(truncated.astype(jnp.float32)),
        }
        total = c.text_weight * loss
        if c.text_kl_weight > 0:
            kl = mean(losses.k3_kl(view.log_probs, self._held(anchor.reference, view.log_probs, moved)))
            metrics["text/reference_kl"] = kl
            total = total + c.text_kl_weight * kl
        return total, metrics

    def _flow(self, drawing: Drawing, view: FlowView, anchor: FlowAnchor, advantage_B, on_policy, moved, goals):
        c = self.config
        old = self._old(anchor.old, view.mean, on_policy)
        held = self._held(anchor.reference, view.output, moved)
        times = self.policy.flow.times()
        t, t_next = times[drawing.steps], times[drawing.steps + 1]
        kl_mean = None
        if c.latent_kl_weight > 0:
            mean, _ = jax.vmap(jax.vmap(self.policy.flow.transition))(drawing.x, anchor.reference, t, t_next)
            kl_mean = self._held(mean, view.mean, moved)
        leash = self._held(anchor.leash, view.leash, moved)
        parts = (advantage_B, drawing.noise, drawing.mean, old, view.mean, kl_mean, view.output, held, view.leash, leash)
        total, metrics = jnp.zeros(()), {}
        for name, (weight, *own) in modalities.by_modality(drawing.x, modalities.weights(drawing.x, c), *parts).items():
            value, measured = self._modality(drawing.finite, view.std, *own)
            total, metrics = total + weight * value, metrics | {f"{name}/{metric}": x for metric, x in measured.items()}
        return total, metrics

    def _modality(self, finite_B, std_BW, advantage_B, noise, sampled, old, new, kl_mean, *leashed):
        """One modality's loss and metrics, from arrays [B, W, N, C]; a log-ratio is a mean over its own numbers alone."""
        c, rule = self.config, self.policy.flow.rule
        per_step = lambda function, *args: jax.vmap(function, in_axes=1, out_axes=1)(*args)  # over the window, [B, W]
        known = lambda value_BW: jnp.where(finite_B[:, None], value_BW, 0.0)  # a blank episode adds nothing

        def transition_loss(noise, old, new, std_B):
            if c.ratio_norm:
                log_ratio = losses.ratio_norm(noise, old, new)
            else:
                log_ratio = losses.log_ratio(noise, old, new, std_B)
                if isinstance(rule, CPS):
                    log_ratio = log_ratio * 2 * std_B**2  # its log-density is the bare square
            log_ratio = jnp.where(finite_B, log_ratio, 0.0)
            return losses.flow_loss(log_ratio, advantage_B, c.flow_clip, c.flow_clip), log_ratio

        loss_BW, log_ratio = per_step(transition_loss, noise, old, new, std_BW)
        loss = jnp.mean(loss_BW)
        clipped = losses.clip_fractions(log_ratio, advantage_B[:, None], c.flow_clip, c.flow_clip)
        square = lambda mean: known(jnp.mean((new - mean) ** 2, axis=(2, 3)) / (2 * std_BW**2))
        x_next = sampled + std_BW[:, :, None, None] * noise
        log_prob = lambda mean: jax.vmap(jax.vmap(lambda x, m, s: rule.log_prob(x[None], m[None], s)[0]))(
            x_next, mean, std_BW
        )
        gap = known(jnp.abs(log_prob(sampled) - log_prob(jax.lax.stop_gradient(new))))
        metrics = {
            "loss": loss,
            **losses.ratio_statistics(log_ratio, *clipped),
            "log_prob_gap_mean": jnp.mean(gap),
            "log_prob_gap_max": jnp.max(gap),
            "entropy": jnp.mean(0.5 * jnp.log(2 * jnp.pi * jnp.e * std_BW**2)),
            "approx_kl": jnp.mean(square(old)),
        }
        total = c.flow_weight * loss
        for name, weight, mse in self._leashes(finite_B, *leashed):
            metrics[name] = mse
            total = total + weight * mse
        if kl_mean is not None:
            kl = jnp.mean(square(kl_mean))
            metrics["latent_kl"] = kl
            total = total + c.latent_kl_weight * kl
        return total, metrics

    def _leashes(self, finite_B, output, held, leash, leash_held) -> Iterator[tuple[str, float, jax.Array]]:
        """(name, weight, mean squared error []) of one modality's outputs to the reference's, each [B, W or K, N, C].

        In the window, and at `leash_times`; nothing where there is no reference, or are no such times.
        """
        c = self.config
        pairs = (("velocity_mse", c.mse_weight, output, held), ("leash_mse", c.leash_weight, leash, leash_held))
        for name, weight, own, reference in pairs:
            if reference is not None:
                mse = jax.vmap(losses.velocity_mse, in_axes=1, out_axes=1)(own, reference)
                yield name, weight, jnp.mean(jnp.where(finite_B[:, None], mse, 0.0))


def _own(advantage, turn: int, segment: Thinking | Drawing):
    """The advantages [B] of one segment's actions in round `turn`, or of each modality's."""
    if isinstance(advantage, Mapping) or advantage.ndim == 1:
        return advantage
    own = advantage[:, min(turn, advantage.shape[1] - 1)]
    return own if own.ndim == 1 else own[:, int(isinstance(segment, Drawing))]


def with_ratio_std(metrics: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Replaces the second moments, which average over pieces, by standard deviations."""
    out = dict(metrics)
    for name in [key.removesuffix("/ratio_square") for key in metrics if key.endswith("/ratio_square")]:
        square, offset = out.pop(f"{name}/ratio_square"), 0.0 if name == "text" else 1.0  # a flow's is taken about 1
        if square is not None:
            mean = out[f"{name}/ratio_mean"] - offset
            out[f"{name}/ratio_std"] = jnp.sqrt(jnp.maximum(square - mean**2, 0.0))
    return out
