"""A model folder in BAGEL's layout: configs, weights, autoencoder and tokenizer, found, checked and read as one."""

import dataclasses
import functools
import pathlib
import shutil
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from unigrpo_jax.config import ConfigError, ModelConfig, RolloutConfig, require
from unigrpo_jax.foreign_files import is_inside
from unigrpo_jax.models.autoencoders.image import ImageAutoencoder, sizes_of
from unigrpo_jax.models.autoencoders.pixels import PixelAutoencoder
from unigrpo_jax.models.bagel import Bagel, BagelConfig, Params, latents, layout, weights
from unigrpo_jax.models.bagel.pictures import autoencoder_rule
from unigrpo_jax.models.bagel.text import (
    GENERATION_SYSTEM_PROMPT,
    UNDERSTANDING_SYSTEM_PROMPT,
    TextCodec,
    check_vocabulary,
    special_tokens,
)
from unigrpo_jax.models.building import lora
from unigrpo_jax.models.building.token_cut import NOT_CUT, TokenCut
from unigrpo_jax.models.folders import stored as stores
from unigrpo_jax.models.folders import student as students
from unigrpo_jax.models.folders.stored import StoredTensors
from unigrpo_jax.models.folders.student import Student
from unigrpo_jax.models.loaded import Published, as_student
from unigrpo_jax.models.text_encoders.tokenizer import load_tokenizer
from unigrpo_jax.models.tree import flatten, unflatten


