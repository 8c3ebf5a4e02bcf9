"""Weights for use out of a run: which parts of a checkpoint are read, and in which dtype the reference is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from experiments.command_line import preset
from tests.command import HEADS, REWARD, run_small
from tests.test_resume import state_at
from unigrpo_jax.models.tree import flatten
from unigrpo_jax.training.restore import restore


@pytest.fixture(scope="module")
def run_dir(tiny_model, tmp_path_factory):
    """A run with a moving average, that computes in bfloat16."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        (folder / "tiny_reward.py").write_text(REWARD)
        patch.syspath_prepend(folder)
        own = ("--iterations", 1, "--learning.ema-decay", 0.9, "--model.dtype", "bfloat16")
        outcome = run_small(tiny_model, folder / "run", *HEADS, *own)
    assert outcome.code == 0, outcome
    return folder / "run"


def test_the_moving_average_alone_is_read_of_a_checkpoint(run_dir, monkeypatch):
    """Neither Adam's moments nor the weights beside the average; the weights are those of the whole state."""
    state, asked, load = state_at(run_dir, 1), [], ocp.load

    def noting(place, parts):
        leaves, _ = jax.tree_util.tree_flatten_with_path(parts)
        asked.extend(jax.tree_util.keystr(path, simple=True) for path, leaf in leaves if leaf is not ocp.PLACEHOLDER)
        return load(place, parts)

    monkeypatch.setattr(ocp, "load", noting)
    read = flatten(restore(str(run_dir), preset([], "shapes")[0]).read())
    assert len(asked) == len(state.ema) and all(name.startswith("ema") for name in asked)
    assert any((np.asarray(x) != np.asarray(state.trained[path])).any() for path, x in state.ema.items())
    for path, x in state.ema.items():
        np.testing.assert_array_equal(np.asarray(read[path]), np.asarray(x), err_msg=path)


def test_the_reference_is_read_in_the_compute_dtype_as_a_run_keeps_it(run_dir):
    restored = restore(str(run_dir), preset([], "shapes")[0])
    params, trained = restored.read(), state_at(run_dir, 1).trained
    reference, stored = flatten(restored.reference(params)), flatten(restored.loaded.params())
    assert reference.keys() == stored.keys()
    for path, x in stored.items():
        assert reference[path].dtype == (jnp.bfloat16 if path in trained else x.dtype), path
        np.testing.assert_array_equal(np.asarray(reference[path]), np.asarray(x.astype(reference[path].dtype)), err_msg=path)
