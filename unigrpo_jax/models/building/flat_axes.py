"""Names of the axes of flat parameters, for `parallel.rules`: rules of each kind of layer, from those of its width."""

from collections.abc import Iterator

Rules = Iterator[tuple[str, tuple[str | None, ...]]]


def linear_axes(modules: str, out: str | None, width: str | None, stacked: bool = False, bias: bool = True) -> Rules:
    """Rules of linear maps with their adapters; `modules` is a regular expression of their names."""
    layers = (None,) if stacked else ()
    yield rf"(?:{modules})\.weight", (*layers, out, width)
    if bias:
        yield rf"(?:{modules})\.bias", (*layers, out)
    yield rf"(?:{modules})\.lora_A\.weight", (*layers, None, width)
    yield rf"(?:{modules})\.lora_B\.weight", (*layers, out, None)


def convolution_axes(modules: str, out: str | None, width: str | None) -> Rules:
    """Rules of convolutions."""
    yield rf"(?:{modules})\.weight", (out, width, None, None)
    yield rf"(?:{modules})\.bias", (out,)


def norm_axes(modules: str, width: str | None) -> Rules:
    """Rules of norms with weight and bias."""
    yield rf"(?:{modules})\.(?:weight|bias)", (width,)
