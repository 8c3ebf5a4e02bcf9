"""A conversation is the rollout of as many rounds, can be taken back exactly, compiles little, survives what is typed."""

import base64
import dataclasses
import io
import itertools
import json
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import chat as chats
from experiments import terminal_pictures
from tests import tiny
from tests.command import command
from unigrpo_jax.config import ConfigError, EvaluationConfig, ModelConfig, RolloutConfig
from unigrpo_jax.models.bagel.pictures import picture
from unigrpo_jax.models.bagel.tiny import make_tiny
from unigrpo_jax.models.building import context as contexts
from unigrpo_jax.models.building.context import Context
from unigrpo_jax.models.families import load_model
from unigrpo_jax.rollout import conversation as module
from unigrpo_jax.rollout.conversation import Conversation
from unigrpo_jax.training.evaluation import evaluation_rollout

TEXTS = ("two red circles", "a blue square left of a cross", "one green triangle")


@pytest.fixture(scope="module")
def shapes(tiny_model):
    """A model without a vision encoder, sampled at temperature 1 by the SDE, guided: every stream of randomness is used."""
    loaded = load_model(ModelConfig(path=str(tiny_model)))
    rollout = dataclasses.replace(RolloutConfig(), thinking_tokens=6, image_height=24, image_width=24, rounds=3)
    evaluation = EvaluationConfig(temperature=1.0, flow_steps=3, sampler="sde", guidance=1.5, images_per_prompt=1)
    return loaded, loaded.params(), {}, evaluation_rollout(evaluation, rollout, loaded)


@pytest.fixture(scope="module")
def bagel(tmp_path_factory):
    """A toy with a vision encoder and an autoencoder, guided by text and images."""
    folder = tmp_path_factory.mktemp("bagel")
    make_tiny(folder)
    loaded = load_model(ModelConfig(path=str(folder)))
    rollout = dataclasses.replace(RolloutConfig(), thinking_tokens=5, image_height=24, image_width=32, rounds=2,
                                  system_prompt="think first")  # fmt: skip
    evaluation = EvaluationConfig(flow_steps=2, guidance=3.0, guidance_image=2.0, images_per_prompt=1)
    return loaded, loaded.params(), loaded.autoencoder_params(), evaluation_rollout(evaluation, rollout, loaded)


def talk(model, seed=3, slots=4096, text_tokens=64) -> Conversation:
    loaded, params, autoencoder_params, program = model
    return Conversation(program, params, autoencoder_params, loaded.codec, seed=seed, slots=slots, text_tokens=text_tokens)


def rollout(model, texts, given=None, seed=3):
    """The program's own episode of these texts."""
    loaded, params, autoencoder_params, program = model
    first, *later = (loaded.codec.prompts([text], 40) for text in texts)
    return jax.jit(program.__call__)(params, autoencoder_params, first, seed, 0, 0, given, tuple(later))


def assert_same(model, rounds, episode):
    """Words equal, images within one level: caches and padding have other lengths, so that sums are rounded otherwise."""
    assert len(rounds) == len(episode.drawings)
    for done, thinking, drawing in zip(rounds, episode.thinkings, episode.drawings, strict=True):
        assert done.thinking == model[0].codec.thoughts(thinking, 1)[0]
        distance = np.abs(done.image.astype(int) - np.asarray(drawing.image)[0])
        assert distance.max() <= 1 and np.mean(distance > 0) < 0.05


def test_it_is_the_rollout_of_as_many_rounds(shapes):
    conversation = talk(shapes)
    rounds = [conversation.say(shapes[3], text) for text in TEXTS]
    assert_same(shapes, rounds, rollout(shapes, TEXTS))
    assert conversation.rounds == tuple(rounds) and [r.text for r in rounds] == list(TEXTS)
    assert (rounds[0].image != rounds[1].image).any()