@dataclasses.dataclass(frozen=True)
class BagelFolder:
    """Everything that a model folder holds; the weights stay in their files until they are asked for.

    Attributes:
      folder: where it was read.
      config: the settings that it was read with.
      network: the network's verbs.
      autoencoder: between images and latents.
      codec: between words and tokens.
      stored: the network's weights.
      autoencoder_stored: the autoencoder's weights; None where latents are pixels.
      unknown_settings: what its config files hold that nothing here knows, a phrase a file.
      unread_files: names of weights beside those that are read.
      student: how it was distilled; None where it was not.
    """

    folder: pathlib.Path
    config: ModelConfig
    network: Bagel
    autoencoder: ImageAutoencoder | PixelAutoencoder
    codec: TextCodec
    stored: StoredTensors
    autoencoder_stored: StoredTensors | None
    unknown_settings: tuple[str, ...] = ()
    unread_files: tuple[str, ...] = ()
    student: Student | None = None

    family = "bagel"

    @property
    def published(self) -> Published | None:
        """As BAGEL's own programs use it (inferencer.py), a student as such; None of others where latents are pixels."""
        if self.autoencoder_stored is None:
            return as_student(None, self.student)
        side = autoencoder_rule(self.network.config).longest
        own = Published(
            rollout={"image_height": side, "image_width": side, "timestep_shift": 3.0, "thinking_tokens": 999,
                     "system_prompt": GENERATION_SYSTEM_PROMPT},
            evaluation={"flow_steps": 49, "guidance": 4.0, "guidance_interval": (0.4, 1.0), "temperature": 0.0},
            answer=UNDERSTANDING_SYSTEM_PROMPT,
        )  # fmt: skip
        return as_student(own, self.student)

    def placed(self, hold, attend, frozen: weights.Place | None = None, tokens: TokenCut = NOT_CUT) -> "BagelFolder":
        """The same with a network for a mesh; no encoder is frozen, and no tokens are cut."""
        del frozen, tokens
        return dataclasses.replace(self, network=dataclasses.replace(self.network, hold=hold, attend=attend))

    def stored_params(self) -> Params:
        """Shapes and dtypes of the parameters that the file holds; the fixed tables stay float32."""
        return self._stored_params

    @functools.cached_property
    def _stored_params(self) -> Params:
        tree = _shapes(self.network.stored_config)
        kind = lambda path: jnp.float32 if path in weights.FIXED_TABLES else jnp.dtype(self.config.param_dtype)
        return unflatten({p: jax.ShapeDtypeStruct(x.shape, kind(p)) for p, x in flatten(tree).items()})

    @property
    def stored_dtype(self) -> str:
        """Dtype of the file's matrices, such as "bfloat16"."""
        return stores.DTYPES[self.stored.dtype("vae2llm.weight")]

    def abstract_params(self) -> Params:
        """Shapes and dtypes of all parameters, with those that are fresh where the config asks for such."""
        return jax.eval_shape(self.with_fresh, self.stored_params())

    def with_fresh(self, params: Params) -> Params:
        """The parameters with a new second time and adapters, or as they are where the config asks for none."""
        settings, key = self.config.lora, jax.random.key(0)
        params = self.network.with_second_time(params, key) if self.network.fresh_time else params
        return self.network.adapted(params, settings, key) if settings.rank else params

    def adapted_layers(self) -> dict[str, int]:
        """How many linear maps each target of adapters hits, in all layers; {} where there are none."""
        settings = self.config.lora
        return lora.hits(self.stored_params(), settings.targets) if settings.rank else {}

    def check_weights(self) -> None:
        """ConfigError that names everything in which the weights do not fit the config; reads headers only."""
        try:
            weights.check(self.stored, self.network.stored_config, self.stored_params())
            if self.autoencoder_stored is not None:
                found = stores.faults(self.autoencoder_stored, self.autoencoder.shapes(), (), "")
                require(not found, f"{self.autoencoder_stored.path} is not a whole autoencoder: {'; '.join(found)}.")
            settings = self.config.lora
            if settings.rank:
                jax.eval_shape(self.with_fresh, self.stored_params())
        except ConfigError:
            raise
        except ValueError as error:
            place = "" if str(self.folder) in str(error) else "model.lora.targets: "
            raise ConfigError(f"{place}{error}") from None

    def params(self, place: weights.Place | None = None, wanted: Callable[[str], bool] = lambda path: True) -> Params:
        """Reads the stored weights (nothing fresh), each parameter laid out by `place`; ConfigError where they do not fit.

        The host holds this process's shards of one parameter and one stored tensor beside what lies on the devices.
        """
        self.check_weights()
        try:
            return weights.load_params(
                self.stored, self.network.stored_config, self.stored_params(), self._table, place, wanted
            )
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def autoencoder_params(self, sharding: jax.sharding.Sharding | None = None) -> dict[str, jax.Array]:
        """Reads the autoencoder's weights, float32; {} where latents are pixels."""
        if self.autoencoder_stored is None:
            return {}
        self.check_weights()
        read = lambda name: self.autoencoder_stored.read(name).astype(np.float32)
        try:
            return {name: jax.device_put(read(name), sharding) for name in self.autoencoder.shapes()}
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def _table(self, path: str) -> np.ndarray:
        c = self.network.config
        return latents.position_table(c.max_latent_size if path == "latent_pos_embed" else c.vision.max_side, c.hidden_size)

    def check_image_size(self, rollout: RolloutConfig) -> None:
        """ConfigError where an image does not divide into latent tokens, or into more than the model knows."""
        try:
            self.network.config.grid(rollout.image_height, rollout.image_width)
        except ValueError as error:
            raise ConfigError(f"rollout.image_height, rollout.image_width: {error}") from None
        try:
            self.network.grid(*rollout.size)
        except ValueError as error:
            raise ConfigError(f"rollout.frames: {error}") from None

    def checksum(self) -> str:
        """`stored.checksum` of the weight files, to recognise the reference after a resume."""
        return stores.checksum([*self.stored.files, *(self.autoencoder_stored.files if self.autoencoder_stored else ())])

    def export(self, params: Params, folder: pathlib.Path, dtype: str,
               shard_bytes: int = stores.SHARD_BYTES, student: Student | None = None) -> list[pathlib.Path]:  # fmt: skip
        """Writes trained parameters beside copies of everything else that the folder held: autoencoder, tokenizer, configs.

        Args:
          params: trained parameters; adapters are folded in.
          folder: a new folder.
          dtype: as in `save_model`.
          shard_bytes: as in `save_model`.
          student: how it was distilled; None is how the model that training began with was.

        Returns:
          The files of the folder.
        """
        student = students.exported(student or self.student, self.network.two_times)
        folder.mkdir(parents=True, exist_ok=True)
        weight_files = {path.name for path in self.stored.files} | {self.stored.path.name}
        for path in sorted(self.folder.iterdir()):
            keep = layout.is_small(path) or path.name == "ae.safetensors"
            if path.is_file() and keep and path.name not in weight_files and not path.name.endswith(".index.json"):
                own = path.suffix == ".safetensors" or is_inside(path, self.folder)
                require(own, f"{path} is a link out of its folder, and an export is there to be passed on; put the file "
                             "there instead of the link.")  # fmt: skip
                shutil.copyfile(path, folder / path.name)
        config = self.network.config
        tensors = weights.stored_tensors(config, params, self.network.lora_scale)
        stores.write(folder, "ema", weights.stored_shapes(config, params), tensors, dtype, shard_bytes)
        if student is not None:
            students.write(folder, student)
        return sorted(folder.iterdir())


