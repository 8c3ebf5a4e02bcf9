"""The two programs of an iteration on one mesh, rollout and update, and the shapes that they are compiled from.

Nothing here needs weights or a device that is there: the same programs train a run and are compiled ahead for a pod.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unigrpo_jax.config import DistillationConfig, RunConfig, require
from unigrpo_jax.episode import Drawing, Episodes, Picture
from unigrpo_jax.learning import modalities, parameters
from unigrpo_jax.learning.credit import advantage_shape
from unigrpo_jax.learning.distribution_matching import DistributionMatching
from unigrpo_jax.learning.fake_score import Matching
from unigrpo_jax.learning.fpo import FlowPolicyOptimization
from unigrpo_jax.learning.imitation import Imitation
from unigrpo_jax.learning.nft import DiffusionNFT
from unigrpo_jax.learning.objective import Objective
from unigrpo_jax.learning.policy import Policy
from unigrpo_jax.learning.refl import RewardGradient
from unigrpo_jax.learning.update import TrainState, UpdateProgram, new_state
from unigrpo_jax.models import tree
from unigrpo_jax.models.autoencoders.pixels import PixelAutoencoder
from unigrpo_jax.models.building.guidance import Guidance
from unigrpo_jax.models.building.second_time import is_second_time
from unigrpo_jax.models.verbs import Painter
from unigrpo_jax.parallel import mesh as meshes
from unigrpo_jax.parallel.rules import Layout, check_cuts
from unigrpo_jax.rewards.protocol import DifferentiableReward
from unigrpo_jax.rollout.program import RolloutProgram, training_rollout
from unigrpo_jax.training.given import picture_shapes

# Methods that learn from noisy versions of what was drawn.
FORWARD = {"best_of_n": Imitation, "fpo": FlowPolicyOptimization, "diffusion_nft": DiffusionNFT}


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Shapes, dtypes and places of everything that an iteration reads.

    Attributes:
      state: trained parameters and optimizer.
      frozen: {path: array} of all other parameters.
      reference: nested parameters without adapters.
      autoencoder: the autoencoder's tensors.
      prompt: the prompts of an iteration, as the network reads them.
      turns: what the user says in each later round; () where nothing is said.
      picture: what comes with the prompts; None where nothing does.
    """

    state: TrainState
    frozen: dict
    reference: dict
    autoencoder: dict
    prompt: Any
    turns: tuple = ()
    picture: Picture | None = None


@dataclasses.dataclass(frozen=True)
class Followed:
    """A differentiable reward whose gradient a run follows.

    Attributes:
      score: (goals, images float32 [B, H, W, 3] in [0, 1]) -> float32 [B].
      goals: shapes and dtypes of one episode's goals.
    """

    score: Callable[[Any, jax.Array], jax.Array]
    goals: Any

    @classmethod
    def of(cls, reward: DifferentiableReward, metadata: Mapping[str, Any]) -> "Followed":
        """What programs need of a reward; `metadata` is that of any prompt."""
        shape = lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
        return cls(reward.score, jax.tree.map(shape, reward.goals([metadata])))


def groups_of(episodes, others, groups_P, size: int):
    """Groups of `size` episodes of two batches, numbered one after the other, as a batch like the first."""

    def pick(a, b):
        groups = lambda x: x.reshape(-1, size, *x.shape[1:])
        return jnp.concatenate([groups(a), groups(b)])[groups_P].reshape(a.shape)

    return jax.tree.map(pick, episodes, others)


def guidance_of(d: DistillationConfig, network: Painter) -> Guidance | None:
    """A teacher's; None where it has none."""
    if d.guidance <= 1:
        return None
    renorm = network.guidance_renorm if d.guidance_renorm == "model" else d.guidance_renorm
    return Guidance(text=d.guidance, interval=d.guidance_interval, renorm=renorm, renorm_min=d.guidance_renorm_min)


