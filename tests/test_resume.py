"""A run that is stopped and continued is the run that was never stopped; and it stops in order where it must."""

import importlib
import json
import pathlib
import resource
import shutil
import signal
import threading
import time

import jax
import numpy as np
import pytest

from tests.command import HEADS, REWARD, Outcome, run_small
from unigrpo_jax.config import ConfigError, RunConfig
from unigrpo_jax.config_json import load_run_config
from unigrpo_jax.learning.update import new_state
from unigrpo_jax.models.families import load_model
from unigrpo_jax.models.tree import flatten
from unigrpo_jax.rewards import judging
from unigrpo_jax.training import manifest, storage
from unigrpo_jax.training.checkpoint import Checkpoints, abstract
from unigrpo_jax.training.console import Console
from unigrpo_jax.training.restore import restore
from unigrpo_jax.training.trainer import Trainer


@pytest.fixture(scope="module")
def reward(tmp_path_factory):
    """The module of the reward function, importable; its `calls` and `at` say when it does something else."""
    folder = tmp_path_factory.mktemp("rewards")
    (folder / "tiny_reward.py").write_text(REWARD)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield importlib.import_module("tiny_reward")


@pytest.fixture
def at(reward):
    """{number of the call: function}; call 1 of a new run judges the held-out prompts, call n + 1 is iteration n."""
    reward.calls = 0
    reward.at.clear()
    yield reward.at
    reward.at.clear()


@pytest.fixture(scope="module")
def straight(tiny_model, reward, tmp_path_factory) -> pathlib.Path:
    """Six iterations without a stop."""
    reward.calls = 0
    run_dir = tmp_path_factory.mktemp("runs") / "straight"
    outcome = run_small(tiny_model, run_dir)
    assert outcome.code == 0, outcome.err
    return run_dir


@pytest.fixture
def copy(straight, tmp_path) -> pathlib.Path:
    """A finished run to tamper with."""
    return shutil.copytree(straight, tmp_path / "copy")


def state_at(run_dir: pathlib.Path, step: int):
    config = load_run_config(run_dir / "config.json")
    loaded = load_model(config.model)
    fresh = lambda p: new_state(p, config.learning, loaded.network.trained_by)
    like = jax.eval_shape(fresh, loaded.abstract_params())
    checkpoints = Checkpoints(run_dir / "checkpoints")
    return checkpoints.load(step, abstract(like, jax.sharding.SingleDeviceSharding(jax.devices()[0])))


def steps(run_dir: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in (run_dir / "checkpoints").iterdir() if path.name.isdigit())


