"""FPO and DiffusionNFT: values and gradients by numpy in float64, on every path and for every kind of prediction.

The network's outputs stand in the place of parameters, so that nothing of it is compiled; what it is trained by is the
gradient with respect to them.
"""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from unigrpo_jax.config import NFTConfig
from unigrpo_jax.episode import Drawing, Episodes
from unigrpo_jax.learning.fpo import FlowPolicyOptimization
from unigrpo_jax.learning.nft import DiffusionNFT
from unigrpo_jax.learning.objective import FlowAnchor
from unigrpo_jax.learning.policy import FlowView
from unigrpo_jax.learning.update import UpdateProgram, new_state
from unigrpo_jax.models.paths import RECTIFIED, scaled_linear
from unigrpo_jax.rollout.drawing import FlowSampler
from unigrpo_jax.rollout.step_rules import ODE

B, W, N, C = 6, 3, 4, 2
RNG = np.random.default_rng(0)
ADVANTAGES = np.array([2.0, -1.5, 0.5, -0.25, 9.0, 0.0])
DATA, NOISE = RNG.normal(size=(B, N, C)), RNG.normal(size=(B, W, N, C))
STEPS = RNG.integers(0, 4, (B, W))
NEW, OLD, REFERENCE = (RNG.normal(size=(B, W, N, C)) for _ in range(3))
OLD = NEW + 0.05 * OLD
CLIP, LEASH, FLOW = 0.02, 0.3, 0.7
NFT = NFTConfig(beta=0.4, limit=3.0)
PATHS = {
    "velocity": (RECTIFIED, "velocity", (1.0, 0.9, 0.6, 0.2, 0.0)),
    "noise": (scaled_linear(0.01, 0.3, 20), "noise", (1.0, 0.75, 0.5, 0.25, 0.0)),
    "v": (scaled_linear(0.01, 0.3, 20), "v", (1.0, 0.75, 0.5, 0.25, 0.0)),
    "data": (RECTIFIED, "data", (1.0, 0.9, 0.6, 0.2, 0.0)),
}
METHODS = {"fpo": FlowPolicyOptimization, "diffusion_nft": DiffusionNFT}


