"""Floating point operations of the network and of a run, by formula; nothing is compiled.

Counted are the products of matrices, 2 operations for each multiply-add; norms, rotations, softmax, adapters and
sampling are left out.  Every formula comes in two readings:

  seen        what the mathematics needs: a token of a text block sees the context and the block up to itself, and logits
              are made where a token is drawn or judged.  This is what a utilisation (MFU) is a share of.
  executed    what dense attention computes: all slots of the context, reserved ones too, and the whole block.

Buckets are counted as full; give `Lengths` that were measured to count less.

An episode of R rounds draws round r upon slots(r) = before + r (look + turn + thinking) of context, so that most of its cost
is R times that of a round, and attention upon what lies before adds a part that grows with R^2.
"""

import dataclasses
import math
from collections.abc import Callable

from unigrpo_jax.config import RunConfig
from unigrpo_jax.models.bagel.config import BagelConfig
from unigrpo_jax.models.bagel.pictures import vision_rule
from unigrpo_jax.models.building.guidance import Guidance

MARKERS = 2  # image_start and image_end go through the `und` expert


@dataclasses.dataclass(frozen=True)
class Flops:
    """Operations of the network's verbs for one sample.

    Attributes:
      config: the network's sizes.
      executed: count dense attention as it is executed, instead of what is seen.
    """

    config: BagelConfig
    executed: bool = False

    @property
    def expert_weights(self) -> int:
        """Numbers in the seven matrices of one expert of one layer: q, k, v, o, gate, up, down."""
        c = self.config
        return c.hidden_size * c.head_dim * 2 * (c.heads + c.kv_heads) + 3 * c.hidden_size * c.intermediate_size

    def attention(self, length: float, slots: float, causal: bool) -> float:
        """Scores and weighted sums of a block of `length` tokens upon a context of `slots`, all layers."""
        block = (length + 1) / 2 if causal and not self.executed else length
        return self.config.layers * 4 * self.config.hidden_size * length * (slots + block)

    def text(self, length: float, slots: float) -> float:
        """A text block of `length` tokens upon a context of `slots`, without the LM head."""
        matrices = 2 * self.config.layers * self.expert_weights * length
        return matrices + self.attention(length, slots, causal=True)

    def logits(self, length: float) -> float:
        """The LM head on `length` tokens."""
        return 2 * self.config.hidden_size * self.config.vocab_size * length

    def decode(self, slots: float) -> float:
        """One token upon a context of `slots`, with its logits."""
        return self.text(1, slots) + self.logits(1)

    def velocity_layers(self, latents: int, slots: float) -> float:
        """The layers' part of `velocity`: what is computed again where layers are rematerialised."""
        length = latents + MARKERS
        matrices = 2 * self.config.layers * self.expert_weights * length
        return matrices + self.attention(length, slots, causal=False)

    def velocity(self, latents: int, slots: float) -> float:
        """One velocity of `latents` tokens upon a context of `slots`: markers, layers, time embedder, both latent maps."""
        c = self.config
        ends = latents * 2 * c.latent_width * c.hidden_size
        time = (c.frequency_size + c.hidden_size) * c.hidden_size
        return self.velocity_layers(latents, slots) + 2 * (ends + time)

    def look_layers(self, latents: int, patches: int, slots: float) -> float:
        """The layers' part of `look`."""
        length, then = patches + MARKERS, slots + latents + MARKERS
        block = 2 * self.config.layers * self.expert_weights * length + self.attention(length, then, causal=False)
        return self.velocity_layers(latents, slots) + (block if patches else 0)

    def look(self, latents: int, patches: int, slots: float) -> float:
        """Reads an image upon a context of `slots`: its clean latents, then its patches; without the encoder of these."""
        c = self.config
        once = latents * c.latent_width + c.frequency_size + c.hidden_size  # latent map, time embedder
        return self.look_layers(latents, patches, slots) + 2 * once * c.hidden_size

    def encoder(self, patches: int) -> float:
        """The vision encoder and the connector on the patches of one image; they are never trained."""
        v, width = self.config.vision, self.config.hidden_size
        if not patches:
            return 0
        layer = 4 * v.hidden_size**2 + 2 * v.hidden_size * v.intermediate_size + 2 * v.hidden_size * patches
        weights = v.patch_width * v.hidden_size + v.layers * layer + (v.hidden_size + width) * width
        return 2 * patches * weights


@dataclasses.dataclass(frozen=True)
class ExpertFlops(Flops):
    """Of these operations the products with the experts' matrices alone: what a rollout in int8 makes so."""

    def attention(self, length: float, slots: float, causal: bool) -> float:
        """None."""
        return 0

    def logits(self, length: float) -> float:
        """None."""
        return 0

    def velocity(self, latents: int, slots: float) -> float:
        """The layers' part."""
        return self.velocity_layers(latents, slots)

    def look(self, latents: int, patches: int, slots: float) -> float:
        """The layers' part."""
        return self.look_layers(latents, patches, slots)

    def encoder(self, patches: int) -> float:
        """None."""
        return 0


