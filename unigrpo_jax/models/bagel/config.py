"""Sizes and special tokens of the unified network, one class for the toy and for BAGEL-7B-MoT."""

import dataclasses


def check_divides(fields, *pairs: tuple[str, str]) -> None:
    """ValueError unless each first named field is a positive multiple of the second."""
    for whole, part in pairs:
        a, b = getattr(fields, whole), getattr(fields, part)
        if a < 1 or b < 1 or a % b:
            raise ValueError(f"{whole} = {a} is not a multiple of {part} = {b}; choose {part} among its divisors.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The vision encoder that reads images into the context (SigLIP-NaViT).

    Attributes:
      hidden_size: width of the encoder.
      intermediate_size: width of its MLPs.
      layers: layers that are run.
      heads: attention heads.
      patch: pixels along the side of a patch; one patch is one token.
      table_side: patches along the side of the learned position table.
      max_side: patches along the side of the network's own position table, and the stride of both tables' ids.
      layer_norm_eps: epsilon of every LayerNorm.
    """

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    patch: int
    table_side: int
    max_side: int
    layer_norm_eps: float = 1e-6

    def __post_init__(self):
        check_divides(self, ("hidden_size", "heads"))

    @property
    def patch_width(self) -> int:
        """Numbers in one patch of an RGB image."""
        return 3 * self.patch**2

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Patches (rows, columns) of an image of height x width pixels; ValueError where it does not divide."""
        return _grid(height, width, self.patch, min(self.max_side, self.table_side), "patches")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BagelConfig:
    """Everything that decides a parameter's shape or the meaning of a token.

    Attributes:
      vocab_size: rows of the token embedding and of the LM head.
      hidden_size: width D of the residual stream.
      intermediate_size: width of the gated MLP.
      layers: decoder layers; each holds two experts, `und` (text) and `gen` (latents).
      heads: query heads H; the head dimension is hidden_size / heads.
      kv_heads: key and value heads; query head h reads kv head h // (heads / kv_heads).
      rope_theta: base of the rotary angles.
      rms_norm_eps: epsilon of every RMSNorm.
      bos_token: opens a text block (`<|im_start|>`).
      eos_token: closes a text block and stops thinking (`<|im_end|>`).
      image_start_token: opens an image block (`<|vision_start|>`).
      image_end_token: closes an image block (`<|vision_end|>`).
      pad_token: fills text buckets; masked everywhere.
      latent_channels: channels of the autoencoder's latent; 3 where latents are pixels.
      latent_patch: latent pixels along the side of one latent token.
      latent_downsample: image pixels along the side of one latent pixel.
      max_latent_size: side of the table of latent positions, in latent tokens.
      frequency_size: width of the sinusoid that embeds t.
      vision: the encoder of images to be looked at; None for a model that only draws.
      second_time: whether it is told where a velocity is to arrive, as `building.second_time` has it.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6
    bos_token: int
    eos_token: int
    image_start_token: int
    image_end_token: int
    pad_token: int
    latent_channels: int
    latent_patch: int
    latent_downsample: int = 1
    max_latent_size: int
    frequency_size: int = 256
    vision: VisionConfig | None = None
    second_time: bool = False

    def __post_init__(self):
        check_divides(self, ("hidden_size", "heads"), ("heads", "kv_heads"))
        if self.head_dim % 2 or self.hidden_size % 4:
            raise ValueError(f"hidden_size = {self.hidden_size} over heads = {self.heads}: heads must be even in width, "
                             "and hidden_size a multiple of 4.")  # fmt: skip

    @property
    def head_dim(self) -> int:
        """Width K of one attention head."""
        return self.hidden_size // self.heads

    @property
    def latent_width(self) -> int:
        """Numbers C in one latent token."""
        return self.latent_channels * self.latent_patch**2

    @property
    def token_pixels(self) -> int:
        """Image pixels along the side of one latent token."""
        return self.latent_patch * self.latent_downsample

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Latent tokens (rows, columns) of an image of height x width pixels; ValueError where it does not divide."""
        return _grid(height, width, self.token_pixels, self.max_latent_size, "latent tokens")


def _grid(height: int, width: int, pixels: int, limit: int, what: str) -> tuple[int, int]:
    rows, columns = height // pixels, width // pixels
    if height % pixels or width % pixels or not rows or not columns:
        raise ValueError(f"an image of {height} x {width} pixels does not divide into {what} of {pixels} px.")
    if max(rows, columns) > limit:
        raise ValueError(
            f"an image of {height} x {width} pixels has {rows} x {columns} {what}, more than the {limit} per side of the "
            f"position table; the largest side is {limit * pixels} pixels."
        )
    return rows, columns
