"""Several processes as one program: how they are found, and that two of them train as one does."""

import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from jax._src import distributed

from tests.command import HEADS, REWARD, SMALL, run_small
from tests.conftest import ROOT
from tests.quick import FLAGS
from tests.runs_of_a_process import ENDED
from tests.test_resume import metrics, state_at, steps
from unigrpo_jax.config import ConfigError, ProcessConfig
from unigrpo_jax.parallel import mesh as meshes
from unigrpo_jax.parallel import processes
from unigrpo_jax.parallel.processes import Place, find
from unigrpo_jax.parallel.roll_call import PeersMissing

SLURM = {"SLURM_JOB_ID": "5000", "SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1",
         "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "gpu[012-013]"}  # fmt: skip
OURS = {"UNIGRPO_COORDINATOR": "pod-0.job:8476", "UNIGRPO_PROCESSES": "2", "UNIGRPO_PROCESS": "1"}


@pytest.mark.parametrize(
    "config, environment, place",
    [
        ({}, {}, None),
        ({"count": 2, "index": 1, "coordinator": "a:1"}, SLURM, Place("a:1", 2, 1)),
        ({}, OURS | SLURM, Place("pod-0.job:8476", 2, 1)),
        ({}, OURS | {"UNIGRPO_PROCESSES": "1", "UNIGRPO_PROCESS": "0"}, None),
        ({}, SLURM, Place("gpu012:62344", 4, 3, (1,))),  # 61440 + 5000 mod 4096
        ({}, SLURM | {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "JAX_COORDINATOR_PORT": "77"}, Place("gpu012:77", 2, 1)),
        ({}, SLURM | {"SLURM_STEP_NODELIST": "a-1,b[2-3]"}, Place("a-1:62344", 4, 3, (1,))),
        ({}, SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        ({"count": 1}, OURS | SLURM, None),
    ],
)
def test_a_process_finds_its_place(config, environment, place):
    assert find(ProcessConfig(**config), environment) == place


@pytest.mark.parametrize(
    "config, environment, words",
    [
        ({"count": 2}, {}, "belong together, but processes.coordinator and processes.index is not given"),
        ({"count": 2, "index": 2, "coordinator": "a:1"}, {}, "of 2 processes it must be from 0 to 1"),
        ({"count": 2, "index": 0, "coordinator": "a"}, {}, "'a', but it must be host:port"),
        ({"count": 2, "index": 0, "coordinator": "a:70000"}, {}, "must be host:port"),
        ({}, OURS | {"UNIGRPO_PROCESS": "two"}, "UNIGRPO_PROCESS = 'two'"),
        ({}, {"UNIGRPO_PROCESS": "0"}, "UNIGRPO_COORDINATOR and UNIGRPO_PROCESSES is not given"),
        ({}, {k: v for k, v in SLURM.items() if k != "SLURM_NTASKS"}, "SLURM_NTASKS"),
    ],
)
def test_a_place_that_cannot_be_is_one_sentence(config, environment, words):
    with pytest.raises(ConfigError) as caught:
        find(ProcessConfig(**config), environment)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("more", "place"),
    [
        ({}, Place("localhost:8482", 2, 1)),
        ({"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1", "MEGASCALE_COORDINATOR_ADDRESS": "127.0.0.1"},
         Place("127.0.0.1:8482", 4, 3)),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None),
    ],
)  # fmt: skip
def test_a_host_of_a_tpu_slice_finds_its_place(monkeypatch, more, place):
    in_slices(monkeypatch, more)
    assert find(ProcessConfig()) == place


def in_slices(monkeypatch, more):
    """This process as a host of TPUs, by the variables that GKE sets and JAX reads."""
    from jax._src.clusters import cloud_tpu_cluster

    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    variables = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost,other", "TPU_WORKER_ID": "1",
                 "MEGASCALE_NUM_SLICES": "", "MEGASCALE_SLICE_ID": "", "MEGASCALE_COORDINATOR_ADDRESS": ""}  # fmt: skip
    for name, value in (variables | more).items():
        monkeypatch.setenv(name, value)


