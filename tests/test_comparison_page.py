"""Pages of a comparison: means and spreads by hand, what is missing, what is hostile, and figures that stay small."""

import base64
import io
import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from experiments.comparison.figures import figure
from experiments.comparison.page import Study, write_ablations, write_table
from experiments.comparison.records import over_seeds, read_records, spread
from unigrpo_jax.training.curves import Series

HOSTILE = '<script>alert("x")</script> | **bold** \x1b[31m'


def picture(value: int) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.full((24, 24, 3), value, np.uint8)).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def record(arm: str, seed: int, exact: float, guided: float = 0.5, title: str | None = None, thinking=True, steps=4) -> dict:
    row = lambda value: {"overall": value, "counting": value / 2}
    scores = {"exact": row(exact), "graded": row(exact), "plan_exact": row(0.7), "drawing_follows_plan": row(0.6)}
    point = lambda u: {
        "update": u, "seconds": 2.0 * u + seed, "judge/exact": exact + 0.01 * u, "image/edge_density": 0.02 * u,
        "flow/velocity_mse": 0.1 * u,
    }  # fmt: skip
    return {
        "study": "table", "arm": arm, "title": title or arm.upper(), "seed": seed, "commit": "c0ffee" * 6,
        "versions": {"jax": "0.0"}, "machine": {"cpu": "abacus", "cores": "3"}, "finished": "", "configs": [{}],
        "evaluated": {"ode": {"thinking": thinking}}, "budget": {"iterations": steps, "episodes": 8, "updates": steps},
        "seconds": {"training": 120.0, "total": 1800.0},
        "evaluations": {"ode": scores, "guided": {"exact": {"overall": guided}}},
        "curve": [point(u) for u in range(1, steps + 1)],
        "held_out": [{"update": u, "seconds": 2.0 * u, "exact": exact + u} for u in range(0, steps + 1, 2)],
        "samples": [{"prompt": HOSTILE, "thinking": "t", "verdict": HOSTILE, "correct": seed % 2 == 0, "image": picture(9)}],
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "records").mkdir()

    def write(*records):
        for r in records:
            (tmp_path / "records" / f"{r['arm']}-seed{r['seed']}.json").write_text(json.dumps(r))
        return tmp_path

    return write


def cells(page: str, first: str) -> list[str]:
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_shows_means_and_sample_deviations(folder):
    """0.5, 0.6, 0.8: mean 1.9 / 3, squares of the differences 0.046667, over n - 1 = 2, root 0.152753."""
    out = folder(*(record("uni", s, x) for s, x in enumerate((0.5, 0.6, 0.8))), record("other", 0, 0.4, guided=0.9))
    write_table(out, ["other", "uni", "absent"])
    page = (out / "table.md").read_text()
    header = cells(page, "method")
    uni = dict(zip(header, cells(page, "UNI"), strict=True))
    assert uni["exact"] == "**0.633 ± 0.153**" and uni["counting"] == "**0.317 ± 0.076**" and uni["seeds"] == "3"
    assert uni["exact, guided"] == "0.500 ± 0.000" and uni["minutes"] == "2.0" and uni["single_object"] == "–"
    other = dict(zip(header, cells(page, "OTHER"), strict=True))
    assert other["exact"] == "0.400" and other["exact, guided"] == "**0.900**"
    assert set(cells(page, "absent")[1:]) == {"missing"}
    assert "4 records" in page and "2.0 hours" in page and "seeds 0, 1, 2" in page and "abacus with 3 cores." in page


def test_a_page_says_that_it_was_judged_on_validation_prompts(folder):
    """A record from before there were such says nothing of it, and was judged on the held-out ones."""
    chosen = record("chosen", 0, 0.5) | {"evaluated": {"ode": {"thinking": True, "split": "validation"}}}
    out = folder(chosen)
    write_table(out, ["chosen"])
    assert "Judged on validation prompts." in (out / "table.md").read_text()
    assert "Exact, validation prompts" in (out / "figures" / "table.svg").read_text()
    write_table(folder(record("other", 0, 0.5)), ["other"])
    assert "Judged on" not in (out / "table.md").read_text()
    assert "Exact, held-out prompts" in (out / "figures" / "table.svg").read_text()
    write_table(out, ["chosen", "other"])
    assert "Judged on held-out and validation prompts." in (out / "table.md").read_text()


