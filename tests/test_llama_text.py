"""Llama as HunyuanVideo's text encoder: recorded states, the template around a prompt and its crop, and CLIP beside it."""

import json
import pathlib
import shutil
import types

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from unigrpo_jax.config import ConfigError, EmbeddingsConfig
from unigrpo_jax.models.building.flat import rms_norm
from unigrpo_jax.models.folders import component, toys
from unigrpo_jax.models.text_encoders.codec import EmbeddingCodec, KnownTexts
from unigrpo_jax.models.text_encoders.coder import Template
from unigrpo_jax.models.text_encoders.encoder import SKIPPED, VIDEO, open_hunyuan_video
from unigrpo_jax.models.text_encoders.llama import Llama, read_llama

PARTS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")


@pytest.fixture(scope="module")
def recorded(fixtures):
    """The folder, what was asked of the public pipeline, its prompts inside the template, and what it said."""
    own = fixtures / "hunyuan_video"
    settings = json.loads((own / "settings.json").read_text())
    assert settings["hidden_layers_to_skip"] == SKIPPED
    return types.SimpleNamespace(
        folder=own / "pipeline",
        tokens=settings["max_sequence_length"],
        crop=settings["crop_start"],
        template=Template(*settings["template"].split("{}")),
        prompts=settings["prompts"],
        whole=settings["template"].format,
        said=dict(np.load(own / "text.npz")),
    )


def opened(recorded, folder=None, dtype="float32", **changes):
    settings = {"tokens": recorded.tokens, "template": recorded.template} | changes
    return open_hunyuan_video(folder or recorded.folder, dtype, **settings)