def test_a_slice_whose_coordinator_does_not_come_is_missed(monkeypatch):
    from jax._src.clusters import cloud_tpu_cluster

    second = {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1"}
    in_slices(monkeypatch, second | {"MEGASCALE_COORDINATOR_ADDRESS": "x.invalid"})
    monkeypatch.setattr(cloud_tpu_cluster.time, "sleep", lambda seconds: None)
    with pytest.raises(PeersMissing, match=r"^the other processes were not found within 1 s \(.* x.invalid\)$"):
        find(ProcessConfig(wait_seconds=1))


def test_every_row_belongs_to_one_shard():
    """Copies along `tensor` are counted once, and the rows come in order."""
    mesh = meshes.make_mesh(8, meshes.MeshConfig(fsdp=2, tensor=2))
    value = np.arange(24.0).reshape(8, 3)
    for sharding in (meshes.spread(mesh), meshes.replicated(mesh)):
        rows, own = processes.own_rows(processes.to_global(value, sharding))
        np.testing.assert_array_equal(rows, np.arange(8))
        np.testing.assert_array_equal(own, value)


def test_alone_everything_is_the_identity():
    assert processes.gather({"a": 1}) == [{"a": 1}] and processes.is_first()
    rows = np.array([1, 0, 2])
    assert processes.share_rows(rows, {"x": [0.1, float("inf"), 3]}, 3) == {"x": [float("inf"), 0.1, 3]}
    with pytest.raises(ConfigError, match="^as it was$"):
        processes.agree_on_errors((ConfigError,), lambda: (_ for _ in ()).throw(ConfigError("as it was")))


class Board:
    """What JAX's coordination service keeps for processes, which are threads here."""

    def __init__(self):
        self.kept, self.changed = {}, threading.Condition()

    def key_value_set(self, key: str, value: str) -> None:
        with self.changed:
            assert key not in self.kept
            self.kept[key] = value
            self.changed.notify_all()

    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str:
        with self.changed:
            if not self.changed.wait_for(lambda: key in self.kept, timeout_in_ms / 1000):
                raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED")
            return self.kept[key]

    def key_value_delete(self, key: str) -> None:
        with self.changed:
            del self.kept[key]


def test_a_list_is_divided_among_processes_and_nothing_stays_on_the_board(monkeypatch):
    """Only the first one's list counts, which may be short or empty; of a process that is gone there is nothing."""
    here, board = threading.local(), Board()
    monkeypatch.setattr(processes.jax, "process_count", lambda: 3)
    monkeypatch.setattr(processes.jax, "process_index", lambda: here.index)
    monkeypatch.setattr(distributed.global_state, "client", board)

    def process(index: int) -> list[list]:
        here.index = index
        lists = {"a/b": list(range(7)), "a/c": [5], "a/d": []}
        act = lambda own: [[index, x] for x in own]
        return [processes.divided(name, own if index == 0 else ["other"], act) for name, own in lists.items()]

    with ThreadPoolExecutor(3) as pool:
        first, *others = pool.map(process, range(3))
        assert first == [[[x % 3, x] for x in range(7)], [[0, 5]], []] and others == [[[], [], []]] * 2
        assert board.kept == {}
        monkeypatch.setattr(processes, "PATIENCE", 0.0)
        first, other = pool.map(process, range(2))
    assert first == [[None if x % 3 == 2 else [x % 3, x] for x in range(7)], [[0, 5]], []]


# An epsilon far above rounding, which Adam would otherwise blow up to whole steps.
OTHERWISE = ("--learning.adam-eps", 0.01)
# How processes end has nothing to do with what they train; without thinking there is less to compile.
DRAWN = ("--rollout.no-thinking", *HEADS)


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


RUNS = "from tests import runs_of_a_process\nruns_of_a_process.main()"
# Neighbours on the mesh lie in other processes, as on a torus of chips that several hosts share.
BY_TURNS = """
from unigrpo_jax.parallel import mesh
arrange = mesh.mesh_utils.create_device_mesh
mesh.mesh_utils.create_device_mesh = lambda shape, devices, **more: arrange(shape, devices[::2] + devices[1::2], **more)
"""


class Processes:
    """Processes with one CPU device each, or several, that do the same runs of `experiments.run`, one after the other.

    Each works in a folder of its own, `process-I`; `first` is Python that they begin with.
    """

    def __init__(self, folder: pathlib.Path, model: pathlib.Path, *arguments, count=2, devices=1, first=""):
        (folder / "tiny_reward.py").write_text(REWARD)
        flags = f"--xla_force_host_platform_device_count={devices} {FLAGS}"
        environment = os.environ | {
            "XLA_FLAGS": flags, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}",
            "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax")}  # fmt: skip
        coordinator = f"127.0.0.1:{free_port()}"
        self.folder, self.ended = folder, False
        self._words = []
        self.children = []
        for i in range(count):
            place = ["--processes.count", count, "--processes.index", i, "--processes.coordinator", coordinator]
            words = ["smoke", "--model.path", model, *SMALL, "--devices", 0, *OTHERWISE, *arguments]
            self._words.append(words + (place if count > 1 else []))
            (own := folder / f"process-{i}").mkdir()
            self.children.append(subprocess.Popen([sys.executable, "-c", f"{first}\n{RUNS}"], cwd=own,
                                 env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                 text=True))  # fmt: skip

    def _tell(self, first: tuple[str, ...], arguments, own=((), ())) -> None:
        for child, words, more in zip(self.children, self._words, own, strict=False):
            child.stdin.write(json.dumps([*first, *map(str, [*words, *arguments, *more])]) + "\n")
            child.stdin.flush()

    def run(self, run_dir: pathlib.Path, *arguments, own=((), ())) -> list[tuple[int, str, str]]:
        """(exit code, stdout, stderr) of a run in each, after which they are ready for another; `own` of each alone."""
        self._tell((), ["--run-dir", run_dir, *arguments], own)
        answers = [next(line for line in child.stdout if line.startswith(ENDED)) for child in self.children]
        return [tuple(json.loads(answer.removeprefix(ENDED))) for answer in answers]

    def begin_last(self, run_dir: pathlib.Path, *arguments) -> None:
        """Begins the run that the processes end with."""
        self.ended = True
        self._tell(("last",), ["--run-dir", run_dir, *arguments])

    def until(self, happened) -> None:
        deadline = time.monotonic() + 300
        while not happened():
            assert time.monotonic() < deadline and all(child.poll() is None for child in self.children)
            time.sleep(0.1)

    def wait(self) -> list[tuple[int, str, str]]:
        """(exit code, stdout, stderr) of each process."""
        out = []
        for child in self.children:
            stdout, stderr = child.communicate(timeout=500)
            out.append((child.returncode, stdout, stderr))
        return out

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for child in self.children:
            child.kill()
            child.communicate()


