"""The batch script run by a real bash with stand-ins for srun, scancel and scontrol, and its submission to sbatch's."""

import signal
import subprocess
import time

import pytest

from tests.command import command
from tests.launching import Stand
from tests.test_launch_training import NASTY

# 32 GPUs, over which 96 episodes divide.
ARGUMENTS = ["shapes", "--nodes", "4", "--gpus-per-node", "8", "--run-dir", "/scratch/runs/one"]
SBATCH = 'record(stdin=sys.stdin.read())\nsys.exit(int(load()["code"]))\n'

# Starts a task for each of the world's codes, leaves their numbers for scancel, and returns the highest code, as srun does.
SRUN = """
record()
command = argv[2:]
tasks = [subprocess.Popen(command, env=os.environ | {"CODE": str(code)}) for code in load()["codes"]]
(here / "tasks.part").write_text(" ".join(str(task.pid) for task in tasks))
(here / "tasks.part").rename(here / "tasks")
codes = [task.wait() for task in tasks]
sys.exit(max(code if code >= 0 else 128 - code for code in codes))
"""
# Signals the tasks and their children, as Slurm signals a task's processes.
SCANCEL = """
record()
for task in (here / "tasks").read_text().split() if (here / "tasks").exists() else []:
    children = pathlib.Path(f"/proc/{task}/task/{task}/children").read_text().split()
    for process in [task, *children]:
        os.kill(int(process), signal.SIGTERM)
"""
# Ends with CODE; a negative one is a signal that it sends to itself, "wait" waits for SIGTERM and then saves.
TASK = """
record(environment=dict(os.environ))
code = os.environ["CODE"]
if code == "wait":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    (here / f"ready-{os.getpid()}").touch()
    time.sleep(30)
if int(code) < 0:
    os.kill(os.getpid(), -int(code))
sys.exit(int(code))
"""


@pytest.fixture
def stand(tmp_path, monkeypatch) -> Stand:
    stand = Stand.on_path(tmp_path, monkeypatch)
    for name, body in {"sbatch": SBATCH, "srun": SRUN, "scancel": SCANCEL, "scontrol": "record()\n", "python": TASK}.items():
        stand.add(name, body)
    return stand


def script(*arguments) -> str:
    """What --dry-run shows, a comment with the command and then the script."""
    cut = [*arguments, "--"].index("--")
    outcome = command("launch.slurm", *ARGUMENTS, *arguments[:cut], "--dry-run", *arguments[cut:])
    assert (outcome.code, outcome.err) == (0, ""), outcome
    first, _, rest = outcome.out.partition("\n")
    assert first == "# sbatch, which reads" and rest.startswith("#!/bin/bash\n")
    return rest


