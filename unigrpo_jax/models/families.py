"""Which family a model folder belongs to."""

import pathlib

from unigrpo_jax.config import ModelConfig
from unigrpo_jax.models.bagel.release import AUTOENCODER, BAGEL_7B, HUB_NAME, ReleaseCodec
from unigrpo_jax.models.folder import LoadedModel, load_model, make_network

__all__ = ["known", "load_model"]


def known(config: ModelConfig) -> LoadedModel | None:
    """A release by its name on the hub, from its known sizes; None for any other model."""
    if config.path != HUB_NAME:
        return None
    network = make_network(config, BAGEL_7B)
    return LoadedModel(pathlib.Path(HUB_NAME), config, network, AUTOENCODER, ReleaseCodec(), None, None)
