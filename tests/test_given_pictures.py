"""Prompts that come with a picture: seen first, recorded, trained on, shown to rewards; and what is refused."""

import dataclasses
import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests import oracle, tiny
from tests.command import HEADS, command, run_small
from unigrpo_jax.config import ConfigError, JudgingConfig, RolloutConfig
from unigrpo_jax.episode import Thinking
from unigrpo_jax.learning.objective import TextAnchor
from unigrpo_jax.models import tree
from unigrpo_jax.models.bagel import Bagel
from unigrpo_jax.models.bagel.release import BAGEL_7B
from unigrpo_jax.rewards.judging import Judging
from unigrpo_jax.rewards.protocol import RewardBatch
from unigrpo_jax.training.evaluation import by_round, join
from unigrpo_jax.training.given import check_pictures, given_pictures, picture_shapes
from unigrpo_jax.training.metrics import read_metrics
from unigrpo_jax.worlds.prompt import Prompt
from unigrpo_jax.worlds.source import read_source

START = tiny.params()
TRAINED = tiny.nearby(START, 0.02)
PROMPTS, GROUP = 2, 3
B = PROMPTS * GROUP
H, W = tiny.ROLLOUT.image_height, tiny.ROLLOUT.image_width
LEVELS = np.random.default_rng(4).integers(0, 256, (PROMPTS, H, W, 3)).astype(np.uint8)


def shown(*pictures) -> list[Prompt]:
    return [Prompt(text=f"p{i}", picture=lambda x=x: x) for i, x in enumerate(pictures)]


PICTURE = given_pictures(shown(*LEVELS), tiny.MODEL, tiny.ROLLOUT)


@functools.cache
def rollout(rounds: int = 1, **changes):
    program = dataclasses.replace(tiny.rollout_program(GROUP, **changes), rounds=rounds)
    return tiny.jit(program.__call__)


@functools.cache
def episodes(rounds: int = 1, seen: bool = True):
    return rollout(rounds)(START, {}, tiny.prompts((2, 4)), 5, 2, 7, PICTURE if seen else None)


