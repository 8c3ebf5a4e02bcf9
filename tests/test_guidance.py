"""Classifier-free guidance with BAGEL's renormalisation, by hand and against the recorded system."""

import jax.numpy as jnp
import numpy as np
import pytest

from unigrpo_jax.models.bagel.guidance import Guidance


@pytest.mark.parametrize("prefix", ["sq", "ns"])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("v_textcfg4_global", {"scale": 4.0}),
        ("v_textcfg4_channel_min0p3", {"scale": 4.0, "renorm": "channel", "renorm_min": 0.3}),
    ],
)
def test_agrees_with_the_public_system(fixtures, assert_close, prefix, name, settings):
    d = np.load(fixtures / "bagel" / "velocity.npz")
    v, v_text = (jnp.asarray(d[f"{prefix}_{n}"])[:, None] for n in ("v_cond", "v_uncond"))
    everywhere = Guidance(interval=(-1.0, 1.0), **settings)  # the recorded times end with t = 0
    guided = [everywhere.apply(a, b, t)[0] for a, b, t in zip(v, v_text, d["t"], strict=True)]
    assert_close(jnp.stack(guided), d[f"{prefix}_{name}"], name=name)


@pytest.fixture
def velocities():
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, 6, 5)), rng.normal(size=(2, 6, 5))


@pytest.mark.parametrize(("renorm", "axes"), [("global", (1, 2)), ("channel", 2), ("text_channel", 2)])
def test_formula_by_hand(velocities, renorm, axes):
    v, v_text = velocities
    u = v_text + 3 * (v - v_text)
    factor = np.sqrt((v**2).sum(axes, keepdims=True)) / (np.sqrt((u**2).sum(axes, keepdims=True)) + 1e-8)
    out = Guidance(scale=3.0, renorm=renorm, renorm_min=0.4).apply(jnp.asarray(v), jnp.asarray(v_text), 0.5)
    np.testing.assert_allclose(out, u * np.clip(factor, 0.4, 1), rtol=1e-5)
    free = Guidance(scale=3.0, renorm=renorm, renorm_min=1.0).apply(jnp.asarray(v), jnp.asarray(v_text), 0.5)
    np.testing.assert_allclose(free, u, rtol=1e-5)


def test_acts_above_the_lower_and_up_to_the_upper_end_of_its_interval(velocities):
    v, v_text = (jnp.asarray(a, jnp.float32) for a in velocities)
    guidance = Guidance(scale=4.0, interval=(0.25, 0.75))
    acts = [bool((guidance.apply(v, v_text, t) != v).any()) for t in (0.0, 0.25, 0.26, 0.75, 0.76, 1.0)]
    assert acts == [False, False, True, True, False, False]


def test_scale_one_needs_no_second_pass():
    assert not Guidance(scale=1.0).active and Guidance(scale=1.5).active
