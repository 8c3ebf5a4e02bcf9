"""The TPU launcher against a stand-in for gcloud that plays queues and preemptions, with real shells for the hosts."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from launch import tpu
from tests.command import command
from tests.launching import PYTHON, Stand
from tests.test_launch_training import NASTY

ROOT = pathlib.Path(__file__).resolve().parent.parent
# A slice of two hosts; 96 episodes divide over its 8 chips.
ARGUMENTS = ["shapes", "--slice", "v5p:2x2x2", "--project", "my-project", "--zone", "us-east5-a", "--poll", "0",
             "--run-dir", "gs://bucket/runs/one"]  # fmt: skip

# world: lives, the states that each creation goes through; states, those still to come (none: there is no slice); attempts,
# for each start the hosts' exit codes, "lost" takes the slice away; node, the node's state; broken, describes that fail.
GCLOUD = """
record()
world = load()
kind, verb = argv[2:4]
if verb == "describe" and world.get("broken", 0):
    world["broken"] -= 1
    save(world)
    sys.exit("ERROR: (gcloud) UNAVAILABLE: try later")
if verb in ("describe", "ssh", "delete") and not world["states"]:
    sys.exit("ERROR: (gcloud) NOT_FOUND: Resource was not found")
if (kind, verb) == ("queued-resources", "describe"):
    print(world["states"].pop(0) if len(world["states"]) > 1 else world["states"][0])
elif (kind, verb) == ("tpu-vm", "describe"):
    print(world.get("node", ["READY"]).pop(0) if len(world.get("node", [])) > 1 else world.get("node", ["READY"])[0])
elif verb == "create":
    if not world["lives"]:
        sys.exit("ERROR: (gcloud) RESOURCE_EXHAUSTED: no quota")
    world["states"] = world["lives"].pop(0)
elif verb == "delete":
    world.update(states=[], node=["READY"])
elif verb == "ssh":
    (script,) = [a.removeprefix("--command=") for a in argv if a.startswith("--command=")]
    starting = "experiments.run" in script
    codes = world["attempts"].pop(0) if starting else [0, 0]
    running = []
    for host, code in enumerate(codes):
        if code == "lost":
            world["states"] = ["SUSPENDING", "SUSPENDED"]
            continue
        home = here.parent / f"host{host}"
        home.mkdir(exist_ok=True)
        environment = {"HOME": str(home), "PATH": f"{here}:/usr/bin:/bin", "CODE": str(code), "LANG": "C.UTF-8"}
        running.append(subprocess.Popen(["/bin/bash", "-c", script], env=environment, cwd=home))
    ended = [one.wait() for one in running]
    save(world)
    sys.exit(max(ended))
