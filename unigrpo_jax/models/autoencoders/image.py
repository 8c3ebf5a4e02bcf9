"""The autoencoder of FLUX, BAGEL and Stable Diffusion between pictures and latents, never trained here.

Its parameters are the tensors of FLUX's own `ae.safetensors` under their names and in their layout (convolutions
[out, in, height, width]), as a flat dict; `diffusers` knows the other names of the same tensors.  Always float32.

Images are float32 [B, height, width, 3] in [-1, 1]; latents [B, height / downsample, width / downsample, channels].
"""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from unigrpo_jax.models.building.flat import convolution, convolution_shapes, doubled, group_norm, norm_shapes

EPS = 1e-6  # of every GroupNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageAutoencoder:
    """Sizes, and the verbs `encode` and `decode`.

    A batch of images of different size is padded with zeros to the largest, encoded, and the latents are cropped; the
    norms and the attention see the padding, so an image's latent depends on its batch mates, as in the original.

    Attributes:
      width: channels of the first level.
      multipliers: channels of each level, in multiples of `width`.
      blocks: residual blocks per level; the decoder has one more.
      channels: of the latent.
      scale: latents are scale * (z - shift).
      shift: see scale.
      groups: of every GroupNorm.
      quant: whether a 1 x 1 convolution comes after the encoder, and another before the decoder (Stable Diffusion).
    """

    width: int
    multipliers: tuple[int, ...]
    blocks: int
    channels: int
    scale: float = 0.3611
    shift: float = 0.1159
    groups: int = 32
    quant: bool = False

    @property
    def downsample(self) -> int:
        """Image pixels along the side of a latent pixel."""
        return 2 ** (len(self.multipliers) - 1)

    def encode(self, params, image_BHWC, keys_B: jax.Array | None = None):
        """Latents of images: the posterior's mean, or a sample where there is a key for each image."""
        mean, log_variance = self.moments(params, image_BHWC)
        if keys_B is None:
            return self.sample(mean, log_variance, 0.0)
        return self.sample(mean, log_variance, jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(keys_B))

    def sample(self, mean, log_variance, noise):
        """scale * (mean + exp(log_variance / 2) * noise - shift)."""
        return self.scale * (mean + jnp.exp(0.5 * log_variance) * noise - self.shift)

    def moments(self, params, image_BHWC):
        """Mean and log-variance of the posterior, [B, h, w, channels] each, before the scale."""
        h = convolution(params, "encoder.conv_in", image_BHWC)
        last = len(self.multipliers) - 1
        for level in range(last + 1):
            for block in range(self.blocks):
                h = self._residual(params, f"encoder.down.{level}.block.{block}", h)
            if level < last:
                padded = jnp.pad(h, ((0, 0), (0, 1), (0, 1), (0, 0)))
                h = convolution(params, f"encoder.down.{level}.downsample.conv", padded, stride=2, padding=0)
        h = self._last(params, "encoder", self._middle(params, "encoder", h))
        return jnp.split(convolution(params, "quant_conv", h) if self.quant else h, 2, axis=-1)

    def decode(self, params, latent_BHWC):
        """Images of latents, not clipped."""
        z = latent_BHWC / self.scale + self.shift
        h = convolution(params, "decoder.conv_in", convolution(params, "post_quant_conv", z) if self.quant else z)
        h = self._middle(params, "decoder", h)
        for level in reversed(range(len(self.multipliers))):
            for block in range(self.blocks + 1):
                h = self._residual(params, f"decoder.up.{level}.block.{block}", h)
            if level:
                h = convolution(params, f"decoder.up.{level}.upsample.conv", doubled(h))
        return self._last(params, "decoder", h)

    def _norm(self, params, name: str, x):
        return group_norm(params, name, x, self.groups, EPS)

    def _residual(self, params, name: str, x):
        h = convolution(params, f"{name}.conv1", jax.nn.silu(self._norm(params, f"{name}.norm1", x)))
        h = convolution(params, f"{name}.conv2", jax.nn.silu(self._norm(params, f"{name}.norm2", h)))
        shortcut = f"{name}.nin_shortcut"
        return h + (convolution(params, shortcut, x) if f"{shortcut}.weight" in params else x)

    def _middle(self, params, half: str, x):
        """Residual block, one head of attention over all pixels, residual block."""
        x = self._residual(params, f"{half}.mid.block_1", x)
        batch, height, width, channels = x.shape
        h = self._norm(params, f"{half}.mid.attn_1.norm", x)
        project = lambda name: convolution(params, f"{half}.mid.attn_1.{name}", h).reshape(batch, -1, 1, channels)
        attended = jax.nn.dot_product_attention(project("q"), project("k"), project("v"))
        x = x + convolution(params, f"{half}.mid.attn_1.proj_out", attended.reshape(x.shape))
        return self._residual(params, f"{half}.mid.block_2", x)

    def _last(self, params, half: str, x):
        return convolution(params, f"{half}.conv_out", jax.nn.silu(self._norm(params, f"{half}.norm_out", x)))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the file and its shape."""
        return dict(self._shapes())

    def _shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        sizes = [self.width * m for m in self.multipliers]
        deep, last = sizes[-1], len(sizes) - 1
        yield from convolution_shapes("encoder.conv_in", 3, self.width, 3)
        size = self.width
        for level, out in enumerate(sizes):
            for block in range(self.blocks):
                yield from _residual_shapes(f"encoder.down.{level}.block.{block}", size, out)
                size = out
            if level < last:
                yield from convolution_shapes(f"encoder.down.{level}.downsample.conv", size, size, 3)
        yield from convolution_shapes("decoder.conv_in", self.channels, deep, 3)
        for half in ("encoder", "decoder"):
            for block in ("block_1", "block_2"):
                yield from _residual_shapes(f"{half}.mid.{block}", deep, deep)
            yield from norm_shapes(f"{half}.mid.attn_1.norm", deep)
            for name in ("q", "k", "v", "proj_out"):
                yield from convolution_shapes(f"{half}.mid.attn_1.{name}", deep, deep, 1)
        for level in reversed(range(last + 1)):
            for block in range(self.blocks + 1):
                yield from _residual_shapes(f"decoder.up.{level}.block.{block}", size, sizes[level])
                size = sizes[level]
            if level:
                yield from convolution_shapes(f"decoder.up.{level}.upsample.conv", size, size, 3)
        for half, width, out in (("encoder", deep, 2 * self.channels), ("decoder", sizes[0], 3)):
            yield from norm_shapes(f"{half}.norm_out", width)
            yield from convolution_shapes(f"{half}.conv_out", width, out, 3)
        if self.quant:
            yield from convolution_shapes("quant_conv", 2 * self.channels, 2 * self.channels, 1)
            yield from convolution_shapes("post_quant_conv", self.channels, self.channels, 1)


def sizes_of(shapes: dict[str, tuple[int, ...]]) -> ImageAutoencoder:
    """The autoencoder that tensors of these shapes belong to; ValueError where they cannot be one's.

    FLUX's scale and shift stand in no file; they are this class's defaults.
    """
    try:
        width = shapes["encoder.conv_in.weight"][0]
        levels = 1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("encoder.down."))
        blocks = 1 + max(int(name.split(".")[4]) for name in shapes if name.startswith("encoder.down.0.block."))
        out = [shapes[f"encoder.down.{level}.block.0.conv1.weight"][0] for level in range(levels)]
        channels = shapes["decoder.conv_in.weight"][1]
    except (KeyError, IndexError, ValueError):
        raise ValueError("it does not hold the tensors of a FLUX autoencoder (encoder.conv_in.weight, ...).") from None
    return ImageAutoencoder(width=width, multipliers=tuple(n // width for n in out), blocks=blocks, channels=channels)


def _residual_shapes(name: str, width: int, out: int):
    yield from norm_shapes(f"{name}.norm1", width)
    yield from convolution_shapes(f"{name}.conv1", width, out, 3)
    yield from norm_shapes(f"{name}.norm2", out)
    yield from convolution_shapes(f"{name}.conv2", out, out, 3)
    if width != out:
        yield from convolution_shapes(f"{name}.nin_shortcut", width, out, 1)