@pytest.fixture(scope="module")
def encoders(recorded):
    return opened(recorded)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A folder with random weights, whose tokenizer knows the words of the published template."""
    folder = tmp_path_factory.mktemp("toy")
    toys.save_llama(folder, "a toy", 0)
    toys.save_clip(folder, "a toy", 1, "_2")
    return folder


@pytest.fixture
def copy(recorded, tmp_path):
    """A copy of the recorded folder that may be changed."""
    for name in PARTS:
        shutil.copytree(recorded.folder / name, tmp_path / name, copy_function=shutil.copyfile)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def change(path: pathlib.Path, **settings):
    data = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({name: value for name, value in data.items() if value is not ...}))


def refusal(read) -> str:
    with pytest.raises((ValueError, ConfigError)) as error:
        read()
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- the network


@pytest.fixture(scope="module")
def whole(recorded):
    """All layers: the network, its parameters, and its jitted pass."""
    own = recorded.folder / "text_encoder"
    network = read_llama(own / "config.json", "text_encoder")
    params = component.read(component.open_weights(own, component.TRANSFORMERS, network), network, np.float32)
    with jax.default_matmul_precision("highest"):
        yield network, params, jax.jit(network.__call__)


def test_recorded_states_after_every_layer(whole, recorded, assert_close):
    network, params, run = whole
    last, states = run(params, recorded.said["llama_input_ids"], recorded.said["llama_attention_mask"])
    found = recorded.said["llama_hidden_states"]
    for layer, state in enumerate(found[:-1]):
        assert_close(states[layer], state, name=f"after {layer} layers")
    assert_close(rms_norm(params, "norm", states[-1], network.norm_eps), found[-1], name="after the norm")
    assert (last == states[-1]).all()


def test_padding_on_either_side_and_what_stands_in_it_change_no_state_of_a_token(whole, recorded, assert_close):
    _, params, run = whole
    ids, kept = recorded.said["llama_input_ids"], recorded.said["llama_attention_mask"].sum(axis=1) - 1
    mask = (np.arange(ids.shape[1]) < kept[:, None]).astype(int)  # some padding even behind the longest
    other = np.where(mask != 0, ids, 0)
    left = [np.stack([np.roll(row, -count) for row, count in zip(x, kept, strict=True)]) for x in (other, mask)]
    states, moved = run(params, ids, mask)[1][-1], run(params, *left)[1][-1]
    again = run(params, other, mask)[1][-1]
    for row, count in enumerate(kept):
        assert_close(moved[row, -count:], states[row, :count], name="padded on the left")
        assert (again[row, :count] == states[row, :count]).all()


def by_hand(network: Llama, params, ids, seen):
    """One text [L] through all layers, float64, token by token and head by head."""
    params = {name: np.asarray(x, np.float64) for name, x in params.items()}
    norm = lambda x, weight: x / np.sqrt((x**2).mean(-1, keepdims=True) + network.norm_eps) * weight
    half, x = network.head_dim // 2, params["embed_tokens.weight"][ids]
    turn = np.exp(1j * np.arange(len(ids))[:, None, None] * network.theta ** (-np.arange(half) / half))

    def turned(x):
        x = (x[..., :half] + 1j * x[..., half:]) * turn
        return np.concatenate([x.real, x.imag], axis=-1)

    for layer in range(network.layers):
        own = lambda name, layer=layer: params[f"layers.{name}.weight"][layer]
        heads = lambda h, which, own=own: (h @ own(f"self_attn.{which}_proj").T).reshape(len(ids), -1, network.head_dim)
        h = norm(x, own("input_layernorm"))
        q, k, v = turned(heads(h, "q")), turned(heads(h, "k")), heads(h, "v")
        mixed = np.zeros(q.shape)
        for token in range(len(ids)):
            keys = [key for key in range(token + 1) if seen[key]]
            for head in range(network.heads if keys else 0):
                shared = head // (network.heads // network.kv_heads)
                weights = np.exp(k[keys, shared] @ q[token, head] / np.sqrt(network.head_dim))
                mixed[token, head] = weights @ v[keys, shared] / weights.sum()
        x = x + mixed.reshape(len(ids), -1) @ own("self_attn.o_proj").T
        h = norm(x, own("post_attention_layernorm"))
        gate = h @ own("mlp.gate_proj").T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ own("mlp.up_proj").T)) @ own("mlp.down_proj").T
    return x


def test_sizes_that_nothing_binds_to_each_other_agree_with_the_formulas_by_hand(assert_close):
    network = Llama(vocabulary=11, width=10, heads=6, kv_heads=3, head_dim=4, mlp=9, layers=2, theta=100.0, norm_eps=1e-2)
    rng = np.random.default_rng(0)
    params = {name: 0.5 * rng.standard_normal(shape, np.float32) for name, shape in network.shapes().items()}
    ids, mask = rng.integers(0, 11, (2, 9)), np.ones((2, 9), int)
    mask[0, 6:] = mask[1, :3] = 0
    with jax.default_matmul_precision("highest"):
        found = jax.jit(network.__call__)(params, ids, mask)[0]
    for row in range(2):
        kept = mask[row] != 0
        assert_close(found[row, kept], by_hand(network, params, ids[row], mask[row])[kept], name=f"row {row}")


def test_every_name_and_shape_of_the_published_size(fixtures):
    published = json.loads((fixtures / "hunyuan_video" / "param_shapes_full.json").read_text())["shapes"]["text_encoder"]
    network = Llama(vocabulary=128320, width=4096, heads=32, kv_heads=8, head_dim=128, mlp=14336, layers=32, theta=5e5,
                    norm_eps=1e-5)  # fmt: skip
    assert component.wanted(network) == {name: tuple(shape) for name, shape in published.items()}


def test_a_config_without_names_has_the_class_s_defaults(tmp_path):
    (tmp_path / "config.json").write_text('{"num_key_value_heads": null}')
    found = read_llama(tmp_path / "config.json", "text_encoder")
    assert found == Llama(vocabulary=32000, width=4096, heads=32, kv_heads=32, head_dim=128, mlp=11008, layers=32, theta=1e4,
                          norm_eps=1e-6)  # fmt: skip


LLAMA_3_1 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
             "original_max_position_embeddings": 8192}  # fmt: skip


@pytest.mark.parametrize(
    "data, words",
    [
        ({"model_type": "mistral"}, "model_type = 'mistral', but this network knows only 'llama'"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu', but this network knows only 'silu'"),
        ({"attention_bias": True}, "attention_bias = True, but this network knows only False"),
        ({"mlp_bias": True}, "mlp_bias = True, but this network knows only False"),
        ({"num_key_value_heads": 5}, "num_key_value_heads = 5, but it must divide num_attention_heads = 32"),
        ({"num_attention_heads": 5}, "num_attention_heads = 5, but it must divide hidden_size = 4096"),
        ({"head_dim": 7}, "head_dim = 7, but"),
        ({"hidden_size": 96}, "head_dim = None, but the 3 numbers of a head are turned in pairs"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0"),
        ({"rms_norm_eps": 0}, "rms_norm_eps = 0"),
        ({"rope_scaling": LLAMA_3_1}, "rope_scaling.low_freq_factor = 1.0, but the rotary angles of this network have no"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters.rope_type = 'yarn', but this network knows only"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling.factor = 2.0, but this network knows only 1"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}}, "rope_theta is 10000 and 500000 in different places"),
    ],
)
def test_what_would_be_another_network_is_refused(tmp_path, data, words):
    (tmp_path / "config.json").write_text(json.dumps(data))
    assert words in refusal(lambda: read_llama(tmp_path / "config.json", "text_encoder"))


# ---- template and crop


def test_recorded_ids_of_both_encoders_and_the_crop(encoders, recorded):
    llama, clip = (part.coder for part in encoders.parts)
    assert llama.crop == recorded.crop and clip.crop == 0
    ids, mask = llama(recorded.prompts)
    np.testing.assert_array_equal(ids, recorded.said["llama_input_ids"])
    np.testing.assert_array_equal(mask, recorded.said["llama_attention_mask"])
    np.testing.assert_array_equal(clip(recorded.prompts)[0], recorded.said["clip_input_ids"])


@pytest.mark.parametrize(
    "settings",
    [
        {"tokenizer_class": "LlamaTokenizerFast"},
        {"tokenizer_class": "LlamaTokenizer", "padding_side": "left"},
        {"padding_side": ..., "tokenizer_class": ...},
        {"model_max_length": 8, "truncation_side": "left"},
        {"model_max_length": ...},
    ],
    ids=str,
)
def test_the_class_the_side_and_the_length_that_a_tokenizer_s_config_names_change_no_id(copy, recorded, settings):
    change(copy / "tokenizer" / "tokenizer_config.json", **settings)
    ids, mask = opened(recorded, copy).parts[0].coder(recorded.prompts)
    np.testing.assert_array_equal(ids, recorded.said["llama_input_ids"])
    np.testing.assert_array_equal(mask, recorded.said["llama_attention_mask"])


def test_a_longer_prompt_is_cut_behind_its_first_tokens_as_the_public_pipeline_cuts_it(encoders, recorded):
    """It pads and cuts the whole text, the template's end with it, to the crop and the tokens."""
    coder, longest = encoders.parts[0].coder, recorded.crop + recorded.tokens
    texts = ["", "the cat", *("x" * more + "y" for more in range(recorded.tokens - 3, recorded.tokens + 2)), "cat " * 100,
             "\n\nthe\n", "{} {0} {cat}", "\u732b \u202e"]  # fmt: skip
    public = coder.tokenizer([recorded.whole(text) for text in texts], max_length=longest, padding="max_length",
                             truncation=True)  # fmt: skip
    ids, mask = coder(texts)
    np.testing.assert_array_equal(ids, public["input_ids"])
    np.testing.assert_array_equal(mask, public["attention_mask"])
    end = coder.tokenizer.convert_tokens_to_ids("<|eot_id|>")
    for row, text in enumerate(texts[2:7]):  # bytes and the end: one to the last of them fit
        assert coder.lengths([text]) == [len(text) + 1]
        assert (ids[2 + row, -1] == end) == (len(text) + 1 == recorded.tokens)
    said = []
    codec = EmbeddingCodec(encoders=encoders, kept=EmbeddingsConfig(), notice=said.append)
    codec.check_lengths([texts[3]], 1)
    assert said == []
    codec.check_lengths(texts[3:5], 1, lambda row: f"line {row}")
    assert f"(line 1) has {recorded.tokens + 1} tokens; Llama reads the first {recorded.tokens}," in said.pop() and not said


