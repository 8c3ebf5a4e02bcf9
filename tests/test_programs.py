"""The two programs of an iteration on a mesh."""

import dataclasses
import functools

import jax
import numpy as np

from launch.planning.collectives import collectives
from tests import tiny
from unigrpo_jax.config import MeshConfig, ModelConfig, RunConfig
from unigrpo_jax.models import tree
from unigrpo_jax.models.autoencoders.pixels import PixelAutoencoder
from unigrpo_jax.models.bagel import Bagel
from unigrpo_jax.parallel import mesh as meshes
from unigrpo_jax.parallel.rules import Layout
from unigrpo_jax.training.programs import Programs


@functools.cache
def rollout(gather: bool):
    """Episodes of the tiny network over fsdp 4 x tensor 2, and the collectives of the program that made them."""
    mesh = meshes.make_mesh(8, MeshConfig(fsdp=4, tensor=2))
    layout, params = Layout(mesh, Bagel.axes), tiny.params()
    config = RunConfig(
        model=ModelConfig(), rollout=dataclasses.replace(tiny.ROLLOUT, gather_weights=gather), learning=tiny.LEARNING
    )
    network = dataclasses.replace(tiny.MODEL, hold=layout.activations)
    programs = Programs(config, network, PixelAutoencoder(), (), layout, jax.eval_shape(lambda: params))
    placed = {path: jax.device_put(x, layout.parameter(path, x.shape)) for path, x in tree.flatten(params).items()}
    prompts = jax.device_put(tiny.prompts(), programs.everywhere)
    given = (tree.unflatten(placed), {}, prompts, np.int32(0), np.int32(0))
    compiled = programs.rollout.lower(*given).compile(compiler_options=tiny.OPTIONS)
    found = collectives(compiled.as_text(), dict(mesh.shape), config.rollout.thinking_tokens + 2)
    return jax.block_until_ready(compiled(*given)), list(found)


def test_gathered_weights_draw_the_same_episodes():
    tiny.assert_episodes_equal(rollout(True)[0], rollout(False)[0])
    tiny.assert_episodes_equal(rollout(True)[0], tiny.episodes())


def test_gathered_weights_are_sent_once_and_not_at_every_token_and_step():
    """All-gathers along fsdp; what tensor adds up stays."""
    rounds = lambda gather: [c.rounds for c in rollout(gather)[1] if c.kind == "all-gather" and c.axes == ("fsdp",)]
    assert max(rounds(False)) >= tiny.ROLLOUT.thinking_tokens
    assert rounds(True) and max(rounds(True)) == 1
