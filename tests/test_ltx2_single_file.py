"""LTX-2's released file: every real name, and a toy of it to a folder, back again, and refused in a sentence."""

import json
import pathlib
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tests.command import command
from unigrpo_jax.config import ConfigError, ModelConfig
from unigrpo_jax.models.families import load_model
from unigrpo_jax.models.ltx2 import release, single_file
from unigrpo_jax.models.ltx2.single_file import pack, unpack
from unigrpo_jax.models.ltx2.tiny import make_tiny

SAID = {"transformer": {"rope_type": "split", "timestep_scale_multiplier": 1000, "av_ca_timestep_scale_multiplier": 1000.0}}
STATISTICS = {f"vae.per_channel_statistics.{name}": np.ones(8, np.float32) for name in ("channel", "mean-of-stds")}
# As Lightricks' code names them: (part, diffusers' name, the file's).
KNOWN = [
    ("transformer", "audio_proj_in.weight", "audio_patchify_proj.weight"),
    ("transformer", "time_embed.emb.timestep_embedder.linear_1.bias", "adaln_single.emb.timestep_embedder.linear_1.bias"),
    ("transformer", "audio_time_embed.linear.weight", "audio_adaln_single.linear.weight"),
    ("transformer", "av_cross_attn_video_scale_shift.linear.bias", "av_ca_video_scale_shift_adaln_single.linear.bias"),
    ("transformer", "av_cross_attn_video_a2v_gate.linear.bias", "av_ca_a2v_gate_adaln_single.linear.bias"),
    ("transformer", "av_cross_attn_audio_v2a_gate.linear.bias", "av_ca_v2a_gate_adaln_single.linear.bias"),
    ("transformer", "transformer_blocks.7.audio_a2v_cross_attn_scale_shift_table",
     "transformer_blocks.7.scale_shift_table_a2v_ca_audio"),
    ("transformer", "transformer_blocks.7.audio_to_video_attn.norm_q.weight",
     "transformer_blocks.7.audio_to_video_attn.q_norm.weight"),
    ("transformer", "audio_scale_shift_table", "audio_scale_shift_table"),
    ("connectors", "audio_connector.learnable_registers", "audio_embeddings_connector.learnable_registers"),
    ("connectors", "video_connector.transformer_blocks.1.attn1.norm_k.weight",
     "video_embeddings_connector.transformer_1d_blocks.1.attn1.k_norm.weight"),
    ("vae", "encoder.down_blocks.1.downsamplers.0.conv.conv.bias", "encoder.down_blocks.3.conv.conv.bias"),
    ("vae", "encoder.down_blocks.3.resnets.1.conv2.conv.weight", "encoder.down_blocks.6.res_blocks.1.conv2.conv.weight"),
    ("vae", "encoder.mid_block.resnets.0.conv1.conv.weight", "encoder.down_blocks.8.res_blocks.0.conv1.conv.weight"),
    ("vae", "decoder.mid_block.resnets.4.conv1.conv.weight", "decoder.up_blocks.0.res_blocks.4.conv1.conv.weight"),
    ("vae", "decoder.up_blocks.0.upsamplers.0.conv.conv.weight", "decoder.up_blocks.1.conv.conv.weight"),
    ("vae", "decoder.up_blocks.2.resnets.3.conv2.conv.bias", "decoder.up_blocks.6.res_blocks.3.conv2.conv.bias"),
    ("vae", "latents_std", "per_channel_statistics.std-of-means"),
    ("audio_vae", "latents_mean", "per_channel_statistics.mean-of-means"),
    ("audio_vae", "decoder.up.2.upsample.conv.conv.weight", "decoder.up.2.upsample.conv.conv.weight"),
    ("vocoder", "conv_in.weight", "conv_pre.weight"),
    ("vocoder", "upsamplers.3.bias", "ups.3.bias"),
    ("vocoder", "resnets.14.convs2.2.weight", "resblocks.14.convs2.2.weight"),
]  # fmt: skip
PREFIX = {"transformer": "model.diffusion_model.", "connectors": "model.diffusion_model.", "vae": "vae.",
          "audio_vae": "audio_vae.", "vocoder": "vocoder."}  # fmt: skip


