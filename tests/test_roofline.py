"""The roofline by hand arithmetic, and the order of a sweep with a compiler that is made up."""

import dataclasses

import pytest

from experiments.presets import bagel_7b
from launch.planning import roofline, sweep
from launch.planning.compile import find_model, find_work
from launch.planning.given import Given
from launch.planning.roofline import Phase
from tests import tiny
from unigrpo_jax.config import MeshConfig, RunConfig
from unigrpo_jax.models.bagel import flops
from unigrpo_jax.models.bagel.release import BAGEL_7B
from unigrpo_jax.models.work import Split
from unigrpo_jax.parallel.chips import CHIPS, Chip

CHIP = Chip(kind="gpu", flops=100.0, memory=1.0, bandwidth=10.0, links=5.0, network=1.0, source="made up")
RUN = RunConfig(rollout=tiny.ROLLOUT, learning=tiny.LEARNING)


def test_a_phase_takes_as_long_as_its_largest_bound():
    phase = Phase("drawing", flops=300.0, read=20.0, sent=10.0)
    assert phase.bounds(CHIP) == {"compute": 3.0, "memory": 2.0, "links": 2.0} and phase.seconds(CHIP) == 3.0
    across = dataclasses.replace(phase, networked=4.0)
    assert across.bounds(CHIP)["links"] == 6.0 == across.seconds(CHIP)
    alone = dataclasses.replace(CHIP, network=None)
    assert across.bounds(alone)["links"] == (10.0 + 4.0) / 5.0


def test_the_phases_of_bagel_7b_by_hand():
    """Table 3 on 64 chips, 16 x 4: weights of an expert's layers 6,525,288,448, bfloat16, a quarter on each chip."""
    run = bagel_7b.config()
    work = find_work(run, find_model(run.model), Given())
    found = {p.name: p for p in roofline.phases(run, work, Split(chips=64, batch=16, tensor=4), optimizer_bytes=1e9)}
    expert = 6525288448 * 2 / 4
    und = (6525288448 + 28 * (2 * 3584 + 2 * 128 + 3584 + 2 * 512) + 3584 + 152064 * 3584) * 2 / 4
    rows, slots = 768 / 4 / 16, 64 + 128 + 1024 + 2
    cache = rows * 2 * 28 * slots * 512 * 2 / 4
    assert found["thinking"].read == pytest.approx(4 * 1026 * (und + cache))
    assert found["drawing"].read == pytest.approx(4 * 25 * (2 * expert + cache))
    assert found["prefill"].read == pytest.approx(4 * 2 * expert)
    # Two minibatches of six pieces; reference, old, forward, recomputed forward, backward: five passes over both experts.
    assert found["update"].read == pytest.approx(12 * 5 * 2 * expert + 2 * 2 * 1e9)
    dense = flops.Flops(BAGEL_7B, executed=True)
    assert found["drawing"].flops == pytest.approx(768 * 25 * dense.velocity(4096, slots) / 64)


def test_what_is_sent_goes_to_its_phase():
    row = lambda phase, size, nodes=False: {"phase": phase, "bytes": size, "nodes": nodes}
    tables = {
        "rollout": [row("thinking", 1.0), row("drawing", 2.0), row("images", 4.0), row("other", 8.0)],
        "update": [row("other", 16.0), row("other", 32.0, nodes=True)],
    }
    names = ("prefill", "thinking", "drawing", "update")
    found = roofline.with_collectives([Phase(name, 0.0, 0.0) for name in names], tables, per_chip=2)
    assert {p.name: (p.sent, p.networked) for p in found} == {
        "prefill": (24.0, 0.0), "thinking": (2.0, 0.0), "drawing": (4.0, 0.0), "update": (32.0, 64.0)}  # fmt: skip


def test_samples_per_chip_hour_and_utilisation():
    n = flops.lengths(RUN, tiny.CONFIG, 0)
    found = [Phase("prefill", 200.0, 0.0), Phase("update", 0.0, 60.0)]
    got = roofline.estimate(RUN, tiny.MODEL.work(RUN, 0), CHIP, 4, found)
    seen = flops.Flops(tiny.CONFIG)
    model = sum(flops.rollout(RUN, seen, n).values()) + sum(flops.update(RUN, seen, n).values())
    assert got.seconds == 2.0 + 6.0 and got.samples_per_chip_hour == 16 / 8 / 4 * 3600
    assert got.model_flops == model and got.utilisation == model / (8 * 4 * 100)


