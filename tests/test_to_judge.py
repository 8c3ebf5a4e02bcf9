"""How `evaluate` and `geneval` draw where nobody says it, and in which numbers they read a model folder."""

import json
import pathlib

import pytest

from tests.command import HEADS, REWARD, command, run_small
from unigrpo_jax.config import ConfigError
from unigrpo_jax.models.bagel.tiny import make_tiny
from unigrpo_jax.models.bagel.weights import FIXED_TABLES
from unigrpo_jax.models.tree import flatten
from unigrpo_jax.training import evaluation

RUN = ("--evaluation.flow-steps", 4, "--evaluation.guidance", 3, "--evaluation.guidance-interval", 0.2, 1)
LINE = "Drawn by the ODE in 4 steps, guidance 3 at 0.2 < t <= 1, no thinking."
JUDGED = ("--rewards", "colourfulness", "--evaluation.prompts", 2, "--evaluation.batch", 2)


@pytest.fixture(scope="module")
def run_dir(tiny_model, tmp_path_factory) -> pathlib.Path:
    """A run that was judged by other settings than the defaults."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        (folder / "tiny_reward.py").write_text(REWARD)
        patch.syspath_prepend(folder)
        outcome = run_small(tiny_model, folder / "run", *HEADS, "--iterations", 1, *RUN)
    assert outcome.code == 0, outcome
    return folder / "run"


@pytest.fixture(scope="module")
def bagel(tmp_path_factory) -> pathlib.Path:
    """The toy of a released kind."""
    folder = tmp_path_factory.mktemp("bagel") / "tiny"
    folder.mkdir()
    make_tiny(folder)
    return folder


@pytest.fixture
def prompts(tmp_path) -> pathlib.Path:
    """A short one, twice, as GenEval writes it."""
    path = tmp_path / "metadata.jsonl"
    path.write_text(2 * (json.dumps({"tag": "single_object", "include": [], "prompt": "a circle"}) + "\n"))
    return path


@pytest.fixture(params=["evaluate", "geneval"])
def drawn(request, prompts, tmp_path, monkeypatch):
    """(model, arguments) -> the settings that its drawings would be made with, and no further."""
    found = []

    def rollout(settings, *_):
        found.append(settings)
        raise ConfigError("no further")

    def draw(model, *arguments):
        monkeypatch.setattr(evaluation, "evaluation_rollout", rollout)
        words = (model, "--prompts", prompts, "--rewards", "colourfulness")
        if request.param == "geneval":
            words = ("write", model, tmp_path / "out", "--metadata", prompts)
        outcome = command(f"experiments.{request.param}", *words, *arguments)
        assert "no further" in outcome.err, outcome
        return found[-1]

    return draw


def sampler(settings) -> tuple:
    """What the tests look at."""
    e = settings
    return e.flow_steps, e.guidance, e.guidance_interval, e.thinking, e.temperature


def test_a_runs_model_is_drawn_as_the_run_judged_it(drawn, run_dir):
    for path in (run_dir, run_dir / "checkpoints" / "1"):
        found = drawn(path)
        assert sampler(found) == (4, 3, (0.2, 1), False, 1)
        assert found.prompts in (480, 553)  # how many are judged is not the run's


def test_what_the_command_line_names_goes_before_the_runs(drawn, run_dir):
    assert sampler(drawn(run_dir, "--evaluation.guidance", 2, "--evaluation.thinking")) == (4, 2, (0.2, 1), True, 1)
    assert sampler(drawn(run_dir, "--evaluation.flow-steps", 10)) == (10, 3, (0.2, 1), False, 1)  # also a default's value


def test_a_model_folder_is_drawn_as_it_was_published_or_as_the_preset_says(drawn, bagel, tiny_model):
    assert sampler(drawn(bagel)) == (49, 4, (0.4, 1), True, 0)
    assert sampler(drawn(bagel, "--evaluation.guidance", 2)) == (49, 2, (0.4, 1), True, 0)
    assert sampler(drawn(bagel, "--preset", "bagel_tiny")) == (4, 4, (0.4, 1), True, 0)
    assert sampler(drawn(tiny_model)) == sampler(drawn("base")) == (10, 1, (0, 1), True, 1)


def test_what_fits_the_defaults_and_not_the_runs_settings_is_refused(run_dir):
    outcome = command("experiments.evaluate", run_dir, "--rewards", "colourfulness", "--evaluation.thinking-as-text")
    assert outcome.code == 2 and "thinking is off" in outcome.err and outcome.err.count("\n") == 1, outcome


def test_the_sampler_is_printed_in_a_line_and_written_into_the_table(run_dir, prompts, tmp_path):
    out, words = tmp_path / "table.json", (*JUDGED, "--prompts", prompts, "--devices", 1, "--evaluation.drift", 0)
    outcome = command("experiments.evaluate", run_dir, *words, "--out", out)
    assert outcome.code == 0 and LINE in outcome.out.splitlines(), outcome
    assert json.loads(out.read_text())["evaluation"]["guidance"] == 3


def test_a_model_folder_is_read_in_the_dtype_that_is_named(bagel, prompts, monkeypatch):
    """But for the fixed tables, whose sines need float32."""
    found = []

    def stop(self, params, *_):
        found.append(flatten(params))
        raise ConfigError("no further")

    monkeypatch.setattr(evaluation.Evaluator, "__call__", stop)
    half = ("--model.param-dtype", "bfloat16", "--model.dtype", "bfloat16")
    for words in ((), half, ("--preset", "bagel_tiny", *half)):
        outcome = command("experiments.evaluate", bagel, *JUDGED, "--prompts", prompts, "--devices", 1, *words)
        assert "no further" in outcome.err, outcome
        kinds = {(path in FIXED_TABLES, x.dtype.name) for path, x in found[-1].items()}
        assert kinds == {(False, "bfloat16" if words else "float32"), (True, "float32")}, words


@pytest.mark.parametrize("module", ["evaluate", "geneval"])
def test_a_run_refuses_dtypes_since_it_knows_its_own(run_dir, prompts, tmp_path, module):
    words = (run_dir,) if module == "evaluate" else ("write", run_dir, tmp_path / "out", "--metadata", prompts)
    outcome = command(f"experiments.{module}", *words, "--model.param-dtype", "bfloat16")
    assert outcome.code == 2 and "leave them out" in outcome.err and outcome.err.count("\n") == 1, outcome
