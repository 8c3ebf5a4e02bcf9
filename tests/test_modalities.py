"""A latent of several modalities: each is noised, stepped, kept and compared for itself."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from unigrpo_jax.config import LearningConfig
from unigrpo_jax.episode import Drawing, Episodes
from unigrpo_jax.learning.objective import FlowAnchor, Objective
from unigrpo_jax.learning.policy import Policy
from unigrpo_jax.models.schedule import timesteps
from unigrpo_jax.rollout import randomness
from unigrpo_jax.rollout.drawing import FlowSampler, denoise, draw
from unigrpo_jax.rollout.step_rules import FlowSDE
from unigrpo_jax.rollout.thinking import TokenSampler


@dataclasses.dataclass(frozen=True)
class Both:
    """A velocity for each modality, of its own numbers and weight alone."""

    thinks, hold = False, None

    def empty(self, batch):
        return jnp.zeros((batch, 1))

    def read(self, params, text, condition):
        return text

    def unread(self, params, text, condition):
        return condition

    def predict(self, params, x, t_B, grid, condition):
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


def loss(weights, drawing):
    """Loss and metrics of other weights than those that sampled, and than the reference."""
    episodes = Episodes(prompt=TEXT, segments=(drawing,))
    own = objective()
    reference = own.policy.view(jax.tree.map(lambda w: w + 0.1, WEIGHTS), episodes)[0].output
    anchors = (FlowAnchor(old=drawing.mean, reference=reference),)
    return own(weights, episodes, anchors, jnp.asarray([1.0, -1.0]), jnp.bool_(False))


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


def test_losses_are_added_and_a_modality_does_not_drown_the_other():
    """One mean over all numbers would scale the sound's gradient down as the video grows."""
    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (total, metrics), grads = gradient(MOVED, sampled(7))
    (_, larger), more = gradient(MOVED, sampled(70))
    names = {name.partition("/")[0] for name in metrics}
    assert names == {"flow_audio", "flow_video", "loss"}
    parts = [metrics[f"flow_{n}/loss"] + 0.3 * metrics[f"flow_{n}/velocity_mse"] for n in ("audio", "video")]
    np.testing.assert_allclose(total, sum(parts), rtol=1e-6)
    assert float(grads["audio"]) != 0 and float(grads["video"]) != 0
    np.testing.assert_allclose(grads["audio"], more["audio"], rtol=1e-6)
    np.testing.assert_allclose(metrics["flow_audio/velocity_mse"], larger["flow_audio/velocity_mse"], rtol=1e-6)
