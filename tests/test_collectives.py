"""The table of collectives against programs whose collectives were written by hand, and against text."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from launch.planning import collectives as subject
from launch.planning.collectives import collectives, replica_groups, shape_bytes, table

MESH = {"data": 2, "fsdp": 4}
ROWS = 64  # float32 numbers of one device


def compiled(function):
    """HLO of a function of one device's [ROWS] float32 numbers, on 2 x 4 devices."""
    mesh = jax.make_mesh(tuple(MESH.values()), tuple(MESH), axis_types=(AxisType.Auto,) * 2)
    spec = PartitionSpec(("data", "fsdp"))
    mapped = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    return jax.jit(mapped).lower(jax.ShapeDtypeStruct((8 * ROWS,), jnp.float32)).compile().as_text()


def found(function):
    return collectives(compiled(function), MESH, unknown=1)


gather = lambda axis: lambda x: jax.lax.all_gather(x, axis, tiled=True)[:ROWS]
scatter = lambda x: jnp.tile(jax.lax.psum_scatter(x, "fsdp", tiled=True), 4)
exchange = lambda x: jax.lax.all_to_all(x, "fsdp", 0, 0, tiled=True)
ring = lambda x: jax.lax.ppermute(x, "data", [(0, 1), (1, 0)])


@pytest.mark.parametrize(
    ("function", "kind", "axes", "group", "sent"),
    [
        (gather("fsdp"), "all-gather", ("fsdp",), 4, 3 * ROWS * 4),
        (gather("data"), "all-gather", ("data",), 2, ROWS * 4),
        (lambda x: jax.lax.psum(x, "fsdp"), "all-reduce", ("fsdp",), 4, 2 * ROWS * 4 * 3 / 4),
        (lambda x: jax.lax.psum(x, ("data", "fsdp")), "all-reduce", ("data", "fsdp"), 8, 2 * ROWS * 4 * 7 / 8),
        (scatter, "reduce-scatter", ("fsdp",), 4, ROWS * 4 * 3 / 4),
        (exchange, "all-to-all", ("fsdp",), 4, ROWS * 4 * 3 / 4),
        (ring, "collective-permute", ("data",), 2, ROWS * 4),
    ],
)
def test_a_collective_is_found_with_its_axes_and_bytes(function, kind, axes, group, sent):
    (one,) = found(function)
    assert (one.kind, one.axes, one.group, one.sent, one.rounds) == (kind, axes, group, sent, 1)


def test_a_collective_in_loops_counts_once_per_round():
    """Five rounds of three rounds of one sum each, and one behind them."""

    def function(x):
        inner = lambda c, _: (jax.lax.psum(jnp.sin(c), "data"), None)
        outer = lambda c, _: (jax.lax.scan(inner, c, length=3)[0] * 0.5, None)
        return jax.lax.psum(jax.lax.scan(outer, x, length=5)[0], "fsdp")

    rounds = {c.axes: (c.rounds, c.assumed) for c in found(function)}
    assert rounds == {("data",): (15, False), ("fsdp",): (1, False)}


def test_a_loop_that_may_end_early_counts_to_its_bound():
    def function(x):
        go = lambda state: (state[0] < 7) & (jnp.sum(state[1]) < 1e9)
        turn = lambda state: (state[0] + 1, jax.lax.psum(jnp.cos(state[1]), "data"))
        return jax.lax.while_loop(go, turn, (0, x))[1]

    assert {(c.rounds, c.assumed) for c in found(function)} == {(7, True)}


def test_a_loop_whose_text_tells_no_bound_takes_the_given_rounds():
    def function(x):
        turn = lambda x: jax.lax.psum(jnp.cos(x), "data")
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 1e9, turn, x)

    text = compiled(function)
    assert {(c.rounds, c.assumed) for c in collectives(text, MESH, unknown=12)} == {(12, True)}


def test_without_a_collective_the_table_is_empty():
    assert found(jnp.sin) == []


