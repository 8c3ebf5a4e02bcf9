"""A latent of several modalities: each is noised, stepped, kept and compared for itself."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unigrpo_jax.config import ConfigError, LearningConfig
from unigrpo_jax.episode import Drawing, Episodes
from unigrpo_jax.learning import modalities
from unigrpo_jax.learning.fpo import FlowPolicyOptimization
from unigrpo_jax.learning.nft import DiffusionNFT
from unigrpo_jax.learning.objective import FlowAnchor, Objective
from unigrpo_jax.learning.policy import Policy
from unigrpo_jax.learning.update import UpdateProgram, new_state
from unigrpo_jax.models.schedule import timesteps
from unigrpo_jax.rollout import randomness
from unigrpo_jax.rollout.drawing import FlowSampler, denoise, draw
from unigrpo_jax.rollout.step_rules import FlowSDE
from unigrpo_jax.rollout.thinking import TokenSampler


@dataclasses.dataclass(frozen=True)
class Both:
    """A velocity for each modality, of its own numbers and weight alone."""

    thinks, begins, two_times, hold = False, False, False, None
    trained_by = {"denoising": ".*"}

    def empty(self, batch):
        return jnp.zeros((batch, 1))

    def read(self, params, text, condition):
        return text

    def unread(self, params, text, condition):
        return condition

    def predict(self, params, x, t_B, grid, condition, to_B=None):
        return {name: params[name] * x[name] + condition[:, :, None] for name in x}

    def to_latent(self, tokens, grid):
        return {**tokens, "video": tokens["video"].reshape(-1, 7, 1, 1, 4)}


WEIGHTS = {"audio": jnp.float32(0.5), "video": jnp.float32(-0.3)}
FLOW = FlowSampler(schedule=tuple(timesteps(4, 1.0).tolist()), rule=FlowSDE(noise_level=0.7), grid=(1, 1))
TEXT, WINDOW = jnp.asarray([[0.1], [0.2]]), jnp.asarray([0, 2])


def sampled(video_tokens: int):
    like = {"audio": jnp.zeros((2, 5, 3)), "video": jnp.zeros((2, video_tokens, 4))}
    keys = randomness.sample_keys(jax.random.key(0), jnp.arange(2))
    start = randomness.normal_like(keys, 0, like)
    end, (x, noise, mean) = jax.jit(denoise, static_argnums=(0, 6))(Both(), WEIGHTS, TEXT, start, keys, WINDOW, FLOW)
    steps = jnp.broadcast_to(WINDOW, (2, 2))
    return Drawing(steps=steps, x=x, noise=noise, mean=mean, latent=end, media={}, finite=jnp.ones(2, bool))


def test_a_clip_comes_with_its_sound_and_neither_may_be_infinite():
    """Sound stays float32; a row whose sound is no number is not finite, whatever its frames are."""

    def decode(latent):
        return {"video": latent["video"][..., :3], "audio": 1 / jnp.where(latent["audio"] > 1e9, 0, latent["audio"] + 9)}

    start = {"audio": jnp.ones((2, 5, 3)), "video": jnp.zeros((2, 7, 4))}
    start["audio"] = start["audio"].at[1].set(3e9)
    run = jax.jit(lambda x: draw(Both(), WEIGHTS, TEXT, x, None, jnp.zeros(0, int), FLOW, decode))
    drawn = run(start)
    assert {name: (x.shape, x.dtype) for name, x in drawn.media.items()} == {
        "video": ((2, 7, 1, 1, 3), jnp.uint8), "audio": ((2, 5, 3), jnp.float32)}  # fmt: skip
    np.testing.assert_array_equal(drawn.finite, [True, False])
    np.testing.assert_allclose(drawn.media["audio"][0], 1 / (drawn.latent["audio"][0] + 9), rtol=1e-6)


def objective():
    policy = Policy(model=Both(), tokens=TokenSampler(), flow=FLOW)
    return Objective(policy=policy, config=LearningConfig(text_weight=0.0, mse_weight=0.3, flow_clip=0.1))


def test_each_modality_is_held_beside_the_window_too():
    drawing, times = sampled(7), (0.25, 0.8)
    own = dataclasses.replace(objective(), policy=dataclasses.replace(objective().policy, leash_times=times))
    episodes = Episodes(prompt=TEXT, segments=(drawing,))
    anchors = own.anchors(None, WEIGHTS, episodes, own_start=True)
    _, metrics = own(MOVED, episodes, anchors, jnp.asarray([1.0, -1.0]), jnp.bool_(False))
    for name in ("audio", "video"):
        made = [(1 - t) * drawing.latent[name] + t * drawing.noise[name][:, slot] for slot, t in enumerate(times)]
        error = np.mean((0.01 * float(WEIGHTS[name]) * np.stack(made)) ** 2)
        np.testing.assert_allclose(metrics[f"flow_{name}/leash_mse"], error, rtol=1e-4)


SHARED = jnp.asarray([1.0, -1.0])


def loss(weights, drawing, advantages=SHARED, **changes):
    """Loss and metrics of other weights than those that sampled, and than the reference."""
    episodes = Episodes(prompt=TEXT, segments=(drawing,))
    own = objective()
    own = dataclasses.replace(own, config=dataclasses.replace(own.config, **changes))
    reference = own.policy.view(jax.tree.map(lambda w: w + 0.1, WEIGHTS), episodes)[0].output
    anchors = (FlowAnchor(old=drawing.mean, reference=reference),)
    return own(weights, episodes, anchors, advantages, jnp.bool_(False))


MOVED = jax.tree.map(lambda w: w * 1.01, WEIGHTS)


def test_a_modality_is_drawn_as_if_it_were_alone():
    drawing, wide = sampled(7), sampled(70)
    assert {x.shape for x in drawing.x.values()} == {(2, 2, 5, 3), (2, 2, 7, 4)}
    for name in ("x", "noise", "mean", "latent"):  # the first one's randomness is that of a latent of one array
        np.testing.assert_array_equal(getattr(drawing, name)["audio"], getattr(wide, name)["audio"])
    assert np.abs(drawing.noise["video"][..., :5, :3] - drawing.noise["audio"]).min() > 0
    t, t_next = FLOW.times()[2], FLOW.times()[3]
    v = WEIGHTS["video"] * drawing.x["video"][:, 1] + TEXT[:, :, None]
    mean, std = FLOW.rule.transition(drawing.x["video"][:, 1], v, t, t_next, FLOW.times()[1], FLOW.path, "velocity")
    np.testing.assert_allclose(drawing.mean["video"][:, 1], mean, rtol=2e-6, atol=2e-6)
    after = mean + std * drawing.noise["video"][:, 1]
    v = WEIGHTS["video"] * after + TEXT[:, :, None]
    np.testing.assert_allclose(drawing.latent["video"], after - t_next * v, rtol=1e-5, atol=1e-5)


gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))


def test_losses_are_added_and_a_modality_does_not_drown_the_other():
    """One mean over all numbers would scale the sound's gradient down as the video grows."""
    (total, metrics), grads = gradient(MOVED, sampled(7))
    (_, larger), more = gradient(MOVED, sampled(70))
    names = {name.partition("/")[0] for name in metrics}
    assert names == {"flow_audio", "flow_video", "loss"}
    parts = [metrics[f"flow_{n}/loss"] + 0.3 * metrics[f"flow_{n}/velocity_mse"] for n in ("audio", "video")]
    np.testing.assert_allclose(total, sum(parts), rtol=1e-6)
    assert float(grads["audio"]) != 0 and float(grads["video"]) != 0
    np.testing.assert_allclose(grads["audio"], more["audio"], rtol=1e-6)
    np.testing.assert_allclose(metrics["flow_audio/velocity_mse"], larger["flow_audio/velocity_mse"], rtol=1e-6)


