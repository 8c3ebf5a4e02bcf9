"""Which family a folder on disk is of: one line a family, and nothing else in the house names one."""

import errno
import importlib
import os
import pathlib
import re
from types import ModuleType

from unigrpo_jax.config import ConfigError, ModelConfig, require
from unigrpo_jax.foreign_files import named
from unigrpo_jax.foreign_text import quoted
from unigrpo_jax.models.folders import hub, pipelines
from unigrpo_jax.models.loaded import Loaded

# Folders of `models`, each with a `family.py`: NAME, PIPELINE (its class in diffusers, or None), FILES (words for what a
# folder holds), VERBS (words for what it can do), HUB_FILES (patterns of what is fetched), TOYS ({name: function that makes
# a folder}), OWN_SETTINGS (of `ModelConfig`, that not all read), is_here(folder), load(config, folder), known(config), and
# SINGLE_FILE, a module with is_one(file), unpack and pack, where it is published as one safetensors file, too.
FAMILIES = (
    "bagel",
    "flux",
    "stable_diffusion",
    "hunyuan_video",
    "ltx2",
)

SHAPES_BASE = pathlib.Path(__file__).resolve().parent.parent / "worlds" / "shapes" / "base"
# Names of the bases that lie beside it: of several rounds, of few steps, and of the families that only draw.
BASES = {"rounds_base": "rounds_base", "shapes_few_base": "few_base", "shapes_sd_base": "sd_base",
         "shapes_flux_base": "flux_base"}  # fmt: skip
# Values of own settings that say nothing: the default's, and what run folders of before hold where nothing was said.
_UNSAID = {"told_guidance": (ModelConfig.told_guidance, 3.5)}
_INSTEAD = {"second_time": "leave it out, and distil with --learning.method dmd2"}  # of own settings that were not unsaid
_DISK = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR)
HUB_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}")


class NoModel(ConfigError):
    """A name that is neither a folder's nor one that the Hugging Face hub knows."""


def family(name: str) -> ModuleType:
    """The module of a family, imported when it is asked for."""
    return importlib.import_module(f"unigrpo_jax.models.{name}.family")


def is_named(path: str) -> bool:
    """Whether a `model.path` is the name of a base or a toy that comes with the package."""
    return path in BASES or any(path in family(name).TOYS for name in FAMILIES)


def load_model(config: ModelConfig) -> Loaded:
    """Reads a model folder without its weights; ConfigError where one is missing, does not fit, or is another family's."""
    require(config.family in ("", *FAMILIES), f"model.family = {config.family!r}, but there are {', '.join(FAMILIES)}.")
    folder = find_folder(config.path)
    found = _family_of(folder)
    require(config.family in ("", found) or found is None, f"{folder} is a model of the family {found}, and these settings "
            f"are for {config.family}; use a preset of {found}, or --model.family '' with settings for it.")  # fmt: skip
    chosen = found or FAMILIES[0]
    readers: dict[str, list[str]] = {}
    for other in FAMILIES:
        for name in family(other).OWN_SETTINGS:
            readers.setdefault(name, []).append(other)
    for name, some in readers.items():
        unsaid = getattr(config, name) in _UNSAID.get(name, (getattr(ModelConfig, name),))
        require(unsaid or chosen in some, f"model.{name} is a setting of {' and '.join(some)} alone, and {folder} is a "
                f"model of {chosen}; {_INSTEAD.get(name, 'leave it out')}.")  # fmt: skip
    return family(chosen).load(config, folder)


def _family_of(folder: pathlib.Path) -> str | None:
    """The family that knows a folder, None where none does; ConfigError where it is of a pipeline that is not built."""
    found = next((name for name in FAMILIES if family(name).is_here(folder)), None)
    if found is None and (unbuilt := pipelines.pipeline_class(folder)) is not None:
        built = filter(None, (family(name).PIPELINE for name in FAMILIES))
        raise ConfigError(f"{folder / pipelines.INDEX} is of {quoted(unbuilt)}, which is not built; give a folder of "
                          f"{' or '.join(built)}.")  # fmt: skip
    return found


def _parts(folder: pathlib.Path) -> tuple[str, ...]:
    """What is fetched of a folder whose small files are there."""
    found = _family_of(folder)
    return () if found is None else family(found).HUB_FILES


def known(config: ModelConfig) -> Loaded | None:
    """A release without its files, where its name on the hub is asked for and its sizes are known: shapes alone."""
    return next((model for name in FAMILIES if (model := family(name).known(config)) is not None), None)


def single_file(place: pathlib.Path) -> ModuleType:
    """What makes a folder of a file, or such a file of a folder, by its family; ConfigError where none does."""
    found = {name: family(name).SINGLE_FILE for name in FAMILIES if hasattr(family(name), "SINGLE_FILE")}
    if place.is_dir():
        chosen = found.get(_family_of(place) or "")
    else:
        with pipelines.told():
            chosen = next((module for module in found.values() if module.is_one(place)), None)
    require(chosen is not None, f"{place} is of no family that is published as a single file; such are {', '.join(found)}.")
    return chosen


def find_folder(path: str | None) -> pathlib.Path:
    """The folder of a `model.path`: a folder, a name on the Hugging Face hub, one of `BASES`, "tiny", or None for the base.

    Raises:
      ConfigError: there is no such folder, and no such name that can be fetched.
    """
    if path is None:
        return SHAPES_BASE
    folder = named(path, "model.path")
    if folder.is_dir():
        return folder
    require(not folder.is_file(), f"model.path: {folder} is a file, and a model is a folder; python -m "
            "experiments.single_file makes a folder of a file in which a whole model is published.")  # fmt: skip
    if path in BASES:
        return SHAPES_BASE.parent / BASES[path]
    for name in FAMILIES:
        if path in family(name).TOYS:
            return family(name).TOYS[path]()
    absent = f"model.path: there is no folder {folder}"
    require(HUB_PATTERN.fullmatch(path) is not None,
            f"{absent}; give an existing model folder, or none for the shapes base.")  # fmt: skip
    try:
        return hub.fetch(path, _parts)
    except ConfigError:
        raise
    except Exception as error:  # the hub's client and its HTTP library have no common one
        if isinstance(error, OSError) and error.errno in _DISK:
            raise ConfigError(f"model.path: {path} cannot be kept here ({os.strerror(error.errno)}: {error.filename}); set "
                              "HF_HOME to a folder that can be written and has room.") from None  # fmt: skip
        raise NoModel(
            f"{absent}, and the Hugging Face hub gives no model of that name here ({type(error).__name__}); give an "
            "existing folder, or log in and unset HF_HUB_OFFLINE to download it."
        ) from None
