"""The plan: its refusals, its text and page, and a small preset compiled for TPUs where libtpu is installed."""

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import re

import jax
import pytest
from PIL import Image

from experiments.presets import bagel_7b, bagel_edit, flux_dance, hunyuan_dance, ltx2_rlhf, sd_dance
from launch.plan import show
from launch.planning import advice, compiler, sweep
from launch.planning.compile import (
    CLASSES,
    Compiled,
    cache_by_round,
    cache_bytes,
    factorings,
    find_model,
    find_work,
    prepare,
    required,
    slot_bytes,
    state_bytes,
)
from launch.planning.given import Given, find_given
from launch.planning.page import COLOURS, MEANING, page
from launch.planning.targets import PLANES, SHAPES, Target, find_target
from tests.command import HEADS, command
from unigrpo_jax.config import ConfigError, LoraConfig, MeshConfig
from unigrpo_jax.episode import Episodes
from unigrpo_jax.parallel import mesh as meshes

GIB = 2**30
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--topology", "v5p:4x4x4"]),
        (["--topology", "v9:2x2"], ["topology = 'v9:2x2'", "v5p", "h100", "such as v5p:4x4x4"]),
        (["--topology", "v5p"], ["v5p needs a shape", "4x4x8"]),
        (["--topology", "h100:2x"], ["h100:8x4 (4 nodes of 8)"]),
        (["--topology", "v5p:2x2x1", "--json", "nowhere/x.json"], ["nowhere/x.json", "folder does not exist"]),
        (["--topology", "v5p:2x2x1", "--sweep-limit", "0"], ["sweep-limit = 0"]),
    ],
)
def test_a_plan_that_cannot_be_made_is_one_sentence(arguments, words):
    outcome = command("launch.plan", "bagel_7b", *arguments)
    assert (outcome.code, outcome.out) == (2, "") and outcome.err.count("\n") == 1, outcome
    for word in words:
        assert word in outcome.err, outcome.err


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
@pytest.mark.parametrize("topology", ["v5p:2x2x1", "h100:8"])
def test_without_the_compiler_a_plan_says_what_to_install(topology):
    outcome = command("launch.plan", "bagel_7b", "--topology", topology)
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and "[tpu-plan]" in outcome.err, outcome


@needs_libtpu
@pytest.mark.parametrize(
    ("topology", "words"),
    [("v5p:3x3x3", ["topology = 'v5p:3x3x3' is none", "2x2x1, 2x2x2"]), ("v6e:3x3", ["v6e has 1x1, 2x2"])],
)
def test_a_topology_that_does_not_exist_lists_those_that_do(topology, words, capfd):
    with pytest.raises(ConfigError) as error:
        find_target(topology)
    assert all(word in str(error.value) for word in words), error.value
    assert capfd.readouterr() == ("", "")


@needs_libtpu
def test_targets_have_the_chips_they_are_named_after():
    for name, chips, devices, memory in (("v6e:16x16", 256, 256, 31.25), ("v5e:1x1", 1, 1, 15.75), ("v4:2x2x1", 4, 8, 15.25),
                                         ("h100:8x4", 32, 32, 75.6), ("h200:3", 3, 3, 133.0)):  # fmt: skip
        target = find_target(name)
        assert (target.chips, len(target.devices), target.memory) == (chips, devices, int(memory * GIB)), name
    assert find_target("h100:8x4").per_node == 8 and find_target("h100:8").per_node is None
    assert SHAPES["v6e"] == PLANES


def cpus(memory: float = 30.0) -> Target:
    """Eight fake devices with some chip's numbers."""
    from unigrpo_jax.parallel.chips import CHIPS

    return Target("v6e:2x4", CHIPS["v6e"], 8, jax.devices(), None, int(memory * GIB))


def test_a_mesh_that_does_not_divide_lists_those_that_do():
    """768 episodes in 12 pieces are 64 each, so 8 devices divide them; 5 do not."""
    config = dataclasses.replace(bagel_7b.config(), mesh=MeshConfig(data=1, fsdp=2, tensor=8))
    with pytest.raises(ConfigError, match="--mesh.data 1 --mesh.fsdp 8 --mesh.tensor 1"):
        prepare(config, cpus())


