"""The entry points end to end, as separate processes where that matters: what a run leaves, and what is made of it."""

import gc
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import pytest
from PIL import Image

from tests.clip_oracle import make_folder
from tests.command import HEADS, REWARD, SMALL, command, run_small
from tests.judge_server import always, expects, serving

ROOT = pathlib.Path(__file__).resolve().parent.parent
EVALUATION = "--devices 1 --evaluation.prompts 6 --evaluation.batch 6 --evaluation.flow-steps 2".split()
METRICS = {
    "reward/mean", "reward/std", "reward/zero_variance_share", "reward/graded/mean", "reward/graded/std",
    "judge/exact", "judge/graded", "judge/plan_exact", "text/ratio_mean", "text/entropy", "text/length",
    "text/truncated_share", "flow/ratio_mean", "flow/velocity_mse", "grad_norm/reasoning", "grad_norm/denoising",
    "update_norm/reasoning", "update_norm/denoising", "update/skipped", "loss", "image/edge_density",
    "image/colour_entropy", "time/iteration", "time/rollout_text", "time/rollout_flow", "time/reward", "time/update",
    "tokens_per_second", "images_per_second", "rollout/nonfinite_share", "reward/dropped_share", "image/grid_energy",
    "text/repeated_share",
}  # fmt: skip


def process(module: str, *arguments, cwd: pathlib.Path, stdout=subprocess.PIPE) -> subprocess.CompletedProcess:
    """`python -m module arguments` in a folder, as a user would."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax")}
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=cwd, env=os.environ | cache | {"PYTHONPATH": str(ROOT)}, stdout=stdout, stderr=subprocess.PIPE, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def finished(tiny_model, tmp_path_factory) -> tuple[pathlib.Path, str]:
    """A run of the shapes world's own reward, and what it printed."""
    folder = tmp_path_factory.mktemp("runs")
    own = "--rewards shapes --iterations 3 --logging.samples-every 2 --evaluation.every 2 --evaluation.thinking".split()
    own += ["--evaluation.drift", 4]
    done = process("experiments.run", "smoke", "--model.path", tiny_model, *SMALL, *HEADS, *own, cwd=folder)
    assert done.stderr == ""
    return folder / "runs" / "smoke", done.stdout


def tree(folder: pathlib.Path) -> list[str]:
    """Names in a run folder; of a checkpoint only its own."""
    names = [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]
    return sorted({"/".join(n.split("/")[:2]) if n.startswith("checkpoints/") else n for n in names})


def test_a_run_leaves_exactly_the_documented_files(finished):
    run_dir, _ = finished
    samples = [f"samples/{step:06d}.{kind}" for step in (0, 2, 3) for kind in ("json", "npz", "png")]
    assert tree(run_dir) == sorted(["checkpoints/2", "checkpoints/3", "config.json", "metrics.jsonl", "provenance.json",
                                    "report.html", "summary.json", *samples])  # fmt: skip
    for name in samples:
        if name.endswith(".png"):
            Image.open(run_dir / name).verify()
    provenance = json.loads((run_dir / "provenance.json").read_text())
    assert len(provenance["model_sha256"]) == 64 and set(provenance["versions"]) >= {"python", "jax", "unigrpo_jax"}
    assert json.loads((run_dir / "config.json").read_text())["learning"]["group_size"] == 4


