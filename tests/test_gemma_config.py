"""Gemma 3 by its config.json, of either version of transformers: sizes, and what would be another network."""

import json
import pathlib

import pytest

from unigrpo_jax.models.folders import component
from unigrpo_jax.models.folders.rope_settings import Rope
from unigrpo_jax.models.text_encoders.gemma import Gemma, read_gemma


def config_of(folder: pathlib.Path) -> dict:
    return json.loads((folder / "text_encoder" / "config.json").read_text())


@pytest.fixture
def folder(fixtures):
    """The recorded model's."""
    return fixtures / "ltx2" / "pipeline"


def millions(network: Gemma) -> tuple[int, int]:
    """Of parameters, in the embedding and elsewhere."""
    embedding = network.vocabulary * network.width
    return embedding // 10**6, round((component.count(network) - embedding) / 1e6)


@pytest.mark.parametrize(
    "published, others, full",
    [
        ({"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}, 3209, 5),
        ({"hidden_size": 3840, "intermediate_size": 15360, "num_hidden_layers": 48, "num_attention_heads": 16,
          "num_key_value_heads": 8}, 10759, 8),
        ({"hidden_size": 5376, "intermediate_size": 21504, "num_hidden_layers": 62, "num_attention_heads": 32,
          "num_key_value_heads": 16, "head_dim": 128, "query_pre_attn_scalar": 168}, 25600, 10),
    ],
    ids=["4B", "12B", "27B"],
)  # fmt: skip
def test_published_files_leave_most_out_and_have_the_report_s_numbers_of_parameters(tmp_path, published, others, full):
    """Non-embedding parameters in table 1 of arXiv 2503.19786; the files name what differs from the class alone."""
    text = {"model_type": "gemma3_text", "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text | published}))
    network = read_gemma(tmp_path / "config.json", "text_encoder")
    embedding, found = millions(network)
    assert found == others and embedding == 262208 * network.width // 10**6
    assert sum(network.full) == full and [i for i, every in enumerate(network.full) if every][:2] == [5, 11]
    assert (network.rope, network.near_rope, network.window) == (Rope(1e6, 8.0), Rope(1e4), 1024)
    assert network.scale == published.get("query_pre_attn_scalar", 256) ** -0.5


def test_a_config_without_names_has_the_class_s_defaults(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gemma3_text", "layer_types": null, "rope_scaling": null}')
    found = read_gemma(tmp_path / "config.json", "text_encoder")
    assert found == Gemma(vocabulary=262208, width=2304, heads=8, kv_heads=4, head_dim=256, mlp=9216, window=4096,
                          full=tuple(i % 6 == 5 for i in range(26)), scale=1 / 16, rope=Rope(1e6), near_rope=Rope(1e4),
                          norm_eps=1e-6)  # fmt: skip


def without(text: dict, *names: str) -> dict:
    return {name: value for name, value in text.items() if name not in names}


OLD = ("rope_theta", "rope_scaling", "rope_local_base_freq", "sliding_window_pattern", "_sliding_window_pattern")
NEW = ("rope_parameters", "layer_types")


@pytest.mark.parametrize("left", [OLD, NEW, ()], ids=["version 5", "version 4", "both"])
@pytest.mark.parametrize("inside", [True, False])
def test_configs_of_both_versions_and_of_the_language_model_alone_are_the_same_network(folder, tmp_path, left, inside):
    data = config_of(folder)
    text = without(data["text_config"], *left)
    (tmp_path / "config.json").write_text(json.dumps(data | {"text_config": text} if inside else text))
    found = read_gemma(tmp_path / "config.json", "text_encoder")
    assert found == read_gemma(folder / "text_encoder" / "config.json", "text_encoder")
    turns, kinds = (data["text_config"][name] for name in NEW)
    rope = lambda kind: Rope(turns[kind]["rope_theta"], turns[kind].get("factor", 1.0))
    assert (found.rope, found.near_rope) == (rope("full_attention"), rope("sliding_attention"))
    assert found.full == tuple(kind == "full_attention" for kind in kinds)


def test_types_of_layers_count_before_a_pattern_and_each_may_have_its_factor(folder, tmp_path):
    data = config_of(folder)["text_config"]
    types_of = ["sliding_attention" if i % 2 else "full_attention" for i in range(data["num_hidden_layers"])]
    turns = {"full_attention": {"rope_theta": 5e5}, "sliding_attention": {"rope_theta": 2e4, "type": "linear", "factor": 2}}
    text = without(data, *OLD) | {"sliding_window_pattern": 2, "layer_types": types_of}
    (tmp_path / "config.json").write_text(json.dumps(text | {"rope_parameters": turns}))
    found = read_gemma(tmp_path / "config.json", "text_encoder")
    assert found.full == tuple(i % 2 == 0 for i in range(len(types_of)))
    assert (found.rope, found.near_rope) == (Rope(5e5), Rope(2e4, 2.0))


@pytest.mark.parametrize(
    "data, words",
    [
        ({"model_type": "gemma2"}, "model_type = 'gemma2', but this network knows only 'gemma3' or 'gemma3_text'"),
        ({"model_type": "gemma3"}, "text_config = None, but a model of type 'gemma3' has its language model there"),
        ({"text_config": {"model_type": "gemma3n_text"}}, "text_config.model_type = 'gemma3n_text', but this network knows"),
        ({"text_config": {"head_dim": 7}}, "text_config.head_dim = 7, but the 7 numbers of a head are turned in pairs"),
        ({"text_config": []}, "text_config = [], but it must be a mapping"),
        ({"hidden_activation": "silu"}, "hidden_activation = 'silu', but this network knows only 'gelu_pytorch_tanh'"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0, but this network does not have that"),
        ({"attention_bias": True}, "attention_bias = True, but this network knows only False"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention = True, but this network knows only False"),
        ({"num_key_value_heads": 5}, "num_key_value_heads = 5, but it must divide num_attention_heads = 8"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0"),
        ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar = 0"),
        ({"sliding_window": None}, "sliding_window = None, but layers of sliding_attention need a number of tokens"),
        ({"sliding_window": 0}, "sliding_window = 0"),
        ({"sliding_window_pattern": 0}, "sliding_window_pattern = 0"),
        ({"layer_types": ["full_attention"]}, "but it must name one type for each of num_hidden_layers = 26"),
        ({"layer_types": ["chunked_attention"] * 26}, "it must be a list of full_attention and sliding_attention"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 8.0}}, "rope_scaling.rope_type = 'yarn', but this network knows"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor = None, but rope_type = 'linear' needs one"),
        ({"rope_scaling": {"factor": 8.0}}, "positions are divided by one only where rope_type = 'linear'"),
        ({"rope_scaling": {"rope_type": "linear", "type": "default", "factor": 8.0}}, "type says another one"),
        ({"rope_scaling": {"mrope_section": [1]}}, "rope_scaling.mrope_section = [1], but the rotary angles of this"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5, but this network knows only 1"),
        ({"rope_parameters": {"rope_theta": 1e6}}, "each type of layer of this network has a mapping of its own there"),
        ({"rope_parameters": {"full_attention": {"low_freq_factor": 1}}}, "full_attention.low_freq_factor = 1, but the"),
        ({"rope_theta": 1e4, "rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
         "the base of full_attention is 10000 and 1e+06 in different places; keep the one that is meant"),
        ({"rope_local_base_freq": 5.0, "rope_parameters": {"sliding_attention": {"rope_theta": 1e4}}},
         "the base of sliding_attention is 5 and 10000 in different places"),
        ({"rope_scaling": {"type": "linear", "factor": 8}, "rope_parameters": {"full_attention": {"rope_type": "default"}}},
         "the factor of full_attention is 1 and 8 in different places"),
    ],
)  # fmt: skip
def test_what_would_be_another_network_is_refused(tmp_path, data, words):
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(ValueError) as error:
        read_gemma(tmp_path / "config.json", "text_encoder")
    assert words in str(error.value) and "\n" not in str(error.value)
