"""Files from elsewhere: sizes are bounded, and names that stand in files stay in their folder."""

import json
import os
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.fuzzing import EVIL_TEXTS
from unigrpo_jax import foreign_files, picture_files
from unigrpo_jax.config import ConfigError, ModelConfig, RunConfig
from unigrpo_jax.config_checks import check, nearest_divisors
from unigrpo_jax.config_json import from_dict, load_run_config
from unigrpo_jax.foreign_text import quoted
from unigrpo_jax.models.bagel import layout
from unigrpo_jax.models.families import HUB_PATTERN, find_folder, load_model
from unigrpo_jax.models.folders.stored import MOST_FAULTS, StoredTensors, faults
from unigrpo_jax.training.metrics import LONGEST_LINE, read_metrics
from unigrpo_jax.training.report import write_report
from unigrpo_jax.worlds.world import load_world


def refusal(function, *arguments, error=ValueError) -> str:
    with pytest.raises(error) as caught:
        function(*arguments)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 1000
    return text


# Sizes

def test_huge_json_is_refused_before_it_is_parsed(tmp_path):
    """A sparse file of 40 GiB is not read but for its first bytes."""
    path = tmp_path / "config.json"
    with open(path, "wb") as file:
        file.truncate(40 * 2**30)
    assert f"{path} is larger than 1 MiB" in refusal(load_run_config, path, error=ConfigError)
    path.rename(tmp_path / "summary.json")
    assert "summary.json is larger than 64 MiB" in refusal(write_report, tmp_path)
    (tmp_path / "summary.json").rename(tmp_path / "ema.safetensors.index.json")
    assert "is not a safetensors index" in refusal(StoredTensors, tmp_path, "ema")
    (tmp_path / "ema.safetensors.index.json").rename(tmp_path / "metrics.jsonl")
    assert f"line 1: longer than {LONGEST_LINE} bytes" in refusal(read_metrics, tmp_path / "metrics.jsonl")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_huge_tokenizer_is_refused_before_it_is_read(tmp_path, name):
    folder = copy_of_tiny(tmp_path)
    with open(folder / name, "r+b") as file:
        file.truncate(2**38)
    assert f"{name} is larger than 256 MiB" in refusal(load_model, ModelConfig(path=str(folder)), error=ConfigError)


def test_a_message_lists_a_bounded_number_of_faults():
    class Many:
        names = staticmethod(lambda: {f"{'x' * 10**4}{i}" for i in range(1000)})

    found = faults(Many(), {}, (), "")
    assert len(found) == MOST_FAULTS + 1 and found[-1] == "and 800 more" and max(map(len, found)) == 300


def test_a_value_of_a_config_is_quoted_in_part(tmp_path):
    text = refusal(from_dict, {"learning": {"group_size": "A" * 10**6}}, error=ConfigError)
    assert text.startswith("config.learning.group_size = 'AAA") and text.endswith("..., but it must be a whole number.")
    refusal(from_dict, {"A" * 10**6: 1}, error=ConfigError)


@pytest.mark.parametrize("depth", [101, 500, 900, 5000])
@pytest.mark.parametrize("form", ["[{}]", '{{"a": {}}}'])
def test_a_value_that_is_nested_deeply_is_refused_everywhere(tmp_path, form, depth):
    """Python reads some that it cannot walk through afterwards."""
    begin, end = form.format("\0").split("\0")
    text = begin * depth + "1" + end * depth
    (tmp_path / "config.json").write_text('{"learning": ' + text + "}")
    assert "is nested too deeply" in refusal(load_run_config, tmp_path / "config.json", error=ConfigError)
    assert "is nested too deeply" in refusal(write_report, tmp_path)
    (tmp_path / "llm_config.json").write_text('{"hidden_act": ' + text + "}")
    assert "is nested too deeply" in refusal(layout.read_config, tmp_path, None, None, {})
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "count": ' + text + "}")
    assert "p.jsonl, line 1: not JSON (it is nested too deeply)" in refusal(load_world, [str(tmp_path / "p.jsonl")])
    value = 1
    for _ in range(depth):
        value = [value]
    assert len(quoted(value)) < 130


