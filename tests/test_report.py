"""report.html from the files of a run folder, finished or not, and whatever the texts hold."""

import html.parser
import json
import re

import numpy as np
import pytest

from unigrpo_jax.training.page_parts import AGE_SCRIPT
from unigrpo_jax.training.recorded_run import read_run
from unigrpo_jax.training.report import CHARTS, write_report
from unigrpo_jax.training.samples import Moment, Sample, save_samples

EVIL = "<script>alert('x')</script> \"quoted\" & \x1b[31m"


class Links(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.loads = set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href")]


def fill(folder, steps=40, finished=True, samples=True):
    (folder / "config.json").write_text(json.dumps({"name": EVIL, "learning": {"group_size": 8}}))
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            line = {"step": step, "reward/mean": 0.3 + step / 100, "judge/exact": 0.4, "flow/velocity_mse": None,
                    "text/ratio_mean": 1.0, "text/ratio_min": 0.9, "text/ratio_max": 1.1, "time/update": 1.5}  # fmt: skip
            file.write(json.dumps(line) + "\n")
    table = lambda x: {"exact": {"overall": x, "of my own making": x / 2}, "graded": {"overall": x}}
    summary = {"before": table(0.402)} | ({"after": table(0.747)} if finished else {})
    (folder / "summary.json").write_text(json.dumps(summary))
    if samples:
        image = np.zeros((24, 24, 3), np.uint8)
        for step in (0, steps):
            one = Sample(prompt=EVIL, thinking=EVIL, image=image, verdict=EVIL, correct=step > 0)
            save_samples(folder, step, [one])


def parsed(folder):
    """The page without its own script, and what it is made of."""
    text = write_report(folder).read_text()
    assert text.count(f"<script>{AGE_SCRIPT}</script>") == 1
    text = text.replace(f"<script>{AGE_SCRIPT}</script>", "")
    links = Links()
    links.feed(text)
    return text, links


def test_the_page_holds_everything_and_loads_nothing(tmp_path):
    fill(tmp_path)
    text, links = parsed(tmp_path)
    assert "script" not in links.tags and all(load.startswith("data:") for load in links.loads) and links.loads
    assert not re.search(r"(url\(|@import)", text)
    for fact in ("0.402", "0.747", "+0.345", "of my own making", "group_size", "step 0: 0 of 1 right"):
        assert fact in text, fact


def test_foreign_text_is_escaped(tmp_path):
    fill(tmp_path)
    text, _ = parsed(tmp_path)
    assert "<script>" not in text and "&lt;script&gt;" in text and "\x1b" not in text


def test_before_and_after_stand_above_the_curves(tmp_path):
    fill(tmp_path)
    text, _ = parsed(tmp_path)
    order = [text.index(part) for part in ("class=tiles", "Held-out prompts, before and after", "Samples, step 0", "<svg")]
    assert order == sorted(order)


def test_alarms_stand_first_with_their_meaning_and_their_iterations(tmp_path):
    fill(tmp_path)
    assert "<h2>Alarms" not in parsed(tmp_path)[0]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    lines = [{**line, "alarm/hacking": 1, "alarm/<b>own": 1} if 12 <= line["step"] < 15 else line for line in lines]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text, _ = parsed(tmp_path)
    assert "<b>hacking</b>: the reward rises while" in text and "in 3 iterations, first in 12, last in 14" in text
    assert "&lt;b&gt;own" in text and text.index("<h2>Alarms") < text.index("Held-out prompts, before and after")


def test_a_chart_stands_where_its_metric_is_finite_somewhere(tmp_path):
    fill(tmp_path)
    text, _ = parsed(tmp_path)
    assert "Text ratio" in text and "Judged by rule" in text
    assert "Thinking length" not in text and "Velocity MSE to the reference" not in text


@pytest.mark.parametrize("steps", [0, 1])
def test_an_unfinished_run_has_a_report(tmp_path, steps):
    fill(tmp_path, steps=steps, finished=False, samples=False)
    text, _ = parsed(tmp_path)
    assert "unfinished" in text
    (tmp_path / "summary.json").unlink()
    (tmp_path / "config.json").unlink()
    (tmp_path / "metrics.jsonl").unlink()
    assert "no steps recorded yet" in parsed(tmp_path)[0]


def progress(folder, iterations, metrics, summary):
    """The first lines of the page of a run that has come so far."""
    (folder / "config.json").write_text(json.dumps({"iterations": iterations}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    (folder / "summary.json").write_text(json.dumps(summary))
    text, _ = parsed(folder)
    return text[text.index("<header>") : text.index("</header>")], text


def test_a_page_says_when_it_was_written_and_how_far_the_run_was(tmp_path, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 86400.0 * 366 + 61)
    before, after = {"exact": {"overall": 0.25}}, {"exact": {"overall": 0.75}}
    steps = lambda n: [{"step": step} for step in range(1, n + 1)]
    header, _ = progress(tmp_path, 30, [], {"before": before})
    assert '<time datetime="1971-01-02T00:01:01Z">1971-01-02 00:01:01 UTC</time>' in header
    assert "no steps recorded yet: unfinished." in header
    assert "after iteration 7 of 30: unfinished." in progress(tmp_path, 30, steps(7), {"before": before})[0]
    all_but = progress(tmp_path, 30, steps(30), {"before": before})[0]
    assert "after iteration 30 of 30: unfinished, no evaluation after training yet." in all_but
    done = {"before": before, "after": after, "iterations": 30}
    assert "after iteration 30 of 30: finished." in progress(tmp_path, 30, steps(30), done)[0]
    for total in (True, -1, "30", 1.5, None, 10**30):
        assert "after iteration 30: finished." in progress(tmp_path, total, steps(30), done)[0]


def test_a_finished_run_that_goes_on_is_unfinished_and_shows_its_newest_evaluation(tmp_path):
    summary = {"before": {"exact": {"overall": 0.25}}, "after": {"exact": {"overall": 0.5, "colors": 0.4}}, "iterations": 2}
    metrics = [{"step": 1}, {"step": 2}, {"step": 3}]
    header, text = progress(tmp_path, 9, metrics, summary)
    assert "after iteration 3 of 9: unfinished." in header and "before and after iteration 2<" in text
    header, text = progress(tmp_path, 9, [*metrics, {"step": 4, "eval/exact": 0.625}], summary)
    assert "before and after iteration 4<" in text and "+0.375" in text and "Exact, iteration 4<" in text


def test_the_evaluations_so_far_stand_there_while_a_run_goes_on_and_are_drawn_from_the_first(tmp_path):
    before, after = {"exact": {"overall": 0.25}, "mine": {"overall": 0.1}}, {"exact": {"overall": 0.75}}
    metrics = [{"step": 1, "eval/exact": 0.5}, {"step": 2, "eval/exact": None}, {"step": 3, "eval/exact": 0.625}]
    _, text = progress(tmp_path, 4, metrics, {"before": before})
    table = text[text.index("Held-out prompts so far") :]
    rows = re.findall(r"<tr><th scope=row>(\d+)</th><td>([^<]+)</td><td>([^<]+)</td>", table[: table.index("</table>")])
    assert rows == [("3", "0.625", "–"), ("1", "0.500", "–"), ("0", "0.250", "0.100")]
    _, text = progress(tmp_path, 4, [*metrics, {"step": 4}], {"before": before, "after": after, "iterations": 4})
    assert "so far" not in text
    drawn = read_run(tmp_path).lines()
    assert [(x["step"], x.get("eval/exact")) for x in drawn] == [(0, 0.25), (1, 0.5), (2, None), (3, 0.625), (4, 0.75)]


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    fill(tmp_path)
    old = write_report(tmp_path).read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == old and not list(tmp_path.glob(".*.tmp"))


def test_the_same_files_give_the_same_page_at_the_same_time(tmp_path, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 1e9)
    fill(tmp_path)
    assert write_report(tmp_path).read_bytes() == write_report(tmp_path).read_bytes()


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="no run folder"):
        write_report(tmp_path / "nothing")


def strip(correct, rounds=2):
    image = np.zeros((24, 24, 3), np.uint8)
    one = dict(prompt=EVIL, thinking=EVIL, image=image, verdict=EVIL, correct=False)
    return Sample(**one | {"prompt": "", "correct": correct}, earlier=(Moment(**one, given=(image,)),) * (rounds - 1))


def test_episodes_of_several_rounds_are_strips(tmp_path):
    fill(tmp_path, samples=False)
    plain, _ = parsed(tmp_path)
    for step in (0, 40):
        save_samples(tmp_path, step, [strip(step > 0)])
    text, links = parsed(tmp_path)
    assert "script" not in links.tags and all(load.startswith("data:") for load in links.loads)
    assert len(links.loads) == 2 * 3  # per step: a given picture and two rounds
    assert text.count("<div class=strip>") == 2 and "class=gallery>" not in text and "looks at it again" in text
    assert text.count("&lt;script&gt;") >= 6 and "<script>" not in text and "\x1b" not in text
    assert re.search(r"step 0: 0 of 1 right; step 40: 1 of 1 right", text)
    for alt in ("picture given in round 1", "image drawn at step 40, round 1", "image drawn at step 40, round 2"):
        assert f'alt="{alt}"' in text
    assert ".strip" not in plain and ".strip" in text  # pages of single rounds are what they always were


def test_a_page_takes_strips_beside_single_rounds(tmp_path):
    """A run whose number of rounds has changed."""
    fill(tmp_path)
    save_samples(tmp_path, 40, [strip(True, 3)])
    text, _ = parsed(tmp_path)
    assert text.count("<div class=strip>") == 2 and text.count("not sampled") == 2


def test_the_drift_of_the_newest_evaluation_is_drawn_step_by_step(tmp_path):
    """Not among the numbers of the summary; and whatever a folder holds in its place."""
    fill(tmp_path)
    assert "Drift of the predictions" not in parsed(tmp_path)[0]
    summary = json.loads((tmp_path / "summary.json").read_text())
    own = {"times": [1.0, 0.75, 0.25], "squared": [0.0101, None, 0.0678], "pattern": [0.06, 0.2, 0.512]}
    for drift in ({EVIL: own}, {"flow": own, "other": {"squared": "x", "pattern": [EVIL, 1e300]}}):
        (tmp_path / "summary.json").write_text(json.dumps(summary | {"drift": drift}))
        text, _ = parsed(tmp_path)
        assert "<h2>Drift of the predictions from the reference" in text and "0.0678" in text and "0.512" in text
        assert "drift.flow" not in text and "<script>" not in text
    for drift in (None, [], 3, "x", {"flow": 1}, {"flow": {"squared": {}}}):
        (tmp_path / "summary.json").write_text(json.dumps(summary | {"drift": drift}))
        assert "<h2>Drift" not in parsed(tmp_path)[0]


def test_metrics_of_modalities_stand_in_the_charts_of_their_kind():
    titles = lambda name: [title for title, pattern in CHARTS if re.fullmatch(pattern, name)]
    for metric in ("advantage_std", "advantage_zero_share"):
        assert len(titles(f"flow_audio/{metric}")) == 1, metric
    for metric in ("velocity_mse", "leash_mse", "ratio_mean", "clip_fraction_above", "log_prob_gap_max"):
        assert len(titles(f"flow/{metric}")) == 1 and titles(f"flow_audio/{metric}") == titles(f"flow/{metric}"), metric
