"""Model folders in diffusers' layout: what their families share.

    model_index.json                   which pipeline, and the class of each part
    unet/ or transformer/              the network that is trained: config.json and diffusion_pytorch_model.safetensors, or
                                       shards of that with an index
    vae/                               the autoencoder, likewise
    text_encoder/, tokenizer/, ...     what reads texts; twice where a pipeline has two
    scheduler/scheduler_config.json    the path between noise and data, and where a sampler steps
    student.json                       of a student, how it was distilled (`folders.student`)
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unigrpo_jax import foreign_files
from unigrpo_jax.config import ConfigError, ModelConfig, RolloutConfig, require
from unigrpo_jax.foreign_text import quoted
from unigrpo_jax.models.autoencoders import diffusers, diffusers_video
from unigrpo_jax.models.autoencoders.image import ImageAutoencoder
from unigrpo_jax.models.autoencoders.video import VideoAutoencoder
from unigrpo_jax.models.building.lora import is_adapter
from unigrpo_jax.models.building.text_painter import TextPainter
from unigrpo_jax.models.building.token_cut import NOT_CUT, TokenCut
from unigrpo_jax.models.folders import component, peft, stored
from unigrpo_jax.models.folders import student as students
from unigrpo_jax.models.folders.settings import read_settings
from unigrpo_jax.models.folders.student import Student
from unigrpo_jax.models.loaded import Autoencoder, Codec, Place, Published, as_student
from unigrpo_jax.models.text_encoders.codec import EmbeddingCodec
from unigrpo_jax.models.verbs import Params

INDEX = "model_index.json"
ADAPTERS = "lora"  # the folder of an export that holds what `peft` writes
# Weights as they are read; variants of them (.fp16., .non_ema.) are not.
_READ = re.compile(r"(diffusion_pytorch_)?model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
_STEMS = (component.DIFFUSERS, component.TRANSFORMERS)


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A folder, or a published one of which only the sizes are known; `loaded.Loaded` says what is asked of it.

    Attributes:
      family: its name, as in `models.families`.
      folder: where it was read.
      config: the settings that it was read with.
      part: the folder of the network, "unet" or "transformer".
      network: the network's verbs.
      autoencoder: between images, or clips, and latents.
      codec: between words and what the network reads; None where only sizes are known.
      stored: the network's weights; None where only sizes are known.
      autoencoder_stored: the autoencoder's weights, likewise; parts where it is several networks.
      stored_dtype: of the network's matrices, such as "bfloat16".
      unknown_settings: what its config files hold that nothing here knows, a phrase a file.
      unread_files: names of weights beside those that are read.
      usual: how its teacher is used where nobody says otherwise, or it itself where it is no student.
      adapters: that lie beside the model and are a part of it: read, they are folded into its weights.
      student: how it was distilled; None where it was not.
    """

    family: str
    folder: pathlib.Path
    config: ModelConfig
    part: str
    network: TextPainter
    autoencoder: Autoencoder
    codec: Codec | None
    stored: stored.StoredTensors | None
    autoencoder_stored: stored.StoredTensors | component.Parts | None
    stored_dtype: str
    unknown_settings: tuple[str, ...] = ()
    unread_files: tuple[str, ...] = ()
    usual: Published | None = None
    adapters: peft.Adapters | None = None
    student: Student | None = None

    @property
    def published(self) -> Published | None:
        """How it is used where nobody says otherwise."""
        return as_student(self.usual, self.student)

    def placed(self, hold, attend, frozen: Place | None = None, tokens: TokenCut = NOT_CUT) -> "Pipeline":
        """The same with a network for a mesh, and text encoders that lie where `frozen` says."""
        network = dataclasses.replace(self.network, hold=hold, attend=attend, tokens=tokens)
        codec = dataclasses.replace(self.codec, place=frozen) if isinstance(self.codec, EmbeddingCodec) else self.codec
        return dataclasses.replace(self, network=network, codec=codec)

    def stored_params(self) -> Params:
        """Shapes and dtypes of the parameters that the file holds."""
        dtype = jnp.dtype(self.config.param_dtype)
        return {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in self.network.stored_network.shapes().items()}

    def abstract_params(self) -> Params:
        """Shapes and dtypes of all parameters, with those that are fresh where the config asks for such."""
        return jax.eval_shape(self.with_fresh, self.stored_params())

    def with_fresh(self, params: Params) -> Params:
        """The parameters with a new second time and adapters, or as they are where the config asks for none."""
        lora, key = self.config.lora, jax.random.key(0)
        params = self.network.with_second_time(params, key) if self.network.fresh_time else params
        return self.network.adapted(params, lora, key) if lora.rank else params

    def check_weights(self) -> None:
        """ConfigError where a target of adapters hits nothing; that the weights fit was seen when they were opened."""
        with told("model.lora.targets: "):
            self.adapted_layers()

    def adapted_layers(self) -> dict[str, int]:
        """How many layers each target of adapters hits, {} where there are none; ValueError where one hits none."""
        lora = self.config.lora
        return self.network.hits(lora.targets) if lora.rank else {}

    def params(self, place: Place | None = None, wanted: Callable[[str], bool] = lambda path: True) -> Params:
        """Reads the stored weights (nothing fresh), each parameter laid out by `place`; ConfigError where they do not fit.

        The host holds this process's shards of one parameter and one stored tensor beside what lies on the devices.
        """
        self.check_weights()
        with told():
            weights = self.stored if self.adapters is None else _Folded(self.stored, self.adapters)
            return component.read(weights, self.network.stored_network, jnp.dtype(self.config.param_dtype), place, wanted)

    def autoencoder_params(self, sharding: jax.sharding.Sharding | None = None) -> Mapping[str, jax.Array]:
        """Reads the autoencoder's weights, float32."""
        with told():
            if isinstance(self.autoencoder_stored, component.Parts):
                return self.autoencoder_stored.read(jnp.float32, None if sharding is None else lambda *_: sharding)
            return _files_of(self.autoencoder).read(self.autoencoder_stored, self.autoencoder, sharding)

    def check_image_size(self, rollout: RolloutConfig) -> None:
        """ConfigError where an image, or a clip, of this size cannot be drawn."""
        with told("rollout.image_height, rollout.image_width: "):
            self.network.grid(rollout.image_height, rollout.image_width)
        with told("rollout.frames: "):
            self.network.grid(*rollout.size)

    @functools.cached_property
    def _files(self) -> list[pathlib.Path]:
        """The weights of every part."""
        weights = self.folder.glob("*/*.safetensors")
        return sorted(path for path in weights if _READ.fullmatch(path.name) and path.parent.name in self._parts)

    @property
    def _parts(self) -> list[str]:
        """Parts that the index names and that are there."""
        return [name for name in _classes(self.folder) if (self.folder / name).is_dir()]

    def checksum(self) -> str:
        """`stored.checksum` of the weight files of every part, to recognise the reference after a resume."""
        return stored.checksum([*self._files, *(self.adapters.weights.files if self.adapters else ())])

    def export(self, params: Mapping[str, np.ndarray], folder: pathlib.Path, dtype: str,
               shard_bytes: int = stored.SHARD_BYTES, student: Student | None = None) -> list[pathlib.Path]:  # fmt: skip
        """Writes a folder that diffusers opens: trained weights, adapters folded in, beside copies of every other part.

        The adapters by themselves are written into its folder `lora`; they are for the model that training began with.

        Args:
          params: the trained parameters.
          folder: a new folder.
          dtype: "float32", "float16" or "bfloat16".
          shard_bytes: more than this is written as shards with an index.
          student: how it was distilled; None is how the model that training began with was.

        Returns:
          The files of the folder.
        """
        student = students.exported(student or self.student, self.network.two_times)
        folder.mkdir(parents=True, exist_ok=True)
        if student is not None:
            students.write(folder, student)
        index = foreign_files.read_json(self.folder / INDEX)
        lost = [name for name in _classes(self.folder) if name not in self._parts]
        index |= dict.fromkeys(lost, [None, None])  # a pipeline opens without what is not there, a safety checker say
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
        for path in self._copied():
            inside = path.suffix == ".safetensors" or foreign_files.is_inside(path, self.folder)
            require(inside, f"{path} is a link out of its folder, and an export is there to be passed on; put the file "
                    "there instead of the link.")  # fmt: skip
            target = folder / path.relative_to(self.folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        network, scale = self.network.network, self.network.lora_scale
        component.write(folder / self.part, component.DIFFUSERS, network, params, dtype, shard_bytes, scale)
        if any(map(is_adapter, params)):
            peft.write(folder / ADAPTERS, self.part, network, params, self.config.lora.alpha)
        return sorted(path for path in folder.rglob("*") if path.is_file())

    def _copied(self) -> Iterator[pathlib.Path]:
        """All that an export takes over: settings and tokenizers, and the weights of what is not trained."""
        for part in self._parts:
            read = [p for p in sorted((self.folder / part).glob("*")) if _READ.fullmatch(p.name)]
            for path in sorted((self.folder / part).glob("*")):
                weights = path.suffix in stored.SUFFIXES or path.name.endswith(".index.json")
                own = part != self.part and (path in read or (path.suffix == ".bin" and not read))
                if path.is_file() and (own or not weights):
                    yield path


@contextlib.contextmanager
def told(place: str = "") -> Iterator[None]:
    """Makes a ValueError a ConfigError, which begins with `place`."""
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{place}{error}") from None


def pipeline_class(folder: pathlib.Path) -> str | None:
    """The class that model_index.json names; None where a folder holds no such file, ConfigError where that is damaged."""
    if not (folder / INDEX).exists():
        return None
    name = _index(folder).get("_class_name")
    require(isinstance(name, str), f"{folder / INDEX} names no pipeline (_class_name); download or copy it again.")
    return name


def hub_files(*parts: str) -> tuple[str, ...]:
    """Patterns of what is fetched of these parts: settings, tokenizers' files, and the weights that are read."""
    weights = [f"{stem}{end}.safetensors" for stem in _STEMS for end in ("", "-?????-of-?????")]
    return (INDEX, *(f"{part}/{name}" for part in parts for name in ("*.json", "*.txt", "*.model", *weights)))


def check_parts(folder: pathlib.Path, parts: Mapping[str, Sequence[str]], files: str) -> None:
    """ConfigError where a part is not of one of these classes, or is not there.

    Args:
      folder: of the model.
      parts: {part: the classes that are built}.
      files: what such a folder holds, for messages.
    """
    classes = _classes(folder)
    for part, known in parts.items():
        found = classes.get(part)
        require(found in known, f"{folder / INDEX} says that {part} is {quoted(found)}, but only {' and '.join(known)} "
                f"{'is' if len(known) == 1 else 'are'} built.")  # fmt: skip
        require((folder / part).is_dir(), f"{folder} holds no folder {part}; such a model's holds {files}.")


def open_network(folder: pathlib.Path, network: component.Network) -> stored.StoredTensors:
    """The weights of a part; ValueError where they do not fit, or lie there in a form that is not read."""
    _check_form(folder)
    return component.open_weights(folder, component.DIFFUSERS, network)


def open_autoencoder(folder: pathlib.Path, autoencoder: ImageAutoencoder | VideoAutoencoder) -> stored.StoredTensors:
    """The same of the autoencoder."""
    _check_form(folder)
    return _files_of(autoencoder).open_autoencoder(folder, autoencoder)


def _files_of(autoencoder: ImageAutoencoder | VideoAutoencoder) -> ModuleType:
    """What opens and reads the files of such an autoencoder."""
    return diffusers_video if isinstance(autoencoder, VideoAutoencoder) else diffusers


def _check_form(folder: pathlib.Path) -> None:
    others = sorted(path.name for path in folder.glob("*") if path.suffix in stored.SUFFIXES)
    there = any(_READ.fullmatch(path.name) for path in folder.glob("*"))
    if not there and others:
        raise ValueError(f"{folder} holds no {component.DIFFUSERS}.safetensors (nor its index), and {', '.join(others[:4])} "
                         "cannot be read; convert it to safetensors of that name.")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Folded:
    """Weights as `component.read` asks for them, with adapters folded in."""

    weights: stored.StoredTensors
    adapters: peft.Adapters

    def read(self, name: str) -> np.ndarray:
        """One tensor."""
        return self.adapters.folded(name, self.weights.read(name))


def open_adapters(folder: pathlib.Path, part: str, network: component.Network) -> peft.Adapters | None:
    """The adapters that lie beside a model, at the top of its folder; None where there are none; ValueError as `peft`."""
    return peft.open_adapters(folder, part, network) if peft.is_here(folder) else None


def unread_files(folder: pathlib.Path, parts: Sequence[str]) -> tuple[str, ...]:
    """Names of weights in a folder and its parts that are not read."""
    read = lambda path: peft.is_read(path) if path.parent == folder else _READ.fullmatch(path.name)
    weights = [p for place in (folder, *(folder / part for part in parts)) for p in place.glob("*")
               if p.suffix in stored.SUFFIXES and not read(p)]  # fmt: skip
    return tuple(sorted(str(path.relative_to(folder)) for path in weights))


def unknown_settings(folder: pathlib.Path, known: Mapping[str, set[str]]) -> tuple[str, ...]:
    """For each of these files with names that are not known: the file and the names, such as "unet/config.json: a, b"."""
    besides = {file: read_settings(folder / file, file).besides(names) for file, names in known.items()}
    return tuple(f"{file}: {names}" for file, names in besides.items() if names)


def timed(config: ModelConfig, network: Any, student: Student | None) -> tuple[Any, bool]:
    """The network with the second time that its folder's student or the settings give it, and whether that is fresh."""
    has = student is not None and student.second_time
    return dataclasses.replace(network, second_time=has or config.second_time), config.second_time and not has


def computing(config: ModelConfig) -> dict[str, Any]:
    """What every family's painter takes from the settings."""
    scale = config.lora.alpha / config.lora.rank if config.lora.rank else 1.0
    return {"dtype": config.dtype, "remat": config.remat, "lora_scale": scale}


def _classes(folder: pathlib.Path) -> dict[str, str]:
    """The class of each part that a pipeline has, of those that are two words: a library and a class."""
    pairs = {name: value for name, value in _index(folder).items()
             if re.fullmatch(r"\w+", name) and isinstance(value, list) and len(value) == 2}  # fmt: skip
    return {name: value[1] for name, value in pairs.items() if isinstance(value[1], str)}


def _index(folder: pathlib.Path) -> dict:
    try:
        data = foreign_files.read_json(folder / INDEX)
    except OSError as error:
        raise ConfigError(f"{folder / INDEX} cannot be read ({error.strerror}); download or copy it again.") from None
    except ValueError as error:
        raise ConfigError(f"{error}; download or copy it again.") from None
    require(isinstance(data, dict), f"{folder / INDEX} is not a mapping of settings; download or copy it again.")
    return data
