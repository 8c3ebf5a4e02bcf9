"""A second time, of networks that say average velocities: u(x, t, s) of the way from t to s (MeanFlow, arXiv 2505.13447).

    u(x_t, t, s) = 1 / (t - s) * integral of v from s to t,      x_s = x_t - (t - s) u,      0 <= s <= t

A network is told the gap t - s by an embedder of the same shape as that of t, whose embedding is added to t's.  Its last
linear map starts at zero, weight and bias, so that at first u(x, t, s) is what the network said of t, whatever s is.  Asked
without s a network leaves the embedder out, and needs no parameters of it: so the same network without them is the teacher.
"""

import re

NAME = "gap_embedder"  # of the embedder, in parameters and in files


def is_second_time(path: str) -> bool:
    """Whether a parameter's path, or a module's, is the embedder's."""
    return re.search(rf"(?:^|[/.]){NAME}(?:[/.]|$)", path) is not None


def check_second_time(two_times: bool, to_B) -> None:
    """ValueError where a network with one time is asked to arrive somewhere."""
    if to_B is not None and not two_times:
        raise ValueError("the network has one time, so that it cannot be asked where to arrive; leave to_B out.")