def coefficients(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """alpha and sigma at the drawn times, float64 [B, W, 1, 1]; of a diffusion from its betas."""
    path, _, schedule = PATHS[kind]
    t = np.array(schedule)[STEPS][:, :, None, None]
    if path is RECTIFIED:
        return 1 - t, t
    kept = np.concatenate([[1.0], np.cumprod(1 - np.linspace(0.01**0.5, 0.3**0.5, 20) ** 2)])[np.rint(t * 20).astype(int)]
    return np.sqrt(kept), np.sqrt(1 - kept)


def wanted(kind: str) -> np.ndarray:
    """What a network should predict of the noisy versions."""
    (alpha, sigma), data = coefficients(kind), DATA[:, None] + 0 * NOISE
    return {"velocity": NOISE - data, "noise": NOISE, "v": alpha * NOISE - sigma * data, "data": data}[kind]


def seen(kind: str) -> np.ndarray:
    """The noisy versions."""
    alpha, sigma = coefficients(kind)
    return alpha * DATA[:, None] + sigma * NOISE


def means(output, kind: str) -> np.ndarray:
    """The data that an output means."""
    (alpha, sigma), x = coefficients(kind), seen(kind)
    match kind:
        case "velocity":
            return x - sigma * output
        case "noise":
            return (x - sigma * output) / alpha
        case "v":
            return alpha * x - sigma * output
    return output


def drawing(kind: str, rows=slice(None)) -> Drawing:
    real = lambda x: jnp.asarray(x[rows], jnp.float32)
    finite = jnp.ones(len(DATA[rows]), bool)
    return Drawing(steps=jnp.asarray(STEPS[rows], jnp.int32), x=real(seen(kind)), noise=real(NOISE), mean=None,
                   latent=real(DATA), media={}, finite=finite)  # fmt: skip


@functools.cache
def program(method: str, kind: str):
    """(new, old, reference, drawing, advantages, on_policy) -> ((loss, metrics), gradient with respect to new)."""
    path, prediction, schedule = PATHS[kind]
    flow = FlowSampler(schedule=schedule, rule=ODE(), grid=(2, 2), path=path, prediction=prediction)
    policy = dataclasses.replace(tiny.policy(), flow=flow)
    own = {"nft": NFT} if method == "diffusion_nft" else {}
    config = dataclasses.replace(
        tiny.LEARNING, method=method, flow_clip=CLIP, mse_weight=LEASH, flow_weight=FLOW, **own
    )
    objective = tiny.told(METHODS[method](policy=policy, config=config, seed=0))

    def loss(new, old, reference, drawn, advantages, on_policy):
        view = lambda output: FlowView(output=output, mean=None, std=None)
        anchor = FlowAnchor(old=objective.compared(drawn, view(old)), reference=reference)
        episodes = Episodes(prompt=None, segments=(drawn,))
        return objective((view(new),), episodes, (anchor,), advantages, on_policy)

    return tiny.jit(jax.value_and_grad(loss, has_aux=True))


def found(method: str, kind: str, rows=slice(None), on_policy=False, new=NEW, old=OLD, finite=None):
    real = lambda x: jnp.asarray(x[rows], jnp.float32)
    drawn = drawing(kind, rows)
    drawn = drawn if finite is None else drawn.replace(finite=jnp.asarray(finite))
    return program(method, kind)(real(new), real(old), real(REFERENCE), drawn, real(ADVANTAGES), on_policy)


def losses(output, kind: str) -> np.ndarray:
    """Flow-matching losses, float64 [B]."""
    return np.mean((output - wanted(kind)) ** 2, axis=(1, 2, 3))


def fpo(new, old, kind: str) -> float:
    """The formula: exp(L_old - L_theta), clipped as PPO clips, and the leash."""
    ratio, a = np.exp(losses(old, kind) - losses(new, kind)), ADVANTAGES
    surrogate = np.maximum(-a * ratio, -a * np.clip(ratio, 1 - CLIP, 1 + CLIP))
    return FLOW * np.mean(surrogate) + LEASH * np.mean((new - REFERENCE) ** 2)


def nft(new, old, kind: str, at=None) -> float:
    """The formula; the divisors, which carry no gradient, are those at `at`."""
    share, total = (1 + np.clip(ADVANTAGES / NFT.limit, -1, 1)) / 2, 0.0
    at = new if at is None else at
    for sign, weight in ((1, share), (-1, 1 - share)):
        implicit = lambda theta, sign=sign: (1 - sign * NFT.beta) * old + sign * NFT.beta * theta
        error = means(implicit(new), kind) - DATA[:, None]
        size = np.mean(np.abs(means(implicit(at), kind) - DATA[:, None]), axis=(2, 3))
        total += np.mean(weight * np.mean(np.mean(error**2, axis=(2, 3)) / size, axis=1))
    return FLOW * NFT.limit / NFT.beta * total + LEASH * np.mean((new - REFERENCE) ** 2)


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize(("method", "formula"), [("fpo", fpo), ("diffusion_nft", nft)])
def test_value_and_gradient_are_those_of_the_formula(method, formula, kind):
    """Along random directions, by central differences; some of FPO's ratios are clipped."""
    (loss, metrics), gradient = found(method, kind)
    np.testing.assert_allclose(loss, formula(NEW, OLD, kind), rtol=1e-5)
    np.testing.assert_allclose(metrics["flow/matching_loss"], losses(NEW, kind).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["flow/velocity_mse"], np.mean((NEW - REFERENCE) ** 2), rtol=1e-5)
    fixed = {} if method == "fpo" else {"at": NEW}
    for seed in range(3):
        direction = np.random.default_rng(seed).normal(size=NEW.shape)
        at = lambda step, direction=direction: formula(NEW + step * direction, OLD, kind, **fixed)
        slope = (at(1e-6) - at(-1e-6)) / 2e-6
        np.testing.assert_allclose(np.sum(np.asarray(gradient, np.float64) * direction), slope, rtol=2e-3, atol=1e-5)


def test_the_ratio_and_what_is_clipped_of_it():
    _, metrics = found("fpo", "velocity")[0]
    ratio = np.exp(losses(OLD, "velocity") - losses(NEW, "velocity"))
    for name, value in (("mean", ratio.mean()), ("min", ratio.min()), ("max", ratio.max())):
        np.testing.assert_allclose(metrics[f"flow/ratio_{name}"], value, rtol=1e-5)
    above, below = np.mean((ratio > 1 + CLIP) & (ADVANTAGES > 0)), np.mean((ratio < 1 - CLIP) & (ADVANTAGES < 0))
    assert 0 < above + below < 1
    np.testing.assert_allclose(metrics["flow/clip_fraction_above"], above, rtol=1e-6)
    np.testing.assert_allclose(metrics["flow/clip_fraction_below"], below, rtol=1e-6)


@pytest.mark.parametrize("kind", PATHS)
def test_on_policy_the_ratio_is_exactly_one_and_the_gradient_that_of_weighted_flow_matching(kind):
    """Whatever the old policy's own numbers are: no step was taken."""
    (_, metrics), gradient = found("fpo", kind, on_policy=True)
    assert float(metrics["flow/ratio_min"]) == float(metrics["flow/ratio_max"]) == 1.0
    assert float(metrics["flow/clip_fraction_above"]) == float(metrics["flow/clip_fraction_below"]) == 0.0
    weighted = ADVANTAGES[:, None, None, None] * 2 * (NEW - wanted(kind)) / (W * N * C * B)
    leash = 2 * (NEW - REFERENCE) / NEW.size
    np.testing.assert_allclose(gradient, FLOW * weighted + LEASH * leash, rtol=1e-4, atol=1e-6)


def test_where_both_policies_agree_a_drawing_pulls_by_its_advantage_alone():
    """DiffusionNFT: A times the gradient of D, within the limit; none of advantage 0."""
    (_, metrics), gradient = found("diffusion_nft", "velocity", on_policy=True)
    assert float(metrics["flow/old_mse"]) == 0.0
    np.testing.assert_allclose(metrics["flow/positive_loss"], metrics["flow/negative_loss"])
    _, sigma = coefficients("velocity")
    error = means(NEW, "velocity") - DATA[:, None]
    of_distance = -sigma * 2 * error / np.abs(error).mean(axis=(2, 3), keepdims=True) / (N * C * W)
    a = np.clip(ADVANTAGES, -NFT.limit, NFT.limit)[:, None, None, None]
    leash = 2 * (NEW - REFERENCE) / NEW.size
    np.testing.assert_allclose(gradient, FLOW * a * of_distance / B + LEASH * leash, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_pieces_add_up_to_the_whole_batch(method):
    (loss, _), gradient = found(method, "velocity")
    pieces = [found(method, "velocity", slice(start, None, 2)) for start in (0, 1)]
    np.testing.assert_allclose(np.mean([value for (value, _), _ in pieces]), loss, rtol=1e-6)
    for start, (_, own) in enumerate(pieces):
        np.testing.assert_allclose(np.asarray(own) / 2, np.asarray(gradient)[start::2], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_a_blank_episode_teaches_nothing(method):
    """Its numbers are 0 and its advantage is, but its outputs may be anything."""
    finite = np.array([True] * (B - 1) + [False])
    (_, metrics), gradient = found(method, "velocity", finite=finite)
    assert np.abs(np.asarray(gradient)[-1]).max() == 0 < np.abs(np.asarray(gradient)[:-1]).max()
    np.testing.assert_allclose(metrics["flow/matching_loss"], losses(NEW, "velocity")[:-1].sum() / B, rtol=1e-5)


class Line:
    """A loss that is linear in its one parameter, and tells what it was compared with."""

    policy = types.SimpleNamespace(model=types.SimpleNamespace(trained_by={"denoising": "w"}))

    def prepare(self, episodes, step):
        return episodes

    def signal(self, episodes, advantages):
        return jnp.any(advantages != 0)

    def anchors(self, params, reference, episodes, own_start):
        return None if own_start else params["w"]

    def __call__(self, params, episodes, anchors, advantages, on_policy, moved):
        loss = params["w"] * jnp.mean(advantages)
        compared = {} if anchors is None else {"old": anchors}
        return loss, {"loss": loss, "on_policy": on_policy.astype(jnp.float32)} | compared


def test_the_old_policy_samples_and_follows_and_is_what_is_compared_with():
    """Decay 0 after the first iteration, 0.3 after the second, 0.5, the largest, then; none without a signal."""
    own = NFTConfig(old_growth=0.3, old_decay=0.5)
    config = dataclasses.replace(tiny.LEARNING, method="diffusion_nft", nft=own, micro_batches=2, ema_decay=0.9)
    update = tiny.jit(UpdateProgram(objective=Line(), config=config).__call__)
    state = new_state({"w": jnp.float32(1.0)}, config, Line.policy.model.trained_by)
    old = average = 1.0
    for step, decay in enumerate((0.0, 0.3, 0.5, 0.5)):
        before, advantages = state, jnp.full(4, 0.0 if step == 3 else 1.0)
        state, metrics = update(state, {}, {"w": jnp.float32(1.0)}, jnp.arange(4.0), advantages)
        np.testing.assert_allclose(metrics["old"], old, rtol=1e-6)
        assert metrics["on_policy"] == (step < 2)  # then the trained policy is ahead of the one that sampled
        old = old if step == 3 else decay * old + (1 - decay) * float(state.trained["w"])
        average = average if step == 3 else 0.9 * average + 0.1 * float(state.trained["w"])
        np.testing.assert_allclose((state.old["w"], state.ema["w"]), (old, average), rtol=1e-6)
    assert state.sampling({}) == {"w": state.old["w"]} and state.params({}) == {"w": state.trained["w"]}
    assert before.old["w"] == state.old["w"]  # no signal, no step


def test_no_other_old_policy_is_kept_where_none_is_asked_for():
    nft = dataclasses.replace(tiny.LEARNING, method="diffusion_nft")
    kept = lambda config: new_state({"w": jnp.float32(1.0)}, config, Line.policy.model.trained_by).old
    assert kept(nft) is not None
    for config in (tiny.LEARNING, dataclasses.replace(nft, nft=NFTConfig(old_decay=0.0))):
        assert kept(config) is None
    update = tiny.jit(UpdateProgram(objective=Line(), config=tiny.LEARNING).__call__)
    state = new_state({"w": jnp.float32(1.0)}, tiny.LEARNING, Line.policy.model.trained_by)
    _, metrics = update(state, {}, {"w": jnp.float32(1.0)}, jnp.arange(4.0), jnp.ones(4))
    assert "old" not in metrics and metrics["on_policy"] == 1
