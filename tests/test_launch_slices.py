"""The table of TPU slices against figures of Cloud TPU's documentation, and what is said of a slice that is none."""

import pytest

from launch import slices
from unigrpo_jax.config import ConfigError


@pytest.mark.parametrize(
    "name, accelerator_type, chips, hosts, chips_per_host, gke",
    [
        ("v4:2x2x1", "v4-8", 4, 1, 4, "tpu-v4-podslice"),
        ("v4:2x2x4", "v4-32", 16, 4, 4, "tpu-v4-podslice"),
        ("v4:8x8x8", "v4-1024", 512, 128, 4, "tpu-v4-podslice"),
        ("v5e:1x1", "v5litepod-1", 1, 1, 1, "tpu-v5-lite-podslice"),
        ("v5e:2x4", "v5litepod-8", 8, 1, 8, "tpu-v5-lite-podslice"),
        ("v5e:4x4", "v5litepod-16", 16, 4, 4, "tpu-v5-lite-podslice"),
        ("v5e:16x16", "v5litepod-256", 256, 64, 4, "tpu-v5-lite-podslice"),
        ("v5p:2x2x1", "v5p-8", 4, 1, 4, "tpu-v5p-slice"),
        ("v5p:4x4x4", "v5p-128", 64, 16, 4, "tpu-v5p-slice"),
        ("v5p:16x16x24", "v5p-12288", 6144, 1536, 4, "tpu-v5p-slice"),
        ("v6e:2x2", "v6e-4", 4, 1, 4, "tpu-v6e-slice"),
        ("v6e:16x16", "v6e-256", 256, 64, 4, "tpu-v6e-slice"),
    ],
)
def test_a_slice_has_the_documented_chips_and_hosts(name, accelerator_type, chips, hosts, chips_per_host, gke):
    one = slices.find(name)
    assert one == slices.find(accelerator_type) and (one.name, one.accelerator_type) == (name, accelerator_type)
    assert (one.chips, one.hosts, one.chips_per_host, one.gke_accelerator) == (chips, hosts, chips_per_host, gke)


def test_every_slice_has_a_name_of_its_own_and_whole_hosts():
    assert len({one.accelerator_type for one in slices.SLICES.values()}) == len(slices.SLICES)
    for one in slices.SLICES.values():
        assert one.hosts * one.chips_per_host == one.chips, one
        assert one.topology.count("x") == (1 if one.generation in ("v5e", "v6e") else 2), one


@pytest.mark.parametrize(
    "name, words",
    [
        ("v5p:4x4x5", ["v5p:4x4x4 (64 chips, v5p-128)", "v5p:4x4x8 (128 chips, v5p-256)"]),
        ("v5p-100", ["v5p:2x4x4 (32 chips, v5p-64)", "v5p:4x4x4 (64 chips, v5p-128)"]),
        ("v5p:99999x99999x99999", ["v5p:16x16x24 (6144 chips, v5p-12288)."]),
        ("v5e-17", ["v5e:4x4 (16 chips, v5litepod-16)", "v5e:4x8 (32 chips, v5litepod-32)"]),
        ("v5litepod-9", ["v5e:2x4 (8 chips, v5litepod-8)", "v5e:4x4 (16 chips, v5litepod-16)"]),
        ("v6:4x4", ["v6e:4x4"]),
        ("nonsense", ["there are v4, v5e, v5p, v6e, such as v5p:4x4x4."]),
        ("", ["there are v4"]),
    ],
)
def test_a_slice_that_is_none_is_answered_with_the_nearest(name, words):
    with pytest.raises(ConfigError) as refusal:
        slices.find(name)
    assert str(refusal.value).startswith(f"slice = {name!r} is none that is known") and str(refusal.value).endswith(".")
    for word in words:
        assert word in str(refusal.value), refusal.value
