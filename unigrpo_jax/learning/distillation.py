"""The update of a distillation: what was drawn -> a better student, as one jitted program.

One optimizer step for each of `ppo_epochs * minibatches`, each at times and noises of its own; before each, with `dmd2`,
the fake score takes `fake_steps` of its own upon the same drawings.  Gradients are added over micro-batches.  What an
episode is looked at through is a function of (seed, iteration, optimizer step, number of the episode), so that neither
micro-batches nor devices nor a resume change it.
"""

import dataclasses

import jax
import jax.numpy as jnp

from unigrpo_jax.config import LearningConfig
from unigrpo_jax.episode import Episodes
from unigrpo_jax.learning import parameters, stepping
from unigrpo_jax.learning.distribution_matching import DistributionMatching
from unigrpo_jax.learning.fake_score import learned
from unigrpo_jax.learning.mean_flow import MeanFlow, with_errors
from unigrpo_jax.learning.objective import reduce_metrics
from unigrpo_jax.learning.update import TrainState
from unigrpo_jax.models import tree
from unigrpo_jax.rollout import randomness


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation:
    """(state, frozen, reference, episodes, weights) -> (state, metrics), pure.

    Attributes:
      objective: the student's loss, and that of the fake score where there is one.
      config: epochs, minibatches, optimizer.
      seed: of the run, for times and noises.
    """

    objective: MeanFlow | DistributionMatching
    config: LearningConfig
    seed: int

    def __call__(
        self, state: TrainState, frozen: dict, reference: dict, episodes: Episodes, weight_B
    ) -> tuple[TrainState, dict]:
        """One iteration's update.

        Args:
          state: trained parameters and optimizers; donate it.
          frozen: {path: array} of all other parameters.
          reference: nested parameters of the teacher; may share the frozen arrays.
          episodes: B episodes, B a multiple of minibatches * micro_batches.
          weight_B: not read; drawings count alike.

        Returns:
          The new state and scalar metrics.  Where a loss or gradient is not finite, that optimizer step is dropped, as in
          `UpdateProgram`.  Where no episode is finite nothing moves, and `update/without_signal` is 1.
        """
        c = self.config
        if c.reference == "host":
            reference = jax.device_put(reference, jax.memory.Space.Device)
        labels = parameters.groups(state.params(frozen), c, self.objective.student.model.trained_by)
        transform = parameters.optimizer(c, labels)
        signal, share = jnp.any(episodes.drawing.finite), stepping.rate_share(c, state.step)
        data = stepping.pieces((episodes, jnp.arange(len(episodes.drawing.finite))), c.minibatches * c.micro_batches)
        by_step = jax.tree.map(lambda x: x.reshape(c.minibatches, c.micro_batches, *x.shape[1:]), data)

        def optimizer_step(carry, given):
            (trained, moments, fake), (number, pieces), found = carry, given, {}
            keys, others = stepping.keys(self.seed, state.step, number, 1 + c.distillation.fake_steps), ()
            if fake is not None:
                student = tree.unflatten(frozen | trained)
                fake, found = learned(self.objective, fake, labels, student, reference, pieces, keys[1:], signal, share)
                others = (fake.params(reference),)
            loss = lambda flat, *given: self.objective(tree.unflatten(frozen | flat), *others, reference, *given)
            of = jax.grad(loss, has_aux=True)
            once = lambda piece: of(trained, piece[0], randomness.sample_keys(keys[0], piece[1]))
            grads, metrics = stepping.accumulate(once, pieces)
            trained, moments, updates, finite = stepping.stepped(transform, trained, moments, grads, metrics, signal, share)
            metrics |= stepping.group_norms(grads, labels, "grad_norm")
            metrics |= stepping.group_norms(updates, labels, "update_norm")
            dropped = jnp.maximum(1.0 - finite, jnp.float32(found.pop("fake/skipped", 0.0) > 0))
            return (trained, moments, fake), metrics | found | {"update/skipped": dropped}

        def epoch(carry, number):
            return stepping.scan(optimizer_step, carry, (number * c.minibatches + jnp.arange(c.minibatches), by_step))

        carry, metrics = stepping.scan(epoch, (state.trained, state.opt_state, state.fake), jnp.arange(c.ppo_epochs))
        metrics = jax.tree.map(lambda x: x.reshape(-1), metrics)
        state, counts = state.after(c, carry, metrics["update/skipped"], signal)
        return state, with_errors(reduce_metrics(metrics)) | counts