def begin(stand: Stand, text: str, **environment: str) -> subprocess.Popen:
    """The script as Slurm would run it, on the first node."""
    return subprocess.Popen(["/bin/bash", "-c", text], env=stand.environment(SLURM_JOB_ID="42", **environment),
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip


def options(text: str) -> dict[str, str]:
    """The #SBATCH lines."""
    lines = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH ")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def test_the_job_asks_for_its_nodes_processes_and_a_signal_before_the_end(stand: Stand):
    text = script("--time", "1-12:00:00", "--partition", "gpu", "--account", "lab", "--sbatch-flag=--mem=0", "--lead", "300")
    assert options(text) == {
        "job-name": "one", "nodes": "4", "ntasks-per-node": "8", "gpus-per-node": "8", "time": "1-12:00:00",
        "partition": "gpu", "account": "lab", "output": "%x-%j.out", "open-mode": "append", "signal": "B:TERM@300",
        "requeue": "", "mem": "0",
    }  # fmt: skip
    assert stand.calls() == []


def test_a_process_per_node_is_told_of_all_its_gpus(stand: Stand):
    text = script("--processes", "node")
    assert options(text)["ntasks-per-node"] == "1"
    stand.world(codes=[0])
    begin(stand, text).communicate()
    (call,) = stand.calls("python")
    assert call["environment"]["JAX_LOCAL_DEVICE_IDS"] == "0,1,2,3,4,5,6,7"


def test_arguments_and_variables_come_through_unchanged(stand: Stand, tmp_path):
    prompts = "".join(NASTY)
    stand.world(codes=[0, 0])
    text = script("--env", f"NOTE={prompts}", "--setup", "export SEEN='it''s'\ntrue", "--", "--prompts", prompts)
    process = begin(stand, text)
    process.communicate()
    assert process.returncode == 0 and len(stand.calls("python")) == 2
    for call in stand.calls("python"):
        assert call["argv"] == ["-m", "experiments.run", "shapes", "--resume", "--run-dir", "/scratch/runs/one",
                                "--prompts", prompts]  # fmt: skip
        assert (call["environment"]["NOTE"], call["environment"]["SEEN"]) == (prompts, "its")
        assert call["environment"]["JAX_COMPILATION_CACHE_DIR"] == "/scratch/runs/compile_cache"
    assert not list(tmp_path.rglob("x")) and stand.calls("scontrol") == []


@pytest.mark.parametrize(
    "codes, expected, requeued",
    [
        ([0, 0], 0, False),
        ([75, 75], 75, True),
        ([0, 75], 75, True),
        ([2, 2], 2, False),
        ([1, 75], 1, False),  # one stopped for good, and the other lost its peer
        ([75, 2], 2, False),
        ([127, 75], 127, False),
        ([-9, 75], 137, True),
        ([-9, 1], 1, False),
        ([-6, 75], 134, True),
    ],
)
def test_exit_codes_decide_about_a_requeue(stand: Stand, codes, expected, requeued):
    stand.world(codes=codes)
    process = begin(stand, script())
    _, err = process.communicate()
    assert process.returncode == expected, err
    assert [call["argv"] for call in stand.calls("scontrol")] == [["requeue", "42"]] * requeued
    (srun,) = stand.calls("srun")
    assert srun["argv"][:2] == ["--kill-on-bad-exit=0", "--wait=120"]  # the others may save, and do not wait for ever


@pytest.mark.parametrize("count, requeued", [("0", True), ("2", True), ("3", False), ("4", False)])
def test_requeues_are_counted(stand: Stand, count, requeued):
    stand.world(codes=[75])
    process = begin(stand, script("--restarts", "3"), SLURM_RESTART_COUNT=count)
    process.communicate()
    assert process.returncode == 75 and bool(stand.calls("scontrol")) == requeued


def test_a_sigterm_to_the_script_reaches_the_tasks_which_save(stand: Stand):
    """srun must not get it: it would kill its tasks."""
    stand.world(codes=["wait", "wait"])
    process = begin(stand, script())
    end = time.monotonic() + 60
    while len(list(stand.folder.glob("ready-*"))) < 2 or not (stand.folder / "tasks").exists():
        assert time.monotonic() < end, "the tasks did not start"
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 75, err
    assert stand.calls("scancel")[0]["argv"] == ["--signal=TERM", "42"]
    assert [call["argv"] for call in stand.calls("scontrol")] == [["requeue", "42"]]


def test_a_sigterm_during_setup_requeues_without_training(stand: Stand):
    stand.world(codes=[0])
    process = begin(stand, script("--setup", "kill -TERM $$"))
    process.communicate(timeout=20)
    assert process.returncode == 75 and stand.calls("srun") == [] and len(stand.calls("scontrol")) == 1


def test_failed_setup_ends_the_job(stand: Stand):
    process = begin(stand, script("--setup", "true\nfalse"))
    process.communicate()
    assert process.returncode == 2 and stand.calls() == []


def test_sbatch_gets_the_script(stand: Stand):
    stand.world(code=0)
    expected = script("--", "--seed", "3")
    outcome = command("launch.slurm", *ARGUMENTS, "--", "--seed", "3")
    assert (outcome.code, outcome.err) == (0, ""), outcome
    (call,) = stand.calls()
    assert (call["program"], call["argv"], call["stdin"]) == ("sbatch", [], expected)


def test_a_refusal_of_sbatch_is_one_sentence(stand: Stand):
    stand.world(code=1)
    outcome = command("launch.slurm", *ARGUMENTS)
    assert outcome.code == 1 and outcome.err.count("\n") == 1 and "sbatch ended with exit code 1" in outcome.err


@pytest.mark.parametrize(
    "changes, words",
    [
        (["--nodes", "0"], ["nodes = 0"]),
        (["--nodes", "5"], ["8 * 12 = 96 episodes do not divide over 40 devices"]),
        (["--lead", "0"], ["lead = 0"]),
        (["--time", "noon"], ["time = 'noon'"]),
        (["--partition", "a b"], ["partition = 'a b'"]),
        (["--log", "a\nb"], ["log = 'a\\nb'"]),
        (["--sbatch-flag=--mem=0\nrm"], ["is no flag of sbatch"]),
        (["--name", "a b"], ["name = 'a b'"]),
        (["--run-dir", "/"], ["run_dir = '/' names no folder"]),
        (["--env", "WANDB_API_KEY=x"], ["WANDB_API_KEY is a secret", "Slurm hands your environment on"]),
        (["--", "--mesh.fsdp", "5"], ["mesh.fsdp = 5", "4 * 8 = 32 GPUs", "4 or 8"]),
        (["--", "--learning.group-size", "1"], ["learning.group_size = 1"]),
    ],
)
def test_what_cannot_work_is_one_sentence_and_nothing_is_called(stand: Stand, changes, words):
    outcome = command("launch.slurm", *ARGUMENTS, *changes)
    assert (outcome.code, outcome.out) == (2, ""), outcome
    assert outcome.err.startswith("launch.slurm: ") and outcome.err.count("\n") == 1, outcome.err
    for word in words:
        assert word in outcome.err, outcome.err
    assert stand.calls() == []


def test_without_sbatch_a_sentence_says_so(stand: Stand):
    (stand.folder / "sbatch").unlink()
    outcome = command("launch.slurm", *ARGUMENTS)
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and "sbatch is not on PATH" in outcome.err


def test_help_lists_options_with_defaults(stand: Stand):
    for module in ("tpu", "jobset", "slurm"):
        outcome = command(f"launch.{module}", "--help")
        assert outcome.code == 0 and "--dry-run" in outcome.out and "(default: 10)" in outcome.out, outcome
