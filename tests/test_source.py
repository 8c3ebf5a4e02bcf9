"""Where prompts come from: each form of file is read as it is, and one that cannot work is refused by line number."""

import json
import os
import tracemalloc

import pytest

from tests.command import HEADS, SMALL, command, run_small
from unigrpo_jax.config import ConfigError
from unigrpo_jax.worlds.prompt import CHECKED
from unigrpo_jax.worlds.source import read_source
from unigrpo_jax.worlds.world import load_world


def texts(source) -> list[list[str]]:
    return [[p.text for p in group] for group in source.groups]


def refusal(name) -> str:
    with pytest.raises(ConfigError) as caught:
        read_source(str(name))
    text = str(caught.value)
    assert "\n" not in text and text.endswith("."), text
    return text


def test_a_file_is_read_with_its_metadata(tmp_path):
    """A byte-order mark, Windows line ends, blank lines and a line separator inside a text are no faults."""
    path = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "a b", "category": "x", "n": 2}, {"prompt": "c\u2028d", "category": "y"}, {"prompt": "e"}]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(json.dumps(x, ensure_ascii=False) for x in lines).encode())
    source = read_source(str(path))
    assert texts(source) == [["a b"], ["c\u2028d"], ["e"]]
    assert source.groups[0][0].metadata == {"category": "x", "n": 2}
    world = load_world([str(path)])
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
    text = refusal(path)
    assert str(path) in text
    for word in words:
        assert word in text, text


LATER = [{"prompt": "a red circle"}, {"prompt": "a red circle"}]


def later(path, **keys):
    path.write_text("\n".join(json.dumps(line) for line in (LATER[0], LATER[1] | keys)))
    return [str(path)]


@pytest.mark.parametrize(
    "keys, words",
    [
        ({"rounds": 3}, ['"rounds" is 3', "list of objects"]),
        ({"rounds": [1, 2]}, ['"rounds" is [1, 2]', "list of objects"]),
        ({"rounds": [{}]}, ["facts of 1 round(s)", "rollout.rounds = 2"]),
        ({"turns": "a square"}, ["`turns` that are no list of texts"]),
        ({"turns": [None]}, ["`turns` that are no list of texts"]),
        ({"turns": [" "]}, ["blank"]),
        ({"turns": ["\ud800"]}, ["surrogate"]),
        ({"turns": ["a square"], "rounds": [{}, {}, {}]}, ["facts of 3 round(s)", "1 `turns` make 2"]),
        ({"turns": ["a square"]}, ["1 later turns", "others of the run 0"]),
        ({"turns": ["a square", "a"]}, ["rollout.rounds = 2 hears 1"]),
        ({"image": 3}, ['"image" is 3']),
        ({"media": [{"modality": "image", "uri": "in/1.png"}]}, ['"media" is not read', 'under "image"']),
    ],
)
def test_what_the_program_itself_reads_is_checked_in_every_line_of_a_file(tmp_path, keys, words):
    with pytest.raises(ConfigError) as caught:
        load_world(later(tmp_path / "p.jsonl", **keys), rounds=2)
    assert all(word in str(caught.value) for word in [f"{tmp_path}/p.jsonl, line 2", *words]), caught.value


@pytest.mark.parametrize("keys", [{"rounds": 3}, {"rounds": []}, {"turns": 3}, {"turns": "a square"}, {"turns": [1]}])
def test_what_later_rounds_read_may_be_anything_where_there_is_one(tmp_path, keys):
    prompts = load_world(later(tmp_path / "p.jsonl", **keys), rounds=1).train(0).batch(0, 2)
    assert all((p.turns, p.at(0).text) == ((), "a red circle") for p in prompts)
    assert sorted((dict(p.metadata) for p in prompts), key=len) == [{}, keys]


def test_null_is_absent_and_a_round_without_facts_has_those_of_the_prompt(tmp_path):
    path = later(tmp_path / "p.jsonl", image=None, turns=None, rounds=None, category=None)
    assert [p.metadata for p in load_world(path, rounds=2).evaluation(2)] == [{}, {}]
    path = later(tmp_path / "p.jsonl", rounds=[None, {"n": 2}], n=1)
    second = load_world(path, rounds=2).evaluation(2)[1]
    assert [second.at(turn).metadata["n"] for turn in (0, 1)] == [1, 2]


def test_the_names_that_only_rewards_read_are_known(tmp_path):
    assert load_world(later(tmp_path / "p.jsonl", category="x", images=["in/1.png"], n=1)).facts == ("images", "n")


def test_a_folder_is_no_prompt_file(tmp_path):
    assert "Is a directory" in refusal(tmp_path)


