"""The config files of a model folder: every spelling of a setting, and nothing passed over that would change the network."""

import dataclasses
import json
import types

import jax
import pytest

from unigrpo_jax.config import ModelConfig, RunConfig
from unigrpo_jax.models.bagel import layout
from unigrpo_jax.models.families import find_folder, load_model
from unigrpo_jax.training.overview import card

TOKENS = dict(bos_token=1, eos_token=2, image_start_token=3, image_end_token=4, pad_token=0)
QWEN2 = (151936, 4096, 22016, 32, 32, 32)  # Qwen2Config(): vocabulary, width, MLP, layers, heads, kv heads


@pytest.fixture(scope="module")
def toy():
    return load_model(ModelConfig(path="tiny"))


@pytest.fixture
def read(toy, tmp_path):
    """Reads the toy's configs with changes; a change to `...` takes the name away."""

    def read(llm=None, vit=None):
        for file, change in (("llm_config.json", llm or {}), ("vit_config.json", vit or {})):
            data = json.loads((toy.folder / file).read_text()) | change
            (tmp_path / file).write_text(json.dumps({name: value for name, value in data.items() if value is not ...}))
        return layout.read_config(tmp_path, toy.stored, toy.autoencoder, TOKENS)

    return read


PLAIN = {"rope_type": "default"}


@pytest.mark.parametrize(
    "change, theta",
    [
        ({"rope_theta": 5e5}, 5e5),
        ({"rope_theta": ..., "rope_parameters": PLAIN | {"rope_theta": 5e5}}, 5e5),
        ({"rope_theta": None, "rope_parameters": {"rope_theta": 500000}}, 5e5),
        ({"rope_theta": ..., "rope_scaling": PLAIN | {"rope_theta": 5e5}}, 5e5),
        ({"rope_theta": ..., "rope_parameters": {"full_attention": PLAIN | {"rope_theta": 5e5}}}, 5e5),
        ({"rope_theta": 5e5, "rope_parameters": {"rope_theta": 500000, "type": "default"}}, 5e5),
        ({"rope_theta": 5e5, "rope_parameters": PLAIN, "rope_scaling": None}, 5e5),
        ({"rope_theta": ...}, 1e4),
        ({"rope_theta": None, "rope_parameters": PLAIN | {"rope_theta": None}}, 1e4),
        ({"rope_theta": ..., "rope_parameters": {}}, 1e4),
    ],
)
def test_the_base_of_the_rotary_angles_is_read_wherever_it_stands(read, change, theta):
    """Qwen2Config's default is 10000, in transformers and in BAGEL."""
    assert read(change).rope_theta == theta


def test_a_file_that_transformers_has_written_over_means_the_same(toy, tmp_path):
    from transformers import Qwen2Config, SiglipVisionConfig

    for diff in (True, False):
        for file, kind, extra in (("llm_config.json", Qwen2Config, {"rope_theta": 5e5}),
                                  ("vit_config.json", SiglipVisionConfig, {})):  # fmt: skip
            before = tmp_path / "before.json"
            before.write_text(json.dumps(json.loads((toy.folder / file).read_text()) | extra))
            kind.from_json_file(str(before)).to_json_file(str(tmp_path / file), use_diff=diff)
        found = layout.read_config(tmp_path, toy.stored, toy.autoencoder, TOKENS)
        assert found == dataclasses.replace(toy.network.config, **TOKENS, rope_theta=5e5)
        assert layout.unknown_settings(tmp_path) == []