@pytest.mark.parametrize("tokens", [3, 4])
def test_a_folder_may_say_that_fewer_tokens_of_a_prompt_are_read(copy, recorded, tokens):
    change(copy / "text_encoder" / "config.json", prompt_tokens=tokens)
    coder = opened(recorded, copy).parts[0].coder
    ids, _ = coder(recorded.prompts)
    assert coder.tokens == tokens and ids.shape[1] == recorded.crop + tokens
    fits = recorded.said["llama_attention_mask"].sum(1) <= recorded.crop + tokens
    np.testing.assert_array_equal(ids[fits], recorded.said["llama_input_ids"][fits][:, : recorded.crop + tokens])


def test_a_folder_that_says_more_tokens_than_are_read_changes_nothing(copy, recorded):
    change(copy / "text_encoder" / "config.json", prompt_tokens=recorded.tokens + 1)
    assert opened(recorded, copy).parts[0].coder.tokens == recorded.tokens


def test_fewer_tokens_than_what_follows_a_prompt_leaves_room_for_are_refused(copy, recorded):
    change(copy / "text_encoder" / "config.json", prompt_tokens=1)
    words = "prompt_tokens = 1, but with what follows every prompt it must be at least 2."
    assert words in refusal(lambda: opened(recorded, copy))


def test_control_tokens_that_a_prompt_names_are_its_letters(encoders, recorded):
    coder, said = encoders.parts[0].coder, "a<|eot_id|>"
    ids, mask = coder([said, said * 50])
    end = coder.tokenizer.convert_tokens_to_ids("<|eot_id|>")
    letters = [coder.tokenizer.convert_tokens_to_ids(letter) for letter in said]
    row = ids[0, recorded.crop : mask[0].sum()].tolist()
    assert row == [*letters, end][: recorded.tokens] and coder.lengths([said]) == [len(said) + 1]
    assert ids[0, : recorded.crop].tolist() == recorded.said["llama_input_ids"][0, : recorded.crop].tolist()
    assert mask[1].all() and end not in ids[1, recorded.crop :]


