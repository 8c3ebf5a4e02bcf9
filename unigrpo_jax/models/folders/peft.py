"""LoRA adapters in files as peft and diffusers write them, both ways.

Among flat parameters an adapter is `M.lora_A.weight` [(layers,) r, in] and `M.lora_B.weight` [(layers,) out, r] beside
`M.weight`; files hold those of each layer by itself.  Two programs look for them under two names, PART being the folder of
the network in a diffusers pipeline:

    adapter_model.safetensors, adapter_config.json     peft         base_model.model.M.lora_A.weight
    pytorch_lora_weights.safetensors                   diffusers    PART.M.lora_A.weight

alpha, of the scale alpha / r, stands in adapter_config.json and in the header of the second.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping

import numpy as np

from unigrpo_jax import foreign_files
from unigrpo_jax.models.building.flat import ADAPTER
from unigrpo_jax.models.building.flat_adapters import linears
from unigrpo_jax.models.folders import component, stored
from unigrpo_jax.models.folders.settings import Settings, read_settings

PEFT, DIFFUSERS = "adapter_model", "pytorch_lora_weights"
CONFIG = "adapter_config.json"
FILES = f"{CONFIG} and {PEFT}.safetensors, or {DIFFUSERS}.safetensors"
_ROOT = "base_model.model"  # what peft calls the network
_METADATA = "lora_adapter_metadata"  # what diffusers calls a file's own adapter_config.json
# What would be another sum than W + alpha / r B A.
_ONLY = {"peft_type": ("LORA",), "use_dora": (False,), "use_rslora": (False,), "lora_bias": (False,), "bias": ("none",),
         "fan_in_fan_out": (False,), "rank_pattern": ({},), "alpha_pattern": ({},), "modules_to_save": ([],)}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Adapters:
    """A folder of adapters of one network, whose headers have been read and fit it.

    Attributes:
      rank: r.
      alpha: of the scale alpha / r.
      weights: their file.
      modules: each module that has one, and the file's names of it in every layer.
    """

    rank: int
    alpha: float
    weights: stored.StoredTensors
    modules: Mapping[str, tuple[str, ...]]

    def params(self) -> dict[str, np.ndarray]:
        """Flat parameters of the adapters alone, in the file's dtype."""
        out = {}
        for module, layers in self.modules.items():
            for end in ADAPTER:
                own = [self.weights.read(f"{layer}.{end}") for layer in layers]
                out[f"{module}.{end}"] = own[0] if _bare(layers[0]) == module else np.stack(own)
        return out

    def folded(self, name: str, weight: np.ndarray) -> np.ndarray:
        """A tensor of the network's own file with alpha / r B A added to it, float32; as it is where it has no adapter."""
        layer = self._layers.get(name)
        if layer is None:
            return weight
        a, b = (self.weights.read(f"{layer}.{end}").astype(np.float32) for end in ADAPTER)
        return weight.astype(np.float32) + np.float32(self.alpha / self.rank) * (b @ a)

    @functools.cached_property
    def _layers(self) -> dict[str, str]:
        return {f"{_bare(layer)}.weight": layer for layers in self.modules.values() for layer in layers}


def is_here(folder: pathlib.Path) -> bool:
    """Whether a folder holds adapters, or says so, that `open_adapters` reads or refuses."""
    return _stem(folder) is not None or (folder / CONFIG).is_file()


def is_read(path: pathlib.Path) -> bool:
    """Whether `open_adapters` reads this file of a folder."""
    return path.name == f"{_stem(path.parent)}.safetensors"


def write(folder: pathlib.Path, part: str, network: component.Network, params: Mapping[str, np.ndarray],
          alpha: float) -> None:  # fmt: skip
    """Writes the adapters among parameters, float32, under both names.

    Args:
      folder: made where it is missing.
      part: "unet" or "transformer".
      network: which they adapt.
      params: flat parameters; those that are of no adapter are left out.
      alpha: of the scale alpha / r.
    """
    arrays = {}
    for module, layers in _modules(network).items():
        for end in ADAPTER:
            if (array := params.get(f"{module}.{end}")) is not None:
                own = [array] if layers == (module,) else array
                arrays |= {f"{layer}.{end}": np.asarray(x, np.float32) for layer, x in zip(layers, own, strict=True)}
    ranks = {name.removesuffix(f".{ADAPTER[0]}"): len(x) for name, x in arrays.items() if name.endswith(ADAPTER[0])}
    rank, targets = next(iter(ranks.values())), sorted(ranks)
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": targets, "bias": "none"}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n")
    own = {f"{part}.{name}": settings[name] for name in ("r", "lora_alpha", "target_modules")}
    for stem, prefix, metadata in ((PEFT, _ROOT, {}), (DIFFUSERS, part, {_METADATA: json.dumps(own)})):
        named = {f"{prefix}.{name}": x for name, x in arrays.items()}
        shapes = {name: x.shape for name, x in named.items()}
        stored.write(folder, stem, shapes, iter(named.items()), "float32", metadata=metadata)


