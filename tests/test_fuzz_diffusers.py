"""Fuzz: the JSON files of a folder in diffusers' layout, and those of adapters."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from tests.fuzzing import as_json, changed_bytes, changed_json, fuzz, survives, values
from unigrpo_jax.config import ConfigError, ModelConfig, RolloutConfig
from unigrpo_jax.models.families import find_folder, load_model
from unigrpo_jax.models.flux.transformer import FluxTransformer
from unigrpo_jax.models.folders import peft

SMALL = FluxTransformer(channels=4, double=1, single=1, heads=2, axes=(2, 4, 2), text_width=6, pooled_width=5, guidance=True)
FILES = {
    "sd_tiny": ("model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json",
                "scheduler/scheduler_config.json"),
    "flux_tiny": ("model_index.json", "transformer/config.json", "text_encoder_2/config.json",
                  "scheduler/scheduler_config.json"),
    "hunyuan_tiny": ("model_index.json", "transformer/config.json", "vae/config.json", "text_encoder/config.json",
                     "scheduler/scheduler_config.json"),
    "ltx2_tiny": ("model_index.json", "transformer/config.json", "connectors/config.json", "vae/config.json",
                  "audio_vae/config.json", "vocoder/config.json", "text_encoder/config.json",
                  "scheduler/scheduler_config.json"),
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: shutil.copytree(find_folder(name), tmp_path_factory.mktemp(name) / "model") for name in FILES}


@fuzz(120, st.data())
def test_a_folder_of_parts_is_read_or_refused(folders, data):
    name = data.draw(st.sampled_from(list(FILES)))
    path = folders[name] / data.draw(st.sampled_from(FILES[name]))
    valid = path.read_bytes()
    changed = changed_json(json.loads(valid)).map(as_json) | changed_bytes(valid)

    def read():
        loaded = load_model(ModelConfig(path=str(folders[name])))
        loaded.check_weights()
        loaded.network.times(5, 0.0, loaded.network.grid(32, 32))
        loaded.check_image_size(RolloutConfig(image_height=32, image_width=32))

    try:
        path.write_bytes(data.draw(changed))
        survives(f"{name}, {path.parent.name}/{path.name}", read, clean=ConfigError)
    finally:
        path.write_bytes(valid)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """A folder of adapters of a small network."""
    folder, rng = tmp_path_factory.mktemp("adapters"), np.random.default_rng(0)
    shapes = {"x_embedder.lora_A.weight": (2, SMALL.channels), "x_embedder.lora_B.weight": (SMALL.width, 2)}
    peft.write(folder, "transformer", SMALL, {name: rng.standard_normal(x) for name, x in shapes.items()}, 4.0)
    return folder


@fuzz(120, st.data())
def test_adapters_are_read_or_refused(adapters, data):
    path = adapters / data.draw(st.sampled_from(["adapter_config.json", "adapter_model.safetensors"]))
    valid = path.read_bytes()
    changed = changed_bytes(valid)
    if path.suffix == ".json":
        changed |= changed_json(json.loads(valid)).map(as_json)
    read = lambda: peft.open_adapters(adapters, "transformer", SMALL).params()
    try:
        path.write_bytes(data.draw(changed))
        survives(path.name, read)
    finally:
        path.write_bytes(valid)


@fuzz(60, changed_json({"transformer.r": 2, "transformer.lora_alpha": 4.0}) | values)
def test_a_header_of_adapters_is_read_or_refused(adapters, tmp_path, said):
    words = {"lora_adapter_metadata": as_json(said).decode("utf-8", "replace")}
    name = "pytorch_lora_weights.safetensors"
    save_file(load_file(adapters / name), tmp_path / name, words)
    survives("header of adapters", lambda: peft.open_adapters(tmp_path, "transformer", SMALL).params())
