"""The base of the rotary angles, from all places where versions of transformers have written it.

    "rope_theta": 1e6                                                 the top level, up to version 4
    "rope_scaling": {"rope_type": "default"}                          "type" in older files
    "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}    from version 5
    "rope_parameters": {"full_attention": {"rope_theta": 1e6}}        the same for each type of layer

The network turns every dimension of a head by unscaled angles, so whatever else these mappings ask for is refused.
"""

from collections.abc import Iterator

from unigrpo_jax.models.folders.settings import Settings

NAMES = {"rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor"}
LAYER_TYPES = ("full_attention", "sliding_attention", "chunked_attention", "linear_attention")
_READ = {"rope_theta", "rope_type", "type", "factor", "partial_rotary_factor"}
_LENGTHS = {"max_position_embeddings", "original_max_position_embeddings"}  # of use to the scaled kinds only


def rope_theta(settings: Settings, default: float) -> float:
    """The base; ValueError where two places differ, or where the angles are not those of the plain rule."""
    settings.only("partial_rotary_factor", 1)
    places = [settings, *(part for name in ("rope_scaling", "rope_parameters") for part in _parts(settings.part(name)))]
    found = {place.positive("rope_theta", default) for place in places if "rope_theta" in place}
    if len(found) > 1:
        values = " and ".join(f"{value:g}" for value in sorted(found))
        raise ValueError(f"{settings.path}: rope_theta is {values} in different places; keep the one that is meant.")
    return found.pop() if found else default


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