def assert_same_state(run_dir: pathlib.Path, other: pathlib.Path, step: int):
    ours, theirs = jax.tree.leaves(state_at(run_dir, step)), jax.tree.leaves(state_at(other, step))
    assert len(ours) == len(theirs) > 60
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def metrics(run_dir: pathlib.Path) -> list[dict]:
    """The lines without what a clock measures."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    timed = lambda name: name.startswith("time/") or name.endswith("_per_second")
    return [{name: value for name, value in line.items() if not timed(name)} for line in lines]


def interrupt(_):
    signal.raise_signal(signal.SIGINT)


def assert_one_sentence(outcome: Outcome, code: int, *words: str):
    """One line on stderr that holds the words, and the exit code."""
    assert outcome.code == code, outcome
    assert outcome.err.startswith("experiments.run: ") and outcome.err.count("\n") == 1, outcome.err
    for word in words:
        assert word in outcome.err, outcome.err


def test_six_iterations_are_stopped_twice_and_end_in_the_same_bits(tiny_model, straight, at, tmp_path, monkeypatch):
    """Ctrl-C in iteration 3, continued to 4 (fewer iterations asked), continued to 6, against 6 without a stop."""
    run_dir = tmp_path / "stopped"
    at[4] = interrupt  # while iteration 3 is judged
    stopped = run_small(tiny_model, run_dir)
    assert stopped.code == 130 and "Traceback" not in stopped.err, stopped
    assert "Stopped after iteration 3" in stopped.out
    assert steps(run_dir) == [2, 3] and len(metrics(run_dir)) == 3
    assert_one_sentence(run_small(tiny_model, run_dir), 2, "--resume")

    to_four = run_small(tiny_model, run_dir, "--resume", "--iterations", 4)
    assert to_four.code == 0 and "Resuming after iteration 3" in to_four.out, to_four

    references, learn = [], Trainer.learn
    monkeypatch.setattr(Trainer, "learn", lambda self, *rest: (
        references.append(jax.tree.map(np.asarray, self.reference)), learn(self, *rest))[1])  # fmt: skip
    to_six = run_small(tiny_model, run_dir, "--resume", "--iterations", 6)
    assert to_six.code == 0 and "Resuming after iteration 4" in to_six.out, to_six

    assert_same_state(run_dir, straight, 4)
    assert_same_state(run_dir, straight, 6)
    ours, theirs = metrics(run_dir), metrics(straight)
    assert ours == theirs and len(ours) == 6
    assert ours[-1]["flow/velocity_mse"] > 0
    for name in ("before", "after", "iterations", "evaluation"):
        assert json.loads((run_dir / "summary.json").read_text())[name] == json.loads(
            (straight / "summary.json").read_text())[name]  # fmt: skip

    start = load_model(load_run_config(run_dir / "config.json").model).params()
    begun = flatten(start)
    moved = [not np.array_equal(begun[path], x) for path, x in state_at(run_dir, 4).trained.items()]
    assert sum(moved) > len(moved) / 2  # else the next lines prove nothing
    assert len(references) == 2
    jax.tree.map(np.testing.assert_array_equal, references[0], jax.tree.map(np.asarray, start))


def test_a_run_that_resamples_ends_in_the_same_bits_where_it_is_continued(tiny_model, at, tmp_path):
    """Groups are alike or not by their prompt's words, so that further rollouts are made; at most three an iteration."""
    odd = lambda batch: np.array([len(prompt) % 2 for prompt in batch.prompts])
    at["always"] = lambda batch: {"red": np.where(odd(batch), batch.images[..., 0].mean((1, 2)) / 255, 0.5)}
    own = ["--rollout.resample", 3]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for run_dir, *more in ((whole, "--iterations", 4), (parts, "--iterations", 2), (parts, "--iterations", 4, "--resume")):
        outcome = run_small(tiny_model, run_dir, *own, *more)
        assert outcome.code == 0, outcome.err
    assert_same_state(whole, parts, 4)
    lines = metrics(whole)
    assert lines == metrics(parts) and len(lines) == 4
    sampled = [line["episodes/sampled"] for line in lines]
    assert set(sampled) <= {8, 16, 24, 32} and max(sampled) > 8
    assert all(line["episodes/teaching"] == 8 or line["episodes/sampled"] == 32 for line in lines)


