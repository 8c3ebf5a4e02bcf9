"""The parts of a run, built from its config and checked before anything compiles, and one iteration of them."""

import dataclasses
import importlib.util
import time
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from unigrpo_jax.config import ConfigError, RunConfig, require
from unigrpo_jax.config_checks import check, check_devices
from unigrpo_jax.episode import Episodes
from unigrpo_jax.learning import parameters
from unigrpo_jax.learning.advantages import combine, zero_variance_share
from unigrpo_jax.learning.update import TrainState, new_state
from unigrpo_jax.models import tree
from unigrpo_jax.models.folder import LoadedModel, load_model
from unigrpo_jax.parallel import kernels
from unigrpo_jax.parallel import mesh as meshes
from unigrpo_jax.parallel.rules import Layout
from unigrpo_jax.rewards.load import call_reward, load_reward
from unigrpo_jax.rewards.protocol import RewardBatch, RewardFunction
from unigrpo_jax.training.evaluation import reward_batch
from unigrpo_jax.training.image_statistics import colour_entropy, edge_density
from unigrpo_jax.training.programs import Programs
from unigrpo_jax.worlds.source import PromptOrder
from unigrpo_jax.worlds.world import World, load_world


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a config stands for.

    Attributes:
      config: the settings.
      layout: the devices, and where every array lies on them.
      loaded: the model folder, without its weights.
      world: prompts and rules.
      order: training prompts by position.
      reward: the reward function.
    """

    config: RunConfig
    layout: Layout
    loaded: LoadedModel
    world: World
    order: PromptOrder
    reward: RewardFunction


def build(config: RunConfig) -> Parts:
    """Checks a config against itself, the machine and the files it names; ConfigError says what cannot work."""
    check(config)
    mesh = meshes.make_mesh(config.devices, config.mesh)
    check_devices(config, meshes.batch_size(mesh))
    layout, attend = Layout(mesh), kernels.attend(config.model, mesh)
    world = load_world(config.prompts)
    reward = load_reward(config.reward)
    loaded = load_model(config.model)  # last, since a model on the hub takes long to fetch
    loaded.check_image_size(config.rollout)
    for name, module in (("tensorboard", "tensorboardX"), ("wandb", "wandb")):
        require(not getattr(config.logging, name) or importlib.util.find_spec(module) is not None,
                f"logging.{name} needs {module}: pip install 'unigrpo_jax[{name}]'.")  # fmt: skip
    loaded.check_weights()
    for path, x in tree.flatten(loaded.abstract_params()).items():
        layout.parameter(path, x.shape)
    network = dataclasses.replace(loaded.network, hold=layout.activations, attend=attend)
    loaded = dataclasses.replace(loaded, network=network)
    parameters.groups(loaded.abstract_params(), config.learning)
    require(
        config.model.param_dtype == "float32" or config.model.lora.rank > 0,
        "model.param_dtype = 'bfloat16', but weights that are trained must be float32, where small steps do not round "
        "away; use float32, or adapters with model.lora.rank.",
    )
    loaded.codec.check_lengths([p.text for group in world.train for p in group], config.rollout.prompt_tokens)
    return Parts(config, layout, loaded, world, PromptOrder(world.train, config.seed), reward)


class Trainer:
    """Rollout, reward and update of a run."""

    def __init__(self, parts: Parts):
        loaded = parts.loaded
        self.parts, self._thought_at = parts, 0.0
        system = loaded.codec.system(parts.config.rollout)
        self.programs = Programs(
            parts.config, loaded.network, loaded.autoencoder, system, parts.layout, loaded.abstract_params(), self._note_time
        )
        self._compiled: Future | None = None
        self.frozen: dict[str, jax.Array] = {}
        self.reference: dict = {}
        self.autoencoder_params: dict[str, jax.Array] = {}

    def compile(self) -> None:
        """Starts compiling both programs in the background, from shapes alone; the first use waits for them."""
        loaded = self.parts.loaded
        autoencoder = loaded.autoencoder.shapes() if loaded.autoencoder_stored is not None else {}
        inputs = self.programs.inputs(loaded.stored_params(), autoencoder)
        executor = ThreadPoolExecutor(1)
        self._compiled = executor.submit(lambda: [program.compile() for program in self.programs.lower(inputs)])
        executor.shutdown(wait=False)

    def _note_time(self, _) -> None:
        self._thought_at = time.monotonic()

    def start(self) -> TrainState:
        """Reads the weights; the state before the first iteration.

        What is not trained lies in `frozen` once.  The reference is made of the same arrays, and of the weights as they
        were read where they are trained; adapters are trained instead of weights, so it needs no copy then.
        """
        loaded, learning = self.parts.loaded, self.parts.config.learning
        stored = loaded.params(self.parts.layout.parameter)
        self.autoencoder_params = loaded.autoencoder_params(self.programs.everywhere)
        params = loaded.with_adapters(stored)
        trained, self.frozen = parameters.split(params, parameters.groups(params, learning))
        self.reference = stored
        own = {path: jnp.copy(x) for path, x in trained.items()}
        return jax.device_put(new_state(tree.unflatten(own | self.frozen), learning), self.programs.state_shardings)

    def params(self, state: TrainState) -> dict:
        """The parameters that sample, as the network takes them."""
        return state.params(self.frozen)

    def judged_params(self, state: TrainState) -> dict:
        """The parameters that are judged: the moving average where there is one."""
        return state.averaged(self.frozen)

    def sample(self, state: TrainState, step: int) -> tuple[Episodes, RewardBatch, dict[str, float]]:
        """The episodes of iteration `step`, as arrays and as the reward sees them, and the rollout's metrics."""
        config = self.parts.config
        prompts = self.parts.order.batch(step, config.rollout.prompts_per_iteration)
        block = self.parts.loaded.codec.prompts([p.text for p in prompts], config.rollout.prompt_tokens)
        rollout, _ = self._compiled.result()
        self._thought_at = begin = time.monotonic()
        given = (self.params(state), self.autoencoder_params, block, np.int32(config.seed), np.int32(step))
        episodes = jax.block_until_ready(rollout(*given))
        jax.effects_barrier()
        end = time.monotonic()
        thoughts = self.parts.loaded.codec.thoughts(episodes.thinking, config.episodes)
        images = np.asarray(episodes.drawing.image)
        grouped = [prompt for prompt in prompts for _ in range(config.learning.group_size)]
        metrics = {
            "time/rollout_text": self._thought_at - begin,
            "time/rollout_flow": end - self._thought_at,
            "images_per_second": config.episodes / (end - begin),
            "image/edge_density": float(np.mean(edge_density(images))),
            "image/colour_entropy": float(np.mean(colour_entropy(images))),
        }
        if episodes.thinking is not None:
            tokens = float(np.sum(np.asarray(episodes.thinking.mask)))
            metrics["tokens_per_second"] = tokens / max(self._thought_at - begin, 1e-9)
        return episodes, reward_batch(grouped, images, thoughts), metrics

    def judge(self, batch: RewardBatch) -> tuple[np.ndarray, dict[str, float]]:
        """Advantages [B] and the reward's metrics; RewardError where the reward function fails."""
        config, begin = self.parts.config, time.monotonic()
        components = call_reward(self.parts.reward, config.reward, batch)
        unknown = sorted(set(config.learning.reward_weights) - set(components))
        if unknown:
            raise ConfigError(
                f"learning.reward_weights names {', '.join(unknown)}, but the reward returns {', '.join(components)}."
            )
        weights = {name: config.learning.reward_weights.get(name, 1.0) for name in components}
        grouped = {name: values.reshape(-1, config.learning.group_size) for name, values in components.items()}
        advantages = np.asarray(combine(grouped, weights, config.learning.advantage)).reshape(-1)
        weighted = sum(weights[name] * values for name, values in grouped.items())
        metrics = {"reward/mean": float(weighted.mean()), "reward/std": float(weighted.std())}
        for name, values in grouped.items():
            metrics[f"reward/{name}/mean"] = float(values.mean())
            metrics[f"reward/{name}/std"] = float(values.std())
        metrics["reward/zero_variance_share"] = float(zero_variance_share(weighted))
        if self.parts.world.judge is not None:
            for name, values in self.parts.world.judge(batch).scores.items():
                if np.isfinite(values).any():
                    metrics[f"judge/{name}"] = float(np.nanmean(values))
        metrics["time/reward"] = time.monotonic() - begin
        return advantages, metrics

    def learn(
        self, state: TrainState, episodes: Episodes, advantages: np.ndarray
    ) -> tuple[TrainState, dict[str, float]]:
        """One update; `state` is donated."""
        _, update = self._compiled.result()
        begin = time.monotonic()
        advantages = jax.device_put(advantages, self.programs.spread)
        state, metrics = update(state, self.frozen, self.reference, episodes, advantages)
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        return state, metrics | {"time/update": time.monotonic() - begin}
