"""Gradients of a network with flat parameters against recorded ones: some whole, and the norm of each."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np


def step_of(folder: pathlib.Path, which: str, log_prob_TB) -> int:
    """The transition of a recorded run whose log-probabilities, summed over the batch, are the loss of `which`.npz."""
    away = np.abs(np.sum(log_prob_TB, axis=1) - np.load(folder / f"{which}.npz")["loss"])
    assert away.min() < 1e-4 < np.sort(away)[1]
    return int(away.argmin())


def check(loss, params, names, folder: pathlib.Path, which: str, assert_close) -> None:
    """`loss` of the parameters, and its gradient under the file's names, against `which`.npz and `which`_norms.json.

    `names` gives the file's names of a parameter, one per layer of its leading axis where they are not its own.
    """
    arrays = dict(np.load(folder / f"{which}.npz"))
    norms = json.loads((folder / f"{which}_norms.json").read_text())["norms"]
    value, gradient = jax.jit(jax.value_and_grad(loss))({name: jnp.asarray(x) for name, x in params.items()})
    assert_close(value, arrays["loss"], name="loss")
    found = {}
    for name, g in gradient.items():
        own = names(name)
        found |= {name: g} if own == (name,) else dict(zip(own, g, strict=True))
    for name in (name for name in arrays if name.startswith("grad/")):
        assert_close(found[name.removeprefix("grad/")], arrays[name], name=name)
    assert norms.keys() == found.keys()
    largest = max(norms.values())
    for name, norm in norms.items():
        np.testing.assert_allclose(np.linalg.norm(found[name]), norm, rtol=5e-5, atol=1e-6 * largest, err_msg=name)
