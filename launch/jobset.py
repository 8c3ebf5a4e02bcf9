"""Trains on Kubernetes by a JobSet: one or several TPU slices of GKE, or GPU nodes of any cluster.

    python -m launch.jobset bagel_7b --slice v5p:4x4x4 --slices 2 --image IMAGE --run-dir gs://BUCKET/runs/one \\
        -- --mesh.fsdp 64
    python -m launch.jobset bagel_7b --nodes 4 --gpus-per-node 8 --image IMAGE --run-dir /runs/one --claim runs=/runs

The manifest is one JobSet with one Job per TPU slice, or one Job of all GPU nodes, and one pod per host.  A pod that fails
ends its Job at once (backoffLimit 0), and the JobSet starts all of them again, at most `--restarts` times, since the
processes of one program can only begin together.  Exit codes that a restart does not mend end the JobSet, unless the pod
was being evicted. `kubectl create` submits it and returns.

TPU pods find each other by the variables that GKE sets (TPU_WORKER_ID, TPU_WORKER_HOSTNAMES, and MEGASCALE_* where there
are several slices); GPU pods by UNIGRPO_COORDINATOR, UNIGRPO_PROCESSES and UNIGRPO_PROCESS, which the manifest sets.

Fields: jobset.x-k8s.io/v1alpha2 (github.com/kubernetes-sigs/jobset, api/jobset/v1alpha2/jobset_types.go; a pod is reached
as JOBSET-REPLICATEDJOB-JOBINDEX-PODINDEX.JOBSET), batch/v1 podFailurePolicy
(kubernetes.io/docs/tasks/job/pod-failure-policy), node labels and limits as in
cloud.google.com/kubernetes-engine/docs/how-to/tpu-multislice and in xpk's workloads.
"""

import dataclasses
import re
from typing import Any, ClassVar

import tyro
import yaml

from launch import external, slices
from launch.external import LaunchError
from launch.training import FINAL, Launch, Training, check_mesh, prepared, program, variable_name
from unigrpo_jax.config import require
from unigrpo_jax.training.watchdog import RESTART

_LABEL = "[a-z]([-a-z0-9]*[a-z0-9])?"  # a DNS label of RFC 1035, which JobSet wants of the names that it makes
_SUBDOMAIN = "[a-z0-9]([-a-z0-9.]*[a-z0-9])?"
_CONTAINER = "train"
_PORT = 8476  # of the coordinator, JAX's own default on Cloud TPU
_TPU_PORT = 8471  # on which the hosts of a slice talk


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobSet(Launch):
    """TPU slices (--slice) or GPU nodes (--nodes)."""

    SECRETS: ClassVar[str] = "use --secret-env NAME=SECRET/KEY"

    image: str
    """Container image with python and, unless --setup installs it, this package."""
    slice: str | None = None
    """TPU slice, such as v5p:4x4x4."""
    slices: int = 1
    """Number of such slices."""
    nodes: int | None = None
    """GPU nodes, one process each."""
    gpus_per_node: int = 8
    """GPUs of a node."""
    gpu_type: str | None = None
    """Value of GKE's node label cloud.google.com/gke-accelerator, such as nvidia-h100-80gb; None takes any node."""
    spot: bool = False
    """Run on GKE's spot nodes."""
    secret_env: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME=SECRET/KEY, a variable with the value under KEY of a Kubernetes Secret; give it once for each."""
    claim: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """CLAIM=/PATH, a PersistentVolumeClaim that every pod mounts at the path; give it once for each."""
    service_account: str | None = None
    """Kubernetes service account of the pods, such as one that may write to the bucket."""
    namespace: str | None = None
    """Kubernetes namespace; default kubectl's."""
    context: str | None = None
    """kubectl's context; default its current one."""
    grace: int = 120
    """Seconds between SIGTERM and SIGKILL when a pod must go."""

    def check(self) -> None:
        """Raises ConfigError where a name or number cannot work."""
        super().check()
        require((self.slice is None) != (self.nodes is None), "give either --slice (TPU) or --nodes (GPU).")
        for field in ("slices", "nodes", "gpus_per_node", "grace"):
            value = getattr(self, field)
            require(value is None or value >= 1, f"{field} = {value}, but it must be at least 1.")
        require(self.slices == 1 or self.slice is not None, f"slices = {self.slices} needs --slice; GPU nodes are --nodes.")
        require(re.fullmatch(r"[^\s]+", self.image) is not None, f"image = {self.image!r} is no image's name.")
        for field in ("namespace", "service_account", "gpu_type"):
            _name(field, getattr(self, field))
        mounts = []
        for one in self.claim:
            claim, _, path = one.partition("=")
            _name("claim", claim)
            require(bool(re.fullmatch("/[^:]+", path)), f"claim = {one!r} must be CLAIM=/PATH, a name and an absolute path.")
            mounts.append(path.rstrip("/") + "/")
        require(
            "://" in self.run_dir or any(self.run_dir.startswith(mount) for mount in mounts),
            f"run_dir = {self.run_dir!r} would lie in the pods and go with them; use gs://BUCKET/PATH, or a path under "
            "one that --claim CLAIM=/PATH mounts.",
        )
        for one in self.secret_env:
            name, equals, source = one.partition("=")
            variable_name(name, equals, "secret_env", one, "NAME=SECRET/KEY")
            secret, slash, key = source.partition("/")
            _name("secret_env's secret", secret)
            good = slash and re.fullmatch("[-._a-zA-Z0-9]+", key)
            require(bool(good), f"secret_env {name} must be NAME=SECRET/KEY, with a Secret's name and one of its keys.")


