"""A tiny network with random weights, and settings to match: two layers, 32 tokens, images of 12 x 8 pixels.

No weight is zero, not even the flow head that training starts from, so that no path through the network is dead.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests.quick import OPTIONS
from unigrpo_jax.config import LearningConfig, RolloutConfig
from unigrpo_jax.episode import TokenBlock
from unigrpo_jax.learning import parameters
from unigrpo_jax.learning.objective import Objective
from unigrpo_jax.learning.policy import Policy
from unigrpo_jax.learning.update import UpdateProgram, new_state
from unigrpo_jax.models.autoencoders.pixels import PixelAutoencoder
from unigrpo_jax.models.bagel import Bagel, BagelConfig
from unigrpo_jax.models.schedule import timesteps
from unigrpo_jax.rollout.drawing import FlowSampler
from unigrpo_jax.rollout.program import RolloutProgram, training_rollout
from unigrpo_jax.rollout.step_rules import step_rule

BOS, EOS, IMAGE_START, IMAGE_END, PAD = 1, 2, 3, 4, 0
CONFIG = BagelConfig(
    vocab_size=32, hidden_size=32, intermediate_size=48, layers=2, heads=4, kv_heads=2, rope_theta=100.0,
    bos_token=BOS, eos_token=EOS, image_start_token=IMAGE_START, image_end_token=IMAGE_END, pad_token=PAD,
    latent_channels=3, latent_patch=4, max_latent_size=4, frequency_size=16,
)  # fmt: skip
MODEL = Bagel(CONFIG)
GRID = (3, 2)

PROMPTS, GROUP = 4, 4
ROLLOUT = dataclasses.replace(
    RolloutConfig(), prompts_per_iteration=PROMPTS, prompt_tokens=7, thinking_tokens=6, temperature=0.7,
    image_height=12, image_width=8, flow_steps=5, window_size=2, window_range=(0, 4),
)  # fmt: skip
LEARNING = dataclasses.replace(  # an epsilon far above rounding: Adam would otherwise blow that up to whole steps
    LearningConfig(), group_size=GROUP, flow_clip=0.002, mse_weight=0.3, adam_eps=0.01,
    reasoning_lr=1e-3, denoising_lr=2e-3,
)
EPISODES = PROMPTS * GROUP

jit = functools.partial(jax.jit, compiler_options=OPTIONS)  # whatever XLA_FLAGS says


@functools.cache
def params(seed: int = 0, stop: float = 0.75) -> dict:
    """Random parameters; `stop` makes EOS likelier, 0.75 so that about half of the chains end before they are cut."""
    fresh = jax.jit(MODEL.init)(jax.random.key(seed))
    leaves, tree = jax.tree.flatten(jax.tree.map(np.asarray, fresh))
    rng = np.random.default_rng(seed)
    leaves = [x + 0.15 * rng.standard_normal(x.shape, np.float32) for x in leaves]
    out = jax.tree.unflatten(tree, leaves)
    common = np.sign(rng.standard_normal(CONFIG.hidden_size)).astype(np.float32)
    out["embed"]["embedding"] += 0.5 * common  # a direction that every hidden state shares, read by the EOS logit
    out["lm_head"]["kernel"][:, EOS] += stop * common / CONFIG.hidden_size**0.5
    return jax.tree.map(jnp.asarray, out)


def nearby(tree: dict, size: float, seed: int = 7) -> dict:
    """The parameters moved by `size` times a random direction: another policy, not far away."""
    leaves, structure = jax.tree.flatten(tree)
    rng = np.random.default_rng(seed)
    moved = [x + size * rng.standard_normal(x.shape).astype(np.float32) for x in leaves]
    return jax.tree.unflatten(structure, moved)


def prompts(lengths=(2, 5, 3, 1), bucket: int = 7, garbage: int = PAD, seed: int = 3) -> TokenBlock:
    """Left-padded prompts, BOS and EOS around `lengths` random tokens; `garbage` stands in the padding."""
    tokens = np.full((len(lengths), bucket), garbage, np.int32)
    valid = np.zeros((len(lengths), bucket), bool)
    rng = np.random.default_rng(seed)
    for row, n in enumerate(lengths):
        tokens[row, bucket - n - 2 :] = [BOS, *rng.integers(5, CONFIG.vocab_size, n), EOS]
        valid[row, bucket - n - 2 :] = True
    return TokenBlock(tokens=jnp.asarray(tokens), valid=jnp.asarray(valid))


def rollout_program(group: int = GROUP, model: Bagel = MODEL, **changes) -> RolloutProgram:
    """The rollout of training with single settings changed."""
    return training_rollout(dataclasses.replace(ROLLOUT, **changes), model, PixelAutoencoder(), group)


def policy(
    context_gradient: str = "full", rule: str = "flow_sde", noise_level: float = 0.8, window_steps: str = "batched",
    leash_times: tuple[float, ...] = (),
) -> Policy:  # fmt: skip
    """The policy that the rollouts of `rollout_program` are made with."""
    program = rollout_program()
    flow = FlowSampler(
        schedule=tuple(timesteps(ROLLOUT.flow_steps, ROLLOUT.timestep_shift).tolist()),
        rule=step_rule(rule, noise_level),
        grid=GRID,
    )
    return Policy(
        model=MODEL, tokens=program.tokens, flow=flow, context_gradient=context_gradient, window_steps=window_steps,
        leash_times=leash_times,
    )  # fmt: skip


def objective(rule: str = "flow_sde", noise_level: float = 0.8, **changes) -> Objective:
    """The loss with single settings changed."""
    config = dataclasses.replace(LEARNING, **changes)
    own = policy(config.context_gradient, rule, noise_level, config.window_steps, config.leash_times)
    return Objective(policy=own, config=config)


class Told(Policy):
    """A policy that is its views: what is made of them compiles without the network."""

    def view(self, params, episodes):
        """What was given as the parameters."""
        return params


def told(loss: Objective) -> Objective:
    """The same loss, given views (`view`) wherever it takes parameters."""
    fields = {field.name: getattr(loss.policy, field.name) for field in dataclasses.fields(Policy)}
    return dataclasses.replace(loss, policy=Told(**fields))


def update_program(**changes) -> UpdateProgram:
    """The update with single settings changed."""
    loss = objective(**changes)
    return UpdateProgram(objective=loss, config=loss.config)


def advantages(seed: int = 5, count: int = EPISODES) -> jax.Array:
    """Advantages [B] of both signs, none of them 0."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.choice([-1, 1], count) * rng.uniform(0.5, 2, count), jnp.float32)


