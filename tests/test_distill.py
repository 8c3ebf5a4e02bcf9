"""A distillation in the loop of every run: what it trains, its resume, the folder of its student, and what is refused."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from etils import epath

from experiments.command_line import preset, presets
from experiments.distill import asked_method, settings
from tests.command import command
from tests.test_config import refusal
from tests.test_resume import metrics, state_at
from unigrpo_jax.config import DistillationConfig, LoraConfig
from unigrpo_jax.config_checks import check, check_devices
from unigrpo_jax.config_evaluation import PassesConfig
from unigrpo_jax.config_json import load_run_config, settled, to_dict
from unigrpo_jax.models.families import load_model
from unigrpo_jax.models.folders.student import Student
from unigrpo_jax.models.tree import flatten
from unigrpo_jax.training.distilled import build

SMALL = ("--devices", 1, "--iterations", 2, "--rollout.prompts-per-iteration", 4, "--rollout.flow-steps", 4,
         "--evaluation.prompts", 4, "--evaluation.batch", 4, "--evaluation.flow-steps", 2, "--evaluation.no-thinking",
         "--logging.samples-every", 0, "--logging.samples", 2, "--checkpoint.every", 1, "--checkpoint.keep", 9,
         "--learning.denoising-lr", 1e-3, "--learning.ppo-epochs", 2)  # fmt: skip
JOBS = {
    "mean_flow": ("smoke", "--rollout.thinking-tokens", 4, "--learning.distillation.steps", 1, 2,
                  "--learning.distillation.guidance", 2, "--learning.micro-batches", 2, "--rollout.window-size", 2),
    "dmd2": ("flux_tiny", "--learning.method", "dmd2", "--learning.distillation.steps", 2,
             "--learning.distillation.fake-steps", 2, "--learning.ema-decay", 0.5),
}  # fmt: skip


def distil(method: str, tiny_model, run_dir, *arguments):
    """A small distillation, BAGEL's by MeanFlow and FLUX's by DMD2."""
    own = ("--model.path", tiny_model) if method == "mean_flow" else ("--model.embeddings.folder", run_dir.parent / "texts")
    return command("experiments.distill", *JOBS[method], *SMALL, *own, "--run-dir", run_dir, *arguments)


@pytest.fixture(scope="module", params=JOBS)
def distilled(request, tiny_model, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp(request.param) / "run"
    outcome = distil(request.param, tiny_model, run_dir)
    assert outcome.code == 0, outcome
    return request.param, run_dir, outcome.out


def test_the_student_is_judged_in_each_number_of_steps_and_its_drawing_alone_is_trained(distilled):
    method, run_dir, out = distilled
    assert "Distillation: " in out and "What was learned: " in out
    assert ("rollout.flow_steps = 4 is not read" in " ".join(out.split())) == (method == "dmd2")
    summary = json.loads((run_dir / "summary.json").read_text())
    scores = {"exact", "exact_1"} if method == "mean_flow" else {"colourfulness"}
    assert scores <= summary["after"].keys() and scores <= summary["before"].keys()
    lines = metrics(run_dir)
    assert len(lines) == 2 and all(np.isfinite(line["flow/loss"]) and line["update/skipped"] == 0 for line in lines)
    assert ("fake/loss" in lines[0]) == (method == "dmd2") and not any(name.startswith("text/loss") for name in lines[0])
    first, second = (state_at(run_dir, step) for step in (1, 2))
    moved = [path for path, x in first.trained.items() if np.any(np.asarray(x) != np.asarray(second.trained[path]))]
    assert len(moved) > 0.9 * len(first.trained)
    if method == "mean_flow":
        loaded = load_model(dataclasses.replace(preset(["smoke"], "shapes")[0].model, path=str(run_dir / "model")))
        assert not [path for path in first.trained if "/und/" in path]
        assert [path for path in first.trained if "gap_embedder" in path] and loaded.network.two_times
        assert first.fake is None
    else:
        began = flatten(load_model(preset(["flux_tiny"], "shapes")[0].model).params())  # the teacher, as which it begins
        fakes = [np.any(np.asarray(x) != np.asarray(began[path])) for path, x in first.fake.trained.items()]
        assert first.fake.trained.keys() == first.trained.keys() and np.mean(fakes) > 0.9


def test_the_next_update_after_a_resume_has_the_same_bits(distilled, tiny_model, tmp_path):
    """Student, fake score, moments of both and average."""
    method, run_dir, _ = distilled
    copy = shutil.copytree(run_dir, tmp_path / "run")
    shutil.rmtree(copy / "checkpoints" / "2")
    (tmp_path / "texts").symlink_to(run_dir.parent / "texts") if method == "dmd2" else None
    outcome = distil(method, tiny_model, copy, "--resume")
    assert outcome.code == 0 and "Resuming after iteration 1" in outcome.out, outcome
    ours, theirs = jax.tree.leaves(state_at(run_dir, 2)), jax.tree.leaves(state_at(copy, 2))
    assert len(ours) == len(theirs) > 60
    for a, b in zip(ours, theirs, strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert metrics(copy)[1] == metrics(run_dir)[1]


def test_the_folder_says_what_its_student_is(distilled):
    method, run_dir, _ = distilled
    config = preset([JOBS[method][0]], "shapes")[0]
    loaded = load_model(dataclasses.replace(config.model, path=str(run_dir / "model")))
    assert loaded.student == Student(
        method=method, steps=(1, 2) if method == "mean_flow" else (2,), second_time=method == "mean_flow",
        guidance=2.0 if method == "mean_flow" else 1.0, timestep_shift=config.rollout.timestep_shift,
        teacher=loaded.student.teacher,
    )  # fmt: skip
    read, state = flatten(loaded.params()), state_at(run_dir, 2)
    kept = state.trained if state.ema is None else state.ema
    assert kept.keys() <= read.keys()
    for path, x in kept.items():
        np.testing.assert_array_equal(np.asarray(read[path]), np.asarray(x), err_msg=path)


def test_its_run_folder_is_judged_as_its_student_draws_and_beside_its_start(distilled, tmp_path):
    """Whose second time no file holds; what is asked for goes before what a student draws with."""
    method, run_dir, _ = distilled
    out = tmp_path / "table.json"
    asked = ("--evaluation.no-thinking", "--evaluation.prompts", 4, "--evaluation.batch", 4, "--out", out)
    outcome = command("experiments.evaluate", run_dir, *asked, "--evaluation.drift", 4)
    assert outcome.code == 0 and "Warning" not in outcome.out, outcome
    found = json.loads(out.read_text())
    assert min(found["drift"]["flow"]["squared"]) > 0
    drawn = {"flow_steps": 2, "guidance": 1.0, "sampler": "ode" if method == "mean_flow" else "sde"}
    assert {name: found["evaluation"][name] for name in drawn} == drawn
    other = ("--evaluation.flow-steps", 3, "--evaluation.sampler", "ode", "--evaluation.drift", 0)
    outcome = command("experiments.evaluate", run_dir, *asked, *other)
    assert outcome.code == 0 and outcome.out.count("Warning") == 1 + (method == "dmd2"), outcome
    assert json.loads(out.read_text())["evaluation"]["sampler"] == "ode"


def test_its_run_folder_draws_what_the_folder_of_its_student_draws(distilled, tmp_path):
    _, run_dir, _ = distilled
    pictures = []
    for number, folder in enumerate((run_dir, run_dir / "model")):
        picture = tmp_path / f"{number}.png"
        asked = ("--no-thinking", "--thinking-tokens", 4, "--height", 16, "--width", 16, "--out", picture)
        outcome = command("experiments.generate", folder, "two red circles", *asked)
        assert outcome.code == 0 and "Warning" not in outcome.out, outcome
        pictures.append(picture.read_bytes())
    assert pictures[0] == pictures[1]
    outcome = command("experiments.generate", run_dir, "two red circles", *asked, "--flow-steps", 3)
    assert outcome.code == 0 and "Warning: evaluation.flow_steps = 3" in outcome.out, outcome


def test_its_run_folder_draws_for_geneval_as_its_student_does(distilled, tmp_path):
    _, run_dir, _ = distilled
    metadata = tmp_path / "metadata.jsonl"
    metadata.write_text(json.dumps({"tag": "single_object", "include": [], "prompt": "a circle"}))
    asked = ("--evaluation.batch", 2, "--evaluation.images-per-prompt", 2, "--evaluation.no-thinking", "--devices", 1)
    outcome = command("experiments.geneval", "write", run_dir, tmp_path / "out", "--metadata", metadata, *asked)
    assert outcome.code == 0 and "Warning" not in outcome.out and "Wrote 1 prompts" in outcome.out, outcome


def test_a_student_is_distilled_again_only_where_that_is_said_and_never_one_of_average_velocities(distilled, tmp_path):
    method, run_dir, _ = distilled
    words = (*JOBS[method], *SMALL, "--model.path", run_dir / "model", "--run-dir", tmp_path / "run")
    again = "--learning.distillation.again"
    outcome = command("experiments.distill", *words, *([again] if method == "mean_flow" else []))
    said = "a student of average velocities" if method == "mean_flow" else "is a student already; give the model that it"
    assert outcome.code == 2 and said in outcome.err and outcome.err.count("\n") == 1, outcome
    assert (again in outcome.err) == (method == "dmd2")


@pytest.mark.parametrize("method", ["mean_flow", "dmd2"])
@pytest.mark.parametrize("name", presets())
def test_every_preset_gives_settings_that_stand_together(name, method):
    config = settings(preset([name], "shapes")[0], method)
    check(config)
    check_devices(config, 1)
    assert config.evaluation.guidance == config.rollout.guidance == 1 and config.evaluation.flow_steps <= 8
    before = preset([name], "shapes")[0]
    assert config.learning.distillation.guidance == max(before.evaluation.guidance, before.rollout.guidance)


def test_the_method_of_a_command_line_is_known_before_its_defaults():
    assert asked_method(["shapes", "--learning.method", "dmd2", "--seed", "1"]) == "dmd2"
    assert asked_method(["--learning.method=dmd2"]) == "dmd2"
    assert asked_method(["shapes"]) == asked_method(["--learning.method", "grpo"]) == "mean_flow"


def of(method="mean_flow", **changes):
    """The settings of a distillation with some changed; `d` are those of the distillation itself."""
    config = settings(preset(["shapes"], "shapes")[0], method)
    own = dataclasses.replace(config.learning.distillation, **changes.pop("d", {}))
    learning = dataclasses.replace(config.learning, **{"distillation": own, **changes.pop("learning", {})})
    parts = {name: dataclasses.replace(getattr(config, name), **change) for name, change in changes.items()}
    return dataclasses.replace(config, learning=learning, **parts)


@pytest.mark.parametrize(("config", "words"), [
    (of(d={"steps": (0, 2)}), "distillation.steps = 0 2, but a drawing has at least 1 transition"),
    (of(d={"steps": ()}), "distillation.steps is empty"),
    (of(d={"steps": (2, 2)}), "names a number twice"),
    (of("dmd2", d={"steps": (2, 4)}), "trains at the states of one number of transitions; use one, such as 4"),
    (of(d={"guidance": 0.5}), "distillation.guidance = 0.5, but it must be 1"),
    (of(d={"guidance_interval": (0.5, 0.5)}), "distillation.guidance_interval = (0.5, 0.5) must satisfy"),
    (of("dmd2", d={"noise_range": (0.5, 1.5)}), "distillation.noise_range = (0.5, 1.5) must satisfy"),
    (of(d={"equal_share": 1.5}), "distillation.equal_share = 1.5, but it must be from 0 to 1"),
    (of(d={"time_std": 0.0}), "distillation.time_std = 0, but it must be above 0"),
    (of("dmd2", d={"fake_steps": 0}), "distillation.fake_steps = 0, but it must be at least 1"),
    (of("dmd2", d={"fake_lr": -1.0}), "distillation.fake_lr = -1, but it must be 0 or more"),
    (of(learning={"mse_weight": 0.1}), "learning.mse_weight = 0.1 holds to the start of the run, which learning.method"),
    (of("dmd2", learning={"latent_kl_weight": 0.1}), "learning.latent_kl_weight = 0.1 holds to the start"),
    (of(learning={"text_kl_weight": 0.1}), "learning.text_kl_weight = 0.1 holds to the start"),
    (of(rollout={"noise_range": (0, 2)}), "rollout.noise_range = [0, 2), but the teacher of learning.method = 'mean_flow'"),
    (of("dmd2", rollout={"noise_range": (0, 2)}), "'dmd2' draws noise at each transition; use 0 0"),
    (of("dmd2", rollout={"step_rule": "flow_sde"}), "rollout.step_rule = 'flow_sde' and rollout.noise_level = 1, but"),
    (of("dmd2", rollout={"noise_level": 0.8}), "draws its noise anew at each transition; use 'cps' and 1"),
    (of("dmd2", rollout={"window_range": (0, 3)}), "rollout.window_size = 1 and rollout.window_range = [0, 3), but"),
    (of("dmd2", rollout={"window_size": 2, "window_range": (0, 2)}), "learns at the states of all transitions"),
    (of("dmd2", d={"time_mean": 0.3}), "learning.distillation.time_mean = 0.3 is not read by learning.method = 'dmd2',"),
    (of("dmd2", d={"equal_share": 0.5}), "learning.distillation.equal_share = 0.5 is not read"),
    (of("dmd2", d={"weight_power": 0.5}), "learning.distillation.weight_power = 0.5 is not read"),
    (of(d={"fake_lr": 1e-3}), "learning.distillation.fake_lr = 0.001 is not read by learning.method = 'mean_flow', which"),
    (of(d={"noise_range": (0.1, 0.9)}), "learning.distillation.noise_range = 0.1 0.9 is not read"),
    (of(rollout={"step_rule": "cps"}), "rollout.step_rule = 'cps', but the teacher of learning.method = 'mean_flow' draws"),
    (of("dmd2", rollout={"shared_noise": True}), "learning.method = 'dmd2' compares nothing in a group; leave it out"),
    (of(learning={"reference": "none"}), "learning.reference = 'none' keeps nothing of the start, which is the teacher"),
    (of(learning={"group_size": 2}), "learning.group_size = 2, learning.best = 0 and learning.worst = 0, but nothing is"),
    (of(learning={"flow_weight": 0.0}), "learning.flow_weight = 0, but learning.method = 'mean_flow' learns nothing else"),
    (of(rollout={"rounds": 2}), "rollout.rounds = 2, but learning.method = 'mean_flow' learns a single drawing"),
    (of(rollout={"guidance": 2.0}), "use 1, and learning.distillation.guidance 2 for the teacher"),
    (of(rollout={"resample": 1}), "rollout.resample = 1 replaces groups"),
    (of(model={"second_time": False}), "learns a velocity between two times, and model.second_time is off"),
    (of(model={"floor_time": True}), "model.floor_time makes steps of the time"),
    (of(model={"lora": LoraConfig(rank=4)}), "adapters leave out, and model.lora.rank = 4; use 0, or 'dmd2'"),
])  # fmt: skip
def test_what_cannot_work_is_one_sentence(config, words):
    assert words in refusal(check, config)


def test_settings_of_a_distillation_are_not_read_elsewhere():
    config = preset(["shapes"], "shapes")[0]
    check(config)
    learning = dataclasses.replace(config.learning, distillation=DistillationConfig(guidance=2.0))
    assert "use experiments.distill, or leave it out" in refusal(check, dataclasses.replace(config, learning=learning))


def test_a_fake_score_follows_at_twice_the_students_rate_where_none_is_named():
    """Big presets, whose students learn slowly, too; that of `shapes` is 5e-4."""
    assert of("dmd2").learning.fake_lr == pytest.approx(5e-4)
    slow = settings(preset(["flux_dance"], "shapes")[0], "dmd2").learning
    assert slow.denoising_lr == 1e-5 and slow.fake_lr == pytest.approx(2e-5)
    assert [of("dmd2", d={"fake_lr": rate}).learning.fake_lr for rate in (3e-4, 0.0)] == [3e-4, 0]


def test_run_folders_from_before_the_fake_score_followed_are_read_and_go_on(tmp_path):
    """They say 5e-4 whether anything read it or not; what a run had is what its going on must have."""

    def read(config):
        old = to_dict(config)
        old["learning"]["distillation"]["fake_lr"] = 5e-4
        (tmp_path / "config.json").write_text(json.dumps(old))
        return load_run_config(epath.Path(tmp_path / "config.json"))

    for now in (preset(["shapes"], "shapes")[0], of("mean_flow"), of("dmd2")):
        check(read(now))
        assert read(now) == settled(now)
    slow = of("dmd2", learning={"denoising_lr": 2e-4})
    assert read(slow).learning.fake_lr == 5e-4 and read(slow) != settled(slow)
    assert read(slow) == settled(of("dmd2", learning={"denoising_lr": 2e-4}, d={"fake_lr": 5e-4}))


def test_a_run_judges_its_student_in_steps_that_it_is_made_for_and_its_folder_may_be_asked_for_others():
    config = of("dmd2", d={"steps": (2,)})
    said = refusal(build, config)
    assert "evaluation.flow_steps = 4, but the student is made for learning.distillation.steps = 2" in said
    assert "by --evaluation.flow-steps 2." in said
    check(config)


@pytest.mark.parametrize(("config", "words"), [
    (of(evaluation={"guidance": 3.0}), "evaluation.guidance = 3, but a student is judged as it draws, without; use 1, and "
     "learning.distillation.guidance 3 for the teacher."),
    (of("dmd2", evaluation={"guidance": 3.0}), "use 1, and learning.distillation.guidance 3 for the teacher."),
    (of(evaluation={"passes": PassesConfig(other=3.0)}), "evaluation.passes guide, and a student is judged as it draws"),
    (of(evaluation={"sampler": "sde"}), "learning.method = 'mean_flow' draws by another; use 'ode'."),
    (of("dmd2", evaluation={"sampler": "ode"}), "learning.method = 'dmd2' draws by another; use 'sde'."),
])  # fmt: skip
def test_a_run_judges_its_student_as_it_draws_and_its_folder_may_be_asked_otherwise(config, words):
    assert words in refusal(build, config)
    check(config)


def test_windows_are_not_asked_to_fit_where_a_distillation_reads_none():
    for config in (of(rollout={"window_size": 2}), of("dmd2", rollout={"flow_steps": 1})):
        check(config)


@pytest.mark.parametrize(("words", "said"), [
    (("flux_tiny", "--learning.distillation.guidance", 2), "is not guided by a second pass; use 1."),
    (("flux_tiny", "--learning.distillation.again"), "learning.distillation.again is for a student, and"),
    (("sd_tiny",), "is a model of stable_diffusion; leave it out, and distil with --learning.method dmd2."),
    (("sd_tiny", "--learning.method", "dmd2", "--learning.distillation.steps", 2000, "--evaluation.flow-steps", 2000),
     "steps, rollout.timestep_shift: steps = 2000: it must be from 1 to the 1000"),
])  # fmt: skip
def test_what_a_family_cannot_do_is_one_sentence(words, said, tmp_path):
    outcome = command("experiments.distill", *words, "--run-dir", tmp_path / "run")
    assert outcome.code == 2 and said in outcome.err and outcome.err.count("\n") == 1, outcome
