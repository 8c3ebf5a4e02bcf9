"""Settings of evaluation: how a model is judged on prompts that it was not trained on."""

import dataclasses
from typing import Any, Literal

# Settings of an evaluation with which BAGEL's own program edits a picture, beside those with which it draws upon a text.
EDITING: dict[str, Any] = {"guidance_image": 2.0, "guidance_interval": (0.0, 1.0), "guidance_renorm": "text_channel"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PassesConfig:
    """What guidance compares with beside the empty text, where a model has such passes (LTX-2); each is one more pass."""

    sound: float | None = None
    """Text guidance scale of the sound; none is that of the clip."""
    mixing: float = 0.0
    """Scale of a pass in which tokens keep their own values in the self attentions of `blocks`; 0 is off."""
    blocks: tuple[int, ...] = ()
    """Those blocks, counted from 0."""
    other: float = 1.0
    """Scale of a pass in which clip and sound do not hear each other; 1 is off."""
    rescale: float = 0.0
    """How much of the deviation that guidance adds to what is drawn is taken back, from 0 to 1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How a model is judged on held-out prompts, before and after training."""

    split: Literal["held_out", "validation"] = "held_out"
    """Which prompts of a world with rules: those held out, which no choice should be made on, or those to choose by, such as
    settings or checkpoints."""
    source: str | None = None
    """Where the held-out prompts come from, as in `prompts`; None takes those of the world or the first of the file."""
    data: str | None = None
    """Method `sft`: examples like those of `data`, not trained on, whose losses are reported; the first `prompts` lines."""
    prompts: int = 480
    """Held-out prompts, equal shares of each category where the world has them."""
    images_per_prompt: int = 1
    """Episodes per prompt."""
    rounds: int = 0
    """Rounds of thinking and drawing; 0 as many as in the rollout."""
    batch: int = 96
    """Episodes per call of the program."""
    every: int = 0
    """Iterations between evaluations during the run; 0 evaluates at the start and the end only."""
    thinking: bool = True
    """Think before drawing."""
    thinking_as_text: bool = False
    """Draw upon the thinking's words, encoded again, as PyTorch's BAGEL does, and not upon the tokens that were sampled."""
    temperature: float = 1.0
    """Of the thinking; 0 is greedy."""
    sampler: Literal["ode", "sde"] = "ode"
    """ODE everywhere, or the rollout's step rule at every transition."""
    flow_steps: int = 10
    """Denoising transitions."""
    guidance: float = 1.0
    """Text classifier-free guidance scale; 1 is off."""
    guidance_image: float = 1.0
    """Image guidance scale: against the prompt without images and thinking; 1 is off, as is all where guidance is 1."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Guidance acts where low < t <= high."""
    guidance_renorm: Literal["model", "global", "channel", "text_channel", "none"] = "model"
    """Over what the guided output's norm is held to the conditional one's; text_channel does so before image guidance; model
    is what the family was published with (global for BAGEL, none for others)."""
    guidance_renorm_min: float = 0.0
    """Lower bound of the renormalisation factor; 1 turns it off."""
    passes: PassesConfig = dataclasses.field(default_factory=PassesConfig)
    """What guidance compares with beside the empty text, where a model has such passes (LTX-2)."""
    quantised: Literal["none", "int8"] = "none"
    """Draw with the products of the network's blocks in int8 (extra `int8`)."""
    drift: int = 48
    """Held-out drawings, of the first `batch`, along which a trained model's predictions are compared with the reference's,
    where one is kept; each costs as much again as two drawings.  0 compares none."""
    seed: int = 0
    """Noise and tokens of the evaluation; the same for every checkpoint, so that differences are paired."""