def test_it_is_the_rollout_that_was_given_a_picture(bagel):
    """System prompt, picture, vision encoder, sampled latents of what is looked at, guidance by three contexts."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    shown = picture(Image.fromarray(noise), bagel[0].network.config)
    conversation = talk(bagel)
    conversation.give(bagel[3], shown)
    rounds = [conversation.say(bagel[3], text) for text in TEXTS[:2]]
    assert_same(bagel, rounds, rollout(bagel, TEXTS[:2], shown))
    (seen,) = rounds[0].given
    np.testing.assert_allclose(seen / 127.5 - 1, shown.pixels[0], atol=1e-6)
    assert rounds[1].given == ()
    blind = talk(bagel)
    assert (blind.say(bagel[3], TEXTS[0]).image != rounds[0].image).any()


def state(conversation):
    standing = conversation.standing
    return (conversation.contexts, standing.ropes, standing.lengths, standing.slots, standing.unseen, standing.looked,
            [r.text for r in standing.rounds], [x.tobytes() for x in standing.given])  # fmt: skip


def assert_state(found, expected):
    assert found[2:4] == expected[2:4] and found[5:] == expected[5:]
    tiny.assert_trees_equal(found[:2], expected[:2])
    np.testing.assert_array_equal(found[4], expected[4])


def test_what_is_taken_back_was_never_said(bagel):
    """Every state on the way, bit for bit, and what is said then is what had been said."""
    program, shown = bagel[3], picture(Image.new("RGB", (40, 40), "red"), bagel[0].network.config)
    conversation, states = talk(bagel), []
    steps = [
        lambda: conversation.say(program, "one " * 12),
        lambda: conversation.give(program, shown),
        lambda: conversation.say(program, "two " * 12),
        lambda: conversation.say(program, "three"),
    ]
    for step in steps:
        states.append(state(conversation))
        step()
    end = state(conversation)
    assert end[3] > states[0][3], "the cache has grown on the way"
    taken = []
    for before in reversed(states):
        taken.append(conversation.undo())
        assert_state(state(conversation), before)
    assert [None if t is None else t.text.split()[0] for t in taken] == ["three", "two", None, "one"]
    with pytest.raises(ConfigError, match="nothing to take back"):
        conversation.undo()
    for step in steps:
        step()
    assert_state(state(conversation), end)


def test_rounds_of_like_length_compile_nothing_new(shapes):
    conversation, program = talk(shapes), shapes[3]
    words = itertools.cycle(["a cross", "two red circles", "three blue squares", "a circle"])
    for _ in range(3):
        conversation.say(program, next(words))
    before = module._act._cache_size(), module._see._cache_size()
    slots = conversation.standing.slots
    while conversation.standing.slots == slots:
        conversation.say(program, next(words))
    for _ in range(3):
        conversation.say(program, next(words))
    assert len(conversation.rounds) > 8
    grown = module._act._cache_size() - before[0], module._see._cache_size() - before[1]
    assert max(grown) <= 1, "one cache of twice the slots is one more program"


def test_nothing_is_lost_by_what_is_refused(shapes):
    program = shapes[3]
    conversation = talk(shapes, slots=120, text_tokens=12)
    conversation.say(program, TEXTS[0])
    before = state(conversation)
    with pytest.raises(ConfigError, match=r"the text has 22 tokens .* more than the 12 .* --chat-tokens 22\.$"):
        conversation.say(program, "a " * 20)
    full = (r"^this round may take \d+ slots, the conversation has read \d+, and --chat-slots is 120 \(.* MiB\), which "
            r"holds about 2 rounds; /undo .* --chat-slots \d+ gives ")  # fmt: skip
    with pytest.raises(ConfigError, match=full):
        for _ in range(20):
            conversation.say(program, TEXTS[0])
            before = state(conversation)
    assert_state(state(conversation), before)
    assert 2 <= len(conversation.rounds) <= 6 and conversation.standing.slots[0] <= 120
    with pytest.raises(ConfigError, match=r"chat_slots = 30, but a round takes up to \d+ slots; use at least \d+\.$"):
        talk(shapes, slots=30)


def test_a_round_that_is_not_finite_is_left_out(shapes):
    loaded, params, _, program = shapes
    broken = jax.tree.map(lambda x: x * np.nan, params)
    conversation = talk((loaded, broken, {}, program))
    with pytest.raises(ConfigError, match="not finite"):
        conversation.say(program, TEXTS[0])
    assert conversation.rounds == () and conversation.standing.lengths == (0, 0)


def test_a_compact_context_holds_what_was_valid_in_order_and_a_cut_its_beginning():
    rng = np.random.default_rng(0)
    valid = rng.random((3, 9)) < 0.6
    keys, values = rng.standard_normal((2, 2, 3, 5, 9, 4)).astype(np.float32)
    context = Context(keys=keys, values=values, valid=jnp.asarray(valid), rope=jnp.arange(3))
    for slots in (9, 12):
        got = contexts.compact(context, slots)
        assert got.slots == slots
        for row in range(3):
            n = valid[row].sum()
            np.testing.assert_array_equal(got.valid[row], np.arange(slots) < n)
            np.testing.assert_array_equal(got.keys[:, row, :, :n], keys[:, row][:, :, valid[row]])
            np.testing.assert_array_equal(got.values[:, row, :, :n], values[:, row][:, :, valid[row]])
            assert not np.any(got.keys[:, row, :, n:]) and not np.any(got.values[:, row, :, n:])
    cut = contexts.cut(contexts.compact(context, 9), 2, 5, jnp.zeros(3, jnp.int32))
    assert cut.slots == 5 and not np.any(cut.rope)
    np.testing.assert_array_equal(cut.valid, np.asarray(contexts.compact(context, 9).valid)[:, :5] & (np.arange(5) < 2))
    assert not np.any(cut.keys[:, :, :, 2:]) and np.any(cut.keys[:, :, :, :2])


# At the terminal.


@pytest.fixture
def typed(monkeypatch, tmp_path):
    """`generate --chat` with lines through its pipe, bytes, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    small = ("--thinking-tokens", 4, "--flow-steps", 2, "--temperature", 1)

    def run(lines, *arguments):
        data = b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        return command("experiments.generate", "--chat", *arguments, *small)

    return run


