"""Which platforms JAX tries: a TPU compiler is silent on a machine without a TPU, and is asked where there may be one."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from unigrpo_jax.parallel import platforms

ROOT = pathlib.Path(__file__).resolve().parent.parent
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
no_tpu = pytest.mark.skipif(os.path.exists("/dev/accel0") or os.path.exists("/dev/vfio"), reason="there may be a TPU here")


@needs_libtpu
@no_tpu
@pytest.mark.parametrize("named", [{}, {"JAX_PLATFORMS": ""}], ids=["unset", "empty"])
def test_a_tpu_compiler_without_a_tpu_says_nothing(named):
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"} | named
    code = "from experiments.command_line import *; configure_jax(); import jax; print(jax.devices()[0].platform)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout in ("cpu\n", "gpu\n"), done


@pytest.mark.parametrize(
    ("named", "nodes", "left_out"),
    [
        (None, [], ["tpu"]),
        ("", [], ["tpu"]),
        (None, ["/dev/accel0"], []),
        (None, ["/dev/vfio/0", "/dev/vfio/vfio"], []),
        (None, ["/dev/vfio/vfio", "/dev/accel"], ["tpu"]),  # the driver alone; the folder of another kind of accelerator
        ("tpu,cpu", [], []),  # as JAX sets it where it finds a TPU
        ("cuda", [], []),
    ],
)
def test_a_tpu_is_left_out_only_where_none_can_be_and_no_platform_is_named(monkeypatch, tmp_path, named, nodes, left_out):
    for node in nodes:
        path = tmp_path / node[1:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.setattr(platforms, "TPU_NODES", [str(tmp_path) + pattern for pattern in platforms.TPU_NODES])
    asked = []
    monkeypatch.setattr(platforms, "register_backend_factory", lambda name, *_, **__: asked.append(name))
    before = jax.config.jax_platforms
    try:
        jax.config.update("jax_platforms", named)
        platforms.leave_out_absent_tpu()
    finally:
        jax.config.update("jax_platforms", before)
    assert asked == left_out