def decode_weight_bytes(config: BagelConfig, itemsize: int) -> int:
    """Bytes of weights that one step of decoding reads, whatever the batch: the `und` expert and the LM head."""
    c = config
    vectors = 2 * c.hidden_size + 2 * c.head_dim + (c.heads + 2 * c.kv_heads) * c.head_dim  # norms' scales, q k v biases
    layer = Flops(c).expert_weights + vectors
    return itemsize * (c.layers * layer + c.hidden_size + c.vocab_size * c.hidden_size)


def cache_bytes(config: BagelConfig, slots: float, itemsize: int) -> float:
    """Bytes of the keys and values of one sample's context: what one step of decoding reads for each episode."""
    return 2 * config.layers * slots * config.kv_heads * config.head_dim * itemsize


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lengths:
    """Tokens of one episode; means may be fractions.

    Attributes:
      system: of the system prompt's block; 0 where there is none.
      prompt: of the prompt's block.
      thinking: actions M of a round; its block has two tokens more. None draws without thinking.
      latents: latent tokens N.
      patches: of an image that is looked at; 0 where the model has no vision encoder.
      rounds: R.
      turn: of what the user says in each later round; 0 where nothing is said.
      picture: whether an image is looked at before the prompt.
    """

    system: float
    prompt: float
    thinking: float | None
    latents: int
    patches: int = 0
    rounds: int = 1
    turn: float = 0
    picture: bool = False

    @property
    def look(self) -> int:
        """Slots of an image that is looked at."""
        return self.latents + MARKERS + (self.patches + MARKERS if self.patches else 0)

    @property
    def shown(self) -> float:
        """Slots before the prompt: system prompt and picture."""
        return self.system + self.picture * self.look

    @property
    def before_thinking(self) -> float:
        """Slots before the first round's thinking."""
        return self.shown + self.prompt

    @property
    def thought(self) -> float:
        """Slots of a thinking."""
        return 0 if self.thinking is None else self.thinking + 2

    def drawn_upon(self, turn: int) -> float:
        """Slots that the image of round `turn`, from 0, is drawn upon."""
        return self.before_thinking + self.thought + turn * (self.look + self.turn + self.thought)

    def heard(self, turn: int) -> float:
        """Slots before the last text that round `turn` hears: what text guidance compares with."""
        return self.drawn_upon(turn) - self.thought - (self.turn if turn else self.prompt)

    def said(self, turn: int) -> float:
        """Slots of system prompt and texts up to round `turn`, without images and thinking: for image guidance."""
        return self.system + self.prompt + turn * self.turn

    @property
    def context(self) -> float:
        """Slots of a whole episode, which its last image is drawn upon."""
        return self.drawn_upon(self.rounds - 1)

    def blocks(self) -> list[dict[str, float]]:
        """Slots that each round adds to the context, by what fills them."""
        image = {"latents": self.latents + MARKERS, "patches": self.patches + MARKERS if self.patches else 0}
        first = {"system": self.system, **(image if self.picture else {}), "prompt": self.prompt, "thinking": self.thought}
        later = {**image, "turn": self.turn, "thinking": self.thought}
        filled = lambda block: {name: slots for name, slots in block.items() if slots}
        return [filled(first)] + [filled(later)] * (self.rounds - 1)


def lengths(run: RunConfig, config: BagelConfig, system: int, pictures: bool = False, turns: bool = False) -> Lengths:
    """The buckets of a run.

    Args:
      run: the settings.
      config: the network.
      system: tokens in the system prompt's block.
      pictures: whether each prompt comes with a picture.
      turns: whether the user says something in each later round.
    """
    rollout = run.rollout
    rows, columns = config.grid(rollout.image_height, rollout.image_width)
    return Lengths(
        system=system if rollout.thinking else 0,
        prompt=rollout.prompt_tokens,
        thinking=rollout.thinking_tokens if rollout.thinking else None,
        latents=rows * columns,
        patches=patches(config, rollout.image_height, rollout.image_width),
        rounds=rollout.rounds,
        turn=rollout.prompt_tokens if turns else 0,
        picture=pictures,
    )


def patches(config: BagelConfig, height: int, width: int) -> int:
    """Patches that the vision encoder sees of an image; 0 where there is none."""
    if config.vision is None:
        return 0
    width, height = vision_rule(config.vision).size(width, height)
    return math.prod(config.vision.grid(height, width))


