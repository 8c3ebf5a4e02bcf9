"""Fuzz: prompts, weights, model folders, pictures, and the files of a run folder."""

import io
import json
import pathlib
import shutil

import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from tests.fuzzing import as_json, changed_bytes, changed_json, fuzz, survives, texts, values
from tests.test_foreign_page import Page
from unigrpo_jax import picture_files
from unigrpo_jax.config import ConfigError, ModelConfig
from unigrpo_jax.models.bagel import layout
from unigrpo_jax.models.families import load_model
from unigrpo_jax.models.folders.stored import StoredTensors
from unigrpo_jax.rewards.clip_weights import read_config as read_clip_config
from unigrpo_jax.training.metrics import read_metrics
from unigrpo_jax.training.report import write_report
from unigrpo_jax.training.samples import Sample, save_samples
from unigrpo_jax.worlds.lines import geneval_prompt, read_file, text_prompt
from unigrpo_jax.worlds.world import load_world

LINES = (
    {"prompt": "two red circles", "category": "counting", "count": 2},
    {"prompt": "a b", "tag": "colors", "include": [{"class": "cup", "count": 1, "color": "red"}], "exclude": []},
    {"prompt": "c\u2028d", "questions": ["Is it red?"]},
)
PROMPTS = b"\n".join(map(as_json, LINES))


def tensors(entries: dict, data: int = 64) -> bytes:
    """A safetensors file by the format's own words: 8 bytes of length, a header in JSON, the numbers."""
    header = as_json(entries)
    return len(header).to_bytes(8, "little") + header + bytes(data)


HEADER = {"__metadata__": {"format": "pt"}, "a": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]},
          "b": {"dtype": "BF16", "shape": [16], "data_offsets": [32, 64]}}  # fmt: skip


def read_prompts(path):
    """Everything that a run does with a prompt file before it starts, and the prompts of its first iterations."""
    world = load_world([str(path)])
    return [world.train(0).batch(step, 4) for step in range(2)], world.evaluation(3), [list(x) for x in world.longest]


@fuzz(600, st.lists(changed_json(LINES) | values, max_size=3).map(lambda lines: b"\n".join(map(as_json, lines))))
def test_prompts_are_read_or_refused_line_by_line(tmp_path, data):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(data)
    survives("prompts, JSON values", read_prompts, path, clean=ConfigError)


@fuzz(600, changed_bytes(PROMPTS) | st.binary(max_size=60))
def test_a_prompt_file_of_any_bytes_is_read_or_refused(tmp_path, data):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(data)
    survives("prompts, bytes", read_prompts, path, clean=ConfigError)
    for parse in (geneval_prompt, text_prompt):
        survives("prompts, bytes", read_file, path, parse, clean=ConfigError)


@fuzz(800, changed_json(HEADER).map(tensors) | changed_bytes(tensors(HEADER)) | st.binary(max_size=40))
def test_a_header_of_weights_is_read_or_refused(tmp_path, data):
    (tmp_path / "ema.safetensors").write_bytes(data)

    def read():
        stored = StoredTensors(tmp_path, "ema")
        return {name: stored.read(name) for name in stored.names() if stored.dtype(name) in ("F32", "F16", "BF16", "F64")}

    found = survives("safetensors", read)
    assert found is None or sum(array.nbytes for array in found.values()) <= len(data)


@pytest.mark.parametrize("length", [2**60, 2**63 - 1, 2**64 - 1, 101, 0])
def test_a_header_that_claims_more_than_the_file_holds_is_one_sentence(tmp_path, length):
    (tmp_path / "ema.safetensors").write_bytes(length.to_bytes(8, "little") + b"{}" + bytes(50))
    with pytest.raises(ValueError, match=r"is not a readable safetensors file .*; download or copy it again\.$"):
        StoredTensors(tmp_path, "ema")


