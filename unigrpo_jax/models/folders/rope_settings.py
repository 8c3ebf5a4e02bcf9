"""The rotary angles that a config asks for: their base, from all places where versions of transformers have written it.

    "rope_theta": 1e6                                                 the top level, up to version 4
    "rope_scaling": {"rope_type": "default"}                          "type" in older files
    "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}    from version 5
    "rope_parameters": {"full_attention": {"rope_theta": 1e6}}        the same for each type of layer

Where each type of layer has angles of its own, those of sliding_attention stood at the top level, too:

    "rope_local_base_freq": 1e4                                                     up to version 4
    "rope_scaling": {"rope_type": "linear", "factor": 8}                            of full_attention alone
    "rope_parameters": {"full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8},
                        "sliding_attention": {"rope_theta": 1e4}}                   from version 5

A network turns every dimension of a head by plain angles, of positions divided by a factor at most, so whatever else these
mappings ask for is refused.
"""

import dataclasses
from collections.abc import Iterator

from unigrpo_jax.models.folders.settings import Settings

NAMES = {"rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor"}
LAYER_TYPES = ("full_attention", "sliding_attention", "chunked_attention", "linear_attention")
FULL, SLIDING = LAYER_TYPES[:2]
_READ = {"rope_theta", "rope_type", "type", "factor", "partial_rotary_factor"}
_LENGTHS = {"max_position_embeddings", "original_max_position_embeddings"}  # of use to the scaled kinds only


def rope_theta(settings: Settings, default: float) -> float:
    """The base; ValueError where two places differ, or where the angles are not those of the plain rule."""
    settings.only("partial_rotary_factor", 1)
    places = [settings, *(part for name in ("rope_scaling", "rope_parameters") for part in _parts(settings.part(name)))]
    found = [place.positive("rope_theta", default) for place in places if "rope_theta" in place]
    return _one(settings, "rope_theta", found, default)


@dataclasses.dataclass(frozen=True)
class Rope:
    """The angles of a type of layer, p / factor * theta^(-2i/K) of position p.

    Attributes:
      theta: the base.
      factor: what positions are divided by.
    """

    theta: float
    factor: float = 1.0


def layer_rope(settings: Settings, kind: str, default: float) -> Rope:
    """The angles of a type of layer where each has its own; ValueError as `rope_theta`, and where two factors differ.

    Args:
      settings: of the network.
      kind: the type, FULL or SLIDING.
      default: base where nothing is said.
    """
    settings.only("partial_rotary_factor", 1)
    by_type = settings.part("rope_parameters")
    for name in by_type.names():
        if name not in LAYER_TYPES:
            raise by_type.error(name, "each type of layer of this network has a mapping of its own there")
    top = {FULL: "rope_theta", SLIDING: "rope_local_base_freq"}[kind]
    places = [by_type.part(kind), *([settings.part("rope_scaling")] if kind == FULL else [])]
    theta = [settings.positive(top, default)] if top in settings else []
    theta += [place.positive("rope_theta", default) for place in places if "rope_theta" in place]
    factor = [found for place in places for found in _factor(place)]
    return Rope(_one(settings, f"the base of {kind}", theta, default), _one(settings, f"the factor of {kind}", factor, 1.0))


def _factor(mapping: Settings) -> Iterator[float]:
    """The factor, where a mapping says anything of it."""
    for name in mapping.names():
        if name not in _READ | _LENGTHS:
            raise mapping.error(name, "the rotary angles of this network have no such setting")
    mapping.only("partial_rotary_factor", 1)
    kinds = {mapping.word(name, "default", "default", "linear") for name in ("rope_type", "type") if name in mapping}
    if kinds == {"linear"}:
        if "factor" not in mapping:
            raise mapping.error("factor", "rope_type = 'linear' needs one")
        yield mapping.positive("factor", 1.0)
        return
    if len(kinds) > 1:
        raise mapping.error("rope_type", "type says another one; keep the one that is meant")
    if "factor" in mapping and mapping.positive("factor", 1.0) != 1:
        raise mapping.error("factor", "positions are divided by one only where rope_type = 'linear'")
    if kinds or "factor" in mapping:
        yield 1.0


def _one(settings: Settings, what: str, found: list[float], default: float) -> float:
    """What all places say; ValueError where two differ."""
    if len(set(found)) > 1:
        values = " and ".join(f"{value:g}" for value in sorted(set(found)))
        raise ValueError(f"{settings.path}: {what} is {values} in different places; keep the one that is meant.")
    return found[0] if found else default


def _parts(mapping: Settings) -> Iterator[Settings]:
    """The mapping and those of its layer types, each checked."""
    inner = [name for name in LAYER_TYPES if name in mapping]
    for name in mapping.names():
        if name not in _READ | _LENGTHS | set(inner):
            raise mapping.error(name, "the rotary angles of this network have no such setting")
    kinds = ("default", "linear") if "factor" in mapping else ("default",)  # linear by a factor of 1 is as default
    for name in ("rope_type", "type"):
        mapping.only(name, *kinds)
    mapping.only("factor", 1)
    mapping.only("partial_rotary_factor", 1)
    yield mapping
    for name in inner:
        yield from _parts(mapping.part(name))
