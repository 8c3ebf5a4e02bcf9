"""The tokens of a clip and of its sound over several devices: the same velocities and gradients, none computed by two."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np

from tests import tiny
from tests.test_ltx2_sizes import BOTH, SMALL_NEWER
from unigrpo_jax.config import MeshConfig, ModelConfig
from unigrpo_jax.models.building.computing import Computing
from unigrpo_jax.models.ltx2.axes import AXES
from unigrpo_jax.parallel import kernels
from unigrpo_jax.parallel import mesh as meshes
from unigrpo_jax.parallel.rules import Layout

# All that a network can have: gates, times that modulate texts, projections of texts, masks, a time for each token.
NETWORK = dataclasses.replace(
    SMALL_NEWER, text_width=7, cross_times="gate_of_other", video=dataclasses.replace(SMALL_NEWER.video, head_dim=8)
)
ROWS, TOKENS, TEXT, GRID = 4, {"video": 6, "audio": 5}, 7, (3, 1, 2)


@functools.cache
def params():
    """No weight is zero."""
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape, np.float32) / math.sqrt(shape[-1]) for name, shape in NETWORK.shapes().items()}


def given():
    """Latents, times of the clip's tokens and of the sound, levels of noise, texts and which of them are seen."""
    rng = np.random.default_rng(1)
    draw = lambda *shape: rng.standard_normal((ROWS, *shape)).astype(np.float32)
    sigmas = {name: np.linspace(100, 900, ROWS, dtype=np.float32) for name in BOTH}
    times = sigmas | {"video": sigmas["video"][:, None] * np.linspace(0, 1, TOKENS["video"], dtype=np.float32)}
    x = {name: draw(TOKENS[name], branch.channels) for name, branch in NETWORK.branches.items()}
    seen = np.arange(TEXT) < 1 + np.arange(ROWS)[:, None] % TEXT
    return x, times, sigmas, {name: draw(TEXT, NETWORK.text_width) for name in BOTH}, dict.fromkeys(BOTH, seen)


def stepped(**sizes):
    """Velocities and gradient of every parameter on a mesh, and the compiled program's text."""
    mesh = meshes.make_mesh(math.prod(sizes.values()), MeshConfig(**sizes))
    layout = Layout(mesh, AXES)
    way = Computing(layout.activations, kernels.attend(ModelConfig(), mesh), "full", layout.sequence(NETWORK.cuts()))
    place = {name: layout.parameter(name, x.shape) for name, x in params().items()}

    def loss(p, x, times, sigmas, texts, seen):
        out = NETWORK(p, x, times, texts, GRID, 24.0, seen, sigmas, way=way)
        return sum(jnp.mean(jnp.sin(2 * v)) for v in out.values()), out

    spread = meshes.spread(mesh)
    step = jax.jit(jax.value_and_grad(loss, has_aux=True), out_shardings=((None, spread), place))
    laid = {name: jax.device_put(x, place[name]) for name, x in params().items()}, *jax.device_put(given(), spread)
    program = step.lower(*laid).compile(compiler_options=tiny.OPTIONS)
    (_, out), gradient = program(*laid)
    return jax.device_get((out, gradient)), program.as_text()


def test_tokens_of_clip_and_sound_on_several_devices_change_neither_velocities_nor_gradients():
    """6 of the clip, 5 of the sound and 7 of each text over four parts, which divide none of them."""
    (out, gradient), text = stepped(fsdp=2, sequence=4)
    (true, gradients), _ = stepped(data=1)
    for name in BOTH:
        assert np.abs(true[name]).max() > 0.1
        np.testing.assert_allclose(out[name], true[name], rtol=0, atol=1e-5 * np.abs(true[name]).max())
    largest = max(np.abs(g).max() for g in gradients.values())
    for name, g in gradients.items():
        np.testing.assert_allclose(gradient[name], g, rtol=0, atol=1e-5 * largest, err_msg=name)
    # Each device has two rows of two tokens of a stream, 16 numbers wide and 8, and of nothing so wide all eight, but of
    # the sinusoids of their times, 256.
    shapes = {tuple(map(int, found.split(","))) for found in re.findall(r"\bf32\[([\d,]+)\]", text)}
    assert {(2, 2, 16), (2, 2, 8), (2, 2, 64), (2, 2, 32)} <= shapes
    whole = [shape for shape in shapes if len(shape) == 3 and shape[:2] in ((2, 8), (4, 8), (4, 2))]
    assert not [shape for shape in whole if shape[-1] >= 16 and shape[-1] != 256]
