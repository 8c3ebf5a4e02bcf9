"""Prompts: their order is a function of (seed, position), and a file that cannot work is refused by line number."""

import collections
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unigrpo_jax.config import ConfigError
from unigrpo_jax.worlds.prompt import Prompt
from unigrpo_jax.worlds.source import PromptOrder, by_category, read_prompts
from unigrpo_jax.worlds.world import load_world

sizes = st.lists(st.integers(1, 7), min_size=1, max_size=4)


def groups_of(sizes):
    return [[Prompt(text=f"{g}.{i}") for i in range(size)] for g, size in enumerate(sizes)]


@given(sizes, st.integers(0, 2**31 - 1), st.lists(st.integers(0, 200), min_size=1, max_size=20))
def test_a_prompt_depends_on_seed_and_position_alone(sizes, seed, positions):
    """Asked in any order, by fresh objects or by one that has been asked before."""
    groups = groups_of(sizes)
    one = PromptOrder(groups, seed)
    assert [one.at(p) for p in positions] == [PromptOrder(groups, seed).at(p) for p in positions]


@given(sizes, st.integers(0, 2**31 - 1), st.integers(0, 3))
def test_each_pass_takes_every_prompt_of_a_group_once(sizes, seed, epoch):
    groups = groups_of(sizes)
    order, count = PromptOrder(groups, seed), len(groups)
    for number, group in enumerate(groups):
        rounds = range(epoch * len(group), (epoch + 1) * len(group))
        assert sorted(order.at(i * count + number).text for i in rounds) == sorted(p.text for p in group)


def test_batches_are_consecutive_and_take_equal_shares_of_the_groups():
    order = PromptOrder(groups_of([30, 5, 9]), seed=3)
    assert [p for step in range(4) for p in order.batch(step, 6)] == [order.at(i) for i in range(24)]
    shares = collections.Counter(p.text.split(".")[0] for p in order.batch(2, 6))
    assert shares == {"0": 2, "1": 2, "2": 2}


def test_seeds_and_passes_differ():
    groups = groups_of([50])
    first = [p.text for p in PromptOrder(groups, 0).batch(0, 50)]
    assert first != [p.text for p in PromptOrder(groups, 1).batch(0, 50)]
    assert first != [p.text for p in PromptOrder(groups, 0).batch(1, 50)]


def test_no_prompts_are_refused():
    for groups in ([], [[]], [[Prompt(text="a")], []]):
        with pytest.raises(ConfigError):
            PromptOrder(groups, 0)


def test_a_file_is_read_with_its_metadata(tmp_path):
    """A byte-order mark, Windows line ends, blank lines and a line separator inside a text are no faults."""
    path = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "a b", "category": "x", "n": 2}, {"prompt": "c\u2028d", "category": "y"}, {"prompt": "e"}]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(json.dumps(x, ensure_ascii=False) for x in lines).encode())
    prompts = read_prompts(path)
    assert [p.text for p in prompts] == ["a b", "c\u2028d", "e"]
    assert prompts[0].metadata == {"category": "x", "n": 2}
    assert [[p.text for p in group] for group in by_category(prompts)] == [["a b"], ["c\u2028d"], ["e"]]
    world = load_world(str(path))
    assert [p.text for p in world.evaluation(4)] == ["a b", "c\u2028d", "e", "a b"]


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", ["holds no prompts", "one JSON object per line"]),
        (b"\n \n", ["holds no prompts"]),
        (b'{"prompt": "a"}\n\n{"prompt": \n', ["line 3", "not JSON"]),
        (b'{"prompt": "a"}\n["a"]', ["line 2", 'under "prompt"']),
        (b'{"text": "a"}', ["line 1", 'under "prompt"']),
        (b'{"prompt": "  "}', ["line 1", 'under "prompt"']),
        (b'{"prompt": 3}', ["line 1", 'under "prompt"']),
        (b'{"prompt": "\\ud800"}', ["line 1", "surrogate"]),
        (b'{"prompt": "a", "n": ' + b"1" * 5000 + b"}", ["line 1", "not JSON"]),
        (b"[" * 10**5, ["line 1", "not JSON"]),
        (b"\xff\xfe", ["not UTF-8", "save it as UTF-8"]),
        (None, ["No such file", "--prompts"]),
    ],
)
def test_a_file_that_cannot_work_is_one_sentence(tmp_path, content, words):
    path = tmp_path / "prompts.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_prompts(path)
    text = str(caught.value)
    assert str(path) in text and "\n" not in text and text.endswith(".")
    for word in words:
        assert word in text, text


def test_a_folder_is_no_prompt_file(tmp_path):
    with pytest.raises(ConfigError, match="Is a directory"):
        read_prompts(tmp_path)