def test_factorings_divide_heads_width_and_episodes():
    config = bagel_7b.config()
    found = factorings(config, 8, find_model(config.model))
    assert found[0] == (1, 8, 1) and (1, 2, 4) in found and all(d * f * t == 8 for d, f, t in found)
    assert not any(t == 8 for _, _, t in found)  # four heads of keys


def test_adapters_that_hit_nothing_are_one_sentence():
    model = dataclasses.replace(bagel_7b.config().model, lora=LoraConfig(rank=4, targets=("nothing",)))
    with pytest.raises(ConfigError, match="^model.lora.targets: 'nothing' matches no projection; there are layers/gen/"):
        prepare(dataclasses.replace(bagel_7b.config(), model=model, mesh=MeshConfig(fsdp=8)), cpus())


def test_a_setting_that_has_nothing_to_do_with_the_mesh_gets_no_meshes():
    config = dataclasses.replace(bagel_7b.config(), mesh=MeshConfig(fsdp=8))
    config = dataclasses.replace(config, learning=dataclasses.replace(config.learning, frozen=("nothing",)))
    with pytest.raises(ConfigError, match="nothing") as error:
        prepare(config, cpus())
    assert "--mesh" not in str(error.value)


def test_the_cache_of_rounds_is_exact_arithmetic():
    """A slot is a key and a value of 28 layers, 4 heads of 128 bfloat16 numbers; 24 episodes on each of eight devices."""
    config = dataclasses.replace(bagel_edit.config(), mesh=MeshConfig(fsdp=8))
    setting = prepare(config, cpus(), Given(pictures=True, turns=True))
    slot = 2 * 28 * 4 * 128 * 2
    assert slot_bytes(setting) == slot == 57344 and setting.rows == 24
    latents, patches = 64 * 64 + 2, 70 * 70 + 2
    first, second = cache_by_round(setting)
    assert first["blocks"] == {"system": 64, "latents": latents, "patches": patches, "prompt": 128, "thinking": 1026}
    assert second["blocks"] == {"latents": latents, "patches": patches, "turn": 128, "thinking": 1026}
    assert first["bytes"] == 24 * slot * (64 + latents + patches + 128 + 1026)
    assert second["bytes"] == 24 * slot * (latents + patches + 128 + 1026)
    assert cache_bytes(setting) == first["bytes"] + second["bytes"]
    alone = cache_by_round(prepare(config, cpus()))
    assert [row["slots"] for row in alone] == [64 + 128 + 1026, latents + patches + 1026]


def test_what_a_plan_compiles_takes_the_pictures_and_turns_that_it_is_given():
    config = dataclasses.replace(bagel_edit.config(), mesh=MeshConfig(fsdp=8))
    inputs = prepare(config, cpus(), Given(pictures=True, turns=True)).inputs
    assert [block.tokens.shape for block in inputs.turns] == [(32, 128)]
    assert inputs.picture.pixels.shape == (32, 1024, 1024, 3) and inputs.picture.patches.shape == (32, 70, 70, 588)
    plain = prepare(config, cpus()).inputs
    assert plain.turns == () and plain.picture is None


@pytest.fixture
def edits(tmp_path):
    """Two prompts with a picture and a second turn."""
    Image.new("RGB", (48, 64)).save(tmp_path / "picture.png")
    line = {"prompt": "make it red", "image": "picture.png", "turns": ["now blue"]}
    path = tmp_path / "edits.jsonl"
    path.write_text("\n".join([json.dumps(line)] * 2))
    return path


def test_pictures_and_turns_are_what_is_said_else_what_the_prompts_have_else_the_presets(edits):
    named = dataclasses.replace(bagel_edit.config(), prompts=(str(edits),))
    assert find_given(named, "auto", "auto", Given()) == Given(pictures=True, turns=True)
    assert find_given(named, "no", "auto", Given()) == Given(pictures=False, turns=True)
    assert find_given(bagel_edit.config(), "auto", "auto", Given(pictures=bagel_edit.PICTURES)) == Given(pictures=True)
    assert find_given(bagel_edit.config(), "auto", "yes", Given()) == Given(turns=True)
    unread = dataclasses.replace(named, prompts=("nowhere.jsonl",))
    assert find_given(unread, "yes", "no", Given()) == Given(pictures=True)