INDEX = {"metadata": {"total_size": 64}, "weight_map": {"a": "ema-1.safetensors", "b": "ema-1.safetensors"}}


@fuzz(300, changed_json(INDEX).map(as_json) | changed_bytes(as_json(INDEX)))
def test_an_index_of_weights_is_read_or_refused_and_stays_in_its_folder(tmp_path, data):
    (tmp_path / "ema-1.safetensors").write_bytes(tensors(HEADER))
    (tmp_path / "ema.safetensors.index.json").write_bytes(data)
    stored = survives("safetensors index", StoredTensors, tmp_path, "ema")
    assert stored is None or {path.parent for path in stored.files} <= {tmp_path}


@pytest.fixture(scope="module")
def folders(tiny_model, tmp_path_factory):
    """Model folders to break: one that only draws, and BAGEL's toy with all parts."""
    out = tmp_path_factory.mktemp("folders")
    whole = load_model(ModelConfig(path="tiny"))
    return {"drawing": shutil.copytree(tiny_model, out / "drawing"), "whole": shutil.copytree(whole.folder, out / "whole"),
            "read": (whole.stored, whole.autoencoder)}  # fmt: skip


def changed_file(draw, path: pathlib.Path) -> bytes:
    data = path.read_bytes()
    return as_json(draw(changed_json(json.loads(data)))) if draw(st.booleans()) else draw(changed_bytes(data))


@fuzz(800, st.data())
def test_the_configs_of_a_model_folder_are_read_or_refused(folders, data):
    folder, stored, autoencoder = folders["whole"], *folders["read"]
    path = folder / data.draw(st.sampled_from(["llm_config.json", "vit_config.json"]))
    kept = path.read_bytes()
    tokens = dict(bos_token=1, eos_token=2, image_start_token=3, image_end_token=4, pad_token=0)
    read = lambda: layout.read_config(folder, stored, autoencoder, tokens)
    assert read().vision is not None, "what is changed was read before"
    path.write_bytes(changed_file(data.draw, path))
    try:
        survives("llm_config.json, vit_config.json", read)
    finally:
        path.write_bytes(kept)


@fuzz(40, st.data())
def test_a_model_folder_is_loaded_or_refused(folders, data):
    """With its tokenizer, which transformers reads, and its weights' shapes."""
    folder = folders[data.draw(st.sampled_from(["drawing", "whole"]))]
    path = folder / data.draw(st.sampled_from(sorted(p.name for p in folder.glob("*.json"))))
    kept = path.read_bytes()
    path.write_bytes(changed_file(data.draw, path))
    try:
        survives("model folder", lambda: load_model(ModelConfig(path=str(folder))).check_weights(), clean=ConfigError)
    finally:
        path.write_bytes(kept)


CLIP = {"model_type": "clip", "projection_dim": 8,
        "text_config": {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                        "vocab_size": 99, "max_position_embeddings": 9, "hidden_act": "quick_gelu", "eos_token_id": 2},
        "vision_config": {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                          "image_size": 8, "patch_size": 4, "layer_norm_eps": 1e-5}}  # fmt: skip


@fuzz(200, changed_json(CLIP).map(as_json) | changed_bytes(as_json(CLIP)))
def test_a_clip_config_is_read_or_refused(tmp_path, data):
    path = tmp_path / "config.json"
    path.write_bytes(data)
    survives("CLIP config.json", read_clip_config, path, clean=ConfigError)


def saved(suffix: str, frames: int = 1) -> bytes:
    """A small picture in a file format."""
    images = [Image.fromarray(np.random.default_rng(n).integers(0, 256, (9, 7, 3), np.uint8)) for n in range(frames)]
    buffer = io.BytesIO()
    more = {"save_all": True, "append_images": images[1:]} if frames > 1 else {}
    images[0].save(buffer, suffix, **more)
    return buffer.getvalue()


PICTURES = (saved("PNG"), saved("JPEG"), saved("TIFF"), saved("BMP"), saved("GIF", 3), saved("WEBP", 2))


