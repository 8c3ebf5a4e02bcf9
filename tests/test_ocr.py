"""The text-rendering reward: an edit distance, and what counts as the wanted text."""

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unigrpo_jax.config import ConfigError, JudgingConfig, RunConfig
from unigrpo_jax.rewards.judging import Judging, RewardError
from unigrpo_jax.rewards.load import load_reward
from unigrpo_jax.rewards.ocr import OCR, levenshtein
from unigrpo_jax.rewards.protocol import ABSTAIN, RewardBatch

WORDS = st.text("abc", max_size=7)


def distance(a: str, b: str) -> int:
    """The definition by recursion on the first letters."""

    @functools.cache
    def of(i: int, j: int) -> int:
        if i == len(a) or j == len(b):
            return len(a) - i + len(b) - j
        return min(of(i + 1, j) + 1, of(i, j + 1) + 1, of(i + 1, j + 1) + (a[i] != b[j]))

    return of(0, 0)


def reading(texts):
    """A reader for pictures whose first number says which text they show."""
    return lambda images: [texts[image[0, 0, 0]] for image in images]


def score(texts, prompts, metadata=None) -> np.ndarray:
    images = np.zeros((len(prompts), 2, 2, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(len(prompts))
    metadata = metadata or [{}] * len(prompts)
    batch = RewardBatch(prompts=prompts, metadata=metadata, images=images, thinking=[""] * len(prompts))
    return OCR(reading(texts))(batch)["ocr"]


@given(WORDS, WORDS)
def test_the_distance_is_the_smallest_number_of_edits(a, b):
    assert levenshtein(a, b) == distance(a, b)


def test_the_distance_of_a_known_pair():
    assert levenshtein("kitten", "sitting") == 3


@given(st.text("ab c", max_size=20), WORDS.filter(bool))
def test_the_reward_is_one_minus_edits_per_letter_and_never_below_zero(read, target):
    read_letters = read.replace(" ", "")
    edits = 0 if target in read_letters else distance(read_letters, target)
    assert score([read], [f'a sign with "{target}"']) == pytest.approx([max(1 - edits / len(target), 0)])


def test_case_and_white_space_do_not_count_and_other_words_may_stand_beside():
    prompts = ['a sign "Hello World"'] * 5
    texts = ["hello  WORLD", "hello\nworld", "SALE hello world 50%", "hell0 world", ""]
    assert score(texts, prompts) == pytest.approx([1, 1, 1, 0.9, 0])


def test_what_is_wanted_stands_in_the_metadata_or_between_the_first_quotes():
    prompts = ['"no" "maybe"', '"no" "maybe"', "a sign with “no” on it", '"no"']
    metadata = [{"text": "yes"}, {}, {}, {"text": 42}]
    assert list(score(["yes", "no", "no", "42"], prompts, metadata)) == [1, 1, 1, 1]
    assert list(score(["no", "yes", "yes", "no"], prompts, metadata)) == [0, 0, 0, 0]


def test_where_no_text_is_wanted_nothing_is_read_and_the_reward_abstains():
    prompts = ["a cat", 'a cat called ""', 'a sign "  "', '6" tall', 'a sign "yes"', "a cat"]
    metadata = [{}, {}, {}, {}, {}, {"text": ""}]
    scores = score([None, None, None, None, "yes", None], prompts, metadata)
    np.testing.assert_array_equal(scores, np.array([ABSTAIN, ABSTAIN, ABSTAIN, ABSTAIN, 1, ABSTAIN], object))


def test_a_long_reading_of_a_short_text_is_nothing():
    assert score(["x" * 100_000], ['"yes"']) == [0]


@pytest.mark.parametrize("texts", [[], ["a", "b"], [None], [3]])
def test_a_reader_that_returns_other_than_texts_is_named(texts):
    batch = RewardBatch(prompts=['"yes"'], metadata=[{}], images=np.zeros((1, 2, 2, 3), np.uint8), thinking=[""])
    judging = Judging({"ocr:mine:read": OCR(lambda images: texts, "ocr:mine:read")}, JudgingConfig())
    with pytest.raises(RewardError, match="reader of ocr:mine:read must return one text per image; it got 1 images"):
        judging(batch)


READER = """
def read(images):
    return ["yes" if image.mean() > 100 else "no" for image in images]


read.identity = "brightness 100"
read.cost = "remote"
plain = lambda images: []
"""


def test_a_reader_is_found_by_name_and_says_what_it_costs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ocr_reader_of_mine.py").write_text(READER)
    reward = load_reward("ocr:ocr_reader_of_mine:read", RunConfig())
    assert (reward.cost, reward.identity) == ("remote", "ocr brightness 100")
    images = np.stack([np.full((2, 2, 3), x, np.uint8) for x in (0, 200)])
    batch = RewardBatch(prompts=['"yes"'] * 2, metadata=[{}] * 2, images=images, thinking=[""] * 2)
    assert list(reward(batch)["ocr"]) == [0, 1]
    plain = load_reward("ocr:ocr_reader_of_mine:plain", RunConfig())
    assert (plain.cost, plain.identity) == ("host", "")


@pytest.mark.parametrize(
    "name, words",
    [
        ("ocr", "ocr:my_module:reader"),
        ("ocr:ocr_reader_of_mine", "not package.module:function"),
        ("ocr:ocr_reader_of_mine:reed", "did you mean read?"),
        ("ocr:no_such:read", "importing no_such failed"),
    ],
)
def test_a_reader_that_is_not_there_is_one_sentence(tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ocr_reader_of_mine.py").write_text(READER)
    with pytest.raises(ConfigError) as caught:
        load_reward(name, RunConfig())
    assert words in str(caught.value) and str(caught.value).startswith("rewards: ")
