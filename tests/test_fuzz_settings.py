"""Fuzz: settings, from files and from the command line, and what launchers and plans are given as text."""

import json
import math
import os
import shlex
import subprocess

import tyro
import yaml
from hypothesis import strategies as st

import experiments.run
from experiments.command_line import preset, presets
from launch import jobset, slurm
from launch.planning.targets import parse
from launch.training import resolve
from tests.fuzzing import EVIL_NUMBERS, EVIL_TEXTS, as_json, changed_bytes, changed_json, fuzz, survives, texts
from unigrpo_jax.config import ConfigError, RunConfig
from unigrpo_jax.config_checks import check, check_devices, mesh_sizes
from unigrpo_jax.config_json import from_dict, load_run_config, to_dict
from unigrpo_jax.models.families import find_folder
from unigrpo_jax.rewards.load import load_reward
from unigrpo_jax.training import storage
from unigrpo_jax.training.restore import restore
from unigrpo_jax.worlds.world import load_world

CONFIGS = tuple(to_dict(preset([name], name)[0]) for name in presets())
numbers = st.sampled_from([str(n) for n in EVIL_NUMBERS if n != 10**400])
mostly = lambda *good: st.sampled_from(good * (200 // len(good)) + EVIL_TEXTS)


def used(config) -> None:
    """What every command does with settings before it reads anything."""
    check(config)
    mesh_sizes(config.mesh, 8, 1, "8 devices")
    check_devices(config, 8)


@fuzz(2000, changed_json(CONFIGS))
def test_settings_are_checked_or_refused(data):
    config = survives("config.json, values", from_dict, data, clean=ConfigError)
    if config is not None:
        survives("settings that were read", used, config, clean=ConfigError)


@fuzz(600, changed_bytes(tuple(map(as_json, CONFIGS))))
def test_a_config_file_is_read_or_refused(tmp_path, data):
    path = tmp_path / "config.json"
    path.write_bytes(data)
    survives("config.json, bytes", load_run_config, path, clean=ConfigError)


@fuzz(400, st.dictionaries(texts, st.sampled_from(EVIL_NUMBERS) | texts | st.none(), max_size=4))
def test_weights_of_rewards_are_read_or_refused(weights):
    config = survives("reward weights", from_dict, {"learning": {"reward_weights": weights}}, clean=ConfigError)
    if config is not None:
        survives("settings that were read", used, config, clean=ConfigError)


FLAGS = ["--learning.group-size", "--learning.reward-weights", "--rollout.window-range", "--rewards", "--model.path",
         "--name", "--seed", "--learning.text-clip", "--rollout.step-rule", "--judge.url", "--judge.hosts", "--mesh.fsdp",
         "--resume", "--evaluation.guidance-interval", "--learning.frozen", "--model.lora.targets", "--run-dir"]  # fmt: skip


@fuzz(80, st.lists(st.sampled_from(FLAGS) | texts | numbers, max_size=5))
def test_a_command_line_is_read_or_refused(arguments):
    """tyro ends with exit code 2 and its own words; what it lets through is checked."""

    def read():
        default, rest = preset(arguments, "shapes")
        used(tyro.cli(experiments.run.Arguments, args=rest, default=experiments.run.Arguments(default)).config)

    survives("command line", read, clean=(ConfigError, SystemExit))


sides = st.lists(st.sampled_from([1, 2, 4, 8, 16, 0, 10**9]), min_size=1, max_size=4).map(lambda n: "x".join(map(str, n)))
shapes = texts | st.text("0123456789x*٣ ", max_size=12) | sides | st.builds("{}*{}".format, sides, st.integers(0, 9))
kinds = st.sampled_from(["v5p", "v5e", "h100", "tpu7x", "V5P", ""])
topologies = texts | st.builds("{}:{}".format, kinds, shapes)


@fuzz(1500, topologies)
def test_a_topology_is_one_that_a_machine_can_have_or_is_refused(name):
    parsed = survives("plan topology", parse, name, clean=ConfigError)
    if parsed is not None:
        kind, shape, times = parsed
        assert f"{kind}:{shape}" in name and 1 <= times * math.prod(map(int, shape.split("x"))) <= 2**16


LAUNCH = st.fixed_dictionaries({
    "run_dir": mostly("gs://b/runs/one", "gs://b/runs/$(x)/one"),
    "name": mostly(None, "one-2"),
    "cache": st.none() | texts,
    "setup": texts,
    "env": st.lists(st.builds("{}={}".format, mostly("A", "b_1"), texts), max_size=2).map(tuple),
})  # fmt: skip


@fuzz(40, LAUNCH)
def test_a_jobset_is_yaml_that_says_what_was_given_or_is_refused(given):
    def made():
        launch = jobset.JobSet(preset="bagel_7b", image="image", slice="v5p:4x4x4", **given)
        training = resolve(launch, ["--mesh.fsdp", "64"])
        launch.check()
        return launch, training, jobset.manifest(launch, training)

    result = survives("JobSet", made, clean=ConfigError)
    if result is None:
        return
    launch, training, manifest = result
    assert yaml.safe_load(jobset.written(manifest)) == manifest
    pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
    said = [part.replace("$$", "$") for part in pod["command"]]
    assert said[-len(training.command) :] == training.command


@fuzz(40, LAUNCH, mostly("", "gpu"))
def test_a_batch_script_is_one_that_bash_reads_or_is_refused(tmp_path, given, partition):
    def made():
        launch = slurm.Slurm(preset="bagel_7b", nodes=8, partition=partition or None, **given)
        training = resolve(launch, ["--mesh.fsdp", "64"])
        launch.check()
        return launch, training, slurm.script(launch, training)

    result = survives("Slurm script", made, clean=ConfigError)
    if result is None:
        return
    launch, training, script = result
    options = [line for line in script.split("\n") if line.startswith("#SBATCH")]
    assert len(options) == 8 + bool(partition), "no value begins a line of its own"
    assert shlex.join(training.command) in script
    if not launch.setup:
        path = tmp_path / "script"
        path.write_text(script)
        assert subprocess.run(["bash", "-n", os.fspath(path)], check=False).returncode == 0


SCHEMES = st.sampled_from(["geneval:", "clipscore:", "aesthetic:", "judge:", "math:", "~", "./", "x://", "/"])


@fuzz(300, texts | st.builds("{}{}".format, SCHEMES, texts))
def test_a_name_is_found_or_refused(name):
    """As --model.path, --prompts, --rewards, --run-dir and CHECKPOINT, or in a config.json."""
    config = RunConfig()
    survives("model.path", find_folder, name, clean=ConfigError)
    survives("--prompts", load_world, [name], clean=ConfigError)
    survives("--run-dir", storage.path, name, clean=ConfigError)
    survives("--rewards", load_reward, name, config, clean=ConfigError)
    if name not in ("", "."):
        survives("CHECKPOINT", restore, name, config, clean=ConfigError)


def test_what_is_written_of_settings_is_read_again():
    """The mutations begin with files that are read."""
    for data in CONFIGS:
        assert to_dict(from_dict(json.loads(as_json(data)))) == data
