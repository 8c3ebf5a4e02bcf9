"""BAGEL as one family of `models.families`."""

import pathlib

from unigrpo_jax.config import ModelConfig
from unigrpo_jax.models.bagel import layout
from unigrpo_jax.models.bagel.folder import BagelFolder, load, make_network
from unigrpo_jax.models.bagel.release import AUTOENCODER, BAGEL_7B, HUB_NAME, ReleaseCodec
from unigrpo_jax.models.bagel.tiny import tiny_folder

NAME, PIPELINE, FILES = "bagel", None, layout.FILES
HUB_FILES = ()  # found by what its index names, `models.hub`
VERBS = "thinks, draws, looks at pictures, answers"
TOYS, OWN_SETTINGS = {"tiny": tiny_folder}, ("second_time",)
__all__ = ["FILES", "HUB_FILES", "NAME", "OWN_SETTINGS", "PIPELINE", "TOYS", "VERBS", "is_here", "known", "load"]


def is_here(folder: pathlib.Path) -> bool:
    """Whether a folder is in this layout."""
    return (folder / "llm_config.json").is_file() or layout.weight_stem(folder) is not None


def known(config: ModelConfig) -> BagelFolder | None:
    """The release without its files, where its hub name is asked for: shapes alone, neither words nor weights."""
    if config.path != HUB_NAME:
        return None
    network = make_network(config, BAGEL_7B)
    return BagelFolder(pathlib.Path(HUB_NAME), config, network, AUTOENCODER, ReleaseCodec(), None, None)
