"""Pods and clusters: `python -m launch.plan` says what fits, `launch.tpu`, `launch.jobset` and `launch.slurm` start a run there."""
