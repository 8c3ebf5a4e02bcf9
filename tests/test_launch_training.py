"""What launchers start: nasty arguments come through shells unchanged, and settings are checked as the training would."""

import dataclasses
import itertools
import json
import os
import shlex
import subprocess
import sys

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.external import shown
from launch.training import Launch, check_mesh, exports, prepared, resolve
from unigrpo_jax.config import ConfigError, MeshConfig, RunConfig
from unigrpo_jax.parallel.mesh import batch_size, make_mesh

# Text that an argument list of a process can hold.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
NASTY = [
    "",
    " ",
    "a b",
    "it's",
    '"',
    "$(touch x)",
    "`touch x`",
    "$HOME",
    "$$",
    "a\nb",
    "\\",
    "!",
    "*",
    "~",
    "é😀\u2028",
    "-n",
    "#",
]


def said(script: str) -> list[str]:
    """What a real bash prints, split at NULs."""
    done = subprocess.run(["/bin/bash", "-c", script], capture_output=True, check=True, env={"LANG": "C.UTF-8"})
    return done.stdout.decode().split("\0")[:-1]


@given(st.lists(TEXT, min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_a_shown_command_is_read_back_as_it_was(arguments):
    assert shlex.split(shown(["python", *arguments])) == ["python", *arguments]
    assert said("printf '%s\\0' " + shown(arguments)) == arguments


@given(st.dictionaries(st.from_regex("[A-Z][A-Z0-9_]{0,8}", fullmatch=True).map("X_".__add__), TEXT, min_size=1))
@settings(max_examples=40, deadline=None)
def test_exported_variables_have_their_values(environment):
    assert said(exports(environment) + "".join(f'printf "%s\\0" "${name}"\n' for name in environment)) == [
        *environment.values()
    ]


def test_setup_shares_its_shell_and_its_failure_is_noticed():
    assert said(prepared("X=1\nY=2", "exit 3") + "printf '%s\\0' $X$Y") == ["12"]
    assert prepared("", "exit 3") == ""
    assert subprocess.run(["/bin/bash", "-c", prepared("true\nfalse", "exit 3") + "exit 4"], check=False).returncode == 3


def launch(**changes) -> Launch:
    return dataclasses.replace(Launch(preset="shapes", run_dir="gs://bucket/runs/my_run.1"), **changes)


def test_the_command_resumes_and_holds_the_arguments_as_they_are():
    given = ["--prompts", "".join(NASTY), "--learning.reasoning-lr=1e-3"]
    training = resolve(launch(env=("A=1=2", "B=")), given)
    assert training.command == ["python", "-m", "experiments.run", "shapes", "--resume", "--run-dir", "gs://bucket/runs/my_run.1",
                                *given]  # fmt: skip
    cache = "gs://bucket/runs/compile_cache"
    assert training.environment == {"JAX_COMPILATION_CACHE_DIR": cache, "A": "1=2", "B": ""}
    assert training.config.prompts == ("".join(NASTY),) and training.config.learning.reasoning_lr == 1e-3
    assert training.name == "my-run-1"
    assert resolve(launch(run_dir="run/", name="n"), []).environment["JAX_COMPILATION_CACHE_DIR"] == "compile_cache"
    assert resolve(launch(env=("MONKEY=1",)), []).environment["MONKEY"] == "1"
    assert resolve(launch(cache="gs://c"), []).environment["JAX_COMPILATION_CACHE_DIR"] == "gs://c"


@pytest.mark.parametrize(
    "changes, arguments, words",
    [
        ({}, ["--learning.group-size", "1"], ["learning.group_size = 1", "at least 2"]),
        ({}, ["--no-resume"], ["--no-resume"]),
        ({}, ["--run-dir", "other"], ["--run-dir other stands after `--`"]),
        ({}, ["--prompts", "\udcff"], ["UTF-8"]),
        ({"preset": "shape"}, [], ["did you mean shapes?"]),
        ({"preset": "--x"}, [], ["preset = '--x'"]),
        ({"env": ("A",)}, [], ["env = 'A' must be NAME=VALUE"]),
        ({"env": ("1A=2",)}, [], ["env = '1A'"]),
        ({"env": ("A=1", "A=2")}, [], ["a name twice"]),
        ({"env": ("UNIGRPO_PROCESS=2",)}, [], ["UNIGRPO_"]),
        ({"env": ("JAX_COMPILATION_CACHE_DIR=x",)}, [], ["--cache"]),
    ],
)
def test_what_the_training_would_refuse_is_refused_before(changes, arguments, words):
    with pytest.raises(ConfigError) as refusal:
        resolve(launch(**changes), arguments)
    for word in words:
        assert word in str(refusal.value), refusal.value


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "HF_TOKEN", "db_password", "AWS_SECRET", "MY_CREDENTIALS"])
def test_a_secret_is_refused_and_not_repeated(name):
    with pytest.raises(ConfigError, match=f"{name} is a secret by its name") as refusal:
        resolve(launch(env=(f"{name}=hunter2",)), [])
    assert "hunter2" not in str(refusal.value)


SIZES = list(itertools.product([0, 1, 2, 3, 8], repeat=3))


def test_meshes_are_refused_exactly_where_jax_would_refuse_them():
    """On 8 devices, against the mesh that the training makes."""
    refused = 0
    for data, fsdp, tensor in SIZES:
        config = RunConfig(mesh=MeshConfig(data=data, fsdp=fsdp, tensor=tensor))  # 96 episodes divide over 1, 2, 4 and 8
        try:
            assert 96 % batch_size(make_mesh(0, config.mesh, jax.devices()[:8])) == 0
        except ConfigError:
            refused += 1
            with pytest.raises(ConfigError, match="mesh.fsdp"):
                check_mesh(config, 8, "8 chips")
        else:
            check_mesh(config, 8, "8 chips")
    assert 0 < refused < len(SIZES)


@pytest.mark.parametrize(
    "changes, devices, words",
    [
        ({"mesh": MeshConfig(fsdp=48)}, 64, ["mesh.fsdp = 48", "= 48 * ? does not give the 64 chips", "32 or 64"]),
        ({"mesh": MeshConfig(data=2, fsdp=4)}, 64, ["= 8 does not give the 64 chips", "multiply to 64"]),
        ({"mesh": MeshConfig(data=0, tensor=0)}, 64, ["at most one size may be 0"]),
        ({}, 64, ["8 * 12 = 96 episodes do not divide over 64 devices"]),
        ({"devices": 4}, 64, ["devices = 4", "64 chips"]),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused_with_the_arithmetic(changes, devices, words):
    with pytest.raises(ConfigError) as refusal:
        check_mesh(RunConfig(**changes), devices, f"{devices} chips")
    for word in words:
        assert word in str(refusal.value), refusal.value


def test_episodes_spread_over_data_and_fsdp_but_not_over_tensor():
    check_mesh(RunConfig(mesh=MeshConfig(tensor=2)), 64, "64 chips")  # 96 episodes over 32
    check_mesh(RunConfig(mesh=MeshConfig(data=8, fsdp=4, tensor=0)), 64, "64 chips")
    with pytest.raises(ConfigError, match="over 64 devices"):
        check_mesh(RunConfig(mesh=MeshConfig(data=8, fsdp=8, tensor=0)), 64, "64 chips")


def test_launchers_start_without_jax():
    """A typo is answered at once, on machines where no accelerator is, too."""
    code = "import launch.tpu, launch.jobset, launch.slurm, sys, json; print(json.dumps('jax' in sys.modules))"
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) is False