def tokens(levels):
    """Images [B, H, W, 3] as latent tokens [B, N, C], by hand."""
    p = tiny.CONFIG.latent_patch
    x = np.asarray(levels, np.float64).reshape(len(levels), H // p, p, W // p, p, 3).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(len(levels), H // p * (W // p), -1) / 127.5 - 1


def test_an_episode_records_what_was_seen_and_a_group_shares_it():
    seen = episodes().picture
    assert seen.patches is None and seen.latent.shape == (B, *tiny.GRID, tiny.CONFIG.latent_width)
    expected = np.repeat(tokens(LEVELS), GROUP, axis=0)
    np.testing.assert_allclose(np.asarray(seen.latent).reshape(expected.shape), expected, atol=1e-6)
    assert episodes(seen=False).picture is None
    assert (episodes().thinking.tokens != episodes(seen=False).thinking.tokens).any()
    np.testing.assert_array_equal(PICTURE.levels, LEVELS)


def read(batch, row: int, index: int):
    """What episode `row` has read before segment `index`, as the oracle takes it."""
    one = jax.tree.map(lambda x: np.asarray(x)[row], batch)
    seen = lambda look: look.latent.reshape(-1, look.latent.shape[-1]).astype(np.float64)
    blocks = [seen(one.picture), one.prompt.tokens[one.prompt.valid].tolist()]
    for s in one.segments[:index]:
        if isinstance(s, Thinking):
            actions = s.tokens[s.mask].tolist()
            blocks.append([tiny.BOS, *actions, *([] if actions and actions[-1] == tiny.EOS else [tiny.EOS])])
        elif hasattr(s, "patches"):
            blocks.append(seen(s))
    return blocks


@pytest.mark.parametrize("rounds", [1, 2])
def test_both_policies_are_those_of_the_whole_sequence_with_the_picture_first(rounds):
    """Against one float64 forward pass over picture, prompt, thinking and drawing, of every round."""
    batch, exact = episodes(rounds), oracle.to64(TRAINED)
    views = tiny.view()(TRAINED, batch)
    times = oracle.schedule(tiny.ROLLOUT.flow_steps, tiny.ROLLOUT.timestep_shift)
    compared = 0
    for row in (0, 4):
        for index, segment in enumerate(batch.segments):
            one, before = jax.tree.map(lambda x, row=row: np.asarray(x)[row], segment), read(batch, row, index)
            if isinstance(segment, Thinking):
                actions = one.tokens[one.mask].tolist()
                logits = oracle.forward(exact, [*before, [tiny.BOS, *actions]])[0][-len(actions) - 1 : -1]
                expected = oracle.log_softmax(logits / tiny.ROLLOUT.temperature)[np.arange(len(actions)), actions]
                np.testing.assert_allclose(np.asarray(views[index].log_probs)[row][one.mask], expected, atol=2e-4)
            elif views[index] is not None:
                for w, step in enumerate(one.steps):
                    expected = oracle.forward(exact, before, one.x[w].astype(np.float64), times[step])[1]
                    np.testing.assert_allclose(np.asarray(views[index].output)[row, w], expected, atol=2e-3, rtol=2e-3)
            compared += views[index] is not None
    assert compared == 2 * 2 * rounds


ADVANTAGES = tiny.advantages(count=B)


@functools.cache
def gaps():
    """(views, batch) -> the metrics of a policy that has these views."""
    objective = tiny.told(tiny.objective())

    def run(views, batch):
        return objective(views, batch, objective.anchors(views, views, batch, True), ADVANTAGES, True)[1]

    return tiny.jit(run)


def test_the_rollout_agrees_with_a_policy_that_looks_and_with_no_other():
    seeing = gaps()(tiny.view()(START, episodes()), episodes())
    assert seeing["text/log_prob_gap_max"] < 1e-4 and seeing["flow/log_prob_gap_max"] < 1e-3
    blind = gaps()(tiny.view()(START, episodes().replace(picture=None)), episodes())
    assert blind["text/log_prob_gap_max"] > 1e-2


def test_the_gradient_reaches_how_a_picture_is_read():
    """The thinking alone moves the drawing's expert, through the keys and values of the picture's latents."""
    flat, objective = tree.flatten(START), tiny.objective()
    for seen in (True, False):
        batch = episodes(seen=seen)
        thought = batch.replace(segments=(batch.thinking,))

        def loss(moved, thought=thought):
            params = tree.unflatten(flat | moved)
            return objective(params, thought, (TextAnchor(old=None, reference=None),), ADVANTAGES, True)[0]

        kernels = {expert: f"layers/{expert}/v_proj/kernel" for expert in ("gen", "und")}
        grads = tiny.jit(jax.grad(loss))({path: flat[path] for path in kernels.values()})
        assert (float(jnp.abs(grads[kernels["gen"]]).max()) > 0) is seen
        assert float(jnp.abs(grads[kernels["und"]]).max()) > 0


def test_rollouts_are_the_same_in_pieces():
    cut = rollout(micro_batches=2)(START, {}, tiny.prompts((2, 4)), 5, 2, 7, PICTURE)
    tiny.assert_episodes_equal(episodes(), cut, 2e-5)


def test_updates_are_on_policy_and_the_same_in_pieces():
    for metrics in tiny.assert_updates_agree_in_pieces(episodes(), ADVANTAGES, START):
        for name in ("text/ratio_min", "text/ratio_max", "flow/ratio_min", "flow/ratio_max"):
            assert metrics[name] == 1, name


def test_a_picture_that_is_not_finite_leaves_its_group_blank_and_no_other_changes():
    spoilt = PICTURE.replace(pixels=PICTURE.pixels.copy())
    spoilt.pixels[1, 3, 2] = np.nan
    batch = rollout()(START, {}, tiny.prompts((2, 4)), 5, 2, 7, spoilt)
    assert np.asarray(batch.drawing.finite).tolist() == [True] * GROUP + [False] * GROUP
    assert all(np.isfinite(np.asarray(x, np.float64)).all() for x in jax.tree.leaves(batch))
    rows = lambda b: jax.tree.map(lambda x: x[:GROUP], b)
    tiny.assert_trees_equal(rows(batch), rows(episodes()))
    state, metrics = tiny.updated(batch, ADVANTAGES.at[GROUP:].set(0.0), TRAINED, START, micro_batches=1)
    assert metrics["update/skipped"] == 0 and all(np.isfinite(x).all() for x in jax.tree.leaves((state.trained, metrics)))


# What a reward sees.


class Words:
    """A codec that has no words."""

    def thoughts(self, thinking, count):
        return [""] * count


def test_a_round_begins_from_the_picture_and_then_from_what_was_drawn():
    batch, asked = episodes(2), [Prompt(text="a")] * B
    given = np.repeat(LEVELS, GROUP, axis=0)
    group = np.arange(B) // GROUP
    first, second = by_round(batch, asked, Words(), np.asarray, given, group)
    for each in (first, second, join([first.take([0, 1]), first.take(range(2, B))])):
        np.testing.assert_array_equal(each.group, group)
    np.testing.assert_array_equal(second.take([B - 1, 0]).group, group[[B - 1, 0]])
    np.testing.assert_array_equal(first.before, given)
    np.testing.assert_array_equal(second.before, batch.drawings[0].image)
    np.testing.assert_array_equal(second.images, batch.drawings[1].image)
    first, second = by_round(batch, asked, Words(), np.asarray, None)
    assert first.before is None and second.before is not None
    np.testing.assert_array_equal(second.take([4, 0]).before, second.before[[4, 0]])
    assert first.take([1]).before is None and join([first, first]).before is None
    np.testing.assert_array_equal(join([second, second.take([2])]).before, second.before[[*range(B), 2]])


def test_an_edit_of_another_picture_is_another_episode_to_the_memory():
    calls = []

    class Reward:
        cost, identity = "host", "counting"

        def __call__(self, batch):
            calls.append(len(batch.prompts))
            return {"x": np.zeros(len(batch.prompts))}

    dark, light = (np.full((1, 2, 2, 3), x, np.uint8) for x in (0, 255))
    judging = Judging({"r": Reward()}, JudgingConfig(retries=0, remembered=10))
    for before in (None, dark, light, dark, None):
        judging(RewardBatch(prompts=["a"], metadata=[{}], images=dark, thinking=[""], before=before))
    assert calls == [1, 1, 1]


# Prompts with pictures.


@pytest.mark.parametrize("model, side", [(tiny.MODEL, 12), (Bagel(BAGEL_7B), 512)])
def test_programs_are_compiled_for_what_is_given(model, side):
    rollout = dataclasses.replace(tiny.ROLLOUT, image_height=side, image_width=side)
    found = given_pictures(shown(np.zeros((side, side, 3), np.uint8)), model, rollout)
    expected = picture_shapes(1, model, rollout)
    like = lambda x: (x.shape, np.dtype(x.dtype))
    assert jax.tree.map(like, found) == jax.tree.map(like, expected)
    assert (found.patches is None) is (model.config.vision is None)


def refusal(call, *arguments) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*arguments)
    text = str(caught.value)
    assert "\n" not in text and text.endswith("."), text
    return text


