"""The rollout: prompts -> thinking -> image, as one jitted program."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from unigrpo_jax.config import RolloutConfig
from unigrpo_jax.episode import Episodes, TokenBlock
from unigrpo_jax.models.bagel.context import Context
from unigrpo_jax.models.bagel.guidance import Guidance
from unigrpo_jax.models.bagel.latents import patchify
from unigrpo_jax.models.bagel.network import Bagel
from unigrpo_jax.models.bagel.pictures import Picture
from unigrpo_jax.rollout import randomness
from unigrpo_jax.rollout.dialogue import begin, hear, look
from unigrpo_jax.rollout.drawing import FlowSampler, draw
from unigrpo_jax.rollout.not_finite import blank
from unigrpo_jax.rollout.step_rules import step_rule
from unigrpo_jax.rollout.thinking import TokenSampler, think
from unigrpo_jax.rollout.windows import Window


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutProgram:
    """prompts -> episodes, a pure function of (params, prompts, seed, step); hashable, so that it can be jitted.

    Attributes:
      model: the network.
      autoencoder: latents to images.
      group_size: episodes per prompt.
      system: tokens of the block that is read before the prompt; none where it is empty.
      thinking_tokens: largest number of thinking tokens; 0 draws without thinking.
      tokens: how tokens are drawn.
      flow: how images are drawn.
      window: the stochastic transitions; None is the pure ODE.
      shared_noise: all episodes of a prompt begin at the same noise (DanceGRPO, arXiv 2505.07818).
      micro_batches: pieces of the prompts, one after the other.
      place: applied to the context of a batch of episodes, to lay it over devices.
      parts: devices that episodes are spread over; on each, a few images are decoded at a time; 0 decodes all at once.
      thought: called on the host when the thinking is done, to tell the two phases' seconds apart; None for no call.
    """

    model: Bagel
    autoencoder: Any
    group_size: int
    system: tuple[int, ...] = ()
    thinking_tokens: int
    tokens: TokenSampler
    flow: FlowSampler
    window: Window | None
    shared_noise: bool = False
    micro_batches: int = 1
    place: Callable[[Context], Context] | None = None
    parts: int = 0
    thought: Callable[[Any], None] | None = None

    def __call__(
        self, params, autoencoder_params, prompt: TokenBlock, seed, step, first_id=0, picture: Picture | None = None
    ) -> Episodes:
        """Samples `group_size` episodes for each of P prompts.

        Args:
          params: the network's parameters.
          autoencoder_params: the autoencoder's, never trained.
          prompt: left-padded text blocks, [P, L].
          seed: integer scalar of the run.
          step: integer scalar of the iteration.
          first_id: global id of the first episode, for a batch that is part of a larger one.
          picture: what each prompt is about, P pictures read before the prompts; for use, training reads none yet.

        Returns:
          P * group_size episodes, the group of a prompt in a row.
        """
        window = jnp.zeros(0, jnp.int32)
        if self.window is not None:
            window = self.window.draw(randomness.stream_key(seed, step, randomness.WINDOW), step)
        prompts = prompt.tokens.shape[0]
        ids = (first_id + jnp.arange(prompts * self.group_size)).reshape(self.micro_batches, -1)
        pieces = jax.tree.map(lambda x: x.reshape(self.micro_batches, -1, *x.shape[1:]), (prompt, picture))
        piece = lambda args: self._piece(params, autoencoder_params, *args, window, seed, step)
        if self.micro_batches == 1:
            return piece(jax.tree.map(lambda x: x[0], (pieces, ids)))
        episodes = jax.lax.map(piece, (pieces, ids))
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), episodes)

    def _piece(self, params, autoencoder_params, given, ids_B, window_W, seed, step) -> Episodes:
        """The prompts of one micro-batch, prefilled once each and shared by their groups."""
        prompt, picture = given
        keys = lambda stream, ids=ids_B: randomness.sample_keys(randomness.stream_key(seed, step, stream), ids)
        dialogue = begin(self.model, params, self.system, prompt.tokens.shape[0])
        if picture is not None:
            own = keys(randomness.PICTURE)[:: self.group_size]
            latent = self.autoencoder.encode(autoencoder_params, picture.pixels, own)
            patch = self.model.config.latent_patch
            grid = (latent.shape[1] // patch, latent.shape[2] // patch)
            latent = patchify(latent, patch).reshape(latent.shape[0], *grid, -1)
            dialogue = look(self.model, params, dialogue, latent, picture.patches)
        dialogue = hear(self.model, params, dialogue, prompt).repeat(self.group_size)
        context, others = dialogue.full, (dialogue.without_text, dialogue.without_images)
        if self.place is not None:
            context = self.place(context)
        segments = []
        if self.thinking_tokens:
            key = keys(randomness.TOKENS)
            with jax.named_scope("thinking"):
                thinking, context = think(self.model, params, context, key, self.thinking_tokens, self.tokens)
            segments.append(thinking)
            if self.thought is not None:
                jax.debug.callback(self.thought, jnp.any(thinking.mask))
        shape = (self.flow.grid[0] * self.flow.grid[1], self.model.config.latent_width)
        first = ids_B // self.group_size * self.group_size if self.shared_noise else ids_B
        x, noise = randomness.normal(keys(randomness.INITIAL_NOISE, first), 0, shape), keys(randomness.STEP_NOISE)
        decode = lambda latent: self.autoencoder.decode(autoencoder_params, latent)
        segments.append(draw(self.model, params, context, x, noise, window_W, self.flow, decode, others, self.parts))
        repeated = jax.tree.map(lambda x: jnp.repeat(x, self.group_size, axis=0), prompt)
        # All devices share each micro-batch: the whole, whose rows lie in order, would else have some of them draw each.
        episodes = blank(Episodes(prompt=repeated, segments=tuple(segments)), self.model.config.eos_token)
        return jax.tree.map(self.model.hold or (lambda x: x), episodes)


def flow_sampler(config: RolloutConfig, model: Bagel, guidance: Guidance | None = None) -> FlowSampler:
    """The flow sampler that a rollout config describes."""
    return FlowSampler(
        steps=config.flow_steps,
        shift=config.timestep_shift,
        rule=step_rule(config.step_rule, config.noise_level),
        grid=model.config.grid(config.image_height, config.image_width),
        guidance=guidance,
    )


def training_rollout(
    config: RolloutConfig, model: Bagel, autoencoder, group_size: int, system=(), place=None, thought=None, parts=0
) -> RolloutProgram:
    """The rollout of training: no guidance, a stochastic window."""
    return RolloutProgram(
        system=system if config.thinking else (),
        model=model,
        autoencoder=autoencoder,
        group_size=group_size,
        thinking_tokens=config.thinking_tokens if config.thinking else 0,
        tokens=TokenSampler(temperature=config.temperature, top_k=config.top_k, top_p=config.top_p),
        flow=flow_sampler(config, model, Guidance(text=config.guidance) if config.guidance > 1 else None),
        window=Window(
            size=config.window_size,
            range=config.window_range,
            kind=config.window,
            every=config.window_every,
            stride=config.window_stride,
        ),
        shared_noise=config.shared_noise,
        micro_batches=config.micro_batches,
        place=place,
        parts=parts,
        thought=thought,
    )