def test_the_policy_that_samples_is_continued_beside_the_trained_one(tiny_model, reward, at, tmp_path):
    """DiffusionNFT, drawn by the ODE; the two policies differ from the second iteration on."""
    own = [*HEADS, "--learning.method", "diffusion_nft", "--learning.nft.old-growth", 0.3, "--rollout.step-rule", "ode"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for run_dir, *more in ((whole, "--iterations", 3), (parts, "--iterations", 2), (parts, "--iterations", 3, "--resume")):
        outcome = run_small(tiny_model, run_dir, *own, *more)
        assert outcome.code == 0, outcome.err
    one, other = state_at(whole, 3), state_at(parts, 3)
    assert metrics(whole) == metrics(parts)
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert one.old.keys() == one.trained.keys() and any((one.old[path] != x).any() for path, x in one.trained.items())
    found = [(line["flow/old_mse"] > 0, line["text/ratio_max"] > 1) for line in metrics(whole)]
    assert found == [(False, False), (False, False), (True, True)]  # decay 0, then 0.3
    assert all("flow/positive_loss" in line and "flow/ratio_mean" not in line for line in metrics(whole))


def test_a_run_in_a_bucket_is_the_same(tiny_model, straight, at, tmp_path, monkeypatch):
    """The code for buckets, on a disk: stopped in iteration 3, continued to 6."""
    monkeypatch.setattr(storage, "is_bucket", lambda place: True)
    run_dir = tmp_path / "stopped"
    at[4] = interrupt
    assert run_small(tiny_model, run_dir).code == 130
    assert len(metrics(run_dir)) == 3
    outcome = run_small(tiny_model, run_dir, "--resume")
    assert outcome.code == 0, outcome.err
    assert metrics(run_dir) == metrics(straight)
    assert_same_state(run_dir, straight, 6)
    assert sorted(p.name for p in run_dir.iterdir()) == sorted(p.name for p in straight.iterdir())


def test_a_second_interrupt_stops_at_once_and_resume_on_what_is_there_starts(
    tiny_model, straight, at, tmp_path, monkeypatch
):
    run_dir = tmp_path / "twice"
    heard = threading.Event()  # two signals at once are one
    message = Console.message
    monkeypatch.setattr(Console, "message", lambda self, words: message(self, words) or "again" in words and heard.set())
    at[2] = lambda batch: (interrupt(batch), heard.wait(30), interrupt(batch), None)[3]
    outcome = run_small(tiny_model, run_dir)
    assert outcome.code == 130 and "Traceback" not in outcome.err
    assert steps(run_dir) == [] and metrics(run_dir) == []
    at.clear()
    resumed = run_small(tiny_model, run_dir, "--resume", "--iterations", 2)
    assert resumed.code == 0 and "no checkpoint to resume from" in resumed.out, resumed
    assert_same_state(run_dir, straight, 2)


def test_a_reward_that_fails_leaves_its_episodes_and_a_checkpoint(tiny_model, straight, at, tmp_path):
    """--resume on a folder that is not there starts the run."""
    run_dir = tmp_path / "failed"
    at[4] = lambda batch: 1 / 0
    outcome = run_small(tiny_model, run_dir, "--resume")
    assert_one_sentence(outcome, 1, "tiny_reward:score", "ZeroDivisionError", "iteration 3", "unjudged")
    assert steps(run_dir) == [2]
    assert_same_state(run_dir, straight, 2)
    episodes = json.loads((run_dir / "unjudged" / "000003" / "episodes.json").read_text())
    with np.load(run_dir / "unjudged" / "000003" / "images.npz") as arrays:
        assert arrays["images"].shape == (8, 24, 24, 3) and len(episodes) == 8
    assert all(episode["prompt"] for episode in episodes)
    assert (run_dir / "report.html").exists()


def test_a_reward_that_fails_on_held_out_prompts_stops_in_one_sentence(tiny_model, at, tmp_path):
    at[1] = lambda batch: np.full(len(batch.prompts), np.nan)
    outcome = run_small(tiny_model, tmp_path / "run")
    assert_one_sentence(outcome, 1, "tiny_reward:score", "no finite number for 6 of 6", "held-out")


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_five_updates_in_a_row_that_are_not_finite_stop_and_four_do_not(tiny_model, at, tmp_path):
    """Rewards near the largest float: their sum overflows, so the advantages and the loss are not finite."""
    huge = lambda batch: np.where(np.arange(len(batch.prompts)) % 4 == 3, -3e38, 3e38).astype(np.float32)
    start = 2
    for iteration in (1, 2, 3, 4, 6, 7, 8, 9, 10):
        at[start + iteration - 1] = huge
    run_dir = tmp_path / "run"
    outcome = run_small(tiny_model, run_dir, "--iterations", 12)
    assert_one_sentence(outcome, 1, "5 updates in a row", "iteration 10", "checkpoint")
    assert [line["update/skipped"] for line in metrics(run_dir)] == [1, 1, 1, 1, 0, 1, 1, 1, 1, 1]
    assert steps(run_dir)[-1] == 10
    state = state_at(run_dir, 10)
    assert int(state.skipped_in_row) == 5
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.trained))
    jax.tree.map(np.testing.assert_array_equal, state.trained, state_at(run_dir, 6).trained)  # only 5 moved them


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--learning.flow-clip", "1e-4"], ["learning.flow_clip = 0.0001 (was 1.2e-05)"]),
        (["--seed", "1", "--rollout.noise-level", "0.5"], ["seed = 1 (was 0)", "rollout.noise_level = 0.5 (was 0.8)"]),
        (["--learning.reward-weights", "red", "2"], ["learning.reward_weights = {'red': 2.0} (was {})"]),
        (["--iterations", "5"], ["iterations = 5", "has done 6", "use 6 or more"]),
    ],
)
def test_a_resume_with_another_meaning_is_refused_by_field(tiny_model, copy, arguments, words):
    before = (copy / "config.json").read_text()
    assert_one_sentence(run_small(tiny_model, copy, "--resume", *arguments), 2, *words)
    assert (copy / "config.json").read_text() == before