@pytest.mark.parametrize("line", ['{"step": NaN}', '{"step": 1, "a": NaN}', '{"step": 1, "a": 1e999}',
                                  '{"step": 1, "a": "b"}', '{"step": 1' + "0" * 400 + "}", '{"step": -1}',
                                  '{"step": "1"}', "[" * 9999])  # fmt: skip
def test_a_line_that_no_writer_wrote_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n' + line + "\n")
    assert f"{path}, line 2: not a JSON object with a step and numbers" in refusal(read_metrics, path)


@pytest.mark.parametrize("file, name", [("llm_config.json", "num_hidden_layers"), ("vit_config.json", "num_hidden_layers"),
                                        ("llm_config.json", "vocab_size"), ("llm_config.json", "rope_theta")])  # fmt: skip
@pytest.mark.parametrize("size", [2**23, 10**12, 10**400])
def test_a_model_of_absurd_size_is_refused_before_it_is_laid_out(tmp_path, file, name, size):
    folder = copy_of_tiny(tmp_path)
    data = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(data | {name: size}))
    read = lambda: load_model(ModelConfig(path=str(folder))).check_weights()
    if (name, size) in (("rope_theta", 2**23), ("rope_theta", 10**12)):
        read()
    else:
        assert str(folder) in refusal(read, error=ConfigError)


def test_nearest_divisors_of_a_large_number_are_found_at_once():
    """2^31 - 1 is prime; 2146654199 = 46327 * 46337."""
    assert nearest_divisors(2**31 - 1, 2) == "1 or 2147483647"
    assert nearest_divisors(46327 * 46337, 46327) == "46327 or 46337"
    assert nearest_divisors(12, 5) == "4 or 6" and nearest_divisors(12, 50) == "12"
    huge = {"learning": {"group_size": 2**31 - 1}, "rollout": {"prompts_per_iteration": 2**31 - 1, "micro_batches": 1}}
    assert "below 2^31" in refusal(check, from_dict(huge), error=ConfigError)


# Names and links

def copy_of_tiny(tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(find_folder("tiny"), tmp_path / "model"))


@pytest.mark.parametrize("name", ["../x", "a/../b", "..", ".", "/etc/passwd", "a/..", "a/.", "a/b/c", "a/-b", "a/ b", "é/b",
                                  "a/" + "b" * 97, "https://h/x", "\\\\host\\x", "~root/x", "a/b?x", "a/%2e"])  # fmt: skip