def test_ninety_five_tokens_of_the_published_template_stand_before_a_prompt(toy):
    """The number that the public pipeline crops: in Llama 3's vocabulary, too, each word of the template is one token."""
    encoders = open_hunyuan_video(toy, "bfloat16", 256)
    coder = encoders.parts[0].coder
    ids, mask = coder(["a red circle"])
    tokens = coder.tokenizer.convert_ids_to_tokens(ids[0, : mask[0].sum()])
    blank, line = "\u0120", "\u010a"
    assert coder.crop == 95 and tokens[0] == "<|begin_of_text|>"
    assert tokens[1:5] == ["<|start_header_id|>", "system", "<|end_header_id|>", 2 * line]
    assert tokens[5:8] == ["Describe", f"{blank}the", f"{blank}video"] and "".join(tokens[24:28]) == f"{blank}video.2."
    assert tokens[90:95] == ["<|eot_id|>", "<|start_header_id|>", "user", "<|end_header_id|>", 2 * line]
    assert tokens[95:] == ["a", f"{blank}red", f"{blank}circle", "<|eot_id|>"]
    assert (coder(["\ncat"])[0][0, :94] == ids[0, :94]).all()  # whose line break becomes one token with the template's
    codec = EmbeddingCodec(encoders=encoders, kept=EmbeddingsConfig())
    assert codec.shapes(3, 7) == KnownTexts(states=(256, 24), pooled=24, masked=True, dtype="bfloat16").shapes(3, 7)
    assert (codec.shapes(3, 7).mask.shape, codec.shapes(3, 7).mask.dtype, codec.bucket(["a"])) == ((3, 256), bool, 256)


def test_a_toy_is_the_same_wherever_it_is_made(toy, tmp_path):
    toys.save_llama(tmp_path, "a toy", 0)
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 5 and all((tmp_path / file).read_bytes() == (toy / file).read_bytes() for file in files)


# ---- both encoders


def test_recorded_states_mask_and_pooled_with_those_of_the_empty_prompt_also_from_disk(
    encoders, recorded, tmp_path, assert_close
):
    make = lambda: EmbeddingCodec(encoders=encoders, kept=EmbeddingsConfig(folder=str(tmp_path)), guided=True,
                                  notice=lambda words: None)  # fmt: skip
    text, said = make().prompts(recorded.prompts, 0), recorded.said
    for found, which in ((text, ""), (text.empty, "neg_")):
        assert_close(found.states, said[f"{which}prompt_embeds"], name=f"{which}states")
        assert found.mask.dtype == bool
        np.testing.assert_array_equal(found.mask, said[f"{which}prompt_mask"] != 0)
        assert_close(found.pooled, said[f"{which}clip_pooled"], name=f"{which}pooled")
    sizes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert sizes(text) == sizes(make().shapes(len(recorded.prompts), 0))
    again = make().prompts(recorded.prompts, 0)
    assert jax.tree.all(jax.tree.map(lambda a, b: a.dtype == b.dtype and a.tobytes() == b.tobytes(), again, text))
    doubled = text.repeat(2)
    assert doubled.mask.shape == (2 * len(recorded.prompts), recorded.tokens)


