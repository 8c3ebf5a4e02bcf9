"""One page of several runs: what differs, what is missing, what is hostile, and which folders are none."""

import json
import re
import sys

import numpy as np
import pytest

from experiments import report
from tests.fuzzing import EVIL_TEXTS
from tests.test_foreign_page import Page, run_folder
from unigrpo_jax.training.curves import COLOURS
from unigrpo_jax.training.recorded_run import read_runs
from unigrpo_jax.training.runs_page import distinct_names, runs_page
from unigrpo_jax.training.samples import Moment, Sample, save_samples


def make(folder, steps=4, total=4, exact=(0.25, 0.75), prompts=("a cross", "two squares"), evaluation=None, **settings):
    """A small run folder; `exact` ends with None where the run is unfinished."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"name": folder.name, "iterations": total, "seed": 0, **settings}))
    lines = [{"step": step, "reward/mean": step / 8, "own": step} for step in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = lambda x: {"exact": {"overall": x, "colors": x / 2}}
    summary = {"before": table(exact[0]), "evaluation": evaluation or {"guidance": 1.0}, "seconds": 61.0}
    summary |= {"after": table(exact[1]), "iterations": total} if exact[1] is not None else {}
    (folder / "summary.json").write_text(json.dumps(summary))
    for step in (0, steps) if prompts else ():
        image = np.full((8, 8, 3), step, np.uint8)
        save_samples(folder, step, [
            Sample(prompt=p, thinking="t", image=image, verdict="v", correct=step > 0) for p in prompts])  # fmt: skip
    return folder


def made(*folders):
    text = runs_page(read_runs(folders))
    Page.checked(text)
    return text


def section(text, title):
    """What stands under a heading."""
    start = text.index(f"<h2>{title}")
    return text[start : text.index("</section>", start)]


def cells(text, label):
    """The words of a row's cells."""
    row = re.search(rf"<tr[^>]*><th scope=row>{label}</th>(.*?)</tr>", text)[1]
    return [re.sub("<[^>]+>", "", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)]


def test_settings_that_differ_stand_beside_each_other_and_the_others_are_counted(tmp_path):
    a = make(tmp_path / "a", learning={"rate": 1e-3, "same": [1, 2]})
    b = make(tmp_path / "b", learning={"rate": 2e-3, "same": [1, 2]}, extra="x")
    for folder, version in ((a, "0.10.2"), (b, "0.11.0")):
        provenance = {"model_sha256": "beef", "versions": {"jax": version, "python": "3.12"}}
        (folder / "provenance.json").write_text(json.dumps(provenance))
    text = section(made(a, b), "Settings that differ")
    assert re.findall(r"<th scope=row>([^<]*)</th>", text) == ["learning.rate", "extra", "versions.jax"]
    assert cells(text, "learning.rate") == ["0.001", "0.002"] and cells(text, "extra") == ["–", "x"]
    assert cells(text, "versions.jax") == ["0.10.2", "0.11.0"]
    assert "5 others are the same in all." in text  # iterations, seed, learning.same, model_sha256, versions.python


def test_held_out_tables_stand_beside_each_other_with_differences(tmp_path):
    text = section(made(make(tmp_path / "a"), make(tmp_path / "b", exact=(0.3, 0.5))), "Held-out prompts")
    assert cells(text, "Exact") == ["0.250", "0.750", "+0.500", "0.300", "0.500", "+0.200", "−0.250"]
    assert cells(text, "colors") == ["0.125", "0.375", "+0.250", "0.150", "0.250", "+0.100", "−0.125"]
    assert "not judged alike" not in text


def test_runs_that_were_judged_in_another_way_are_told(tmp_path):
    a = make(tmp_path / "a", evaluation={"guidance": 1.0, "prompts": 6, "every": 0})
    b = make(tmp_path / "b", evaluation={"guidance": 2.0, "prompts": 6, "every": 5})
    assert "not judged alike: evaluation.guidance." in made(a, b)


