"""What is measured of an iteration's episodes, by hand."""

import numpy as np
import pytest

from unigrpo_jax.training import measured

NAN = float("nan")


def test_of_an_episode_that_is_not_finite_nothing_is_known():
    found = measured.known({"reward/a": [1, 2, 3], "tokens": [4, 5, 6]}, np.array([True, False, True]))
    np.testing.assert_array_equal(found["reward/a"], np.float32([1, NAN, 3]))
    np.testing.assert_array_equal(found["tokens"], np.float32([4, NAN, 6]))


def test_groups_are_rows_and_only_the_named_columns_are_taken():
    columns = {"reward/a": np.arange(6.0), "reward/b/c": np.arange(6.0) + 10, "judge/a": np.zeros(6)}
    found = measured.by_group(columns, "reward/", 3)
    assert {name: x.tolist() for name, x in found.items()} == {
        "a": [[0, 1, 2], [3, 4, 5]], "b/c": [[10, 11, 12], [13, 14, 15]]}  # fmt: skip


def test_means_are_over_what_is_known_and_earlier_rounds_have_their_names():
    first = {"reward/a": np.array([1.0, 3.0, NAN]), "judge/exact": np.array([1.0, 0.0, NAN])}
    last = {"reward/a": np.array([2.0, 2.0, 5.0]), "reward/off": np.full(3, NAN), "image/edges": np.array([NAN, 0.25, 0.75]),
            "judge/plan": np.full(3, NAN), "tokens": np.ones(3)}  # fmt: skip
    assert measured.means([first, last]) == {
        "round1/reward/a/mean": 2, "round1/reward/a/std": 1, "round1/judge/exact": 0.5,
        "reward/a/mean": 3, "reward/a/std": pytest.approx(2**0.5), "image/edges": 0.5}  # fmt: skip
    assert "reward/a/mean" in measured.means([last]) and measured.means([{}]) == {}


def test_speeds_count_known_tokens_and_all_images():
    tokens = np.array([3.0, NAN, 5.0, 4.0])
    assert measured.speeds(tokens, 2.0, 6.0, True) == {"images_per_second": 0.5, "tokens_per_second": 6}
    assert measured.speeds(tokens, 0.0, 4.0, False) == {"images_per_second": 1}
