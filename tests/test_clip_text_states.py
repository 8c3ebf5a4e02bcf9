"""CLIP's text states as Stable Diffusion and FLUX read them: all tokens seen, nothing projected."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from unigrpo_jax.models.text_encoders.clip_text import read_clip_text


@pytest.mark.parametrize("family, prefix", [("sd", ""), ("flux", "clip_")])
def test_recorded_states(fixtures, assert_close, family, prefix):
    folder = fixtures / family / "pipeline" / "text_encoder"
    network = read_clip_text(folder / "config.json", "text_encoder")
    found = dict(np.load(fixtures / family / "text.npz"))
    params = network.read(network.open_weights(folder))
    states, end = jax.jit(network.__call__)(params, found[f"{prefix}input_ids"])
    assert_close(states, found[f"{prefix}last_hidden_state"], name="states")
    assert_close(end, found[f"{prefix}pooler_output" if family == "sd" else f"{prefix}pooled"], name="end")


@pytest.fixture
def folder(fixtures, tmp_path):
    """A copy of Stable Diffusion's, and what is in its config."""
    own = fixtures / "sd" / "pipeline" / "text_encoder"
    (tmp_path / "model.safetensors").write_bytes((own / "model.safetensors").read_bytes())
    data = json.loads((own / "config.json").read_text())

    def configure(**changes):
        (tmp_path / "config.json").write_text(json.dumps(data | changes))
        return tmp_path

    return configure


def test_a_config_without_names_has_the_class_s_defaults(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    found = read_clip_text(tmp_path / "config.json", "text_encoder")
    assert (found.vocabulary, found.tokens, found.eos) == (49408, 77, 49407)
    tower = found.tower
    assert (tower.width, tower.mlp, tower.layers, tower.heads, tower.activation) == (512, 2048, 12, 8, "quick_gelu")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"model_type": "clip"}, "model_type = 'clip', but this network knows only 'clip_text_model'"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu', but this network knows only 'gelu' or 'quick_gelu'"),
        ({"num_attention_heads": 10007}, "num_attention_heads = 10007, but it must divide hidden_size = WIDTH"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers = '2'"),
        ({"layer_norm_eps": 0}, "layer_norm_eps = 0"),
    ],
)
def test_what_would_be_another_tower_is_refused(folder, change, words):
    path = folder(**change) / "config.json"
    with pytest.raises(ValueError) as error:
        read_clip_text(path, "text_encoder")
    assert words.replace("WIDTH", str(json.loads(path.read_text())["hidden_size"])) in str(error.value)


def test_weights_that_do_not_fit_are_named_and_old_buffers_are_passed_over(folder):
    own = folder()
    network = read_clip_text(own / "config.json", "text_encoder")
    tensors = load_file(own / "model.safetensors")
    ids = np.arange(network.tokens)[None]
    save_file(tensors | {"text_model.embeddings.position_ids": ids}, own / "model.safetensors")
    network.open_weights(own)
    del tensors["text_model.final_layer_norm.bias"]
    save_file(tensors | {"text_projection.weight": np.ones((2, 2), np.float32)}, own / "model.safetensors")
    with pytest.raises(ValueError) as error:
        network.open_weights(own)
    assert "missing text_model.final_layer_norm.bias" in str(error.value)
    assert "unknown text_projection.weight" in str(error.value)