def test_an_unfinished_run_shows_how_far_it_is_and_its_newest_evaluation(tmp_path):
    b = make(tmp_path / "b", steps=3, exact=(0.25, None))
    with (b / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 4, "eval/exact": 0.5}) + "\n" + '{"step": 5, "eval')
    text = made(make(tmp_path / "a"), b)
    assert "after iteration 4 of 4: finished" in text and "after iteration 4 of 4: unfinished" in text
    assert cells(section(text, "Held-out prompts"), "Exact") == [
        "0.250", "0.750", "+0.500", "0.250", "0.500", "+0.250", "−0.250"]  # fmt: skip
    assert "<th>iteration 4</th>" in text and "<th>after</th>" in text


def test_the_same_prompts_stand_beside_each_other_with_base_and_after_of_each_run(tmp_path):
    a, b = make(tmp_path / "a", prompts=("only a", "a cross")), make(tmp_path / "b", prompts=("a cross", "only b"), steps=2)
    text = section(made(a, b, make(tmp_path / "c", prompts=())), "Samples of the same prompts")
    cards = re.findall(r"<article>.*?</article>", text)
    assert [re.search(r"<h3 dir=auto>([^<]*)", card)[1] for card in cards] == ["a cross", "only a", "only b"]
    assert [card.count("<img") for card in cards] == [4, 2, 2] and [card.count("not sampled") for card in cards] == [0, 1, 1]
    assert re.findall(r"<p class=step>([^<]*)", cards[0]) == ["step 0", "step 4", "step 0", "step 2"]
    assert "No samples: c." in text and "b: step 0: 0 of 2 right; step 2: 2 of 2 right." in text


def test_samples_of_several_rounds_are_strips(tmp_path):
    a, b = make(tmp_path / "a", prompts=()), make(tmp_path / "b")
    one = dict(thinking="t", image=np.zeros((8, 8, 3), np.uint8), verdict="v", correct=None)
    save_samples(a, 0, [Sample(prompt="", **one, earlier=(Moment(prompt="a cross", **one),))])
    text = section(made(a, b), "Samples of the same prompts")
    assert text.count("<div class=strip>") == 1 + 2 * 2 and "class=by-run" not in text


def test_a_run_has_one_colour_on_the_page_though_others_lack_the_metric(tmp_path):
    a, b = make(tmp_path / "a", steps=2), make(tmp_path / "b", steps=9, total=9)
    (a / "metrics.jsonl").write_text('{"step": 1, "reward/mean": null, "only a": 1}\n{"step": 2, "text/entropy": 1e200}\n')
    text = section(made(a, b), "Curves")
    charts = {re.search(r"<h3>([^<]*)", chart)[1]: chart for chart in text.split("<div class=chart>")[1:]}
    assert charts.keys() == {"reward/mean", "eval/exact", "only a", "own"}  # entropy holds no number that can be drawn
    legends = {name: re.findall(r'<i class="(c\d)"></i>([^<]*)', chart) for name, chart in charts.items()}
    assert legends["eval/exact"] == [("c0", "a "), ("c1", "b ")] and legends["only a"] == [("c0", "a ")]
    assert legends["reward/mean"] == legends["own"] == [("c1", "b ")]
    assert "c1" in charts["own"] and not re.search(r'<(polyline|circle) class="\w+ c0"', charts["own"])


def test_runs_of_one_name_are_told_apart_by_their_folders_and_one_run_is_shown_once(tmp_path):
    folders = [make(tmp_path / name) for name in ("x/run", "y/run", "y/other", "x/deep/run", "y/deep/run")]
    (tmp_path / "link").symlink_to(folders[0])
    runs = read_runs([*folders, folders[0] / ".", tmp_path / "link"])
    assert distinct_names(runs) == ["x/run", "y/run", "other", "x/deep/run", "y/deep/run"]
    text = runs_page(runs)
    assert "5 runs: x/run, y/run, other" in text and "Settings that differ</h2><p class=note>None." in text


