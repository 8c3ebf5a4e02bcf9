"""CLIP folders: whole or in shards, in every dtype, of old and new versions; and what is wrong with one, in a sentence."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh
from safetensors.numpy import load_file, save_file

from tests.clip_oracle import END, make_folder
from unigrpo_jax.config import ConfigError, RunConfig
from unigrpo_jax.models.tree import flatten
from unigrpo_jax.rewards.clip_weights import DEVICES, open_clip_folder, read_config
from unigrpo_jax.rewards.load import load_reward

LAYER = "vision_model.encoder.layers"


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "clip")


def params(folder, count=1, cut=False):
    mesh = Mesh(np.array(jax.devices()[:count]), (DEVICES,))
    return flatten(open_clip_folder(folder).params(mesh, cut))


def change(folder, **tensors):
    """Replaces tensors, or takes away those that are None."""
    kept = load_file(folder / "model.safetensors")
    for name, value in tensors.items():
        kept.pop(name, None)
        if value is not None:
            kept[name] = value
    save_file(kept, folder / "model.safetensors")


def configure(folder, part=None, **settings):
    config = json.loads((folder / "config.json").read_text())
    (config if part is None else config[part]).update(settings)
    (folder / "config.json").write_text(json.dumps(config))


def fails(folder, *words, name="clipscore"):
    with pytest.raises(ConfigError) as caught:
        load_reward(f"{name}:{folder}", RunConfig())
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_shards_hold_the_same_as_one_file(folder):
    whole, tensors = params(folder), load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(files.values()):
        save_file({name: x for name, x in tensors.items() if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    shards = params(folder)
    assert set(shards) == set(whole) and all((np.asarray(shards[p]) == np.asarray(whole[p])).all() for p in whole)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_every_dtype_of_a_file_becomes_float32(folder, dtype):
    tensors = load_file(folder / "model.safetensors")
    save_file({name: x.astype(dtype) for name, x in tensors.items()}, folder / "model.safetensors")
    found = params(folder)
    assert all(x.dtype == np.float32 for x in found.values())
    wanted = tensors[f"{LAYER}.1.mlp.fc1.weight"].astype(dtype).astype(np.float32).T
    np.testing.assert_array_equal(found["vision/layers/fc1/kernel"][1], wanted)


@pytest.mark.parametrize("count", [3, 8])
def test_cut_parameters_hold_the_same_and_a_width_that_does_not_divide_stays_whole(folder, count):
    """The towers are 32 and 48 wide: eight devices cut both, three only the second."""
    whole, cut = params(folder), params(folder, count, True)
    assert all((np.asarray(cut[p]) == np.asarray(whole[p])).all() for p in whole)
    parts = lambda path: cut[path].size // cut[path].addressable_shards[0].data.size
    assert parts("vision/layers/out_proj/kernel") == parts("vision/patch_embedding") == count
    assert parts("text/token_embedding") == (8 if count == 8 else 1)
    assert parts("vision/layers/norm1/scale") == parts("logit_scale") == 1


def test_buffers_of_older_files_are_left_alone(folder):
    change(folder, **{"text_model.embeddings.position_ids": np.arange(8)[None]})
    assert "text/position_ids" not in params(folder)


def test_a_config_that_names_only_what_is_not_the_default_is_that_of_the_first_clip(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip", "text_config": {"hidden_size": 256}}))
    config = read_config(tmp_path / "config.json")
    assert (config.text.width, config.text.layers, config.text.heads, config.text.mlp) == (256, 12, 8, 2048)
    assert (config.vision.width, config.image, config.patch, config.space) == (768, 224, 32, 512)
    assert (config.vocabulary, config.tokens, config.eos, config.text.activation) == (49408, 77, 49407, "quick_gelu")


def test_the_settings_that_old_files_hold_twice_count_as_transformers_counts_them(folder):
    """The second copy overrules the first, with the defaults for what it leaves out."""
    config = json.loads((folder / "config.json").read_text())
    second = {name: config["text_config"][name] for name in ("hidden_size", "num_attention_heads")}
    configure(folder, text_config_dict=second | {"num_hidden_layers": 5})
    text = read_config(folder / "config.json").text
    assert (text.width, text.layers, text.mlp) == (32, 5, 2048)


@pytest.mark.parametrize("name", ["clipscore", "pickscore", "hpsv2", "aesthetic"])
def test_a_reward_without_its_folder_is_one_sentence(name, tmp_path):
    with pytest.raises(ConfigError, match=f"rewards: {name} needs the folder of its CLIP.*: {name}:FOLDER"):
        load_reward(name, RunConfig())
    fails(tmp_path / "none", f"rewards: {name}", f"there is no folder {tmp_path / 'none'}", name=name)


def test_an_empty_folder_is_one_sentence(tmp_path):
    fails(tmp_path, f"there is neither model.safetensors nor its index in {tmp_path}")


def test_a_folder_without_a_config_is_one_sentence(folder):
    (folder / "config.json").unlink()
    fails(folder, f"{folder / 'config.json'} is not a readable config")


def test_a_folder_without_weights_is_one_sentence(folder):
    (folder / "model.safetensors").unlink()
    fails(folder, f"there is neither model.safetensors nor its index in {folder}")


@pytest.mark.parametrize("file", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin"])
def test_pickles_are_not_opened_and_the_sentence_says_how_to_convert_them(folder, file):
    (folder / "model.safetensors").rename(folder / file)
    fails(folder, f"{folder} holds no model.safetensors but {file}, a pickle", f"from_pretrained('{folder}')")


@pytest.mark.parametrize("file", ["HPS_v2.1_compressed.pt", "epoch_1.pth"])
def test_a_folder_with_open_clips_pickle_alone_is_told_what_makes_a_folder_of_it(tmp_path, file):
    (tmp_path / file).write_bytes(b"pickle")
    made = (tmp_path / file).with_suffix(".safetensors")
    fails(tmp_path, f"{tmp_path} holds no model.safetensors but {file}, a pickle", f"torch.load('{tmp_path / file}'",
          "weights_only=True", f"&& python -m experiments.open_clip {made} OUT --like CLIP", name="hpsv2")  # fmt: skip


def test_a_missing_tensor_is_named(folder):
    change(folder, **{f"{LAYER}.1.mlp.fc1.bias": None, "logit_scale": None})
    fails(folder, "model.safetensors does not fit", f"missing {LAYER}.1.mlp.fc1.bias", "missing logit_scale")


def test_a_tensor_of_another_shape_is_named(folder):
    change(folder, **{f"{LAYER}.0.mlp.fc1.weight": np.zeros((56, 47), np.float32)})
    fails(folder, "model.safetensors", f"{LAYER}.0.mlp.fc1.weight has shape [56, 47], the config asks for [56, 48]")


def test_a_config_of_another_size_is_named_tensor_by_tensor(folder):
    configure(folder, "vision_config", num_hidden_layers=3)
    fails(folder, "config.json", f"missing {LAYER}.2.mlp.fc1.weight")


def test_an_unknown_tensor_is_named(folder):
    change(folder, **{"vision_model.head.weight": np.zeros(3, np.float32)})
    fails(folder, "unknown vision_model.head.weight")


def test_a_damaged_file_is_one_sentence(folder):
    (folder / "model.safetensors").write_bytes(b"no tensors")
    fails(folder, "model.safetensors is not a readable safetensors file")


@pytest.mark.parametrize(
    ("part", "settings", "words"),
    [
        (None, {"model_type": "siglip"}, "model_type = 'siglip', but only 'clip'"),
        ("vision_config", {"hidden_act": "relu"}, "hidden_act = 'relu', but only gelu, quick_gelu"),
        ("vision_config", {"num_channels": 1}, "num_channels = 1, but pictures have 3"),
        ("vision_config", {"num_attention_heads": 5}, "48"),
        ("vision_config", {"patch_size": 17}, "patch_size = 17 is larger than image_size = 16"),
        ("text_config", {"num_hidden_layers": 0}, "num_hidden_layers = 0, but it must be a whole number above 0"),
        ("text_config", {"num_hidden_layers": "two"}, "num_hidden_layers"),
        ("text_config", {"layer_norm_eps": 0.0}, "layer_norm_eps = 0.0, but it must be above 0"),
    ],
)
def test_a_config_that_is_unknown_here_is_one_sentence_that_names_the_setting(folder, part, settings, words):
    configure(folder, part, **settings)
    fails(folder, str(folder / "config.json"), words)


def test_a_tokenizer_that_does_not_fit_is_one_sentence(folder):
    configure(folder, "text_config", eos_token_id=END - 1)
    fails(folder, f"the tokenizer in {folder} does not end a text", f"eos_token_id = {END - 1}")
    configure(folder, "text_config", eos_token_id=END, vocab_size=40)
    change(folder, **{"text_model.embeddings.token_embedding.weight": np.zeros((40, 32), np.float32)})
    fails(folder, f"the tokenizer in {folder} has ids up to {END}, but config.json says vocab_size = 40")
    for file in ("vocab.json", "merges.txt"):
        (folder / file).unlink()
    fails(folder, f"{folder} holds no tokenizer")


HEAD = {"layers.0.weight": (5, 24), "layers.0.bias": (5,), "layers.2.weight": (1, 5), "layers.2.bias": (1,)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers.0.bias": None}, "layers.0.bias is missing"),
        ({"layers.3.bias": (1,)}, "layers.3.weight is missing"),
        ({"scale": (1,)}, "scale is unknown"),
        ({"layers.0.weight": (5, 23)}, "layers.0.weight and layers.0.bias have shapes [5, 23] and [5], but [5, 24] and [5]"),
        ({"layers.2.weight": (2, 5), "layers.2.bias": (2,)}, "have shapes [2, 5] and [2], but [1, 5] and [1] are needed"),
        (dict.fromkeys(HEAD), "weight is missing"),
    ],
)
def test_a_head_that_does_not_fit_is_one_sentence(folder, changes, words):
    shapes = {name: shape for name, shape in (HEAD | changes).items() if shape is not None} or {"bias": (1,)}
    save_file({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, folder / "aesthetic_head.safetensors")
    fails(folder, "aesthetic_head.safetensors", words, name="aesthetic")


def test_a_missing_head_is_one_sentence(folder):
    fails(folder, f"there is neither aesthetic_head.safetensors nor its index in {folder}", name="aesthetic")
    (folder / "sac+logos+ava1-l14-linearMSE.pth").write_bytes(b"pickle")
    fails(folder, "no aesthetic_head.safetensors but sac+logos+ava1-l14-linearMSE.pth, a pickle", "weights_only=True",
          name="aesthetic")  # fmt: skip
