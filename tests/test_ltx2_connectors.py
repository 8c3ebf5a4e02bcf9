"""The connectors of LTX-2 against diffusers, from recorded states of Gemma; what is not recorded, by hand."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unigrpo_jax.models.folders import component
from unigrpo_jax.models.ltx2.config import CONNECTORS_KNOWN, read_connectors
from unigrpo_jax.models.ltx2.connectors import Connector, LTX2Connectors, with_registers

BOTH = ("video", "audio")
SMALL = LTX2Connectors(
    text_width=6, states=3, layout="interleaved", positions=16, theta=50.0,
    video=Connector(layers=2, heads=2, head_dim=4, registers=None, gated=True),
    audio=Connector(layers=1, heads=3, head_dim=2, registers=None, gated=True), each=True, bias=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def recorded(fixtures):
    """The recorded texts, the connectors and their parameters."""
    folder = fixtures / "ltx2" / "pipeline" / "connectors"
    network = read_connectors(folder / "config.json")
    params = component.read(component.open_weights(folder, component.DIFFUSERS, network), network, np.float32)
    return dict(np.load(fixtures / "ltx2" / "text.npz")), network, params


def test_recorded_texts(recorded, assert_close):
    found, network, params = recorded
    states, mask = found["hidden_states"], found["attention_mask"] > 0

    @jax.jit
    def run(params, states, mask):
        return network.projected(params, states, mask), *network(params, states, mask)

    projected, out, seen = run(params, states, mask)
    for name in BOTH:
        assert_close(projected[name], found["proj"], name="projected")
        assert_close(out[name], found[f"{name}_embeds"], name=name)
        turn = network.turn(name, states.shape[1])
        for part in ("cos", "sin"):
            table = getattr(turn, part).reshape(states.shape[1], turn.heads, -1).swapaxes(0, 1)
            np.testing.assert_allclose(table, found[f"rope_{part}"], rtol=0, atol=2e-6)
    np.testing.assert_array_equal(seen, found["out_mask"] > 0)
    # What stands at padding is read by nothing, be it no number at all.
    spoiled = np.where(mask[..., None, None], states, np.nan).astype(np.float32)
    for name, again in run(params, spoiled, mask)[1].items():
        np.testing.assert_array_equal(again, out[name])


def test_every_name_and_shape_of_the_published_size(fixtures, tmp_path):
    published = json.loads((fixtures / "ltx2" / "param_shapes_full.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"rope_type": "split"}))
    network = read_connectors(tmp_path / "config.json")
    assert component.wanted(network) == {name: tuple(shape) for name, shape in published["shapes"]["connectors"].items()}
    assert component.count(network) == published["param_count"]["connectors"] == 1_431_475_200


def test_registers_follow_a_texts_tokens_each_at_its_place():
    x = np.arange(12, dtype=np.float32).reshape(2, 6, 1)
    mask = np.array([[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1]], bool)
    out = with_registers(x, jnp.asarray(mask), np.float32([[-1], [-2], [-3]]))
    np.testing.assert_array_equal(out[..., 0], [[3, 4, 5, -1, -2, -3], [11, -2, -3, -1, -2, -3]])


def test_texts_that_do_not_divide_over_the_registers_are_refused():
    network = dataclasses.replace(SMALL, video=dataclasses.replace(SMALL.video, registers=4))
    with pytest.raises(ValueError, match="texts of 6 tokens do not divide over 4 registers; pad them to 8.$"):
        network.connected({}, "video", jnp.zeros((1, 6, 8)), jnp.ones((1, 6), bool))


def by_hand(network, params, name, states, mask):
    """One connector without registers as LTX-2.3 norms and gates, in float64, one text and one head after the other."""
    own, get = getattr(network, name), lambda key: np.asarray(params[key], np.float64)
    rms = lambda x: x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-6)
    gelu = lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    length, half = states.shape[1], own.width // 2
    angle = (2 * np.arange(length)[:, None] / network.positions - 1) * network.theta ** np.linspace(0, 1, half) * np.pi / 2
    cos, sin = np.repeat(np.cos(angle), 2, axis=1), np.repeat(np.sin(angle), 2, axis=1)
    turned = lambda x: x * cos + np.stack([-x[:, 1::2], x[:, ::2]], axis=-1).reshape(x.shape) * sin
    out = []
    for text, real in zip(np.asarray(states, np.float64), mask, strict=True):
        text = text / np.sqrt((text**2).mean(axis=1, keepdims=True) + 1e-6) * real[:, None, None]
        flat = text.reshape(length, -1) * math.sqrt(own.width / network.text_width)
        x = flat @ get(f"{name}_text_proj_in.weight").T + get(f"{name}_text_proj_in.bias")
        for layer in range(own.layers):
            at = lambda key, layer=layer: get(f"{name}_connector.transformer_blocks.{key}")[layer]
            to = lambda key, x: x @ at(f"{key}.weight").T + at(f"{key}.bias")  # noqa: B023
            h = rms(x)
            q, k = (turned(rms(to(f"attn1.to_{which}", h)) * at(f"attn1.norm_{which}.weight")) for which in "qk")
            v, gates = to("attn1.to_v", h), 2 / (1 + np.exp(-to("attn1.to_gate_logits", h)))
            heads = []
            for i in range(own.heads):
                cut = slice(i * own.head_dim, (i + 1) * own.head_dim)
                weights = np.exp(q[:, cut] @ k[:, cut].T / math.sqrt(own.head_dim)) * real[None]
                heads.append(weights / weights.sum(axis=1, keepdims=True) @ v[:, cut] * gates[:, i : i + 1])
            x = x + to("attn1.to_out.0", np.concatenate(heads, axis=1))
            x = x + to("ff.net.2", gelu(to("ff.net.0.proj", rms(x))))
        out.append(rms(x))
    return np.stack(out)


def test_without_registers_and_as_ltx_2_3_norms_by_hand(assert_close):
    """A projection for each modality, neighbours that turn, gates; no token sees padding."""
    rng = np.random.default_rng(0)
    params = {name: rng.standard_normal(shape).astype(np.float32) / np.float32(math.sqrt(shape[-1]))
              for name, shape in SMALL.shapes().items()}  # fmt: skip
    states = rng.standard_normal((2, 5, 6, 3)).astype(np.float32)
    mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]], bool)
    out, seen = jax.jit(SMALL)(params, states, mask)
    for name in BOTH:
        assert_close(out[name], by_hand(SMALL, params, name, states, mask), name=name)
    assert np.asarray(seen).all()


@pytest.mark.parametrize("data, words", [
    ({"_class_name": "LTX2VideoTransformer3DModel"}, "this network knows only 'LTX2TextConnectors'"),
    ({"rope_type": None}, "rope_type = None, but it must be said"),
    ({"causal_temporal_positioning": True}, "this network knows only False"),
    ({"video_connector_attention_head_dim": 127}, "it must be even"),
    ({"audio_connector_num_attention_heads": 32}, "it must make the 3840 numbers that are projected to"),
    ({"per_modality_projections": True}, "it must make the 4096 numbers that are projected to"),
    ({"video_connector_num_learnable_registers": 0}, "it must be a whole number from 1"),
])  # fmt: skip
def test_what_would_be_other_connectors_is_refused(tmp_path, data, words):
    (tmp_path / "config.json").write_text(json.dumps({"rope_type": "split"} | data))
    with pytest.raises(ValueError) as error:
        read_connectors(tmp_path / "config.json")
    assert words in str(error.value)


def test_registers_may_be_left_out_by_name_and_every_recorded_setting_is_known(fixtures, tmp_path):
    path = fixtures / "ltx2" / "pipeline" / "connectors" / "config.json"
    data = json.loads(path.read_text())
    assert set(data) <= CONNECTORS_KNOWN
    names = {f"{name}_connector_num_learnable_registers": None for name in BOTH}
    (tmp_path / "config.json").write_text(json.dumps(data | names))
    network = read_connectors(tmp_path / "config.json")
    assert network.video.registers is None and network.audio.registers is None
    assert not any("registers" in name for name in network.shapes())
