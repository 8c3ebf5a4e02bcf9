"""A network's folder in diffusers' layout: bytes in are bytes out, shards, dtypes, and all that does not fit is named."""

import dataclasses
import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from unigrpo_jax.models.flux.transformer import FluxTransformer
from unigrpo_jax.models.folders import component

SMALL = FluxTransformer(channels=4, double=2, single=3, heads=2, axes=(2, 4, 2), text_width=6, pooled_width=5, guidance=True)


@pytest.fixture
def folder(tmp_path):
    """A folder with random weights of `SMALL`, float32, in one file."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape, np.float32) for name, shape in component.wanted(SMALL).items()}
    save_file(arrays, tmp_path / "diffusion_pytorch_model.safetensors")
    return tmp_path


def read(folder, dtype=np.float32, network=SMALL):
    return component.read(component.open_weights(folder, component.DIFFUSERS, network), network, dtype)


def test_names_count_layers_of_one_block_too():
    one = dataclasses.replace(SMALL, double=1, single=1)
    assert component.wanted(one)["single_transformer_blocks.0.proj_mlp.bias"] == (64,)
    assert one.shapes()["single_transformer_blocks.proj_mlp.bias"] == (1, 64)


@pytest.mark.parametrize("shard_bytes", [10**9, 4000])
def test_what_is_read_is_written_again(folder, tmp_path, shard_bytes):
    before, out = load_file(folder / "diffusion_pytorch_model.safetensors"), tmp_path / "out"
    out.mkdir()
    component.write(out, component.DIFFUSERS, SMALL, read(folder), "float32", shard_bytes)
    files = sorted(path.name for path in out.glob("*.safetensors"))
    assert (len(files) > 3) == (shard_bytes == 4000)
    after = {name: array for path in out.glob("*.safetensors") for name, array in load_file(path).items()}
    assert before.keys() == after.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)
    again = read(out)  # by the index, where there are shards
    for name, array in read(folder).items():
        np.testing.assert_array_equal(again[name], array)


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_read_as_it_is_or_widened(folder, stored):
    path = folder / "diffusion_pytorch_model.safetensors"
    arrays = {name: x.astype(stored) for name, x in load_file(path).items()}
    save_file(arrays, path)
    for dtype in (np.float32, stored):
        found = read(folder, dtype)["proj_out.weight"]
        assert found.dtype == dtype
        np.testing.assert_array_equal(np.asarray(found, np.float32), arrays["proj_out.weight"].astype(np.float32))


def test_what_does_not_fit_is_named(folder):
    path = folder / "diffusion_pytorch_model.safetensors"
    arrays = load_file(path)
    del arrays["transformer_blocks.1.attn.to_q.weight"]
    arrays["proj_out.bias"] = np.zeros(5, np.float32)
    arrays["single_transformer_blocks.3.norm.linear.bias"] = np.zeros(48, np.float32)
    save_file(arrays, path)
    with pytest.raises(ValueError) as error:
        read(folder)
    unknown = "unknown single_transformer_blocks.3.norm"
    wrong = "proj_out.bias has shape [5], the config asks for [4]"
    for words in ("does not fit", "missing transformer_blocks.1.attn.to_q.weight", unknown, wrong):
        assert words in str(error.value)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with pytest.raises(ValueError, match="neither diffusion_pytorch_model.safetensors nor its index"):
        read(folder)
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../b"}}))
    with pytest.raises(ValueError, match="outside its folder"):
        read(folder)


def test_a_parameter_is_born_where_it_is_to_lie(folder):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    place = lambda path, shape: jax.NamedSharding(mesh, jax.P(*(("d" if n % 8 == 0 else None) for n in shape[:1])))
    found = component.read(component.open_weights(folder, component.DIFFUSERS, SMALL), SMALL, np.float32, place)
    assert found["norm_out.linear.weight"].sharding.spec == jax.P("d")
    np.testing.assert_array_equal(found["norm_out.linear.weight"], read(folder)["norm_out.linear.weight"])