def test_what_a_run_draws_at_its_end_is_told_beside_its_averaged_weights(folder):
    """Its last ten updates of twelve, 0 from the fifth on: (1 + 1) / 10.  Imitation draws with the frozen start alone."""
    curve = [{"update": u, "seconds": u, "judge/exact": float(u < 5)} for u in range(1, 13)]
    own = record("own", 0, 0.9) | {"curve": curve, "configs": [{"learning": {"method": "fpo"}}]}
    frozen = record("frozen", 0, 0.9) | {"curve": curve, "configs": [{"learning": {"method": "best_of_n"}}]}
    out = folder(own, frozen)
    write_table(out, ["own", "frozen"])
    page = (out / "table.md").read_text()
    at = cells(page, "method").index("last drawings")
    assert (cells(page, "OWN")[at], cells(page, "FROZEN")[at]) == ("0.200", "–")
    assert "moving average" in page and "moving average" in (out / "table.html").read_text()


def test_an_arm_without_thinking_is_not_judged_by_its_plans(folder):
    out = folder(record("blind", 0, 0.3, thinking=False))
    write_table(out, ["blind"])
    row = dict(
        zip(cells((out / "table.md").read_text(), "method"), cells((out / "table.md").read_text(), "BLIND"), strict=True)
    )
    assert row["thinking"] == "no" and row["thinking right"] == row["follows plan"] == "–"


def test_spreads():
    assert spread([]).words() == "–" and spread([None, float("nan")]).words() == "–"
    assert spread([0.25]).words() == "0.250"
    assert spread([1.0, None, 3.0]).words() == f"2.000 ± {2**0.5:.3f}"


def test_curves_are_means_between_the_lowest_and_the_highest_seed(folder):
    found = [record("a", 0, 0.1), record("a", 1, 0.5, steps=2)]
    mean, low, high = over_seeds(found, "curve", "seconds", "judge/exact")
    np.testing.assert_allclose(mean, [(2.5, 0.31), (4.5, 0.32), (6.0, 0.13), (8.0, 0.14)])
    np.testing.assert_allclose(low, [(2.5, 0.11), (4.5, 0.12), (6.0, 0.13), (8.0, 0.14)])
    np.testing.assert_allclose(high, [(2.5, 0.51), (4.5, 0.52), (6.0, 0.13), (8.0, 0.14)])


def test_ablations_show_labels_notes_and_what_is_missing(folder):
    out = folder(record("on", 0, 0.6), record("off", 0, 0.2))
    (out / "notes.json").write_text(json.dumps({"norm": "It helps. So the paper says."}))
    study = lambda name: Study(
        name=name, title="A title", question="Does it?", metrics=(("judge/exact", "Exact"),),
        arms=(("on", "with"), ("off", "without"), ("gone", "gone")),
    )  # fmt: skip
    write_ablations(out, [study("norm"), study("rest")])
    page = (out / "ablations.md").read_text()
    norm, rest = page.split("## A title")[1:]
    assert "It helps. So the paper says." in norm and "Not yet described." in rest
    row = dict(zip(cells(norm, ""), cells(norm, "with"), strict=True))
    assert row["exact"] == "0.600" and row["velocity MSE"] == "0.250" and row["s per update"] == "30.000"
    assert row["edge density, end / start"] == "2.500"  # (0.02 + 0.04 + 0.06 + 0.08) / 4 / 0.02
    assert set(cells(norm, "gone")[1:]) == {"missing"}
    assert (out / "figures" / "norm.svg").is_file() and "figures/norm.svg" in norm


