"""What painters share whose transformer may have a second time."""

import dataclasses
from typing import Any

import jax

from unigrpo_jax.models.building.flat import Params
from unigrpo_jax.models.building.fresh import fresh
from unigrpo_jax.models.building.second_time import is_second_time
from unigrpo_jax.models.building.text_painter import TextPainter


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimedPainter(TextPainter):
    """The verbs that a second time adds.

    Attributes:
      transformer: the network; its `second_time` says whether it has one.
      fresh_time: whether that is new, so that no file holds the embedder.
    """

    transformer: Any
    fresh_time: bool = False

    @property
    def network(self) -> Any:
        """What has the parameters."""
        return self.transformer

    @property
    def stored_network(self) -> Any:
        """What of it has parameters in files."""
        return dataclasses.replace(self.transformer, second_time=False) if self.fresh_time else self.transformer

    @property
    def two_times(self) -> bool:
        """Whether it is told where a velocity is to arrive."""
        return self.transformer.second_time

    @property
    def one_time(self) -> "TimedPainter":
        """The same without the second time, whose parameters it does not read."""
        network = dataclasses.replace(self.transformer, second_time=False)
        return dataclasses.replace(self, transformer=network, fresh_time=False)

    def with_second_time(self, params: Params, key: jax.Array) -> Params:
        """The parameters with a fresh embedder of the second time, float32."""
        return {**params, **fresh(self.transformer, self.zero_at_start, key, is_second_time)}
