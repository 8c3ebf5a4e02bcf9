"""Trains on GPU nodes of a Slurm cluster by a batch job that requeues itself.

    python -m launch.slurm bagel_7b --nodes 4 --gpus-per-node 8 --time 12:00:00 --run-dir /scratch/runs/one \\
        --setup 'source venv/bin/activate' -- --mesh.fsdp 8

The script runs one process per GPU, or per node, by srun, on nodes that share the run folder.  Before the time limit, or
when the job is preempted, the script gets SIGTERM and hands it to the processes, which save and end with exit code 75;
then, and when a process was killed, it requeues its job, at most `--restarts` times, and the job continues from the newest
checkpoint.  When a node is lost Slurm requeues it.  JAX finds the other processes by Slurm's own variables.

As in the manual pages of sbatch (--signal=B:..., --requeue, SLURM_RESTART_COUNT), srun (its exit code is the highest of its
tasks), scancel (--signal reaches the tasks and not the script) and scontrol (requeue).  The signal goes by scancel because
srun, when it gets SIGTERM itself, kills its tasks (src/srun/signals.c of github.com/SchedMD/slurm).
"""

import dataclasses
import re
from typing import ClassVar, Literal

import tyro

from launch import external
from launch.external import LaunchError
from launch.training import FINAL, Launch, Training, check_mesh, exports, prepared, program
from unigrpo_jax.config import require
from unigrpo_jax.training.watchdog import RESTART

# srun reports the highest code of its tasks: those of FINAL are raised above the codes of signals, up to 128 + 64.
_RAISED = {code: 241 + at for at, code in enumerate(FINAL)}
_TASK = f"""\
trap : TERM
"$@"
code=$?
case $code in
{"".join(f"  {code}) exit {raised} ;;{chr(10)}" for code, raised in _RAISED.items())}esac
exit $code
"""
_SCRIPT = """\
#!/bin/bash
{options}
stopping=
stop() {{
  stopping=1
  scancel --signal=TERM "$SLURM_JOB_ID"
}}
trap stop TERM
{setup}{exports}
code={restart}
if [ -z "$stopping" ]; then
  srun --kill-on-bad-exit=0 --wait={lead} bash -c {task} bash \\
    {command} &
  step=$!
  while kill -0 "$step" 2> /dev/null; do wait "$step"; done  # a signal ends a wait, not the step
  wait "$step"
  code=$?
fi
case $code in
  0) exit 0 ;;
{lowered}esac
if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {restarts} ]; then
  echo "launch.slurm: ended with exit code $code; the job is requeued" >&2
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slurm(Launch):
    """GPU nodes of a Slurm cluster."""

    SECRETS: ClassVar[str] = "export it in the shell that submits: Slurm hands your environment on"

    nodes: int = 1
    """Nodes."""
    gpus_per_node: int = 8
    """GPUs of a node."""
    processes: Literal["gpu", "node"] = "gpu"
    """One process for each GPU, or for each node with all its GPUs."""
    time: str | None = None
    """Time limit as sbatch reads it, such as 12:00:00 or 1-00; default the partition's."""
    partition: str | None = None
    """Partition."""
    account: str | None = None
    """Account that pays."""
    sbatch_flag: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Further flag of sbatch, such as --sbatch-flag=--mem=0; give it once for each."""
    log: str = "%x-%j.out"
    """File for the output, %x is the job's name and %j its number; its folder must be there."""
    lead: int = 120
    """Seconds before the time limit at which the job is told to save."""

    def check(self) -> None:
        """Raises ConfigError where a value cannot work or cannot stand in a batch script."""
        super().check()
        for field in ("nodes", "gpus_per_node"):
            require(getattr(self, field) >= 1, f"{field} = {getattr(self, field)}, but it must be at least 1.")
        require(1 <= self.lead <= 65535, f"lead = {self.lead}, but Slurm takes 1 to 65535 seconds.")
        forms = {
            "time": r"(\d+|\d+:\d+|\d+:\d+:\d+|\d+-\d+|\d+-\d+:\d+|\d+-\d+:\d+:\d+)",
            "partition": r"[\w.,+-]+",
            "account": r"[\w.@+-]+",
            "log": r"[^\s\"'\\]+",
        }
        for field, form in forms.items():
            value = getattr(self, field)
            require(value is None or bool(re.fullmatch(form, value)), f"{field} = {value!r} is none that sbatch reads.")
        for flag in self.sbatch_flag:
            require(
                bool(re.fullmatch("--[^\n]+", flag)), f"{flag!r} is no flag of sbatch; write --sbatch-flag=--NAME=VALUE."
            )


def script(slurm: Slurm, training: Training) -> str:
    """The batch script.

    Raises:
      ConfigError: the name cannot be a job's, or mesh and devices do not fit each other.
    """
    require(re.fullmatch("[A-Za-z0-9][-A-Za-z0-9_.]{0,99}", training.name) is not None,
            f"name = {training.name!r}, but it must be letters, digits, '-', '_' and '.'; set --name.")  # fmt: skip
    total = slurm.nodes * slurm.gpus_per_node
    check_mesh(training.config, total, f"{slurm.nodes} * {slurm.gpus_per_node} = {total} GPUs")
    options = {
        "job-name": training.name,
        "nodes": slurm.nodes,
        "ntasks-per-node": slurm.gpus_per_node if slurm.processes == "gpu" else 1,
        "gpus-per-node": slurm.gpus_per_node,
        "time": slurm.time,
        "partition": slurm.partition,
        "account": slurm.account,
        "output": slurm.log,
        "open-mode": "append",
        "signal": f"B:TERM@{slurm.lead}",
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in options.items() if value is not None]
    environment = dict(training.environment)
    if slurm.processes == "node":  # JAX would take one GPU for each process of a Slurm job
        environment["JAX_LOCAL_DEVICE_IDS"] = ",".join(map(str, range(slurm.gpus_per_node)))
    return _SCRIPT.format(
        options="\n".join([*lines, "#SBATCH --requeue", *(f"#SBATCH {flag}" for flag in slurm.sbatch_flag)]),
        setup=prepared(slurm.setup, "exit 2"),
        exports=exports(environment),
        restart=RESTART,
        lead=slurm.lead,
        task=external.shown([_TASK]),
        command=external.shown(training.command),
        lowered="".join(f"  {raised}) exit {code} ;;\n" for code, raised in _RAISED.items()),
        restarts=slurm.restarts,
    )


def start(slurm: Slurm, training: Training) -> int:
    """Prints the script and the command that submits it, or runs that; returns the exit code."""
    text, submit = script(slurm, training), ["sbatch"]
    if slurm.dry_run:
        print(f"# {external.shown(submit)}, which reads\n{text}", end="")
        return 0
    external.need("sbatch", "Slurm's clients, or run this on the cluster's login node")
    code = external.run(submit, stdin=text)
    if code:
        raise LaunchError(f"sbatch ended with exit code {code}; its message stands above.")
    return 0


def main() -> None:
    """Parses, checks, submits."""
    program(Slurm, start, "launch.slurm", __doc__)


if __name__ == "__main__":
    main()