@pytest.mark.parametrize(
    "change",
    [
        {"rope_scaling": PLAIN},
        {"rope_scaling": {"type": "default"}},
        {"rope_scaling": {"type": "linear", "factor": 1.0}},
        {"rope_scaling": PLAIN | {"factor": None, "type": "default"}},
        {"rope_scaling": {}},
        {"rope_scaling": None},
        {"rope_parameters": {"full_attention": PLAIN, "sliding_attention": PLAIN}},
        {"rope_parameters": PLAIN | {"partial_rotary_factor": 1.0}},
        {"head_dim": None},
        {"head_dim": 16},
        {"hidden_act": None},
        {"hidden_act": "swish"},
        {"use_sliding_window": None, "sliding_window": 4096, "max_window_layers": 1},
        {"layer_types": ["full_attention"] * 2},
        {"layer_types": None, "attention_dropout": 0.0, "attention_bias": True, "mlp_bias": False},
        {"attention_bias_qkv": True, "attention_bias_o": False, "layer_module": "Qwen2MoTDecoderLayer", "note": "a"},
        {"model_type": ..., "qk_norm": ..., "tie_word_embeddings": ..., "hidden_act": ..., "rms_norm_eps": ...},
        {"rms_norm_eps": None, "quantization_config": None},
    ],
)
def test_what_means_the_same_is_read_as_the_same(read, change):
    assert read(change) == read()


@pytest.mark.parametrize("change", [{"patch_size": [8, 8], "image_size": [64, 64]}, {"rope": None}, {"rope": ...},
                                    {"num_channels": ..., "model_type": ...}, {"layer_norm_eps": ...},
                                    {"hidden_act": "gelu_new"}, {"vision_use_head": True}])  # fmt: skip
def test_what_means_the_same_to_the_vision_encoder_is_read_as_the_same(read, change):
    assert read(vit=change) == read()


@pytest.mark.parametrize(
    "change, word",
    [
        ({"rope_theta": 1e6, "rope_parameters": {"rope_theta": 5e5}}, "rope_theta is 500000 and 1e+06"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}, "sliding_attention": {"rope_theta": 2.0}}},
         "rope_theta is 1 and 2 and "),
        ({"rope_parameters": {"rope_theta": "big"}}, "rope_parameters.rope_theta = 'big'"),
        ({"rope_parameters": {"rope_theta": 0}}, "rope_parameters.rope_theta = 0"),
        ({"rope_parameters": PLAIN | {"partial_rotary_factor": 0.5}}, "rope_parameters.partial_rotary_factor = 0.5"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling.factor = 2.0"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.type = 'linear'"),
        ({"rope_scaling": {"factor": 4.0}}, "rope_scaling.factor = 4.0"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling.rope_type = 'yarn'"),
        ({"rope_scaling": PLAIN | {"type": "dynamic"}}, "rope_scaling.type = 'dynamic'"),
        ({"rope_parameters": PLAIN | {"mrope_section": [2, 3, 3]}}, "rope_parameters.mrope_section = [2, 3, 3]"),
        ({"rope_parameters": {"full_attention": {"type": "llama3"}}}, "rope_parameters.full_attention.type = 'llama3'"),
        ({"rope_scaling": "default"}, "rope_scaling = 'default'"),
        ({"use_sliding_window": True}, "use_sliding_window = True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"layer_types": "full_attention"}, "layer_types"),
        ({"attention_bias": False}, "attention_bias = False"),
        ({"attention_bias_o": True}, "attention_bias_o = True"),
        ({"attention_bias_qkv": False}, "attention_bias_qkv = False"),
        ({"mlp_bias": True}, "mlp_bias = True"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings = True"),
        ({"qk_norm": False}, "qk_norm = False"),
        ({"attention_dropout": 0.1}, "attention_dropout = 0.1"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"model_type": "llama"}, "model_type = 'llama'"),
        ({"is_causal": False}, "is_causal = False"),
        ({"layer_module": "Qwen2MoEDecoderLayer"}, "layer_module = 'Qwen2MoEDecoderLayer'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"head_dim": 32}, "head_dim"),
    ],
)  # fmt: skip
def test_what_would_change_the_decoder_is_refused_by_name(read, change, word):
    with pytest.raises(ValueError, match=r"llm_config\.json: ") as caught:
        read(change)
    text = str(caught.value)
    assert word in text and "\n" not in text and text.endswith("."), text


@pytest.mark.parametrize(
    "change, word",
    [
        ({"rope": True}, "rope = True"),
        ({"model_type": "clip_vision_model"}, "model_type = 'clip_vision_model'"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"attention_dropout": 0.5}, "attention_dropout = 0.5"),
        ({"num_channels": 1}, "num_channels = 1"),
        ({"patch_size": [8, 4]}, "patch_size = [8, 4]"),
        ({"image_size": [64]}, "image_size = [64]"),
    ],
)
def test_what_would_change_the_vision_encoder_is_refused_by_name(read, change, word):
    with pytest.raises(ValueError, match=r"vit_config\.json: ") as caught:
        read(vit=change)
    assert word in str(caught.value)


