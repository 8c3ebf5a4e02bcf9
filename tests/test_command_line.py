"""Bad input at the command line: one sentence on stderr, exit code 2, nothing compiled, nothing written."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading

import jax
import jax.monitoring
import pytest

from experiments import presets
from tests.command import REWARD, SMALL, command, run_small

compiled: list[str] = []
earlier: set[threading.Thread] = set()  # what earlier tests left to compile in the background


def note(event, *_, **__):
    if "backend_compile" in event and threading.current_thread() not in earlier:
        compiled.append(event)


def forget():
    compiled.clear()
    earlier.update(set(threading.enumerate()) - {threading.current_thread()})


jax.monitoring.register_event_duration_secs_listener(note)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder with a reward module and broken prompt files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny_reward.py").write_text(REWARD)
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a circle"}\n{"prompt": \n')
    (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": "a red circle " * 10}))
    (tmp_path / "notes.txt").write_text("")
    return tmp_path


def test_compiling_is_noticed():
    forget()
    jax.jit(lambda x: x * 3 + 1)(2.0)
    assert compiled


REFUSED = [
    ("--learning.group-size 1", ["learning.group_size = 1", "at least 2"]),
    ("--learning.minibatches 3", ["4 * 2 = 8 episodes", "3 * 1 = 3 pieces", "2 or 4"]),
    ("--devices 3", ["4 * 2 = 8 episodes do not divide over 3 devices", "3 (12)", "devices = 2"]),
    ("--devices 99", ["devices = 99", "JAX sees"]),
    ("--rollout.window-range 0 5", ["[0, 5)", "flow_steps = 4"]),
    ("--learning.flow-clip 0", ["learning.flow_clip = 0.0", "above 0"]),
    ("--learning.text-clip nan", ["learning.text_clip = nan", "finite"]),
    ("--learning.reasoning-lr inf", ["learning.reasoning_lr = inf", "finite"]),
    ("--rollout.image-height 23", ["23 x 24 pixels", "latent tokens of 8 px"]),
    ("--rollout.image-height 800", ["largest side is 24 pixels"]),
    ("--learning.frozen nothing", ["'nothing' matches no parameter"]),
    ("--learning.frozen (", ["not a regular expression"]),
    ("--logging.wandb", ["logging.wandb needs wandb", "pip install"]),
    ("--prompts empty.jsonl", ["empty.jsonl holds no prompts"]),
    ("--prompts broken.jsonl", ["broken.jsonl, line 2", "not JSON"]),
    ("--prompts missing.jsonl", ["missing.jsonl cannot be read"]),
    ("--prompts long.jsonl", ["has 32 tokens", "bucket of 18", "rollout.prompt_tokens = 32"]),
    ("--rollout.prompt-tokens 4", ["bucket of 4", "rollout.prompt_tokens = "]),
    ("--rewards no_such:score", ["no_such", "ModuleNotFoundError"]),
    ("--rewards tiny_reward:scores", ["did you mean score?"]),
    ("--rewards shape", ["neither one of", "did you mean shapes?"]),
    ("--model.path nowhere", ["there is no folder nowhere"]),
    ("--model.path .", ["is not a model folder", "ema.safetensors"]),
    ("--run-dir notes.txt", ["notes.txt is a file"]),
    ("--run-dir notes.txt/run", ["notes.txt/run cannot be written"]),
    ("--name a/b", ["name = 'a/b'", "--run-dir"]),
]


@pytest.mark.parametrize("arguments, words", REFUSED, ids=[a for a, _ in REFUSED])
def test_a_run_that_cannot_work_is_one_sentence_before_anything_happens(tiny_model, here, arguments, words):
    before = sorted(here.rglob("*"))
    small = [a for a in SMALL if not (a == "--devices" or a == "1")]
    if "--run-dir" not in arguments:
        arguments += " --run-dir run"
    forget()
    outcome = command("experiments.run", "smoke", "--model.path", tiny_model, *small, *arguments.split())
    assert (outcome.code, outcome.out) == (2, ""), outcome
    assert outcome.err.startswith("experiments.run: ") and outcome.err.endswith((".\n", "?\n")), outcome.err
    assert outcome.err.count("\n") == 1 and "Traceback" not in outcome.err
    for word in words:
        assert word in outcome.err, outcome.err
    assert compiled == [] or "cannot be written" in words[0]
    assert sorted(p for p in here.rglob("*") if "__pycache__" not in p.parts) == before


@pytest.mark.parametrize("again", [False, True])
def test_a_logger_that_cannot_be_opened_is_one_sentence_before_anything_compiles(tiny_model, here, monkeypatch, again):
    """W&B without a login; nothing is left in the folder, or what was there stays as it is."""
    (here / "wandb.py").write_text(
        "class UsageError(Exception):\n    pass\n\n\ndef init(dir, config, **_):\n    import os\n"
        "    assert config['seed'] == 0\n    os.makedirs(os.path.join(dir, 'wandb'))\n"
        "    raise UsageError('api_key not configured (no-tty). call wandb.login(key=[your_api_key])')\n"
    )
    monkeypatch.syspath_prepend(here)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    if again:
        assert run_small(tiny_model, here / "run", "--iterations", 1).code == 0
    tree = lambda: {p: p.read_bytes() for p in here.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    before = tree()
    forget()
    outcome = run_small(tiny_model, here / "run", "--logging.wandb", *(["--iterations", 2, "--resume"] if again else []))
    sys.modules.pop("wandb", None)
    assert outcome.code == 2 and outcome.out == "" and outcome.err.count("\n") == 1, outcome
    assert "logging.wandb: it cannot be opened (api_key not configured (no-tty)" in outcome.err
    assert "`wandb login`" in outcome.err and compiled == [] and tree() == before
    assert again or not (here / "run").exists()


def test_a_model_whose_weights_do_not_fit_is_refused(tiny_model, here):
    model = shutil.copytree(tiny_model, here / "model")
    config = json.loads((model / "llm_config.json").read_text())
    (model / "llm_config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    forget()
    outcome = run_small(model, here / "run")
    assert outcome.code == 2 and "does not fit its llm_config.json" in outcome.err and outcome.err.count("\n") == 1
    assert compiled == [] and not (here / "run").exists()


def test_the_nearest_preset_is_named(here):
    outcome = command("experiments.run", "smok")
    assert (outcome.code, outcome.err) == (2, "experiments.run: no preset is called 'smok'; did you mean smoke?\n")
    assert "there are" in command("experiments.run", "xyz").err


@pytest.mark.parametrize(
    "arguments, words",
    [
        ("--learning.group-sizes 4", ["Unrecognized", "--learning.group-sizes", "--learning.group-size INT"]),
        ("--learning.group-size x", ["--learning.group-size", "'x'"]),
        ("--rollout.step-rule sde", ["--rollout.step-rule", "'sde'", "flow_sde"]),
    ],
)
def test_an_option_that_is_none_is_named_with_those_like_it(here, arguments, words):
    outcome = command("experiments.run", "smoke", *arguments.split())
    assert (outcome.code, outcome.out) == (2, "") and "Traceback" not in outcome.err
    for word in words:
        assert word in outcome.err, outcome.err


@pytest.mark.parametrize(
    "module, arguments, words",
    [
        ("evaluate", ["nowhere"], ["nowhere is no checkpoint", "RUN/checkpoints/N"]),
        ("evaluate", ["nowhere/checkpoints/3"], ["nowhere/checkpoints/3 is no checkpoint"]),
        ("evaluate", ["MODEL", "--evaluation.images-per-prompt", "7"], ["batch = 96", "91 or 98"]),
        ("evaluate", ["MODEL", "--evaluation.rounds", "-1"], ["evaluation.rounds = -1"]),
        ("evaluate", ["rounds_base", "--prompts", "shapes_story", "--evaluation.rounds", "2"], ["evaluation.rounds = 3"]),
        ("evaluate", ["MODEL", "--prompts", "broken.jsonl"], ["line 2"]),
        ("evaluate", ["MODEL", "--preset", "smok"], ["did you mean smoke?"]),
        ("evaluate", ["MODEL", "--rewards", "tiny_reward:scores"], ["did you mean score?"]),
        ("generate", ["nowhere", "a circle"], ["nowhere is no checkpoint"]),
        ("generate", ["MODEL", ""], ["the prompt is empty"]),
        ("generate", ["MODEL", " \n"], ["the prompt is empty"]),
        ("generate", ["MODEL", "a circle", "--enlarge", "0"], ["enlarge = 0"]),
        ("generate", ["MODEL", "a circle", "--seed", "-1"], ["seed = -1"]),
        ("generate", ["MODEL", "a circle", "--flow-steps", "0"], ["flow_steps = 0"]),
        ("generate", ["MODEL", "a circle", "--out", "."], ["is a folder"]),
        ("pretrain", ["--out", "m", "--reading", "8"], ["--reading", "--rounds"]),
        ("pretrain", ["--out", "m", "--vision"], ["--vision", "--rounds"]),
        ("pretrain", ["--out", "m", "--batch", "0"], ["--batch 0", "add --reading"]),
        ("pretrain", ["--out", "m", "--rounds", "--reading", "16", "--patches-only"], ["--patches-only", "--vision"]),
        ("pretrain", ["--out", "m", "--rounds", "--start", "nowhere"], ["no folder nowhere"]),
        ("pretrain", ["--out", "m", "--rounds", "--batch", "32"], ["--batch 32", "multiple of 24", "8 devices"]),
        ("pretrain", ["--out", "m", "--rounds", "--batch", "24", "--reading", "24"], ["--reading 24", "multiple of 16"]),
    ],
)
def test_evaluate_and_generate_refuse_in_one_sentence(tiny_model, here, module, arguments, words):
    before = sorted(here.rglob("*"))
    forget()
    outcome = command(f"experiments.{module}", *(str(tiny_model) if a == "MODEL" else a for a in arguments))
    assert (outcome.code, outcome.out) == (2, ""), outcome
    assert outcome.err.startswith(f"experiments.{module}: ") and outcome.err.count("\n") == 1, outcome.err
    for word in words:
        assert word in outcome.err, outcome.err
    assert compiled == []
    assert sorted(p for p in here.rglob("*") if "__pycache__" not in p.parts) == before


ENTRIES = [f"experiments.{name}" for name in ("run", "evaluate", "generate", "geneval", "export", "pretrain", "report",
                                              "bench", "torture", "train_scorer", "compare", "single_file",
                                              "open_clip")]  # fmt: skip


@pytest.mark.parametrize("module", [*ENTRIES, *(f"launch.{name}" for name in ("plan", "tpu", "jobset", "slurm"))])
def test_an_argument_that_is_not_utf_8_is_one_sentence(here, module):
    """As Python gives the byte ef, which alone is no UTF-8."""
    outcome = command(module, "base", "a red c\udcefrcle")
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert outcome.err.startswith(f"{module}: the argument 'a red c\\udcefrcle' is not UTF-8 text")


@pytest.mark.parametrize("module", ["run", "evaluate", "generate", "export", "pretrain", "train_scorer"])
def test_help_lists_every_field_with_its_default(here, module):
    outcome = command(f"experiments.{module}", "--help")
    assert outcome.code == 0 and "default" in outcome.out and "Traceback" not in outcome.err
    if module == "run":
        assert "[PRESET]" in outcome.out
        folder = pathlib.Path(presets.__file__).parent
        names = ", ".join(sorted(path.stem for path in folder.glob("[a-z]*.py")))
        first = "bagel_7b bagel_7b_512 bagel_edit bagel_tiny flux_dance flux_tiny hunyuan_dance hunyuan_tiny ltx2_rlhf"
        assert names.startswith(", ".join(first.split()))
        assert names in " ".join(outcome.out.split())
        for text in ("--learning.group-size INT", "--seed INT", "(default: 8)", "--resume, --no-resume"):
            assert text in outcome.out


def test_a_real_process_says_the_same(tiny_model, here):
    """Exit code, one line and no traceback, from the shell's point of view."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = os.environ | {"PYTHONPATH": root}
    done = subprocess.run(
        [sys.executable, "-m", "experiments.run", "smoke", "--model.path", tiny_model, "--learning.group-size", "1"],
        cwd=here, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, ""), done
    assert done.stderr.startswith("experiments.run: learning.group_size = 1") and done.stderr.count("\n") == 1
    assert not (here / "runs").exists()
