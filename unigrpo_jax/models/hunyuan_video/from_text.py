"""A painter from text alone out of one from a picture that was also taught with none, where its latents are zeros.

The two are one network, and what reads zeros does nothing: the folder is the same without the weights that read a picture.
"""

import dataclasses
import hashlib
import json
import pathlib
import shutil

from unigrpo_jax.models.folders import component
from unigrpo_jax.models.folders.pipelines import INDEX, open_network
from unigrpo_jax.models.folders.stored import DTYPES
from unigrpo_jax.models.folders.toys import made_once, save
from unigrpo_jax.models.hunyuan_video.config import PIPELINE, read_transformer

READS = "x_embedder.proj.weight"  # [width, channels, ...]; the second half of the channels is a picture's
_TRANSFORMER = "transformer"
BASE = pathlib.Path(__file__).resolve().parents[2] / "worlds" / "motion" / "base"


def write(folder: pathlib.Path, out: pathlib.Path) -> None:
    """Writes the folder `out`, which may be there and empty, from that of a painter from a picture."""
    shutil.copytree(folder, out, dirs_exist_ok=True)
    (out / INDEX).unlink()
    network = read_transformer(folder / _TRANSFORMER / "config.json")
    weights = open_network(folder / _TRANSFORMER, network)
    params = component.read(weights, network, "float32")
    half = params[READS].shape[1] // 2
    component.write(out / _TRANSFORMER, component.DIFFUSERS, dataclasses.replace(network, from_picture=False),
                    params | {READS: params[READS][:, :half]}, DTYPES[weights.dtype(READS)])  # fmt: skip
    config = json.loads((folder / _TRANSFORMER / "config.json").read_text())
    save(out / _TRANSFORMER / "config.json", config | {"in_channels": half})
    index = json.loads((folder / INDEX).read_text())
    save(out / INDEX, index | {"_class_name": PIPELINE})  # last: it says that the folder is whole


def base_folder() -> pathlib.Path:
    """The folder of `shapes_motion_base`, made of `shapes_animate_base` on first use."""
    weights = hashlib.sha256((BASE / _TRANSFORMER / f"{component.DIFFUSERS}.safetensors").read_bytes()).hexdigest()
    return made_once(f"shapes-motion-base-{weights[:12]}", lambda folder: write(BASE, folder))