def _name(field: str, value: str | None) -> None:
    """Raises ConfigError unless the value is None or can name an object of Kubernetes."""
    good = value is None or (len(value) <= 253 and re.fullmatch(_SUBDOMAIN, value))
    require(bool(good), f"{field} = {value!r}, but a name in Kubernetes has lower-case letters, digits, '-' and '.'.")


@dataclasses.dataclass(frozen=True)
class Shape:
    """What runs where: `jobs` Jobs of `hosts` pods, `devices` chips or GPUs in each pod."""

    job: str
    jobs: int
    hosts: int
    devices: int
    resource: str
    selector: dict[str, str]


def shape(launch: JobSet) -> Shape:
    """The shape that TPU slices or GPU nodes have.

    Raises:
      ConfigError: there is no such slice, or several slices of one host, which GKE does not join.
    """
    spot = {"cloud.google.com/gke-spot": "true"} if launch.spot else {}
    if launch.slice is None:
        kind = {"cloud.google.com/gke-accelerator": launch.gpu_type} if launch.gpu_type else {}
        return Shape("node", 1, launch.nodes or 1, launch.gpus_per_node, "nvidia.com/gpu", kind | spot)
    one = slices.find(launch.slice)
    require(
        launch.slices == 1 or one.hosts > 1,
        f"slices = {launch.slices} of {one.name}, but GKE joins slices of at least 2 hosts only; use a larger one.",
    )
    kind = {"cloud.google.com/gke-tpu-accelerator": one.gke_accelerator, "cloud.google.com/gke-tpu-topology": one.topology}
    return Shape("slice", launch.slices, one.hosts, one.chips_per_host, "google.com/tpu", kind | spot)


