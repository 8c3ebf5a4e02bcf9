"""The rollout: (picture,) prompt -> thinking -> image (-> look at it -> thinking -> image ...), as one jitted program."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from unigrpo_jax.config import RolloutConfig, require
from unigrpo_jax.episode import Drawing, Episodes, Look, Picture, Segment, Thinking, TokenBlock
from unigrpo_jax.models.building import context as contexts
from unigrpo_jax.models.building import int8
from unigrpo_jax.models.building.context import Context
from unigrpo_jax.models.building.guidance import Guidance, Guiding
from unigrpo_jax.models.loaded import WordCodec
from unigrpo_jax.models.verbs import Condition, Painter, Thinker
from unigrpo_jax.rollout import randomness
from unigrpo_jax.rollout.dialogue import Dialogue, begin, hear, look
from unigrpo_jax.rollout.drawing import FlowSampler, draw
from unigrpo_jax.rollout.not_finite import blank
from unigrpo_jax.rollout.step_rules import step_rule
from unigrpo_jax.rollout.thinking import TokenSampler, think
from unigrpo_jax.rollout.windows import Window

# A thinking's words, encoded again: a sampled byte that is part of no character becomes U+FFFD, three bytes, and a few
# characters are written as several.
LONGER, ROOM = 3, 16


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
      rounds: of thinking and drawing; each after the first looks at the image drawn before.
      shared_noise: all episodes of a prompt begin at the same noise (DanceGRPO, arXiv 2505.07818).
      micro_batches: pieces of the prompts, one after the other.
      place: applied to the condition of a batch of episodes, to lay it over devices.
      as_text: what decodes a thinking and encodes its words again, to be drawn upon instead of the tokens that were sampled;
        it runs on the host of the only process.  None draws upon the tokens.
      parts: devices that episodes are spread over; on each, a few images are decoded at a time; 0 decodes all at once.
      fps: frames per second at which clips are meant, where such are drawn.
      lay: applied to the episodes of a micro-batch, to lay them over devices; None lays them by the network's `hold`.
      quantised: "int8" samples with the network's weights `in_int8`, made once a call; "none" with them as they are.
      thought: called on the host with `thinking=True` when a thinking is done, and with False when a drawing is that another
        thinking comes after, to tell the two phases' seconds apart; None for no call.
    """

    model: Painter | Thinker
    autoencoder: Any
    group_size: int
    system: tuple[int, ...] = ()
    thinking_tokens: int
    tokens: TokenSampler
    flow: FlowSampler
    window: Window | None
    rounds: int = 1
    shared_noise: bool = False
    micro_batches: int = 1
    place: Callable[[Condition], Condition] | None = None
    as_text: WordCodec | None = None
    parts: int = 0
    fps: float = 24.0
    lay: Callable[[Episodes], Episodes] | None = None
    quantised: Literal["none", "int8"] = "none"
    thought: Callable[..., None] | None = None

    def __call__(
        self, params, autoencoder_params, prompt: Any, seed, step, first_id=0, picture: Picture | None = None,
        turns: tuple[TokenBlock, ...] = (),
    ) -> Episodes:  # fmt: skip
        """Samples `group_size` episodes for each of P prompts.

        Args:
          params: the network's parameters.
          autoencoder_params: the autoencoder's, never trained.
          prompt: P texts as the model reads them, such as left-padded text blocks [P, L].
          seed: integer scalar of the run.
          step: integer scalar of the iteration.
          first_id: global id of the first episode, for a batch that is part of a larger one.
          picture: what each prompt is about, P pictures that are read before the prompts; None where there are none.
          turns: what the user says in each round after the first, left-padded [P, L]; () where nothing is said.

        Returns:
          P * group_size episodes, the group of a prompt in a row.
        """
        if len(turns) not in (0, self.rounds - 1):
            raise ValueError(f"{self.rounds} rounds take {self.rounds - 1} later turns or none, not {len(turns)}")
        params = self.weights(params)
        windows = [self.steps(seed, step, turn) for turn in range(self.rounds)]
        prompts = jax.tree.leaves(prompt)[0].shape[0]
        ids = (first_id + jnp.arange(prompts * self.group_size)).reshape(self.micro_batches, -1)
        pieces = jax.tree.map(lambda x: x.reshape(self.micro_batches, -1, *x.shape[1:]), (prompt, picture, turns))
        piece = lambda args: self._piece(params, autoencoder_params, *args, windows, seed, step)
        if self.micro_batches == 1:
            return piece(jax.tree.map(lambda x: x[0], (pieces, ids)))
        episodes = jax.lax.map(piece, (pieces, ids))
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), episodes)

    def _piece(self, params, autoencoder_params, given, ids_B, windows, seed, step) -> Episodes:
        """The prompts of one micro-batch, prefilled once each and shared by their groups."""
        prompt, picture, turns = given
        rows = lambda tree: jax.tree.map(lambda x: jnp.repeat(x, self.group_size, axis=0), tree)
        hold = self.model.hold or (lambda x: x)
        lay = self.lay or functools.partial(jax.tree.map, hold)
        picture_keys = lambda turn: randomness.round_keys(seed, step, randomness.PICTURE, turn, ids_B)

        count = jax.tree.leaves(prompt)[0].shape[0]
        dialogue, shown = begin(self.model, params, self.system, count), None
        if picture is not None:
            own = picture_keys(0)[:: self.group_size]
            dialogue, shown = self.see(params, autoencoder_params, dialogue, picture.pixels, picture.patches, own)
        dialogue = hear(self.model, params, dialogue, prompt).repeat(self.group_size)
        segments = []
        for turn in range(self.rounds):
            if turn:
                with jax.named_scope("looking"):
                    drawn = self.model.see_again(segments[-1].image)
                    dialogue, seen = self.see(params, autoencoder_params, dialogue, *drawn, picture_keys(turn))
                    segments.append(seen)
                    if turns:
                        segments.append(rows(turns[turn - 1]))
                        dialogue = hear(self.model, params, dialogue, segments[-1])
            dialogue, done = self.act(params, autoencoder_params, dialogue, ids_B, windows[turn], seed, step, turn)
            segments += done
        # All devices share each micro-batch: the whole, whose rows lie in order, would else have some of them draw each.
        media = segments[-1].media
        fps, rate = self.fps if "video" in media else None, self.autoencoder.rate if "audio" in media else None
        episodes = Episodes(prompt=rows(prompt), segments=tuple(segments), picture=rows(shown), fps=fps, rate=rate)
        return lay(blank(episodes, self.model.config.eos_token if self.model.thinks else None))

    def weights(self, params):
        """The network's parameters as episodes are sampled with them."""
        return self.model.in_int8(params) if self.quantised == "int8" else params

    @property
    def thinking_slots(self) -> int:
        """Slots of a thinking's block in the context."""
        if not self.thinking_tokens:
            return 0
        return 2 + (self.thinking_tokens if self.as_text is None else ROOM + LONGER * self.thinking_tokens)

    def steps(self, seed, step, turn) -> jax.Array:
        """The stochastic transitions of a round, int32 [W]; `turn` counts the rounds from 0 and may be traced."""
        if self.window is None:
            return jnp.zeros(0, jnp.int32)
        stream = randomness.WINDOW + randomness.STREAMS * turn
        return self.window.draw(randomness.stream_key(seed, step, stream), step)

    def latent(self, batch: int) -> Any:
        """Shapes and dtypes of the whole latent of so many drawings."""
        one = lambda shape: jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
        return jax.tree.map(one, self.model.latent_shape(self.flow.grid), is_leaf=lambda x: isinstance(x, tuple))

    def see(self, params, autoencoder_params, dialogue: Dialogue, pixels, patches, keys_B) -> tuple[Dialogue, Look]:
        """Reads an image into the context: its clean latents, then its patches where there are any.

        Args:
          params: the network's parameters.
          autoencoder_params: the autoencoder's.
          dialogue: what B samples have read.
          pixels: float32 [B, height, width, 3] in [-1, 1].
          patches: float32 [B, rows, columns, P], or None.
          keys_B: of the autoencoder's sampled latents.

        Returns:
          The dialogue after it, and the image as it was read.
        """
        latent = self.autoencoder.encode(autoencoder_params, pixels, keys_B)
        if not self.model.begins:
            grid = self.model.grid(*pixels.shape[1:3])
            latent = self.model.to_tokens(latent).reshape(latent.shape[0], *grid, -1)
        seen = Look(latent=latent, patches=patches)
        return look(self.model, params, dialogue, seen.latent, seen.patches), seen

    def act(
        self, params, autoencoder_params, dialogue: Dialogue, ids_B, window_W, seed, step, turn
    ) -> tuple[Dialogue, list[Segment]]:
        """One round upon what was read: thinks, which enters the context, and draws, which does not.

        Args:
          params: the network's parameters.
          autoencoder_params: the autoencoder's.
          dialogue: what B samples have read.
          ids_B: their global ids.
          window_W: int32 [W], the stochastic transitions.
          seed: integer scalar of the run.
          step: integer scalar of the iteration.
          turn: number of the round, from 0; may be traced.

        Returns:
          The dialogue after it, and the thinking, where there is one, and the drawing.
        """
        keys = lambda stream, ids=ids_B: randomness.round_keys(seed, step, stream, turn, ids)
        done: list[Segment] = []
        if self.place is not None:
            dialogue = dialogue.replace(full=self.place(dialogue.full))
        if self.thinking_tokens:
            key = keys(randomness.TOKENS)
            with jax.named_scope("thinking"):
                thinking, full = think(self.model, params, dialogue.full, key, self.thinking_tokens, self.tokens)
            if self.as_text is not None:
                full = self._read_as_text(params, dialogue.full, thinking)
            dialogue = dialogue.replace(full=full)
            done.append(thinking)
            if self.thought is not None:
                jax.debug.callback(self.thought, jnp.any(thinking.mask), thinking=True)
        done.append(self._drawing(params, autoencoder_params, dialogue, ids_B, keys, window_W))
        if self.thinking_tokens and self.thought is not None and self.micro_batches * self.rounds > 1:
            jax.debug.callback(self.thought, jnp.any(done[-1].finite), thinking=False)
        return dialogue, done

    def _read_as_text(self, params, context: Context, thinking: Thinking) -> Context:
        """The context after a thinking's words."""
        shape, length = thinking.tokens.shape[:1] + (self.thinking_slots,), self.thinking_slots
        like = TokenBlock(tokens=jax.ShapeDtypeStruct(shape, jnp.int32), valid=jax.ShapeDtypeStruct(shape, jnp.bool_))
        encode = lambda tokens, mask: self.as_text.again(tokens, mask, length)
        block = jax.pure_callback(encode, like, thinking.tokens, thinking.mask)
        return contexts.extend(context, self.model.prefill(params, block.tokens, block.valid, context)[1])

    def _drawing(self, params, autoencoder_params, dialogue, ids_B, keys, window_W) -> Drawing:
        """One round's image."""
        first = ids_B // self.group_size * self.group_size if self.shared_noise else ids_B
        x = randomness.normal_like(keys(randomness.INITIAL_NOISE, first), 0, self.latent(len(ids_B)))
        x = self.model.free(x, dialogue.full) if self.model.begins else x
        decode = lambda latent: self.autoencoder.decode(autoencoder_params, latent)
        others, noise = (dialogue.without_text, dialogue.without_images), keys(randomness.STEP_NOISE)
        return draw(self.model, params, dialogue.full, x, noise, window_W, self.flow, decode, others, self.parts)


