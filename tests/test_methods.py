"""What else may be learned from episodes: imitation of the best, a reward's own gradient, guided drawings."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracle, tiny
from unigrpo_jax.config import ConfigError, NFTConfig, RunConfig
from unigrpo_jax.config_checks import check
from unigrpo_jax.learning import parameters
from unigrpo_jax.learning.imitation import Imitation
from unigrpo_jax.learning.refl import RewardGradient
from unigrpo_jax.learning.update import UpdateProgram, new_state
from unigrpo_jax.models import tree
from unigrpo_jax.models.bagel import Bagel
from unigrpo_jax.models.building.guidance import Guidance

START = tiny.params()
TRAINED = tiny.nearby(START, 0.02)
KEPT = jnp.asarray([2.0, 0.0, 0.5, 0.0] * (tiny.EPISODES // 4), jnp.float32)


def imitation(**changes):
    config = dataclasses.replace(tiny.LEARNING, text_weight=0.7, flow_weight=1.3, **changes)
    return Imitation(policy=tiny.policy(), config=config, seed=4)


@functools.cache
def prepared(step=3):
    return tiny.jit(imitation().prepare)(tiny.episodes(), jnp.int32(step))


def test_the_noisy_latents_are_what_flow_matching_asks_for():
    before, after = tiny.episodes().drawing, prepared().drawing
    times = oracle.schedule(tiny.ROLLOUT.flow_steps, tiny.ROLLOUT.timestep_shift)
    t = times[np.asarray(after.steps)][:, :, None, None]
    by_hand = (1 - t) * np.asarray(before.latent, np.float64)[:, None] + t * np.asarray(after.noise, np.float64)
    np.testing.assert_allclose(after.x, by_hand, atol=1e-5)
    noise = np.asarray(after.noise)
    assert set(np.asarray(after.steps).ravel().tolist()) == set(range(tiny.ROLLOUT.flow_steps))
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05
    rows = noise.reshape(-1, noise[0, 0].size)
    assert np.abs(np.corrcoef(rows) - np.eye(len(rows))).max() < 0.5  # no two share their noise
    assert not np.allclose(noise, prepared(4).drawing.noise)
    assert not np.allclose(noise, before.noise)


def test_the_latent_is_the_one_that_the_image_shows():
    drawing = tiny.episodes().drawing
    n, (rows, columns), p = tiny.EPISODES, tiny.GRID, tiny.CONFIG.latent_patch
    pixels = np.asarray(drawing.latent).reshape(n, rows, columns, p, p, 3).transpose(0, 1, 3, 2, 4, 5)
    image = (np.clip(pixels.reshape(n, rows * p, columns * p, 3) / 2 + 0.5, 0, 1) * 255).astype(np.uint8)
    assert np.abs(image.astype(int) - np.asarray(drawing.image)).max() <= 1


def test_the_loss_is_cross_entropy_and_flow_matching_of_the_kept_episodes():
    """Re-derived in float64 from the oracle's own forward pass."""
    objective = imitation()
    loss, metrics = tiny.jit(lambda p, e, a: objective(p, e, (None, None), a, True))(TRAINED, prepared(), KEPT)
    exact, text, flow = oracle.to64(TRAINED), [], []
    latents = np.asarray(prepared().drawing.latent, np.float64)
    for row, weight in enumerate(np.asarray(KEPT)):
        e = oracle.episode(prepared(), row)
        seen = oracle.view(exact, e)
        text.append(-np.mean(seen.log_probs) if weight > 0 else 0.0)
        flow.append(np.mean((seen.output - (e.noise - latents[row])) ** 2) if weight > 0 else 0.0)
    np.testing.assert_allclose(metrics["text/loss"], np.mean(text), rtol=1e-4)
    np.testing.assert_allclose(metrics["flow/loss"], np.mean(flow), rtol=1e-4)
    np.testing.assert_allclose(loss, 0.7 * np.mean(text) + 1.3 * np.mean(flow), rtol=1e-4)
    assert metrics["imitation/kept_share"] == 0.5