@pytest.mark.parametrize(
    ("preset", "arguments", "given"),
    [
        ("bagel_edit", [], Given(pictures=True)),
        ("bagel_edit", ["--pictures", "no", "--turns", "yes"], Given(turns=True)),
        ("shapes_edit", [], Given(pictures=True)),
        ("shapes_story", [], Given(turns=True)),
        ("bagel_7b", [], Given()),
    ],
)
def test_the_command_plans_with_what_prompts_or_preset_give(monkeypatch, preset, arguments, given):
    seen = []
    monkeypatch.setattr("launch.plan.plan", lambda config, topology, given: seen.append(given) or {"failed": {}})
    monkeypatch.setattr("launch.plan.show", lambda numbers: [])
    outcome = command("launch.plan", preset, "--topology", "v5p:4x4x4", *arguments)
    assert outcome.code == 0 and seen == [given], outcome


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompts", "nowhere.jsonl"], ["nowhere.jsonl", "by --pictures and --turns, yes or no"]),
        (["--prompts", "EDITS", "--rollout.rounds", "3"], ["has 1 later turns", "use rollout.rounds = 2"]),
        (["--turns", "yes", "--rollout.rounds", "1"], ["--turns yes, but rollout.rounds = 1", "use rollout.rounds = 2"]),
    ],
)
def test_rounds_that_cannot_be_planned_are_one_sentence(arguments, words, edits):
    arguments = [str(edits) if argument == "EDITS" else argument for argument in arguments]
    outcome = command("launch.plan", "bagel_edit", "--topology", "v5p:2x2x1", *arguments)
    assert (outcome.code, outcome.out) == (2, "") and outcome.err.count("\n") == 1, outcome
    assert all(word in outcome.err for word in words), outcome.err


@needs_libtpu
@pytest.mark.parametrize("topology", ["v5p:4x4x4", "h100:8x4"])
@pytest.mark.parametrize(
    ("version", "asked", "words"),
    [
        ("0.0.52", "libtpu==0.0.42.*; extra == 'tpu'", "0.0.52 does not fit jax 9.9, which needs libtpu==0.0.42.*"),
        ("0.0.41", "libtpu>=0.0.42,<0.0.44; extra == 'tpu'", "pip install 'libtpu<0.0.44,>=0.0.42'"),
    ],
)
def test_a_compiler_that_does_not_fit_jax_is_one_sentence_before_anything_compiles(
    monkeypatch, topology, version, asked, words
):
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["numpy>=2", "libtpu==1; extra == 'other'", asked])
    monkeypatch.setattr(importlib.metadata, "version", {"libtpu": version, "jax": "9.9"}.get)
    outcome = command("launch.plan", "bagel_7b", "--topology", topology, "--mesh.fsdp", "64")
    assert (outcome.code, outcome.out) == (2, "") and outcome.err.count("\n") == 1 and words in outcome.err, outcome


@pytest.mark.parametrize(
    ("version", "asked", "library"),
    [
        ("0.0.42.1", ["libtpu==0.0.42.*; extra == 'tpu'"], None),
        ("0.0.43.dev20270101", ["libtpu>=0.0.42; extra == 'tpu'"], None),  # a nightly build
        ("0.0.52", ["numpy>=2"], None),  # nobody says which fits
        ("0.0.52", ["libtpu==0.0.42.*; extra == 'tpu'"], "/opt/libtpu.so"),
        (None, ["libtpu==0.0.42.*; extra == 'tpu'"], None),
    ],
)
def test_a_compiler_that_fits_or_of_which_nothing_is_known_is_tried(monkeypatch, version, asked, library):
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: asked)
    monkeypatch.setattr(compiler, "_version", {"libtpu": version, "jax": "9.9"}.get)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    if library:
        monkeypatch.setenv("TPU_LIBRARY_PATH", library)
    compiler.check_fits()


RET_CHECK = """INTERNAL: RET_CHECK failure (hlo.cc:12) async-update instruction
should have 1 operands but sees 3
=== Source Location Trace: ===
hlo.cc:12"""


class Broken:
    """A traced program that a compiler fails at."""

    out_info = Episodes(prompt=(), segments=())

    def lower(self, **given):
        raise jax.errors.JaxRuntimeError(RET_CHECK)


