"""A conversation of any number of rounds with one reader: text in, thinking and image out, upon one growing context.

A round is what `RolloutProgram` does in a round of its own, by its own verbs: what was drawn before is looked at, the text
is heard, then `act` thinks and draws.  The same texts, pictures and seed give its episode number 0 of step 0 again, up to
rounding, since the caches have other lengths.

Lengths are few, so that few programs are compiled: texts are padded to a power of two, and between rounds a context holds
its valid slots alone, in a cache of a power of two of slots.  Nothing in front ever changes, so an earlier state is a cut.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from unigrpo_jax.config import ConfigError, require
from unigrpo_jax.episode import Picture
from unigrpo_jax.models.building import context as contexts
from unigrpo_jax.models.building.context import Context
from unigrpo_jax.models.loaded import WordCodec
from unigrpo_jax.rollout import randomness
from unigrpo_jax.rollout.dialogue import Dialogue, begin, hear
from unigrpo_jax.rollout.not_finite import finite_rows
from unigrpo_jax.rollout.program import RolloutProgram

LEAST_SLOTS, LEAST_TEXT = 128, 32


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Round:
    """What was said and done in one round.

    Attributes:
      text: the user's words.
      thinking: the model's; empty where it drew without.
      image: uint8 [H, W, 3], what it drew.
      given: the pictures that came before the text, as they were read: uint8 [H, W, 3] each.
    """

    text: str
    thinking: str
    image: np.ndarray
    given: tuple[np.ndarray, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Standing:
    """Where a conversation stands, but for its keys and values.

    Attributes:
      rounds: those that are done.
      given: pictures since the last of them.
      unseen: the image of the last round where it has not been looked at yet, uint8 [1, H, W, 3].
      looked: images read since the last text.
      lengths: valid slots of the two contexts.
      slots: slots of the two contexts.
      ropes: their rotary positions, int32 [1] each.
    """

    rounds: tuple[Round, ...] = ()
    given: tuple[np.ndarray, ...] = ()
    unseen: np.ndarray | None = None
    looked: int = 0
    lengths: tuple[int, int]
    slots: tuple[int, int]
    ropes: tuple[jax.Array, jax.Array]


@functools.partial(jax.jit, static_argnums=0)
def _opening(program: RolloutProgram, params):
    dialogue = begin(program.model, params, program.system, 1)
    return dialogue.full, dialogue.without_images


@functools.partial(jax.jit, static_argnums=0)
def _see(program: RolloutProgram, params, autoencoder_params, full, picture, seed, turn, number):
    """The context after a picture; the `number`-th one before a text has the keys of that id."""
    keys = randomness.round_keys(seed, 0, randomness.PICTURE, turn, number[None])
    dialogue = Dialogue(full=full, without_text=full, without_images=full)
    return program.see(params, autoencoder_params, dialogue, picture.pixels, picture.patches, keys)[0].full


@functools.partial(jax.jit, static_argnums=0)
def _act(program: RolloutProgram, params, autoencoder_params, pair, block, seed, turn):
    """Both contexts after a text and a thinking, the thinking or None, the image, and whether all is finite."""
    full, without_images = pair
    dialogue = Dialogue(full=full, without_text=full, without_images=without_images)
    dialogue = hear(program.model, params, dialogue, block)
    window, ids = program.steps(seed, 0, turn), jnp.arange(1)
    dialogue, done = program.act(params, autoencoder_params, dialogue, ids, window, seed, 0, turn)
    thinking = done[0] if len(done) > 1 else None
    finite = done[-1].finite if thinking is None else done[-1].finite & finite_rows(thinking.log_probs)
    return (dialogue.full, dialogue.without_images), thinking, done[-1].image, finite


_compact = jax.jit(contexts.compact, static_argnums=1)
_cut = jax.jit(contexts.cut, static_argnums=2)


class Conversation:
    """The rounds so far, and what was read in them.

    The program of each call says how it thinks and draws: it may change from round to round, its model and its system
    prompt may not.  A call that raises leaves everything as it was.

    Attributes:
      standing: where it stands.
    """

    def __init__(self, program: RolloutProgram, params, autoencoder_params, codec: WordCodec, *, seed: int, slots: int,
                 text_tokens: int):  # fmt: skip
        """Reads the system prompt.

        Args:
          program: of one episode per prompt.
          params: the network's parameters.
          autoencoder_params: the autoencoder's.
          codec: its words.
          seed: of tokens and noise.
          slots: largest number of slots of a context.
          text_tokens: largest number of tokens of a text, the two around it included.

        Raises:
          ConfigError: not one round fits into the slots.
        """
        self._given = (params, autoencoder_params)
        self._codec, self._seed = codec, np.int32(seed)
        self._most, self._longest = slots, text_tokens
        fits = rounds_that_fit(program, slots)
        require(fits > 0, f"chat_slots = {slots}, but a round takes up to {round_slots(program)} slots; use at least "
                f"{len(program.system) + round_slots(program)}.")  # fmt: skip
        pair = _opening(program, params)
        self._settle(pair, Standing(lengths=(0, 0), slots=(0, 0), ropes=(pair[0].rope, pair[1].rope)))
        self._before: list[Standing] = []

    @property
    def rounds(self) -> tuple[Round, ...]:
        """The rounds so far."""
        return self.standing.rounds

    @property
    def contexts(self) -> tuple[Context, Context]:
        """What was read, compact: everything, and all but images and thinking."""
        return self._pair

    def give(self, program: RolloutProgram, picture: Picture) -> None:
        """Reads a picture, one of a batch; first the image drawn last, where it has not been looked at.

        ConfigError where it does not fit into the memory.
        """
        before = self.standing
        rows = block_slots(program, picture.pixels.shape[1:3], picture.patches)
        self._check_room(program, rows, "this picture", further=True)
        full, looked = self._catch_up(program)
        number = np.int32(looked)
        full = _see(program, *self._given, full, picture, self._seed, np.int32(len(self.rounds)), number)
        self._settle((full, self._pair[1]), dataclasses.replace(
            before, given=(*before.given, picture.levels[0]), unseen=None, looked=looked + 1))  # fmt: skip
        self._before.append(before)

    def say(self, program: RolloutProgram, text: str) -> Round:
        """One round: looks at what was drawn, hears the text, thinks, draws.

        ConfigError where the text is too long, the memory too small, or the model's numbers are not finite.
        """
        before, turn = self.standing, np.int32(len(self.rounds))
        count = len(self._codec.ids(text))
        require(count <= self._longest, f"the text has {count} tokens with the two around it, more than the "
                f"{self._longest} that a turn may have; shorten it, or begin with --chat-tokens {count}.")  # fmt: skip
        bucket = min(_power(count, LEAST_TEXT), self._longest)
        self._check_room(program, count + program.thinking_slots, "this round")
        full, _ = self._catch_up(program)
        block = self._codec.prompts([text], bucket)
        pair, thinking, image, finite = _act(program, *self._given, (full, self._pair[1]), block, self._seed, turn)
        require(bool(finite[0]), "the model gave numbers that are not finite, so this round was left out; say it otherwise.")
        image = np.asarray(image)
        done = Round(text=text, thinking=self._codec.thoughts(thinking, 1)[0], image=image[0], given=before.given)
        self._settle(pair, dataclasses.replace(before, rounds=(*self.rounds, done), given=(), unseen=image, looked=0))
        self._before.append(before)
        return done

    def undo(self) -> Round | None:
        """Takes back the last round, or the picture given after it: everything is as before, bit for bit.

        Returns:
          The round; None where it was a picture.  ConfigError where there is neither.
        """
        require(bool(self._before), "there is nothing to take back.")
        now, self.standing = self.standing, self._before.pop()
        past = zip(self._pair, self.standing.lengths, self.standing.slots, self.standing.ropes, strict=True)
        self._pair = tuple(_cut(*each) for each in past)
        return now.rounds[-1] if len(now.rounds) > len(self.rounds) else None

    def _catch_up(self, program: RolloutProgram) -> tuple[Context, int]:
        """The full context after a look at what was drawn last, and how many images it has seen since the last text."""
        full, unseen = self._pair[0], self.standing.unseen
        if unseen is None:
            return full, self.standing.looked
        picture, turn = Picture(*_again(program, unseen)), np.int32(len(self.rounds))
        return _see(program, *self._given, full, picture, self._seed, turn, np.int32(0)), 1

    def _settle(self, pair: tuple[Context, Context], standing: Standing) -> None:
        """Makes contexts compact, and remembers where they end."""
        lengths = tuple(int(np.sum(context.valid)) for context in pair)
        slots = tuple(min(_power(n, LEAST_SLOTS), max(n, self._most)) for n in lengths)
        self._pair = tuple(_compact(context, n) for context, n in zip(pair, slots, strict=True))
        ropes = (pair[0].rope, pair[1].rope)
        self.standing = dataclasses.replace(standing, lengths=lengths, slots=slots, ropes=ropes)

    def _check_room(self, program: RolloutProgram, more: int, what: str, further: bool = False) -> None:
        unseen = self.standing.unseen
        if unseen is not None:
            more += image_slots(program, unseen.shape[1:3])
        read = self.standing.lengths[0]
        left = "" if not further else ", and then there is the round itself"
        if read + more > self._most:
            size = slot_bytes(program) * self._most / 2**20
            raise ConfigError(
                f"{what} may take {more} slots{left}, the conversation has read {read}, and --chat-slots is {self._most} "
                f"({size:.4g} MiB), which holds about {rounds_that_fit(program, self._most)} rounds; /undo takes rounds "
                f"back, /save keeps them, --chat-slots {_power(read + more, 2 * self._most)} gives more memory."
            )


def block_slots(program: RolloutProgram, size: tuple[int, int], patches) -> int:
    """Slots of a picture of `size`, (height, width): its latents, and its patches where there are any."""
    rows, columns = program.model.grid(*size)
    return rows * columns + 2 + (0 if patches is None else patches.shape[1] * patches.shape[2] + 2)


def image_slots(program: RolloutProgram, size: tuple[int, int]) -> int:
    """Slots of a drawn image of `size`, (height, width), once it is looked at."""
    _, patches = jax.eval_shape(program.model.see_again, jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8))
    return block_slots(program, size, patches)


def round_slots(program: RolloutProgram, text: int = LEAST_TEXT) -> int:
    """Most slots that a round adds after a text of `text` tokens, its image looked at in the next one."""
    latent = jax.eval_shape(lambda x: program.model.to_latent(x, program.flow.grid), program.latent(1))
    side = program.autoencoder.downsample
    return text + program.thinking_slots + image_slots(program, (latent.shape[1] * side, latent.shape[2] * side))


def slot_bytes(program: RolloutProgram) -> int:
    """Bytes of one slot: a key and a value in every layer."""
    empty = jax.eval_shape(lambda: contexts.reserve(program.model.empty(1), 1))
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in (empty.keys, empty.values))


def rounds_that_fit(program: RolloutProgram, slots: int) -> int:
    """Rounds that a context of `slots` slots surely holds, thinkings at their longest and texts of LEAST_TEXT tokens."""
    return max(0, (slots - len(program.system)) // round_slots(program))


def _power(count: int, least: int) -> int:
    """The smallest `least` times a power of two that is at least `count`."""
    while least < count:
        least *= 2
    return least


@functools.partial(jax.jit, static_argnums=0)
def _again(program: RolloutProgram, image_BHWC):
    return program.model.see_again(image_BHWC)
