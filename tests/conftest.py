"""Settings every test runs under: CPU, eight devices, full float32 products, no silent rank promotion.

Compiling is most of a test's time, so the compiler is told to be quick; set XLA_FLAGS to test what it does otherwise.
"""

import gc
import os
import pathlib
import sys

from tests.quick import FLAGS

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count=8 {FLAGS}")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Processes that tests start have these, too, so that all share what one has compiled.
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # where each operation was written is not asked for

import jax
import numpy as np
import pytest

from tests import shared_programs

ROOT = pathlib.Path(__file__).resolve().parent.parent
MAPS = pathlib.Path("/proc/self/maps")
MANY_MAPS = 10_000  # Linux lets a process have 65530
gc.set_threshold(200_000, 20, 100)  # tracing makes many objects and little garbage to look for

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))


def pytest_terminal_summary(terminalreporter) -> None:
    """How many inputs the fuzz tests tried (not where pytest-xdist spreads them over processes)."""
    if "tests.fuzzing" in sys.modules:
        for line in sys.modules["tests.fuzzing"].summary():
            terminalreporter.write_line(line)


@pytest.fixture(scope="module", autouse=True)
def few_programs_held():
    """Forgets the compiled programs between test files where they have become many: each holds mappings of memory."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MANY_MAPS:
        shared_programs.forget()
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def fixtures() -> pathlib.Path:
    """The folder of recorded reference numbers, one folder for each source; other sets of them have other sizes."""
    folder = pathlib.Path(os.environ.get("UNIGRPO_FIXTURES", ROOT.parent / "shared" / "fixtures"))
    if not folder.is_dir():
        pytest.skip(f"no reference numbers in {folder}; set UNIGRPO_FIXTURES to their folder")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> pathlib.Path:
    """A model folder with random weights: two layers of width 32, the words of the shapes world, 24 x 24 pixels."""
    return tiny_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_rounds_model(tmp_path_factory) -> pathlib.Path:
    """The same with the words of the shapes worlds of several rounds."""
    return tiny_folder(tmp_path_factory.mktemp("models") / "tiny-rounds", rounds=True)


def tiny_folder(folder: pathlib.Path, rounds: bool = False) -> pathlib.Path:
    """Writes a tiny model."""
    from unigrpo_jax.models.bagel import Bagel, BagelConfig
    from unigrpo_jax.models.bagel.folder import save_model
    from unigrpo_jax.worlds.shapes import tokenizer

    config = BagelConfig(
        vocab_size=tokenizer.save(folder, rounds), hidden_size=32, intermediate_size=64, layers=2, heads=2, kv_heads=1,
        pad_token=0, bos_token=1, eos_token=2, image_start_token=3, image_end_token=4,
        latent_channels=3, latent_patch=8, max_latent_size=3, frequency_size=32,
    )  # fmt: skip
    rng, shapes = np.random.default_rng(0), jax.eval_shape(Bagel(config).init, jax.random.key(0))
    save_model(folder, config, jax.tree.map(lambda s: rng.normal(0.1, 0.1, s.shape).astype(np.float32), shapes))
    return folder


@pytest.fixture(scope="session")
def reference(fixtures, tmp_path_factory):
    """The public PyTorch BAGEL on tiny random weights (`tests.bagel_reference.Reference`)."""
    from tests.bagel_reference import load_reference

    return load_reference(fixtures / "bagel", tmp_path_factory.mktemp("reference") / "bagel")


@pytest.fixture(scope="session")
def assert_close():
    """Asserts max|x - reference| <= limit * max|reference| (the limit of the reference numbers)."""

    def check(actual, reference, limit=5e-5, name="array"):
        actual, reference = np.asarray(actual, np.float64), np.asarray(reference, np.float64)
        assert actual.shape == reference.shape, f"{name}: shape {actual.shape}, reference {reference.shape}"
        error = np.max(np.abs(actual - reference), initial=0.0)
        bound = limit * np.max(np.abs(reference), initial=0.0)
        assert error <= bound, f"{name}: largest error {error:.3g} is above {bound:.3g}"

    return check