@pytest.mark.parametrize("compiles", [(), ("rollout",)], ids=["the first program", "the second program"])
@pytest.mark.parametrize("more", [[], ["--sweep"]], ids=["", "sweep"])
def test_what_the_compiler_raises_is_told_after_what_was_planned_before(monkeypatch, tmp_path, compiles, more):
    from launch.planning import compile as compiling

    compile_program = compiling.compile_program

    def program(setting, name):
        if name in compiles:
            return compiled(5.0, cache=1.0, trained=2.0)
        vars(setting)["traced"] = (Broken(), Broken())
        return compile_program(setting, name)

    monkeypatch.setattr(compiling, "compile_program", program)
    monkeypatch.setattr("launch.planning.targets.find_target", lambda name: cpus())
    files = ["--json", tmp_path / "plan.json", "--html", tmp_path / "plan.html"]
    outcome = command("launch.plan", "bagel_7b", "--topology", "v6e:2x4", "--mesh.fsdp", "8", *files, *more)
    failed = "update" if compiles else "rollout"
    words = "INTERNAL: RET_CHECK failure (hlo.cc:12) async-update instruction should have 1 operands but sees 3"
    assert outcome.code == 1 and outcome.err.count("\n") == 2 + len(compiles), outcome
    last = outcome.err.splitlines()[-1]
    assert last.startswith(f"launch.plan: the {failed} was not compiled; libtpu ") and last.endswith(f"said: {words}")
    assert f"with jax {jax.__version__} and jaxlib " in last
    assert "roofline, s" in outcome.out and "trained" in outcome.out and "not compiled shows no collectives" in outcome.out
    got = json.loads((tmp_path / "plan.json").read_text())
    assert list(got["programs"]) == list(compiles) and words in got["failed"][failed]
    assert f"The {failed} was not compiled" in (tmp_path / "plan.html").read_text()


@pytest.mark.parametrize("preset", ["flux_dance", "sd_dance", "ltx2_rlhf"])
@pytest.mark.parametrize("compiles", [True, False])
def test_a_plan_of_what_only_draws_shows_neither_cache_nor_thinking(monkeypatch, tmp_path, preset, compiles):
    from launch.planning import compile as compiling

    def program(setting, name):
        if compiles:
            return compiled(5.0, trained=2.0)
        vars(setting)["traced"] = (Broken(), Broken())
        return compile_program(setting, name)

    compile_program = compiling.compile_program
    monkeypatch.setattr(compiling, "compile_program", program)
    monkeypatch.setattr("launch.planning.targets.find_target", lambda name: cpus())
    files = ["--json", tmp_path / "plan.json", "--html", tmp_path / "plan.html"]
    outcome = command("launch.plan", preset, "--topology", "v6e:2x4", "--mesh.fsdp", "8", *files)
    assert outcome.code == (0 if compiles else 1), outcome
    got = json.loads((tmp_path / "plan.json").read_text())
    assert [phase["name"] for phase in got["phases"]] == ["drawing", "update"]
    assert got["estimate"]["seconds"] > 0 and 0 < got["estimate"]["utilisation"] < 1
    for text in (outcome.out, (tmp_path / "plan.html").read_text()):
        assert not re.search("cache|keys and values|thinking|prefill|looking", text), text


@pytest.mark.parametrize(
    ("preset", "hit"),
    [
        (flux_dance, [57 * 3, 19]),  # blocks of both kinds
        (sd_dance, [16 * 2 * 4]),  # a self- and a cross-attention each
        (ltx2_rlhf, [48 * 4 * 4, 48 * 2 * 4]),  # own and text's of clip and sound; what each takes from the other
    ],
)
def test_the_adapters_of_dancegrpos_presets_hit_every_attention(preset, hit):
    config = preset.config()
    assert list(find_model(config.model).network.hits(config.model.lora.targets).values()) == hit


def test_an_evaluation_of_flux_counts_all_tokens_of_its_text():
    """4096 of the picture and 512 of T5: by hand 57 blocks of 12 products of width 3072 each, and their attention."""
    config = flux_dance.config()
    short = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, prompt_tokens=18))
    by_hand = 57 * (2 * 12 * 3072**2 * 4608 + 4 * 3072 * 4608**2)
    for run in (config, short):  # its codec heeds no bucket
        work = find_work(run, find_model(run.model), Given())
        assert work.latents == 4096 and work.evaluation(0) == pytest.approx(by_hand, rel=1e-3)


