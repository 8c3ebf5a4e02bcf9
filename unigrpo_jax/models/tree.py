"""Parameters by path: {"a": {"b": x}} and {"a/b": x}."""

from typing import Any

import flax.traverse_util


def flatten(params: dict) -> dict[str, Any]:
    """Nested parameters as {"a/b/c": array}."""
    return flax.traverse_util.flatten_dict(params, sep="/")


def unflatten(flat: dict[str, Any]) -> dict:
    """The inverse of `flatten`."""
    return flax.traverse_util.unflatten_dict(flat, sep="/")