def test_more_runs_than_colours_are_dashed(tmp_path):
    text = made(*(make(tmp_path / f"r{n}", prompts=()) for n in range(COLOURS + 2)))
    assert '<i class="c1 dashed"></i>' in text and 'class="mean c1 dashed"' in text and "c2 dashed" not in text


def test_one_run_alone_and_runs_of_which_little_is_there_have_a_page(tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "metrics.jsonl").write_text("")
    config_only = tmp_path / "config"
    config_only.mkdir()
    (config_only / "config.json").write_text('{"iterations": 9}')
    assert "no steps recorded yet: unfinished" in made(bare)
    text = made(bare, config_only)
    assert "There is no config.json in bare." in text and "Curves" not in text and "Samples" not in text
    assert "Settings that differ" not in made(make(tmp_path / "a"))
    assert cells(section(made(bare, tmp_path / "a"), "Held-out"), "Exact") == [
        "–", "–", "–", "0.250", "0.750", "+0.500", "–"]  # fmt: skip


@pytest.mark.parametrize("evil", EVIL_TEXTS)
def test_a_page_of_hostile_runs_is_a_page_of_harmless_ones(tmp_path, evil):
    found = []
    for name, text in (("evil", evil), ("plain", "plain" if evil.strip() else evil)):
        for run in ("a", "b"):
            (tmp_path / name / run).mkdir(parents=True)
            run_folder(tmp_path / name / run, text + (run if run == "b" else ""))
        found.append(Page.checked(made(tmp_path / name / "a", tmp_path / name / "b")))
    assert found[0].tags == found[1].tags
    assert [name for name, _ in found[0].attributes] == [name for name, _ in found[1].attributes]


def test_folders_of_hostile_names_have_a_page(tmp_path):
    assert "&lt;script&gt;x\\x1b" in made(make(tmp_path / "<script>x\x1b'\""), make(tmp_path / "a"))


def command(monkeypatch, capsys, *arguments):
    """Exit code, standard output and standard error of the command."""
    monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
    code = 0
    try:
        report.main()
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def test_the_command_writes_one_file(tmp_path, monkeypatch, capsys):
    a, b = make(tmp_path / "a"), make(tmp_path / "b")
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, capsys, "a", b) == (0, "2 runs: runs.html\n", "")
    assert command(monkeypatch, capsys, a, "--out", "pages/x.html") == (0, "1 run: pages/x.html\n", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "pages", "runs.html"]


def test_what_is_no_run_is_one_sentence(tmp_path, monkeypatch, capsys):
    a = make(tmp_path / "runs/a")
    (tmp_path / "empty").mkdir()
    damaged = make(tmp_path / "damaged")
    (damaged / "summary.json").write_text("{")
    lost = make(tmp_path / "lost")
    (lost / "samples/000000.npz").write_bytes(b"PK")
    too_many = [make(tmp_path / f"many/{n}", prompts=()) for n in range(19)]
    for arguments, words in (
        ([], "no run is given"),
        ([a, tmp_path / "nothing"], "there is no folder"),
        ([a, a / "config.json"], "is a file; give the run folder"),
        ([tmp_path / "empty"], "holds no run (neither config.json nor metrics.jsonl); give a run folder"),
        ([tmp_path / "runs"], f"give the runs in it: {a}."),
        ([a, damaged], f"{damaged / 'summary.json'} is not JSON"),
        ([a, lost], f"{lost / 'samples/000000.npz'} is not a readable npz file"),
        ([a, "--out", a], "is no .html file"),
        ([a, "--out", a / "metrics.jsonl"], "is no .html file"),
        ([a, "--out", a / "config.json" / "x.html"], "cannot be written"),
        (too_many, "19 runs cannot be told apart on one page; give at most 18."),
        (["a\0b"], "is no path that can be used"),
    ):
        code, out, error = command(monkeypatch, capsys, *arguments)
        assert code == 2 and not out and words in error and error.count("\n") == 1, (arguments, error)
    assert not list(tmp_path.rglob("*.html"))