def test_a_pipe_cannot_be_read_twice():
    read, write = os.pipe()
    os.close(write)
    try:
        assert "save it as one" in refusal(f"/dev/fd/{read}")
    finally:
        os.close(read)


def test_of_plain_text_each_line_is_a_prompt(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"\xef\xbb\xbf" + 'a "b"\r\n\n {"prompt": 1} \nc\u2028d'.encode())
    assert texts(read_source(str(path))) == [['a "b"', '{"prompt": 1}', "c\u2028d"]]
    path.write_text("\n")
    assert "one prompt per line" in refusal(path)


CHECK = {"tag": "counting", "include": [{"class": "cat", "count": 2}], "prompt": "a photo of two cats"}


def test_genevals_form_is_known_by_its_keys_and_its_tag_is_the_category(tmp_path):
    path = tmp_path / "metadata.jsonl"
    path.write_text(json.dumps(CHECK) + "\n" + json.dumps(CHECK | {"category": "own"}))
    for name in (str(path), f"geneval:{path}"):
        first, second = (group[0] for group in read_source(name).groups)
        assert first.text == "a photo of two cats"
        assert first.metadata == {"tag": "counting", "include": CHECK["include"], "category": "counting"}
        assert second.metadata["category"] == "own"


def test_what_is_named_geneval_must_be_of_its_form(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps(CHECK) + '\n{"prompt": "a cat", "tag": "counting"}')
    assert "line 2" in refusal(f"geneval:{path}") and '"include"' in refusal(f"geneval:{path}")


def test_all_prompts_of_geneval_are_read(fixtures):
    path = fixtures.parent / "data" / "geneval" / "evaluation_metadata.jsonl"
    if not path.is_file():
        pytest.skip(f"GenEval's metadata is not at {path}")
    groups = read_source(f"geneval:{path}").groups
    counts = {group[0].metadata["category"]: len(group) for group in groups}
    assert counts == {"single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100,
                      "color_attr": 100}  # fmt: skip
    assert all(p.metadata["category"] == p.metadata["tag"] for group in groups for p in group)


