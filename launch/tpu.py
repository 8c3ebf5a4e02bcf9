"""Trains on one TPU slice by Google Cloud's queued resources, and starts again when it is preempted.

    python -m launch.tpu bagel_7b --slice v5p:4x4x4 --project PROJECT --zone us-east5-a --spot \\
        --run-dir gs://BUCKET/runs/one --setup 'pip install ...' --dry-run -- --mesh.fsdp 64

It asks for the slice, waits until it is ACTIVE, starts training on all of its hosts by ssh and follows their output.  The
training goes on when the connection or this program ends: the same command finds it and follows it again.  A slice that was
preempted is deleted and asked for anew, and training continues from the newest checkpoint, at most `--restarts` times.
Nothing is deleted at the end without `--delete`.  JAX finds the other hosts in the TPU's metadata.

Commands and states are those of `gcloud compute tpus queued-resources` and `tpu-vm`
(cloud.google.com/tpu/docs/queued-resources). `tpu-vm ssh` repeats a command on a host whose connection broke, and its exit
code may be gcloud's own 1 or 2; so what runs on the hosts may be run twice, and keeps the training's exit code in a file
that is read afterwards.
"""

import dataclasses
import re
import time
from collections.abc import Sequence
from typing import ClassVar

import tyro

from launch import external, slices
from launch.external import LaunchError
from launch.training import FINAL, Launch, Training, check_mesh, exports, prepared, program
from unigrpo_jax.config import require
from unigrpo_jax.training.watchdog import RESTART

# Runs on every host.  The lock is held by the training, so a second start only follows; tail ends with the training.
_START = """\
mkdir -p "$HOME/unigrpo/{name}" && cd "$HOME/unigrpo/{name}" || exit
exec 9>> lock
if flock --nonblock 9; then
  rm -f exit_code
  touch log
  from=+$(($(wc -c < log) + 1))
  (
    trap "" HUP
{setup}{exports}{command}
    echo $? > exit_code
  ) < /dev/null >> log 2>&1 &
  echo $! > pid
fi
exec 9>&-
tail -c "${{from:-4000}}" --pid="$(cat pid)" -f log
flock lock true
"""
# One word per host: the exit code, `running`, or `killed` where the training ended without leaving one.
_STATUS = """\
cd "$HOME/unigrpo/{name}" || exit
if flock --nonblock lock true; then cat exit_code 2> /dev/null || echo killed; else echo running; fi
"""
_LOST = ("PREEMPTED", "TERMINATED")  # states of a node whose queued resource may still be ACTIVE
_ATTEMPTS = 5  # at reading a state, before a failure of gcloud itself ends the launcher


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tpu(Launch):
    """One TPU slice."""

    SECRETS: ClassVar[str] = 'read it in --setup, such as export NAME="$(gcloud secrets versions access latest --secret S)"'

    slice: str
    """Generation and topology, such as v5p:4x4x4, or Cloud TPU's name for it, such as v5p-128."""
    project: str
    """Google Cloud project."""
    zone: str
    """Google Cloud zone, such as us-east5-a."""
    spot: bool = False
    """Ask for spot capacity, which may be preempted at any time."""
    runtime_version: str | None = None
    """Image of the hosts; default the one that Cloud TPU's documentation names for JAX on this generation."""
    create_flag: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Further flag of `gcloud ... queued-resources create`, such as --create-flag=--reserved; give it once for each."""
    ssh_flag: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Further flag of `gcloud ... tpu-vm ssh`, such as --ssh-flag=--internal-ip; give it once for each."""
    delete: bool = False
    """Delete the slice when training has ended, well or not."""
    poll: float = 30.0
    """Seconds between two looks at the slice."""

    def check(self) -> None:
        """Raises ConfigError where a name has not the form that Google Cloud wants."""
        super().check()
        require(
            self.run_dir.startswith("gs://"),
            f"run_dir = {self.run_dir!r} would lie on the hosts' disks, which go with the slice; use gs://BUCKET/PATH.",
        )
        forms = {
            "project": (
                self.project,
                "([a-z0-9.-]+:)?[a-z][-a-z0-9]{4,28}[a-z0-9]",
                "6 to 30 lower-case letters, digits, '-'",
            ),
            "zone": (self.zone, "[a-z]+-[a-z]+[0-9]+-[a-z0-9]+", "a zone such as us-east5-a"),
        }
        for field, (value, form, words) in forms.items():
            require(re.fullmatch(form, value) is not None, f"{field} = {value!r}, but it must be {words}.")
        for flag in (*self.create_flag, *self.ssh_flag):
            require(flag.startswith("--"), f"{flag!r} is no flag of gcloud; write --create-flag=--NAME=VALUE.")
        require(0 <= self.poll <= 3600, f"poll = {self.poll}, but it must be from 0 to 3600 seconds.")