save(world)
"""


@pytest.fixture
def stand(tmp_path, monkeypatch) -> Stand:
    stand = Stand.on_path(tmp_path, monkeypatch)
    stand.add("gcloud", GCLOUD)
    stand.add("python", PYTHON)
    return stand


def verbs(stand: Stand) -> list[str]:
    """What gcloud was asked for, without describes: create, delete, start, status."""
    out = []
    for call in stand.calls("gcloud"):
        script = next((a for a in call["argv"] if a.startswith("--command=")), None)
        out.append(call["argv"][3] if script is None else "start" if "experiments.run" in script else "status")
    return [verb for verb in out if verb != "describe"]


def trainings(stand: Stand) -> list[str]:
    """The hosts on which the training was started, in order."""
    return [pathlib.Path(call["environment"]["HOME"]).name for call in stand.calls("python")]


def test_a_slice_is_asked_for_awaited_and_trained_on(stand: Stand, tmp_path):
    stand.world(lives=[["CREATING", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]], states=[], attempts=[[0, 0]])
    prompts = "".join(NASTY)
    own = ["--spot", "--create-flag=--labels=a=b", "--ssh-flag=--internal-ip", "--env", f"NOTE={prompts}"]
    setup = ["--setup", "export SEEN='it''s'\ntrue"]
    outcome = command("launch.tpu", *ARGUMENTS, *own, *setup, "--", "--prompts", prompts)
    assert outcome.code == 0 and outcome.err == "", outcome
    assert verbs(stand) == ["create", "start", "status"]
    create = next(call["argv"] for call in stand.calls("gcloud") if call["argv"][3] == "create")
    assert create == [
        "compute", "tpus", "queued-resources", "create", "one", "--node-id=one", "--project=my-project", "--zone=us-east5-a",
        "--accelerator-type=v5p-16", "--runtime-version=v2-alpha-tpuv5", "--spot", "--labels=a=b",
    ]  # fmt: skip
    for call in stand.calls("gcloud"):
        assert {"--project=my-project", "--zone=us-east5-a"} < set(call["argv"])
        assert call["argv"][3] != "ssh" or {"--worker=all", "--internal-ip"} < set(call["argv"])
    assert sorted(trainings(stand)) == ["host0", "host1"]
    for call in stand.calls("python"):
        assert call["argv"] == ["-m", "experiments.run", "shapes", "--resume", "--run-dir", "gs://bucket/runs/one",
                                "--prompts", prompts]  # fmt: skip
        assert call["environment"]["JAX_COMPILATION_CACHE_DIR"] == "gs://bucket/runs/compile_cache"
        assert (call["environment"]["NOTE"], call["environment"]["SEEN"]) == (prompts, "its")
    assert not list(tmp_path.rglob("x"))  # which $(touch x) would have made
    for state in ("CREATING", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"):
        assert outcome.out.count(f"slice: {state}") == 1
    assert "the slice is still there; delete it by gcloud compute tpus queued-resources delete one" in outcome.out


def test_a_preempted_slice_is_deleted_asked_for_anew_and_trained_on(stand: Stand):
    stand.world(lives=[["ACTIVE"], ["WAITING_FOR_RESOURCES", "ACTIVE"]], states=[], attempts=[[75, "lost"], [0, 0]])
    outcome = command("launch.tpu", *ARGUMENTS, "--delete")
    assert outcome.code == 0, outcome
    assert verbs(stand) == ["create", "start", "status", "delete", "create", "start", "status", "delete"]
    deletions = [call["argv"] for call in stand.calls("gcloud") if call["argv"][3] == "delete"]
    assert all({"--force", "--quiet"} < set(argv) for argv in deletions)
    assert all("--resume" in call["argv"] for call in stand.calls("python"))


def test_a_node_that_was_preempted_counts_although_its_request_is_active(stand: Stand):
    stand.world(lives=[["ACTIVE"]], states=["ACTIVE"], node=["PREEMPTED"], attempts=[[0, 0]])
    assert command("launch.tpu", *ARGUMENTS).code == 0
    assert verbs(stand) == ["delete", "create", "start", "status"]


def test_training_that_lost_a_process_is_started_again_on_the_same_slice(stand: Stand):
    stand.world(lives=[["ACTIVE"]], states=[], attempts=[[75, 137], [0, 0]])
    assert command("launch.tpu", *ARGUMENTS).code == 0
    assert verbs(stand) == ["create", "start", "status", "start", "status"]


@pytest.mark.parametrize("codes, expected", [([1, 75], 1), ([2, 2], 2), ([75, 127], 127)])
def test_what_a_restart_does_not_mend_stops(stand: Stand, codes, expected):
    stand.world(lives=[["ACTIVE"]], states=[], attempts=[codes])
    outcome = command("launch.tpu", *ARGUMENTS, "--delete")
    assert outcome.code == expected and verbs(stand) == ["create", "start", "status", "delete"], outcome


def test_restarts_are_counted(stand: Stand):
    stand.world(lives=[["ACTIVE"]], states=[], attempts=[[75, 75]] * 3)
    outcome = command("launch.tpu", *ARGUMENTS, "--restarts", "2")
    assert outcome.code == 75 and verbs(stand).count("start") == 3 and "all restarts are used up" in outcome.out


def test_a_slice_that_is_lost_while_it_is_awaited_counts_as_a_restart(stand: Stand):
    stand.world(lives=[["PROVISIONING", "SUSPENDED"]] * 3, states=[], attempts=[])
    outcome = command("launch.tpu", *ARGUMENTS, "--restarts", "1")
    assert outcome.code == 75 and verbs(stand) == ["create", "delete", "create", "delete"], outcome


def test_a_slice_that_is_there_is_used(stand: Stand):
    stand.world(lives=[], states=["ACTIVE"], attempts=[[0, 0]])
    assert command("launch.tpu", *ARGUMENTS).code == 0
    assert verbs(stand) == ["start", "status"]


def test_failed_setup_is_tried_again_without_training(stand: Stand):
    stand.world(lives=[], states=["ACTIVE"], attempts=[[0, 0]] * 2)
    outcome = command("launch.tpu", *ARGUMENTS, "--setup", "false", "--restarts", "1")
    assert outcome.code == 75 and stand.calls("python") == [] and verbs(stand).count("start") == 2


def test_a_describe_that_fails_is_repeated_and_then_reported(stand: Stand):
    stand.world(lives=[], states=["ACTIVE"], attempts=[[0, 0]], broken=4)
    assert command("launch.tpu", *ARGUMENTS).code == 0
    stand.world(lives=[], states=["ACTIVE"], attempts=[[0, 0]], broken=5)
    outcome = command("launch.tpu", *ARGUMENTS)
    assert outcome.code == 1 and outcome.err.count("\n") == 1 and "UNAVAILABLE" in outcome.err, outcome


@pytest.mark.parametrize("lives, words", [([], "create ended with exit code 1"), ([["FAILED"]], "the request failed")])
def test_a_request_that_is_refused_or_fails_is_one_sentence(stand: Stand, lives, words):
    stand.world(lives=lives, states=[], attempts=[])
    outcome = command("launch.tpu", *ARGUMENTS)
    assert outcome.code == 1 and outcome.err.count("\n") == 1 and words in outcome.err, outcome


@pytest.mark.parametrize(
    "words, hosts, expected",
    [
        (["0", "0"], 2, 0),
        (["0"], 2, 75),  # a host did not answer
        ([], 2, 75),
        (["0", "killed"], 2, 75),
        (["75", "running"], 2, None),
        (["2", "running"], 2, 2),
        (["137", "75"], 2, 75),
        (["75", "1"], 2, 1),
    ],
)
def test_what_the_hosts_say_comes_to_one_code(words, hosts, expected):
    assert tpu.verdict(words, hosts) == expected


WAITING = """
record()
(here / "ready").touch()
while not (here / "go").exists():
    time.sleep(0.01)
