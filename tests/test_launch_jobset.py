"""The JobSet's manifest, read back as Kubernetes would, and its submission to a stand-in for kubectl."""

import json
import re
import subprocess

import pytest
import yaml
from hypothesis import given, settings

from launch import jobset
from launch.training import Training
from tests.command import command
from tests.launching import PYTHON, Stand
from tests.test_launch_training import NASTY, TEXT
from unigrpo_jax.config import RunConfig


@pytest.fixture
def stand(tmp_path, monkeypatch) -> Stand:
    return Stand.on_path(tmp_path, monkeypatch)


TPU = ["shapes", "--slice", "v5p:2x4x4", "--image", "registry/image:tag", "--run-dir", "gs://bucket/runs/one"]
GPU = ["shapes", "--nodes", "4", "--image", "image", "--run-dir", "/runs/one", "--claim", "shared=/runs"]
KUBECTL = 'record(stdin=sys.stdin.read())\nsys.exit(int(load()["code"]))\n'


def expanded(text: str, variables: dict[str, str]) -> str:
    """Kubernetes' own rule (third_party/forked/golang/expansion): $$ is $, $(NAME) is its value where NAME is known."""
    known = lambda match: "$" if match[0] == "$$" else variables.get(match[1], match[0])
    return re.sub(r"\$\$|\$\(([^)]*)\)", known, text)


def dry(*arguments) -> dict:
    """The manifest that --dry-run prints."""
    outcome = command("launch.jobset", *arguments[: (cut := [*arguments, "--"].index("--"))], "--dry-run", *arguments[cut:])
    assert (outcome.code, outcome.err) == (0, ""), outcome
    return yaml.safe_load(outcome.out)


def parts(manifest: dict) -> tuple[dict, dict, dict, dict]:
    """The replicated job, its Job's spec, its pod's spec and the container."""
    (replicated,) = manifest["spec"]["replicatedJobs"]
    pod = replicated["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return replicated, replicated["template"]["spec"], pod, container


def test_two_tpu_slices_are_two_jobs_of_their_hosts(stand: Stand):
    manifest = dry(
        *TPU, "--slices", "2", "--restarts", "7", "--spot", "--", "--mesh.tensor", "2", "--learning.reasoning-lr", "1e-4"
    )
    replicated, job, pod, container = parts(manifest)
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert manifest["metadata"]["name"] == "one"
    exclusive = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    assert manifest["metadata"]["annotations"] == exclusive
    assert manifest["spec"]["network"] == {"enableDNSHostnames": True}
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 7
    assert replicated["replicas"] == 2
    # 2x4x4 is 32 chips, 4 to a host
    assert (job["completions"], job["parallelism"], job["completionMode"], job["backoffLimit"]) == (8, 8, "Indexed", 0)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "2x4x4",
        "cloud.google.com/gke-spot": "true",
    }
    assert {t["key"] for t in pod["tolerations"]} == {"google.com/tpu", "cloud.google.com/gke-spot"}
    assert container["resources"]["limits"] == {"google.com/tpu": 4} and container["image"] == "registry/image:tag"
    assert container["command"] == ["python", "-m", "experiments.run", "shapes", "--resume", "--run-dir", "gs://bucket/runs/one",
                                    "--mesh.tensor", "2", "--learning.reasoning-lr", "1e-4"]  # fmt: skip
    assert container["env"] == [{"name": "JAX_COMPILATION_CACHE_DIR", "value": "gs://bucket/runs/compile_cache"}]
    assert stand.calls() == []