def of_release(tmp_path) -> dict[str, dict[str, str]]:
    """{part: {diffusers' name: the file's}} of the released sizes."""
    for part, config in release.CONFIGS.items():
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps(config))
    return {part: {name: stored for stored, _, name in own} for part, own in single_file._names(tmp_path).items()}


def test_every_real_name_has_its_place_in_the_file(fixtures, tmp_path):
    names, shapes = of_release(tmp_path), json.loads((fixtures / "ltx2" / "param_shapes_full.json").read_text())["shapes"]
    for part, own in names.items():
        assert own.keys() == (shapes[part] | shapes.get(f"{part}/buffers_and_ties", {})).keys()
    stored = [name for own in names.values() for name in own.values()]
    assert len(set(stored)) == len(stored)
    for part, name, words in KNOWN:
        assert names[part][name] == PREFIX[part] + words
    assert names["connectors"]["text_proj_in.weight"] == "text_embedding_projection.aggregate_embed.weight"


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A folder of the toy, and the file that it would be released as; tensors of two dtypes."""
    folder = tmp_path_factory.mktemp("ltx2")
    make_tiny(folder / "toy")
    tensors = dict(STATISTICS)
    for part, own in single_file._names(folder / "toy").items():
        found = load_file(folder / "toy" / part / "diffusion_pytorch_model.safetensors")
        for stored, _, name in own:
            tensors[stored] = found[name].astype(ml_dtypes.bfloat16) if name.endswith("to_q.weight") else found[name]
    save_file(tensors, folder / "ltx.safetensors", metadata={"config": json.dumps(SAID), "version": "2"})
    gemma = folder / "gemma"
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(folder / "toy" / part, gemma, dirs_exist_ok=True)
    return folder


def configs(toy) -> dict:
    return {part: json.loads((toy / "toy" / part / "config.json").read_text()) for part in release.CONFIGS}


def test_a_file_becomes_a_folder_that_is_read_and_the_same_file_again(toy, tmp_path):
    unpack(toy / "ltx.safetensors", toy / "gemma", tmp_path / "out", configs(toy))
    found, want = load_model(ModelConfig(path=str(tmp_path / "out"))), load_model(ModelConfig(path=str(toy / "toy")))
    assert found.network == want.network and found.autoencoder == want.autoencoder and not found.unread_files
    own = want.params()
    for name, x in found.params().items():
        same = own[name].astype(ml_dtypes.bfloat16) if name.endswith("to_q.weight") else own[name]
        np.testing.assert_array_equal(x, same.astype(np.float32), err_msg=name)
    assert pack(tmp_path / "out", toy / "ltx.safetensors", tmp_path / "again.safetensors") == sorted(STATISTICS)
    first, again = load_file(toy / "ltx.safetensors"), load_file(tmp_path / "again.safetensors")
    assert again.keys() == first.keys()
    for name, x in first.items():
        assert again[name].dtype == x.dtype and again[name].tobytes() == x.tobytes(), name
    with safe_open(tmp_path / "again.safetensors", "numpy") as file:
        assert file.metadata() == {"config": json.dumps(SAID), "version": "2"}


def changed(toy, path, change, metadata=SAID) -> pathlib.Path:
    tensors = load_file(toy / "ltx.safetensors")
    change(tensors)
    save_file(tensors, path, metadata={"config": json.dumps(metadata)})
    return path


@pytest.mark.parametrize("change, words", [
    (lambda t: t.pop("vocoder.conv_pre.bias"), "ltx.safetensors is not a whole LTX-2: missing vocoder.conv_pre.bias"),
    (lambda t: t.update({"vae.decoder.last_scale_shift_table": np.ones(2)}), "unknown vae.decoder.last_scale_shift_table"),
    (lambda t: t.update({"vocoder.conv_pre.bias": np.ones(3)}), "vocoder.conv_pre.bias has shape [3], the config asks"),
])  # fmt: skip
def test_tensors_that_are_not_those_are_named(toy, tmp_path, change, words):
    file = changed(toy, tmp_path / "ltx.safetensors", change)
    with pytest.raises(ValueError) as error:
        unpack(file, toy / "gemma", tmp_path / "out", configs(toy))
    assert words in str(error.value)


@pytest.mark.parametrize("said, words", [
    ({}, "transformer.rope_type = None, but its header must say it, since no tensor tells it; LTX-2's is 'split'"),
    ({"transformer": SAID["transformer"] | {"rope_type": "interleaved"}}, "this network knows only 'split'"),
    ({"transformer": SAID["transformer"] | {"av_ca_timestep_scale_multiplier": 1}}, "this network knows only 1000"),
    ({"transformer": SAID["transformer"] | {"cross_attention_adaln": True}}, "cross_attention_adaln = True"),  # LTX-2.3
    (SAID | {"vae": {"causal_decoder": True}}, "vae.causal_decoder = True, but this network knows only False"),
    ([], "the config in its header is no JSON of sections"),
])  # fmt: skip
def test_a_header_that_says_another_network_is_refused(toy, tmp_path, said, words):
    file = changed(toy, tmp_path / "ltx.safetensors", lambda t: None, said)
    with pytest.raises(ValueError) as error:
        unpack(file, toy / "gemma", tmp_path / "out", configs(toy))
    assert words in str(error.value) and not (tmp_path / "out").exists()


def test_what_is_none_of_it_is_one_sentence(toy, tmp_path):
    with pytest.raises(ValueError, match="ltx.safetensors does not fit .*: missing vocoder.ups.0.bias.$"):
        pack(toy / "toy", changed(toy, tmp_path / "ltx.safetensors", lambda t: t.pop("vocoder.ups.0.bias")), tmp_path / "x")
    (shutil.copytree(toy / "toy", tmp_path / "student") / "student.json").write_text("{}")
    with pytest.raises(ValueError, match="one file has no place for its student.json, which says so; keep the folder.$"):
        pack(tmp_path / "student", toy / "ltx.safetensors", tmp_path / "x")
    with pytest.raises(ValueError, match="holds no config.json; name a folder of Gemma 3"):
        unpack(toy / "ltx.safetensors", tmp_path, tmp_path / "out", configs(toy))
    with pytest.raises(ValueError, match="is no safetensors file; name the released one"):
        unpack(toy / "toy", toy / "gemma", tmp_path / "out", configs(toy))


def test_the_command_writes_a_file_of_a_folder_and_says_what_nothing_reads(toy, tmp_path):
    out, like = tmp_path / "new.safetensors", toy / "ltx.safetensors"
    outcome = command("experiments.single_file", toy / "toy", out, "--like", like)
    assert outcome.code == 0 and all(name in outcome.out for name in STATISTICS), outcome
    assert load_file(out).keys() == load_file(like).keys()


@pytest.mark.parametrize("words, said", [
    (["none", "out"], "there is no none; name a file or a model folder"),
    (["toy", "new.safetensors"], "--like names the published file"),
    (["toy", "ltx.safetensors", "--like", "ltx.safetensors"], "ltx.safetensors is there; name a new file"),
    (["ltx.safetensors", "out"], "--text-encoder names the folder"),
    (["ltx.safetensors", "gemma", "--text-encoder", "gemma"], "gemma is not empty; name a new folder"),
    (["ltx.safetensors", "out", "--text-encoder", "gemma"], "is not a whole LTX-2: audio_vae.decoder.conv_in"),
    (["gemma/model.safetensors", "out", "--text-encoder", "gemma"], "is of no family that is published as a single file"),
])  # fmt: skip
def test_a_command_that_cannot_be_is_one_sentence(toy, monkeypatch, words, said):
    monkeypatch.chdir(toy)
    outcome = command("experiments.single_file", *words)
    assert outcome.code == 2 and said in outcome.err and outcome.err.count("\n") == 1, outcome
    assert not (toy / "out").exists()


def test_a_file_for_a_model_folder_is_told_how_it_becomes_one(toy):
    with pytest.raises(ConfigError, match="is a file, and a model is a folder; python -m experiments.single_file"):
        load_model(ModelConfig(path=str(toy / "ltx.safetensors")))
