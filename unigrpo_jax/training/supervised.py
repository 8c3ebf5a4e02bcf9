"""Supervised training in the loop of every run: its parts, its two programs, and what is judged beside the images.

In the place of a rollout a program makes noisy latents of given pictures or clips; in the place of a reward stands the
weight of an example.  All else is a run's: update, checkpoints, evaluation, samples, report.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from unigrpo_jax.config import ConfigError, RunConfig, require
from unigrpo_jax.config_checks import check
from unigrpo_jax.episode import Episodes, Thinking
from unigrpo_jax.learning.policy import Policy
from unigrpo_jax.learning.teaching import Lessons, Teaching, left_out, token_weights
from unigrpo_jax.learning.update import TrainState
from unigrpo_jax.models.loaded import sound_form
from unigrpo_jax.parallel import mesh as meshes
from unigrpo_jax.parallel import processes
from unigrpo_jax.parallel.rules import Layout
from unigrpo_jax.rollout.program import flow_sampler
from unigrpo_jax.rollout.thinking import TokenSampler
from unigrpo_jax.training import trainer
from unigrpo_jax.training.evaluation import Evaluator, Judged, by_category, whole_prompts
from unigrpo_jax.training.programs import Inputs, Programs
from unigrpo_jax.training.taught import Pictures, check_examples, dropped, texts_of
from unigrpo_jax.training.trainer import Parts, Trainer
from unigrpo_jax.worlds.examples import THINKING, Examples, asked, read_examples
from unigrpo_jax.worlds.order import InTurn, PromptOrder
from unigrpo_jax.worlds.prompt import Picked
from unigrpo_jax.worlds.world import World, load_world


@dataclasses.dataclass(frozen=True)
class SupervisedParts(Parts):
    """What a config of the method `sft` stands for; `order` is that of the examples.

    Attributes:
      examples: what is learned.
      held_out: what is not learned, and whose losses are judged; None where there is nothing.
    """

    examples: Examples | None = None
    held_out: Examples | None = None


def build(config: RunConfig) -> SupervisedParts:
    """As `trainer.build`, and with every line of the data; ConfigError says what cannot work."""
    check(config)
    kind = (config.rollout.thinking, config.rollout.frames > 1)
    read = lambda name, option: None if name is None else read_examples(name, option, *kind)
    examples, held_out = read(config.data, "--data"), read(config.evaluation.data, "--evaluation.data")
    parts = trainer.build(config, _world(config, examples))
    network, folder, family = parts.loaded.network, parts.loaded.folder, parts.loaded.family
    form = sound_form(network, parts.loaded.autoencoder, config.rollout)
    require(form is None or config.rollout.frames > 1, f"rollout.frames = 1, but {folder} ({family}) learns clips with "
            "their sound, and one frame is too short for any; set --rollout.frames.")  # fmt: skip
    for each in filter(None, (examples, held_out)):
        require(network.thinks or each.thought is None, f'{each.thought}: has a "thinking", but {folder} is a model that '
                f"only draws ({family}); take it out of every line.")  # fmt: skip
        check_first_frames(each, network, folder)
        require(form is not None or each.heard is None, f'{each.heard}: has an "audio" beside its "video", but {folder} '
                "draws clips without sound; take it out of every line.")  # fmt: skip
        check_examples(each, parts.loaded.codec, config.rollout, form)
    fields = {field.name: getattr(parts, field.name) for field in dataclasses.fields(Parts)}
    judged = held_out or examples
    fields["world"] = _judged(parts.world, config, judged, begins(network, judged))
    return SupervisedParts(**fields, examples=examples, held_out=held_out)


def check_first_frames(examples: Examples, network, folder: object) -> None:
    """ConfigError where a first frame comes with a clip of which nothing goes on, or with some clips and not with others."""
    begun, unbegun = examples.begun, examples.unbegun
    require(network.begins or begun is None, f'{begun}: has an "image" beside its "video", but {folder} learns to go on '
            "from no picture; take it out of every line.")  # fmt: skip
    require(network.needs_picture or begun is None or unbegun is None, f'{unbegun}: has no "image" beside its "video", and '
            f"{begun} has one, but {folder} goes on from a picture in all clips of a run or in none; give every line its "
            'first frame under "image", or none.')  # fmt: skip


def begins(network, examples: Examples) -> bool:
    """Whether clips of a file are learned from their first frames: where the model must, or they come with them."""
    return network.needs_picture or examples.begun is not None


def _world(config: RunConfig, examples: Examples) -> World:
    """Trains on the examples; judges on the config's own prompts, where it has some."""
    train = lambda seed: PromptOrder([examples.prompts], seed)
    unread = (*examples.unread, *((THINKING,) if examples.thought and not config.rollout.thinking else ()))
    if config.prompts:
        rollout, evaluation = config.rollout, config.evaluation
        own = load_world(config.prompts, config.prompt_weights, evaluation.source, rollout.rounds, evaluation.rounds)
        return dataclasses.replace(own, train=train, unread=(*own.unread, *unread))
    return World(train=train, evaluation=lambda n: [], longest=(), judge=None, unread=unread)


