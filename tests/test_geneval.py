"""GenEval: images in the folders that its evaluator walks through, and its results as a table."""

import json
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from tests.command import command
from unigrpo_jax.worlds import geneval
from unigrpo_jax.worlds.lines import geneval_prompt

LINES = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a circle"},
    {"tag": "counting", "include": [{"class": "cat", "count": 2}], "exclude": [{"class": "cat", "count": 3}],
     "prompt": "two red circles and one blue cross"},
    {"tag": "colors", "include": [{"class": "cow", "count": 1, "color": "é"}], "prompt": "a blue square"},
]  # fmt: skip
QUICK = ["--evaluation.flow-steps", 2, "--evaluation.batch", 4, "--evaluation.images-per-prompt", 2]


@pytest.fixture
def metadata(tmp_path) -> pathlib.Path:
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("\n".join(map(json.dumps, LINES)))
    return path


def as_genevals_evaluator(folder: pathlib.Path) -> dict[int, tuple[dict, dict[str, np.ndarray]]]:
    """What evaluate_images.py would take: folders of digits, a metadata.jsonl each, images named by digits and .png."""
    found = {}
    for sub in folder.iterdir():
        if sub.is_dir() and sub.name.isdigit():
            images = {p.name: p for p in (sub / "samples").iterdir() if re.match(r"\d+\.png", p.name)}
            pixels = {name: np.asarray(Image.open(path)) for name, path in images.items()}
            found[int(sub.name)] = (json.load(open(sub / "metadata.jsonl")), pixels)
    return found


def written(model, out, metadata, *arguments) -> dict:
    outcome = command("experiments.geneval", "write", model, out, "--metadata", metadata, *QUICK, *arguments)
    assert outcome.code == 0, outcome
    return as_genevals_evaluator(out)


@pytest.fixture(scope="module")
def drawn(tiny_model, tmp_path_factory):
    """The three prompts, two images each, two prompts per call of the program."""
    folder = tmp_path_factory.mktemp("geneval")
    path = folder / "metadata.jsonl"
    path.write_text("\n".join(map(json.dumps, LINES)))
    return folder / "out", written(tiny_model, folder / "out", path, "--grid")


def test_each_prompt_has_its_folder_with_its_line_and_its_images(drawn):
    out, found = drawn
    assert sorted(p.name for p in out.iterdir()) == ["00000", "00001", "00002"]
    for number, line in enumerate(LINES):
        asked, images = found[number]
        assert asked == line and sorted(images) == ["0000.png", "0001.png"]
        assert (out / f"{number:05d}" / "metadata.jsonl").read_text() == json.dumps(line)
        assert all(image.shape == (24, 24, 3) and image.dtype == np.uint8 for image in images.values())
        grid = np.asarray(Image.open(out / f"{number:05d}" / "grid.png"))
        np.testing.assert_array_equal(grid, np.concatenate([images["0000.png"], images["0001.png"]], axis=1))
    pixels = [image.tobytes() for _, images in found.values() for image in images.values()]
    assert len(set(pixels)) == 6  # every episode has noise of its own


def test_images_do_not_depend_on_how_many_are_drawn_at_once(drawn, tiny_model, metadata, tmp_path):
    found = written(tiny_model, tmp_path / "out", metadata, "--evaluation.batch", 2, "--evaluation.prompts", 2)
    assert sorted(found) == [0, 1] and not (tmp_path / "out" / "00000" / "grid.png").exists()
    for number in found:
        for name, image in found[number][1].items():
            assert np.abs(image.astype(int) - drawn[1][number][1][name]).max() <= 1


def test_the_evaluations_settings_change_the_images(drawn, tiny_model, metadata, tmp_path):
    for i, changed in enumerate((["--evaluation.seed", 1], ["--evaluation.flow-steps", 3], ["--evaluation.no-thinking"],
                                 ["--evaluation.guidance", 5])):  # fmt: skip
        found = written(tiny_model, tmp_path / str(i), metadata, "--evaluation.prompts", 1, *changed)
        assert (found[0][1]["0000.png"] != drawn[1][0][1]["0000.png"]).any(), changed


def test_a_prompt_longer_than_the_runs_bucket_is_drawn(tiny_model, tmp_path):
    path = tmp_path / "metadata.jsonl"
    path.write_text(json.dumps(LINES[0] | {"prompt": "a red circle " * 10}))
    assert list(written(tiny_model, tmp_path / "out", path)) == [0]