def test_pieces_imitate_as_the_whole_batch_and_learn():
    """The same update in one piece and in four; the kept tokens become likelier and their images nearer."""
    outcomes = []
    for pieces in (1, 4):
        objective = imitation(micro_batches=pieces)
        update = tiny.jit(UpdateProgram(objective=objective, config=objective.config).__call__)
        state = new_state(START, objective.config, Bagel.trained_by)
        _, frozen = parameters.split(START, parameters.groups(START, objective.config, Bagel.trained_by))
        losses = []
        for _ in range(3):
            state, metrics = update(state, frozen, START, tiny.episodes(), KEPT)
            losses.append(float(metrics["loss"]))
        outcomes.append(state.trained)
    for path, x in outcomes[0].items():
        np.testing.assert_allclose(x, outcomes[1][path], atol=2e-5, err_msg=path)
    assert losses[-1] < losses[0]


TARGET = np.random.default_rng(1).uniform(size=(tiny.EPISODES, 12, 8, 3)).astype(np.float32)


def closeness(goals, images):
    return -jnp.mean((images - goals["target"]) ** 2, axis=(1, 2, 3)) * goals["scale"]


@functools.cache
def followed():
    decode = lambda tokens: tokens.reshape(-1, 3, 2, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 12, 8, 3)
    config = dataclasses.replace(tiny.LEARNING, flow_weight=0.9, text_weight=0.0)
    objective = RewardGradient(policy=tiny.policy(), config=config, decode=decode, score=closeness)
    goals = {"target": jnp.asarray(TARGET), "scale": jnp.linspace(1, 2, tiny.EPISODES)}
    batch = tiny.episodes().replace(goals=goals)

    def loss(params):
        anchors = objective.anchors(params, START, batch, True)
        return objective(params, batch, anchors, jnp.ones(tiny.EPISODES), True)

    return tiny.jit(jax.value_and_grad(loss, has_aux=True))


def test_refl_is_the_mean_reward_of_the_predicted_clean_images():
    (loss, metrics), _ = followed()(TRAINED)
    exact, start = oracle.to64(TRAINED), oracle.to64(START)
    times = oracle.schedule(tiny.ROLLOUT.flow_steps, tiny.ROLLOUT.timestep_shift)
    rewards, mse = [], []
    for row in range(tiny.EPISODES):
        e = oracle.episode(tiny.episodes(), row)
        seen, reference = oracle.view(exact, e), oracle.view(start, e)
        mse.append(np.mean((seen.output - reference.output) ** 2))
        for step, x, v in zip(e.steps, e.x, seen.output, strict=True):
            pixels = (x - times[step] * v).reshape(3, 2, 4, 4, 3).transpose(0, 2, 1, 3, 4).reshape(12, 8, 3)
            scale = 1 + row / (tiny.EPISODES - 1)
            rewards.append(-np.mean((np.clip(pixels / 2 + 0.5, 0, 1) - TARGET[row]) ** 2) * scale)
    np.testing.assert_allclose(metrics["flow/reward"], np.mean(rewards), rtol=1e-4)
    np.testing.assert_allclose(loss, tiny.LEARNING.mse_weight * np.mean(mse) - 0.9 * np.mean(rewards), rtol=1e-4)


def test_refl_follows_the_gradient_of_the_reward():
    """Against central differences along the steepest direction of the flow head, which rounding hides least."""
    _, grads = followed()(START)
    steepest = np.asarray(grads["llm2vae"]["kernel"])
    direction = steepest / np.linalg.norm(steepest)
    moved = lambda step: START | {"llm2vae": START["llm2vae"] | {"kernel": START["llm2vae"]["kernel"] + step * direction}}
    values = [float(followed()(moved(step))[0][1]["flow/reward"]) for step in (-1e-2, 1e-2)]
    expected = -0.9 * (values[1] - values[0]) / 2e-2
    found = float(np.sum(steepest * direction))
    np.testing.assert_allclose(found, expected, rtol=0.02)
    flat = tree.flatten(grads)
    assert float(jnp.abs(flat["lm_head/kernel"]).max()) == 0  # no token is rewarded where the text's weight is 0


def test_a_guided_drawing_is_trained_as_it_was_sampled():
    """The update's means are the rollout's, and its velocity is guidance of two passes of the float64 oracle."""
    program = tiny.rollout_program(guidance=2.5)
    assert program.flow.guidance == Guidance(text=2.5)
    batch = tiny.jit(program.__call__)(START, {}, tiny.prompts(), 0, 0, 0)
    policy = dataclasses.replace(tiny.policy(), flow=program.flow)
    _, seen = tiny.jit(policy.view)(START, batch)
    np.testing.assert_allclose(seen.mean, batch.drawing.mean, atol=2e-5)
    exact = oracle.to64(START)
    times = oracle.schedule(tiny.ROLLOUT.flow_steps, tiny.ROLLOUT.timestep_shift)
    for row in (0, 5, 11):
        e = oracle.episode(batch, row)
        v = oracle.view(exact, e).output
        for step, x, with_text, found in zip(e.steps, e.x, v, np.asarray(seen.output)[row], strict=True):
            without = oracle.forward(exact, [], x, times[step])[1]
            u = without + 2.5 * (with_text - without)
            held = u * min(1.0, np.linalg.norm(with_text) / (np.linalg.norm(u) + 1e-8))
            np.testing.assert_allclose(found, held, rtol=2e-3, atol=2e-4)