def test_other_base_weights_are_refused(tiny_model, copy, tmp_path):
    other = shutil.copytree(tiny_model, tmp_path / "other")
    assert_one_sentence(run_small(other, copy, "--resume"), 2, f"model.path = {other} (was {tiny_model})")
    record = json.loads((copy / "config.json").read_text())
    record["model"]["path"] = str(other)
    (copy / "config.json").write_text(json.dumps(record))
    data = bytearray((other / "ema.safetensors").read_bytes())
    data[-1] ^= 1
    (other / "ema.safetensors").write_bytes(data)
    assert_one_sentence(run_small(other, copy, "--resume"), 2, "other weights", str(other))


def test_a_resume_with_another_evaluation_judges_the_start_again(tiny_model, copy, at):
    """Before and after are always judged by the same settings; here the second look takes other noises."""
    first = json.loads((copy / "summary.json").read_text())
    outcome = run_small(tiny_model, copy, "--resume", "--evaluation.seed", 7)
    assert outcome.code == 0, outcome.err
    second = json.loads((copy / "summary.json").read_text())
    assert second["evaluation"]["seed"] == 7 and first["evaluation"]["seed"] == 0
    assert second["before"]["red"] != first["before"]["red"] and second["after"]["red"] != first["after"]["red"]
    assert len(metrics(copy)) == 6