print("trained to the end")
"""


def test_training_outlives_a_broken_connection_and_is_followed_again(stand: Stand, tmp_path):
    """The script for the hosts itself: its shell is killed, as sshd would, and run anew while the training goes on."""
    stand.add("python", WAITING)
    start, status = [dry(stand, verb) for verb in ("start", "status")]
    environment = stand.environment(HOME=str(tmp_path))
    shell = lambda script: subprocess.Popen(["/bin/bash", "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        first = shell(start)
        waits_for(stand.folder / "ready")
        assert shell(status).communicate()[0] == "running\n"
        first.kill()
        first.wait()
        assert shell(status).communicate()[0] == "running\n"
        again = shell(start)
        time.sleep(0.2)
    finally:
        (stand.folder / "go").touch()
    assert "trained to the end" in again.communicate(timeout=20)[0]
    assert shell(status).communicate()[0] == "0\n" and len(stand.calls("python")) == 1


def waits_for(path: pathlib.Path) -> None:
    """Returns when the file is there."""
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.01)


def dry(stand: Stand, verb: str) -> str:
    """The script that --dry-run shows for the hosts, read by a real shell's rules."""
    outcome = command("launch.tpu", *ARGUMENTS, "--dry-run")
    assert outcome.code == 0 and stand.calls("gcloud") == [], outcome
    script = "gcloud() { printf '%s\\0' \"$@\"; }\n" + outcome.out
    argv = subprocess.run(["/bin/bash", "-c", script], capture_output=True, text=True, check=True).stdout.split("\0")
    scripts = [a.removeprefix("--command=") for a in argv if a.startswith("--command=")]
    return next(s for s in scripts if ("experiments.run" in s) == (verb == "start"))


