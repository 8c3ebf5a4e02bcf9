"""CLIP's text states as Stable Diffusion and FLUX read them: all tokens seen, nothing projected."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from unigrpo_jax.models.text_encoders.clip import TowerConfig, text_states
from unigrpo_jax.models.tree import unflatten
from unigrpo_jax.rewards.clip_weights import _LAYER, _TEXT  # the table of names


@pytest.mark.parametrize("family, prefix", [("sd", ""), ("flux", "clip_")])
def test_recorded_states(fixtures, assert_close, family, prefix):
    folder = fixtures / family / "pipeline" / "text_encoder"
    data, stored = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    tower = TowerConfig(
        width=data["hidden_size"], mlp=data["intermediate_size"], layers=data["num_hidden_layers"],
        heads=data["num_attention_heads"], activation=data["hidden_act"], norm_eps=data["layer_norm_eps"],
    )  # fmt: skip
    heads = {"DHK": (tower.width, tower.heads, -1), "HKD": (tower.heads, -1, tower.width), "HK": (tower.heads, -1)}

    def ours(array, inputs, axes):
        array = array.T if inputs > 0 else array
        return array.reshape(heads[axes]) if axes in heads else array

    top = [row for row in _TEXT if row[1] in stored]  # without a projection and a scale
    flat = {path.removeprefix("text/"): ours(stored[name], inputs, axes) for path, name, inputs, axes in top}
    for path, name, inputs, axes in _LAYER:
        layers = [ours(stored[f"text_model.encoder.layers.{i}.{name}"], inputs, axes) for i in range(tower.layers)]
        flat[f"layers/{path}"] = np.stack(layers)
    found = dict(np.load(fixtures / family / "text.npz"))
    ids = found[f"{prefix}input_ids"]
    run = jax.jit(text_states, static_argnums=(1, 2))
    states, end = run(unflatten(flat), tower, data["eos_token_id"], ids, np.ones_like(ids))
    assert_close(states, found[f"{prefix}last_hidden_state"], name="states")
    assert_close(end, found[f"{prefix}pooler_output" if family == "sd" else f"{prefix}pooled"], name="end")
