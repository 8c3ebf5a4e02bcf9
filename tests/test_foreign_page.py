"""The pages that are written hold foreign text as text, wherever it stands: no element, no attribute, nothing hidden."""

import base64
import hashlib
import html.parser
import json
import pathlib
import unicodedata

import numpy as np
import pytest

from launch.planning.page import page
from tests.fuzzing import EVIL_TEXTS
from tests.test_plan import numbers
from unigrpo_jax.foreign_text import JOINERS, for_html, for_stream, quoted, visible
from unigrpo_jax.training.page_parts import AGE_SCRIPT
from unigrpo_jax.training.report import write_report
from unigrpo_jax.training.samples import Sample, save_samples

# All that our pages are made of; what foreign text tries to add is not among it, or in another place.
TAGS = set("html head meta title style body header h1 h2 h3 p section div span b i table thead tbody tr th td article "
           "figure img figcaption details summary ul li code strong svg line text rect polyline polygon circle time".split())
ATTRIBUTES = set("lang charset name content http-equiv class colspan rowspan scope dir alt src viewbox role aria-label x x1 "
                 "x2 y y1 y2 cx cy r points text-anchor fill stroke stroke-width width height style "
                 "datetime".split())  # fmt: skip


class Page(html.parser.HTMLParser):
    """A page's elements, attributes and text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.words, self.attributes = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.words.append(data)

    @classmethod
    def of(cls, folder: pathlib.Path) -> "Page":
        """The report of a run folder, held to what every report is."""
        return cls.checked((folder / "report.html").read_text(encoding="utf-8"))

    @classmethod
    def checked(cls, text: str) -> "Page":
        """A page that holds only our own elements, attributes and script, loads nothing, and hides nothing."""
        own = f"<script>{AGE_SCRIPT}</script>"
        allowed = base64.b64encode(hashlib.sha256(AGE_SCRIPT.encode()).digest()).decode()
        assert ("script-src" in text) == (own in text) == (f"script-src 'sha256-{allowed}'\"" in text)
        found = cls(text.replace(own, ""))
        assert set(found.tags) <= TAGS and {name for name, _ in found.attributes} <= ATTRIBUTES
        loads = [value for name, value in found.attributes if name in ("src", "href")]
        assert all(value.startswith("data:image/png;base64,") for value in loads)
        assert not [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in "\n\t" + JOINERS]
        return found


def run_folder(folder: pathlib.Path, evil: str) -> None:
    """A run folder in which every text, and every name that a stranger can choose, is `evil`."""
    (folder / "config.json").write_text(json.dumps({"name": evil, "rewards": [evil], evil: {"x" + evil: evil}}))
    scores = {"exact": {"overall": 0.5, evil: 0.25}, "e" + evil: {"overall": 0.1}}
    (folder / "summary.json").write_text(json.dumps({"before": scores, "after": scores, evil + "s": evil}))
    lines = [{"step": step, f"reward/{evil}/mean": 0.5, "m" + evil: step, "judge/" + evil: 1} for step in range(1, 4)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    image = np.zeros((8, 8, 3), np.uint8)
    for step in (0, 3):
        save_samples(folder, step, [Sample(prompt=evil, thinking=evil, image=image, verdict=evil, correct=step > 0)])


@pytest.mark.parametrize("evil", EVIL_TEXTS)
def test_a_report_of_hostile_texts_is_a_report_of_harmless_ones(tmp_path, evil):
    """The same elements with the same attributes as where every text is `plain`."""
    found = []
    for name, text in (("evil", evil), ("plain", "plain" if evil.strip() else evil)):
        folder = tmp_path / name
        folder.mkdir()
        run_folder(folder, text)
        write_report(folder)
        found.append(Page.of(folder))
    evil_page, plain_page = found
    assert evil_page.tags == plain_page.tags
    assert [name for name, _ in evil_page.attributes] == [name for name, _ in plain_page.attributes]
    assert "".join(visible(evil).split()) in "".join("".join(evil_page.words).split())


@pytest.mark.parametrize("evil", EVIL_TEXTS)
def test_a_plan_of_a_hostile_name_is_a_plan(evil):
    made = numbers() | {"name": evil, "topology": evil, "notes": [evil], "mesh": {evil: 4}}
    Page.checked(page(made))


def test_a_folder_of_a_hostile_name_has_a_report(tmp_path):
    folder = tmp_path / "<script>x\x1b\u202e'\""
    folder.mkdir()
    write_report(folder)
    assert "<script>x\\x1b\\u202e'\"" in "".join(Page.of(folder).words)


def test_hidden_characters_become_escapes_and_the_rest_stays():
    assert visible("a\x1b[2J\x00\x7f\x9b\r\n\t") == "a\\x1b[2J\\x00\\x7f\\x9b\\r\\n\\t"
    assert visible("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069") == (
        "\\u202a\\u202b\\u202c\\u202d\\u202e\\u2066\\u2067\\u2068\\u2069"
    )
    assert visible("\u200b\ufeff\ud800\u2028\U000e0041") == "\\u200b\\ufeff\\ud800\\u2028\\U000e0041"
    plain = "Zwölf Boxkämpfer, \u05d0\u05d1 \u0639\u0631 \u4e2d [red]x[/red] 👩\u200d🎨 \\x1b"
    assert visible(plain) == plain and visible("a\nb", keep="\n") == "a\nb"
    assert for_html("<a b=\"c\" d='e'>&\x1b\n") == "&lt;a b=&quot;c&quot; d=&#x27;e&#x27;&gt;&amp;\\x1b\n"


def test_a_stream_gets_only_what_it_can_encode(tmp_path):
    with open(tmp_path / "log", "w", encoding="ascii") as stream:
        assert for_stream("é\x1b\n", stream) == "\\xe9\\x1b\n"


def test_a_quoted_value_is_short():
    assert quoted("a\x1b") == "'a\\x1b'" and quoted("x" * 10**7) == "'" + "x" * 119 + "..."
    assert quoted(10**5000) == "a number of thousands of digits" and len(quoted([0] * 10**5)) == 123
