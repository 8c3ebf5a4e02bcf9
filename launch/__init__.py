"""Pods and clusters: `launch.plan` says what fits; `launch.tpu`, `launch.jobset` and `launch.slurm` start a run there."""