def _judged(world: World, config: RunConfig, examples: Examples, begins: bool) -> World:
    """The world, which judges on the prompts of examples where the config has none of its own.

    `begins`: the model goes on from a picture, and is given each example's first frame.
    """
    if config.prompts:
        return world
    prompts = examples.prompts
    judged = InTurn([Picked(lambda row: asked(prompts[row], begins), range(len(prompts)))])
    return dataclasses.replace(world, evaluation=lambda n: judged.batch(0, min(n, len(prompts))))


@dataclasses.dataclass(frozen=True)
class Lesson(Inputs):
    """Of what an iteration reads, what is learned beside the prompts.

    Attributes:
      thinking: that of each example; None where nothing is thought.
      image: the pictures, uint8 [B, H, W, 3], or clips, uint8 [B, F, H, W, 3], with their sound where it is learned.
      first: what is gone on from, uint8 [B, H, W, 3]; None where the model goes on from no picture.
    """

    thinking: Thinking | None = None
    image: Any = None
    first: Any = None


class SupervisedPrograms(Programs):
    """`rollout` is (autoencoder's, prompts, thinkings, images or clips, seed, step, first_id, first frames) -> episodes."""

    def __init__(self, config: RunConfig, network, autoencoder, system, layout: Layout, *given):
        super().__init__(config, network, autoencoder, system, layout, *given)
        lessons = lessons_of(config, network, autoencoder, meshes.batch_size(layout.mesh))
        self._form = sound_form(network, autoencoder, config.rollout)
        self.rollout = jax.jit(lessons.__call__, out_shardings=self.spread)

    def _objective(self, policy: Policy, autoencoder: Any) -> Teaching:
        flow = dataclasses.replace(policy.flow, guidance=None)  # a sampler's; nobody is taught by it
        policy = dataclasses.replace(policy, tokens=TokenSampler(), flow=flow)
        return Teaching(policy=policy, config=self.config.learning)

    def inputs(self, stored: dict, autoencoder: dict, text: Any, talks: bool = False, shows: bool = False) -> Lesson:
        """As `Programs.inputs`; `shows` says that clips come with first frames, `talks` nothing of examples."""
        found = super().inputs(stored, autoencoder, text)
        at = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=self.spread)
        r, batch, thinking = self.config.rollout, self.config.episodes, None
        if r.thinking:
            tokens = lambda dtype: at((batch, r.thinking_tokens), dtype)
            thinking = Thinking(tokens=tokens(np.int32), mask=tokens(np.bool_), log_probs=tokens(np.float32))
        fields = {field.name: getattr(found, field.name) for field in dataclasses.fields(Inputs)}
        fields |= {"prompt": jax.tree.map(lambda x: at(x.shape, x.dtype), found.prompt), "picture": None}
        frame = (r.image_height, r.image_width, 3)
        image = at((batch, *((r.frames,) if r.frames > 1 else ()), *frame), np.uint8)
        if self._form is not None:
            image = {"video": image, "audio": at((batch, self._form.samples, self._form.channels), np.float32)}
        begun = self._network.needs_picture or (shows and r.frames > 1)
        first = at((batch, *frame), np.uint8) if begun else None
        return Lesson(**fields, thinking=thinking, image=image, first=first)

    def trace(self, inputs: Lesson) -> tuple[jax.stages.Traced, jax.stages.Traced]:
        """Both programs, traced."""
        i = inputs
        rollout = self.rollout.trace(i.autoencoder, i.prompt, i.thinking, i.image, *(np.int32(0),) * 3, i.first)
        at = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.spread)
        weights = at(jax.ShapeDtypeStruct((self.config.episodes,), np.float32))
        return rollout, self.update.trace(i.state, i.frozen, i.reference, jax.tree.map(at, rollout.out_info), weights)


