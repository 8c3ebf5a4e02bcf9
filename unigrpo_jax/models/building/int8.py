"""Products with weights in int8: x W^T by integers, for sampling.

    w_oi ~ s_o q_oi,   x_bi ~ r_b p_bi,   sum_i x_bi w_oi ~ r_b s_o sum_i p_bi q_oi,   p, q int8, the sum int32

s_o = max_i |w_oi| / 127 is one scale for each output channel, made once; r_b = max_i |x_bi| / 127 one for each token, made
as it comes.  Rounding is to the nearest, so that a number is off by half a scale at most.  The sum is exact, so that where
its numbers lie on a mesh changes nothing; both scales are float32 and are multiplied in that.
The arithmetic is qwix's (`quantize`, `dot_general`), and a weight in int8 its `QArray`, a pytree of `qvalue` and `scale`
with as many axes as the weight: it can be stacked, scanned and cut as that can.

Nothing is differentiated: what is trained stays in full precision.
"""

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from unigrpo_jax.config import ConfigError

# qwix divides by 127.5 unless told otherwise.  The largest number would always lie in the middle between 127 and 128, and
# fall to either side as a compiler divides.
LARGEST = f"absmax,{127.5 / 127}"


def check_installed(setting: str) -> None:
    """ConfigError where qwix is missing, or cannot be imported; `setting` is what asked for it."""
    try:
        _qwix()
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "qwix"
        why = "" if missing else f", whose import fails ({error})"
        raise ConfigError(f"{setting} = 'int8' needs qwix{why}: pip install 'unigrpo_jax[int8]'.") from error


def _qwix() -> ModuleType:
    return importlib.import_module("qwix")


def is_int8(weight: Any) -> bool:
    """Whether it is one in int8."""
    return hasattr(weight, "qvalue")


def rounded(x: jax.Array, contracted: tuple[int, ...]) -> Any:
    """An array as a `QArray` of its shape, with one float32 scale for all numbers along the axes that are `contracted`."""
    own = [axis for axis in range(x.ndim) if axis not in contracted]
    return _qwix().quantize(x.astype(jnp.float32), jnp.int8, channelwise_axes=own, calibration_method=LARGEST)


def held(params: Mapping[str, Any], contracted: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Flat parameters with some weights in int8.

    Args:
      params: {path: array}.
      contracted: {path: the axes of a weight that its products sum over}.

    Raises:
      ValueError: there is no weight to be held.
    """
    if not contracted:
        raise ValueError("the network has no product that is made in int8; sample it as it is.")
    # Made before any loop: the compiler would else be free to read the weights in full, and round them, at every step.
    small = jax.lax.optimization_barrier({path: rounded(params[path], axes) for path, axes in contracted.items()})
    return {**params, **small}


def product(x: jax.Array, weight: Any, contracted: tuple[int, ...]) -> jax.Array:
    """The last axes of x times the axes of an int8 weight that are `contracted`, as many, in order; in x's dtype."""
    last = tuple(range(x.ndim - len(contracted), x.ndim))
    axes = (last, contracted), ((), ())
    return _qwix().dot_general(rounded(x, last), weight, axes, preferred_element_type=jnp.float32).astype(x.dtype)
