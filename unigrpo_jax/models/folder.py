"""A model folder: config.json, model.safetensors and tokenizer files, read and written as one."""

import dataclasses
import hashlib
import os
import pathlib

import jax
import jax.numpy as jnp

from unigrpo_jax.config import ConfigError, ModelConfig, RolloutConfig, require
from unigrpo_jax.models.bagel import Bagel, BagelConfig, Params, load_config, save_config, weights
from unigrpo_jax.models.bagel.latents import PixelAutoencoder
from unigrpo_jax.models.bagel.text import TextCodec, load_codec

SHAPES_BASE = pathlib.Path(__file__).resolve().parent.parent / "worlds" / "shapes" / "base"


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """Everything that a model folder holds.

    Attributes:
      folder: where it was read.
      network: the network's verbs.
      autoencoder: between images and latents.
      codec: between words and tokens.
    """

    folder: pathlib.Path
    network: Bagel
    autoencoder: PixelAutoencoder
    codec: TextCodec

    def abstract_params(self) -> Params:
        """Shapes and dtypes of the parameters, without arrays."""
        return jax.eval_shape(lambda: self.network.init(jax.random.key(0)))  # the key, too, stays abstract

    def params(self) -> Params:
        """Reads the weights; ConfigError where the file does not fit the config."""
        try:
            stored = weights.load_params(self.folder / "model.safetensors", self.network.config, self.abstract_params())
        except ValueError as error:
            raise ConfigError(str(error)) from None
        return jax.tree.map(jnp.asarray, stored)

    def check_image_size(self, rollout: RolloutConfig) -> None:
        """ConfigError where an image does not divide into latent tokens, or into more than the model knows."""
        try:
            self.network.config.grid(rollout.image_height, rollout.image_width)
        except ValueError as error:
            raise ConfigError(f"rollout.image_height, rollout.image_width: {error}") from None

    def checksum(self) -> str:
        """SHA-256 of the weights file, to recognise the reference after a resume."""
        with open(self.folder / "model.safetensors", "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def load_model(config: ModelConfig) -> LoadedModel:
    """Reads a model folder without its weights; ConfigError where one is missing or does not fit."""
    folder = SHAPES_BASE if config.path is None else pathlib.Path(config.path).expanduser()
    require(
        folder.is_dir(),
        f"model.path: there is no folder {folder}; give an existing model folder, or none for the shapes base.",
    )
    require(
        (folder / "model.safetensors").is_file(),
        f"{folder} holds no model.safetensors; make a model with `python -m experiments.pretrain --out {folder}`.",
    )
    try:
        network = Bagel(load_config(folder / "config.json"), config.dtype, config.remat, config.unroll)
    except (ValueError, ZeroDivisionError) as error:
        place = "" if str(folder) in str(error) else f"{folder / 'config.json'}: "
        raise ConfigError(f"{place}{error}") from None
    return LoadedModel(folder, network, PixelAutoencoder(), load_codec(folder, network.config))


def save_model(folder: pathlib.Path, config: BagelConfig, params: Params) -> None:
    """Writes config.json and model.safetensors, each in one step, so that a kill leaves the old file or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, write in (("config.json", lambda p: save_config(config, p)),
                        ("model.safetensors", lambda p: weights.save_params(p, config, params))):  # fmt: skip
        temporary = folder / f".{name}.partial"
        write(temporary)
        os.replace(temporary, folder / name)