def test_an_evaluation_of_a_clip_with_sound_counts_both_and_what_each_takes_from_the_other():
    """6144 tokens of the clip, 126 of its sound, 1024 of either text; by hand, of 48 blocks and of one half."""
    config = ltx2_rlhf.config()
    work = find_work(config, find_model(config.model), Given())
    n, m, text, w, a = 6144, 126, 1024, 4096, 2048
    clip = (4 + 2 + 8) * w**2 * n + 2 * w**2 * text + 2 * w * n * (n + text)
    sound = (4 + 2 + 8) * a**2 * m + 2 * a**2 * text + 2 * a * m * (m + text)
    clip_from_sound = 2 * w * a * n + 2 * a**2 * m + 2 * a * n * m
    sound_from_clip = 2 * a**2 * m + 2 * w * a * n + 2 * a * m * n
    by_hand = 2 * 48 * (clip + sound + clip_from_sound + sound_from_clip)
    assert work.each.layers == by_hand and work.evaluation() == pytest.approx(by_hand, rel=2e-3)
    # 256 episodes of 16 steps and two passes, of which 9 are trained with twice as much backwards.
    assert work.rollout() == {"drawing": 256 * 16 * 2 * work.evaluation()}
    assert sum(work.update().values()) == 256 * 9 * 2 * 3 * work.evaluation()


def test_a_plan_of_clips_with_sound_holds_what_is_trained_once_and_what_decodes_everywhere(fixtures):
    """All numbers of the transformer over eight devices; those of three frozen networks, in float32, on each."""
    count = json.loads((fixtures / "ltx2" / "param_shapes_full.json").read_text())["param_count"]
    config = dataclasses.replace(ltx2_rlhf.config(), mesh=MeshConfig(fsdp=8))
    setting = prepare(config, cpus(30.0))
    state, statistics = state_bytes(setting), 2 * (128 + 128)
    assert state["trained"] == pytest.approx(4 * count["transformer"] / 8, rel=0.01)
    assert state["optimizer"] == pytest.approx(2 * state["trained"], rel=0.01)
    assert state["frozen"] == 4 * (count["vae"] + count["audio_vae"] + count["vocoder"] + statistics)


def test_a_sweep_goes_on_behind_a_setting_at_which_the_compiler_fails():
    config = bagel_7b.config()
    ordered = [sweep.Candidate(dataclasses.replace(config, mesh=MeshConfig(fsdp=n)), 1.0, 1.0) for n in (8, 4, 2)]

    def compile_(changed):
        good = changed.mesh.fsdp == 4
        words = "" if good else "libtpu said"
        return sweep.Outcome("", good, *((GIB, 3.0, 4800.0) if good else (None,) * 3), failed=words)

    told = []
    outcomes = sweep.sweep(ordered, 3, compile_, told.append)
    assert [o.failed for o in outcomes] == ["", "libtpu said", "libtpu said"] and "fsdp 4" in outcomes[0].flags
    assert told.count("    not compiled; libtpu said") == 2
    text = "\n".join(show(numbers() | {"sweep": [dataclasses.asdict(o) for o in outcomes]}))
    assert text.count("not compiled   --mesh") == 2
    assert "libtpu said" in page(numbers() | {"sweep": [dataclasses.asdict(o) for o in outcomes]})


def test_a_refusal_of_the_compiler_tells_what_a_program_needs():
    refusal = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (32.85G) exceeds "
    assert required(refusal + "available HBM (31.25G).") == int(32.85 * GIB)
    assert required("INTERNAL: something else") is None


