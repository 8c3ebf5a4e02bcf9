"""`python -m tests.runs_of_a_process`: one process does run after run, so that all have the programs of the first.

A line of its input is a JSON list of words for `experiments.run`; it answers with ENDED and [exit code, stdout, stderr].
After a line that begins with "last" it ends as that run ends, with the run's own exit code and output.
"""

import json
import resource
import sys

from tests.command import command
from tests.shared_programs import shared_programs

ENDED = "ended "  # libraries print between the answers


def main() -> None:
    """Reads, runs and answers."""
    for line in sys.stdin:
        first, *words = json.loads(line)
        if first == "last":
            from experiments import run

            sys.argv = ["experiments.run", *words]
            with shared_programs():
                return run.main()
        outcome = command("experiments.run", first, *words)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))  # a test may have set it
        print(ENDED + json.dumps([outcome.code, outcome.out, outcome.err]), flush=True)


if __name__ == "__main__":
    main()