class Programs:
    """Both programs, jitted and not compiled.

    Attributes:
      everywhere: the sharding of what is replicated.
      spread: that of arrays with the episodes first.
      state_shardings: where the state lies.
      rollout: (params, autoencoder's, prompts, seed, step, first_id, pictures, turns) -> episodes.
      keep: (episodes, rows) -> those episodes.
      replace: (episodes, others, groups) -> those groups of both, numbered one after the other.
      update: (state, frozen, reference, episodes, advantages) -> (state, metrics); donates the state.
    """

    def __init__(
        self, config: RunConfig, network: Painter, autoencoder: Any, system: tuple[int, ...], layout: Layout, params: dict,
        thought: Callable[..., None] | None = None, followed: Followed | None = None,
    ):  # fmt: skip
        """`params` are the shapes of all parameters, adapters included; `thought` as in `RolloutProgram`; `followed` is
        the reward of the method `refl`."""
        self.config, self.layout, self._params, self._followed = config, layout, params, followed
        self._network, learning = network, config.learning
        self.everywhere, self.spread = meshes.replicated(layout.mesh), meshes.spread(layout.mesh)
        parts = meshes.batch_size(layout.mesh)
        rollout = config.rollout
        if learning.distils:  # no distillation reads a range
            rollout = dataclasses.replace(rollout, window_range=(0, rollout.window_size))
        program = self._sampling(training_rollout(
            rollout, network, autoencoder, learning.group_size, system, place=layout.condition, parts=parts,
            thought=thought,
        ))  # fmt: skip
        if layout.mesh.shape[meshes.SEQUENCE] > 1:
            program = dataclasses.replace(
                program, lay=lambda episodes: jax.lax.with_sharding_constraint(episodes, self.places(episodes))
            )

        laid = program.lay or (lambda episodes: episodes)

        def rollout(params, *given):
            return laid(program(self._gathered(params) if config.rollout.gather_weights else params, *given))

        # Where `sequence` cuts tokens an output lies where the program holds it, which differs from array to array.
        spread = self.spread if program.lay is None else None
        self.rollout = jax.jit(rollout, out_shardings=spread)
        policy = Policy(
            model=network,
            system=system,
            tokens=program.tokens,
            flow=program.flow,
            context_gradient=learning.context_gradient,
            window_steps=learning.window_steps,
            leash_times=learning.leash_times,
        )
        self._state = jax.eval_shape(lambda p: new_state(p, learning, network.trained_by), params)
        self.state_shardings = layout.like_parameters(self._state)
        check_cuts(network.cuts(), layout.mesh)
        update = self._learning(policy, autoencoder)
        keep = lambda episodes, rows: laid(jax.tree.map(lambda x: x[rows], episodes))
        self.keep = jax.jit(keep, out_shardings=spread)
        replace = lambda *given: laid(groups_of(*given, learning.group_size))
        self.replace = jax.jit(replace, out_shardings=spread)
        self.update = jax.jit(update.__call__, donate_argnums=0, out_shardings=(self.state_shardings, self.everywhere))

    def places(self, episodes: Episodes) -> Episodes:
        """Where each array of a batch of episodes lies."""
        placed, cut = jax.tree.map(lambda _: self.spread, episodes), lambda x: self.layout.transitions(x.shape)

        def segment(own, place):
            if not isinstance(own, Drawing):
                return place
            return place.replace(**{name: jax.tree.map(cut, getattr(own, name)) for name in ("x", "noise", "mean")})

        segments = map(segment, episodes.segments, placed.segments)
        return placed.replace(segments=tuple(segments))

    def _sampling(self, program: RolloutProgram) -> RolloutProgram:
        """The rollout that is made of that of training, which is it."""
        return program

    def _sampled_with(self, inputs: Inputs) -> dict:
        """The parameters that sample."""
        return inputs.state.params(inputs.frozen)

    def _learning(self, policy: Policy, autoencoder: Any) -> Callable[..., tuple[TrainState, dict]]:
        """(state, frozen, reference, episodes, advantages) -> (state, metrics)."""
        learning, matching = self.config.learning, None
        if learning.matching_weight:
            guidance = guidance_of(learning.distillation, policy.model)
            flow = dataclasses.replace(policy.flow, guidance=guidance)
            teacher = dataclasses.replace(policy, flow=flow, model=policy.model.one_time)
            whole = dataclasses.replace(learning, flow_weight=1.0)  # whatever the rewards' side weighs
            shift = self.config.rollout.timestep_shift
            matched = DistributionMatching(student=policy, teacher=teacher, config=whole, shift=shift)
            matching = Matching(objective=matched, seed=self.config.seed)
        return UpdateProgram(objective=self._objective(policy, autoencoder), config=learning, matching=matching)

    def _objective(self, policy: Policy, autoencoder: Any) -> Objective:
        learning = self.config.learning
        if learning.method in FORWARD:
            return FORWARD[learning.method](policy=policy, config=learning, seed=self.config.seed)
        if learning.method == "grpo":
            return Objective(policy=policy, config=learning)
        require(learning.method == "refl", f"learning.method = {learning.method!r} has programs of its own, and no plan "
                "yet; plan with grpo.")  # fmt: skip
        require(self._followed is not None, "learning.method = 'refl' follows a reward, and none was read; use grpo.")
        require(isinstance(autoencoder, PixelAutoencoder), "learning.method = 'refl' follows a reward into pixels, "
                "but not yet through an autoencoder, which this model has; use grpo.")  # fmt: skip

        def decode(tokens_BNC):
            return autoencoder.decode({}, policy.model.to_latent(tokens_BNC, policy.flow.grid))

        return RewardGradient(policy=policy, config=learning, decode=decode, score=self._followed.score)

    def _gathered(self, params: dict) -> dict:
        """Weights in the dtype that the network casts them to, whole along `fsdp`.

        Those that compute in float32 whatever that dtype is stay as they are.
        """
        keep = lambda path: re.fullmatch(self._network.float32_paths, path) is not None
        kind = lambda path, x: x if keep(path) else x.astype(self.config.model.dtype)
        flat = tree.flatten(params)
        return tree.unflatten({path: self.layout.gathered(path, kind(path, x)) for path, x in flat.items()})

    def inputs(
        self, stored: dict, autoencoder: Mapping[str, tuple[int, ...]], text: Any, talks: bool = False,
        shows: bool = False,
    ) -> Inputs:  # fmt: skip
        """What the programs are compiled from.

        Args:
          stored: shapes and dtypes of the parameters without adapters.
          autoencoder: names and shapes of the autoencoder's tensors.
          text: shapes and dtypes of the prompts of an iteration, as the network reads them.
          talks: whether the user says something in the later rounds.
          shows: whether the user shows a picture before each prompt.
        """
        at = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        lay = lambda flat: {path: at(x, self.layout.parameter(path, x.shape)) for path, x in flat.items()}
        labels = parameters.groups(self._params, self.config.learning, self._network.trained_by)
        _, frozen = parameters.split(self._params, labels)
        rollout = self.config.rollout
        here = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=self.everywhere)
        kept = self.reference_places(stored)
        copy = lambda path, x: jax.ShapeDtypeStruct(x.shape, kept[path][0], sharding=kept[path][1])
        text = jax.tree.map(lambda x: here(x.shape, x.dtype), text)
        flat = tree.flatten(stored)
        shows = shows or self._network.needs_picture
        seen = picture_shapes(rollout.prompts_per_iteration, self._network, rollout) if shows else None
        return Inputs(
            state=jax.tree.map(at, self._state, self.state_shardings),
            frozen=lay(frozen),
            reference=tree.unflatten({path: copy(path, x) for path, x in flat.items() if path in kept}),
            autoencoder={name: here(shape, np.float32) for name, shape in autoencoder.items()},
            prompt=text,
            turns=(text,) * (rollout.rounds - 1) if talks else (),
            picture=jax.tree.map(lambda x: here(x.shape, x.dtype), seen),
        )

    def reference_places(self, stored: dict) -> dict[str, tuple[np.dtype, jax.sharding.NamedSharding]]:
        """{path: dtype and place} of the reference policy's parameters.

        What is frozen is shared with the trained policy, but by a teacher that was named.  A copy of what is trained is kept
        in the compute dtype, to which the network would cast it: the numbers are the same, and bfloat16 takes half the
        memory.  {} where none is kept.
        """
        trained, learning, out = self._state.trained, self.config.learning, {}
        if learning.reference == "none":
            return out
        flat = tree.flatten(stored)
        if learning.distillation.teacher is not None:  # whose network has one time
            flat = {path: x for path, x in flat.items() if not is_second_time(path)}
        for path, x in flat.items():
            place = self.layout.parameter(path, x.shape)
            if path in trained and learning.reference == "host":
                place = place.with_memory_kind("pinned_host")
            out[path] = (np.dtype(jnp.dtype(self.config.model.dtype)) if path in trained else x.dtype, place)
        return out

    def trace(self, inputs: Inputs) -> tuple[jax.stages.Traced, jax.stages.Traced]:
        """Both programs, traced."""
        i = inputs
        given = (i.autoencoder, i.prompt, *(np.int32(0),) * 3, i.picture, i.turns)
        rollout = self.rollout.trace(self._sampled_with(i), *given)
        count = self.config.trained_episodes
        at = lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype)
        episodes = jax.tree.map(at, rollout.out_info)
        on = lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
        episodes = jax.tree.map(on, episodes, self.places(episodes))
        if self._followed is not None:
            one = lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype, sharding=self.spread)
            episodes = episodes.replace(goals=jax.tree.map(one, self._followed.goals))
        learning, r = self.config.learning, self.config.rollout
        shapes = advantage_shape(learning, r.rounds, modalities.names(self._network, r.size))
        whole = lambda shape: jax.ShapeDtypeStruct((count, *shape), np.float32, sharding=self.spread)
        advantages = jax.tree.map(whole, shapes, is_leaf=lambda x: isinstance(x, tuple))
        return rollout, self.update.trace(i.state, i.frozen, i.reference, episodes, advantages)

    def lower(self, inputs: Inputs) -> tuple[jax.stages.Lowered, jax.stages.Lowered]:
        """Both programs, ready to be compiled."""
        return tuple(traced.lower() for traced in self.trace(inputs))