def test_many_lines_take_a_few_bytes_of_memory_each(tmp_path):
    """18 000 lines, 1.7 MB: the offsets take 0.15 MB, and what is being read and checked for its length a constant."""
    path, count = tmp_path / "many.jsonl", 18_000
    with open(path, "w") as file:
        for i in range(count):
            file.write(f'{{"prompt": "the prompt of number {i}", "category": "{i % 3}", "more": "{"x" * 24}"}}\n')
    tracemalloc.start()
    source = read_source(str(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6
    assert [len(group) for group in source.groups] == [6_000] * 3
    last = source.groups[2][5_999]
    assert (last.text, str(last.place)) == ("the prompt of number 17999", f"{path}, line 18000")
    order = load_world([str(path)]).train(5)
    assert [p.metadata["category"] for p in order.batch(1000, 6)] == ["0", "1", "2"] * 2


def test_a_line_of_100_megabytes_is_refused_without_being_read(tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "')
    os.truncate(path, 100_000_000)  # zeros that take no disk
    tracemalloc.start()
    text = refusal(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert f"{path}, line 2: longer than 1048576 bytes" in text
    assert peak < 5e6


def test_the_longest_line_that_fits_is_read(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a" * (2**20 - 1) + "\nb\n")
    assert [len(t) for t in texts(read_source(str(path)))[0]] == [2**20 - 1, 1]
    path.write_text("a" * 2**20 + "\nb\n")
    assert "line 1: longer than" in refusal(path)


def test_the_longest_prompts_come_first_where_lengths_are_checked(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join("a" * (i * 7 % 5003 + 1) for i in range(5003)))  # 1 to 5003 letters, mixed
    longest = read_source(str(path)).longest
    assert [len(p.text) for p in longest] == list(range(5003, 5003 - CHECKED, -1))


@pytest.mark.parametrize("category", ["c" * 201, "many"])
def test_what_differs_for_every_prompt_is_no_category(tmp_path, category):
    path = tmp_path / "prompts.jsonl"
    names = [f"many {i}" for i in range(10_001)] if category == "many" else [category]
    path.write_text("\n".join(json.dumps({"prompt": "a", "category": name}) for name in names))
    text = refusal(path)
    assert f"line {len(names)}: " in text and "at most 10000 kinds" in text


def test_a_file_that_changes_during_a_run_is_noticed(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("one\ntwo\n")
    order = load_world([str(path)]).train(0)
    assert {p.text for p in order.batch(0, 2)} == {"one", "two"}
    path.write_text("one\ntwo\nthree\n")
    with pytest.raises(ConfigError, match="changed while it is used"):
        order.at(2)
    path.unlink()
    with pytest.raises(ConfigError, match="can no longer be read"):
        order.at(3)


def test_evaluation_prompts_may_have_a_source_of_their_own(tmp_path):
    (tmp_path / "train.txt").write_text("one\ntwo\n")
    (tmp_path / "held_out.txt").write_text("three\nfour\n")
    world = load_world([str(tmp_path / "train.txt")], (), str(tmp_path / "held_out.txt"))
    assert [p.text for p in world.evaluation(3)] == ["three", "four", "three"]
    assert {p.text for p in world.train(0).batch(0, 9)} == {"one", "two"}


@pytest.mark.parametrize(
    "prompts, evaluation", [(["shapes", "examples"], None), (["shapes"], "examples"), (["examples"], "shapes")]
)
def test_the_shapes_world_stands_alone(prompts, evaluation):
    with pytest.raises(ConfigError, match="give it alone"):
        load_world(prompts, (), evaluation)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["a.txt", "b.txt", "--prompt-weights", "1"], ["prompt_weights = (1.0,)", "each of the 2 sources"]),
        (["a.txt", "b.txt", "--prompt-weights", "1", "0"], ["above 0"]),
        (["a.txt", "b.txt"], ["b.txt cannot be read"]),
        (["long.txt"], ["(long.txt, line 3) has 32 tokens", "rollout.prompt_tokens = 32"]),
        (["a.txt", "--evaluation.source", "no.txt"], ["no.txt cannot be read", "check --evaluation.source"]),
    ],
)
def test_the_command_line_refuses_in_one_sentence(tiny_model, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("a circle")
    (tmp_path / "long.txt").write_text("a circle\n\n" + "a red circle " * 10)
    outcome = command("experiments.run", "smoke", "--model.path", tiny_model, *SMALL, "--rewards", "colourfulness",
                      "--prompts", *arguments)  # fmt: skip
    assert outcome.code == 2 and outcome.err.count("\n") == 1, outcome
    for word in words:
        assert word in outcome.err, outcome.err


def lines_of_three_kinds(path):
    """4097 prompts of kind a with more letters than the one of kind c, which has more tokens; kinds take turns."""
    many = [{"prompt": "triangles " * 4, "category": "a"}] * CHECKED
    few = [{"prompt": "circle", "category": "b"}, {"prompt": "a " * 17, "category": "c"}]
    path.write_text("\n".join(map(json.dumps, [*many[:1], *few, *many])))


def test_a_prompt_that_is_found_too_long_during_the_run_stops_it_with_a_checkpoint(tiny_model, tmp_path):
    """Two prompts per iteration: the third one, of kind c, comes in the second."""
    path = tmp_path / "prompts.jsonl"
    lines_of_three_kinds(path)
    (tmp_path / "held_out.txt").write_text("a circle")
    own = ["--prompts", path, "--evaluation.source", tmp_path / "held_out.txt", "--rewards", "colourfulness"]
    outcome = run_small(tiny_model, tmp_path / "run", *HEADS, *own)
    assert outcome.code == 1, outcome
    assert f"({path}, line 3) has 19 tokens" in outcome.err and "rollout.prompt_tokens = 19" in outcome.err
    assert "stopped after iteration 1 with a checkpoint" in outcome.err and outcome.err.count("\n") == 1
    assert (tmp_path / "run" / "checkpoints" / "1").is_dir()


def test_a_run_on_a_mixture_uses_both_sources(tiny_model, tmp_path):
    """The sample grid shows the evaluation's prompts, which follow the weights, too."""
    (tmp_path / "a.txt").write_text("a circle\n")
    (tmp_path / "b.jsonl").write_text('{"prompt": "a square", "category": "square"}')
    own = ["--prompts", tmp_path / "a.txt", tmp_path / "b.jsonl", "--prompt-weights", 2, 1, "--rewards", "colourfulness",
           "--logging.samples", 6, "--iterations", 1]  # fmt: skip
    outcome = run_small(tiny_model, tmp_path / "run", *HEADS, *own)
    assert outcome.code == 0, outcome
    shown = [sample["prompt"] for sample in json.loads((tmp_path / "run" / "samples" / "000001.json").read_text())]
    assert sorted(shown) == ["a circle"] * 4 + ["a square"] * 2
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["prompt_weights"] == [2.0, 1.0] and len(config["prompts"]) == 2
    table = tmp_path / "table.json"
    outcome = command("experiments.evaluate", tmp_path / "run", "--evaluation.prompts", 6, "--evaluation.batch", 6,
                      "--evaluation.flow-steps", 2, "--evaluation.no-thinking", "--devices", 1, "--out", table)  # fmt: skip
    assert outcome.code == 0, outcome
    assert json.loads(table.read_text())["prompts"] == [str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl")]