def manifest(launch: JobSet, training: Training) -> dict[str, Any]:
    """The JobSet as Kubernetes reads it.

    Raises:
      ConfigError: the name does not fit, the slice is none, or mesh and devices do not fit each other.
    """
    where = shape(launch)
    longest = f"{training.name}-{where.job}-{where.jobs - 1}-{where.hosts - 1}-abcde"  # of a pod, with Kubernetes' ending
    room = 63 - len(longest) + len(training.name)
    require(
        re.fullmatch(_LABEL, training.name) is not None and len(longest) <= 63,
        f"name = {training.name!r}, but it must be 1 to {room} lower-case letters, digits and '-', a letter first, so that "
        f"the pods' names ({longest}) have at most 63; set --name.",
    )
    total = where.jobs * where.hosts * where.devices
    words = f"{total} {'chips' if launch.slice else 'GPUs'} of {where.jobs * where.hosts} hosts with {where.devices} each"
    check_mesh(training.config, total, words, where.jobs if launch.slice else 1)
    annotations = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"} if launch.slice else {}
    job = {
        "parallelism": where.hosts,
        "completions": where.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {"action": "Count", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {"action": "FailJob", "onExitCodes": {"containerName": _CONTAINER, "operator": "In", "values": list(FINAL)}},
            ]
        },
        "template": {"spec": _pod(launch, training, where)},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": training.name, **({"annotations": annotations} if annotations else {})},
        "spec": {
            "network": {"enableDNSHostnames": True},
            "failurePolicy": {
                "maxRestarts": launch.restarts,
                "rules": [{"name": "final", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
            },
            "replicatedJobs": [{"name": where.job, "replicas": where.jobs, "template": {"spec": job}}],
        },
    }


def _pod(launch: JobSet, training: Training, where: Shape) -> dict[str, Any]:
    """The pod of one host."""
    tolerations = [{"key": where.resource, "operator": "Exists", "effect": "NoSchedule"}]
    if launch.spot:
        tolerations.append(
            {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        )
    mounts, volumes = [], []
    for number, one in enumerate(launch.claim):
        claim, _, path = one.partition("=")
        mounts.append({"name": f"claim-{number}", "mountPath": path})
        volumes.append({"name": f"claim-{number}", "persistentVolumeClaim": {"claimName": claim}})
    if launch.slice is None:  # NCCL wants more shared memory than a container's 64 MiB
        mounts.append({"name": "shared-memory", "mountPath": "/dev/shm"})
        volumes.append({"name": "shared-memory", "emptyDir": {"medium": "Memory"}})
    container = {
        "name": _CONTAINER,
        "image": launch.image,
        "command": [_literal(part) for part in _command(launch, training)],
        "env": _environment(launch, training, where),
        "ports": [{"containerPort": _TPU_PORT if launch.slice else _PORT}],
        "resources": {"limits": {where.resource: where.devices}},
        **({"volumeMounts": mounts} if mounts else {}),
    }
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": launch.grace,
        **({"serviceAccountName": launch.service_account} if launch.service_account else {}),
        **({"nodeSelector": where.selector} if where.selector else {}),
        "tolerations": tolerations,
        "containers": [container],
        **({"volumes": volumes} if volumes else {}),
    }


def _command(launch: JobSet, training: Training) -> list[str]:
    """The training itself, or a shell that prepares and then becomes it; failed preparation is tried again."""
    if not launch.setup:
        return training.command
    return ["bash", "-c", prepared(launch.setup, f"exit {RESTART}") + 'exec "$@"', "bash", *training.command]


def _environment(launch: JobSet, training: Training, where: Shape) -> list[dict[str, Any]]:
    """The container's variables; the pod's index comes from the annotation that an Indexed Job puts on it."""
    fixed = dict(training.environment)
    if launch.slice is None:
        fixed["UNIGRPO_COORDINATOR"] = f"{training.name}-{where.job}-0-0.{training.name}:{_PORT}"
        fixed["UNIGRPO_PROCESSES"] = str(where.hosts)
    out: list[dict[str, Any]] = [{"name": name, "value": _literal(value)} for name, value in fixed.items()]
    if launch.slice is None:
        index = {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}
        out.append({"name": "UNIGRPO_PROCESS", "valueFrom": {"fieldRef": index}})
    for one in launch.secret_env:
        name, _, source = one.partition("=")
        secret, _, key = source.partition("/")
        out.append({"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}})
    return out


def _literal(text: str) -> str:
    """Text that Kubernetes leaves as it was: in commands and values it replaces $(NAME), and reads $$ as $."""
    return text.replace("$", "$$")


class _Dumper(yaml.SafeDumper):
    """Quotes every text that some reader of YAML might take for a number or a truth value, such as 1e-3 or y."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    plain = re.fullmatch("[A-Za-z][A-Za-z0-9._/-]{2,}", text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else "|" if "\n" in text else '"')


_Dumper.add_representer(str, _text)


def written(manifest: dict[str, Any]) -> str:
    """The manifest as YAML."""
    return yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, width=120)


def start(launch: JobSet, training: Training) -> int:
    """Prints the manifest and the command that creates it, or runs that; returns the exit code."""
    text = written(manifest(launch, training))
    where = [f"--{field}={value}" for field in ("context", "namespace") if (value := getattr(launch, field)) is not None]
    create = ["kubectl", *where, "create", "--filename=-"]
    if launch.dry_run:
        print(f"# {external.shown(create)}, which reads\n{text}", end="")
        return 0
    external.need("kubectl", "it from kubernetes.io/docs/tasks/tools")
    code = external.run(create, stdin=text)
    if code:
        raise LaunchError(f"kubectl create ended with exit code {code}; its message stands above.")
    selector = f"jobset.sigs.k8s.io/jobset-name={training.name},batch.kubernetes.io/job-completion-index=0"
    print("Its output:", external.shown(["kubectl", *where, "logs", "--follow", f"--selector={selector}"]))
    print("Its state: ", external.shown(["kubectl", *where, "get", "jobset", training.name]))
    print("Its end:   ", external.shown(["kubectl", *where, "delete", "jobset", training.name]))
    return 0


def main() -> None:
    """Parses, checks, submits."""
    program(JobSet, start, "launch.jobset", __doc__)


if __name__ == "__main__":
    main()