@pytest.mark.parametrize("name", ["notes.txt", "checkpoints/1"])
def test_a_folder_that_holds_something_else_is_refused(tiny_model, reward, tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
    assert_one_sentence(run_small(tiny_model, tmp_path, "--resume"), 2, "holds no run", "--run-dir")


def flip_a_bit(path: pathlib.Path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(tiny_model, straight, copy):
    """Then the finished run is finished again, from iteration 4, and nobody uses what is damaged."""
    largest = max((copy / "checkpoints" / "6").rglob("*"), key=lambda p: p.stat().st_size)
    flip_a_bit(largest)
    with pytest.raises(ConfigError, match="checkpoints/6 is damaged .*holds other bytes"):
        restore(str(copy / "checkpoints" / "6"), RunConfig())
    assert restore(str(copy), RunConfig()).name == "copy-4"
    outcome = run_small(tiny_model, copy, "--resume")
    assert outcome.code == 0, outcome.err
    said = outcome.out.replace("\n", "")
    assert f"Skipping the checkpoint {copy}/checkpoints/6: " in said and largest.name in said
    assert "Resuming after iteration 4" in said
    assert metrics(copy) == metrics(straight)
    assert_same_state(copy, straight, 6)
    assert Checkpoints(copy / "checkpoints").newest() == (6, [])


def test_without_a_whole_checkpoint_the_run_is_left_as_it_is(tiny_model, copy):
    for step in (2, 4, 6):
        flip_a_bit(copy / "checkpoints" / str(step) / "manifest.json")
    before = (copy / "metrics.jsonl").read_bytes()
    assert_one_sentence(run_small(tiny_model, copy, "--resume"), 2, "none of the 3 checkpoints", "is whole", "--run-dir")
    assert steps(copy) == [2, 4, 6] and (copy / "metrics.jsonl").read_bytes() == before


def test_a_torn_line_is_left_out_and_written_anew(tiny_model, straight, copy):
    shutil.rmtree(copy / "checkpoints" / "6")
    path = copy / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    outcome = run_small(tiny_model, copy, "--resume")
    assert outcome.code == 0, outcome.err
    assert metrics(copy) == metrics(straight)


def test_what_a_kill_leaves_before_the_config_is_no_hindrance(tiny_model, at, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "provenance.json").write_text("{")
    (tmp_path / "run" / ".config.json.77.tmp").write_text("{")
    outcome = run_small(tiny_model, tmp_path / "run", "--resume", "--iterations", 1)
    assert outcome.code == 0, outcome.err
    assert not list((tmp_path / "run").glob(".*"))


def test_settings_that_are_allowed_to_change_may(tiny_model, straight, copy):
    changed = ["--learning.flow-clip", "1e-4", "--rollout.temperature", "0.9", "--iterations", "7"]
    outcome = run_small(tiny_model, copy, "--resume", *changed, "--allow-changed", "learning.flow-clip")
    assert_one_sentence(outcome, 2, "rollout.temperature = 0.9 (was 1.0)", "--allow-changed rollout.temperature")
    assert "flow_clip" not in outcome.err
    outcome = run_small(tiny_model, copy, "--resume", *changed, "--allow-changed", "learning.flow_clip", "rollout")
    assert outcome.code == 0 and "Resuming after iteration 6" in outcome.out, outcome.err
    assert load_run_config(copy / "config.json").learning.flow_clip == 1e-4
    carried = [Checkpoints(copy / "checkpoints").facts(step)["config"]["learning"]["flow_clip"] for step in (6, 7)]
    assert carried == [1.2e-5, 1e-4]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--resume", "--allow-changed", "learning.flow-clp"], ["learning.flow_clp", "did you mean learning.flow_clip?"]),
        (["--resume", "--allow-changed", "model.path"], ["other weights"]),
        (["--allow-changed", "seed"], ["--allow-changed is for --resume"]),
    ],
)
def test_what_may_not_be_allowed_to_change(tiny_model, copy, tmp_path, arguments, words):
    other = shutil.copytree(tiny_model, tmp_path / "other")
    flip_a_bit(other / "ema.safetensors")
    assert_one_sentence(run_small(other, copy, *arguments), 2, *words)


def test_a_run_folder_that_goes_away_ends_the_run_and_is_not_made_again(tiny_model, straight, at, tmp_path):
    run_dir, away = tmp_path / "run", tmp_path / "away"
    def move(batch):
        while not (run_dir / "checkpoints" / "2" / "manifest.json").exists():
            time.sleep(0.01)
        run_dir.rename(away)

    at[4] = move  # while iteration 3 is judged
    outcome = run_small(tiny_model, run_dir)
    assert_one_sentence(outcome, 1, f"{run_dir} cannot be written", "No such file or directory", "--resume")
    assert not run_dir.exists()
    away.rename(run_dir)
    at.clear()
    outcome = run_small(tiny_model, run_dir, "--resume")
    assert outcome.code == 0 and "Resuming after iteration 2" in outcome.out, outcome.err
    assert metrics(run_dir) == metrics(straight)
    assert_same_state(run_dir, straight, 6)


def test_a_full_disk_ends_the_run_and_it_goes_on_when_there_is_room(tiny_model, straight, at, tmp_path):
    """A limit on the size of files stands in for the disk: from iteration 5 on, no file may have more than 2 kB."""
    run_dir, limits = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(batch):
        while not (run_dir / "checkpoints" / "4" / "manifest.json").exists():
            time.sleep(0.01)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))

    at[6] = fill
    try:
        outcome = run_small(tiny_model, run_dir)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_one_sentence(outcome, 1, f"{run_dir} cannot be written: File too large", f"{run_dir}/checkpoints/4", "--resume")
    at.clear()
    outcome = run_small(tiny_model, run_dir, "--resume")
    assert outcome.code == 0 and "Resuming after iteration 4" in outcome.out, outcome.err
    assert metrics(run_dir) == metrics(straight)
    assert_same_state(run_dir, straight, 6)


