"""Runs with equal settings in one process take the programs of the first: tracing and compiling is most of a small run."""

import contextlib
import dataclasses
from collections.abc import Iterator

import pytest

_RUNS, _EVALUATIONS, _DRIFTS, _LOSSES = {}, {}, {}, {}


@contextlib.contextmanager
def shared_programs() -> Iterator[None]:
    """While it lasts, a trainer or an evaluator with the settings, sizes and places of an earlier one compiles nothing."""
    from unigrpo_jax.training.evaluation import Evaluator
    from unigrpo_jax.training.supervised import SupervisedEvaluator
    from unigrpo_jax.training.trainer import Trainer

    compile_anew, build_anew, hold_out_anew = Trainer.compile, Evaluator.__init__, SupervisedEvaluator.__init__

    def compile_once(self: Trainer) -> None:
        parts, config = self.parts, self.parts.config
        if parts.followed is not None:
            return compile_anew(self)
        model = dataclasses.replace(config.model, path=None)
        seed = config.seed if config.learning.method == "best_of_n" else None  # others are given it
        asked = (model, config.rollout, config.learning, seed, config.devices, config.mesh, self.inputs())
        key = repr((asked, *_model(parts.loaded, config.rollout)))
        if key not in _RUNS:
            compile_anew(self)
            _RUNS[key] = self._thought, self._compiled
        self._thought, self._compiled = _RUNS[key]  # the rollout tells the time to the first one's clock
        return None

    def build_once(self: Evaluator, evaluation, rollout, loaded, world, judging, layout, samples=0) -> None:
        build_anew(self, evaluation, rollout, loaded, world, judging, layout, samples)
        thinking = dataclasses.replace(rollout, thinking=evaluation.thinking)
        model = dataclasses.replace(loaded.config, path=None)
        kept = dict(source=None, data=None, prompts=0, every=0, seed=0, drift=0)  # the program is given the rest
        asked = dataclasses.replace(evaluation, **kept)
        drawn = dataclasses.replace(rollout, prompts_per_iteration=0)
        key = repr((asked, drawn, model, layout.mesh, self._count, *_model(loaded, thinking)))
        self._run = _EVALUATIONS.setdefault(key, self._run)
        self._drift = _DRIFTS.setdefault(f"{self._compared} {key}", self._drift)

    def hold_out_once(self: SupervisedEvaluator, parts) -> None:
        hold_out_anew(self, parts)
        if parts.held_out is not None:
            c = parts.config
            model = dataclasses.replace(c.model, path=None)
            key = repr((model, c.rollout, c.evaluation.batch, parts.layout.mesh, *_model(parts.loaded, c.rollout)))
            self._losses = _LOSSES.setdefault(key, self._losses)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "compile", compile_once)
        patch.setattr(Evaluator, "__init__", build_once)
        patch.setattr(SupervisedEvaluator, "__init__", hold_out_once)
        yield


def forget() -> None:
    """Lets go of all programs."""
    _RUNS.clear()
    _EVALUATIONS.clear()
    _DRIFTS.clear()
    _LOSSES.clear()


def _model(loaded, rollout) -> tuple:
    """What a program depends on beside the settings."""
    return dataclasses.replace(loaded.network, hold=None), loaded.autoencoder, loaded.codec.system(rollout)