def flow_sampler(config: RolloutConfig, model: Painter, guidance: Guiding | None = None) -> FlowSampler:
    """The flow sampler that a rollout config describes."""
    grid = model.grid(*config.size)
    return FlowSampler(
        schedule=tuple(model.times(config.flow_steps, config.timestep_shift, grid).tolist()),
        rule=step_rule(config.step_rule, config.noise_level),
        grid=grid,
        guidance=guidance,
        path=model.path,
        prediction=model.prediction,
        noisy=config.noise_range,
    )


def check_window(flow: FlowSampler, config: RolloutConfig) -> None:
    """ConfigError where the window may hold the schedule's last transition, and that has no noise, and so no ratio."""
    first, end = config.window_range
    if end < flow.steps:
        return
    t, t_next, x = *flow.times()[-2:], jnp.zeros((1, 1, 1))
    require(float(flow.transition(x, x, t, t_next)[1]) > 0,
            f"rollout.window_range = [{first}, {end}) holds the schedule's last transition, where {config.step_rule} has no "
            f"noise; let the range end at {end - 1}.")  # fmt: skip


def training_rollout(
    config: RolloutConfig, model: Painter, autoencoder, group_size: int, system=(), place=None, thought=None, parts=0
) -> RolloutProgram:
    """The rollout of training: a stochastic window, and guidance where the config asks for it."""
    if config.quantised == "int8":
        int8.check_installed("rollout.quantised")
    guidance = Guidance(text=config.guidance, renorm=model.guidance_renorm) if config.guidance > 1 else None
    return RolloutProgram(
        system=system if config.thinking else (),
        model=model,
        autoencoder=autoencoder,
        group_size=group_size,
        thinking_tokens=config.thinking_tokens if config.thinking else 0,
        tokens=TokenSampler(temperature=config.temperature, top_k=config.top_k, top_p=config.top_p),
        flow=flow_sampler(config, model, guidance),
        window=Window(
            size=config.window_size,
            range=config.window_range,
            kind=config.window,
            every=config.window_every,
            stride=config.window_stride,
        ),
        rounds=config.rounds,
        shared_noise=config.shared_noise,
        micro_batches=config.micro_batches,
        place=place,
        parts=parts,
        quantised=config.quantised,
        thought=thought,
        fps=config.frames_per_second,
    )