def test_a_file_of_the_whole_may_not_ask_for_what_is_not_built(read, tmp_path):
    for said, word in (({"interpolate_pos": True}, "interpolate_pos = True"), ({"connector_act": "relu"}, "connector_act")):
        (tmp_path / "config.json").write_text(json.dumps(said))
        with pytest.raises(ValueError, match=rf"config\.json: {word}"):
            read()
    (tmp_path / "config.json").write_text('{"interpolate_pos": false, "connector_act": "gelu_pytorch_tanh", "note": "a"}')
    assert read() is not None


@pytest.mark.parametrize("file", ["llm", "vit"])
def test_a_number_that_is_written_as_text_is_refused_as_such(read, file):
    name = "rms_norm_eps" if file == "llm" else "layer_norm_eps"
    with pytest.raises(ValueError, match=rf"^\S+{file}_config.json: {name} = '1e-6', but it must be a number above 0"):
        read(**{file: {name: "1e-6"}})


def test_an_absent_size_is_that_of_the_class_that_wrote_the_file(read, monkeypatch):
    monkeypatch.setattr(layout, "_check_layers", lambda *_: None)  # the toy holds fewer tensors than 32 layers
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads")  # fmt: skip
    c = read(dict.fromkeys(names, ...), dict.fromkeys(
        ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "patch_size", "image_size"), ...))
    assert (c.vocab_size, c.hidden_size, c.intermediate_size, c.layers, c.heads, c.kv_heads) == QWEN2
    v = c.vision  # SiglipVisionConfig(): 12 layers, of which BAGEL leaves out the last; 224 pixels in patches of 16
    assert (v.hidden_size, v.intermediate_size, v.heads, v.layers, v.patch, v.table_side) == (768, 3072, 12, 11, 16, 14)
    assert (c.rms_norm_eps, v.layer_norm_eps) == (1e-6, 1e-6)


def test_null_key_and_value_heads_are_as_many_as_heads_and_absent_ones_the_class_s(read):
    assert read({"num_key_value_heads": None}).kv_heads == 4
    with pytest.raises(ValueError, match="heads = 4 is not a multiple of kv_heads = 32"):
        read({"num_key_value_heads": ...})


def test_names_that_nothing_knows_are_listed_by_file(read, tmp_path):
    read({"logit_softcap": 30.0, "use_mrope\n": True, "sparse": None}, {"pooler": "mean"})
    assert layout.unknown_settings(tmp_path) == ["llm_config.json: logit_softcap, use_mrope\\n", "vit_config.json: pooler"]
    read({f"a{i}": i for i in range(25)})
    assert layout.unknown_settings(tmp_path)[0].endswith("a19, and 5 more")


@pytest.mark.parametrize("path, vision", [(None, False), ("shapes_few_base", False), ("rounds_base", True), ("tiny", True)])
def test_the_folders_in_the_package_hold_nothing_unknown(path, vision):
    folder = find_folder(path)
    assert layout.unknown_settings(folder) == [] and (folder / "vit_config.json").exists() == vision


def test_the_card_of_a_run_lists_what_is_not_read(toy, tmp_path):
    world = types.SimpleNamespace(facts=(), unread=())
    mesh = jax.make_mesh((1,), ("data",))
    parts = types.SimpleNamespace(config=RunConfig(), loaded=toy, world=world, layout=types.SimpleNamespace(mesh=mesh))
    assert toy.unknown_settings == () and "model settings not read" not in dict(card(parts, tmp_path, 0))
    unknown = ("llm_config.json: a, b", "vit_config.json: c")
    parts.loaded = dataclasses.replace(toy, unknown_settings=unknown, unread_files=("x.pt",))
    assert dict(card(parts, tmp_path, 0))["model files not read"] == "x.pt"
    assert dict(card(parts, tmp_path, 0))["model settings not read"] == "llm_config.json: a, b; vit_config.json: c"
