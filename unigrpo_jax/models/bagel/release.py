"""BAGEL-7B-MoT's sizes, for what is computed from sizes alone; a run reads its folder."""

from unigrpo_jax.config import RolloutConfig
from unigrpo_jax.episode import TokenBlock
from unigrpo_jax.models.autoencoders.image import ImageAutoencoder
from unigrpo_jax.models.bagel.config import BagelConfig, VisionConfig
from unigrpo_jax.models.bagel.text import block_shapes

HUB_NAME = "ByteDance-Seed/BAGEL-7B-MoT"
SYSTEM_TOKENS = 64  # room for the generation system prompt, whose exact number the tokenizer's files decide
AUTOENCODER = ImageAutoencoder(width=128, multipliers=(1, 2, 4, 4), blocks=2, channels=16)
BAGEL_7B = BagelConfig(
    vocab_size=152064,
    hidden_size=3584,
    intermediate_size=18944,
    layers=28,
    heads=28,
    kv_heads=4,
    bos_token=151644,
    eos_token=151645,
    image_start_token=151652,
    image_end_token=151653,
    pad_token=151643,
    latent_channels=16,
    latent_patch=2,
    latent_downsample=8,
    max_latent_size=64,
    vision=VisionConfig(
        hidden_size=1152, intermediate_size=4304, layers=26, heads=16, patch=14, table_side=70, max_side=70
    ),
)


class ReleaseCodec:
    """Stands where the tokenizer's files are not read: of its blocks only the lengths are right."""

    guided = True

    def shapes(self, count: int, length: int) -> TokenBlock:
        """As `TextCodec.shapes`."""
        return block_shapes(count, length)

    def system(self, rollout: RolloutConfig) -> tuple[int, ...]:
        """As `TextCodec.system`."""
        return tuple(range(SYSTEM_TOKENS)) if rollout.thinking and rollout.system_prompt else ()