# What libtpu writes: no known_trip_count; a gather that overlaps with computation stands in three fusions; the sum and the
# cut of a reduce-scatter are one fusion.
TPU = """\
HloModule jit_f, is_scheduled=true

%fused.1 (p: bf16[1,64]) -> bf16[4,64] {
  %p = bf16[1,64]{1,0:T(2,128)(2,1)} parameter(0)
  ROOT %all-gather.1 = bf16[4,64]{1,0:T(4,128)(2,1)} all-gather(%p), channel_id=7, replica_groups=mesh['a'=2,'b'=4] {'b'}, \
dimensions={0}, use_global_device_ids=true, metadata={op_name="jit(f)/thinking/while/body/dot"}
}

%fused.2 (p: bf16[1,64]) -> bf16[4,64] {
  %p = bf16[1,64]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[4,64]{1,0} all-gather(%p), channel_id=7, replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}
}

%all-reduce-scatter.3 (p: f32[8]) -> f32[1] {
  %p = f32[8]{0} parameter(0)
  %all-reduce.3 = f32[8]{0} all-reduce(%p), channel_id=9, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %slice = f32[1]{0} dynamic-slice(%all-reduce.3, %i), dynamic_slice_sizes={1}
}

%body (t: (s32[], bf16[1,64])) -> (s32[], bf16[1,64]) {
  %t = (s32[]{:T(128)}, /*index=1*/bf16[1,64]{1,0}) parameter(0)
  %start = (bf16[1,64]{1,0}, bf16[4,64]{1,0}) fusion(%x), kind=kCustom, calls=%fused.1
  %done = bf16[4,64]{1,0} fusion(%start), kind=kCustom, calls=%fused.2
  ROOT %out = (s32[], bf16[1,64]{1,0}) tuple(%n, %x)
}

%condition (t: (s32[], bf16[1,64])) -> pred[] {
  %limit = s32[]{:T(128)} constant(28)
  %t = (s32[], bf16[1,64]{1,0}) parameter(0)
  %n = s32[] get-tuple-element(%t), index=0
  ROOT %lt = pred[] compare(%n, %limit), direction=LT
}

ENTRY %main (x: bf16[1,64], y: f32[8]) -> bf16[1,64] {
  %x = bf16[1,64]{1,0} parameter(0)
  %y = f32[8]{0} parameter(1)
  %loop = (s32[], /*index=1*/bf16[1,64]{1,0}) while(%tuple), condition=%condition, body=%body
  %sum = f32[1]{0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.3
  %begin = (f32[8]{0}, f32[64]{0}) all-gather-start(%y), replica_groups={}, dimensions={0}
  %end = f32[64]{0} all-gather-done(%begin)
  ROOT %out = bf16[1,64]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_text_of_the_tpu_compiler_is_read():
    gathered, scattered, started = collectives(TPU, MESH, unknown=1)
    assert (gathered.kind, gathered.axes, gathered.rounds, gathered.assumed) == ("all-gather", ("fsdp",), 28, False)
    assert gathered.sent == 4 * 64 * 2 * 3 / 4 and "/thinking/" in gathered.where
    assert (scattered.kind, scattered.axes, scattered.sent) == ("reduce-scatter", ("fsdp",), 8 * 4 * 3 / 4)
    assert (started.group, started.sent, started.rounds) == (8, 64 * 4 * 7 / 8, 1)


def test_groups_that_cross_nodes_are_told_from_those_inside_one():
    gathered, scattered, started = collectives(TPU, MESH, unknown=1, per_node=4)
    assert (gathered.nodes, scattered.nodes, started.nodes) == (False, False, True)


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}, dimensions={0}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("replica_groups=[2,4]<=[8], dimensions={0}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=[4,2]<=[2,4]T(1,0), x", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}, x", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}, x", [[0, 1, 4, 5], [2, 3, 6, 7]]),
        ("replica_groups=mesh['a'=8] {'a':(2)2}, x", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}, x", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups={}, x", [list(range(8))]),
        ("dimensions={0}", [list(range(8))]),
    ],
)
def test_every_form_of_groups_is_read(text, groups):
    got = replica_groups(text, 8)
    assert sorted(map(sorted, got.tolist())) == groups


def test_a_form_of_groups_that_is_not_known_is_an_error():
    with pytest.raises(ValueError, match="form that is not known"):
        replica_groups("replica_groups=some[8], x", 8)
    with pytest.raises(ValueError, match="no ENTRY"):
        collectives("nothing", MESH, unknown=1)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[2,3]{1,0}", 24),
        ("(bf16[4]{0:T(8,128)(2,1)S(1)}, /*index=1*/s8[3], pred[])", 12),
        ("f8e4m3fn[5]", 5),
        ("s4[3]", 2),
    ],
)
def test_bytes_of_a_type(shape, size):
    assert shape_bytes(shape) == size


def test_the_table_adds_up_by_kind_axes_and_phase():
    one = functools.partial(subject.Collective, group=4, nodes=False, where="")
    rows = table(
        [one(kind="all-gather", sent=10.0, axes=("fsdp",), rounds=3, assumed=False),
         one(kind="all-gather", sent=1.0, axes=("fsdp",), rounds=2, assumed=True),
         one(kind="all-reduce", sent=100.0, axes=("data", "fsdp"), rounds=1, assumed=False)],
        lambda c: "drawing",
    )  # fmt: skip
    assert [(r["kind"], r["axes"], r["times"], r["bytes"], r["assumed"]) for r in rows] == [
        ("all-reduce", "data+fsdp", 1, 100.0, False), ("all-gather", "fsdp", 5, 32.0, True)]  # fmt: skip
    assert np.sum([row["bytes"] for row in rows]) == 132
