"""BAGEL: one decoder with two experts that reads and writes text and draws by flow matching (arXiv 2505.14683)."""

from unigrpo_jax.models.bagel.config import BagelConfig, VisionConfig
from unigrpo_jax.models.bagel.network import Bagel, Params
from unigrpo_jax.models.building.context import Context

__all__ = ["Bagel", "BagelConfig", "Context", "Params", "VisionConfig"]
