"""Trains the network of the reward `shapes_scorer` on drawn scenes with slight pixel noise.

    python -m experiments.train_scorer --out FILE

The weights inside the package were made by exactly this command with its defaults.
"""

import dataclasses
import pathlib
import time

from experiments.command_line import command_line
from experiments.destination import file_to_write
from unigrpo_jax.config import require
from unigrpo_jax.foreign_text import tell


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScorerConfig:
    """Settings of supervised training."""

    out: pathlib.Path
    """File for the weights, NAME.safetensors."""
    seed: int = 0
    """Seed of weights, scenes and noise."""
    steps: int = 600
    """Optimizer steps."""
    batch: int = 32
    """Scenes of nine cells per step."""
    learning_rate: float = 3e-3
    """Peak of Adam's rate, from where a cosine leads to 0."""
    noise: float = 0.1
    """Largest standard deviation of the noise, where white is 1; each scene draws its own from 0 to this."""
    smoothing: float = 0.01
    """Share of a label that is spread over all 25, so that a cell never gets so sure that its gradient is lost."""


@command_line
def main(config: ScorerConfig) -> None:
    """Trains, prints the accuracy on fresh scenes, writes the file."""
    import jax
    import numpy as np
    import optax

    from unigrpo_jax.models.folders import stored
    from unigrpo_jax.worlds.shapes import scorer
    from unigrpo_jax.worlds.shapes.drawing import render
    from unigrpo_jax.worlds.shapes.scene import CELLS, Object

    require(config.out.suffix == ".safetensors", f"out: {config.out} does not end in .safetensors; name it so.")
    out = file_to_write(config.out, "--out")
    rng = np.random.default_rng(config.seed)

    def scenes(n: int, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """n pictures whose cells are empty or not with equal chance, and the classes [n, 9] of their cells."""
        kinds = rng.integers(0, scorer.EMPTY, (n, len(CELLS)))
        classes = np.where(rng.random(kinds.shape) < 0.5, kinds, scorer.EMPTY)
        scene = lambda row: [Object(*scorer.KINDS[k], cell) for k, cell in zip(row, CELLS, strict=True) if k < scorer.EMPTY]
        images = np.stack([render(tuple(scene(row))) for row in classes]) / 255
        noisy = images + noise[:, None, None, None] * rng.standard_normal(images.shape)
        return np.clip(noisy, 0, 1).astype(np.float32), classes

    def loss(params, images, classes):
        labels = optax.smooth_labels(jax.nn.one_hot(classes, scorer.EMPTY + 1), config.smoothing)
        return optax.softmax_cross_entropy(scorer.logits(params, images), labels).mean()

    transform = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps))
    params = scorer.init(jax.random.key(config.seed))
    state = (params, transform.init(params))

    @jax.jit
    def step(state, images, classes):
        params, moments = state
        value, gradient = jax.value_and_grad(loss)(params, images, classes)
        updates, moments = transform.update(gradient, moments)
        return (optax.apply_updates(params, updates), moments), value

    start = time.monotonic()
    for number in range(config.steps):
        state, value = step(state, *scenes(config.batch, config.noise * rng.random(config.batch)))
        if number % 100 == 0 or number == config.steps - 1:
            tell(f"step {number:4d}  loss {value:.4f}  {time.monotonic() - start:4.0f} s")
    out.parent.mkdir(parents=True, exist_ok=True)
    tensors = ((name, np.asarray(state[0][name])) for name in scorer.WEIGHTS)
    stored.write(out.parent, out.stem, scorer.WEIGHTS, tensors, "float16")

    params, classify = scorer.read(out), jax.jit(scorer.logits)
    for share in (0, 0.5, 1, 2):
        images, classes = scenes(500, np.full(500, share * config.noise))
        right = (classify(params, images).argmax(-1) == classes).mean()
        tell(f"noise {share * config.noise:.2f}: {right:.4%} of {classes.size} cells are read right")
    tell(f"wrote {out}")


if __name__ == "__main__":
    main()
