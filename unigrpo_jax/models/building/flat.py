"""Layers over flat parameters {name: array}, named and laid out as PyTorch stores them, so that nothing is renamed.

A linear weight is [out, in], a convolution's [out, in, height, width]; pixels are [B, height, width, channels]; of clips
both have an axis of frames before the height.  A layer computes in the dtype of its input, which its parameters are cast to;
statistics are float32.  Each layer has its shapes beside it, {name: shape} of what it reads.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from unigrpo_jax.models.building import int8

# On CPUs a convolution in a loop takes up to fifty times as long as outside of one, and a product does not; but it lays out
# what it reads, of as many pictures at a time as have so many numbers at most.
PRODUCT = 2**26
ROW = 512  # of clips: numbers in a row of pixels up to which a product takes whole rows, which is up to five times as fast

Params = Mapping[str, jax.Array]
Shapes = Iterator[tuple[str, tuple[int, ...]]]
ADAPTER = ("lora_A.weight", "lora_B.weight")  # [r, in] and [out, r], as PEFT names them


def linear(params: Params, name: str, x):
    """x W^T + b, x [..., in]; without a bias where there is none, with x A^T B^T beside it where there is an adapter.

    W may be one in int8.
    """
    y = _product(params, f"{name}.weight", x)
    if f"{name}.{ADAPTER[0]}" in params:
        y = y + _product(params, f"{name}.{ADAPTER[1]}", _product(params, f"{name}.{ADAPTER[0]}", x))
    bias = params.get(f"{name}.bias")
    return y if bias is None else y + _along_last(bias, y)


def _product(params: Params, name: str, x):
    if int8.is_int8(params[name]):
        return int8.product(x, params[name], (1,))
    return jnp.einsum("...i,oi->...o", x, params[name].astype(x.dtype))


def _along_last(p, x):
    """A vector over the last axis of x, in x's dtype."""
    return p.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def linear_shapes(name: str, width: int, out: int, bias: bool = True) -> Shapes:
    """Of `linear`."""
    yield f"{name}.weight", (out, width)
    if bias:
        yield f"{name}.bias", (out,)


def convolution(params: Params, name: str, x_BHWC, stride: int | tuple[int, ...] = 1, padding: int | None = None,
                dilation: int = 1):  # fmt: skip
    """Same-size convolution unless told otherwise; `stride` is one for all axes, or one for each.

    `dilation` is the distance along every axis of what two neighbours of the kernel read.
    """
    kernel = params[f"{name}.weight"].astype(x_BHWC.dtype)
    axes = kernel.ndim - 2
    strides = (stride,) * axes if isinstance(stride, int) else stride
    padding = dilation * (kernel.shape[-1] // 2) if padding is None else padding
    padded = jnp.pad(x_BHWC, ((0, 0), *((padding, padding),) * axes, (0, 0)))
    out = _convolved(padded, kernel, strides, dilation)
    return out + _along_last(params[f"{name}.bias"], out)


def transposed_convolution(params: Params, name: str, x_BTC, stride: int, padding: int):
    """The transpose of a convolution over one axis: [B, T, in] to [B, stride (T - 1) + side - 2 padding, out].

    Input t adds number j of its kernel to output stride t + j - padding; the weight is stored [in, out, side].  It is
    computed as one convolution, which gives the `stride` outputs from one input to the next side by side.
    """
    kernel = params[f"{name}.weight"].astype(x_BTC.dtype)
    width, out, side = kernel.shape
    reach = -(-side // stride)  # inputs that one output reads
    kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, reach * stride - side))).reshape(width, out, reach, stride)
    kernel = jnp.flip(kernel, 2).transpose(3, 1, 0, 2).reshape(stride * out, width, reach)
    padded = jnp.pad(x_BTC, ((0, 0), (reach - 1, reach - 1), (0, 0)))
    y = _convolved(padded, kernel, (1,), 1).reshape(len(x_BTC), -1, out)
    y = y[:, padding : stride * (x_BTC.shape[1] - 1) + side - padding]
    return y + _along_last(params[f"{name}.bias"], y)


def _convolved(padded, kernel_OIHW, strides: tuple[int, ...], dilation: int):
    short = len(strides) == 3 and dilation == 1 and math.prod(padded.shape[-2:]) <= ROW
    product = _by_rows if short else functools.partial(_by_product, dilation=dilation)
    by = {"cpu": functools.partial(product, strides),
          "default": functools.partial(_by_convolution, strides, dilation=dilation)}  # fmt: skip
    at_once = PRODUCT // (math.prod(padded.shape[1:]) * math.prod(kernel_OIHW.shape[2:]))
    if not at_once:
        by["cpu"] = by["default"]
    elif at_once < len(padded):
        by["cpu"] = functools.partial(_some_at_a_time, by["cpu"], at_once)
    return jax.lax.platform_dependent(padded, kernel_OIHW, **by)


def _some_at_a_time(convolve, count: int, x, kernel):
    """`convolve` of so many pictures at a time."""
    return jax.lax.map(lambda one: convolve(one[None], kernel)[0], x, batch_size=count)


def _by_convolution(strides: tuple[int, ...], x_BHWC, kernel_OIHW, dilation: int = 1):
    axes = "THW"[-len(strides) :]
    layout = (f"N{axes}C", f"OI{axes}", f"N{axes}C")
    apart = (dilation,) * len(strides)
    return jax.lax.conv_general_dilated(x_BHWC, kernel_OIHW, strides, "VALID", rhs_dilation=apart, dimension_numbers=layout)