def open_adapters(folder: pathlib.Path, part: str, network: component.Network) -> Adapters:
    """The adapters of a folder that either program wrote, of which only headers are read.

    Args:
      folder: holds `FILES`.
      part: as in `write`.
      network: which they adapt.

    Raises:
      ValueError: there are none, they are damaged, of another network, or of a kind that is not built, all in one sentence.
    """
    stem = _stem(folder)
    if stem is None and (folder / CONFIG).is_file():
        raise ValueError(f"{folder} holds {CONFIG}, but no {PEFT}.safetensors beside it; copy it there, or remove that.")
    if stem is None:
        raise ValueError(f"{folder} holds no adapters; a folder of adapters holds {FILES}.")
    weights = stored.StoredTensors(folder, stem)
    prefix = f"{_ROOT if stem == PEFT else part}."
    settings = read_settings(folder / CONFIG, FILES) if stem == PEFT else _settings_inside(weights, prefix)
    for name, values in _ONLY.items():
        settings.only(name, *values)
    modules = {m: tuple(f"{prefix}{layer}" for layer in layers) for m, layers in _modules(network).items()}
    firsts = {f"{layer}.{ADAPTER[0]}": module for module, layers in modules.items() for layer in layers}
    hit = {name: firsts[name] for name in sorted(weights.names()) if name in firsts}
    if not hit:
        some = ", ".join(sorted(weights.names())[:2])
        raise ValueError(f"{weights.path} adapts nothing of this network: it holds {some}, but no "
                         f"{prefix}MODULE.{ADAPTER[0]} of a module of it.")  # fmt: skip
    rank = settings.whole("r", (weights.shape(next(iter(hit))) or (0,))[0])
    found, wanted, shapes = {m: modules[m] for m in dict.fromkeys(hit.values())}, {}, linears(network)
    for module, layers in found.items():
        out, width = shapes[module][-2:]
        for end, shape in zip(ADAPTER, ((rank, width), (out, rank)), strict=True):
            wanted |= {f"{layer}.{end}": shape for layer in layers}
    if faults := stored.faults(weights, wanted, (), ""):
        raise ValueError(f"{weights.path} does not fit this network at rank {rank}: {'; '.join(faults)}.")
    return Adapters(rank, settings.positive("lora_alpha", rank), weights, found)


def _stem(folder: pathlib.Path) -> str | None:
    return next((stem for stem in (PEFT, DIFFUSERS) if (folder / f"{stem}.safetensors").is_file()), None)


def _bare(layer: str) -> str:
    """A layer's name without the prefix of either program."""
    return layer.removeprefix(f"{_ROOT}.") if layer.startswith(f"{_ROOT}.") else layer.partition(".")[2]


def _modules(network: component.Network) -> dict[str, tuple[str, ...]]:
    """Each linear map, and the file's names of it in every layer."""
    names = {module: network.stored_names(f"{module}.weight") for module in linears(network)}
    return {module: tuple(name.removesuffix(".weight") for name in own) for module, own in names.items()}


def _settings_inside(weights: stored.StoredTensors, prefix: str) -> Settings:
    """What the file's header says of the network; nothing where it says nothing, which means alpha = r."""
    text = weights.metadata().get(_METADATA)
    try:
        data = foreign_files.parse_json(text) if text is not None else {}
    except ValueError as error:
        raise ValueError(f"the header of {weights.path} holds no settings ({error}); copy it again.") from None
    if not isinstance(data, dict):
        raise ValueError(f"the header of {weights.path} holds no mapping of settings; copy it again.")
    return Settings(weights.path, {k.removeprefix(prefix): v for k, v in data.items() if k.startswith(prefix)}, prefix)