def test_every_line_of_genevals_own_metadata_comes_back_as_it_was(fixtures):
    path = fixtures.parent / "data" / "geneval" / "evaluation_metadata.jsonl"
    if not path.is_file():
        pytest.skip(f"GenEval's metadata is not at {path}")
    lines = path.read_text().splitlines()
    assert len(lines) == 553
    assert [geneval.metadata_line(geneval_prompt(line)) for line in lines] == lines
    assert {geneval_prompt(line).metadata["tag"] for line in lines} == set(geneval.TAGS)


def result(tag, prompt, correct) -> dict:
    """A line as evaluate_images.py writes it."""
    asked = {"tag": tag, "include": [], "prompt": prompt}
    return {"filename": f"{prompt}.png", "tag": tag, "prompt": prompt, "correct": correct, "reason": "",
            "metadata": json.dumps(asked), "details": "{}"}  # fmt: skip


RESULTS = [
    *[result("position", "a", correct) for correct in (True, False, False, False)],
    *[result("single_object", "b", True) for _ in range(4)],
    *[result("single_object", "c", correct) for correct in (True, True, True, False)],
    *[result("position", "d", False) for _ in range(4)],
    *[result("colors", "e", correct) for correct in (False, True)],
]


def test_the_table_of_results_is_genevals(tmp_path):
    """By hand: 1/8, 7/8 and 1/2 of the images; overall their mean, not 9/18; four of five prompts have a right image."""
    path, out = tmp_path / "results.jsonl", tmp_path / "tables" / "table.json"
    path.write_text("\n".join(map(json.dumps, RESULTS)) + "\n")
    outcome = command("experiments.geneval", "read", path, "--out", out)
    assert outcome.code == 0, outcome
    table = json.loads(out.read_text())
    assert list(table["geneval"]) == ["overall", "single_object", "colors", "position"]
    assert table["geneval"] == pytest.approx({"overall": 0.5, "single_object": 7 / 8, "colors": 1 / 2, "position": 1 / 8})
    assert (table["images"], table["prompts"]) == (18, 5)
    assert (table["correct_images"], table["correct_prompts"]) == pytest.approx((9 / 18, 4 / 5))
    words = " ".join(outcome.out.split())
    assert "18 images of 5 prompts" in words and "position 0.1250" in words and "overall 0.5000" in words


def test_the_overall_score_weighs_tags_and_not_images(tmp_path):
    found = geneval.summary([result("colors", "a", True), *[result("counting", "b", False)] * 9])
    assert found["geneval"]["overall"] == 0.5 and found["correct_images"] == pytest.approx(0.1)


REFUSED = [
    (["write", "MODEL", "out", "--metadata", "missing.jsonl"], ["missing.jsonl cannot be read", "check --metadata"]),
    (["write", "MODEL", "out", "--metadata", "plain.jsonl"], ["plain.jsonl, line 1", '"include"']),
    (["write", "MODEL", "out", "--metadata", "empty"], ["empty holds no prompts"]),
    (["write", "MODEL", "full", "--metadata", "good.jsonl"], ["full is there already", "new folder"]),
    (["write", "MODEL", "empty", "--metadata", "good.jsonl"], ["empty is there already"]),
    (["write", "nowhere", "out", "--metadata", "good.jsonl"], ["nowhere is no checkpoint"]),
    (["write", "MODEL", "out", "--metadata", "good.jsonl", "--evaluation.batch", "6"], ["batch = 6", "4 or 8"]),
    (["write", "MODEL", "out", "--metadata", "good.jsonl", "--evaluation.source", "x"], ["GenEval's file as --metadata"]),
    (["read", "missing.jsonl"], ["missing.jsonl cannot be read"]),
    (["read", "empty"], ["empty holds no results", "evaluate_images.py"]),
    (["read", "good.jsonl"], ["good.jsonl, line 1", '"correct"']),
    (["read", "broken.jsonl"], ["broken.jsonl, line 2", "not JSON"]),
]


@pytest.mark.parametrize("arguments, words", REFUSED)
def test_what_cannot_work_is_one_sentence(tiny_model, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("plain.jsonl").write_text('{"prompt": "a circle"}')
    pathlib.Path("good.jsonl").write_text(json.dumps(LINES[0]))
    pathlib.Path("broken.jsonl").write_text(json.dumps(RESULTS[0]) + "\n{")
    pathlib.Path("empty").touch()
    pathlib.Path("full").mkdir()
    pathlib.Path("full/note").touch()
    before = sorted(tmp_path.rglob("*"))
    outcome = command("experiments.geneval", *(str(tiny_model) if a == "MODEL" else a for a in arguments))
    assert (outcome.code, outcome.out) == (2, ""), outcome
    assert outcome.err.startswith("experiments.geneval: ") and outcome.err.count("\n") == 1, outcome.err
    for word in words:
        assert word in outcome.err, outcome.err
    assert sorted(tmp_path.rglob("*")) == before
