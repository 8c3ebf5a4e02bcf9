"""Episodes of several rounds: what is read, what is trained, and that one round is what it always was."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracle, tiny
from tests.command import HEADS, run_small
from unigrpo_jax.episode import Drawing, Look, Thinking, TokenBlock
from unigrpo_jax.models import tree
from unigrpo_jax.training.metrics import read_metrics
from unigrpo_jax.training.samples import load_samples, saved_steps
from unigrpo_jax.training.trainer import Trainer
from unigrpo_jax.worlds.prompt import CHECKED
from unigrpo_jax.worlds.source import read_source

START = tiny.params()
TRAINED = tiny.nearby(START, 0.02)
PROMPTS, GROUP = 2, 3
B = PROMPTS * GROUP
TURNS = (tiny.prompts((1, 4), 6, seed=9), tiny.prompts((3, 2), 6, seed=10))


@functools.cache
def rollout(rounds: int, **changes):
    program = dataclasses.replace(tiny.rollout_program(GROUP, **changes), rounds=rounds)
    return tiny.jit(program.__call__)


@functools.cache
def episodes(rounds: int = 3, talks: bool = True):
    prompt = tiny.prompts((2, 4))
    turns = TURNS[: rounds - 1] if talks else ()
    return rollout(rounds)(START, {}, prompt, 5, 2, 7, None, turns)


def kinds(batch) -> list[type]:
    return [type(s) for s in batch.segments]


def test_an_episode_of_rounds_is_one_list_of_segments():
    assert kinds(episodes(1)) == [Thinking, Drawing]
    assert kinds(episodes(3)) == [Thinking, Drawing, *[Look, TokenBlock, Thinking, Drawing] * 2]
    assert kinds(episodes(2, talks=False)) == [Thinking, Drawing, Look, Thinking, Drawing]
    assert episodes(3).drawing is episodes(3).segments[-1] and len(episodes(3).drawings) == 3


def test_the_first_round_of_several_is_the_single_round_bit_for_bit():
    first = episodes(3)
    tiny.assert_trees_equal(first.replace(segments=first.segments[:2]), episodes(1))


def test_what_is_looked_at_is_the_image_that_was_drawn():
    batch = episodes(3)
    for drawing, seen in zip(batch.drawings, [s for s in batch.segments if isinstance(s, Look)], strict=False):
        n, p = B, tiny.CONFIG.latent_patch
        pixels = np.asarray(drawing.image, np.float64).reshape(n, 3, p, 2, p, 3).transpose(0, 1, 3, 2, 4, 5)
        np.testing.assert_allclose(np.asarray(seen.latent), pixels.reshape(n, 3, 2, -1) / 127.5 - 1, atol=1e-6)


def test_rounds_draw_their_own_randomness():
    batch = episodes(3)
    noise = [np.asarray(d.noise).reshape(B, -1) for d in batch.drawings]
    rows = np.concatenate(noise)
    assert np.abs(np.corrcoef(rows) - np.eye(len(rows))).max() < 0.35


def read(batch, row: int, upto: int):
    """What episode `row` has read before segment `upto`, as the oracle takes it: texts and images in order."""
    one = jax.tree.map(lambda x: np.asarray(x)[row], batch)
    ids = lambda block: block.tokens[block.valid].tolist()
    blocks = [ids(one.prompt)]
    for s in one.segments[:upto]:
        if isinstance(s, Thinking):
            actions = s.tokens[s.mask].tolist()
            stopped = actions and actions[-1] == tiny.EOS
            blocks.append([tiny.BOS, *actions, *([] if stopped else [tiny.EOS])])
        elif isinstance(s, Look):
            blocks.append(s.latent.reshape(-1, s.latent.shape[-1]).astype(np.float64))
        elif isinstance(s, TokenBlock):
            blocks.append(ids(s))
    return blocks


@pytest.mark.parametrize("talks", [True, False])
def test_both_policies_of_every_round_are_those_of_the_whole_sequence(talks):
    """Against one float64 forward pass over everything that was read: positions, masks and experts of all blocks."""
    batch = episodes(3 if talks else 2, talks)
    views = tiny.view()(TRAINED, batch)
    exact = oracle.to64(TRAINED)
    times = oracle.schedule(tiny.ROLLOUT.flow_steps, tiny.ROLLOUT.timestep_shift)
    for row in (0, 4):
        for index, segment in enumerate(batch.segments):
            one = jax.tree.map(lambda x, row=row: np.asarray(x)[row], segment)
            if isinstance(segment, Thinking):
                actions = one.tokens[one.mask].tolist()
                before = read(batch, row, index)
                logits = oracle.forward(exact, [*before, [tiny.BOS, *actions]])[0][-len(actions) - 1 : -1]
                expected = oracle.log_softmax(logits / tiny.ROLLOUT.temperature)[np.arange(len(actions)), actions]
                found = np.asarray(views[index].log_probs)[row]
                np.testing.assert_allclose(found[one.mask], expected, atol=2e-4)
            elif isinstance(segment, Drawing):
                before = read(batch, row, index)
                for w, step in enumerate(one.steps):
                    expected = oracle.forward(exact, before, one.x[w].astype(np.float64), times[step])[1]
                    np.testing.assert_allclose(np.asarray(views[index].output)[row, w], expected, atol=2e-3, rtol=2e-3)
            else:
                assert views[index] is None


@functools.cache
def measured(rounds: int, talks: bool):
    """(advantages, own) -> (loss, metrics) of TRAINED, or (`own`) of START, both having begun at START."""
    objective, batch = tiny.told(tiny.objective(text_kl_weight=0.1)), episodes(rounds, talks)
    start, trained = (tiny.view()(params, batch) for params in (START, TRAINED))

    @tiny.jit
    def run(views, advantages, on_policy):
        anchors = objective.anchors(start, start, batch, own_start=False)
        return objective(views, batch, anchors, advantages, on_policy)

    return lambda advantages, own=False: run(start if own else trained, advantages, own)


def loss_of_two(advantages):
    """(loss, metrics) of episodes of two rounds, off-policy."""
    return measured(2, talks=False)(advantages)


ADVANTAGES = tiny.advantages(count=B)


def test_the_loss_of_rounds_is_the_mean_of_their_losses():
    """One round's advantage alone, and then the other's: one advantage per round is what each of its actions gets."""
    same = jnp.repeat(ADVANTAGES[:, None], 2, axis=1)
    shared, spread = loss_of_two(ADVANTAGES)[0], loss_of_two(same)[0]
    np.testing.assert_allclose(spread, shared, rtol=1e-6)
    alone = [jnp.zeros((B, 2)).at[:, r].set(ADVANTAGES) for r in range(2)]
    none, *each = [loss_of_two(a)[0] for a in (jnp.zeros((B, 2)), *alone)]
    np.testing.assert_allclose(sum(x - none for x in each), shared - none, rtol=1e-4, atol=1e-6)
    assert len({round(float(x), 6) for x in each}) == 2


def test_a_thinking_and_a_drawing_may_have_their_own_advantages():
    """A segment's own advantage is all that its ratio sees: zero for one of the two leaves the other's loss alone."""
    zero, per_round = jnp.zeros((B, 2)), jnp.stack([ADVANTAGES, ADVANTAGES[::-1]], axis=1)
    loss = lambda thinking, drawing: loss_of_two(jnp.stack([thinking, drawing], axis=2))
    (none, _), (text, at_text) = loss(zero, zero), loss(per_round, zero)
    (flow, at_flow), (both, _) = loss(zero, per_round), loss(per_round, per_round)
    np.testing.assert_allclose(both, loss_of_two(per_round)[0], rtol=1e-6)
    np.testing.assert_allclose(text - none + flow - none, both - none, rtol=1e-4, atol=1e-6)
    assert at_text["flow/loss"] == 0 == at_flow["text/loss"] and at_text["text/loss"] != 0 != at_flow["flow/loss"]
    same = jnp.repeat(ADVANTAGES[:, None], 2, axis=1)
    np.testing.assert_allclose(loss(ADVANTAGES[:, None], zero[:, :1])[0], loss(same, zero)[0], rtol=1e-6)


def test_the_rollout_agrees_with_the_policy_of_every_round():
    _, metrics = measured(3, talks=True)(ADVANTAGES, own=True)
    assert metrics["text/log_prob_gap_max"] < 1e-4 and metrics["flow/log_prob_gap_max"] < 1e-3


def test_updates_of_rounds_are_on_policy_and_the_same_in_pieces():
    for metrics in tiny.assert_updates_agree_in_pieces(episodes(2, talks=False), ADVANTAGES, START):
        for name in ("text/ratio_min", "text/ratio_max", "flow/ratio_min", "flow/ratio_max"):
            assert metrics[name] == 1, name


def test_a_later_round_teaches_an_earlier_thinking_only_through_the_context():
    """Advantage in round 2 alone: with `stop` the flow's gradient stays in its own expert."""
    batch, last = episodes(2, talks=False), jnp.zeros((B, 2)).at[:, 1].set(ADVANTAGES)
    start, flat = tiny.view()(START, batch), tree.flatten(START)
    asked = ("embed/embedding", "layers/und/k_proj/kernel", "layers/gen/q_proj/kernel")

    def gradient(context_gradient):
        objective = tiny.objective(text_weight=0.0, mse_weight=0.0, context_gradient=context_gradient)
        anchors = tiny.told(objective).anchors(start, start, batch, own_start=True)

        def loss(moved):
            return objective(tree.unflatten(flat | moved), batch, anchors, last, True)[0]

        return tiny.jit(jax.grad(loss))({path: flat[path] for path in asked})

    full, stop = gradient("full"), gradient("stop")
    largest = lambda grads: float(jnp.abs(grads["layers/und/k_proj/kernel"]).max())
    assert largest(full) > 0 and float(jnp.abs(full["layers/gen/q_proj/kernel"]).max()) > 0
    touched = lambda grads: float(jnp.abs(grads["embed/embedding"][5:]).max())  # words, not the image's markers
    assert touched(full) > 0 and touched(stop) == 0


