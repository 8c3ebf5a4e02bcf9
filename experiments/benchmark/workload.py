"""What is measured: a config, a network and its weights, with the run's programs and their parts built from them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.command_line import preset
from unigrpo_jax.config import LearningConfig, ModelConfig, RolloutConfig, RunConfig
from unigrpo_jax.episode import Episodes, Picture, TokenBlock
from unigrpo_jax.learning import parameters
from unigrpo_jax.learning.objective import Objective
from unigrpo_jax.learning.policy import Policy
from unigrpo_jax.learning.update import UpdateProgram, new_state
from unigrpo_jax.models.autoencoders.pixels import PixelAutoencoder
from unigrpo_jax.models.bagel import Bagel, BagelConfig
from unigrpo_jax.models.verbs import Painter
from unigrpo_jax.models.work import Work, with_texts
from unigrpo_jax.parallel import kernels
from unigrpo_jax.parallel import mesh as meshes
from unigrpo_jax.parallel.rules import Layout
from unigrpo_jax.rollout import randomness
from unigrpo_jax.rollout.dialogue import begin, hear
from unigrpo_jax.rollout.drawing import denoise
from unigrpo_jax.rollout.program import RolloutProgram, training_rollout
from unigrpo_jax.rollout.thinking import think
from unigrpo_jax.training.programs import Programs


@dataclasses.dataclass(frozen=True, eq=False)
class Workload:
    """A run of one device, without its loop.

    Attributes:
      config: the settings.
      network: the network.
      autoencoder: latents to images.
      system: tokens of the system prompt's block.
      params: all parameters.
      reference: the parameters that the leash holds to.
      autoencoder_params: the autoencoder's.
      prompt: the prompts of one iteration.
      parts_of_run: what the trainer is made of; None where there is no preset.
      picture: what comes before the prompts; None where nothing does.
    """

    config: RunConfig
    network: Painter
    autoencoder: Any
    system: tuple[int, ...]
    params: dict
    reference: dict
    autoencoder_params: dict
    prompt: TokenBlock
    parts_of_run: Any = None
    picture: Picture | None = None

    @property
    def work(self) -> Work:
        """What its episodes cost, with full buckets."""
        config = with_texts(self.config, self.prompt)
        return self.network.work(config, len(self.system), pictures=self.picture is not None)

    def pictured(self) -> "Workload":
        """The same with a picture before each prompt, as an edit has; of random pixels.  Its `parts` do not read it."""
        rollout = self.config.rollout
        shape = (rollout.prompts_per_iteration, rollout.image_height, rollout.image_width, 3)
        levels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        return dataclasses.replace(self, picture=Picture(*self.network.see_again(levels)))

    def changed(self, **settings) -> "Workload":
        """The same weights with single settings of the rollout or of the learning changed."""
        owner = {f.name: part for part in ("rollout", "learning") for f in dataclasses.fields(getattr(self.config, part))}
        parts = {}
        for name, value in settings.items():
            part = owner[name]
            parts[part] = dataclasses.replace(parts.get(part, getattr(self.config, part)), **{name: value})
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **parts))

    @functools.cached_property
    def programs(self) -> Programs:
        """Both programs of a run."""
        layout = Layout(meshes.make_mesh(1), self.network.axes)
        shapes = jax.eval_shape(lambda: self.params)
        return Programs(self.config, self.network, self.autoencoder, self.system, layout, shapes)

    @functools.cached_property
    def program(self) -> RolloutProgram:
        """The rollout as a pure function, to take its parts from."""
        c = self.config
        return training_rollout(c.rollout, self.network, self.autoencoder, c.learning.group_size, self.system, parts=1)

    def sampling(self) -> tuple:
        """What the rollout takes."""
        seed, step, first_id = (np.int32(0),) * 3
        return self.params, self.autoencoder_params, self.prompt, seed, step, first_id, self.picture

    def sample(self) -> Episodes:
        """The episodes of one iteration."""
        return self.programs.rollout(*self.sampling())

    @functools.cached_property
    def policy(self) -> Policy:
        """The policy that the update trains."""
        program, learning = self.program, self.config.learning
        return Policy(
            model=self.network, system=program.system, tokens=program.tokens, flow=program.flow,
            context_gradient=learning.context_gradient, window_steps=learning.window_steps,
            leash_times=learning.leash_times,
        )  # fmt: skip

    def updater(self, policy: Policy | None = None) -> Callable[[], dict]:
        """A function that updates a state of its own once more with each call and returns the metrics.

        A `policy` takes the place of the run's own; then the update is compiled with it.
        """
        c = self.config.learning
        update = self.programs.update
        if policy is not None:
            function = UpdateProgram(objective=Objective(policy=policy, config=c), config=c)
            update = jax.jit(function.__call__, donate_argnums=0)
        return self.updates(update, self.learning(self.sample()))

    def learning(self, episodes: Episodes) -> tuple:
        """What the update takes: a state of its own, and these episodes."""
        c = self.config.learning
        _, frozen = parameters.split(self.params, parameters.groups(self.params, c, self.network.trained_by))
        state = new_state(jax.tree.map(jnp.copy, self.params), c, self.network.trained_by)
        own = jax.device_put(state, self.programs.state_shardings)
        count = self.config.trained_episodes
        episodes = jax.tree.map(lambda x: x[:count], episodes)
        advantages = np.resize(np.array([1.0, -1.0], np.float32), count)
        return own, frozen, self.reference, episodes, jax.device_put(advantages, self.programs.spread)

    def updates(self, update: Callable, given: tuple) -> Callable[[], dict]:
        """A function that updates the state in `given` once more with each call and returns the metrics."""
        own, *rest = given

        def once() -> dict:
            nonlocal own
            own, metrics = update(own, *rest)
            return metrics

        return once

    def parts(self) -> "Parts":
        """Prefill, thinking and denoising, jitted one by one."""
        c, network, program = self.config, self.network, self.program

        def read(params, prompt, group):
            dialogue = begin(network, params, program.system, jax.tree.leaves(prompt)[0].shape[0])
            dialogue = hear(network, params, dialogue, prompt).repeat(group)
            others = (dialogue.without_text, dialogue.without_images)
            return dialogue.full, others if program.flow.guidance is not None else ()

        prefill = jax.jit(read, static_argnums=2)
        reason = jax.jit(lambda params, context, keys: think(network, params, context, keys, program.thinking_tokens,
                                                             program.tokens))  # fmt: skip
        window = jnp.arange(c.rollout.window_size) + c.rollout.window_range[0]

        @jax.jit
        def paint(params, condition, others, keys):
            x = randomness.normal_like(keys, 0, program.latent(len(keys)))
            return denoise(network, params, condition, x, keys, window, program.flow, others)

        return Parts(self, prefill, reason, paint)


@dataclasses.dataclass(frozen=True, eq=False)
class Parts:
    """The rollout's parts.

    Attributes:
      workload: what they are parts of.
      read: (params, prompts, episodes per prompt) -> condition of all episodes, and what guidance compares it with.
      reason: (params, context, keys) -> (thinking, context).
      paint: (params, condition, what guidance compares it with, keys) -> latents and the window.
    """

    workload: Workload
    read: Callable
    reason: Callable
    paint: Callable

    @functools.cached_property
    def keys(self) -> jax.Array:
        """One key per episode."""
        return randomness.sample_keys(jax.random.key(0), jnp.arange(self.workload.config.episodes))

    def prefill(self):
        """The condition of all episodes, each prompt read once, and what guidance compares it with."""
        return self.read(self.workload.params, self.workload.prompt, self.workload.config.learning.group_size)

    @functools.cached_property
    def before(self):
        """The condition before thinking, and what guidance compares it with."""
        return self.prefill()

    def think(self):
        """Thinking and the context behind it."""
        return self.reason(self.workload.params, self.before[0], self.keys)

    @functools.cached_property
    def thought(self):
        """The thinking, and the context behind it; None and the condition where nothing is thought."""
        return self.think() if self.workload.program.thinking_tokens else (None, self.before[0])

    def draw(self):
        """All flow steps upon the condition behind the thinking."""
        return self.paint(self.workload.params, self.thought[1], self.before[1], self.keys)


def of_config(config: RunConfig) -> Workload:
    """The programs of a run on one device, with the weights that its config names."""
    from unigrpo_jax.training.trainer import build

    parts = build(dataclasses.replace(config, devices=1))
    loaded, layout = parts.loaded, parts.layout
    stored = loaded.params(layout.parameter)
    prompts = [p.text for p in parts.order.batch(0, config.rollout.prompts_per_iteration)]
    return Workload(
        config=parts.config,
        network=loaded.network,
        autoencoder=loaded.autoencoder,
        system=loaded.codec.system(config.rollout),
        params=loaded.with_fresh(stored),
        reference={} if config.learning.reference == "none" else stored,
        autoencoder_params=loaded.autoencoder_params(meshes.replicated(layout.mesh)),
        prompt=loaded.codec.prompts(prompts, config.rollout.prompt_tokens),
        parts_of_run=parts,
    )


MIDDLE = BagelConfig(
    vocab_size=2048, hidden_size=512, intermediate_size=1408, layers=8, heads=8, kv_heads=2, pad_token=0, bos_token=1,
    eos_token=2, image_start_token=3, image_end_token=4, latent_channels=3, latent_patch=4, max_latent_size=16,
)  # fmt: skip


def random(model: BagelConfig, config: RunConfig) -> Workload:
    """A network with random weights, random prompts that fill their bucket, and pixels for latents."""
    c = config.model
    attend = kernels.attend(c, meshes.make_mesh(1))
    network = Bagel(model, c.dtype, c.remat, c.unroll, attend=attend)
    rng = np.random.default_rng(0)
    fresh = jax.jit(network.init)(jax.random.key(0))
    # Nothing stays zero, not even the flow head that training starts from.
    noisy = lambda x: np.asarray(x) + 0.02 * rng.standard_normal(x.shape, np.float32)
    params = jax.device_put(jax.tree.map(noisy, fresh), jax.devices()[0])
    count, length = config.rollout.prompts_per_iteration, config.rollout.prompt_tokens
    tokens = rng.integers(5, model.vocab_size, (count, length), np.int32)
    tokens[:, 0], tokens[:, -1] = model.bos_token, model.eos_token
    prompt = TokenBlock(tokens=jnp.asarray(tokens), valid=jnp.ones(tokens.shape, bool))
    return Workload(config, network, PixelAutoencoder(), (), params, params, {}, prompt)


def middle() -> Workload:
    """Width 512, 8 layers, 256 latent tokens: large enough that products of matrices decide, small enough for a laptop."""
    shapes, _ = preset(["shapes"], "")
    rollout: RolloutConfig = dataclasses.replace(
        shapes.rollout, prompts_per_iteration=2, prompt_tokens=16, thinking_tokens=64, image_height=64, image_width=64
    )
    learning: LearningConfig = dataclasses.replace(shapes.learning, group_size=4)
    model = ModelConfig(unroll=MIDDLE.layers)
    return random(MIDDLE, RunConfig(name="middle", model=model, rollout=rollout, learning=learning))


def ltx2() -> Workload:
    """The toy `ltx2_tiny`, with two prompts and the transitions, the guidance and the groups of `ltx2_rlhf`."""
    (toy, _), (whole, _) = preset(["ltx2_tiny"], ""), preset(["ltx2_rlhf"], "")
    rollout, learning = whole.rollout, whole.learning
    given = dict(flow_steps=rollout.flow_steps, noise_range=rollout.noise_range, window_size=rollout.window_size,
                 window_range=rollout.window_range, guidance=rollout.guidance)  # fmt: skip
    toy = dataclasses.replace(
        toy,
        rollout=dataclasses.replace(toy.rollout, prompts_per_iteration=2, **given),
        learning=dataclasses.replace(toy.learning, group_size=learning.group_size, window_steps=learning.window_steps),
    )
    return of_config(toy)


SIZES: dict[str, Callable[[], Workload]] = {
    "tiny": lambda: of_config(preset(["bagel_tiny"], "")[0]),
    "shapes": lambda: of_config(preset(["shapes"], "")[0]),
    "middle": middle,
    "sd_tiny": lambda: of_config(preset(["sd_tiny"], "")[0]),
    "flux_tiny": lambda: of_config(preset(["flux_tiny"], "")[0]),
    "shapes_flux": lambda: of_config(preset(["shapes_flux"], "")[0]),
    "ltx2": ltx2,
    "window": lambda: middle().changed(window_size=3, flow_steps=15),
}