def test_a_modality_counts_by_its_weight_ratio_and_leash_together():
    """The sound's gradient is that without weights times its own weight, whatever the clip's size and weight."""
    (_, plain), grads = gradient(MOVED, sampled(7))
    weighted = functools.partial(loss, modality_weights={"audio": 3.0, "video": 0.5})
    (total, metrics), found = jax.jit(jax.value_and_grad(weighted, has_aux=True))(MOVED, sampled(70))
    np.testing.assert_allclose(found["audio"], 3 * grads["audio"], rtol=1e-6)
    own = lambda name: metrics[f"flow_{name}/loss"] + 0.3 * metrics[f"flow_{name}/velocity_mse"]
    np.testing.assert_allclose(total, 3 * own("audio") + 0.5 * own("video"), rtol=1e-6)
    for metric in ("loss", "ratio_mean", "ratio_square", "clip_fraction_above", "velocity_mse"):
        np.testing.assert_allclose(metrics[f"flow_audio/{metric}"], plain[f"flow_audio/{metric}"], rtol=1e-6)


def test_one_loss_of_each_modality_is_added_by_weights():
    learning = LearningConfig(modality_weights={"audio": 3.0})
    both = {"audio": jnp.asarray([1.0, 2.0]), "video": jnp.asarray([10.0, 20.0])}
    np.testing.assert_array_equal(modalities.added(both, learning), [13, 26])
    np.testing.assert_array_equal(modalities.added(both["video"], learning), [10, 20])


