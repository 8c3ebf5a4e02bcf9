"""open_clip's files: a CLIP under its names becomes the folder that it was, bit for bit, and another one is a sentence."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.clip_oracle import make_folder, pictures
from tests.command import command
from unigrpo_jax.config import RunConfig
from unigrpo_jax.rewards.load import load_reward
from unigrpo_jax.rewards.protocol import RewardBatch

BLOCKS = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc",
          "mlp.fc2": "mlp.c_proj"}  # fmt: skip
TOWERS = {"text_model": "transformer", "vision_model": "visual.transformer"}
TOP = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "logit_scale": "logit_scale",
}
NORMS = {"text_model.final_layer_norm": "ln_final", "vision_model.pre_layrnorm": "visual.ln_pre",
         "vision_model.post_layernorm": "visual.ln_post"}  # fmt: skip


def as_open_clip(theirs: dict) -> dict:
    """Tensors of a CLIPModel, laid out and called as in open_clip's source."""
    left, out = dict(theirs), {}
    for name, own in TOP.items():
        out[own] = left.pop(name)
    for name, own in (("text_projection", "text_projection"), ("visual_projection", "visual.proj")):
        out[own] = np.ascontiguousarray(left.pop(f"{name}.weight").T)
    for part in ("weight", "bias"):
        for name, own in NORMS.items():
            out[f"{own}.{part}"] = left.pop(f"{name}.{part}")
        for tower, block in TOWERS.items():
            for i in range(sum(f"{tower}.encoder.layers.{i}.layer_norm1.{part}" in theirs for i in range(9))):
                before, own = f"{tower}.encoder.layers.{i}", f"{block}.resblocks.{i}"
                qkv = [left.pop(f"{before}.self_attn.{letter}_proj.{part}") for letter in "qkv"]
                out[f"{own}.attn.in_proj_{part}"] = np.concatenate(qkv)
                out |= {f"{own}.{b}.{part}": left.pop(f"{before}.{a}.{part}") for a, b in BLOCKS.items()}
    assert not left
    return out


@pytest.fixture
def clip(tmp_path):
    """The folder of a CLIP, and beside it its weights as open_clip's."""
    folder = make_folder(tmp_path / "clip", activation="gelu")
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": 16}))
    save_file(as_open_clip(load_file(folder / "model.safetensors")), tmp_path / "hps.safetensors")
    return folder


def converted(folder, out):
    """The outcome of the command, by a folder without weights."""
    like = shutil.copytree(folder, out.with_name("like"), ignore=shutil.ignore_patterns("*.safetensors"))
    return command("experiments.open_clip", folder.with_name("hps.safetensors"), out, "--like", like)


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, x in wanted.items():
        assert found[name].dtype == x.dtype and found[name].shape == x.shape and found[name].tobytes() == x.tobytes(), name


def test_the_folder_and_its_scores_are_those_of_transformers(clip, tmp_path):
    outcome = converted(clip, tmp_path / "out")
    assert outcome.code == 0 and "out/model.safetensors" in outcome.out, outcome
    assert {p.name: p.read_bytes() for p in clip.iterdir() if p.suffix != ".safetensors"} == {
        p.name: p.read_bytes() for p in (tmp_path / "out").iterdir() if p.suffix != ".safetensors"
    }
    same(load_file(tmp_path / "out" / "model.safetensors"), load_file(clip / "model.safetensors"))
    batch = RewardBatch(prompts=["red cat", "Zoo"], metadata=[{}] * 2, images=pictures(2), thinking=[""] * 2)
    scores = [load_reward(f"hpsv2:{f}", RunConfig(devices=1))(batch)["hpsv2"] for f in (tmp_path / "out", clip)]
    np.testing.assert_array_equal(*scores)


def test_the_recorded_clip_comes_back_in_every_dtype(fixtures, tmp_path):
    """Its tokenizer was not recorded: one of as many words stands in."""
    folder = shutil.copytree(fixtures / "clip", tmp_path / "clip")
    words = [*"abcdefghijklmnopqrstuvwxyz", *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz"), *map(str, range(45))]
    words = [*words, "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    theirs = load_file(folder / "model.safetensors")
    theirs = {name: x for name, x in theirs.items() if not name.endswith("position_ids")}
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        stored = {name: x.astype(dtype) for name, x in theirs.items()}
        save_file(as_open_clip(stored), tmp_path / "hps.safetensors")
        out = tmp_path / np.dtype(dtype).name / "out"
        out.parent.mkdir()
        assert converted(folder, out).code == 0
        same(load_file(out / "model.safetensors"), stored)


@pytest.mark.parametrize("changes, words", [
    ({"visual.proj": None}, "missing visual.proj;"),
    ({"transformer.resblocks.1.ln_1.bias": None}, "missing transformer.resblocks.1.ln_1.bias;"),
    ({f"visual.transformer.resblocks.{i}.ls_1.gamma": np.ones(48, np.float32) for i in (0, 1)},
     "unknown visual.transformer.resblocks.{0..1}.ls_1.gamma;"),
    ({"text_projection": np.ones((24, 32), np.float32)}, "text_projection has shape [24, 32], the config asks for [32, 24]"),
    ({"transformer.resblocks.0.attn.in_proj_weight": np.ones((32, 32), np.float32)}, "config asks for [96, 32]"),
])  # fmt: skip
def test_a_tensor_that_is_missing_or_unknown_or_another_is_named(clip, tmp_path, changes, words):
    tensors = load_file(tmp_path / "hps.safetensors") | changes
    save_file({name: x for name, x in tensors.items() if x is not None}, tmp_path / "hps.safetensors")
    outcome = converted(clip, tmp_path / "out")
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and not (tmp_path / "out").exists(), outcome
    assert "hps.safetensors does not fit" in outcome.err and words in outcome.err
    assert outcome.err.endswith("; name the folder of a CLIP of the same architecture.\n")


@pytest.mark.parametrize("words, said", [
    (["none", "out", "--like", "clip"], "there is no file none; name a published one"),
    (["hps.pt", "out", "--like", "clip"], "hps.pt is no safetensors file, and a pickle is not loaded here"),
    (["hps.pt", "out", "--like", "clip"], "&& python -m experiments.open_clip hps.safetensors OUT --like CLIP"),
    (["hps.safetensors", "out", "--like", "none"], "there is no folder none; name by --like that of a CLIP"),
    (["hps.safetensors", "out", "--like", "bare"], "bare holds no tokenizer"),
    (["hps.safetensors", "clip", "--like", "clip"], "clip is not empty; name a new folder"),
    (["broken.safetensors", "out", "--like", "clip"], "broken.safetensors is not a readable safetensors file"),
])  # fmt: skip
def test_a_command_that_cannot_be_is_one_sentence(clip, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    for name in ("hps.pt", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"neither")
    (tmp_path / "bare").mkdir()
    shutil.copyfile(clip / "config.json", tmp_path / "bare" / "config.json")
    outcome = command("experiments.open_clip", *words)
    assert outcome.code == 2 and said in outcome.err and outcome.err.count("\n") == 1, outcome
    assert not (tmp_path / "out").exists()
