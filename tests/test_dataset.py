"""Prompts of TensorFlow Datasets: a small dataset is prepared on disk by its tools, and read without TensorFlow."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from unigrpo_jax.config import ConfigError
from unigrpo_jax.worlds.source import read_source
from unigrpo_jax.worlds.world import load_world

COUNT = 7


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder of the dataset `words/plain`: 7 records with texts, a number, a picture and captions, in two files."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter

    root = tmp_path_factory.mktemp("tfds")
    folder = root / "words" / "plain" / "1.0.0"
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict(
        {
            "prompt": tfds.features.Text(),
            "category": tfds.features.Text(),
            "score": np.float32,
            "number": np.int64,
            "image": tfds.features.Image(shape=(2, 2, 3)),
            "captions": tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()}),
            "empty": tfds.features.Text(),
        }
    )
    template = tfds.core.ShardedFileTemplate(
        dataset_name="words", data_dir=folder, split="train", filetype_suffix="array_record"
    )
    for shard, numbers in enumerate((range(4), range(4, COUNT))):
        writer = ArrayRecordWriter(str(template.sharded_filepath(shard_index=shard, num_shards=2)), "group_size:1")
        for i in numbers:
            picture = io.BytesIO()
            Image.new("RGB", (2, 2)).save(picture, format="PNG")
            picture.seek(0)
            record = {
                "prompt": f"prompt é{i}", "category": "abc"[i % 3], "score": i / 2, "number": i, "image": picture,
                "captions": [{"id": 0, "text": f"caption {i}"}, {"id": 1, "text": "another"}], "empty": "",
            }  # fmt: skip
            writer.write(features.serialize_example(features.encode_example(record)))
        writer.close()
    split = tfds.core.SplitInfo(name="train", shard_lengths=[4, COUNT - 4], num_bytes=0, filename_template=template)
    tfds.folder_dataset.write_metadata(data_dir=folder, features=features, split_infos=[split], check_data=False)
    return root


@pytest.fixture
def folder(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    return prepared


def test_records_are_prompts_and_their_texts_and_numbers_metadata(folder):
    (group,) = read_source("tfds:words/plain").groups
    assert [p.text for p in group] == [f"prompt é{i}" for i in range(COUNT)]
    assert group[5].metadata == {"category": "c", "score": 2.5, "number": 5, "empty": ""}
    assert [type(x) for x in group[5].metadata.values()].count(np.float32) == 0
    assert str(group[5].place) == "tfds:words/plain, record 5"


def test_what_of_a_dataset_nobody_reads_is_told(folder):
    world = load_world(["tfds:words/plain"])
    assert world.unread == ("captions", "image") and world.facts == ("category", "empty", "number", "score")
    assert load_world(["tfds:words/plain#captions/text"]).unread == ("image",)


@pytest.mark.parametrize(
    "spec, words",
    [
        ("words/plain:train[2:4]", ["prompt é2", "prompt é3"]),
        ("words/plain:1.0.0:train[:1]", ["prompt é0"]),
        ("words/plain:1.0.0", [f"prompt é{i}" for i in range(COUNT)]),
        ("words/plain:train[:2]#captions/text", ["caption 0", "caption 1"]),
        ("words/plain#category", list("abcabca")),
    ],
)
def test_split_version_and_field_stand_in_the_name(folder, spec, words):
    assert [p.text for p in read_source(f"tfds:{spec}").groups[0]] == words


def test_the_order_is_shuffled_by_seed_and_takes_each_once(folder):
    drawn = [[p.text for p in load_world(["tfds:words/plain"]).train(seed).batch(0, COUNT)] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert sorted(drawn[0]) == [f"prompt é{i}" for i in range(COUNT)]


@pytest.mark.parametrize(
    "spec, words",
    [
        ("words/plain#text", ["no field 'text'", "captions, category"]),
        ("words/plain#number", ["record 0", "'number' is no text"]),
        ("words/plain#captions", ["'captions' is no text"]),
        ("words/plain#empty", ["an empty one"]),
        ("words/plain:test", ["Unknown split", "train"]),
        ("words/plain:train[", ["train["]),
        ("words/plain:train[:0]", ["cannot be read"]),
        ("no_such_words", ["not found", "`tfds build no_such_words --file_format=array_record`", "TFDS_DATA_DIR"]),
        ("#prompt", ["is not tfds:NAME[/CONFIG][:SPLIT][#FIELD]"]),
    ],
)
def test_a_dataset_that_cannot_work_is_one_sentence(folder, spec, words):
    with pytest.raises(ConfigError) as caught:
        read_source(f"tfds:{spec}")
    text = str(caught.value)
    assert f"tfds:{spec}" in text and "\n" not in text and text.endswith(".")
    for word in words:
        assert word in text, text


def test_tfds_is_imported_when_it_is_named_and_tensorflow_never(prepared):
    code = (
        "import sys; from unigrpo_jax.worlds.source import read_source; assert 'tensorflow_datasets' not in sys.modules; "
        "print(read_source('tfds:words/plain').groups[0][6].text); assert 'tensorflow' not in sys.modules"
    )
    environment = os.environ | {"TFDS_DATA_DIR": str(prepared), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=120)
    assert (done.returncode, done.stdout.decode()) == (0, f"prompt é6{os.linesep}"), done.stderr.decode()