@fuzz(500, changed_bytes(PICTURES) | st.binary(max_size=40))
def test_a_picture_is_read_or_refused(tmp_path, data):
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(picture_files, "MOST_PIXELS", 10**6)  # so that no damaged size takes long
        image = survives("pictures", picture_files.open_rgb, path, clean=ConfigError)
    assert image is None or (image.mode == "RGB" and image.width * image.height <= 10**6)


METRICS = ({"step": 1, "reward/mean": 0.5, "flow/velocity_mse": None, "text/ratio_mean": 1.0, "text/ratio_min": 0.9},
           {"step": 2, "reward/mean": 0.6, "text/ratio_max": 1.1, "eval/exact": 0.25, "time/update": 3})  # fmt: skip
SUMMARY = {"before": {"exact": {"overall": 0.4, "colors": 0.5}}, "after": {"exact": {"overall": 0.6}}, "seconds": 3.5}




def as_lines(objects) -> bytes:
    return b"".join(as_json(x) + b"\n" for x in (objects if isinstance(objects, list) else [objects]))


@fuzz(600, changed_json(list(METRICS)).map(as_lines) | changed_bytes(as_lines(list(METRICS))))
def test_metrics_are_read_or_refused_and_what_is_read_is_drawn(tmp_path, data):
    (tmp_path / "metrics.jsonl").write_bytes(data)
    lines = survives("metrics.jsonl", read_metrics, tmp_path / "metrics.jsonl")
    if lines is not None:
        assert [line["step"] for line in lines] == sorted({line["step"] for line in lines})
        survives("report of metrics", write_report, tmp_path, clean=())
        Page.of(tmp_path)


@fuzz(200, st.data())
def test_a_run_folder_gets_a_report_or_is_refused(tmp_path_factory, data):
    """One of its files is changed; the others hold hostile texts."""
    folder = tmp_path_factory.mktemp("run")
    text = data.draw(texts)
    (folder / "config.json").write_bytes(as_json({"name": text, "learning": {text: [text]}}))
    (folder / "summary.json").write_bytes(as_json(SUMMARY | {text: text}))
    (folder / "metrics.jsonl").write_bytes(as_lines(list(METRICS)))
    image = np.zeros((8, 8, 3), np.uint8)
    save_samples(folder, 0, [Sample(prompt=text, thinking=text, image=image, verdict=text, correct=None)])
    name = data.draw(st.sampled_from(["config.json", "summary.json", "samples/000000.json", "samples/000000.npz"]))
    path = folder / name
    if name.endswith("json") and data.draw(st.booleans()):
        path.write_bytes(as_json(data.draw(changed_json(json.loads(path.read_bytes())))))
    else:
        path.write_bytes(data.draw(changed_bytes(path.read_bytes())))
    if survives("run folder", write_report, folder) is not None:
        Page.of(folder)
    shutil.rmtree(folder)


def test_what_is_changed_is_read_where_it_is_not(tmp_path):
    """The mutations begin with files that their readers take."""
    (tmp_path / "prompts.jsonl").write_bytes(PROMPTS)
    assert len(read_prompts(tmp_path / "prompts.jsonl")[1]) == 3
    (tmp_path / "ema-1.safetensors").write_bytes(tensors(HEADER))
    (tmp_path / "ema.safetensors.index.json").write_bytes(as_json(INDEX))
    assert StoredTensors(tmp_path, "ema").names() == {"a", "b"}
    (tmp_path / "config.json").write_bytes(as_json(CLIP))
    assert read_clip_config(tmp_path / "config.json").vocabulary == 99
    for data in PICTURES:
        (tmp_path / "a.png").write_bytes(data)
        assert picture_files.open_rgb(tmp_path / "a.png").size == (7, 9)
    (tmp_path / "metrics.jsonl").write_bytes(as_lines(list(METRICS)))
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2