@pytest.fixture(scope="module")
def reward(tmp_path_factory):
    """The module of the reward function, importable here, too."""
    folder = tmp_path_factory.mktemp("rewards")
    (folder / "tiny_reward.py").write_text(REWARD)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.delitem(sys.modules, "tiny_reward", raising=False)
        yield


@pytest.fixture(scope="module")
def alone(tiny_model, reward, tmp_path_factory) -> pathlib.Path:
    """Six iterations in this process."""
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    outcome = run_small(tiny_model, run_dir, *OTHERWISE)
    assert outcome.code == 0, outcome.err
    return run_dir


@pytest.fixture(scope="module")
def living(tiny_model, tmp_path_factory):
    """Two processes that one test after the other asks for a run; others where a test has ended them.

    They compare their settings when they first meet, and are given different ones then (`refused`).
    """
    with contextlib.ExitStack() as stack:
        begun = []

        def give() -> Processes:
            if not begun or begun[-1].ended:
                begun.append(two := stack.enter_context(Processes(tmp_path_factory.mktemp("two"), tiny_model)))
                two.refused = two.run(two.folder / "run", own=((), ("--learning.flow-clip", "1e-4")))
            return begun[-1]

        yield give


@pytest.fixture(scope="module")
def trained(living, tmp_path_factory):
    """The folder of a run of four iterations, and how it ended in each of two processes."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    return run_dir, living().run(run_dir, "--iterations", 4)


def assert_same_run(one: pathlib.Path, other: pathlib.Path, step: int):
    """Parameters and moments within rounding of sums over devices, metrics too."""
    leaves = zip(jax.tree.leaves(state_at(one, step)), jax.tree.leaves(state_at(other, step)), strict=True)
    for a, b in leaves:
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-6)
    ours, theirs = metrics(one)[:step], metrics(other)[:step]
    assert [line["step"] for line in ours] == [line["step"] for line in theirs] == list(range(1, step + 1))
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_two_processes_train_as_one_and_one_goes_on_from_their_checkpoint(trained, tiny_model, alone, tmp_path):
    """Two processes over loopback do iterations 1 to 4; then one process resumes to 6."""
    run_dir, ((code, out, err), (other_code, other_out, other_err)) = trained
    assert code == 0 and other_code == 0, err + other_err
    assert "2 x cpu" in out and "reward" in out
    assert "step 4/4" in out and "step" not in other_out  # one speaks for all
    assert steps(run_dir) == [2, 4]
    assert_same_run(run_dir, alone, 4)
    resumed = run_small(tiny_model, run_dir, *OTHERWISE, "--resume", "--iterations", 6)
    assert resumed.code == 0 and "Resuming after iteration 4" in resumed.out, resumed.err
    assert_same_run(run_dir, alone, 6)
    table = lambda folder: json.loads((folder / "summary.json").read_text())
    assert table(run_dir)["before"] == table(alone)["before"]
    for name, row in table(alone)["after"].items():
        assert row == pytest.approx(table(run_dir)["after"][name], abs=0.01)


def test_two_processes_each_read_a_share_of_a_checkpoint_back(living, tmp_path):
    """Every file of one that is written is read once, by one of the two."""
    two, run_dir = living(), tmp_path / "run"
    (two.folder / "reading.py").write_text(
        "import jax\nfrom unigrpo_jax.training import manifest\n\ndigest = manifest._digest\n\n\ndef noted(path):\n"
        f"    with open(f'{tmp_path}/{{jax.process_index()}}', 'a') as file:\n        print(path, file=file)\n"
        "    return digest(path)\n\n\nmanifest._digest = noted\n\n\n"
        "def score(batch):\n    return batch.images[..., 0].mean((1, 2)) / 255\n")  # fmt: skip
    for code, _, err in two.run(run_dir, "--rewards", "reading:score", "--iterations", 2, "--checkpoint.every", 1):
        assert code == 0, err
    place = run_dir / "checkpoints" / "2"
    read = [(tmp_path / name).read_text().splitlines() for name in ("0", "1")]
    own = [[path for path in paths if path.startswith(f"{place}/")] for paths in read]
    files = json.loads((place / "manifest.json").read_text())["files"]
    assert sorted(own[0] + own[1]) == sorted(str(place / name) for name in files)
    assert abs(len(own[0]) - len(own[1])) <= 1 and len(files) > 5


def test_processes_with_other_settings_do_not_start(living):
    two = living()
    for code, out, err in two.refused:
        assert code == 2 and out == "" and err.count("\n") == 1, (out, err)
        assert "process 1 has learning.flow_clip = 0.0001 (process 0: 1.2e-05)" in err
    assert not (two.folder / "run").exists()


def test_processes_with_other_prompts_under_one_name_do_not_start(living, tmp_path):
    """Each reads the file of its own working folder."""
    two = living()
    for index in range(2):
        prompt = json.dumps({"prompt": ("a red circle", "a blue square")[index]})
        (two.folder / f"process-{index}" / "mine.jsonl").write_text(prompt)
    for code, out, err in two.run(tmp_path / "run", "--prompts", "mine.jsonl"):
        assert code == 2 and out == "" and err.count("\n") == 1, (out, err)
        assert "process 1 and process 0 differ in mine.jsonl (prompts); give all" in err
    assert not (tmp_path / "run").exists()


def test_messages_of_any_length_are_gathered_by_few_programs(living, tmp_path):
    """Of sixty lengths; where the module that sends them is imported, processes stand where all gather."""
    two = living()
    (two.folder / "sending.py").write_text(
        "import jax\nfrom unigrpo_jax.parallel import processes\n\ncompiled = []\n"
        "jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))\n"
        "for length in range(100, 9100, 150):\n"
        "    own = length + jax.process_index()\n"
        "    assert list(map(len, processes.gather('x' * own))) == [length, length + 1]\n"
        "raise RuntimeError(f'{sum(\"backend_compile\" in name for name in compiled)} programs')\n")  # fmt: skip
    for code, _, err in two.run(tmp_path / "run", "--rewards", "sending:score"):
        assert code == 2 and int(re.search(r"RuntimeError: (\d+) programs", err)[1]) <= 3, err


def test_whatever_the_order_of_the_mesh_a_process_judges_whole_groups(tiny_model, tmp_path):
    """Of two prompts drawn four times, and in an evaluation of four drawn twice; else it would have two of each, or one."""
    (tmp_path / "whole.py").write_text(
        "import jax, json, numpy as np\n\nseen = []\n\ndef score(batch):\n"
        "    seen.append(np.asarray(batch.group).tolist())\n"
        "    open(f'groups-{jax.process_index()}.json', 'w').write(json.dumps(seen))\n"
        "    return batch.images[..., 0].mean((1, 2)) / 255\n")  # fmt: skip
    drawn_twice = ["--evaluation.images-per-prompt", 2, "--evaluation.prompts", 4, "--evaluation.batch", 8]
    with Processes(tmp_path, tiny_model, *DRAWN, devices=2, first=BY_TURNS) as two:
        outcomes = two.run(tmp_path / "run", "--iterations", 1, "--rewards", "whole:score", *drawn_twice)
    assert [code for code, _, _ in outcomes] == [0, 0], outcomes
    for index in range(2):
        evaluated = [2 * index] * 2 + [2 * index + 1] * 2
        groups = json.loads((tmp_path / f"process-{index}" / f"groups-{index}.json").read_text())
        assert groups == [evaluated, [index] * 4, evaluated]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["before"]["diversity"]["overall"] > 0 < summary["after"]["diversity"]["overall"]


def test_a_reward_that_fails_in_one_process_stops_both_in_one_sentence(living, tmp_path):
    two = living()
    (two.folder / "failing.py").write_text(
        "import jax\ncalls = 0\n\ndef score(batch):\n    global calls\n    calls += 1\n"
        "    if jax.process_index() == 1 and calls >= 3:\n        raise OSError('no disk')\n"
        "    return batch.images[..., 0].mean((1, 2)) / 255\n")  # fmt: skip
    run_dir = tmp_path / "run"
    outcomes = two.run(run_dir, "--rewards", "failing:score", "--judging.backoff-seconds", "0.01")
    for index, (code, _, err) in enumerate(outcomes):
        assert code == 1 and "process 1: the reward function failing:score raised OSError: no disk" in err, err
        with np.load(run_dir / "unjudged" / "000002" / f"process-{index}" / "images.npz") as arrays:
            np.testing.assert_array_equal(arrays["episodes"], np.arange(4) + 4 * index)
    assert steps(run_dir) == [1]


def test_a_disk_that_is_full_for_one_process_ends_both_in_one_sentence(living, tmp_path):
    """The first process, which writes metrics, may write no file of more than 1 kB from iteration 3 on.  No checkpoint is
    being written then: the other process would wait for it beyond this run."""
    two, run_dir = living(), tmp_path / "run"
    (two.folder / "filling.py").write_text(
        "import jax, resource\ncalls = 0\n\ndef score(batch):\n    global calls\n    calls += 1\n"
        "    if jax.process_index() == 0 and calls == 4:\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, -1))\n"
        "    return batch.images[..., 0].mean((1, 2)) / 255\n")  # fmt: skip
    for code, _, err in two.run(run_dir, "--rewards", "filling:score", "--checkpoint.every", 1000):
        assert code == 1 and f"{run_dir} cannot be written: File too large" in err and "Traceback" not in err, err


def test_a_signal_to_one_process_saves_in_both_and_asks_for_a_restart(living, tmp_path):
    """SIGTERM, as a preemption sends it; the other process hears of it at the iteration's end."""
    two, run_dir = living(), tmp_path / "run"
    two.begin_last(run_dir, "--iterations", 2000, "--checkpoint.every", 1000)
    lines = run_dir / "metrics.jsonl"
    two.until(lambda: lines.exists() and lines.read_text().count("\n"))
    two.children[1].terminate()
    outcomes = two.wait()
    assert [code for code, _, _ in outcomes] == [75, 75], outcomes
    assert len(steps(run_dir)) == 1 and steps(run_dir)[0] == len(metrics(run_dir)) >= 1