def test_metrics_are_flat_finite_and_under_their_names(finished):
    lines = [json.loads(line) for line in (finished[0] / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert METRICS <= line.keys(), METRICS - line.keys()
        assert all(isinstance(value, int | float) for value in line.values()), line
        parts = [line[f"time/{name}"] for name in ("rollout_text", "rollout_flow", "reward", "update")]
        assert all(part > 0 for part in parts)
        if line["step"] > 1:  # the first iteration also waits for the programs to be compiled
            assert 0.5 * line["time/iteration"] < sum(parts) <= line["time/iteration"]
    assert lines[0]["text/ratio_mean"] == pytest.approx(1, abs=1e-6)
    assert "eval/exact" in lines[1] and "eval/exact" not in lines[0]
    assert lines[0]["update/without_signal"] == lines[1]["update/without_signal"] == 1  # so that nothing has drifted
    assert lines[1]["drift/mean"] == lines[1]["drift/last_pattern"] == 0 and "drift/mean" not in lines[0]


def test_the_summary_holds_before_and_after_by_category(finished):
    run_dir, printed = finished
    summary = json.loads((run_dir / "summary.json").read_text())
    categories = {"overall", "single_object", "two_object", "counting", "colors", "position", "color_attr"}
    for table in (summary["before"], summary["after"]):
        assert {"exact", "graded", "plan_exact"} <= table.keys()
        assert len(table["exact"]) == 7 and "overall" in table["exact"], (table["exact"], categories)
    assert summary["iterations"] == 3 and summary["seconds"] > 0
    assert {name: len(x) for name, x in summary["drift"]["flow"].items()} == {"times": 2, "squared": 2, "pattern": 2}
    assert "Drift of the predictions from the reference" in (run_dir / "report.html").read_text()
    assert "Drift of the predictions from the reference" in printed
    assert "Warning: learning.group_size = 4" in printed and "looks at neither prompts" not in printed
    assert "Held-out prompts" in printed and "report.html" in printed and "3/3" in printed


def test_evaluating_the_last_checkpoint_gives_the_summary_again(finished):
    """A run folder, and its newest checkpoint by number, by the run's own evaluation settings."""
    run_dir, _ = finished
    summary = json.loads((run_dir / "summary.json").read_text())
    after, drift = summary["after"], ["--evaluation.drift", 4]
    for path in (run_dir, run_dir / "checkpoints" / "3"):
        outcome = command("experiments.evaluate", path, *EVALUATION, *drift, "--out", run_dir.parent / "table.json")
        assert outcome.code == 0, outcome
        saved = json.loads((run_dir.parent / "table.json").read_text())
        assert saved["table"] == after and saved["evaluation"]["prompts"] == 6
        for kind, values in summary["drift"]["flow"].items():
            assert saved["drift"]["flow"][kind] == pytest.approx(values, rel=1e-3), kind
        assert f"{after['graded']['overall']:.3f}" in outcome.out and "smoke-3: 6 prompts" in outcome.out


def test_evaluating_the_model_folder_gives_the_start(finished, tiny_model, tmp_path, monkeypatch):
    """The table goes to runs/NAME/evaluations; --preset makes the run's prompts and sizes those of the preset."""
    monkeypatch.chdir(tmp_path)
    outcome = command("experiments.evaluate", tiny_model, *EVALUATION, "--evaluation.no-thinking")
    assert outcome.code == 0, outcome
    (path,) = (tmp_path / "runs" / "tiny" / "evaluations").iterdir()
    assert path.name == "tiny-shapes6-seed0-ode2-cfg1-thinking_off.json" and str(path.relative_to(tmp_path)) in outcome.out
    assert set(json.loads(path.read_text())["table"]) >= {"exact", "graded"}


def test_a_bare_folder_is_judged_on_prompts_of_any_length(tiny_model, tmp_path, monkeypatch):
    """The settings that are assumed for it hold 18 tokens; nobody could say more."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": "a red circle " * 10}))
    (tmp_path / "seen.py").write_text("def score(batch):\n    return [float(len(p.split())) for p in batch.prompts]\n")
    own = ["--prompts", "long.jsonl", "--rewards", "seen:score", "--evaluation.prompts", 1, "--evaluation.no-thinking"]
    outcome = command("experiments.evaluate", tiny_model, *own, "--evaluation.flow-steps", 1, "--out", "table.json")
    assert outcome.code == 0, outcome
    assert json.loads((tmp_path / "table.json").read_text())["table"]["reward"]["overall"] == 30


def test_a_picture_is_drawn_and_its_thinking_printed(finished, tmp_path):
    run_dir, _ = finished
    out = tmp_path / "new" / "picture.png"
    arguments = [run_dir, "three green circles", "--out", out, "--flow-steps", 2, "--temperature", 1]
    outcome = command("experiments.generate", *arguments)
    assert outcome.code == 0, outcome
    thinking, wrote = outcome.out.splitlines()
    assert thinking and len(thinking.split()) <= 4 and wrote == f"Wrote {out}"
    with Image.open(out) as image:
        assert (image.format, image.size, image.mode) == ("PNG", (192, 192), "RGB")


def test_a_checkpoint_is_evaluated_alike_on_one_device_and_on_a_mesh(finished, tmp_path):
    tables = []
    for number, devices in enumerate(([1], [8, "--mesh.fsdp", 4])):
        out = tmp_path / f"{number}.json"
        outcome = command("experiments.evaluate", finished[0], "--devices", *devices, "--evaluation.prompts", 8,
                          "--evaluation.batch", 8, "--evaluation.flow-steps", 2, "--out", out)  # fmt: skip
        assert outcome.code == 0, outcome
        tables.append(json.loads(out.read_text())["table"])
    assert tables[0] == tables[1]
    outcome = command("experiments.evaluate", finished[0], "--devices", 8, "--mesh.tensor", 3)
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and "mesh.tensor = 3" in outcome.err, outcome


def test_own_prompts_and_own_reward_from_the_current_folder(tiny_model, tmp_path):
    """And with nobody who reads what it prints, which ends no run."""
    prompts = [{"prompt": "a red circle", "category": "red", "wanted": 0}, {"prompt": "a blue square", "wanted": 2}]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    (tmp_path / "my_reward.py").write_text(
        "import numpy as np\n\n\ndef score(batch):\n"
        "    return np.array([i[..., m['wanted']].mean() for i, m in zip(batch.images, batch.metadata)])\n"
    )
    own = [*HEADS, "--prompts", "mine.jsonl", "--rewards", "my_reward:score", "--iterations", 1]
    reader, writer = os.pipe()
    os.close(reader)  # as `| head` does after a few lines
    with open(writer, "w") as broken:
        process("experiments.run", "smoke", "--model.path", tiny_model, *SMALL, *own, cwd=tmp_path, stdout=broken)
    run_dir = tmp_path / "runs" / "smoke"
    (line,) = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert line["reward/mean"] == pytest.approx(line["reward/reward/mean"]) and "judge/exact" not in line
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["after"].keys() == {"reward"} and summary["after"]["reward"].keys() == {"overall", "red"}
    assert json.loads((run_dir / "samples" / "000001.json").read_text())[0]["correct"] is None


@pytest.fixture
def copy(finished, tmp_path) -> pathlib.Path:
    return shutil.copytree(finished[0], tmp_path / "copy")


def test_a_checkpoint_that_is_not_there_or_of_another_config_is_one_sentence(copy, tiny_model):
    outcome = command("experiments.evaluate", copy / "checkpoints" / "7")
    assert outcome.code == 2 and "holds 2, 3." in outcome.err and outcome.err.count("\n") == 1, outcome

    record = json.loads((copy / "config.json").read_text())
    other = shutil.copytree(tiny_model, copy.parent / "other")
    model = json.loads((other / "llm_config.json").read_text())
    (copy / "config.json").write_text(json.dumps(record | {"model": record["model"] | {"path": str(other)}}))
    for change in ({"hidden_size": 64}, {"intermediate_size": 32}, {"num_hidden_layers": 3}, {"num_attention_heads": 4}):
        (other / "llm_config.json").write_text(json.dumps(model | change))
        outcome = command("experiments.evaluate", copy)
        assert outcome.code == 2 and "does not fit its llm_config.json" in outcome.err, (change, outcome)
        assert outcome.err.count("\n") == 1, outcome.err
    (other / "llm_config.json").write_text(json.dumps(model))
    data = bytearray((other / "ema.safetensors").read_bytes())
    data[-1] ^= 1
    (other / "ema.safetensors").write_bytes(data)
    outcome = command("experiments.evaluate", copy)
    assert outcome.code == 2 and "started from other weights" in outcome.err, outcome

    for learning in ({"ema_decay": 0.0}, {"frozen": ["layers/und"]}):
        changed = record["learning"] | learning
        (copy / "config.json").write_text(json.dumps(record | {"learning": changed}))
        outcome = command("experiments.generate", copy, "a circle")
        assert outcome.code == 2 and "does not fit this config" in outcome.err, (learning, outcome)

    shutil.rmtree(copy / "checkpoints" / "3")
    shutil.rmtree(copy / "checkpoints" / "2")
    (copy / "config.json").write_text(json.dumps(record))
    outcome = command("experiments.evaluate", copy)
    assert outcome.code == 2 and "holds none" in outcome.err, outcome


def test_a_reward_that_fails_in_an_evaluation_is_one_sentence(tiny_model, tmp_path, monkeypatch):
    (tmp_path / "failing_reward.py").write_text(REWARD + "\n\ndef broken(batch):\n    return [1]\n")
    monkeypatch.chdir(tmp_path)
    arguments = ["--prompts", "p.jsonl", "--rewards", "failing_reward:broken", *EVALUATION]
    (tmp_path / "p.jsonl").write_text('{"prompt": "a circle"}')
    outcome = command("experiments.evaluate", tiny_model, *arguments)
    assert outcome.code == 1 and outcome.err.count("\n") == 1, outcome
    assert "failing_reward:broken" in outcome.err and "must return [6]" in outcome.err


def test_a_damaged_metrics_file_is_one_sentence(copy, tiny_model):
    (copy / "metrics.jsonl").write_text("{\n{}\n")
    record = json.loads((copy / "config.json").read_text())
    outcome = run_small(tiny_model, copy, "--resume", "--rewards", "shapes", "--iterations", 4,
                        "--evaluation.every", record["evaluation"]["every"], "--evaluation.thinking",
                            *HEADS)  # fmt: skip
    assert outcome.code == 2 and "metrics.jsonl, line 1" in outcome.err and outcome.err.count("\n") == 1, outcome


def test_a_run_on_the_best_and_the_worst_of_each_group(tiny_model, tmp_path, monkeypatch):
    """With any window and shared noise; the update sees two of four episodes, and the first ratio stays 1."""
    (tmp_path / "tiny_reward.py").write_text(REWARD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("tiny_reward", None)
    outcome = run_small(tiny_model, tmp_path / "run", "--iterations", 1, "--learning.best", 1, "--learning.worst", 1,
                        "--learning.combine", "rewards", "--rollout.window", "random", "--rollout.shared-noise",
                        "--learning.leash-times", 0.25, 0.6, "--evaluation.drift", 4)  # fmt: skip
    assert outcome.code == 0 and "1 piece(s) of 4" in outcome.out, outcome
    assert outcome.out.count("Warning: tiny_reward:score looks at neither prompts nor what comes with them") == 1
    found = json.loads((tmp_path / "run" / "summary.json").read_text())["drift"]["flow"]
    assert min(found["squared"]) > 0 and 0 < min(found["pattern"]) <= max(found["pattern"]) < 1
    (line,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert line["text/ratio_mean"] == line["flow/ratio_mean"] == 1 and line["update/skipped"] == 0
    assert line["flow/leash_mse"] == line["flow/velocity_mse"] == 0  # the start is the reference


def test_a_run_from_elsewhere_cannot_send_a_key_of_this_machine_away(copy, monkeypatch):
    """Its config.json names a server and any environment variable; nothing is sent before the host is named here."""
    monkeypatch.setenv("HF_TOKEN", "hf-secret")
    record = json.loads((copy / "config.json").read_text())
    settings = ["--devices", 1, "--evaluation.prompts", 2, "--evaluation.batch", 2, "--evaluation.flow-steps", 2]
    with serving(always(expects({"yes": 0.75, "no": 0.25}))) as server:
        theirs = record["judge"] | {"url": server.url, "model": "m", "key_variable": "HF_TOKEN"}
        (copy / "config.json").write_text(json.dumps(record | {"rewards": ["judge"], "judge": theirs}))
        for host in ([], ["--judge-host", "localhost"]):
            outcome = command("experiments.evaluate", copy, *settings, *host)
            assert outcome.code == 2 and server.requests == [], outcome
            assert f"names {server.url} as the judge" in outcome.err and "the key in HF_TOKEN" in outcome.err
        outcome = command("experiments.evaluate", copy, *settings, "--judge-host", "127.0.0.1")
        assert outcome.code == 0 and len(server.requests) == 2 and "0.750" in outcome.out, outcome


def test_a_damaged_summary_is_one_sentence(copy, tiny_model):
    record = json.loads((copy / "config.json").read_text())
    for content in ("{", "[]", '{"before": [1]}', '{"before": {"a": {"b": "c"}}, "seconds": 1}', '{"seconds": 1}'):
        (copy / "summary.json").write_text(content)
        outcome = run_small(tiny_model, copy, "--resume", "--rewards", "shapes", "--iterations", 4,
                            "--evaluation.every", record["evaluation"]["every"], "--evaluation.thinking",
                            *HEADS)  # fmt: skip
        assert outcome.code == 2 and "summary.json is no" in outcome.err and outcome.err.count("\n") == 1, outcome


def test_a_run_with_a_rule_and_a_clip_reward(tiny_model, tmp_path, monkeypatch):
    """`--rewards shapes pickscore:FOLDER`; each has its curve, and their advantages are mixed."""
    make_folder(tmp_path / "clip")
    rewards = ["--rewards", "shapes", "pickscore:clip", "--learning.reward-weights", "pickscore", "0.5", "--iterations", 2]
    monkeypatch.chdir(tmp_path)
    outcome = run_small(tiny_model, tmp_path / "runs" / "smoke", *HEADS, *rewards)
    assert outcome.code == 0, outcome.err
    lines = [json.loads(line) for line in (tmp_path / "runs" / "smoke" / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        mixed = line["reward/graded/mean"] + 0.5 * line["reward/pickscore/mean"]
        assert line["reward/mean"] == pytest.approx(mixed, rel=1e-5) and line["reward/pickscore/std"] > 0
    summary = json.loads((tmp_path / "runs" / "smoke" / "summary.json").read_text())
    assert {"graded", "pickscore", "exact"} <= summary["after"].keys()


def test_a_run_that_has_ended_holds_no_programs(tiny_model, tmp_path):
    """JAX remembers the callback inside the rollout, and with it whatever that belongs to."""

    own = [*HEADS, "--rewards", "colourfulness", "--iterations", 1]
    gc.freeze()  # what earlier tests hold is not looked at, and takes no time
    try:
        assert run_small(tiny_model, tmp_path / "run", *own, share=False).code == 0
        gc.collect()
        assert not any(isinstance(x, jax.stages.Compiled) for x in gc.get_objects())
    finally:
        gc.unfreeze()
