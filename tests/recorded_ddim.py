"""Recorded runs of DDIM, by what their names say of them."""

import re
from collections.abc import Iterable
from typing import NamedTuple


class Run(NamedTuple):
    """A run whose arrays are `name`_latents and so on.

    Attributes:
      to_data: whether its last transition ends in the data.
      eta: of the step rule.
      scale: of guidance.
    """

    name: str
    to_data: bool
    eta: float
    scale: float


def runs(names: Iterable[str]) -> list[Run]:
    """All of a file: a1F_eta0_cfg7p5 does not end in the data, has no noise, and a scale of 7.5."""
    found = [re.fullmatch(r"(a1([FT])_eta([\dp.]+)_cfg([\dp.]+))_latents", name) for name in names]
    number = lambda text: float(text.replace("p", "."))
    out = [Run(match[1], match[2] == "T", number(match[3]), number(match[4])) for match in found if match]
    assert len(out) == sum(name.endswith("_latents") and name != "init_latents" for name in names) > 0
    return out