def test_a_conversation_through_a_pipe_leaves_its_files(typed, tiny_model, tmp_path):
    outcome = typed(["two red circles", "a cross", "/undo", "", "a blue square", "/image 1-two-red-circles.png", "a circle",
                     "/save out", "/save", "/quit", "never read"], tiny_model)  # fmt: skip
    assert outcome.code == 0 and outcome.err == "", outcome
    told = [line for line in outcome.out.splitlines() if line.startswith(("Wrote", "Took", "Not done", "Looked"))]
    assert told == [
        "Wrote 1-two-red-circles.png", "Wrote 2-a-cross.png", "Took back round 2, 'a cross'.",
        "Not done: an empty line says nothing; write what to draw, or /help.",
        "Wrote 2-a-blue-square.png",
        "Looked at 1-two-red-circles.png, 24 x 24 pixels; say what is to become of it.", "Wrote 3-a-circle.png",
        *(f"Wrote {folder}: conversation.json, strip.png and 3 pictures" for folder in ("out", "chat-1")),
    ]  # fmt: skip
    saved = json.loads((tmp_path / "out" / "conversation.json").read_text())
    assert saved["seed"] == 0 and [r["text"] for r in saved["rounds"]] == ["two red circles", "a blue square", "a circle"]
    assert [r["given"] for r in saved["rounds"]] == [[], [], ["3-given-1.png"]] and saved["given_next"] == []
    for done in saved["rounds"]:
        assert done["thinking"] in outcome.out
        (large,) = tmp_path.glob(f"{done['image'][0]}-{done['text'].replace(' ', '-')}.png")
        with Image.open(tmp_path / "out" / done["image"]) as image, Image.open(large) as shown:
            assert image.size == (24, 24) and shown.size == (192, 192)
            np.testing.assert_array_equal(np.asarray(shown)[::8, ::8], image)
    with Image.open(tmp_path / "out" / "strip.png") as strip:
        assert strip.format == "PNG" and strip.width > 4 * 168
    assert {p.name for p in tmp_path.glob("*.png")} == {
        "1-two-red-circles.png", "2-a-cross.png", "2-a-blue-square.png", "3-a-circle.png"}  # fmt: skip