def test_what_is_no_name_on_the_hub_is_not_asked_for(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert HUB_PATTERN.fullmatch(name) is None
    if not pathlib.Path(name).expanduser().is_dir():
        absent = f"{name} is a file, and a model is a folder" if pathlib.Path(name).is_file() else "there is no folder"
        assert f"model.path: {absent}" in refusal(find_folder, name, error=ConfigError)
    assert not HUB_PATTERN.fullmatch("a/b\n")
    assert HUB_PATTERN.fullmatch("ByteDance-Seed/BAGEL-7B-MoT") and HUB_PATTERN.fullmatch("a/_b.c-1")


def shards(folder: pathlib.Path) -> pathlib.Path:
    """The folder's weights as one shard with an index."""
    whole = folder / "ema.safetensors"
    names = sorted(StoredTensors(folder, "ema").names())
    whole.rename(folder / "ema-1.safetensors")
    (folder / "ema.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, "ema-1.safetensors")}))
    return folder / "ema-1.safetensors"


def test_a_shard_that_is_a_link_out_of_the_folder_is_refused(tmp_path):
    folder = copy_of_tiny(tmp_path)
    shard = shards(folder)
    load_model(ModelConfig(path=str(folder)))
    outside = shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(outside)
    assert "ema-1.safetensors is a link out of its folder" in refusal(StoredTensors, folder, "ema")
    shard.unlink()
    outside.rename(folder / "inside")
    shard.symlink_to("inside")
    assert StoredTensors(folder, "ema").names()


@pytest.mark.parametrize("part", ["", "transformer"])
@pytest.mark.parametrize("shared", [False, True], ids=["of-the-repository", "of-the-cache"])
def test_a_folder_of_the_hubs_cache_is_made_of_links_and_is_read(tmp_path, part, shared):
    """models--a--b/snapshots/COMMIT/PART holds links into models--a--b/blobs, and those into the cache's own."""
    folder = copy_of_tiny(tmp_path)
    shards(folder)
    home = tmp_path / "models--a--b"
    blobs, snapshot = home / "blobs", home / "snapshots" / "0123" / part
    stored = tmp_path / "blobs" / "ab" if shared else blobs
    for place in {blobs, snapshot, stored}:
        place.mkdir(parents=True)
    for path in folder.iterdir():
        path.rename(stored / path.name)
        if shared:
            (blobs / path.name).symlink_to(os.path.relpath(stored / path.name, blobs))
        (snapshot / path.name).symlink_to(os.path.relpath(blobs / path.name, snapshot))
    loaded = load_model(ModelConfig(path=str(snapshot)))
    loaded.check_weights()
    loaded.export(loaded.params(), tmp_path / "out", "float32")
    assert (tmp_path / "out" / "llm_config.json").exists()
    (tmp_path / "secret").write_text("the key")
    (snapshot / "notes.txt").symlink_to(tmp_path / "secret")
    assert not foreign_files.is_inside(snapshot / "notes.txt", snapshot)


def test_an_export_does_not_carry_away_what_a_link_shows(tmp_path):
    """A folder from elsewhere may hold a link to a file of this machine, and an export is there to be passed on."""
    folder, secret = copy_of_tiny(tmp_path), tmp_path / "secret"
    secret.write_text("the key")
    loaded = load_model(ModelConfig(path=str(folder)))
    (folder / "notes.txt").symlink_to(secret)
    params = loaded.params()
    text = refusal(loaded.export, params, tmp_path / "out", "float32", error=ConfigError)
    assert "notes.txt is a link out of its folder" in text
    assert not [p for p in (tmp_path / "out").iterdir() if b"the key" in p.read_bytes()]
    (folder / "notes.txt").unlink()
    (folder / "notes.txt").write_text("mine")
    loaded.export(params, tmp_path / "out", "float32")
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", [*EVIL_TEXTS, ".", ".."])
def test_a_runs_name_is_one_folder_in_plain_sight(name):
    """What passes is one path component without hidden characters."""
    try:
        check(RunConfig(name=name))
    except ConfigError:
        return
    path = pathlib.PurePath("runs") / name
    assert path.parent == pathlib.PurePath("runs") and name.isprintable() and len(name.encode()) <= 200


# Pictures

def test_a_small_file_of_a_huge_picture_is_one_sentence(tmp_path):
    """100 megapixels of white take 100 kB as PNG; Pillow alone would unpack them."""
    path = tmp_path / "a.png"
    Image.new("1", (10_000, 10_000)).save(path)
    assert path.stat().st_size < 10**5
    assert "it has 10000 x 10000 pixels, more than 67108864" in refusal(picture_files.open_rgb, path, error=ConfigError)


def test_what_pillow_would_give_to_another_program_is_no_picture(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(path, "EPS")
    with Image.open(path) as file:
        assert file.format == "EPS", "Pillow goes by what a file holds, not by its name"
    assert "is not a picture" in refusal(picture_files.open_rgb, path, error=ConfigError)


def test_a_picture_is_known_by_what_it_holds(tmp_path):
    path = tmp_path / "a.txt"
    Image.new("RGB", (4, 4), "red").save(path, "WEBP", lossless=True)
    assert np.asarray(picture_files.open_rgb(path)).reshape(-1, 3).tolist() == [[255, 0, 0]] * 16


def test_of_an_animation_the_first_picture_counts(tmp_path):
    first, second = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    assert np.asarray(picture_files.open_rgb(tmp_path / "a.gif"))[0, 0].tolist() == [255, 0, 0]