def assert_trees_equal(a, b) -> None:
    """Bit equality, leaf by leaf; keys and counts included."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert x.dtype == y.dtype and x.tobytes() == y.tobytes(), jax.tree_util.keystr(path)


def assert_episodes_equal(a, b, limit: float = 1e-5) -> None:
    """Tokens, masks and window equal; floats within `limit`; pixels within one level (truncation is a step)."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        name, x, y = jax.tree_util.keystr(path), np.asarray(x), np.asarray(y)
        assert x.dtype == y.dtype and x.shape == y.shape, name
        if x.dtype == np.uint8:
            assert np.abs(x.astype(int) - y).max() <= 1 and np.mean(x != y) < 0.01, name
        elif np.issubdtype(x.dtype, np.floating):
            np.testing.assert_allclose(x, y, rtol=0, atol=limit, err_msg=name)
        else:
            np.testing.assert_array_equal(x, y, err_msg=name)


@functools.cache
def rollout():
    """The rollout program of all tests, jitted: (params, {}, prompts, seed, step, first_id) -> episodes."""
    return jit(rollout_program().__call__)


@functools.cache
def episodes(seed: int = 0, step: int = 0):
    """Episodes of `params()` upon `prompts()`."""
    return rollout()(params(), {}, prompts(), seed, step, 0)


@functools.cache
def view():
    """The policy's view of episodes, jitted: (params, episodes) -> views."""
    return jit(policy().view)


def spoil(batch, token: int = 9):
    """The same episodes with another token wherever one is masked, in prompts and in thinkings."""
    prompt, thinking, drawing = batch.prompt, *batch.segments
    prompt = prompt.replace(tokens=jnp.where(prompt.valid, prompt.tokens, token))
    thinking = thinking.replace(
        tokens=jnp.where(thinking.mask, thinking.tokens, token),
        log_probs=jnp.where(thinking.mask, thinking.log_probs, -7.0),
    )
    return batch.replace(prompt=prompt, segments=(thinking, drawing))


@functools.cache
def _update(**changes):
    return jit(update_program(**changes).__call__)


def updated(batch, advantages, start, reference=None, **changes):
    """One update of `start`: (state, metrics); the leash holds to `start` where no reference is given."""
    config = update_program(**changes).config
    _, frozen = parameters.split(start, parameters.groups(start, config, MODEL.trained_by))
    reference = start if reference is None else reference
    return _update(**changes)(new_state(start, config, MODEL.trained_by), frozen, reference, batch, advantages)


def assert_updates_agree_in_pieces(batch, advantages, start) -> list[dict]:
    """One update of a batch, whole and in three micro-batches, moves every parameter alike; the metrics of both."""
    outcomes = [updated(batch, advantages, start, micro_batches=count) for count in (1, 3)]
    assert all(metrics["update/skipped"] == 0 for _, metrics in outcomes)
    (one, _), (other, _) = outcomes
    for path, x in one.trained.items():
        np.testing.assert_allclose(x, other.trained[path], atol=2e-6, err_msg=path)
    return [metrics for _, metrics in outcomes]
