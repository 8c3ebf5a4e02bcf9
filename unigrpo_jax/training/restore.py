"""Weights for use: from a run folder, one of its checkpoints, or a model folder."""

import dataclasses
import sys
from collections.abc import Callable

import jax
from etils import epath

from unigrpo_jax.config import ConfigError, MeshConfig, RunConfig
from unigrpo_jax.config_checks import check
from unigrpo_jax.config_json import load_run_config
from unigrpo_jax.learning.update import new_state
from unigrpo_jax.models.building.second_time import is_second_time
from unigrpo_jax.models.families import BASES, HUB_PATTERN, NoModel, is_named, load_model
from unigrpo_jax.models.loaded import Loaded
from unigrpo_jax.models.tree import flatten, unflatten
from unigrpo_jax.parallel import kernels
from unigrpo_jax.parallel import mesh as meshes
from unigrpo_jax.parallel.frozen import on_own_devices
from unigrpo_jax.parallel.rules import Layout
from unigrpo_jax.training import storage
from unigrpo_jax.training.checkpoint import Checkpoints
from unigrpo_jax.training.distilled import student_of
from unigrpo_jax.training.run_folder import check_same_weights

EXPECTED = (f"expected `base`, {', '.join(f'`{name}`' for name in BASES)}, a model folder, a run folder such as "
            "runs/shapes, or RUN/checkpoints/N")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Restored:
    """A model ready for use.

    Attributes:
      config: of the run it comes from; defaults where it is a bare model folder.
      loaded: its folder, tokenizer and network; of a distillation's run the student is what that makes.
      layout: the devices, and where every array lies on them.
      read: reads the weights onto them; to be called when all else is checked.  ConfigError where they do not fit.
      name: for titles and file names.
      folder: where results about it belong.
      is_bare: it is a model folder, and `config` was assumed.
      reference: given the weights, those that the run's learning holds to, what is trained in the compute dtype; None where
        it keeps none.
    """

    config: RunConfig
    loaded: Loaded
    layout: Layout
    read: Callable[[], dict]
    name: str
    folder: epath.Path
    is_bare: bool
    reference: Callable[[dict], dict] | None = None

    @property
    def as_published(self) -> "Restored":
        """The same, where it is a bare model folder of a released kind drawing and judged as that was published."""
        published = self.loaded.published
        if published is None or not self.is_bare:
            return self
        rollout = dataclasses.replace(self.config.rollout, **published.rollout)
        evaluation = dataclasses.replace(self.config.evaluation, **published.evaluation)
        return dataclasses.replace(self, config=dataclasses.replace(self.config, rollout=rollout, evaluation=evaluation))


def restore(path: str, bare: RunConfig, devices: int = 1, mesh: MeshConfig = MeshConfig()) -> Restored:  # noqa: B008 (frozen)
    """Finds weights, and checks all that can be checked without reading them.

    Args:
      path: the name of a model in the package ("base" and others), a model folder or anything else that `model.path`
        takes, a run folder (its newest checkpoint), or RUN/checkpoints/N.
      bare: the config to assume for a model folder, which has no run.
      devices: number of devices to use; 0 is all.
      mesh: how they are arranged.

    Raises:
      ConfigError: nothing of that kind is there, or it does not fit together.
    """
    folder, devices_mesh = storage.path(path), meshes.make_mesh(devices, mesh)
    is_run = (folder / "checkpoints").is_dir() or folder.parent.name == "checkpoints"
    named = path == "base" or is_named(path)
    if named or (folder.is_dir() and not is_run) or (not folder.exists() and HUB_PATTERN.fullmatch(path)):
        model = dataclasses.replace(bare.model, path=None if path == "base" else path, family="")
        try:
            loaded = load_model(model)
        except NoModel:
            raise ConfigError(f"{path} is no checkpoint: {EXPECTED}; nor does the Hugging Face hub give one here.") from None
        loaded.check_weights()
        layout = Layout(devices_mesh, loaded.network.axes)
        name = "base" if path == "base" else folder.resolve().name
        config, results = dataclasses.replace(bare, model=model), epath.Path("runs") / name
        read = lambda: loaded.params(layout.parameter)
        return Restored(config, _placed(loaded, layout), layout, read, name, results, True)
    numbered = folder.parent.name == "checkpoints" and folder.name.isdigit()
    run_dir = folder.parent.parent if numbered else folder
    if not (run_dir / "config.json").is_file() or not (run_dir / "checkpoints").is_dir():
        raise ConfigError(f"{path} is no checkpoint: {EXPECTED}.")
    config = load_run_config(run_dir / "config.json")
    check(config)
    loaded = load_model(config.model)
    loaded.check_image_size(config.rollout)
    layout = Layout(devices_mesh, loaded.network.axes)
    checkpoints = Checkpoints(run_dir / "checkpoints")
    step, troubles = (int(folder.name), []) if numbered else checkpoints.newest()
    print(*troubles, sep="\n", end="\n" if troubles else "", file=sys.stderr)
    if step is None or step not in checkpoints.steps():
        there = ", ".join(map(str, checkpoints.steps())) or "none"
        raise ConfigError(f"{path}: there is no such checkpoint; {run_dir / 'checkpoints'} holds {there}.")
    loaded.check_weights()
    check_same_weights(folder, checkpoints.facts(step)["model_sha256"], loaded)

    fresh = lambda params: new_state(params, config.learning, loaded.network.trained_by)
    like = jax.eval_shape(fresh, loaded.abstract_params())
    if config.learning.distils:  # what the run made draws otherwise than what it began with
        loaded = dataclasses.replace(loaded, student=student_of(config, loaded))

    def read() -> dict:
        at = lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
        judged = checkpoints.load_judged(step, jax.tree.map(at, like, layout.like_parameters(like)))
        return unflatten(flatten(loaded.params(layout.parameter, lambda path: path not in judged)) | judged)

    def reference(params: dict) -> dict:
        there, new = flatten(loaded.stored_params()), _second_time(loaded, layout)
        computed = dataclasses.replace(loaded.config, param_dtype=loaded.config.dtype)  # in which a run keeps them, too
        first = dataclasses.replace(loaded, config=computed).params(layout.parameter, lambda path: path in like.trained)
        first = flatten(first) | new
        return unflatten({path: first.get(path, x) for path, x in flatten(params).items() if path in there | new})

    held = reference if config.learning.keeps_start else None
    name = f"{run_dir.resolve().name}-{step}"
    return Restored(config, _placed(loaded, layout), layout, read, name, run_dir, False, held)


def _second_time(loaded: Loaded, layout: Layout) -> dict[str, jax.Array]:
    """{path: parameter} of a second time that no file holds, as it is at the start of a run; {} where there is none."""
    own = lambda params: {path: x for path, x in flatten(params).items() if is_second_time(path)}
    if not loaded.network.fresh_time:
        return {}
    places = {path: layout.parameter(path, x.shape) for path, x in own(loaded.abstract_params()).items()}
    return jax.jit(lambda: own(loaded.with_fresh(loaded.stored_params())), out_shardings=places)()


def _placed(loaded: Loaded, layout: Layout) -> Loaded:
    """The model with a network that runs on the layout's devices; ConfigError where they cannot hold it."""
    tokens = layout.sequence(loaded.network.cuts())
    for path, x in flatten(loaded.abstract_params()).items():
        layout.parameter(path, x.shape)
    attend = kernels.attend(loaded.config, layout.mesh)
    return loaded.placed(layout.activations, attend, on_own_devices(layout.mesh), tokens)