class Commands:
    """The gcloud commands of one slice, as lists of arguments."""

    def __init__(self, tpu: Tpu, training: Training, slice_: slices.Slice):
        name, where = training.name, [f"--project={tpu.project}", f"--zone={tpu.zone}"]
        queued, node = ["gcloud", "compute", "tpus", "queued-resources"], ["gcloud", "compute", "tpus", "tpu-vm"]
        self.state = [*queued, "describe", name, *where, "--format=value(state.state)"]
        self.node_state = [*node, "describe", name, *where, "--format=value(state)"]
        self.create = [
            *queued, "create", name, f"--node-id={name}", *where, f"--accelerator-type={slice_.accelerator_type}",
            f"--runtime-version={tpu.runtime_version or slice_.runtime_version}", *["--spot"] * tpu.spot, *tpu.create_flag,
        ]  # fmt: skip
        ssh = [*node, "ssh", name, *where, "--worker=all", *tpu.ssh_flag]
        # Without these a host that vanished would hold the connection open for hours.
        alive = ["--ssh-flag=-o ServerAliveInterval=30", "--ssh-flag=-o ServerAliveCountMax=4"]
        self.start = [*ssh, *alive, f"--command={_start(tpu, training)}"]
        self.status = [*ssh, f"--command={_STATUS.format(name=name)}"]
        self.delete = [*queued, "delete", name, *where, "--force", "--quiet"]


def _start(tpu: Tpu, training: Training) -> str:
    """The shell script that starts or follows the training on a host."""
    return _START.format(
        name=training.name,
        setup=prepared(tpu.setup, f"{{ echo {RESTART} > exit_code; exit; }}"),
        exports=exports(training.environment),
        command=external.shown(training.command),
    )


def verdict(words: Sequence[str], hosts: int) -> int | None:
    """What the hosts' words (see `_STATUS`) come to: an exit code, or None while training runs on one of them."""
    codes = [int(word) for word in words if re.fullmatch("[0-9]{1,3}", word)]
    final = [code for code in codes if code in FINAL]
    if final:
        return final[0]
    if "running" in words:
        return None
    return 0 if len(codes) == hosts and not any(codes) else RESTART


