"""Settings of the machines: how devices are arranged, and processes that work as one."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How the devices are arranged; the sizes multiply to their number."""

    slice: int = 0
    """Slices of a pod, joined by a slower network; each holds a copy of the parameters. 0 is what the devices say."""
    data: int = 0
    """Copies of the parameters; episodes are spread over them. 0 is what the others leave."""
    fsdp: int = 1
    """Parts of every parameter along its width, gathered when a layer runs; episodes are spread over these, too."""
    sequence: int = 1
    """Parts of each episode's latent tokens, where a model can be cut so: a device computes its own, and gathers keys and
    values.  Parameters are cut over these, too, episodes are not."""
    tensor: int = 1
    """Parts of every head group, MLP and the vocabulary; each part is computed where it lies."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessConfig:
    """Several processes that work as one.  TPU slices, Slurm and the launchers' JobSets are recognised without a flag."""

    count: int = 0
    """Number of processes; 0 is what the environment says, 1 ignores it."""
    index: int = -1
    """Which of them this one is, from 0."""
    coordinator: str = ""
    """host:port of process 0, where the others meet it."""
    wait_seconds: int = 600
    """How long the others are waited for at the start."""
    hang_seconds: int = 3600
    """A step that takes longer prints the stacks of all threads, and the process ends; 0 never does.  While rewards judge,
    what `judging` allows them is added."""