def _by_product(strides: tuple[int, ...], x_BHWC, kernel_OIHW, dilation: int = 1):
    """The pixels that one output reads side by side, times the kernel."""
    out, _, *sides = kernel_OIHW.shape
    read = _side_by_side(strides, x_BHWC, sides, dilation)
    return read @ jnp.moveaxis(kernel_OIHW, (0, 1), (-1, -2)).reshape(-1, out)


def _side_by_side(strides: tuple[int, ...], x, sides, dilation: int = 1):
    """What outputs read along the axes 1, 2, ... of x, as many as there are `sides` of a kernel, along the last one."""
    spans = [dilation * (side - 1) for side in sides]
    sizes = zip(x.shape[1:], spans, strides, strict=False)
    ends = [stride * ((n - span - 1) // stride) + 1 for n, span, stride in sizes]
    cut = lambda at: tuple(slice(i, i + end, stride) for i, end, stride in zip(at, ends, strides, strict=True))
    places = itertools.product(*(range(0, span + 1, dilation) for span in spans))
    return jnp.concatenate([x[:, *cut(at)] for at in places], axis=-1)


def _by_rows(strides: tuple[int, ...], x_BTHWC, kernel_OITHW):
    """The rows that one row of outputs reads side by side, times a band that holds the kernel once for each output."""
    (out, inputs, *sides, side), (width, channels), stride = kernel_OITHW.shape, x_BTHWC.shape[-2:], strides[-1]
    read = _side_by_side(strides[:-1], x_BTHWC.reshape(*x_BTHWC.shape[:-2], width * channels), sides)
    starts = np.arange(0, width - side + 1, stride)
    at = (starts[:, None] + np.arange(side))[None] == np.arange(width)[:, None, None]  # [width, outputs, side]
    band = jnp.einsum("xws,oirs->rxiwo", at.astype(x_BTHWC.dtype), kernel_OITHW.reshape(out, inputs, -1, side))
    rows = read @ band.reshape(read.shape[-1], -1)
    return rows.reshape(*rows.shape[:-1], len(starts), out)


def convolution_shapes(name: str, width: int, out: int, kernel: int, axes: int = 2) -> Shapes:
    """Of `convolution` over so many axes."""
    yield f"{name}.weight", (out, width, *(kernel,) * axes)
    yield f"{name}.bias", (out,)


def transposed_convolution_shapes(name: str, width: int, out: int, kernel: int) -> Shapes:
    """Of `transposed_convolution`."""
    yield f"{name}.weight", (width, out, kernel)
    yield f"{name}.bias", (out,)


def group_norm(params: Params, name: str, x_BHWC, groups: int, eps: float):
    """In float32; the statistics over pixels (of clips: of all frames together) and the group's channels."""
    batch, *_, channels = x_BHWC.shape
    x = x_BHWC.astype(jnp.float32).reshape(batch, -1, groups, channels // groups)
    mean = jnp.mean(x, axis=(1, 3), keepdims=True)
    variance = jnp.mean((x - mean) ** 2, axis=(1, 3), keepdims=True)
    x = ((x - mean) * jax.lax.rsqrt(variance + eps)).reshape(x_BHWC.shape)
    return (x * _along_last(params[f"{name}.weight"], x) + _along_last(params[f"{name}.bias"], x)).astype(x_BHWC.dtype)


def layer_norm(params: Params, name: str, x, eps: float):
    """In float32; the statistics over the last axis of x [..., D]."""
    h = normed(x, eps)
    return (h * _along_last(params[f"{name}.weight"], h) + _along_last(params[f"{name}.bias"], h)).astype(x.dtype)


def normed(x, eps: float):
    """Mean 0 and variance 1 along the last axis, float32."""
    h = x.astype(jnp.float32)
    centred = h - jnp.mean(h, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + eps)


def rms_norm(params: Params, name: str, x, eps: float):
    """x / sqrt(mean(x^2) + eps) along the last axis, in float32, times a weight."""
    h = x.astype(jnp.float32)
    h = h * jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + eps)
    return h.astype(x.dtype) * _along_last(params[f"{name}.weight"], x)


def sinusoid(x_B, width: int):
    """[cos(x f_i), sin(x f_i)], f_i = 10000^(-2 i / width), float32 [B, width]."""
    angle = jnp.asarray(x_B, jnp.float32)[:, None] * _frequencies(width)[None]
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def _frequencies(width: int) -> np.ndarray:
    """Of `sinusoid`: PyTorch's to the last bit, since x is up to some thousands."""
    half = width // 2
    power = np.float32(-math.log(10000.0)) * np.arange(half, dtype=np.float32) / np.float32(half)
    frequency = np.exp(np.float64(power)).astype(np.float32)
    if width == 256:  # one of them lies 0.48 of a step above a float32, and PyTorch's exp takes the next
        frequency[12] = np.nextafter(frequency[12], np.float32(1))
    return frequency


def layer_names(name: str, stack: str, layers: int) -> tuple[str, ...]:
    """The file's names of a scanned parameter, `stack.0.x` and so on of `stack.x`."""
    return tuple(name.replace(f"{stack}.", f"{stack}.{layer}.", 1) for layer in range(layers))


def of_stack(params: Params, stack: str) -> dict[str, jax.Array]:
    """The parameters of scanned blocks, without the stack's name."""
    return {name.removeprefix(f"{stack}."): p for name, p in params.items() if name.startswith(f"{stack}.")}


def norm_shapes(name: str, width: int) -> Shapes:
    """Of `group_norm` and `layer_norm`."""
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def doubled(x_BHWC):
    """Twice as many pixels along each side, each repeated."""
    return jnp.repeat(jnp.repeat(x_BHWC, 2, axis=1), 2, axis=2)
