"""Loading needs little host memory beside what the devices hold, whatever the size of the file.

    pytest -s -m slow tests/test_weights_memory.py

Writes a checkpoint of 4.3 GB into the temporary folder and removes it again.  Two minutes; seen on 2 CPU cores, in GB:

    parameters in memory      devices    on the devices    largest parameter    most beside the devices
    bfloat16                        1              4.33                 0.63                       0.70
    float32                         1              8.66                 1.26                       1.34
    bfloat16                        8              4.33                 0.63                       0.87
"""

import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SAMPLES = 0.002  # seconds between two looks at the memory
SLACK = 0.3e9  # bytes: stored tensors, the allocator, what the first use of a library takes


def big_config(vocabulary: int):
    from unigrpo_jax.models.bagel import BagelConfig

    return BagelConfig(
        vocab_size=vocabulary, hidden_size=2048, intermediate_size=11008, layers=14, heads=16, kv_heads=2, pad_token=0,
        bos_token=1, eos_token=2, image_start_token=3, image_end_token=4, latent_channels=3, latent_patch=2,
        max_latent_size=16,
    )  # fmt: skip


def write_safetensors(path: pathlib.Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A bfloat16 file by the format's own words, every tensor cut from one block of random numbers."""
    import numpy as np

    largest = max(math.prod(shape) for shape in shapes.values())
    block = np.random.default_rng(0).standard_normal(largest, np.float32).view(np.uint16)[1::2].tobytes()
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    words = json.dumps(header).encode()
    words += b" " * (-len(words) % 8)
    with open(path, "wb") as file:
        file.write(len(words).to_bytes(8, "little") + words)
        for shape in shapes.values():
            file.write(memoryview(block)[: 2 * math.prod(shape)])


@pytest.fixture(scope="module")
def big_folder(tmp_path_factory):
    import jax

    from unigrpo_jax.models.bagel import Bagel, layout, weights
    from unigrpo_jax.worlds.shapes import tokenizer

    folder = tmp_path_factory.mktemp("big") / "model"
    if shutil.disk_usage(folder.parent).free < 8e9:
        pytest.skip("needs 8 GB of disk for the temporary folder")
    if os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 14e9:
        pytest.skip("needs 14 GB of free memory")
    try:
        config = big_config(tokenizer.save(folder))
        layout.write_config(folder, config)
        shapes = weights.stored_shapes(config, jax.eval_shape(Bagel(config).init, jax.random.key(0)))
        write_safetensors(folder / "ema.safetensors", shapes)
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("param_dtype, devices", [("bfloat16", 1), ("float32", 1), ("bfloat16", 8)])
def test_loading_takes_at_most_about_one_parameter_beside_the_devices(big_folder, param_dtype, devices):
    """Of a process of its own: resident memory, less what it was before, less the arrays on the devices.

    On the CPU the devices' arrays lie in the same memory, hence the difference.
    """
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.test_weights_memory", str(big_folder), param_dtype]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    file, width = (big_folder / "ema.safetensors").stat().st_size, 2 if param_dtype == "bfloat16" else 4
    print(
        f"\n{param_dtype} on {devices} devices: file {file / 1e9:.2f} GB, devices {seen['loaded'] / 1e9:.2f} GB, largest "
        f"parameter {seen['largest'] / 1e9:.2f} GB, most beside the devices {seen['overhead'] / 1e9:.2f} GB, "
        f"{seen['seconds']:.0f} s, {seen['samples']} samples at most {seen['gap']:.2f} s apart"
    )
    assert file > 4e9 and seen["largest"] == 14 * 2048 * 11008 * width
    assert seen["loaded"] == pytest.approx(file * width / 2, rel=0.01)
    assert seen["gap"] < 0.1 * seen["seconds"], "too few samples to have seen the peak"
    assert seen["overhead"] < 1.25 * seen["largest"] + SLACK


def measure(folder: str, param_dtype: str) -> dict:
    """Loads the folder onto all devices while a thread watches; bytes and seconds."""
    import jax

    from tests.test_weights import cut
    from unigrpo_jax.config import ModelConfig
    from unigrpo_jax.models.families import load_model

    loaded = load_model(ModelConfig(path=folder, param_dtype=param_dtype))
    place = None if jax.device_count() == 1 else cut(jax.device_count())
    live = lambda: sum(x.nbytes for x in jax.live_arrays())
    jax.block_until_ready(jax.numpy.ones(8))
    loaded.check_weights()
    before, stop, seen, placed = resident() - live(), threading.Event(), [], [0]
    make_array = jax.make_array_from_callback

    def watched(shape, sharding, part):
        """JAX lists an array when it is whole; what is being copied to the devices counts as theirs, too."""

        def read(index):
            placed[0] = 0
            array = part(index)
            placed[0] = live() + math.prod(shape) * array.itemsize
            return array

        return make_array(shape, sharding, read)

    jax.make_array_from_callback = watched

    def watch():
        while not stop.is_set():
            held = max(live(), placed[0])  # first: what appears between the two counts against the loader
            seen.append((time.perf_counter(), resident() - held - before))
            time.sleep(SAMPLES)

    thread = threading.Thread(target=watch)
    thread.start()
    start = time.perf_counter()
    params = jax.block_until_ready(loaded.params(place))
    seconds = time.perf_counter() - start
    stop.set()
    thread.join()
    sizes = [x.nbytes for x in jax.tree.leaves(params)]
    times = [when for when, _ in seen]
    gap = max(b - a for a, b in zip(times[:-1], times[1:], strict=True))
    return {"loaded": sum(sizes), "largest": max(sizes), "overhead": max(size for _, size in seen), "seconds": seconds,
            "samples": len(seen), "gap": gap}  # fmt: skip


def resident() -> int:
    """Bytes of this process that lie in memory, mapped files included."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS:")).split()[1])


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:])))