def test_prompts_with_and_without_pictures_do_not_mix():
    with_one, without = shown(LEVELS[0])[0], Prompt(text="b", place="here")
    text = refusal(given_pictures, [with_one, without], tiny.MODEL, tiny.ROLLOUT)
    assert "the prompt 'b' (here) comes with no picture, and others of the run with one" in text and "`image`" in text
    assert "'p0' comes with a picture, and others of the run with none" in refusal(
        given_pictures, [with_one], tiny.MODEL, tiny.ROLLOUT, False
    )
    check_pictures([[with_one], [with_one]], tiny.MODEL, tiny.ROLLOUT)
    assert "'b' (here) comes with no" in refusal(check_pictures, [[with_one], [without]], tiny.MODEL, tiny.ROLLOUT)
    assert given_pictures([without], tiny.MODEL, tiny.ROLLOUT) is None


def test_pictures_have_the_size_of_the_run():
    """Also where they are resized for the model first."""
    wide = shown(LEVELS[0], np.zeros((8, 12, 3), np.uint8))
    text = refusal(given_pictures, wide, tiny.MODEL, tiny.ROLLOUT)
    assert "'p1' has 8 x 12 pixels (height x width), and the run draws 12 x 8" in text
    assert "rollout.image_height = 8 and rollout.image_width = 12" in text
    text = refusal(check_pictures, [shown(np.zeros((60, 40, 3), np.uint8))], tiny.MODEL, tiny.ROLLOUT)
    assert "60 x 40 pixels (height x width), 16 x 12 as the model takes it" in text