def test_a_signal_while_a_checkpoint_is_written_ends_with_that_and_another_whole_one(tiny_model, at, tmp_path, monkeypatch):
    """SIGTERM comes in iteration 3, when the manifest of iteration 2 is held back until after the signal."""
    told, write = threading.Event(), manifest.write
    monkeypatch.setattr(manifest, "write", lambda at, facts, *files: (facts and told.wait(60), write(at, facts, *files)))
    unfinished = []

    def terminate(batch):
        unfinished.extend(Checkpoints(tmp_path / "run" / "checkpoints").steps())
        signal.raise_signal(signal.SIGTERM)
        told.set()

    at[4] = terminate
    outcome = run_small(tiny_model, tmp_path / "run")
    assert_one_sentence(outcome, 75, "SIGTERM came; a checkpoint was written")
    assert unfinished == []
    for step in (2, 3):
        Checkpoints(tmp_path / "run" / "checkpoints").facts(step)  # whole, or it raises


def test_a_run_that_is_told_to_end_leaves_out_what_was_due_and_a_resume_makes_the_evaluation_up(
    tiny_model, reward, at, tmp_path
):
    """SIGTERM while iteration 2 is judged, after which an evaluation and samples are due."""
    due = ["--iterations", 3, *HEADS, "--evaluation.every", 2, "--logging.samples-every", 2, "--checkpoint.every", 100]
    assert run_small(tiny_model, tmp_path / "straight", *due).code == 0
    reward.calls, run_dir = 0, tmp_path / "told"
    at[3] = lambda _: signal.raise_signal(signal.SIGTERM)
    assert run_small(tiny_model, run_dir, *due).code == 75
    assert reward.calls == 3 and steps(run_dir) == [2]
    assert not any(name.startswith("eval/") for name in metrics(run_dir)[-1])
    assert sorted(path.stem for path in (run_dir / "samples").glob("*.json")) == ["000000"]
    at.clear()
    assert run_small(tiny_model, run_dir, *due, "--resume").code == 0
    assert metrics(run_dir) == metrics(tmp_path / "straight") and "eval/red" in metrics(run_dir)[1]
    facts = [Checkpoints(folder / "checkpoints").facts(2) for folder in (run_dir, tmp_path / "straight")]
    assert facts[0]["evaluation"] == facts[1]["evaluation"] != {} and facts[0]["best"] == facts[1]["best"]
    jax.tree.map(np.testing.assert_array_equal, state_at(run_dir, 3), state_at(tmp_path / "straight", 3))


@pytest.mark.parametrize("call, done, when", [(4, 2, "while held-out prompts were judged after iteration 2"),
                                              (5, 2, "in iteration 3")])  # fmt: skip
def test_a_run_that_is_told_to_end_does_not_wait_for_a_judge_that_takes_long(
    tiny_model, reward, at, tmp_path, monkeypatch, call, done, when
):
    """SIGTERM while a reward works that would not end for a minute: in an evaluation, and in the iteration after it."""
    due = ["--iterations", 3, *HEADS, "--evaluation.every", 2, "--logging.samples-every", 0, "--checkpoint.every", 100]
    assert run_small(tiny_model, tmp_path / "straight", *due).code == 0
    monkeypatch.setattr(judging, "LEFT_AFTER", 0)
    reward.calls, run_dir, ended = 0, tmp_path / "told", threading.Event()
    at[call] = lambda _: (signal.raise_signal(signal.SIGTERM), ended.wait(60))
    outcome = run_small(tiny_model, run_dir, *due)
    words = f"SIGTERM came while the reward function tiny_reward:score was judging, {when}; the run stopped after iteration"
    assert_one_sentence(outcome, 75, f"{words} {done} with a checkpoint")
    ended.set()
    assert steps(run_dir) == [done] == [len(metrics(run_dir))] and not list(run_dir.glob("*rror*"))
    at.clear()
    assert run_small(tiny_model, run_dir, *due, "--resume").code == 0
    assert metrics(run_dir) == metrics(tmp_path / "straight") and "eval/red" in metrics(run_dir)[1]
    jax.tree.map(np.testing.assert_array_equal, state_at(run_dir, 3), state_at(tmp_path / "straight", 3))


