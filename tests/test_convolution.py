"""Convolutions of flat parameters: what runs on CPUs and what runs elsewhere are one map."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unigrpo_jax.models.building import flat


@pytest.mark.parametrize(("side", "stride", "padding"), [(1, 1, 0), (3, 1, 1), (3, 2, 1), (3, 2, 0), (5, 3, 2)])
def test_a_convolution_is_a_sum_over_the_kernels_places_by_hand(side, stride, padding):
    rng = np.random.default_rng(side)
    x, kernel = rng.normal(size=(2, 7, 6, 3)).astype(np.float32), rng.normal(size=(4, 3, side, side)).astype(np.float32)
    bias = rng.normal(size=4).astype(np.float32)
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows, columns = ((n + 2 * padding - side) // stride + 1 for n in (7, 6))
    expected = np.zeros((2, rows, columns, 4))
    for r in range(rows):
        for c in range(columns):
            seen = padded[:, stride * r : stride * r + side, stride * c : stride * c + side]
            expected[:, r, c] = np.einsum("bhwi,oihw->bo", seen, kernel) + bias
    params = {"c.weight": jnp.asarray(kernel), "c.bias": jnp.asarray(bias)}
    np.testing.assert_allclose(flat.convolution(params, "c", x, stride, padding), expected, atol=1e-5)
    np.testing.assert_allclose(np.asarray(flat._by_convolution(stride, padded, kernel)) + bias, expected, atol=1e-5)


def test_both_ways_have_one_gradient():
    x, kernel = jax.random.normal(jax.random.key(0), (2, 6, 5, 3)), jax.random.normal(jax.random.key(1), (4, 3, 3, 3))
    slopes = [jax.grad(lambda x, k, way=way: jnp.sum(jnp.sin(way(2, x, k))), (0, 1))(x, kernel)
              for way in (flat._by_product, flat._by_convolution)]  # fmt: skip
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *slopes)