def lessons_of(config: RunConfig, network, autoencoder, parts: int) -> Lessons:
    """The program that a config describes; `parts` are the devices that the examples lie on."""
    r = config.rollout
    grid, shift = network.grid(*r.size), r.timestep_shift
    return Lessons(model=network, autoencoder=autoencoder, grid=grid, shift=shift, draws=r.window_size, parts=parts)


def _pictures(parts: SupervisedParts, examples: Examples, batch: int, at: jax.sharding.Sharding) -> Pictures:
    """Reads so many of the examples as the model of a run takes them."""
    rollout, network = parts.config.rollout, parts.loaded.network
    form = sound_form(network, parts.loaded.autoencoder, rollout)
    return Pictures(rollout, batch, at, begins(network, examples), form)


class SupervisedTrainer(Trainer):
    """Noise, weights and update of a run on given examples."""

    programs_of = SupervisedPrograms

    def __init__(self, parts: SupervisedParts):
        super().__init__(parts)
        self._pictures = _pictures(parts, parts.examples, parts.config.episodes, self.programs.spread)

    def sample(self, state: TrainState, step: int, number: int = 0) -> tuple[Episodes, np.ndarray, dict[str, float]]:
        """The examples of iteration `step` as episodes, their weights [B], and the seconds that it took.

        An iteration has one batch of them, `number` 0.
        """
        config, order, begin = self.parts.config, self.parts.order, time.monotonic()
        examples = order.batch(step, config.episodes)
        text, thinking, (image, first) = processes.agree_on_errors((ConfigError,), lambda: self._read(examples, step))
        if step + 1 < config.iterations:
            self._pictures.ahead(order.batch(step + 1, config.episodes))
        lessons, _ = self._compiled.result()
        read = time.monotonic()
        placed = lambda tree: jax.tree.map(lambda x: processes.to_global(x, self.programs.spread), tree)
        numbers = (np.int32(config.seed), np.int32(step), np.int32(0))
        episodes = lessons(self.autoencoder_params, placed(text), placed(thinking), image, *numbers, first)
        episodes, end = jax.block_until_ready(episodes), time.monotonic()
        return episodes, token_weights(thinking, config.episodes), {"time/read": read - begin, "time/noise": end - read}

    def _read(self, examples, step: int) -> tuple[Any, Thinking | None, tuple[jax.Array, jax.Array | None]]:
        config, codec = self.parts.config, self.parts.loaded.codec
        text, thinking = texts_of(examples, codec, config.rollout)
        if codec.guided:
            share = config.learning.text_dropout
            text, thinking = left_out(text, thinking, dropped(config.seed, step, len(examples), share))
        return text, thinking, self._pictures(examples)

    def judge(self, own: np.ndarray, times: dict[str, float]) -> tuple[np.ndarray, dict[str, float]]:
        """The weights of the examples [B], in the place of advantages; nothing is measured."""
        return own, {}

    def learn(self, state: TrainState, episodes: Episodes, advantages: np.ndarray) -> tuple[TrainState, dict[str, float]]:
        """One update; `state` is donated."""
        state, metrics = super().learn(state, episodes, advantages)
        seen = int(state.step) * self.parts.config.episodes
        return state, metrics | {"data/epochs": seen / len(self.parts.examples.prompts)}


