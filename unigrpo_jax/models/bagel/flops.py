"""Floating point operations of the network and of a run, by formula; nothing is compiled.

Counted are the products of matrices, 2 operations for each multiply-add; norms, rotations, softmax, adapters and
sampling are left out.  Every formula comes in two readings:

  seen        what the mathematics needs: a token of a text block sees the context and the block up to itself, and logits
              are made where a token is drawn or judged.  This is what a utilisation (MFU) is a share of.
  executed    what dense attention computes: all slots of the context, reserved ones too, and the whole block.

Buckets are counted as full; give `Lengths` that were measured to count less.
"""

import dataclasses
from collections.abc import Callable

from unigrpo_jax.config import RunConfig
from unigrpo_jax.models.bagel.config import BagelConfig

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
      thinking: actions M; its block has two tokens more. None draws without thinking.
      latents: latent tokens N.
    """

    system: float
    prompt: float
    thinking: float | None
    latents: int

    @property
    def before_thinking(self) -> float:
        """Slots of system prompt and prompt."""
        return self.system + self.prompt

    @property
    def context(self) -> float:
        """Slots that an image is drawn upon."""
        return self.before_thinking + (0 if self.thinking is None else self.thinking + 2)


def lengths(run: RunConfig, config: BagelConfig, system: int) -> Lengths:
    """The buckets of a run; `system` tokens in the system prompt's block."""
    rows, columns = config.grid(run.rollout.image_height, run.rollout.image_width)
    return Lengths(
        system=system if run.rollout.thinking else 0,
        prompt=run.rollout.prompt_tokens,
        thinking=run.rollout.thinking_tokens if run.rollout.thinking else None,
        latents=rows * columns,
    )


def rollout(run: RunConfig, count: Flops, n: Lengths) -> dict[str, float]:
    """Operations of one iteration's rollout, all episodes, by phase; the autoencoder is left out.

    The system prompt is read once per micro-batch and a prompt once per group.
    """
    r = run.rollout
    prefill = r.micro_batches * count.text(n.system, 0) + r.prompts_per_iteration * count.text(n.prompt, n.system)
    if n.thinking is None:
        thinking = 0
    elif count.executed:  # the slots are reserved from the start, and every token read has logits
        thinking = (n.thinking + 2) * count.decode(n.context)
    else:
        thinking = count.text(n.thinking + 2, n.before_thinking) + count.logits(n.thinking)
    drawing = r.flow_steps * (count.velocity(n.latents, n.context) + _guided(run, count.velocity, n))
    return {"prefill": prefill, "thinking": run.episodes * thinking, "drawing": run.episodes * drawing}


def _guided(run: RunConfig, velocity: Callable[[int, float], float], n: Lengths) -> float:
    """Operations of guidance's second velocity, upon the system prompt alone; 0 without guidance."""
    return velocity(n.latents, n.system) if run.rollout.guidance > 1 else 0.0


def update(run: RunConfig, count: Flops, n: Lengths) -> dict[str, float]:
    """Operations of one iteration's update, all episodes, by pass.

      reference   forward under the frozen weights, with logits only where the text KL asks for them
      old         forward at the iteration's start, where the first ratio is not 1 by construction
      forward     of the trained policy, every PPO epoch
      backward    twice the forward; once with adapters, whose own gradients are left out
      remat       the layers' forward again, in `executed` alone

    A forward reads the system prompt once per micro-batch, and prompt, thinking and W window steps of each episode.
    """
    learning, model = run.learning, run.model
    pieces = learning.minibatches * learning.micro_batches
    thinking = 0 if n.thinking is None else count.text(n.thinking + 2, n.before_thinking)
    logits = 0 if n.thinking is None else run.trained_episodes * count.logits(n.thinking)
    context = pieces * count.text(n.system, 0) + run.trained_episodes * (count.text(n.prompt, n.system) + thinking)
    steps = run.trained_episodes * run.rollout.window_size
    forward = context + steps * (count.velocity(n.latents, n.context) + _guided(run, count.velocity, n))
    layers = context + steps * (count.velocity_layers(n.latents, n.context) + _guided(run, count.velocity_layers, n))
    recorded = learning.old_log_probs == "rollout" or learning.ppo_epochs * learning.minibatches == 1
    trained = learning.ppo_epochs * (forward + logits)
    return {
        "reference": forward + (logits if learning.text_kl_weight > 0 else 0),
        "old": 0 if recorded else forward + logits,
        "forward": trained,
        "backward": trained * (1 if model.lora.rank else 2),
        "remat": learning.ppo_epochs * layers if count.executed and model.remat == "full" else 0,
    }
