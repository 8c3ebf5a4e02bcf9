"""Prompts of a dataset of TensorFlow Datasets, read record by record without TensorFlow.

The dataset lies prepared in the folder TFDS_DATA_DIR (else ~/tensorflow_datasets), in a form with random access; nothing is
downloaded.  One of its fields is the prompt, its other texts and numbers are the metadata.
"""

import functools
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from unigrpo_jax.caches import home
from unigrpo_jax.config import ConfigError, require
from unigrpo_jax.worlds.prompt import CHECKED, MOST_NAMES, Picked, Prompt, Source

# NAME[/CONFIG][:VERSION][:SPLIT][#FIELD]
_SPEC = re.compile(r"(?P<name>[^:#]+(:\d+\.\d+\.\d+)?)(:(?P<split>[^#]+))?(#(?P<field>.+))?")


def read_dataset(spec: str) -> Source:
    """The prompts of NAME[/CONFIG][:VERSION][:SPLIT][#FIELD], all in one group.

    SPLIT is `train` unless given, and may be cut as in train[:1000].  FIELD is `prompt` unless given; a/b is the field b
    inside a, and of several texts the first one counts.

    Raises:
      ConfigError: the spec is no such thing, the dataset is not there, or it has no such field.
    """
    found = _SPEC.fullmatch(spec)
    require(found is not None, f"prompts: tfds:{spec} is not tfds:NAME[/CONFIG][:SPLIT][#FIELD]; write it so.")
    name, split, field = found["name"], found["split"] or "train", found["field"] or "prompt"
    import tensorflow_datasets as tfds

    own = home()  # tfds would take an empty TFDS_DATA_DIR for the current folder
    place = os.environ.get("TFDS_DATA_DIR") or (own / "tensorflow_datasets" if own else None)
    require(place is not None, f"prompts: tfds:{spec}: this user has no home folder; set TFDS_DATA_DIR to where it lies.")
    try:
        source = functools.partial(tfds.data_source, name, split=split, data_dir=place, download=False)
        features = source().dataset_info.features
        media = [key for key, x in features.items() if isinstance(x, tfds.features.Image | tfds.features.Audio)]
        records = source(decoders={key: tfds.decode.SkipDecoding() for key in media})  # decoding would take most of the time
    except Exception as error:  # tfds raises many kinds, of its own and of others
        first = next(iter(str(error).splitlines()), type(error).__name__).rstrip(" .:")
        raise ConfigError(
            f"prompts: tfds:{spec} cannot be read ({first}); prepare it by `tfds build {name.partition(':')[0]} "
            "--file_format=array_record`, and set TFDS_DATA_DIR to where it lies."
        ) from None
    top = field.partition("/")[0]
    require(top in features, f"prompts: tfds:{spec}: there is no field {top!r}; name one of {', '.join(sorted(features))} "
                                  "after #.")  # fmt: skip
    plain = [key for key, feature in sorted(features.items()) if _is_plain(feature, tfds)]
    place = f"tfds:{spec}, record"

    def read(index: int) -> Prompt:
        record = records[int(index)]
        text = _text(record, field)
        require(text is not None, f"{place} {index}: {field!r} is no text, or an empty one; name another field after #.")
        metadata = {key: _json(record[key]) for key in plain if key != field}
        return Prompt(text=text, metadata=metadata, place=f"{place} {index}")

    read(0)
    every = range(len(records))
    return Source(
        groups=[Picked(read, every)],
        longest=Picked(read, every[:CHECKED]),
        facts=[key for key in plain if key != field][:MOST_NAMES],
        unread=[key for key in sorted(features) if key not in plain and key != top][:MOST_NAMES],
    )


def _is_plain(feature: Any, tfds) -> bool:
    """Whether a feature is one text or one number, and no picture, sound or the like."""
    kinds = (tfds.features.Text, tfds.features.ClassLabel, tfds.features.Scalar, tfds.features.Tensor)
    return type(feature) in kinds and feature.shape == ()


def _text(record: Any, field: str) -> str | None:
    """The text at a/b/c, the first of several; None where there is none."""
    for key in field.split("/"):
        record = record.get(key) if isinstance(record, Mapping) else None
    while isinstance(record, list | tuple | np.ndarray) and np.ndim(record):
        record = record[0] if len(record) else None
    text = record.decode("utf-8", "replace") if isinstance(record, bytes) else record
    return text if isinstance(text, str) and text.strip() else None


def _json(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic | np.ndarray) else value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
