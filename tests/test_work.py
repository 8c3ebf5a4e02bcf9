"""What a painter's episodes cost, and what a mesh must divide, by hand."""

import dataclasses

import pytest

from launch.planning import roofline
from tests import tiny
from unigrpo_jax.config import ConfigError, LoraConfig, MeshConfig, ModelConfig, RunConfig
from unigrpo_jax.models.work import Evaluation, PainterWork, Split
from unigrpo_jax.parallel import mesh as meshes
from unigrpo_jax.parallel.rules import check_cuts

# 3 prompts x 4 episodes in 3 micro-batches, 5 steps of which 2 are trained, in 2 optimizer steps of 1 piece.
ROLLOUT = dataclasses.replace(tiny.ROLLOUT, prompts_per_iteration=3, micro_batches=3, thinking=False)
RUN = RunConfig(rollout=ROLLOUT, learning=dataclasses.replace(tiny.LEARNING, minibatches=2))
EACH = Evaluation(layers=90.0, others=10.0, weights=1000, summed=64.0, kept=7.0, scores=3.0)
ALONE = Split(chips=1, batch=1, tensor=1)


def work(run: RunConfig = RUN) -> PainterWork:
    return PainterWork(run=run, latents=6, each=EACH)


def changed(run: RunConfig = RUN, section: str = "learning", **settings) -> RunConfig:
    return dataclasses.replace(run, **{section: dataclasses.replace(getattr(run, section), **settings)})


def test_a_painter_draws_and_is_updated_and_has_no_other_phase():
    assert work().rollout() == work().rollout(executed=True) == {"drawing": 12 * 5 * 100}
    assert set(work().read(ALONE)) == set(work().sent(ALONE, 1)) == {"drawing", "update"}
    assert work().blocks() == [{}] and work().slot_bytes == 0
    names = [phase.name for phase in roofline.phases(RUN, work(), ALONE, optimizer_bytes=0.0)]
    assert names == ["drawing", "update"]


def test_a_guided_transition_evaluates_twice_in_rollout_and_update():
    guided = work(changed(section="rollout", guidance=5.0))
    assert guided.rollout()["drawing"] == 2 * work().rollout()["drawing"] == work().rollout(passes=2)["drawing"]
    assert {name: value / 2 for name, value in guided.update().items()} == work().update()
    for name, size in guided.read(ALONE).items():
        assert size == 2 * work().read(ALONE)[name]


def test_the_passes_of_a_painters_update_by_hand():
    forward = 12 * 2 * 100
    two = {"reference": forward, "old": forward, "forward": forward, "backward": 2 * forward, "remat": 0}
    assert work().update() == two
    assert work(changed(minibatches=1)).update() == two | {"old": 0}
    full = work(dataclasses.replace(RUN, model=ModelConfig(remat="full")))
    assert full.update() == two and full.update(executed=True) == two | {"remat": 12 * 2 * 90}
    scanned = changed(full.run, window_steps="scanned")  # each step again, and then each of its layers
    assert work(scanned).update(executed=True) == two | {"remat": 2 * 12 * 2 * 90}
    lora = work(dataclasses.replace(RUN, model=ModelConfig(lora=LoraConfig(rank=4))))
    assert lora.update()["backward"] == forward
    held = 12 * (2 + 3) * 100  # three states more, to which the iteration's start says nothing
    leash = work(changed(leash_times=(0.2, 0.5, 0.8)))
    assert leash.update() == {"reference": held, "old": forward, "forward": held, "backward": 2 * held, "remat": 0}
    assert leash.kept(ALONE) == work().kept(ALONE) / 2 * 5
    sampled = changed(method="diffusion_nft", minibatches=1)  # by another policy than the one that is trained
    assert work(sampled).update() == two
    epochs = work(changed(ppo_epochs=3)).update()
    assert (epochs["forward"], epochs["backward"]) == (3 * forward, 6 * forward)


def test_the_bytes_that_a_painter_reads_by_hand():
    """float32: 3 micro-batches of 5 steps; 2 pieces of reference, old, forward and backward."""
    assert work().read(ALONE) == {"drawing": 3 * 5 * 4000, "update": 2 * 4 * 4000}
    half = Split(chips=2, batch=1, tensor=2)
    assert work().read(half) == {"drawing": 3 * 5 * 2000, "update": 2 * 4 * 2000}
    assert work(changed(window_steps="scanned")).read(ALONE)["update"] == 2 * 2 * 5 * 4000  # two steps, each again
    phases = {p.name: p for p in roofline.phases(RUN, work(), ALONE, optimizer_bytes=100.0)}
    assert phases["update"].read == 2 * 4 * 4000 + 2 * 2 * 100  # two steps of the optimizer, read and written


def test_the_bytes_that_a_painter_sends_by_hand():
    assert set(work().sent(ALONE, 1).values()) == {0.0}
    four = Split(chips=4, batch=4, tensor=1)
    gathered, scattered = 4000 * 3 / 4, 2 * 4000 * 3 / 4
    assert work().sent(four, 4) == {"drawing": 15 * gathered, "update": 2 * (4 * gathered + scattered)}
    summed = 64 * 4 * 2 * 1 / 2  # of one sample's evaluation on one of two devices
    cut = work().sent(Split(chips=2, batch=1, tensor=2), 1)
    assert cut == {"drawing": 15 * 4 * summed, "update": 4 * 24 * summed}


def test_the_bytes_that_a_cut_sequence_sends_by_hand():
    """Two devices hold half of the tokens each, and so do two others with other heads: own sums, keys and values of all."""
    four = Split(chips=4, batch=1, tensor=2, sequence=2)
    long = dataclasses.replace(work(), each=dataclasses.replace(EACH, keys=40.0))
    weights, moved = 1000 / 2 * 4 / 2, 64 / 2 * 4 * 2 * 1 / 2 + 40 / 2 * 4 / 2
    update = 2 * (4 * weights + 2 * weights) + 4 * 24 * moved  # gradients are in float32, too
    assert long.sent(four, 1) == {"drawing": 15 * (weights + 4 * moved), "update": update}
    assert long.kept(four) == long.kept(ALONE) / 4


@pytest.mark.parametrize(
    ("settings", "evaluations"), [({}, 6 * 2), ({"window_steps": "scanned"}, 6), ({"micro_batches": 3}, 4)]
)
def test_what_a_painter_keeps_for_the_backward_pass_by_hand(settings, evaluations):
    run = changed(**settings)
    assert work(run).kept(ALONE) == evaluations * (7 * 4 + 3 * 4)
    assert work(run).kept(Split(chips=4, batch=2, tensor=2)) == work(run).kept(ALONE) / 4
    small = dataclasses.replace(run, model=ModelConfig(dtype="bfloat16"))
    assert work(small).kept(ALONE) == evaluations * (7 * 2 + 3 * 4)


def test_a_mesh_that_does_not_divide_what_a_network_cuts_is_one_sentence():
    """Flat parameters do not show their heads: 4 of them are 32 wide together, which 8 devices would divide."""
    mesh = meshes.make_mesh(8, MeshConfig(tensor=8))
    check_cuts({"fsdp": {"width": 30}, "tensor": {"heads": 16, "MLP": 48}}, mesh)
    with pytest.raises(ConfigError) as error:
        check_cuts({"tensor": {"MLP": 32, "heads": 4}}, mesh)
    assert str(error.value) == "heads = 4 does not divide over mesh.tensor = 8 (4 / 8 = 0.50); use mesh.tensor = 4."