def test_more_gathering_is_guessed_where_weights_are_cut_and_pieces_are_small():
    split = lambda tensor: Split(chips=4, batch=4 // tensor, tensor=tensor)
    guess = lambda run, fsdp, tensor=1: tiny.MODEL.work(run, 0).sent(split(tensor), fsdp)
    assert set(guess(RUN, 1).values()) == {0.0}
    pieces = dataclasses.replace(RUN, learning=dataclasses.replace(RUN.learning, micro_batches=2))
    assert guess(pieces, 4)["update"] == pytest.approx(2 * guess(RUN, 4)["update"])
    assert guess(RUN, 4)["thinking"] > guess(RUN, 2)["thinking"] > 0
    assert guess(RUN, 1, tensor=2)["drawing"] > 0


def test_every_chip_of_the_table_has_plausible_numbers_and_a_source():
    for name, chip in CHIPS.items():
        assert 1e14 < chip.flops < 1e16 and 10 < chip.memory < 300 and 5e11 < chip.bandwidth < 1e13, name
        assert 1e11 < chip.links < 2e12 and chip.source.startswith("https://"), name
        assert (chip.network is None) == (chip.kind == "tpu"), name


def outcome(fits: bool, speed: float | None, peak: int) -> sweep.Outcome:
    return sweep.Outcome("", fits, peak, None if speed is None else 1 / speed, speed)


def test_a_sweep_ranks_those_that_fit_by_speed_and_compiles_no_more_than_asked():
    said, asked = [], []
    results = {1: outcome(True, 5.0, 3), 2: outcome(False, None, 9), 3: outcome(True, 7.0, 4), 4: outcome(True, 99.0, 1)}

    def compile_(config):
        asked.append(config.seed)
        return results[config.seed]

    ordered = [sweep.Candidate(dataclasses.replace(RUN, seed=seed), 0.0, 0.0) for seed in results]
    ranked = sweep.sweep(ordered, 3, compile_, said.append)
    assert asked == [1, 2, 3] and [o.samples_per_chip_hour for o in ranked] == [7.0, 5.0, None]
    assert said[0].startswith("1 of 3: --mesh.data 0") and "does not fit" in said[3]


def candidates(limit: int) -> list[sweep.Candidate]:
    run = dataclasses.replace(bagel_7b.config(), mesh=MeshConfig(data=1, fsdp=64))
    known = sweep.Known(config=run, mesh=(1, 64, 1), state=10.0, temporaries=(40.0, 30.0))
    model = find_model(run.model)
    return sweep.candidates(known, CHIPS["v5p"], 64, 64, limit, lambda run: find_work(run, model, Given()), model)


def test_candidates_divide_and_those_that_should_fit_come_first():
    found = candidates(45)
    fits = [c.memory <= 45 for c in found]
    assert any(fits) and not all(fits) and fits == sorted(fits, reverse=True)
    guesses = [c.guess for c in found if c.memory <= 45]
    assert guesses == sorted(guesses, reverse=True)
    for candidate in found:
        mesh, config = candidate.config.mesh, candidate.config
        assert mesh.data * mesh.fsdp * mesh.tensor == 64 and BAGEL_7B.kv_heads % mesh.tensor == 0
        assert 768 // config.rollout.micro_batches % (mesh.data * mesh.fsdp) == 0
    assert len({c.flags() for c in found}) == len(found)


def test_memory_is_guessed_from_the_settings_that_were_compiled():
    run = dataclasses.replace(bagel_7b.config(), mesh=MeshConfig(data=1, fsdp=64))
    known = sweep.Known(config=run, mesh=(1, 64, 1), state=10.0, temporaries=(40.0, 30.0))
    assert sweep.guessed_memory(known, run, (1, 64, 1)) == 50.0
    half = dataclasses.replace(run, rollout=dataclasses.replace(run.rollout, micro_batches=8))
    assert sweep.guessed_memory(known, half, (1, 64, 1)) == 10.0 + 30.0
    assert sweep.guessed_memory(known, run, (2, 32, 1)) == 20.0 + 40.0
