"""What a run holds on its devices: the table before it starts against the arrays that then lie there."""

import collections
import dataclasses

import jax
import numpy as np
import pytest

from experiments.presets import bagel_tiny
from unigrpo_jax.config import CheckpointConfig, LoraConfig, MeshConfig
from unigrpo_jax.learning import parameters
from unigrpo_jax.models import tree
from unigrpo_jax.models.bagel import Bagel
from unigrpo_jax.training.placement import placement, shown_bytes
from unigrpo_jax.training.trainer import Trainer, build


def trainer(model=None, learning=None, mesh=None) -> Trainer:
    """Of `bagel_tiny` on eight devices, with single settings changed."""
    base = bagel_tiny.config()
    config = dataclasses.replace(
        base, model=dataclasses.replace(base.model, **model or {}), mesh=MeshConfig(**mesh or {"fsdp": 4, "tensor": 2}),
        learning=dataclasses.replace(base.learning, ema_decay=0.9, **learning or {}), checkpoint=CheckpointConfig(),
    )  # fmt: skip
    return Trainer(build(config))


def bytes_there(arrays, kind="device") -> int:
    """What arrays take of the first device, counted from their shards."""
    first, total = jax.devices()[0], 0
    for x in jax.tree.leaves(arrays):
        if x.sharding.memory_kind == kind and x.ndim:
            total += sum(s.data.nbytes for s in x.addressable_shards if s.device == first)
    return total


@pytest.mark.parametrize(
    ("model", "learning"),
    [
        ({}, {}),
        ({"dtype": "bfloat16"}, {"reference": "host"}),
        ({}, {"reference": "none", "mse_weight": 0.0, "method": "diffusion_nft"}),  # keeps the policy that samples
        ({"dtype": "bfloat16", "param_dtype": "bfloat16", "lora": LoraConfig(rank=2)}, {"frozen": ()}),
    ],
)
def test_the_table_says_what_then_lies_there(model, learning):
    t = trainer(model, learning)
    labels = parameters.groups(t.parts.loaded.abstract_params(), t.parts.config.learning, Bagel.trained_by)
    rows = placement(t.inputs(), labels)
    said = collections.Counter()
    for row in rows:
        said[row.group] += row.bytes
    state = t.start()
    of = lambda group: {path: x for path, x in (state.trained | t.frozen).items() if labels[path] == group}
    own = {path: x for path, x in tree.flatten(t.reference).items() if path not in t.frozen}
    there = {group: bytes_there(of(group)) for group in parameters.GROUPS} | {
        "optimizer": bytes_there(state.opt_state), "reference": bytes_there(own),
        "average": bytes_there((state.ema, state.old)), "autoencoder": bytes_there(t.autoencoder_params),
    }  # fmt: skip
    assert {name: size for name, size in there.items() if size} == {name: size for name, size in said.items() if size}
    paths = [path for row in rows for path in row.names if path in labels]
    assert sorted(paths) == sorted(labels)
    if learning.get("reference") == "host":
        assert there["reference"] == 0 and bytes_there(own, "pinned_host") > 0
        assert any(row.placement == "on the host" for row in rows)
    if model.get("lora"):
        assert not own  # adapters off is the reference: no copy of anything


def test_rows_name_the_mesh_axes():
    t = trainer()
    labels = parameters.groups(t.parts.loaded.abstract_params(), t.parts.config.learning, Bagel.trained_by)
    by_name = {name: row for row in placement(t.inputs(), labels) for name in row.names}
    up = by_name["layers/gen/up_proj/kernel"]
    assert up.placement == "- fsdp tensor" and up.group == "denoising" and "layers/gen/gate_proj/kernel" in up.names
    assert up.cells()[1] == "layers/gen/gate_proj/kernel and 1 more"
    assert by_name["latent_pos_embed"].group == "frozen" and by_name["latent_pos_embed"].placement == "- fsdp"


def test_the_references_copy_is_what_the_network_would_cast_to():
    """Bit for bit the same velocities and logits as from the float32 weights, in bfloat16 compute."""
    t = trainer({"dtype": "bfloat16"}, {"frozen": ()}, {"data": 8})
    state = t.start()
    copies = tree.flatten(t.reference)
    assert {str(copies[path].dtype) for path in state.trained} == {"bfloat16"}
    network, alone = t.parts.loaded.network, jax.devices()[0]
    network = dataclasses.replace(network, hold=None)

    @jax.jit
    def outputs(params):
        tokens = np.arange(12, dtype=np.int32).reshape(2, 6)
        hidden, context = network.prefill(params, tokens, np.ones((2, 6), bool), network.empty(2))
        x = jax.random.normal(jax.random.key(0), (2, 12, network.config.latent_width))
        return network.text_logits(params, hidden), network.predict(params, x, np.full(2, 0.5), (4, 3), context)

    # Weights of the toy are zero in its flow head, as those of a fresh model are; here they must matter.
    loud = lambda path, x: x + 0.1 if path.startswith("llm2vae") else x
    full = {path: jax.device_put(loud(path, x), alone) for path, x in (state.trained | t.frozen).items()}
    cast = {path: x.astype(copies[path].dtype) for path, x in full.items()}
    ours, theirs = outputs(tree.unflatten(full)), outputs(tree.unflatten(cast))
    for a, b in zip(ours, theirs, strict=True):
        assert float(np.abs(np.asarray(a)).max()) > 0
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 B"), (999, "999 B"), (1536, "1.5 KiB"), (3 * 2**30, "3 GiB"), (1100 * 2**30, "1.07 TiB")]
)
def test_bytes_in_words(count, words):
    assert shown_bytes(count) == words