@functools.cache
def _shapes(config: BagelConfig) -> Params:
    """Shapes of all parameters; they depend on the sizes alone, and finding them takes half a second."""
    return jax.eval_shape(lambda: Bagel(config).init(jax.random.key(0)))  # a key outside would be compiled


def load(config: ModelConfig, folder: pathlib.Path) -> BagelFolder:
    """Reads a folder without its weights; ConfigError where a file is missing or does not fit."""
    try:
        layout.check_no_adapter(folder)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    stem = layout.weight_stem(folder)
    require(
        (folder / "llm_config.json").is_file() or stem is not None,
        f"{folder} is not a model folder: it holds neither llm_config.json nor ema.safetensors; BAGEL's holds "
        f"{layout.FILES}, a folder of diffusers model_index.json; `python -m experiments.pretrain --out DIR` makes one for "
        "the shapes world.",
    )
    if stem is None:
        others = layout.unread_files(folder, [folder / "ae.safetensors"])
        hint = f"{', '.join(others[:4])} cannot be read, convert it to safetensors" if others else "copy it there"
        raise ConfigError(f"{folder} holds no ema.safetensors (nor its index); {hint}; a model folder holds {layout.FILES}.")
    tokenizer = load_tokenizer(folder)
    try:
        stored = StoredTensors(folder, stem)
        autoencoder_stored = StoredTensors(folder, "ae") if (folder / "ae.safetensors").exists() else None
        autoencoder = PixelAutoencoder()
        if autoencoder_stored is not None:
            shapes = {name: autoencoder_stored.shape(name) for name in autoencoder_stored.names()}
            try:
                autoencoder = sizes_of(shapes)
            except ValueError as error:
                raise ValueError(f"{autoencoder_stored.path}: {error}") from None
        learned = autoencoder if autoencoder_stored is not None else None
        bagel = layout.read_config(folder, stored, learned, special_tokens(tokenizer, folder))
        student = students.read(folder)
        unknown = tuple(layout.unknown_settings(folder))
        unread = tuple(layout.unread_files(folder, [*stored.files, folder / "ae.safetensors"]))
    except ValueError as error:
        raise error if isinstance(error, ConfigError) else ConfigError(str(error)) from None
    check_vocabulary(tokenizer, bagel, folder)
    network, codec = make_network(config, bagel, student), TextCodec(tokenizer, bagel)
    return BagelFolder(folder, config, network, autoencoder, codec, stored, autoencoder_stored, unknown, unread, student)


def make_network(config: ModelConfig, sizes: BagelConfig, student: Student | None = None) -> Bagel:
    """The network of these sizes as the settings ask for it, with a second time where they or its student say so."""
    scale = config.lora.alpha / config.lora.rank if config.lora.rank else 1.0
    has = student is not None and student.second_time
    sizes = dataclasses.replace(sizes, second_time=has or config.second_time)
    fresh = config.second_time and not has
    return Bagel(sizes, config.dtype, config.remat, config.unroll, scale, fresh_time=fresh)


def save_model(folder: pathlib.Path, config: BagelConfig, params: Params, dtype: str = "float32",
               shard_bytes: int = stores.SHARD_BYTES) -> None:  # fmt: skip
    """Writes configs and weights in BAGEL's layout.

    Args:
      folder: made where it is missing; a weight file appears when it is whole.
      config: the network's sizes.
      params: the parameters; adapters must have been folded in.
      dtype: "float32", "float16" or "bfloat16"; the fixed tables are written in it, too.
      shard_bytes: more than this is written as shards with an index.
    """
    folder.mkdir(parents=True, exist_ok=True)
    layout.write_config(folder, config)
    shapes = weights.stored_shapes(config, params)
    stores.write(folder, "ema", shapes, weights.stored_tensors(config, params), dtype, shard_bytes)
