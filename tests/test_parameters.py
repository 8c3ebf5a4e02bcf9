"""Which parameter is trained by what, and the optimizer against AdamW in numpy."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from unigrpo_jax.config import ConfigError, LearningConfig
from unigrpo_jax.learning import parameters
from unigrpo_jax.learning.parameters import DENOISING, FROZEN, REASONING
from unigrpo_jax.models import tree
from unigrpo_jax.models.bagel import Bagel

CONFIG = LearningConfig(frozen=())


def test_every_parameter_belongs_to_exactly_one_expert():
    flat = tree.flatten(tiny.params())
    labels = parameters.groups(tiny.params(), CONFIG, Bagel.trained_by)
    assert set(labels) == set(flat) and set(labels.values()) == set(parameters.GROUPS)
    for path, group in labels.items():
        text = "und" in path or path.startswith(("embed/", "lm_head/"))
        fixed = path == "latent_pos_embed"
        assert group == (FROZEN if fixed else REASONING if text else DENOISING), path
    with pytest.raises(ConfigError, match=r"parameter vit/kernel belongs to no group"):
        parameters.group_of("vit/kernel", Bagel.trained_by, ())


def test_flatten_and_split_lose_nothing():
    labels = parameters.groups(tiny.params(), dataclasses.replace(CONFIG, frozen=("layers/und", "embed")), Bagel.trained_by)
    trained, frozen = parameters.split(tiny.params(), labels)
    assert not set(trained) & set(frozen)
    assert set(frozen) == {p for p in labels if p.startswith(("layers/und/", "embed/", "latent_pos_embed"))}
    tiny.assert_trees_equal(tree.unflatten(trained | frozen), tiny.params())


@pytest.mark.parametrize(
    ("pattern", "hits"),
    [
        ("latent_pos_embed", set()),
        ("vae2llm", {"vae2llm/kernel", "vae2llm/bias"}),
        ("vae2llm/bias", {"vae2llm/bias"}),
        (r".*/und/.*_norm", {f"layers/und/{n}_norm/scale" for n in ("input", "post", "q", "k")}),
        ("norm_.*", {"norm_und/scale", "norm_gen/scale"}),
    ],
)
def test_frozen_patterns_match_whole_names(pattern, hits):
    labels = parameters.groups(tiny.params(), dataclasses.replace(CONFIG, frozen=(pattern,)), Bagel.trained_by)
    assert {path for path, group in labels.items() if group == FROZEN} == hits | {"latent_pos_embed"}


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("vae2lm", "'vae2lm' matches no parameter; paths look like"),
        ("embed(", r"'embed\(' is not a regular expression"),
    ],
)
def test_a_frozen_pattern_that_cannot_work_is_an_error(pattern, message):
    with pytest.raises(ConfigError, match=message):
        parameters.groups(tiny.params(), dataclasses.replace(CONFIG, frozen=(pattern,)), Bagel.trained_by)


def test_the_optimizer_is_adamw_after_one_clip_over_both_experts():
    config = dataclasses.replace(
        CONFIG, reasoning_lr=0.01, denoising_lr=0.2, max_grad_norm=0.5, adam_b1=0.8, adam_b2=0.95, weight_decay=0.1
    )
    labels = {"embed/x": REASONING, "llm2vae/x": DENOISING}
    rng = np.random.default_rng(0)
    params = {k: jnp.asarray(rng.normal(size=4), jnp.float32) for k in labels}
    exact = {k: np.asarray(v, np.float64) for k, v in params.items()}
    transform = parameters.optimizer(config, labels)
    state = transform.init(params)
    m, v = ({k: np.zeros(4) for k in labels} for _ in range(2))
    for count, size in enumerate((0.01, 3.0, 1.0), start=1):  # the first is below the clip
        grads = {k: rng.normal(size=4) * size for k in labels}
        updates, state = transform.update({k: jnp.asarray(g, jnp.float32) for k, g in grads.items()}, state, params)
        norm = np.sqrt(sum(np.sum(g**2) for g in grads.values()))
        for k, rate in (("embed/x", 0.01), ("llm2vae/x", 0.2)):
            g = grads[k] * min(1, 0.5 / norm)
            m[k], v[k] = 0.8 * m[k] + 0.2 * g, 0.95 * v[k] + 0.05 * g**2
            adam = m[k] / (1 - 0.8**count) / (np.sqrt(v[k] / (1 - 0.95**count)) + config.adam_eps)
            step = -rate * (adam + 0.1 * exact[k])
            np.testing.assert_allclose(updates[k], step, rtol=2e-4, atol=1e-7)
            exact[k] = exact[k] + step
        params = {k: params[k] + updates[k] for k in labels}