def test_rollouts_of_rounds_are_the_same_in_pieces():
    cut = rollout(3, micro_batches=2)(START, {}, tiny.prompts((2, 4)), 5, 2, 7, None, TURNS)
    tiny.assert_episodes_equal(episodes(3), cut, 2e-5)


def test_turns_that_do_not_fit_the_rounds_are_refused():
    with pytest.raises(ValueError, match="3 rounds take 2 later turns or none, not 1"):
        rollout(3)(START, {}, tiny.prompts((2, 4)), 5, 2, 7, None, TURNS[:1])


@pytest.fixture
def talk(tmp_path, monkeypatch):
    """Prompts with a second turn, which the reward is told, and a reward that says what it was asked about."""
    prompts = [
        {"prompt": f"a {c} circle", "turns": ["a square"], "rounds": [{"want": 0}, {"want": 1}]} for c in ("red", "blue")
    ]
    (tmp_path / "talk.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    (tmp_path / "asked_reward.py").write_text(
        "def score(batch):\n"
        "    said = [p.count('square') for p in batch.prompts]\n"
        "    assert said == [m['want'] for m in batch.metadata], (batch.prompts, batch.metadata)\n"
        "    return {'red': batch.images[..., 0].mean((1, 2)) / 255, 'said': said}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return ["--prompts", tmp_path / "talk.jsonl", "--rewards", "asked_reward:score", "--rollout.rounds", 2]


def lines(run_dir):
    timed = lambda name: name.startswith("time/") or name.endswith("_per_second")
    return [{n: x for n, x in line.items() if not timed(n)} for line in read_metrics(run_dir / "metrics.jsonl")]


def test_a_run_of_two_rounds_hears_looks_is_rewarded_by_round_and_goes_on(tiny_model, talk, tmp_path):
    own = [*talk, *HEADS, "--learning.round-reward", "gain", "--learning.credit", "round"]
    whole = run_small(tiny_model, tmp_path / "whole", *own, "--iterations", 4)
    assert whole.code == 0, whole.err
    found = lines(tmp_path / "whole")
    assert [line["reward/said/mean"] for line in found] == [1] * 4
    assert [line["round1/reward/said/mean"] for line in found] == [0] * 4
    assert all(line["text/ratio_max"] == line["flow/ratio_max"] == 1 for line in found)
    table = json.loads((tmp_path / "whole" / "summary.json").read_text())["after"]
    assert table["said"]["overall"] == 1 and table["round1_said"]["overall"] == 0 and "round1_red" in table
    steps = saved_steps(tmp_path / "whole")
    shown = [sample for step in steps for sample in load_samples(tmp_path / "whole", step)]
    assert len(steps) >= 2 and {s.asked for s in shown} <= {"a red circle → a square", "a blue circle → a square"}
    for first, last in (s.rounds for s in shown):
        assert "said 0.000" in first.verdict and "said 1.000" in last.verdict and first.prompt != last.prompt == "a square"
        assert f"red {first.image[..., 0].mean() / 255:.3f}" in first.verdict and (first.image != last.image).any()
    page = (tmp_path / "whole" / "report.html").read_text()
    assert page.count("<div class=strip>") == 2 * len(shown) // len(steps)
    begun = run_small(tiny_model, tmp_path / "cut", *own, "--iterations", 2)
    assert begun.code == 0, begun.err
    resumed = run_small(tiny_model, tmp_path / "cut", *own, "--iterations", 4, "--resume")
    assert resumed.code == 0, resumed.err
    assert lines(tmp_path / "cut") == found


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rollout.rounds", 1], ["has 1 later turns, and rollout.rounds = 1 hears 0", "use rollout.rounds = 2"]),
        (["--rollout.rounds", 3], ["rollout.rounds = 3 hears 2", "use rollout.rounds = 2"]),
        (["--rollout.rounds", 0], ["rollout.rounds = 0", "at least 1"]),
        (["--learning.credit", "round", "--learning.best", 1], ["learning.credit = 'round'", "use 'shared'"]),
    ],
)
def test_rounds_that_cannot_be_are_one_sentence(tiny_model, talk, tmp_path, arguments, words):
    outcome = run_small(tiny_model, tmp_path / "run", *talk, *arguments)
    assert outcome.code == 2 and outcome.err.count("\n") == 1, outcome
    assert all(word in outcome.err for word in words), outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"turns": ["a square " * 9]}, ["(PATH, line 2) has 20 tokens", "bucket of 18", "rollout.prompt_tokens = 20"]),
        ({"prompt": "a " * 18}, ["(PATH, line 2) has 20 tokens", "bucket of 18", "rollout.prompt_tokens = 20"]),
        ({"turns": ["a", "b"]}, ["has 2 later turns", "rollout.rounds = 2 hears 1", "use rollout.rounds = 3"]),
        ({"turns": "a square"}, ["`turns` that are no list of texts"]),
        ({"turns": []}, ["later turns, and others of the run", "give all the same number"]),
    ],
)
def test_words_that_do_not_fit_are_refused_before_anything_compiles(
    tiny_model, talk, tmp_path, monkeypatch, changed, words
):
    """The second of two prompts, which the first iteration of one prompt would not have met."""
    path = tmp_path / "talk.jsonl"
    first, second = map(json.loads, path.read_text().splitlines())
    path.write_text("\n".join(map(json.dumps, [first, second | changed])))
    monkeypatch.setattr(Trainer, "compile", lambda self: pytest.fail("it compiles"))
    outcome = run_small(tiny_model, tmp_path / "run", *talk)
    assert outcome.code == 2 and outcome.err.count("\n") == 1, outcome
    assert all(word.replace("PATH", str(path)) in outcome.err for word in words), outcome.err
    assert not (tmp_path / "run").exists()


def test_the_longest_turns_are_among_what_is_checked(tmp_path):
    """4097 prompts with more letters than one whose turn has more still."""
    path = tmp_path / "prompts.jsonl"
    many = [{"prompt": "a red circle", "turns": ["a"]}] * (CHECKED + 1)
    path.write_text("\n".join(map(json.dumps, [*many, {"prompt": "a", "turns": ["a red circle and more"]}])))
    longest = read_source(str(path)).longest
    assert len(longest) == CHECKED and longest[0].turns == ["a red circle and more"]
