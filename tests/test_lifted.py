"""Scanned layers, made in several threads at once, as where one program is compiled while another runs."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from flax import linen as nn

from unigrpo_jax.models.building import lifted


class Layer(nn.Module):
    """One product."""

    width: int = 2

    @nn.compact
    def __call__(self, x, _):
        return nn.Dense(self.width)(x), None


def test_one_thread_at_a_time_lifts_a_layer(monkeypatch):
    """Flax changes the fields of a layer while it makes another class of it, and raised RuntimeError in who looked then."""
    inside, seen = threading.Semaphore(1), []

    def watched(make):
        def slow(layer, **how):
            alone = inside.acquire(blocking=False)
            time.sleep(0.01)
            seen.append(alone)
            if alone:
                inside.release()
            return make(layer, **how)

        return slow

    for name in ("scan", "remat"):
        monkeypatch.setattr(lifted.nn, name, watched(getattr(nn, name)))
    how = dict(variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: lifted.scanned(lifted.recomputed(Layer), **how), range(8)))
    assert seen == [True] * 16 and all(issubclass(one, nn.Module) for one in found)
