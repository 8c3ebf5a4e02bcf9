"""Thinking that repeats itself, by hand and by a policy that knows one word."""

import jax.numpy as jnp
import numpy as np

from tests import tiny
from unigrpo_jax.training.measured import means
from unigrpo_jax.training.text_statistics import repeated_share


def test_the_share_of_repeated_grams_by_hand():
    rows = [
        [1, 2, 3, 4, 5, 6, 7, 8],  # none of five
        [1, 2, 3, 4, 1, 2, 3, 4],  # 1 2 3 4 returns: one of five
        [1, 1, 1, 1, 1, 1, 0, 0],  # masked behind six: two of three
        [1, 1, 1, 0, 0, 0, 0, 0],  # too short
    ]
    lengths = np.array([8, 8, 6, 3])
    found = repeated_share(rows, np.arange(8) < lengths[:, None])
    np.testing.assert_allclose(found, [0, 0.2, 2 / 3, np.nan])
    np.testing.assert_allclose(repeated_share(rows[1:2], np.ones((1, 8), bool), gram=2), [3 / 7])
    metrics = means([{"text/repeated_share": found.astype(np.float32)}])
    assert metrics == {"text/repeated_share": np.float32(found[:3]).mean()}


def test_a_policy_that_knows_one_word_repeats_itself():
    """Its six tokens hold three runs of four, all alike; the policy that it was made of has hardly any."""
    params = tiny.params()
    one = jnp.zeros_like(params["lm_head"]["kernel"])
    norm = {"scale": 1e3 * params["norm_und"]["scale"]}  # logits that leave no doubt: the likeliest token, nearly always
    stuck = params | {"lm_head": {"kernel": one.at[:, 9].set(params["lm_head"]["kernel"][:, tiny.EOS])}, "norm_und": norm}
    share = lambda batch: np.nanmean(repeated_share(batch.thinking.tokens, batch.thinking.mask))
    assert share(tiny.episodes()) < 0.1 < 0.3 < share(tiny.rollout()(stuck, {}, tiny.prompts(), 0, 0, 0))
