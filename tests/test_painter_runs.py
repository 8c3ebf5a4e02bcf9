"""The whole way of a model that only draws, at toy size: train, checkpoint, resume, evaluate, generate, export."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from experiments.command_line import preset
from tests.command import command
from tests.moving import FPS, clip
from unigrpo_jax.clip_files import save_clip
from unigrpo_jax.config import ConfigError
from unigrpo_jax.models.folders.pipelines import Pipeline
from unigrpo_jax.training.restore import restore

SMALL = ("--evaluation.prompts", 4, "--evaluation.batch", 4, "--evaluation.flow-steps", 2, "--devices", 1,
         "--rollout.prompts-per-iteration", 2, "--rollout.flow-steps", 4, "--rollout.window-size", 2,
         "--rollout.window-range", 0, 4, "--rollout.noise-range", 0, 4, "--learning.reference", "device",
         "--evaluation.drift", 4)  # fmt: skip
JUDGED = ("--evaluation.no-thinking", "--rewards", "colourfulness", "--prompts", "examples")
PARTS = {"flux_tiny": "transformer", "sd_tiny": "unet"}


@pytest.fixture(scope="module", params=PARTS)
def trained(request, tmp_path_factory) -> tuple[str, pathlib.Path]:
    """Of adapters for FLUX, of all weights for Stable Diffusion, whose guidance is part of its policy."""
    run_dir = tmp_path_factory.mktemp("runs") / request.param
    own = ("--model.lora.rank", 2, "--model.lora.targets", r".*attn\.to_[qkv]") if request.param == "flux_tiny" else ()
    texts = ("--model.embeddings.folder", run_dir.parent / "texts")  # not what another compiler's flags left on this disk
    outcome = command("experiments.run", request.param, "--run-dir", run_dir, *SMALL, *own, *texts)
    assert outcome.code == 0, outcome
    if own:
        assert r".*attn\.to_[qkv] hits 12 layers" in outcome.out
    assert "reasoning parameters" not in outcome.out
    assert "in 2 of [0, 4), and in all of [0, 4), " + ("guidance 5, " if not own else "") + "32 x 32 px" in outcome.out
    return request.param, run_dir


def lines(run_dir: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_learns_on_policy_and_resumes_bit_for_bit(trained, tmp_path):
    preset, run_dir = trained
    first = lines(run_dir)
    for line in first:
        assert line["flow/ratio_min"] == line["flow/ratio_max"] == 1 and line["flow/log_prob_gap_max"] < 1e-4
    assert first[0]["flow/velocity_mse"] == 0 < first[1]["flow/velocity_mse"]
    assert not any(name.startswith("text/") for line in first for name in line)
    drift = json.loads((run_dir / "summary.json").read_text())["drift"]["flow"]
    assert min(drift["squared"]) > 0 and max(drift["pattern"]) < 1 and drift["times"][0] > drift["times"][1]
    copy = shutil.copytree(run_dir, tmp_path / "copy")
    shutil.rmtree(copy / "checkpoints" / "2")
    own = ("--model.lora.rank", 2, "--model.lora.targets", r".*attn\.to_[qkv]") if preset == "flux_tiny" else ()
    kept = ("--model.embeddings.folder", run_dir.parent / "texts", "--model.embeddings.gigabytes", 40)  # that may change
    outcome = command("experiments.run", preset, "--run-dir", copy, "--resume", *SMALL, *own, *kept)
    assert outcome.code == 0 and "Resuming after iteration 1" in outcome.out, outcome
    known = lambda line: {name: x for name, x in line.items() if "time" not in name and "per_second" not in name}
    assert known(lines(copy)[1]) == known(first[1])


def test_an_export_is_the_checkpoint_and_draws(trained, tmp_path):
    preset, run_dir = trained
    out = tmp_path / "model"
    outcome = command("experiments.export", run_dir, out)
    assert outcome.code == 0 and (out / "model_index.json").is_file(), outcome
    assert (out / "lora" / "adapter_config.json").is_file() == (preset == "flux_tiny")
    tables = []
    for path in (run_dir, out):
        asked = ("--preset", preset, "--evaluation.no-thinking", *SMALL[:8])
        outcome = command("experiments.evaluate", path, *asked, "--out", tmp_path / "table.json")
        assert outcome.code == 0, outcome
        tables.append(json.loads((tmp_path / "table.json").read_text())["table"]["colourfulness"])
    assert tables[0].keys() == tables[1].keys()
    for name, value in tables[0].items():
        assert value == pytest.approx(tables[1][name], abs=2e-3), name
    again = tmp_path / "again"
    assert command("experiments.export", out, again).code == 0
    part = f"{PARTS[preset]}/diffusion_pytorch_model.safetensors"
    first, second = load_file(out / part), load_file(again / part)
    assert first.keys() == second.keys() and all(first[name].tobytes() == second[name].tobytes() for name in first)
    picture = tmp_path / "drawn.png"
    outcome = command("experiments.generate", out, "a red circle", "--out", picture, "--flow-steps", 2)
    assert outcome.code == 0 and outcome.out == f"Wrote {picture}\n", outcome
    assert np.asarray(Image.open(picture)).shape == (32, 32, 3)


@pytest.mark.parametrize("words, said", [
    (["flux_tiny", "--rollout.thinking"], "only draws (flux), but rollout.thinking is on"),
    (["flux_tiny", "--rollout.guidance", 2], "(flux) is not guided by a second pass; use 1"),
    (["flux_tiny", "--evaluation.guidance", 2], "(flux) is not guided by a second pass; use 1"),
    (["flux_tiny", "--rollout.rounds", 2], "looks at no image, but rollout.rounds = 2"),
    (["flux_tiny", "--model.path", "sd_tiny"], "a model of the family stable_diffusion, and these settings are for flux"),
    (["flux_tiny", "--learning.credit-by", "colourfulness", "video"], "credit_by names video, but what "),
    (["flux_tiny", "--learning.modality-weights", "audio", 2], "is not divided into modalities; leave it out."),
    (["flux_tiny", "--model.family", "fluxx"], "there are bagel, flux, stable_diffusion, hunyuan_video, ltx2"),
    (["flux_tiny", "--rollout.image-height", 20], "both sides must be multiples of 8"),
    (["flux_tiny", "--model.lora.rank", 2, "--model.lora.targets", "layers/.*"], "model.lora.targets: "),
    (["sd_tiny", "--rollout.timestep-shift", 3], "spaced by its scheduler file, not shifted; use 0"),
    (["sd_tiny", "--rollout.flow-steps", 1001, "--rollout.window-range", 0, 5], "from 1 to the 1000 steps"),
    (["sd_tiny", "--rollout.flow-steps", 1000, "--rollout.window-range", 0, 5], "below 1000 // 1000 = 1; use fewer steps"),
    (["sd_tiny", "--evaluation.flow-steps", 2000], "evaluation.flow_steps, rollout.timestep_shift: steps = 2000: it must"),
    (["sd_tiny", "--evaluation.rounds", 2], "looks at no image, but evaluation.rounds = 2; use 1"),
    (["sd_tiny", "--model.lora.rank", 2, "--model.lora.targets"], "model.lora.targets names nothing; leave it out"),
    (["sd_tiny", "--model.lora.rank", 2, "--model.lora.targets", "x"], r"down_blocks.\d+.resnets.\d+.time_emb_proj, "),
    (["sd_tiny", "--prompts", "shapes"], "read pictures of 24 x 24 pixels, but 32 x 32 are drawn; set rollout.image_height"),
    (["sd_tiny", "--rewards", "shapes"], "rewards: shapes reads pictures of 24 x 24 pixels, but rollout draws 32 x 32"),
    (["flux_tiny", "--model.told-guidance", -1], "model.told_guidance = -1.0, but it must be 0 or more"),
    (["sd_tiny", "--model.floor-time"], "model.floor_time is a setting of flux alone"),
    (["sd_tiny", "--model.told-guidance", 2], "model.told_guidance is a setting of flux and hunyuan_video alone"),
    (["hunyuan_tiny", "--model.floor-time"], "model.floor_time is a setting of flux alone"),
    (["hunyuan_tiny", "--rollout.frames", 8], "rollout.frames: a video of 8 frames cannot be drawn: their number"),
    (["flux_tiny", "--rollout.frames", 9], "rollout.frames: this model draws images, not clips of 9 frames; use 1"),
    (["hunyuan_tiny", "--rollout.frames-per-second", 0], "rollout.frames_per_second = 0, but it must be from 0.1 to 240"),
    (["hunyuan_tiny", "--prompts", "shapes"], "the rules of these prompts read images, but clips are drawn; set"),
    (["hunyuan_tiny", "--rewards", "colourfulness"], "but clips of 9 frames are drawn; use frames:mean:colourfulness"),
    (["flux_tiny", "--rewards", "frames:min/2:colourfulness"], "draws images; use colourfulness."),
    (["hunyuan_tiny", "--rollout.frames", 999997], "the 268435456 pixels that a clip may have; use at most 262144"),
    (["skyreels_tiny", "--rollout.frames", 8], "rollout.frames: a video of 8 frames cannot be drawn: their number"),
    (["skyreels_tiny", "--prompts", "examples"], 'but the prompts come with none; give each an "image"'),
    (["hunyuan_tiny", "--prompts", "first_frames"], "at no picture, but the prompts come with pictures; take them out"),
    (["hunyuan_tiny", "--rollout.guidance", 2], "(hunyuan_video) is not guided by a second pass; use 1"),
    (["hunyuan_tiny", "--model.path", "skyreels_tiny"], "goes on from a picture, the first frame of what it draws, but the"),
    (["sd_tiny", "--rollout.noise-level", 1.5], "for ddim it is eta, at most 1"),
    (["sd_tiny", "--learning.minibatches", 2], "2 optimizer steps"),
    (["sd_tiny", "--learning.reference", "device", "--learning.leash-times", 0.0004],
     "0.0004 lies before the first of the 1000 steps"),
    (["flux_tiny", "--learning.leash-times", 0.5], "learning.reference = 'none' keeps none"),
])  # fmt: skip
def test_what_a_family_cannot_do_is_one_sentence(words, said, tmp_path):
    outcome = command("experiments.run", *words, "--run-dir", tmp_path / "run")
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and said in outcome.err, outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("module, words, said", [
    ("generate", ["sd_tiny", "a circle", "--flow-steps", 2000], "steps = 2000: it must be from 1 to the 1000 steps"),
    ("generate", ["flux_tiny", "a circle", "--guidance", 2], "(flux) is not guided by a second pass"),
    ("generate", ["flux_tiny", "a circle", "--guidance-image", 2], "so it cannot be guided by one"),
    ("generate", ["hunyuan_tiny", "a circle", "--frames", 10], "rollout.frames: a video of 10 frames cannot be drawn"),
    ("generate", ["hunyuan_tiny", "a circle", "--fps", 1000], "rollout.frames_per_second = 1000, but it must be from"),
    ("generate", ["hunyuan_tiny", "a circle", "--fps", 0], "rollout.frames_per_second = 0, but it must be from 0.1 to 240"),
    ("generate", ["hunyuan_tiny", "a circle", "--frames", 0], "rollout.frames = 0, but it must be at least 1"),
    ("generate", ["hunyuan_tiny", "a circle", "--frames", 1, "--fps", 8], "--fps is for clips, and one frame is drawn"),
    ("generate", ["flux_tiny", "a circle", "--fps", 8], "--fps is for clips, and one frame is drawn; leave it out"),
    ("evaluate", ["hunyuan_tiny", *JUDGED], "judges images, but clips of 9 frames are drawn; use frames:mean:colourfulness"),
    ("sft", ["hunyuan_tiny", "--data", "clips.jsonl", "--rollout.frames", 8], "rollout.frames: a video of 8 frames cannot"),
    ("sft", ["hunyuan_tiny", "--data", "both.jsonl"], 'both.jsonl, line 1: has an "image" beside its "video", but'),
    ("sft", ["flux_tiny", "--data", "clips.jsonl"], 'has no "image"; write the path of the picture that is to be learned'),
    ("sft", ["hunyuan_tiny", "--data", "clips.jsonl"], "its clip has 6 frames of 24 x 32 pixels (height x width), and the"),
    ("sft", ["hunyuan_tiny", "--data", "metadata.jsonl"], 'has no "video", and clips are drawn; write the path of the clip'),
    ("generate", ["flux_tiny", "a circle", "--frames", 5], "draws images, not clips of 5 frames; use 1"),
    ("generate", ["skyreels_tiny", "a circle"], "goes on from a picture, the first frame of what it draws; give one with"),
    ("geneval", ["write", "skyreels_tiny", "OUT", "--evaluation.no-thinking"], "prompts come without pictures, but"),
    ("evaluate", ["sd_tiny", *JUDGED, "--evaluation.flow-steps", 2000], "steps = 2000: it must be"),
    ("evaluate", ["flux_tiny", *JUDGED, "--evaluation.rounds", 2], "but evaluation.rounds = 2; use 1"),
    ("evaluate", ["flux_tiny", *JUDGED, "--prompts", "shapes_edit"], "only draws and sees none"),
    ("evaluate", ["flux_tiny", *JUDGED, "--prompts", "shapes"], "read pictures of 24 x 24 pixels, but 32 x 32 are drawn"),
    ("evaluate", ["sd_tiny", "--preset", "shapes", "--evaluation.no-thinking"], "not shifted; use 0"),
    ("evaluate", ["flux_tiny", "--evaluation.no-thinking"], "rewards: shapes reads pictures of 24 x 24 pixels"),
    ("geneval", ["write", "sd_tiny", "OUT", "--evaluation.no-thinking", "--evaluation.flow-steps", 2000], "steps = 2000"),
])  # fmt: skip
def test_what_a_family_cannot_do_is_said_before_its_weights_are_read(module, words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Pipeline, "params", lambda *_: pytest.fail("its weights were read"))
    (tmp_path / "metadata.jsonl").write_text('{"tag": "colors", "prompt": "a red circle", "include": []}\n')
    save_clip(tmp_path / "a.webp", clip(), FPS)
    Image.fromarray(clip()[0]).save(tmp_path / "a.png")
    (tmp_path / "clips.jsonl").write_text('{"prompt": "it moves", "video": "a.webp"}\n')
    (tmp_path / "both.jsonl").write_text('{"prompt": "it moves", "video": "a.webp", "image": "a.png"}\n')
    more = ("--metadata", "metadata.jsonl") if module == "geneval" else ()
    outcome = command(f"experiments.{module}", *words, *more)
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and said in outcome.err, outcome


@pytest.mark.parametrize("name, sides", [("sd_tiny", (32, 32)), ("flux_tiny", (32, 32)), ("hunyuan_tiny", (32, 32)),
                                         ("skyreels_tiny", (32, 32)), ("base", (24, 24))])  # fmt: skip
def test_a_bare_model_draws_as_it_was_published(name, sides):
    rollout = restore(name, preset([], "shapes")[0]).as_published.config.rollout
    assert (rollout.image_height, rollout.image_width) == sides
    assert rollout.timestep_shift == (3 if name == "base" else 0)
    assert (rollout.frames, rollout.frames_per_second) == (9 if name in ("hunyuan_tiny", "skyreels_tiny") else 1, 24)


def test_prompts_are_encoded_before_the_networks_weights_are_read(tmp_path, monkeypatch):
    """Those that are held out, and those of all iterations, of which two are drawn by two."""
    texts = tmp_path / "texts"
    seen = []

    def read(*_):
        seen.append(len(list(texts.rglob("*.states"))))
        raise ConfigError("no further")

    monkeypatch.setattr(Pipeline, "params", read)
    words = ("--run-dir", tmp_path / "run", "--model.embeddings.folder", texts, *SMALL)
    outcome = command("experiments.run", "flux_tiny", *words)
    assert outcome.code == 2 and "no further" in outcome.err and seen == [4 + 2 * 2], (outcome, seen)