def test_bfloat16_states_are_near_and_leave_the_mask_alone(recorded, assert_close):
    encoders = opened(recorded, dtype="bfloat16")
    with encoders.on_devices() as encode:
        found = encode(recorded.prompts)
    for row, one in enumerate(found):
        assert one["states"].dtype == one["pooled"].dtype == ml_dtypes.bfloat16 and one["mask"].dtype == bool
        assert_close(one["states"], recorded.said["prompt_embeds"][row], limit=0.05)
        assert (one["mask"] == recorded.said["prompt_mask"][row]).all()


def test_the_last_layers_are_checked_but_not_loaded(encoders, recorded, copy):
    llama = encoders.parts[0]
    layers = json.loads((recorded.folder / "text_encoder" / "config.json").read_text())["num_hidden_layers"]
    names = set(component.wanted(llama.network))
    assert llama.weights.names() - names == {name for name in llama.weights.names()
                                             if name.startswith(tuple(f"layers.{layers - i}." for i in (1, 2)))}  # fmt: skip
    path = copy / "text_encoder" / "model.safetensors"
    tensors, lost = load_file(path), f"layers.{layers - 1}.mlp.up_proj.weight"
    buffer = {"layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}  # which older files hold
    save_file(tensors | buffer, path)
    opened(recorded, copy)
    save_file({name: x for name, x in tensors.items() if name != lost} | {"lm_head.weight": np.ones((2, 2))}, path)
    words = refusal(lambda: opened(recorded, copy))
    assert f"missing layers.{layers - 1}.mlp.up_proj.weight" in words and "unknown lm_head.weight" in words


def test_another_template_or_length_is_another_encoder_on_disk(encoders, recorded):
    before, behind = recorded.template
    templates = Template(before, "\n" + behind), Template(before[:-1], behind)
    others = [opened(recorded, template=other) for other in templates]
    others += [opened(recorded, tokens=recorded.tokens - 1), opened(recorded, dtype="bfloat16")]
    assert len({encoders.key, *(other.key for other in others)}) == 5 and opened(recorded).key == encoders.key


def test_a_folder_that_does_not_fit_is_a_sentence(copy, recorded):
    tokenizer = copy / "tokenizer" / "tokenizer.json"
    stored = tokenizer.read_text()
    tokenizer.write_text(stored.replace("<|end_header_id|>", "<|end_header|>"))
    assert "lacks <|end_header_id|>, which stand around every prompt" in refusal(lambda: opened(recorded, copy))
    tokenizer.unlink()
    (copy / "tokenizer" / "vocab.json").write_text("{}")
    assert "holds no tokenizer (tokenizer.json)" in refusal(lambda: opened(recorded, copy))
    tokenizer.write_text(stored)
    change(copy / "tokenizer" / "tokenizer_config.json", pad_token=...)
    assert "has no padding token" in refusal(lambda: opened(recorded, copy))
    (copy / "text_encoder_2" / "config.json").unlink()
    (copy / "tokenizer" / "tokenizer_config.json").write_bytes(
        (recorded.folder / "tokenizer" / "tokenizer_config.json").read_bytes()
    )
    assert "such a model holds text_encoder, text_encoder_2" in refusal(lambda: opened(recorded, copy))


def test_too_few_layers_to_leave_some_out_are_refused(toy, tmp_path):
    shutil.copytree(toy / "text_encoder", tmp_path / "text_encoder")
    change(tmp_path / "text_encoder" / "config.json", num_hidden_layers=2)
    path = tmp_path / "text_encoder" / "model.safetensors"
    save_file({name: x for name, x in load_file(path).items() if not name.startswith("layers.2.")}, path)
    words = refusal(lambda: open_hunyuan_video(tmp_path, "float32", 16, VIDEO))
    assert "num_hidden_layers = 2, but the states before the last 2 layers are read, so it must be at least 3" in words
