"""Starting runs on pods and clusters.  Nothing is here yet: `python -m experiments.run` starts a run on one machine."""