def test_state_and_cache_are_exact_arithmetic():
    """Table 3 over eight devices: float32 weights, two moments, a reference, and 24 episodes' bfloat16 cache."""
    setting = prepare(dataclasses.replace(bagel_7b.config(), mesh=MeshConfig(fsdp=8)), cpus())
    state = state_bytes(setting)
    # Both experts' seven matrices with q, k, v biases, the time embedder, and the latent's two maps.
    layer = 2 * 3584 * 3584 + 2 * 3584 * 512 + 3 * 3584 * 18944
    small = 256 * 3584 + 3584 + 3584 * 3584 + 3584 + 64 * 3584 + 3584 + 3584 * 64
    whole_on_each = 2 * 28 * (3584 + 2 * 512) + 64  # biases have no axis that fsdp cuts
    assert state["trained"] == 4 * ((2 * 28 * layer + small) // 8 + whole_on_each) == 2 * state["reference"]
    assert state["optimizer"] == pytest.approx(2 * state["trained"], abs=64) and state["average"] == 0
    assert setting.rows == 24
    assert cache_bytes(setting) == 24 * 2 * 28 * (64 + 128 + 1026) * 4 * 128 * 2


def numbers() -> dict:
    """A plan of made-up numbers, its update too large."""
    memory = dict.fromkeys(CLASSES, 0) | {"trained": 2 * GIB, "optimizer": 4 * GIB, "temporaries": 5 * GIB}
    row = {
        "kind": "all-gather",
        "axes": "fsdp",
        "phase": "thinking",
        "group": 4,
        "nodes": False,
        "times": 1026,
        "bytes": 7e9,
    }
    row["assumed"] = True
    program = {"memory": memory, "peak": 11 * GIB, "fits": True, "refused": False, "seconds": 61.0, "collectives": [row]}
    large = program | {"memory": memory | {"temporaries": 15 * GIB}, "peak": 21 * GIB, "fits": False, "collectives": []}
    bounds = {"compute": 1.0, "memory": 2.0, "links": 3.0}
    phase = {"name": "thinking", "flops": 1.0, "read": 1.0, "sent": 1.0, "networked": 0.0, "bounds": bounds, "seconds": 3.0}
    tried = {"flags": "--mesh.fsdp 4", "fits": True, "peak": 9 * GIB, "seconds": 3.0, "samples_per_chip_hour": 4800.0}
    refused = {"flags": "--mesh.fsdp 2", "fits": False, "peak": 30 * GIB, "seconds": None, "samples_per_chip_hour": None}
    return {
        "name": "<b>&name", "topology": "v5p:2x2x1", "chips": 4, "devices": 4, "mesh": {"data": 1, "fsdp": 4, "tensor": 1},
        "limit": 20 * GIB, "chip": {}, "episodes": 16, "programs": {"rollout": program, "update": large}, "host": 3 * GIB,
        "phases": [phase], "given": {"pictures": True, "turns": False}, "cache": {"slot": 2**20, "rows": 2, "rounds": [
            {"blocks": {"prompt": 100, "thinking": 28}, "slots": 128, "bytes": GIB // 4},
            {"blocks": {"latents": 256}, "slots": 256, "bytes": GIB // 2}]},
        "estimate": {"seconds": 3.0, "samples_per_chip_hour": 4800.0, "model_flops": 2e15, "utilisation": 0.25},
        "advice": {"update": [{"change": "--learning.micro-batches 2", "saves": 7 * GIB, "enough": True}]},
        "notes": ["a <note>"],
        "sweep": [tried | {"failed": ""}, refused | {"failed": ""}], "failed": {},
    }  # fmt: skip


def test_the_text_says_what_fits_what_is_sent_and_what_would_help():
    text = "\n".join(show(numbers()))
    for line in (
        "4 chips, data 1, fsdp 4, tensor 1",
        "trained                   2.00      2.00",
        "together                 11.00     21.00",
        "fits  TOO MUCH",
        "compiled in 61 + 61 s with 3.00 GiB of host memory",
        "7.00  all-gather         over fsdp (4), 1026 times, thinking",
        "thinking          1.00      2.00      3.00      3.00",
        "at least 3.0 s an iteration, at most 4800.0 samples per chip-hour; 2 PFLOP, at most 25 % of the peak",
        "update needs 1.00 GiB less",
        "7.00 GiB  --learning.micro-batches 2",
        "4800.0         3.0    9.0   --mesh.fsdp 4",
        "keys and values of 2 episodes that a device samples at a time, 1048576 bytes a slot:",
        "1            128    0.25   prompt 100, thinking 28",
        "2            256    0.50   latents 256",
        "all          384    0.75",
    ):
        assert line in text, f"{line!r} is not in\n{text}"
    assert "optimizer" in text and "average" not in text  # a class that is empty is not shown
    one = numbers()
    one["cache"]["rounds"].pop()
    assert "bytes a slot" not in "\n".join(show(one)) and "by round" not in page(one)


def test_the_page_escapes_and_its_bars_are_as_long_as_their_memory():
    text = page(numbers())
    assert "<td>2</td><td>256</td><td>0.50</td><td>latents 256</td>" in text
    assert "<b>&name" not in text and "&lt;b&gt;&amp;name" in text and "a &lt;note&gt;" in text
    widths = [float(width) for width in re.findall(r"<rect [^>]*width=([\d.]+) ", text)]
    first, second = widths[:3], widths[3:]
    assert len(widths) == 6 and first[2] / first[0] == pytest.approx(5 / 2, rel=0.01)
    assert sum(second) / sum(first) == pytest.approx(21 / 11, rel=0.01)
    line = float(re.search(r"<line x1=([\d.]+)", text)[1])
    begin = float(re.search(r"<rect x=([\d.]+)", text)[1])
    assert (line - begin) / sum(second) == pytest.approx(20 / 21, rel=0.01)
    assert set(COLOURS) == set(MEANING) == set(CLASSES) and len(set(COLOURS.values())) == len(COLOURS)


def compiled(temporaries: float, cache: float = 0.0, **state: float) -> Compiled:
    memory = dict.fromkeys(CLASSES, 0) | {name: int(value * GIB) for name, value in state.items()}
    return Compiled(memory | {"temporaries": int(temporaries * GIB), "cache": int(cache * GIB)}, 1.0, False, False, [])


def test_knobs_save_what_scaling_says_and_name_the_first_that_is_enough():
    """384 episodes of a minibatch over 8 devices: 48 each, in 6 pieces 8; 768 in 4 rollouts over 8: 24 each."""
    setting = prepare(dataclasses.replace(bagel_7b.config(), mesh=MeshConfig(fsdp=8)), cpus(30.0))
    found = {k.change: k for k in advice.knobs(setting, "update", compiled(26.0, trained=6.0))}
    pieces = found["--learning.micro-batches 8"]
    assert pieces.saves == pytest.approx((26 - 6) * GIB * (1 - 6 / 8)) and pieces.enough
    assert "--learning.micro-batches 12" not in found  # 8 is enough already
    lora = found["--model.lora.rank 64 --model.param-dtype bfloat16"]
    assert "--learning.reference none" not in found  # the leash needs it
    assert lora.saves > 20 * GIB  # Adam's 97 GiB, the gradients and half of the weights, an eighth each
    found = {k.change: k for k in advice.knobs(setting, "rollout", compiled(50.0, cache=10.0, trained=6.0))}
    rollouts = [k for change, k in found.items() if change.startswith("--rollout.micro-batches")]
    assert [(k.change[-2:], k.enough) for k in rollouts] == [("16", True), (" 8", False)]
    assert [k.saves for k in rollouts] == pytest.approx([60 * GIB * (1 - 4 / 16), 60 * GIB * (1 - 4 / 8)])


def test_a_clip_that_does_not_fit_is_told_how_long_it_may_be():
    """14 latent frames; of 20 GiB that grow with them 2 are too much, and a fourteenth is not enough."""
    config = dataclasses.replace(hunyuan_dance.config(), mesh=MeshConfig(fsdp=8))
    setting = prepare(config, cpus(30.0))
    for program, shown in (("update", compiled(26.0, trained=6.0)), ("rollout", compiled(20.0, trained=12.0))):
        found = [k for k in advice.knobs(setting, program, shown) if k.change.startswith("--rollout.frames")]
        assert [(k.change, k.enough) for k in found] == [("--rollout.frames 45", True)]
        assert found[0].saves == pytest.approx(20 * GIB * 2 / 14)
    assert not any("frames" in k.change for k in advice.knobs(setting, "update", compiled(36.0, trained=34.0)))
    short = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, frames=8))
    with pytest.raises(ConfigError, match="^rollout.frames: a video of 8 frames cannot be drawn: .*; use 9.$"):
        prepare(short, cpus(30.0))


@needs_libtpu
def test_slices_are_their_own_mesh_axis():
    target = find_target("v5e:2x2*2")
    assert (target.chips, len(target.devices), target.per_node) == (8, 8, 4)
    mesh = meshes.make_mesh(0, MeshConfig(fsdp=2), target.devices)
    assert dict(mesh.shape) == {"slice": 2, "data": 2, "fsdp": 2, "sequence": 1, "tensor": 1}
    for number, devices in enumerate(mesh.devices):
        assert {device.slice_index for device in devices.flat} == {number}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Rollout and update of `smoke` for four v5e chips, compiled once: the folder of its files, and what was printed."""
    folder = tmp_path_factory.mktemp("plan")
    with jax.default_matmul_precision("default"), (folder / "stderr").open("w+") as file:
        # The tests' own precision makes each product six, which compiles twice as long.
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            outcome = command("launch.plan", "smoke", "--topology", "v5e:2x2", "--mesh.fsdp", "2",
                              "--json", folder / "plan.json", "--html", folder / "plan.html")  # fmt: skip
        finally:
            os.dup2(kept, 2)
            os.close(kept)
    return folder, outcome


# Bytes that the plan of `small` said of each program; a compiler that is not listed is not compared with.
PLANNED = {("0.10.2", "0.0.42.1"): {"rollout": 18_150_152, "update": 69_259_776}}


@needs_libtpu
@pytest.mark.parametrize("program", ["rollout", "update"])
def test_the_planned_memory_of_a_small_preset_has_not_grown_by_more_than_5_percent(small, program):
    """Where it must grow, the new number stands here, in a commit that says why."""
    compilers = jax.__version__, importlib.metadata.version("libtpu")
    if compilers not in PLANNED:
        pytest.skip(f"no bytes are recorded of jax {compilers[0]} with libtpu {compilers[1]}")
    planned = json.loads((small[0] / "plan.json").read_text())["programs"][program]["peak"]
    assert planned <= 1.05 * PLANNED[compilers][program], f"{planned} bytes; {PLANNED[compilers][program]} are recorded"


@needs_libtpu
def test_a_small_preset_compiles_for_tpus(small):
    """Every number is there, and nothing else is printed."""
    tmp_path, outcome = small
    assert outcome.code == 0 and (tmp_path / "stderr").read_text() == "", outcome
    assert [line.split(" of ")[0] for line in outcome.err.splitlines()] == ["compiling the rollout", "compiling the update"]
    got = json.loads((tmp_path / "plan.json").read_text())
    assert got["chips"] == 4 and (got["mesh"]["data"], got["mesh"]["fsdp"], got["mesh"]["tensor"]) == (2, 2, 1)
    for program in got["programs"].values():
        assert program["fits"] and not program["refused"] and program["peak"] == sum(program["memory"].values())
        assert {row["axes"] for row in program["collectives"]} >= {"fsdp"}
    memory = got["programs"]["update"]["memory"]
    assert memory["optimizer"] == pytest.approx(2 * memory["trained"], rel=0.01)  # two moments
    thinking = [row for row in got["programs"]["rollout"]["collectives"] if row["phase"] == "thinking"]
    assert thinking and all(row["assumed"] for row in thinking)
    assert got["estimate"]["seconds"] == pytest.approx(sum(p["seconds"] for p in got["phases"]))
    assert "fits" in outcome.out and "<svg" in (tmp_path / "plan.html").read_text()


@needs_libtpu
def test_two_rounds_with_pictures_and_turns_compile_for_tpus(tiny_model, tmp_path):
    with jax.default_matmul_precision("default"):
        outcome = command("launch.plan", "smoke", "--model.path", tiny_model, "--topology", "v5e:1x1", "--rollout.rounds", 2,
                          "--rollout.flow-steps", 3, "--rollout.window-range", 0, 2, "--pictures", "yes", "--turns", "yes",
                          "--json", tmp_path / "plan.json", *HEADS)  # fmt: skip
    assert outcome.code == 0, outcome.err
    got = json.loads((tmp_path / "plan.json").read_text())
    assert got["given"] == {"pictures": True, "turns": True} and all(p["fits"] for p in got["programs"].values())
    first, second = got["cache"]["rounds"]
    assert first["blocks"] == {"latents": 9 + 2, "prompt": 18, "thinking": 26 + 2}
    assert second["blocks"] == {"latents": 9 + 2, "turn": 18, "thinking": 26 + 2}
    assert [p["name"] for p in got["phases"]] == ["prefill", "looking", "thinking", "drawing", "update"]
    lines = [line.split() for line in outcome.out.splitlines()]
    assert ["all", str(int(first["slots"] + second["slots"]))] == next(line[:2] for line in lines if line[:1] == ["all"])
