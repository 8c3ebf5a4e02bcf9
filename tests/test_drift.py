"""Drift by time, by hand: networks of a few numbers whose differences to the reference are known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.test_modalities import TEXT, WEIGHTS, Both
from unigrpo_jax.episode import Drawing, Episodes
from unigrpo_jax.learning.drift import drift
from unigrpo_jax.learning.policy import Policy
from unigrpo_jax.models.building.guidance import Guidance
from unigrpo_jax.models.schedule import timesteps
from unigrpo_jax.rollout.drawing import FlowSampler
from unigrpo_jax.rollout.step_rules import ODE
from unigrpo_jax.rollout.thinking import TokenSampler
from unigrpo_jax.training.overview import drift_table, drifted

FLOW = FlowSampler(schedule=tuple(timesteps(5, 3.0).tolist()), rule=ODE(), grid=(1, 1))


@dataclasses.dataclass(frozen=True)
class Line(Both):
    """The velocity scale x + shift [C] + seen (the mean of the prompt), of one modality."""

    def predict(self, params, x, t_B, grid, condition, to_B=None):
        """A line."""
        return params["scale"] * x + params["shift"][None, None] + params["seen"] * condition[:, :, None]


def measured(params, reference, flow=FLOW, model=None, x=None, count=2):
    """`drift` of `count` of 2 samples of 6 tokens and 4 channels, and the noise that they began at."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 4)), jnp.float32) if x is None else x
    policy = Policy(model=model or Line(), tokens=TokenSampler(), flow=flow)
    nothing = jnp.zeros((2, 0))
    drawing = Drawing(steps=nothing, x=None, noise=None, mean=None, latent=x, media={}, finite=jnp.ones(2, bool))
    episodes = Episodes(prompt=TEXT, segments=(drawing,))
    found = jax.jit(lambda *params: drift(policy, *params, episodes, x, count))(params, reference)
    return jax.tree.map(np.asarray, (found, x))


def line(scale=0.3, shift=0.0, seen=1.0):
    return {"scale": jnp.float32(scale), "shift": jnp.zeros(4) + jnp.asarray(shift, jnp.float32), "seen": jnp.float32(seen)}


def test_a_constant_shift_is_its_own_square_and_all_of_it_one_pattern():
    shift = np.array([0.1, -0.2, 0.05, 0.4])
    found, _ = measured(line(shift=shift), line())
    np.testing.assert_allclose(found["flow"]["squared"], [np.mean(shift**2)] * 5, rtol=1e-5)
    np.testing.assert_allclose(found["flow"]["pattern"], 1, rtol=1e-5)


def test_the_states_are_those_of_the_policys_own_drawing_and_the_conditions_are_those_of_each():
    """0.5 x + 2 text against 0.3 x + 1 text, along Euler's steps of the first."""
    found, x = measured(line(scale=0.5, seen=2.0), line())
    times, text = timesteps(5, 3.0).astype(np.float64), np.asarray(TEXT, np.float64)[:, :, None]
    for step in range(5):
        difference = 0.2 * x + text
        np.testing.assert_allclose(found["flow"]["squared"][step], np.mean(difference**2), rtol=1e-5)
        pattern = np.mean(difference.mean(axis=(0, 1)) ** 2) / np.mean(difference**2)
        np.testing.assert_allclose(found["flow"]["pattern"][step], pattern, rtol=1e-4)
        x = x + (0.5 * x + 2 * text) * (times[step + 1] - times[step])


def test_episodes_beyond_those_that_are_measured_say_nothing():
    found, x = measured(line(scale=0.5), line(), count=1)
    np.testing.assert_allclose(found["flow"]["squared"][0], np.mean((0.2 * x[:1]) ** 2), rtol=1e-5)


def test_the_reference_itself_has_not_drifted():
    found, _ = measured(line(), line())
    assert not found["flow"]["squared"].any() and not found["flow"]["pattern"].any()


def test_what_is_guided_is_compared_guided():
    """Guidance 3 triples what two weights of the text differ by, where the condition without it is the same."""
    flow = dataclasses.replace(FLOW, guidance=Guidance(text=3.0, renorm="none"))
    found, _ = measured(line(scale=0.0, seen=2.0), line(scale=0.0, seen=1.0), flow)
    text = np.asarray(TEXT, np.float64)
    np.testing.assert_allclose(found["flow"]["squared"], [9 * np.mean(text**2)] * 5, rtol=1e-5)


def test_every_modality_is_measured_for_itself():
    both = {"audio": jnp.ones((2, 5, 3)), "video": jnp.ones((2, 7, 4))}
    found, _ = measured(WEIGHTS | {"audio": WEIGHTS["audio"] + 0.1}, WEIGHTS, model=Both(), x=both)
    assert set(found) == {"flow_audio", "flow_video"} and not found["flow_video"]["squared"].any()
    np.testing.assert_allclose(found["flow_audio"]["squared"][0], 0.01, rtol=1e-4)


def test_what_is_found_as_metrics_and_as_a_table():
    found = {"flow": {"times": [1.0, 0.6, 0.25], "squared": [0.01, 0.02, 0.06], "pattern": [0.1, 0.2, 0.5]}}
    assert drifted(found) == {"drift/mean": pytest.approx(0.03), "drift/last": 0.06, "drift/last_pattern": 0.5}
    header, rows = drift_table(found)
    assert header == ["t", "1", "0.6", "0.25"]
    assert rows == [["squared", "1.00e-02", "2.00e-02", "6.00e-02"], ["pattern", "0.10", "0.20", "0.50"]]
    broken = {"flow_audio": found["flow"] | {"squared": [0.01, None, 0.06]}}
    assert drifted(broken)["drift_audio/mean"] is None
    assert drift_table(broken)[1][0][:3] == ["audio squared", "1.00e-02", "-"]
    many = {"flow": {name: [x / 50 for x in range(50)] for name in ("times", "squared", "pattern")}}
    assert len(drift_table(many)[0]) == 11  # of many steps ten, the first and the last among them
    assert drifted({}) == {}