def test_a_modality_learns_from_its_own_advantage_alone():
    """Of the one that is shared each has the gradient, bit for bit; another clip's advantage leaves the sound's as it is."""
    drawing = sampled(7)
    (total, _), grads = gradient(MOVED, drawing)
    (same, _), alike = gradient(MOVED, drawing, {"audio": SHARED, "video": SHARED})
    assert total == same and grads == alike
    (_, metrics), found = gradient(MOVED, drawing, {"audio": SHARED, "video": jnp.asarray([-0.5, 0.25])})
    assert found["audio"] == grads["audio"] and found["video"] != grads["video"]
    own = gradient(MOVED, drawing, jnp.asarray([-0.5, 0.25]))
    assert found["video"] == own[1]["video"] and metrics["flow_video/loss"] == own[0][1]["flow_video/loss"]


@pytest.mark.parametrize("method", [FlowPolicyOptimization, DiffusionNFT])
def test_methods_without_transitions_tell_modalities_apart_too(method):
    """Advantages [row, modality]: those of the sound alone decide its gradient, which its weight scales."""
    config = LearningConfig(text_weight=0.0, mse_weight=0.0, reference="none", modality_weights={"audio": 2.0})
    plain = dataclasses.replace(config, modality_weights={})
    episodes = Episodes(prompt=TEXT, segments=(sampled(7),))

    @functools.partial(jax.jit, static_argnums=0)
    def gradient(weighted, advantages):
        own = method(policy=objective().policy, config=config if weighted else plain, seed=0)
        seen = own.prepare(episodes, 0)
        anchors = own.anchors(WEIGHTS, {}, seen, own_start=False)
        return jax.grad(lambda weights: own(weights, seen, anchors, advantages, jnp.bool_(False))[0])(MOVED)

    both = lambda audio, video: {"audio": jnp.asarray(audio), "video": jnp.asarray(video)}
    first, other = (gradient(False, both([1.0, -1.0], video)) for video in ([1.0, -1.0], [-0.5, 0.25]))
    assert first["audio"] == other["audio"] != 0 and first["video"] != other["video"]
    weighted = gradient(True, both([1.0, -1.0], [1.0, -1.0]))
    np.testing.assert_allclose([weighted["audio"], weighted["video"]], [2 * first["audio"], first["video"]], rtol=1e-6)


def test_pieces_of_a_batch_give_its_update_where_advantages_tell_modalities_apart():
    """Adam's moments, which are the gradients of a first step; the sound's advantage is 0, its leash alone moves it."""
    drawing, reference = sampled(7), jax.tree.map(lambda w: w + 0.1, WEIGHTS)
    advantages = {"audio": jnp.zeros(2), "video": jnp.asarray([-0.5, 0.25])}

    def updated(advantages, **changes):
        config = LearningConfig(text_weight=0.0, mse_weight=0.3, max_grad_norm=1e9, **changes)
        own = dataclasses.replace(objective(), config=config)
        update = jax.jit(UpdateProgram(objective=own, config=config).__call__)
        start = new_state(WEIGHTS, config, Both.trained_by)
        return update(start, {}, reference, Episodes(prompt=TEXT, segments=(drawing,)), advantages)

    whole, metrics = updated(advantages)
    pieces, _ = updated(advantages, micro_batches=2)
    assert metrics["update/without_signal"] == 0 and metrics["grad_norm/denoising"] > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-12), pieces.opt_state, whole.opt_state)
    silent, metrics = updated(dict.fromkeys(advantages, jnp.zeros(2)))
    assert metrics["update/without_signal"] == 1 and silent.trained == WEIGHTS


@pytest.mark.parametrize(("changes", "words"), [
    ({"modality_weights": {"sound": 2.0}}, "modality_weights names sound, but toy draws audio and video; use these names"),
    ({"credit_by": {"a": "video", "b": "video, sound"}}, "credit_by names sound, but toy draws audio and video"),
    ({"modality_weights": {"audio": 0.0, "video": 0.0}}, "is 0 for every modality, so nothing learns"),
])  # fmt: skip
def test_a_modality_that_is_not_there_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        modalities.check(LearningConfig(**changes), ("audio", "video"), "toy")


def test_what_is_drawn_as_one_array_has_no_modalities_to_name():
    for setting, value in (("modality_weights", {"video": 1.0}), ("credit_by", {"a": "video"})):
        with pytest.raises(ConfigError, match=f"learning.{setting} names video, but what toy draws is not divided"):
            modalities.check(LearningConfig(**{setting: value}), (), "toy")
    modalities.check(LearningConfig(), (), "toy")
    one, both = (types.SimpleNamespace(grid=lambda *size: size, latent_shape=lambda size, shape=shape: shape)
                 for shape in ((4, 3), {"video": (7, 4), "audio": (5, 3)}))  # fmt: skip
    assert modalities.names(one, (8, 8, 1, 24.0)) == () and modalities.names(both, (8, 8, 1, 24.0)) == ("audio", "video")