def test_the_dry_run_shows_what_is_run(stand: Stand):
    """Its text, run as a shell script, calls gcloud with the very arguments of the launcher."""
    outcome = command("launch.tpu", *ARGUMENTS, "--delete", "--dry-run")
    assert outcome.code == 0 and stand.calls() == []
    script = "gcloud() { printf '%s\\0' \"$@\"; printf '\\1'; }\n" + outcome.out
    said = subprocess.run(["/bin/bash", "-c", script], capture_output=True, text=True, check=True).stdout
    shown = [call.split("\0")[:-1] for call in said.split("\1")[:-1]]
    stand.world(lives=[["ACTIVE"]], states=[], attempts=[[0, 0]])
    assert command("launch.tpu", *ARGUMENTS, "--delete").code == 0
    ran = {json.dumps(call["argv"]) for call in stand.calls("gcloud")}
    assert ran == {json.dumps(argv) for argv in shown}


@pytest.mark.parametrize(
    "changes, words",
    [
        (["--slice", "v5p:2x2x3"], ["v5p:2x2x2 (8 chips, v5p-16)"]),
        (["--run-dir", "runs/one"], ["run_dir = 'runs/one'", "gs://BUCKET/PATH"]),
        (["--run-dir", "gs://bucket"], ["run_dir = 'gs://bucket' names no folder"]),
        (["--run-dir", "gs://bucket/"], ["run_dir = 'gs://bucket/' names no folder"]),
        (["--project", "My Project"], ["project = 'My Project'"]),
        (["--zone", "us-east5"], ["zone = 'us-east5'", "us-east5-a"]),
        (["--name", "One"], ["name = 'One'", "--name"]),
        (["--create-flag", "reserved"], ["'reserved' is no flag"]),
        (["--poll", "-1"], ["poll = -1"]),
        (["--env", "HF_TOKEN=x"], ["HF_TOKEN is a secret", "gcloud secrets"]),
        (["--", "--mesh.tensor", "3"], ["mesh.tensor = 3", "8 chips of v5p:2x2x2", "2 or 4"]),
        (["--", "--rollout.prompts-per-iteration", "3", "--learning.group-size", "5"], ["5 * 3 = 15 episodes"]),
        (["--", "--rollout.guidance", "0"], ["rollout.guidance = 0.0"]),
    ],
)
def test_what_cannot_work_is_one_sentence_and_costs_no_slice(stand: Stand, changes, words):
    outcome = command("launch.tpu", *ARGUMENTS, *changes)
    assert (outcome.code, outcome.out) == (2, ""), outcome
    assert outcome.err.startswith("launch.tpu: ") and outcome.err.count("\n") == 1, outcome.err
    for word in words:
        assert word in outcome.err, outcome.err
    assert stand.calls() == []


def test_without_gcloud_a_sentence_says_so(stand: Stand):
    (stand.folder / "gcloud").unlink()
    outcome = command("launch.tpu", *ARGUMENTS)
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and "gcloud is not on PATH" in outcome.err


def test_an_interrupt_leaves_the_slice_and_says_how_to_delete_it(stand: Stand):
    """As a process of its own, waiting in the queue."""
    stand.world(lives=[["WAITING_FOR_RESOURCES"]], states=[], attempts=[])
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    # A process that was started in the background has SIGINT ignored, and its children inherit that.
    hears = ("import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
             "runpy.run_module('launch.tpu', run_name='__main__', alter_sys=True)")
    process = subprocess.Popen([sys.executable, "-c", hears, *ARGUMENTS[:-4], "--poll", "60", *ARGUMENTS[-2:]],
                               env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "none yet" in process.stdout.readline() and "WAITING" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert "queued-resources delete one" in out and verbs(stand) == ["create"]