def test_what_cannot_be_done_is_one_sentence_and_the_conversation_goes_on(typed, bagel, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    refused = {
        "/image": "/image takes a file",
        "/image none.png": "there is no picture none.png; give an existing file.",
        "/image broken.png": "broken.png is not a picture that can be read",
        "/image a\0b": "is no path that can be used",
        "/undo": "there is nothing to take back.",
        "/save x": "there is nothing to save yet",
        "/sing \x1b[31m": "there is no command '/sing'",
        "/\x1b[2J": "there is no command '/\\x1b[2J'",
        "": "an empty line says nothing",
        "word " * 300: "the text has",
    }
    later = {"/save full": "full is there already and holds something", "/save broken.png/x": "cannot be"}
    outcome = typed([*refused, b"a \xff\xfe circle", *later, "/save good"], "--model.path", bagel[0].folder,
                    "--height", 24, "--width", 24, "--guidance", 1)  # fmt: skip
    assert outcome.code == 0 and outcome.err == "", outcome
    out = outcome.out[outcome.out.index("as the end of input does\n") :].splitlines()[1:]
    for sentence in refused.values():
        line = out.pop(0)
        assert line.startswith("Not done: ") and sentence in line, (sentence, line)
    wrote = next(n for n, line in enumerate(out) if line.startswith("Wrote 1-a-xff-xfe-circle"))
    assert all(sentence in line for line, sentence in zip(out[wrote + 1 :], later.values(), strict=False)), out
    assert out[-1].startswith("Wrote good") and "\x1b" not in outcome.out and "Traceback" not in outcome.out
    assert json.loads((tmp_path / "good" / "conversation.json").read_text())["rounds"][0]["text"] == "a \\xff\\xfe circle"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["MODEL", "a circle"], ["--chat takes a CHECKPOINT at most"]),
        (["MODEL", "--answer"], ["leave --answer out"]),
        (["MODEL", "--chat-slots", 10], ["chat_slots = 10", "use at least"]),
        (["MODEL", "--chat-tokens", 2], ["chat_tokens = 2"]),
        (["MODEL", "--image", "none.png"], ["no picture none.png"]),
        (["MODEL", "--out", "FILE"], ["is a file; name a folder"]),
        (["MODEL", "--seed", -1], ["seed = -1"]),
    ],
    ids=str,
)
def test_a_conversation_that_cannot_begin_is_one_sentence(typed, tiny_model, tmp_path, arguments, words):
    (tmp_path / "file").write_text("")
    given = [{"MODEL": tiny_model, "FILE": tmp_path / "file"}.get(a, a) for a in arguments]
    outcome = typed(["a circle"], *given)
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and "Traceback" not in outcome.err, outcome
    assert all(word in outcome.err for word in words), outcome.err


def test_what_the_model_says_moves_no_cursor(capsys, tmp_path):
    """The model's words and its pictures at a terminal that shows letters only."""
    done = module.Round(text="a", thinking="red\x1b[2J\x07 \u202e circle", image=np.zeros((4, 4, 3), np.uint8))
    conversation = types.SimpleNamespace(say=lambda program, text: done, rounds=(done,))
    chats.Chat(conversation=conversation, make=lambda picture: None, open=None, out=tmp_path, enlarge=2, facts={}).say("a")
    out = capsys.readouterr().out
    assert out.startswith("red\\x1b[2J\\x07 \\u202e circle\nWrote ") and (tmp_path / "1-a.png").exists()