@pytest.fixture
def edits(tmp_path, monkeypatch):
    """A file of prompts with two pictures below its folder, and a reward that compares `before` with the file."""
    (tmp_path / "in").mkdir()
    for name, color in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        image = np.random.default_rng(len(name)).integers(0, 60, (24, 24, 3)).astype(np.uint8)
        Image.fromarray(image | np.uint8(color)).save(tmp_path / "in" / f"{name}.png")
    lines = [{"prompt": "a square", "image": "in/red.png"}, {"prompt": "a circle", "image": "./in/blue.png"}]
    (tmp_path / "edits.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "edit_reward.py").write_text(
        "import pathlib\n"
        "import numpy as np\n"
        "from PIL import Image\n"
        "folder = pathlib.Path(__file__).parent\n"
        "def score(batch):\n"
        "    files = [np.asarray(Image.open(folder / m['image'])) for m in batch.metadata]\n"
        "    same = [float((x == y).all()) for x, y in zip(batch.before, files, strict=True)]\n"
        "    change = np.abs(batch.images.astype(int) - batch.before).mean((1, 2, 3)) / 255\n"
        "    return {'kept': 1 - change, 'same': same}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "edit_reward", raising=False)  # another test's, of another folder
    return tmp_path / "edits.jsonl"


def given(edits):
    return ["--prompts", edits, "--rewards", "edit_reward:score", *HEADS]


def test_a_file_names_pictures_that_are_read_when_they_are_asked_for(edits):
    source = read_source(str(edits))
    red, blue = source.groups[0]
    assert red.picture().shape == (24, 24, 3) and red.picture()[..., 0].min() == 255
    assert red.metadata == {"image": "in/red.png"}
    assert red.picture == source.longest[1].picture != blue.picture and red.at(0).picture is red.picture
    (edits.parent / "in" / "red.png").unlink()
    assert "there is no picture" in refusal(red.picture)
    assert read_source("examples").groups[0][0].picture is None


def lines(run_dir):
    timed = lambda name: name.startswith("time/") or name.endswith("_per_second")
    return [{n: x for n, x in line.items() if not timed(n)} for line in read_metrics(run_dir / "metrics.jsonl")]


def test_a_run_sees_its_pictures_trains_evaluates_and_goes_on(tiny_model, edits, tmp_path):
    whole = run_small(tiny_model, tmp_path / "whole", *given(edits), "--iterations", 4)
    assert whole.code == 0, whole.err
    found = lines(tmp_path / "whole")
    assert [line["reward/same/mean"] for line in found] == [1] * 4
    assert all(line["text/ratio_max"] == line["flow/ratio_max"] == 1 for line in found)
    assert all(line["text/log_prob_gap_max"] < 1e-4 and line["update/skipped"] == 0 for line in found)
    table = json.loads((tmp_path / "whole" / "summary.json").read_text())["after"]
    assert table["same"]["overall"] == 1 and 0 < table["kept"]["overall"] < 1
    for more in (["--iterations", 2], ["--iterations", 4, "--resume"]):
        outcome = run_small(tiny_model, tmp_path / "cut", *given(edits), *more)
        assert outcome.code == 0, outcome.err
    assert lines(tmp_path / "cut") == found
    settings = ["--evaluation.prompts", 6, "--evaluation.batch", 6, "--evaluation.flow-steps", 2, "--evaluation.no-thinking"]
    settings += ["--devices", 1, "--out", tmp_path / "table.json"]
    outcome = command("experiments.evaluate", tmp_path / "whole", *settings)
    assert outcome.code == 0, outcome.err
    assert json.loads((tmp_path / "table.json").read_text())["table"]["same"]["overall"] == 1


def test_a_picture_that_goes_away_stops_the_run_with_a_checkpoint(tiny_model, edits, tmp_path):
    """Gone between two iterations: what was learned is kept."""
    (tmp_path / "edit_reward.py").write_text(
        "import pathlib\n"
        "calls = 0\n"
        "def score(batch):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    if calls == 3:\n"
        "        (pathlib.Path(__file__).parent / 'in' / 'red.png').unlink()\n"
        "    return {'x': batch.images.mean((1, 2, 3))}\n"
    )
    outcome = run_small(tiny_model, tmp_path / "run", *given(edits), "--learning.group-size", 4)
    assert outcome.code != 0 and outcome.err.count("\n") == 1 and "Traceback" not in outcome.err, outcome
    assert "there is no" in outcome.err and "red.png" in outcome.err and "stopped after iteration 2" in outcome.err
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()


def test_a_model_with_a_vision_encoder_and_an_autoencoder_edits_in_training(edits, tmp_path):
    small = (
        "--evaluation.prompts", 2, "--evaluation.batch", 2, "--evaluation.no-thinking", "--rollout.thinking-tokens", 6,
        "--rollout.prompts-per-iteration", 2, "--learning.group-size", 4, "--devices", 1, "--iterations", 1,
    )  # fmt: skip
    for name in ("red", "blue"):
        path = edits.parent / "in" / f"{name}.png"
        Image.open(path).resize((48, 64)).save(path)
    outcome = command("experiments.run", "bagel_tiny", "--run-dir", tmp_path / "run", *given(edits), *small)
    assert outcome.code == 0, outcome
    (line,) = lines(tmp_path / "run")
    assert line["reward/same/mean"] == 1 and line["update/skipped"] == 0
    assert line["text/ratio_max"] == line["flow/ratio_max"] == 1 and line["text/log_prob_gap_max"] < 1e-4


def test_a_model_whose_latents_are_pixels_edits_a_picture(tiny_model, edits, tmp_path):
    drawn = []
    for image in ([], ["--image", edits.parent / "in" / "red.png"], ["--image", edits.parent / "in" / "blue.png"]):
        out = tmp_path / "out.png"
        small = ("--flow-steps", 2, "--thinking-tokens", 4, "--enlarge", 1)
        outcome = command("experiments.generate", "--model.path", tiny_model, "a square", *image, "--out", out, *small)
        assert outcome.code == 0, outcome.err
        drawn.append(np.asarray(Image.open(out)))
    assert all(x.shape == (24, 24, 3) for x in drawn)
    assert all((drawn[i] != drawn[j]).any() for i, j in ((0, 1), (1, 2)))


WORDS = [
    ([{"prompt": "a", "image": "in/red.png"}, {"prompt": "b"}], ["line 2", "'b'", "no picture", "`image`"]),
    ([{"prompt": "a"}, {"prompt": "b", "image": "in/red.png"}], ["line 2", "'b'", "a picture", "with none"]),
    ([{"prompt": "a", "image": "in/red.png"}, {"prompt": "b", "image": "small.png"}],
     ["'b'", "line 2", "16 x 24 pixels", "draws 24 x 24", "rollout.image_height = 16"]),
    ([{"prompt": "a", "image": "small.png"}], ["16 x 24 pixels", "rollout.image_height = 16"]),
    ([{"prompt": "a", "image": "in/no.png"}], ["line 1", "there is no such file"]),
    ([{"prompt": "a", "image": "in"}], ["line 1", "there is no such file"]),
    ([{"prompt": "a", "image": "in/not.png"}], ["not.png is not a picture"]),
    ([{"prompt": "a", "image": "../edits.png"}], ["line 1", "leaves the folder of the prompts"]),
    ([{"prompt": "a", "image": "/etc/passwd"}], ["line 1", "leaves the folder of the prompts"]),
    ([{"prompt": "a", "image": "in/../../up.png"}], ["line 1", "leaves the folder of the prompts"]),
    ([{"prompt": "a", "image": "link.png"}], ["line 1", "leaves the folder of the prompts"]),
    ([{"prompt": "a", "image": "round.png"}], ["line 1", "there is no such file"]),
    ([{"prompt": "a", "image": "a\0b"}], ["line 1", "no path that can be used"]),
    ([{"prompt": "a", "image": "x" * 5000}], ["line 1", '"image"', "xxx..."]),
    ([{"prompt": "a", "image": ["in/red.png"]}], ["line 1", '"image" is [', "write the path"]),
    ([{"prompt": "a", "image": ""}], ["line 1", "write the path"]),
]  # fmt: skip


@pytest.mark.parametrize("prompts, words", WORDS, ids=range(len(WORDS)))
@pytest.mark.parametrize("where", ["train", "evaluation"])
def test_pictures_that_cannot_be_are_one_sentence(tiny_model, edits, tmp_path, tmp_path_factory, prompts, words, where):
    outside = tmp_path_factory.mktemp("outside") / "up.png"
    Image.new("RGB", (24, 24)).save(outside)
    Image.new("RGB", (24, 16)).save(tmp_path / "small.png")
    (tmp_path / "in" / "not.png").write_text("no picture")
    (tmp_path / "link.png").symlink_to(outside)
    (tmp_path / "round.png").symlink_to(tmp_path / "round.png")
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join(map(json.dumps, prompts)))
    asked = given(path) if where == "train" else [*given(edits), "--evaluation.source", path]
    outcome = run_small(tiny_model, tmp_path / "run", *asked)
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and "Traceback" not in outcome.err, outcome
    assert all(word in outcome.err for word in words), outcome.err
    assert not (tmp_path / "run").exists()


def test_sources_with_and_without_pictures_do_not_mix(tiny_model, edits, tmp_path):
    outcome = run_small(tiny_model, tmp_path / "run", *given(edits), "--prompts", edits, "examples")
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and "no picture" in outcome.err, outcome
    assert not (tmp_path / "run").exists()


def test_prompts_without_pictures_ask_for_no_more_than_before():
    assert given_pictures([Prompt(text="a")] * 3, tiny.MODEL, RolloutConfig()) is None
    check_pictures([[Prompt(text="a")]], tiny.MODEL, RolloutConfig())