def test_pages_are_whole_small_escaped_and_the_same_again(folder):
    out = folder(*(record(f"arm{i}", s, 0.1 * i, title=f"{HOSTILE}{i}") for i in range(9) for s in (0, 1)))
    write_table(out, [f"arm{i}" for i in range(9)])
    first = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    write_table(out, [f"arm{i}" for i in range(9)])
    assert {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()} == first
    html = (out / "table.html").read_text()
    assert "<script" not in html and "\x1b" not in html and "default-src 'none'" in html and "://" not in html
    assert "<script" not in (out / "table.md").read_text()
    svg = (out / "figures" / "table.svg").read_text()
    assert ElementTree.fromstring(svg).tag.endswith("svg") and "<script" not in svg
    for name in ("figures/table.svg", "samples.png"):
        assert (out / name).stat().st_size < 200_000
    picture = Image.open(out / "samples.png")
    assert picture.width > 9 * 72 and picture.height > 72


def test_a_long_run_of_nine_arms_is_a_figure_below_200_kb():
    rng = np.random.default_rng(0)
    line = lambda i: Series(f"arm {i}", [(u, float(rng.normal())) for u in range(1, 1001)])
    svg = figure([(title, [line(i) for i in range(9)]) for title in "abcdef"])
    assert len(svg) < 200_000 and len(ElementTree.fromstring(svg).findall("{http://www.w3.org/2000/svg}svg")) == 6


def test_one_arm_has_one_colour_in_all_panels():
    a, b, c = (Series(name, [(0, 0.0), (1, value)]) for name, value in (("a", 1.0), ("b", 2.0), ("c", 3.0)))
    tree = ElementTree.fromstring(figure([("all", [a, b, c]), ("some", [Series("a", []), b, c])]))
    panels = tree.findall("{http://www.w3.org/2000/svg}svg")
    colours = [[p.get("class") for p in panel if p.tag.endswith("polyline")] for panel in panels]
    assert colours == [["mean k0", "mean k1", "mean k2"], ["mean k1", "mean k2"]]


def test_eleven_arms_have_the_colours_of_the_legend():
    tree = ElementTree.fromstring(figure([("all", [Series(f"arm {i}", [(0, 0.0), (1, float(i))]) for i in range(11)])]))
    namespace = "{http://www.w3.org/2000/svg}"
    legend = [rule.get("fill") for rule in tree.findall(f"{namespace}rect")[1:]]  # after the ground
    style = dict(re.findall(r"\.(k\d+)\{--c:(#\w+)\}", tree.find(f"{namespace}style").text))
    lines = [p.get("class").split()[-1] for p in tree.find(f"{namespace}svg") if p.tag.endswith("polyline")]
    assert [style[name] for name in lines] == legend and len(set(legend)) == 11


def test_a_file_that_is_no_record_is_named(folder):
    out = folder(record("a", 0, 0.1))
    (out / "records" / "b-seed0.json").write_text('{"arm": "b"}')
    with pytest.raises(ValueError, match=r"b-seed0\.json is no record of a comparison"):
        read_records(out)


def test_the_grid_of_pictures_keeps_their_colours(folder):
    """A few pure blue pixels among much else: what is read from the PNG is within a few levels of what was drawn."""

    def drawn(seed):
        image = np.zeros((24, 24, 3), np.uint8)
        image[2:4, 2:4], image[8:16, 8:16] = (0, 0, 255), (255, 255, 0)
        image[16:] = np.random.default_rng(seed).integers(0, 12, (8, 24, 3))
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="PNG")
        return base64.b64encode(buffer.getvalue()).decode()

    sample = lambda seed: {"prompt": "p", "thinking": "", "verdict": "", "correct": True, "image": drawn(seed)}
    out = folder(record("a", 0, 0.5) | {"samples": [sample(s) for s in range(6)]})
    write_table(out, ["a"])
    pixels = np.asarray(Image.open(out / "samples.png").convert("RGB"), int).reshape(-1, 3)
    for colour in ((0, 0, 255), (255, 255, 0)):
        assert (np.abs(pixels - colour).max(axis=1) <= 16).sum() >= 6 * 4 * 9  # each pixel is three by three
