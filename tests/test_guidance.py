"""Classifier-free guidance with BAGEL's renormalisation, by hand and against the recorded system."""

import jax.numpy as jnp
import numpy as np
import pytest

from unigrpo_jax.models.building.guidance import Guidance


@pytest.mark.parametrize("prefix", ["sq", "ns"])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("v_textcfg4_global", {}),
        ("v_textcfg4_channel_min0p3", {"renorm": "channel", "renorm_min": 0.3}),
    ],
)
def test_agrees_with_the_public_system(fixtures, assert_close, prefix, name, settings):
    d = np.load(fixtures / "bagel" / "velocity.npz")
    v, v_text = (jnp.asarray(d[f"{prefix}_{n}"])[:, None] for n in ("v_cond", "v_uncond"))
    guided = [Guidance(text=4.0, **settings).apply(a, b)[0] for a, b in zip(v, v_text, strict=True)]
    assert_close(jnp.stack(guided), d[f"{prefix}_{name}"], name=name)


@pytest.fixture
def velocities():
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=(2, 6, 5)) for _ in range(3))


def by_hand(v, v_text, v_image, s, r, renorm, least):
    """The specification's three rules, each written out."""
    axes = (1, 2) if renorm == "global" else 2
    norm = lambda x: np.sqrt((x**2).sum(axes, keepdims=True))
    held = lambda x: x * np.clip(norm(v) / (norm(x) + 1e-8), least, 1)
    u = v_text + s * (v - v_text)
    if renorm == "text_channel":
        return v_image + r * (held(u) - v_image) if r > 1 else held(u)
    return held(v_image + r * (u - v_image) if r > 1 else u)


@pytest.mark.parametrize("renorm", ["global", "channel", "text_channel"])
@pytest.mark.parametrize("image", [1.0, 2.0])
@pytest.mark.parametrize("least", [0.0, 0.4, 1.0])
def test_formula_by_hand(velocities, renorm, image, least):
    guidance = Guidance(text=3.0, image=image, renorm=renorm, renorm_min=least)
    out = guidance.apply(*(jnp.asarray(v, jnp.float32) for v in velocities))
    np.testing.assert_allclose(out, by_hand(*velocities, 3.0, image, renorm, least), rtol=2e-5, atol=1e-6)


def test_acts_above_the_lower_and_up_to_the_upper_end_of_its_interval():
    guidance = Guidance(text=4.0, interval=(0.25, 0.75))
    acts = [bool(guidance.acts(t)) for t in (0.0, 0.25, 0.26, 0.75, 0.76, 1.0)]
    assert acts == [False, False, True, True, False, False]


def test_without_text_guidance_there_is_none_whatever_the_image_scale():
    assert not Guidance(text=1.0, image=2.0).active and not Guidance(text=1.0, image=2.0).with_image
    assert Guidance(text=1.5).active and not Guidance(text=1.5).with_image
    assert Guidance(text=1.5, image=1.1).with_image
