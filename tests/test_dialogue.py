"""What was read, in three versions: by its definition, and through the rollout program with system prompt and picture."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny, verbs
from unigrpo_jax.episode import Picture, TokenBlock
from unigrpo_jax.learning.policy import Policy
from unigrpo_jax.models.autoencoders.pixels import to_uint8
from unigrpo_jax.models.bagel import Bagel
from unigrpo_jax.models.building import context as contexts
from unigrpo_jax.models.building.guidance import Guidance
from unigrpo_jax.models.building.patches import patchify, unpatchify
from unigrpo_jax.models.schedule import timesteps
from unigrpo_jax.rollout import dialogue as dialogues
from unigrpo_jax.rollout import randomness
from unigrpo_jax.rollout.drawing import FlowSampler
from unigrpo_jax.rollout.program import RolloutProgram
from unigrpo_jax.rollout.step_rules import ODE
from unigrpo_jax.rollout.thinking import TokenSampler

PARAMS, MODEL = tiny.params(), tiny.MODEL
SYSTEM = (tiny.BOS, 9, 11, 7, tiny.EOS)
see_latents = tiny.jit(Bagel.see_latents, static_argnums=(0, 3))


def read(context, *blocks):
    """The definition: every block upon what was read before."""
    for block in blocks:
        if isinstance(block, TokenBlock):
            new = verbs.prefill(MODEL, PARAMS, block.tokens, block.valid, context)[1]
        else:
            new = see_latents(MODEL, PARAMS, block.reshape(block.shape[0], -1, block.shape[-1]), block.shape[1:3], context)
        context = contexts.extend(context, new)
    return context


def same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), a, b)


def test_each_version_has_read_its_own_blocks():
    """system, text, image, text: text guidance lacks the last text, image guidance the image."""
    first, second = tiny.prompts(seed=1), tiny.prompts(seed=2)
    system = TokenBlock(tokens=jnp.array([SYSTEM] * 4), valid=jnp.ones((4, len(SYSTEM)), bool))
    image = jax.random.normal(jax.random.key(0), (4, *tiny.GRID, tiny.CONFIG.latent_width))

    @tiny.jit
    def dialogue(params):
        d = dialogues.begin(MODEL, params, SYSTEM, 4)
        d = dialogues.hear(MODEL, params, d, first)
        assert d.without_images is d.full  # no image yet: read once, held once
        d = dialogues.look(MODEL, params, d, latent=image)
        return dialogues.hear(MODEL, params, d, second)

    d = dialogue(PARAMS)
    empty = MODEL.empty(4)
    same(d.full, read(empty, system, first, image, second))
    same(d.without_text, read(empty, system, first, image))
    same(d.without_images, read(empty, system, first, second))
    np.testing.assert_array_equal(d.full.rope - d.without_images.rope, 1)  # an image takes one position


def test_without_a_system_prompt_a_dialogue_begins_with_nothing():
    d = dialogues.begin(MODEL, PARAMS, (), 3)
    assert d.full.slots == 0 and d.full.valid.shape == (3, 0) and not d.full.rope.any()


def test_a_system_prompt_is_a_text_block_before_the_prompt():
    """Episodes are those of prompts that hold it themselves, and the update finds the rollout's log-probabilities again."""
    prompts = tiny.prompts()
    joined = TokenBlock(
        tokens=jnp.concatenate([jnp.array([SYSTEM] * 4), prompts.tokens], axis=1),
        valid=jnp.concatenate([jnp.ones((4, len(SYSTEM)), bool), prompts.valid], axis=1),
    )
    run = tiny.jit(dataclasses.replace(tiny.rollout_program(), system=SYSTEM).__call__)
    plainly = tiny.jit(tiny.rollout_program().__call__)
    episodes, want = run(PARAMS, {}, prompts, 0, 0), plainly(PARAMS, {}, joined, 0, 0)
    for got, expected in zip(episodes.segments, want.segments, strict=True):
        tiny.assert_episodes_equal(got, expected, limit=1e-4)
    plain = tiny.policy()
    policy = Policy(model=MODEL, system=SYSTEM, tokens=plain.tokens, flow=plain.flow)
    text, flow = tiny.jit(policy.view)(PARAMS, episodes)
    np.testing.assert_allclose(text.log_probs, episodes.thinking.log_probs, atol=2e-5)
    np.testing.assert_allclose(flow.mean, episodes.drawing.mean, atol=2e-5)
    text, _ = tiny.view()(PARAMS, episodes)  # a policy that does not know the system prompt finds others
    assert float(jnp.max(jnp.abs(text.log_probs - episodes.thinking.log_probs))) > 1e-3


@pytest.mark.parametrize("thinking", [0, 4])
def test_the_program_reads_a_picture_before_the_prompt(reference, thinking):
    """Each step by hand with the program's own keys: sampled latents, patches, prompt, thinking, guided drawing."""
    c, model, ae, params = reference.config, reference.model, reference.autoencoder, reference.params
    side, rng = 2 * c.token_pixels, np.random.default_rng(0)
    rows, columns = 3, 2
    picture = Picture(
        pixels=jnp.asarray(rng.uniform(-1, 1, (1, side, side, 3)), jnp.float32),
        patches=jnp.asarray(rng.uniform(-1, 1, (1, rows, columns, c.vision.patch_width)), jnp.float32),
    )
    guidance = Guidance(text=4.0, image=2.0, renorm="text_channel", interval=(0.3, 1.0))
    flow = FlowSampler(schedule=tuple(timesteps(3, 3.0).tolist()), rule=ODE(), grid=c.grid(side, side), guidance=guidance)
    tokens = TokenSampler(temperature=0)
    program = RolloutProgram(
        model=model, autoencoder=ae, group_size=1, thinking_tokens=thinking, tokens=tokens, flow=flow, window=None,
    )  # fmt: skip
    prompt = reference.block([5, 6, 7])
    run = tiny.jit(program.__call__)
    got = run(params, reference.autoencoder_params, prompt, 3, 0, 0, picture)

    key = lambda stream: randomness.sample_keys(randomness.stream_key(3, 0, stream), jnp.arange(1))
    latent = verbs.encode(ae, reference.autoencoder_params, picture.pixels, key(randomness.PICTURE))
    latent = patchify(latent, c.latent_patch)
    d = dialogues.begin(model, params, (), 1)
    d = verbs.look(model, params, d, latent.reshape(1, 2, 2, -1), picture.patches)
    d = verbs.hear(model, params, d, prompt)
    full = d.full
    if thinking:
        thought, full = verbs.think(model, params, full, key(randomness.TOKENS), thinking, tokens)
        np.testing.assert_array_equal(got.thinking.tokens, thought.tokens)
    x = randomness.normal(key(randomness.INITIAL_NOISE), 0, (4, c.latent_width))
    others = (d.without_text, d.without_images)
    drawn, _ = verbs.denoise(model, params, full, x, None, jnp.zeros(0, jnp.int32), flow, others)
    drawn = unpatchify(drawn, (2, 2), c.latent_patch)
    want = to_uint8(verbs.decode_latent(ae, reference.autoencoder_params, drawn))
    assert np.abs(np.asarray(got.drawing.image, int) - np.asarray(want, int)).max() <= 1
    other = run(params, reference.autoencoder_params, prompt, 3, 0, 0, jax.tree.map(jnp.negative, picture))
    assert (other.drawing.image != got.drawing.image).any()