def test_what_a_restart_does_not_mend_ends_the_jobset_and_the_rest_restarts(stand: Stand):
    manifest = dry(*TPU)
    _, job, pod, container = parts(manifest)
    (final,) = manifest["spec"]["failurePolicy"]["rules"]  # the default action for all others is RestartJobSet
    assert (final["action"], final["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    evicted, ended = job["podFailurePolicy"]["rules"]
    assert evicted == {"action": "Count", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    codes = ended["onExitCodes"]
    assert (ended["action"], codes["operator"], codes["containerName"]) == ("FailJob", "In", container["name"])
    assert {1, 2} <= set(codes["values"]) and not {0, 75, 137, 143} & set(codes["values"])
    assert pod["restartPolicy"] == "Never"  # which podFailurePolicy needs
    assert pod["terminationGracePeriodSeconds"] == 120


def test_gpu_nodes_are_one_indexed_job_whose_pods_know_each_other(stand: Stand):
    manifest = dry(*GPU, "--gpu-type", "nvidia-h100-80gb", "--service-account", "writer", "--grace", "60",
                   "--", "--mesh.tensor", "2")  # fmt: skip
    replicated, job, pod, container = parts(manifest)
    assert "annotations" not in manifest["metadata"] and replicated["replicas"] == 1
    assert (job["completions"], job["parallelism"]) == (4, 4)
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    assert (pod["serviceAccountName"], pod["terminationGracePeriodSeconds"]) == ("writer", 60)
    environment = {one["name"]: one for one in container["env"]}
    # JobSet's rule: JOBSET-REPLICATEDJOB-JOBINDEX-PODINDEX.JOBSET
    host = f"{manifest['metadata']['name']}-{replicated['name']}-0-0.{manifest['metadata']['name']}"
    port = container["ports"][0]["containerPort"]
    assert environment["UNIGRPO_COORDINATOR"]["value"] == f"{host}:{port}"
    assert environment["UNIGRPO_PROCESSES"]["value"] == "4"
    index = environment["UNIGRPO_PROCESS"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    paths = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes[paths["/runs"]]["persistentVolumeClaim"] == {"claimName": "shared"}
    assert volumes[paths["/dev/shm"]]["emptyDir"] == {"medium": "Memory"}


def test_secrets_are_references(stand: Stand):
    _, _, _, container = parts(dry(*TPU, "--secret-env", "HF_TOKEN=hub/token", "--env", "A=$(B) $$"))
    assert {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}} in container["env"]
    (value,) = [one["value"] for one in container["env"] if one["name"] == "A"]
    assert expanded(value, {"B": "wrong"}) == "$(B) $$"


def test_the_container_runs_setup_and_then_the_training_with_its_arguments_unchanged(stand: Stand, tmp_path):
    """The container's command as Kubernetes starts it, with a python that records what it gets."""
    stand.add("python", PYTHON)
    prompts = "".join(NASTY)
    _, _, _, container = parts(dry(*TPU, "--setup", "export SEEN='it''s'\ntrue", "--", "--prompts", prompts))
    argv = [expanded(part, {"x": "wrong", "touch x": "wrong"}) for part in container["command"]]
    done = subprocess.run(argv, env=stand.environment(CODE="75"), cwd=tmp_path, check=False)
    (call,) = stand.calls("python")
    assert done.returncode == 75 and call["argv"][-2:] == ["--prompts", prompts] and "--resume" in call["argv"]
    assert call["environment"]["SEEN"] == "its" and not (tmp_path / "x").exists()

    _, _, _, container = parts(dry(*TPU, "--setup", "false"))
    done = subprocess.run([expanded(p, {}) for p in container["command"]], env=stand.environment(), check=False)
    assert done.returncode == 75 and len(stand.calls("python")) == 1


LAUNCH = jobset.JobSet(preset="shapes", run_dir="gs://b/r", image="i", slice="v6e:2x2")


@given(TEXT)
@settings(max_examples=200, deadline=None)
def test_any_argument_survives_yaml_and_kubernetes(text):
    training = Training(["python", text], {"A": text}, RunConfig(), "name")
    _, _, _, container = parts(yaml.safe_load(jobset.written(jobset.manifest(LAUNCH, training))))
    (env,) = container["env"]
    assert [expanded(part, {"A": "wrong", "": "wrong"}) for part in container["command"]] == ["python", text]
    assert expanded(env["value"], {"A": "wrong", "": "wrong"}) == text


AMBIGUOUS = "1e-3 1e3 64 0x1 0b1 1_0 y n yes off null ~ 2026-01-01 +1 .5 .inf 1:30 = << True 0o7".split()


@pytest.mark.parametrize("text", [*AMBIGUOUS, "", "a: b", "- a"])
def test_text_that_some_reader_of_yaml_takes_for_something_else_is_quoted(text):
    """Kubernetes reads 1e-3, y and 0o7 as a number and a truth value where PyYAML does not; quoted they are text to both."""
    root = yaml.compose(jobset.written({"value": text}))
    assert root.value[0][1].style in ('"', "'"), jobset.written({"value": text})


def test_kubectl_gets_the_manifest(stand: Stand, capfd):
    stand.add("kubectl", KUBECTL)
    stand.world(code=0)
    expected = dry(*TPU)
    outcome = command("launch.jobset", *TPU, "--namespace", "team", "--context", "pod")
    assert outcome.code == 0 and outcome.err == "", outcome
    (call,) = stand.calls()
    assert call["argv"] == ["--context=pod", "--namespace=team", "create", "--filename=-"]
    assert yaml.safe_load(call["stdin"]) == expected
    assert "kubectl --context=pod --namespace=team delete jobset one" in outcome.out


def test_a_refusal_of_kubectl_is_one_sentence(stand: Stand):
    stand.add("kubectl", KUBECTL)
    stand.world(code=1)
    outcome = command("launch.jobset", *TPU)
    assert outcome.code == 1 and outcome.err.count("\n") == 1 and "kubectl create ended with exit code 1" in outcome.err


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([*TPU, "--nodes", "2"], ["either --slice (TPU) or --nodes (GPU)"]),
        (["shapes", "--image", "i", "--run-dir", "gs://b/r"], ["either --slice (TPU) or --nodes (GPU)"]),
        ([*TPU, "--slice", "v5p:2x4x5"], ["v5p:2x4x4 (32 chips, v5p-64)"]),
        ([*TPU, "--slice", "v5p:2x2x1", "--slices", "2"], ["at least 2 hosts"]),
        ([*TPU, "--slices", "0"], ["slices = 0"]),
        ([*GPU, "--slices", "2"], ["slices = 2 needs --slice"]),
        ([*GPU, "--nodes", "5"], ["8 * 12 = 96 episodes do not divide over 40 devices"]),
        ([*GPU, "--", "--mesh.fsdp", "5"], ["mesh.fsdp = 5", "32 GPUs of 4 hosts with 8 each", "4 or 8"]),
        ([*TPU, "--run-dir", "runs/one"], ["run_dir = 'runs/one'", "gs://BUCKET/PATH"]),
        ([*GPU, "--run-dir", "/other/one"], ["run_dir = '/other/one'", "--claim"]),
        ([*GPU, "--claim", "Shared=/x"], ["claim = 'Shared'"]),
        ([*GPU, "--claim", "shared=x"], ["CLAIM=/PATH"]),
        ([*TPU, "--name", "a" * 60], ["name = 'aaa", "1 to 47 lower-case"]),
        ([*TPU, "--name", "1run"], ["name = '1run'", "a letter first"]),
        ([*TPU, "--name", "My_run"], ["name = 'My_run'"]),
        ([*TPU, "--env", "HF_TOKEN=x"], ["HF_TOKEN is a secret", "--secret-env NAME=SECRET/KEY"]),
        ([*TPU, "--secret-env", "HF_TOKEN=x"], ["secret_env HF_TOKEN must be NAME=SECRET/KEY"]),
        ([*TPU, "--namespace", "No Space"], ["namespace = 'No Space'"]),
        ([*TPU, "--restarts", "-1"], ["restarts = -1"]),
        ([*TPU, "--image", "two words"], ["image = 'two words'"]),
        ([*TPU, "--", "--learning.group-size", "1"], ["learning.group_size = 1"]),
    ],
)  # fmt: skip
def test_what_cannot_work_is_one_sentence_and_nothing_is_called(stand: Stand, arguments, words):
    stand.add("kubectl", KUBECTL)
    stand.world(code=0)
    outcome = command("launch.jobset", *arguments)
    assert (outcome.code, outcome.out) == (2, ""), outcome
    assert outcome.err.startswith("launch.jobset: ") and outcome.err.count("\n") == 1, outcome.err
    for word in words:
        assert word in outcome.err, outcome.err
    assert stand.calls() == []


def test_the_longest_name_that_is_allowed_gives_pods_of_63_letters(stand: Stand):
    manifest = dry(*TPU, "--name", "a" * 47)
    pod = f"{manifest['metadata']['name']}-{manifest['spec']['replicatedJobs'][0]['name']}-0-7-abcde"
    assert len(pod) == 63


def test_without_kubectl_a_sentence_says_so(stand: Stand):
    outcome = command("launch.jobset", *TPU)
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and "kubectl is not on PATH" in outcome.err
    assert json.dumps(dry(*TPU))


def test_an_option_that_training_does_not_know_costs_nothing(stand: Stand):
    stand.add("kubectl", KUBECTL)
    outcome = command("launch.jobset", *TPU, "--", "--learning.group-sizes", "4")
    assert outcome.code == 2 and "--learning.group-size INT" in outcome.err and stand.calls() == []