def test_a_device_without_memory_is_one_sentence(tmp_path):
    def say(program, text):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    chat = chats.Chat(conversation=types.SimpleNamespace(say=say), make=lambda picture: None, open=None, out=tmp_path,
                      enlarge=1, facts={})  # fmt: skip
    with pytest.raises(ConfigError, match="memory does not suffice"):
        chat.say("a")


class Terminal(io.StringIO):
    """A stream that says it is one."""

    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"TERM": "xterm-256color"}, "blocks"),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, None),
        ({"TERM": "xterm-256color", "NO_COLOR": ""}, "blocks"),
        ({"TERM": "dumb", "KITTY_WINDOW_ID": "1"}, None),
        ({}, None),
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1", "NO_COLOR": "1"}, "kitty"),
        ({"TERM": "xterm-ghostty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, "iterm"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"TERM": "tmux-256color", "TMUX": "/tmp/x", "TERM_PROGRAM": "tmux", "KITTY_WINDOW_ID": "1"}, "blocks"),
        ({"TERM": "screen", "LC_TERMINAL": "iTerm2"}, "blocks"),
    ],
    ids=str,
)
def test_how_a_terminal_shows_pictures_follows_from_its_environment(environ, expected):
    assert terminal_pictures.way(Terminal(), environ) == expected
    assert terminal_pictures.way(io.StringIO(), environ) is None
    narrow = Terminal()
    narrow.encoding = "latin-1"
    assert terminal_pictures.way(narrow, environ) in ({expected} - {"blocks"} or {None})


def shown(image, environ) -> str:
    stream = Terminal()
    terminal_pictures.show(image, stream, environ)
    return stream.getvalue()


def test_inline_pictures_come_back_whole():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 50, 3), np.uint8))
    opened = lambda data: np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    same = lambda data: np.testing.assert_array_equal(opened(data), np.asarray(image))
    commands = re.findall("\x1b_G(.*?);(.*?)\x1b\\\\", text := shown(image, {"TERM": "xterm-kitty"}))
    assert re.sub("\x1b_G.*?\x1b\\\\", "", text) == "\n" and len(commands) > 2
    assert [head for head, _ in commands] == ["a=T,f=100,q=2,m=1", *["m=1"] * (len(commands) - 2), "m=0"]
    assert all(len(piece) <= 4096 and len(piece) % 4 == 0 for _, piece in commands)
    same("".join(piece for _, piece in commands))
    text = shown(image, {"TERM": "xterm", "TERM_PROGRAM": "iTerm.app"})
    size, data = re.fullmatch("\x1b]1337;File=inline=1;size=([0-9]+);preserveAspectRatio=1:(.*)\x07\n", text).groups()
    assert int(size) == len(base64.b64decode(data))
    same(data)


def test_half_blocks_are_the_pixels_in_pairs():
    pixels = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [1, 2, 3]], [[9, 9, 9], [255, 255, 255]]], np.uint8)
    environ = {"TERM": "xterm", "COLORTERM": "truecolor"}
    first, second, end = shown(Image.fromarray(pixels), environ).split("\n")
    assert first == "\x1b[38;2;255;0;0;48;2;0;0;255m▀\x1b[0m\x1b[38;2;0;255;0;48;2;1;2;3m▀\x1b[0m" and end == ""
    assert second == "\x1b[38;2;9;9;9m▀\x1b[0m\x1b[38;2;255;255;255m▀\x1b[0m"
    few = shown(Image.fromarray(pixels), {"TERM": "xterm"}).split("\n")[0]
    assert few == "\x1b[38;5;196;48;5;21m▀\x1b[0m\x1b[38;5;46;48;5;16m▀\x1b[0m"
    large = shown(Image.new("RGB", (400, 1000)), environ).split("\n")
    assert len(large) == 25 and large[0].count("▀") == 19
