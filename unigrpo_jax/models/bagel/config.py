"""Sizes and special tokens of the unified network, one class for the toy and for BAGEL-7B-MoT."""

import dataclasses
import json
import pathlib


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

    def __post_init__(self):
        for whole, part in (("hidden_size", "heads"), ("heads", "kv_heads")):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(
                    f"{whole} = {getattr(self, whole)} is not a multiple of {part} = {getattr(self, part)}; "
                    f"choose {part} among the divisors of {whole}."
                )

    @property
    def head_dim(self) -> int:
        """Width K of one attention head."""
        return self.hidden_size // self.heads

    @property
    def latent_width(self) -> int:
        """Numbers C in one latent token."""
        return self.latent_channels * self.latent_patch**2

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Latent tokens (rows, columns) of an image of height x width pixels; ValueError where it does not divide."""
        pixels = self.latent_patch * self.latent_downsample
        rows, columns = height // pixels, width // pixels
        if height % pixels or width % pixels or not rows or not columns:
            raise ValueError(f"an image of {height} x {width} pixels does not divide into latent tokens of {pixels} px.")
        if max(rows, columns) > self.max_latent_size:
            raise ValueError(
                f"an image of {height} x {width} pixels has {rows} x {columns} latent tokens, more than the "
                f"{self.max_latent_size} per side of the position table; the largest side is "
                f"{self.max_latent_size * pixels} pixels."
            )
        return rows, columns


def save_config(config: BagelConfig, path: pathlib.Path) -> None:
    """Writes the config as JSON."""
    path.write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")


def load_config(path: pathlib.Path) -> BagelConfig:
    """Reads a config written by `save_config`; ValueError names the file and what is wrong in it."""
    try:
        fields = json.loads(path.read_text())
        return BagelConfig(**fields)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; a model folder holds config.json and model.safetensors.") from None
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{path} is not a model config: {error}.") from None

