"""Planning runs on pods: `python -m launch.plan`.  A run itself is started by `python -m experiments.run`."""