FPO, NFT = {"method": "fpo"}, {"method": "diffusion_nft"}


def run_config(**changes):
    base = RunConfig()
    return dataclasses.replace(base, **{name: dataclasses.replace(getattr(base, name), **x) for name, x in changes.items()})


def test_methods_that_need_no_ratio_may_draw_without_noise():
    check(run_config(learning={"method": "best_of_n", "best": 1}, rollout={"step_rule": "ode"}))
    check(run_config(learning={"method": "refl"}, rollout={"step_rule": "ode"}))
    for method in ("fpo", "diffusion_nft"):
        check(run_config(learning={"method": method}, rollout={"step_rule": "ode"}))
        segments = {"credit": "segment", "thought_rewards": ("plan",)}
        check(run_config(learning={"method": method, **segments}, rollout={"resample": 3}))
    check(run_config(rollout={"guidance": 2.0}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning": {"method": "best_of_n"}}, r"learning\.best = 0 .*use learning\.best = 1"),
        ({"learning": {"method": "best_of_n", "best": 1, "worst": 1}}, r"learning\.worst = 1; use"),
        ({"rollout": {"guidance": 0.5}}, r"rollout\.guidance = 0\.5, but it must be 1"),
        ({"rollout": {"step_rule": "ode"}}, "no ratio to learn from"),
        ({"rollout": {"resample": -1}}, r"rollout\.resample = -1, but it must be 0 or more"),
        ({"learning": {"method": "refl"}, "rollout": {"resample": 2}}, r"rollout\.resample = 2 .*'refl' learns, too; use 0"),
        ({"learning": {"nft": NFTConfig(beta=0.5)}}, r"'diffusion_nft' alone, but learning\.method = 'grpo'; leave it out"),
        ({"learning": NFT | {"nft": NFTConfig(beta=0.0)}}, r"nft\.beta = 0\.0, but it must be above 0"),
        ({"learning": NFT | {"nft": NFTConfig(limit=-1.0)}}, r"nft\.limit = -1\.0, but it must be above 0"),
        ({"learning": NFT | {"nft": NFTConfig(old_decay=1.0)}}, r"nft\.old_decay = 1\.0, but it must be .* below 1"),
        ({"learning": NFT | {"nft": NFTConfig(old_growth=-0.1)}}, r"nft\.old_growth = -0\.1, but it must be 0 or more"),
        ({"learning": NFT, "rollout": {"guidance": 2.0}}, r"rollout\.guidance = 2, .*without guidance; use .* or 1"),
        ({"learning": FPO | {"latent_kl_weight": 1.0}}, r"latent_kl_weight = 1 .*looks at none; use .* or mse_weight"),
        ({"learning": {"method": "refl", "latent_kl_weight": 1.0}}, r"latent_kl_weight = 1 .*'refl' looks at none"),
        ({"learning": {"method": "refl"}, "rollout": {"rounds": 2}}, r"rollout\.rounds = 2, .*a single drawing; use .* 1"),
        ({"learning": {"method": "best_of_n", "best": 1, "text_kl_weight": 0.1}}, r"text_kl_weight = 0\.1 .*imitates"),
        ({"learning": {"method": "best_of_n", "best": 1, "advantage_limit": 5.0}}, r"advantage_limit = 5 .*has none; use 0"),
        ({"learning": {"advantage_limit": -1.0}}, r"advantage_limit = -1"),
        ({"learning": FPO | {"ratio_norm": False}}, r"ratio_norm is off, but learning\.method = 'fpo' has no ratio"),
        ({"learning": FPO | {"old_log_probs": "rollout"}}, r"old_log_probs = 'rollout', .*; use .* or 'recompute'"),
    ],
)
def test_settings_that_cannot_work(changes, words):
    with pytest.raises(ConfigError, match=words):
        check(run_config(**changes))