def test_the_best_checkpoint_of_a_run_is_kept(tiny_model, at, tmp_path):
    """Evaluated after iterations 1 to 5; call 2 n of the reward then is iteration n, call 2 n + 1 its evaluation."""
    for iteration, value in {1: 0.2, 2: 0.1, 3: 0.9, 4: 0.3, 5: 0.5}.items():
        at[2 * iteration + 1] = lambda batch, value=value: {"red": np.full(len(batch.prompts), value)}
    arguments = ["--evaluation.every", 1, "--checkpoint.every", 2, "--checkpoint.keep", 1]
    outcome = run_small(tiny_model, tmp_path / "run", *arguments)
    assert outcome.code == 0, outcome.err
    assert steps(tmp_path / "run") == [3, 6]  # 3 is saved because it is the best, though 2 does not divide it
    best = Checkpoints(tmp_path / "run" / "checkpoints").facts(6)["best"]
    assert best["step"] == 3 and best["value"] == pytest.approx(0.9) and best["metric"].startswith("eval/"), best


def test_a_best_metric_that_no_evaluation_reports_is_one_sentence(tiny_model, at, tmp_path):
    outcome = run_small(tiny_model, tmp_path / "run", "--checkpoint.best-metric", "eval/nothing")
    assert_one_sentence(outcome, 2, "checkpoint.best_metric = 'eval/nothing'", "evaluation.every")
    arguments = ["--checkpoint.best-metric", "eval/nothing", "--evaluation.every", 2]
    outcome = run_small(tiny_model, tmp_path / "run", *arguments)
    assert_one_sentence(outcome, 2, "'eval/nothing'", "the evaluation reports eval/")


def test_a_config_that_the_checkpoint_does_not_fit_leaves_the_run_as_it_was(tiny_model, copy):
    before = {name: (copy / name).read_bytes() for name in ("config.json", "provenance.json", "metrics.jsonl")}
    changed = ["--learning.ema-decay", "0", "--iterations", "7", "--allow-changed", "learning"]
    outcome = run_small(tiny_model, copy, "--resume", *changed)
    assert_one_sentence(outcome, 2, "does not fit this config", "ema")
    assert before == {name: (copy / name).read_bytes() for name in before}


def test_prompts_that_changed_since_the_run_began_are_not_learned_from_unawares(tiny_model, at, tmp_path):
    prompts, run_dir = tmp_path / "prompts.txt", tmp_path / "run"
    prompts.write_text("".join(f"a {colour} circle\n" for colour in ("red", "blue", "green", "grey", "black", "white")))
    words = ("--prompts", prompts, "--evaluation.every", 0)
    assert run_small(tiny_model, run_dir, *words, "--iterations", 1).code == 0
    assert len(json.loads((run_dir / "provenance.json").read_text())["files"]["prompts"][str(prompts)]) == 64
    prompts.write_text(prompts.read_text() + "a yellow circle\n")
    outcome = run_small(tiny_model, run_dir, *words, "--iterations", 2, "--resume")
    assert_one_sentence(outcome, 2, f"began with another {prompts} (prompts)", "--allow-changed prompts")
    outcome = run_small(tiny_model, run_dir, *words, "--iterations", 2, "--resume", "--allow-changed", "prompts")
    assert outcome.code == 0, outcome
    assert run_small(tiny_model, run_dir, *words, "--iterations", 3, "--resume").code == 0  # known by now
