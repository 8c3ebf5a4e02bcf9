"""Convolutions of flat parameters: what runs on CPUs and what runs elsewhere are one map."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unigrpo_jax.models.building import flat


def by_hand(x, kernel, strides):
    """Sums over the kernel's places, float64: x [B, ..., C] over any number of axes, already padded."""
    sides = kernel.shape[2:]
    shape = [(n - side) // stride + 1 for n, side, stride in zip(x.shape[1:-1], sides, strides, strict=True)]
    out = np.zeros((len(x), *shape, len(kernel)))
    for place in np.ndindex(*shape):
        seen = x[:, *(slice(s * i, s * i + side) for i, side, s in zip(place, sides, strides, strict=True))]
        seen = seen.reshape(len(x), -1, x.shape[-1])
        out[:, *place] = np.einsum("bni,oin->bo", seen, kernel.reshape(*kernel.shape[:2], -1))
    return out


@pytest.mark.parametrize(("side", "stride", "padding"), [(1, 1, 0), (3, 1, 1), (3, 2, 1), (3, 2, 0), (5, 3, 2)])
def test_a_convolution_is_a_sum_over_the_kernels_places_by_hand(side, stride, padding):
    rng = np.random.default_rng(side)
    x, kernel = rng.normal(size=(2, 7, 6, 3)).astype(np.float32), rng.normal(size=(4, 3, side, side)).astype(np.float32)
    bias = rng.normal(size=4).astype(np.float32)
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    strides = (stride, stride)
    expected = by_hand(padded, kernel, strides) + bias
    params = {"c.weight": jnp.asarray(kernel), "c.bias": jnp.asarray(bias)}
    np.testing.assert_allclose(flat.convolution(params, "c", x, stride, padding), expected, atol=1e-5)
    np.testing.assert_allclose(np.asarray(flat._by_convolution(strides, padded, kernel)) + bias, expected, atol=1e-5)


def test_of_a_clip_frames_are_an_axis_too_with_a_stride_of_its_own():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 5, 6, 7, 3)).astype(np.float32), rng.normal(size=(4, 3, 2, 3, 3)).astype(np.float32)
    params = {"c.weight": jnp.asarray(kernel), "c.bias": jnp.ones(4)}
    expected = by_hand(x, kernel, (1, 2, 3)) + 1
    np.testing.assert_allclose(flat.convolution(params, "c", x, (1, 2, 3), padding=0), expected, atol=1e-5)
    for way in (flat._by_convolution, flat._by_product, flat._by_rows):
        np.testing.assert_allclose(np.asarray(way((1, 2, 3), x, kernel)) + 1, expected, atol=1e-5)


@pytest.mark.parametrize(("side", "dilation"), [(3, 2), (5, 3), (1, 4)])
def test_a_dilated_kernel_is_one_with_zeros_between_its_places(side, dilation):
    rng = np.random.default_rng(side)
    x, kernel = rng.normal(size=(2, 19, 3)).astype(np.float32), rng.normal(size=(4, 3, side)).astype(np.float32)
    wide = np.zeros((4, 3, dilation * (side - 1) + 1), np.float32)
    wide[..., ::dilation] = kernel
    reach = dilation * (side // 2)
    expected = by_hand(np.pad(x, ((0, 0), (reach, reach), (0, 0))), wide, (1,))
    params = {"c.weight": jnp.asarray(kernel), "c.bias": jnp.ones(4)}
    np.testing.assert_allclose(flat.convolution(params, "c", x, dilation=dilation), expected + 1, atol=1e-5)
    padded = np.pad(x, ((0, 0), (reach, reach), (0, 0)))
    np.testing.assert_allclose(np.asarray(flat._by_convolution((1,), padded, kernel, dilation)), expected, atol=1e-5)


@pytest.mark.parametrize(("side", "stride", "padding"), [(16, 6, 5), (4, 2, 1), (5, 2, 1), (3, 3, 0), (7, 3, 2), (2, 1, 0)])
def test_a_transposed_convolution_adds_its_kernel_at_every_input_by_hand(side, stride, padding):
    rng = np.random.default_rng(side)
    x, kernel = rng.normal(size=(2, 4, 3)).astype(np.float32), rng.normal(size=(3, 5, side)).astype(np.float32)
    expected = np.zeros((2, stride * 3 + side, 5))
    for t in range(4):
        expected[:, stride * t : stride * t + side] += np.einsum("bi,ioj->bjo", x[:, t], kernel)
    expected = expected[:, padding : stride * 3 + side - padding]
    params = {"c.weight": jnp.asarray(kernel), "c.bias": jnp.arange(5.0)}
    out = flat.transposed_convolution(params, "c", x, stride, padding)
    np.testing.assert_allclose(out, expected + np.arange(5), atol=1e-5)


@pytest.mark.parametrize(("frames", "way"), [((), flat._by_product), ((5,), flat._by_rows)])
def test_both_ways_have_one_gradient(frames, way):
    x = jax.random.normal(jax.random.key(0), (2, *frames, 6, 5, 3))
    kernel = jax.random.normal(jax.random.key(1), (4, 3, *(3 for _ in frames), 3, 3))
    strides = (2,) * (x.ndim - 2)
    slopes = [jax.grad(lambda x, k, way=way: jnp.sum(jnp.sin(way(strides, x, k))), (0, 1))(x, kernel)
              for way in (way, flat._by_convolution)]  # fmt: skip
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *slopes)


@pytest.mark.parametrize("most", [0, 1, 2, 4])  # pictures that may be laid out at once, of 5
def test_what_is_too_much_to_lay_out_at_once_is_so_some_at_a_time(most, monkeypatch):
    x = jax.random.normal(jax.random.key(0), (5, 6, 7, 3))
    kernel = jax.random.normal(jax.random.key(1), (4, 3, 3, 3))
    monkeypatch.setattr(flat, "PRODUCT", most * x[0].size * 9)
    params = {"c.weight": kernel, "c.bias": jnp.zeros(4)}
    slopes = [jax.grad(lambda x, k, way=way: jnp.sum(jnp.sin(way(x, k))), (0, 1))(x, kernel)
              for way in (lambda x, k: flat.convolution(params | {"c.weight": k}, "c", x, padding=0),
                          lambda x, k: flat._by_convolution((1, 1), x, k))]  # fmt: skip
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *slopes)
    right = by_hand(np.asarray(x), np.asarray(kernel), (1, 1))
    np.testing.assert_allclose(flat.convolution(params, "c", x, padding=0), right, atol=1e-5)