def rollout(run: RunConfig, count: Flops, n: Lengths, passes: int | None = None) -> dict[str, float]:
    """Operations of one iteration's rollout, all episodes, by phase; the autoencoder is left out.

      prefill    system prompt, once per micro-batch; picture and prompt, once per group
      looking    the image drawn before and what the user says then, in every round but the first
      thinking   of every round, token by token
      drawing    of every round, `passes` velocities a transition; None is what the settings train with
    """
    r = run.rollout
    given = count.text(n.prompt, n.shown) + (_look(count, n, n.system) if n.picture else 0)
    prefill = r.micro_batches * count.text(n.system, 0) + r.prompts_per_iteration * given
    looking = sum(_between(count, n, turn) for turn in range(1, n.rounds))
    thinking = sum(_thinking(count, n, turn) for turn in range(n.rounds))
    passes = velocities_per_transition(run) if passes is None else passes
    drawing = r.flow_steps * sum(_velocities(passes, count.velocity, n, turn) for turn in range(n.rounds))
    each = {"looking": looking, "thinking": thinking, "drawing": drawing}
    return {"prefill": prefill} | {phase: run.episodes * amount for phase, amount in each.items()}


def _look(count: Flops, n: Lengths, slots: float) -> float:
    return count.look(n.latents, n.patches, slots) + count.encoder(n.patches)


def _between(count: Flops, n: Lengths, turn: int) -> float:
    """What is read at the start of a later round: the image drawn before, and what the user says."""
    drawn = n.drawn_upon(turn - 1)
    return _look(count, n, drawn) + (count.text(n.turn, drawn + n.look) if n.turn else 0)


def _thinking(count: Flops, n: Lengths, turn: int) -> float:
    """Sampling of one thinking."""
    if n.thinking is None:
        return 0
    slots = n.drawn_upon(turn)
    if count.executed:  # the slots are reserved from the start, and every token read has logits
        return n.thought * count.decode(slots)
    return count.text(n.thought, slots - n.thought) + count.logits(n.thinking)


def velocities_per_transition(run: RunConfig) -> int:
    """Passes of the network in one transition of the rollout or the update."""
    return Guidance(text=run.rollout.guidance).passes


def _velocities(passes: int, velocity: Callable[[int, float], float], n: Lengths, turn: int) -> float:
    """Operations of one transition of round `turn`: upon everything, and upon what guidance compares with."""
    upon = (n.drawn_upon(turn), n.heard(turn), n.said(turn))
    return sum(velocity(n.latents, slots) for slots in upon[:passes])


def update(run: RunConfig, count: Flops, n: Lengths) -> dict[str, float]:
    """Operations of one iteration's update, all episodes, by pass.

      reference   forward under the frozen weights, where they are kept, with logits only where the text KL asks for them
      old         forward at the iteration's start, where the first ratio is not 1 by construction
      forward     of the trained policy, every PPO epoch
      backward    twice the forward but for the vision encoder; once with adapters, whose own gradients are left out
      remat       the layers' forward again, in `executed` alone

    A forward reads the system prompt once per micro-batch, and all that an episode has read, and W window steps of each of
    its images and K states of `leash_times`, to which `old` has nothing to say.
    """
    learning, model = run.learning, run.model
    pieces, turns = learning.minibatches * learning.micro_batches, range(n.rounds)
    looks = [n.system] * n.picture + [n.drawn_upon(turn - 1) for turn in turns[1:]]
    thoughts = sum(0 if n.thinking is None else count.text(n.thought, n.drawn_upon(turn) - n.thought) for turn in turns)
    said = count.text(n.prompt, n.shown)
    said += sum(count.text(n.turn, n.heard(turn)) for turn in turns[1:]) if n.turn else 0
    logits = 0 if n.thinking is None else run.trained_episodes * n.rounds * count.logits(n.thinking)
    texts = pieces * count.text(n.system, 0) + run.trained_episodes * (said + thoughts)
    seen = run.trained_episodes * sum(count.look(n.latents, n.patches, slots) for slots in looks)
    layers_seen = run.trained_episodes * sum(count.look_layers(n.latents, n.patches, slots) for slots in looks)
    encoder = run.trained_episodes * len(looks) * count.encoder(n.patches)
    passes = velocities_per_transition(run)
    moved = lambda velocity: run.trained_episodes * sum(_velocities(passes, velocity, n, turn) for turn in turns)
    read = texts + seen + encoder
    forward = read + run.trained_states * moved(count.velocity)
    layers = texts + layers_seen + run.trained_states * moved(count.velocity_layers)
    own_start = learning.ppo_epochs * learning.minibatches == 1 and not learning.keeps_old
    recorded = learning.old_log_probs == "rollout" or own_start
    trained = learning.ppo_epochs * (forward + logits)
    return {
        "reference": 0 if learning.reference == "none" else forward + (logits if learning.text_kl_weight > 0 else 0),
        "old": 0 if recorded else read + run.rollout.window_size * moved(count.velocity) + logits,
        "forward": trained,
        "backward": (trained - learning.ppo_epochs * encoder) * (1 if model.lora.rank else 2),
        "remat": learning.ppo_epochs * layers if count.executed and model.remat == "full" else 0,
    }
