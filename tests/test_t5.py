"""T5's encoder against transformers: states after every block, with and without a mask, and names."""

import json

import jax
import numpy as np
import pytest

from unigrpo_jax.models.folders import component
from unigrpo_jax.models.text_encoders.t5 import T5Encoder, read_t5


@pytest.fixture(scope="module")
def recorded(fixtures):
    """The encoder of FLUX's folder, its parameters, and what was recorded of it."""
    folder = fixtures / "flux" / "pipeline" / "text_encoder_2"
    encoder = read_t5(folder / "config.json", "text_encoder_2")
    params = component.read(component.open_weights(folder, component.TRANSFORMERS, encoder), encoder, np.float32)
    return encoder, params, dict(np.load(fixtures / "flux" / "text.npz"))


def test_recorded_states(recorded, assert_close):
    encoder, params, found = recorded
    ids, run = found["t5_input_ids"], jax.jit(encoder.__call__)
    last, states = run(params, ids)
    assert_close(last, found["t5_last_hidden_state"], name="last")
    for layer, state in enumerate(found["t5_hidden_states"][:-1]):
        assert_close(states[layer], state, name=f"after {layer} blocks")
    masked, _ = run(params, ids, found["t5_attention_mask"])
    assert_close(masked, found["t5_last_hidden_state_masked"], name="masked")


def bucket_by_hand(away, buckets=32, farthest=128):
    half = buckets // 2
    exact, far = half // 2, abs(away)
    if far >= exact:
        far = min(half - 1, exact + int(np.log(far / exact) / np.log(farthest / exact) * (half - exact)))
    return far + (half if away > 0 else 0)


def test_buckets_of_distances():
    found = T5Encoder(vocabulary=1, width=1, heads=1, head_dim=1, mlp=1, layers=1).bucket(300)
    assert found.min() == 0 and found.max() == 31
    assert all(found[200, 200 + away] == bucket_by_hand(away) for away in range(-200, 100))


def test_every_name_and_shape_of_the_published_size(fixtures):
    published = json.loads((fixtures / "flux" / "param_shapes_full.json").read_text())["shapes"]["text_encoder_2"]
    encoder = T5Encoder(vocabulary=32128, width=4096, heads=64, head_dim=64, mlp=10240, layers=24)
    assert component.wanted(encoder) == {name: tuple(shape) for name, shape in published.items()}


@pytest.mark.parametrize(
    "data, words",
    [
        ({"model_type": "mt5"}, "model_type = 'mt5', but this network knows only 't5'"),
        ({}, "feed_forward_proj = None, but only 'gated-gelu' is built"),
        ({"feed_forward_proj": "relu"}, "feed_forward_proj = 'relu'"),
        ({"feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 30}, "it must divide by 4"),
        ({"feed_forward_proj": "gated-gelu", "d_model": 0}, "d_model = 0"),
    ],
)
def test_what_would_be_another_encoder_is_refused(tmp_path, data, words):
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(ValueError) as error:
        read_t5(tmp_path / "config.json", "config.json")
    assert words in str(error.value)