def test_a_signal_before_the_iterations_ends_that_process_and_the_other_asks_for_a_restart(tiny_model, tmp_path):
    """SIGTERM where the reward is imported; the other waits for what both must have."""
    (tmp_path / "ending.py").write_text(
        "import jax, os, signal, time\nif jax.process_index() == 1:\n    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(20)\n\ndef score(batch):\n    return [0.5] * len(batch.prompts)\n")  # fmt: skip
    with Processes(tmp_path, tiny_model, *DRAWN) as two:
        two.begin_last(tmp_path / "run", "--rewards", "ending:score")
        (code, _, err), (other, _, _) = two.wait()
    assert other == -signal.SIGTERM and code == 75 and "another process was lost" in err, (other, code, err)
    assert not (tmp_path / "run").exists()


def test_a_process_that_is_killed_ends_the_other_which_asks_for_a_restart(tiny_model, tmp_path):
    """SIGKILL, as a lost machine; the other has nobody to add gradients with."""
    run_dir = tmp_path / "run"
    with Processes(tmp_path, tiny_model, *DRAWN) as two:
        two.begin_last(run_dir, "--iterations", 2000, "--checkpoint.every", 1)
        two.until(lambda: (run_dir / "checkpoints").exists() and steps(run_dir))
        two.children[1].kill()
        (code, _, err), _ = two.wait()
    assert code == 75 and "another process was lost" in err, (code, err)


def test_a_step_that_hangs_prints_stacks_and_ends(tiny_model, tmp_path):
    """A reward on the devices, which has no limit of its own."""
    code = "import time\n\ndef score(batch):\n    time.sleep(600)\n\nscore.cost = 'device'\n"
    (tmp_path / "hanging_reward.py").write_text(code)
    with Processes(tmp_path, tiny_model, *DRAWN, count=1) as one:
        one.begin_last(tmp_path / "run", "--rewards", "hanging_reward:score", "--processes.hang-seconds", "20")
        ((code, _, err),) = one.wait()
    assert code == 75, err
    assert "hanging_reward.py" in err and "in score" in err and "processes.hang_seconds" in err