class SupervisedEvaluator(Evaluator):
    """As every run's, and the losses of the examples that are held out.

    Their times and noises are those of `evaluation.seed`, whatever the checkpoint and the batch; no text is left out.
    """

    def __init__(self, parts: SupervisedParts):
        config, loaded, layout = parts.config, parts.loaded, parts.layout
        evaluation = config.evaluation
        samples = config.logging.samples
        super().__init__(evaluation, config.rollout, loaded, parts.world, parts.judging, layout, samples)
        self._held_out, self._settings, self._loaded = parts.held_out, config, loaded
        if parts.held_out is None:
            return
        self._size, self._at = whole_prompts(evaluation.batch, 1, layout.mesh), meshes.spread(layout.mesh)
        self._pictures = _pictures(parts, parts.held_out, self._size, self._at)
        lessons = lessons_of(config, loaded.network, loaded.autoencoder, meshes.batch_size(layout.mesh))
        flow = flow_sampler(config.rollout, loaded.network)
        system = loaded.codec.system(config.rollout)
        policy = Policy(model=loaded.network, system=system, tokens=TokenSampler(), flow=flow, window_steps="scanned")
        teaching = Teaching(policy=policy, config=config.learning)

        def losses(params, *given):
            return teaching.losses(params, lessons(*given))

        self._losses = jax.jit(losses, out_shardings=meshes.replicated(layout.mesh))

    def __call__(self, params, autoencoder_params, reference: Callable[[], Any] | None = None) -> Judged:
        """What a run's evaluation finds, and `loss`, `text_loss` and `flow_loss` of the held-out examples.

        `flow_loss` of several modalities is their weighted sum; `flow_video_loss` and `flow_audio_loss` are each one's own.
        """
        judged = super().__call__(params, autoencoder_params, reference)
        if self._held_out is None:
            return judged
        return dataclasses.replace(judged, table=judged.table | self._table(params, autoencoder_params))

    def _table(self, params, autoencoder_params) -> dict[str, dict[str, float]]:
        config, size = self._settings, self._size
        count = min(config.evaluation.prompts, len(self._held_out.prompts))
        found: dict[str, list] = {"text_loss": [], "flow_loss": [], "tokens": []}
        categories = []
        for start in range(0, count, size):
            self.alive()
            rows = [self._held_out.prompts[min(row, count - 1)] for row in range(start, start + size)]
            read = lambda rows=rows: (*texts_of(rows, self._loaded.codec, config.rollout), self._pictures(rows))
            text, thinking, (image, first) = processes.agree_on_errors((ConfigError,), read)
            placed = lambda tree: jax.tree.map(lambda x: processes.to_global(x, self._at), tree)
            numbers = (np.int32(config.evaluation.seed), np.int32(0), np.int32(start))
            given = (autoencoder_params, placed(text), placed(thinking), image, *numbers, first)
            text_B, flow_B, each = self._losses(params, *given)
            kept = min(size, count - start)
            drawn = {"flow_loss": flow_B} | {f"flow_{modality}_loss": own for modality, own in each.items()}
            for name, own in drawn.items():
                found.setdefault(name, []).extend(np.asarray(own, np.float64)[:kept].tolist())
            if text_B is not None:
                found["text_loss"] += np.asarray(text_B, np.float64)[:kept].tolist()
                found["tokens"] += thinking.mask.sum(axis=1)[:kept].tolist()
            categories += [str(row.metadata.get("category", "")) for row in rows[:kept]]
        drawn = {name: np.array(values) for name, values in found.items() if name.startswith("flow_")}
        table = by_category(drawn, categories)
        if found["text_loss"]:
            tokens = np.array(found["tokens"], np.float64)
            table |= by_category({"text_loss": np.array(found["text_loss"])}, categories, tokens)
        weights = {"text_loss": config.learning.text_weight, "flow_loss": config.learning.flow_weight}
        total = lambda label: sum(weights[name] * row[label] for name, row in table.items() if name in weights)
        return {"loss": {label: round(total(label), 6) for label in table["flow_loss"]}} | table