class _Supervisor:
    """Holds a slice and keeps training on it until it ends."""

    def __init__(self, commands: Commands, hosts: int, restarts: int, poll: float):
        self._commands, self._hosts, self._restarts, self._poll = commands, hosts, restarts, poll

    def supervise(self) -> int:
        """Returns the training's exit code; RESTART when all restarts are used up."""
        while True:
            if self._acquire():
                external.run(self._commands.start)
                code = verdict(external.read(self._commands.status).stdout.split(), self._hosts)
                if code is not None and code != RESTART:
                    return code
                if code is None:  # the connection broke, not the training
                    _say("training goes on; following it again")
                    time.sleep(self._poll)
                    continue
            if self._restarts == 0:
                _say("all restarts are used up")
                return RESTART
            self._restarts -= 1
            _say(f"starting again; {self._restarts} restarts are left after this one")
            time.sleep(self._poll)

    def _acquire(self) -> bool:
        """Waits for the slice, asks for it where there is none; False if it was lost while it was waited for."""
        created, last = False, ""
        while True:
            state = self._state()
            if state != last:
                _say(f"slice: {state or 'none yet'}")
                last = state
            if state == "ACTIVE":
                return True
            if state is None:
                self._need(self._commands.create)
                created = True
            elif state == "FAILED" and created:
                raise LaunchError(f"the request failed; see {external.shown(self._commands.state[:-1])}.")
            elif state in ("FAILED", "SUSPENDED", *_LOST):
                self._need(self._commands.delete)
                if created:
                    return False
            else:  # waiting, provisioning, or on its way out
                time.sleep(self._poll)

    def _state(self) -> str | None:
        """State of the queued resource, of its node where that is not well; None where there is no such resource."""
        state = self._read(self._commands.state)
        if state != "ACTIVE":
            return state
        node = self._read(self._commands.node_state)
        return state if node == "READY" else node or "TERMINATED"

    def _read(self, command: Sequence[str]) -> str | None:
        """What a describe command prints; None where there is no such thing."""
        for attempt in range(1, _ATTEMPTS + 1):
            done = external.read(command)
            if done.returncode == 0:
                return done.stdout.strip()
            if "NOT_FOUND" in done.stderr:
                return None
            if attempt < _ATTEMPTS:
                time.sleep(self._poll)
        raise LaunchError(f"gcloud cannot describe the slice ({external.last_line(done.stderr)}).")

    def _need(self, command: Sequence[str]) -> None:
        """Runs a command that must not fail."""
        code = external.run(command)
        if code:
            raise LaunchError(f"{' '.join(command[:5])} ended with exit code {code}; its message stands above.")


def _say(text: str) -> None:
    print(f"launch.tpu: {text}", flush=True)


def start(tpu: Tpu, training: Training) -> int:
    """Prints the commands, or runs them until training has ended; returns the exit code."""
    form = "[a-z]([-a-z0-9]{0,61}[a-z0-9])?"
    require(
        re.fullmatch(form, training.name) is not None,
        f"name = {training.name!r}, but it must be 1 to 63 lower-case letters, digits and '-', a letter first; set --name.",
    )
    one = slices.find(tpu.slice)
    check_mesh(training.config, one.chips, f"{one.chips} chips of {one.name}")
    commands = Commands(tpu, training, one)
    if tpu.dry_run:
        steps = {
            f"ask for the slice: {one.name}, {one.chips} chips, {one.hosts} hosts": commands.create,
            "its state, until it is ACTIVE": commands.state,
            "the state of its node, until it is READY": commands.node_state,
            "start training on all hosts, or follow it where it runs": commands.start,
            "how it ended; after a preemption or a lost process all begins again": commands.status,
            "delete the slice; at the end with --delete, and before a preempted one is asked for anew": commands.delete,
        }
        print("\n".join(f"# {words}\n{external.shown(command)}\n" for words, command in steps.items()))
        return 0
    external.need("gcloud", "the Google Cloud CLI (cloud.google.com/sdk)")
    try:
        code = _Supervisor(commands, one.hosts, tpu.restarts, tpu.poll).supervise()
    except KeyboardInterrupt:
        _say(f"training and slice go on without this program; delete the slice by {external.shown(commands.delete)}")
        raise
    except LaunchError:
        if tpu.delete:
            external.run(commands.delete)
        raise
    if tpu.delete:
        external.run(commands.delete)
    else:
        _say(f"the slice is still there; delete it by {external.shown(commands.delete)}")
    return code


def main() -> None:
    """Parses, checks, starts."""
    program(Tpu, start, "launch.tpu", __doc__)


if __name__ == "__main__":
    main()
