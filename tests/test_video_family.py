"""HunyuanVideo as a family: recorded runs by the house's own sampler, and the whole way of clips at toy size."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments.command_line import preset
from tests import tiny
from tests.command import command
from tests.moving import clip
from tests.test_resume import assert_same_state, metrics
from unigrpo_jax.clip_files import read_clip, save_clip
from unigrpo_jax.config import ConfigError, ModelConfig, RolloutConfig
from unigrpo_jax.episode import Drawing, Episodes
from unigrpo_jax.models.autoencoders.pixels import from_uint8
from unigrpo_jax.models.building.guidance import Guidance
from unigrpo_jax.models.families import find_folder, load_model
from unigrpo_jax.models.hunyuan_video.family import FROM_PICTURE
from unigrpo_jax.models.text_encoders.states import TextStates
from unigrpo_jax.rollout.dialogue import begin, hear, look
from unigrpo_jax.rollout.drawing import FlowSampler, denoise
from unigrpo_jax.rollout.not_finite import blank
from unigrpo_jax.rollout.program import training_rollout
from unigrpo_jax.rollout.step_rules import ODE
from unigrpo_jax.training.given import given_pictures, picture_shapes
from unigrpo_jax.training.restore import restore
from unigrpo_jax.worlds.prompt import Prompt


@pytest.fixture(scope="module")
def recorded(fixtures, tmp_path_factory):
    """The recorded arrays by file, their size in pixels and frames, and both models as folders of their pipelines."""
    own, folder = fixtures / "hunyuan_video", tmp_path_factory.mktemp("skyreels") / "folder"
    load = lambda name: dict(np.load(own / f"{name}.npz"))
    shutil.copytree(own / "pipeline", folder, copy_function=shutil.copyfile)
    for part in ("transformer", "scheduler"):
        shutil.copytree(own / "pipeline_i2v" / part, folder / part, copy_function=shutil.copyfile, dirs_exist_ok=True)
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": FROM_PICTURE}))
    settings = json.loads((own / "settings.json").read_text())
    told = {"t2v": (own / "pipeline", settings["guidance"]), "i2v": (folder, None)}  # the latter as it is where none is said
    models = {kind: load_model(ModelConfig(path=str(path), told_guidance=scale)) for kind, (path, scale) in told.items()}
    return load, (*settings["image_hw"], settings["frames"]), models


def drawn(recorded, kind: str, guidance: float = 1.0):
    """Times, the last latent [B, frames, h, w, C] by the house's sampler, and the autoencoder's parameters."""
    load, size, models = recorded
    loaded, run, text = models[kind], load("run"), load("text")
    network, params, autoencoder = loaded.network, loaded.params(), loaded.autoencoder_params()
    grid = network.grid(*size)
    said = lambda before: TextStates(text[f"{before}prompt_embeds"], text[f"{before}clip_pooled"],
                                     text[f"{before}prompt_mask"] > 0)  # fmt: skip
    text = said("").replace(empty=said("neg_"))
    times = network.times(len(run[f"{kind}_sigmas"]) - 1, 0, grid)
    own = Guidance(text=guidance, renorm=network.guidance_renorm) if guidance > 1 else None
    sampler = FlowSampler(schedule=tuple(times.tolist()), rule=ODE(), grid=grid, guidance=own)

    def draw(params, autoencoder, x):
        dialogue = begin(network, params, (), len(x))
        if kind == "i2v":
            latent = loaded.autoencoder.encode(autoencoder, from_uint8(run["image_u8"]))
            dialogue = look(network, params, dialogue, latent)
        dialogue = hear(network, params, dialogue, text)
        none = jnp.zeros(0, jnp.int32)
        tokens, _ = denoise(network, params, dialogue.full, x, None, none, sampler, (dialogue.without_text,))
        return network.to_latent(tokens, grid)

    init = network.to_tokens(np.moveaxis(run["init"], 1, -1))
    with jax.default_matmul_precision("highest"):
        return times, tiny.jit(draw)(params, autoencoder, init), autoencoder


def test_a_recorded_clip_from_text(recorded, assert_close):
    load, _, models = recorded
    run, loaded = load("run"), models["t2v"]
    assert loaded.network.guidance_scale == run["guidance"] and not loaded.codec.guided
    times, latent, params = drawn(recorded, "t2v")
    assert_close(times, run["t2v_sigmas"], 1e-6, "times")
    assert_close(latent, np.moveaxis(run["t2v_x"][-1], 1, -1), 2e-4, "latents")
    clip = tiny.jit(loaded.autoencoder.decode)(params, np.moveaxis(run["t2v_x"][-1, :1], 1, -1))
    assert_close(clip, np.moveaxis(run["t2v_clip0"], 1, -1), 2e-4, "clip")


@pytest.mark.parametrize("name, guided", [("i2v", True), ("i2v_nocfg", False)])
def test_a_recorded_clip_from_a_picture(recorded, assert_close, name, guided):
    """The picture's latents are the posterior's mean, as recorded; guidance compares with the empty text."""
    load, _, models = recorded
    run = load("run")
    assert models["i2v"].codec.guided and models["i2v"].network.guidance_scale == 1
    times, latent, _ = drawn(recorded, "i2v", float(run["true_cfg"]) if guided else 1.0)
    assert_close(times, run[f"{name}_sigmas"], 1e-6, "times")
    assert_close(latent, np.moveaxis(run[f"{name}_x"][-1], 1, -1), 2e-4, "latents")


# ---- the whole way at toy size

SMALL = ("--devices", 1, "--iterations", 1, "--evaluation.prompts", 2, "--evaluation.batch", 2, "--evaluation.flow-steps", 2,
         "--rollout.prompts-per-iteration", 1, "--rollout.flow-steps", 3, "--rollout.window-size", 1,
         "--rollout.window-range", 0, 2, "--rollout.noise-range", 0, 2, "--learning.group-size", 2,
         "--logging.samples", 2, "--evaluation.drift", 0)  # fmt: skip


def test_clips_are_drawn_judged_learned_shown_and_exported(tmp_path):
    run_dir, out, file = tmp_path / "run", tmp_path / "model", tmp_path / "clip.webp"
    texts = ("--model.embeddings.folder", tmp_path / "texts")
    outcome = command("experiments.run", "hunyuan_tiny", "--run-dir", run_dir, *SMALL, *texts)
    assert outcome.code == 0, outcome
    assert "32 x 32 px, 9 frames at 8 per second" in outcome.out
    (line,) = (json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines())
    assert line["flow/ratio_min"] == line["flow/ratio_max"] == 1 and line["flow/log_prob_gap_max"] < 1e-4
    assert any("colourfulness_mean" in name for name in line) and "video/frame_difference" in line
    (clip,) = (run_dir / "samples").glob("000001-1.*")
    frames, fps = read_clip(clip)
    assert len(frames) == 9 and fps == pytest.approx(8, rel=0.01)
    assert "<video" in (run_dir / "report.html").read_text() or clip.suffix == ".webp"
    assert command("experiments.export", run_dir, out).code == 0
    asked = ("--out", file, "--flow-steps", 1, "--frames", 5, "--fps", 4)
    outcome = command("experiments.generate", out, "a red circle", *asked)
    assert outcome.code == 0 and outcome.out == f"Wrote {file}\n", outcome
    frames, fps = read_clip(file)
    assert frames.shape == (5, 32, 32, 3) and fps == pytest.approx(4, rel=0.01)


def test_a_folder_that_diffusers_joined_of_two_is_read(tmp_path):
    """SkyReels' transformer in HunyuanVideo's folder, written with transformers 5, which calls its tokenizers otherwise."""
    video, picture = (load_model(ModelConfig(path=name)) for name in ("hunyuan_tiny", "skyreels_tiny"))
    shutil.copytree(video.folder, tmp_path / "joined")
    shutil.copytree(picture.folder / "transformer", tmp_path / "joined" / "transformer", dirs_exist_ok=True)
    index = {"_class_name": FROM_PICTURE, "tokenizer": ["transformers", "TokenizersBackend"]}
    about = {"tokenizer_class": "TokenizersBackend"}
    for name, said in (("model_index.json", index), ("tokenizer/tokenizer_config.json", about)):
        path = tmp_path / "joined" / name
        path.write_text(json.dumps(json.loads(path.read_text()) | said))
    joined = load_model(ModelConfig(path=str(tmp_path / "joined")))
    assert joined.network == picture.network and joined.codec.guided and not joined.unknown_settings
    text = joined.codec.bucket(["a red circle"])
    assert text == video.codec.bucket(["a red circle"])


@pytest.fixture(scope="module")
def moving(tmp_path_factory) -> pathlib.Path:
    """Two clips of 5 frames to learn, of which one goes on from another picture than its first frame, and two prompts."""
    folder = tmp_path_factory.mktemp("moving")
    Image.new("RGB", (40, 20), "red").save(folder / "a.png")
    for colour in range(2):
        save_clip(folder / f"{colour}.webp", clip(5, 32, 32, colour), 8)
    lines = [{"prompt": f"it moves {n}", "video": f"{n}.webp"} | ({"image": "a.png"} if n else {}) for n in range(2)]
    (folder / "clips.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    lines = [{"prompt": f"it moves {n}", "image": "a.png"} for n in range(2)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def from_picture(moving: pathlib.Path) -> tuple:
    """Settings of both runs, so that they draw by one program."""
    return *SMALL, "--rollout.frames", 5, "--model.embeddings.folder", moving / "texts"


def test_clips_go_on_from_pictures_and_are_judged_learned_and_exported(moving, tmp_path):
    run_dir, out = tmp_path / "run", tmp_path / "model"
    own = ("--prompts", moving / "prompts.jsonl", "--run-dir", run_dir)
    outcome = command("experiments.run", "skyreels_tiny", *from_picture(moving), *own)
    assert outcome.code == 0 and "guidance 5, 32 x 32 px, 5 frames at 8 per second" in outcome.out, outcome
    assert "frames:mean:colourfulness looks at neither prompts" in outcome.out.replace("\n", " ")
    (line,) = (json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines())
    assert line["flow/ratio_min"] == line["flow/ratio_max"] == 1 and line["flow/log_prob_gap_max"] < 1e-4
    frames, _ = read_clip(next((run_dir / "samples").glob("000001-1.*")))
    assert len(frames) == 5
    assert command("experiments.export", run_dir, out).code == 0
    trained, exported = (restore(str(path), preset([], "shapes")[0]) for path in (run_dir, out))
    assert exported.loaded.network.begins
    jax.tree.map(np.testing.assert_array_equal, trained.read(), exported.read())


def test_clips_are_learned_from_examples_and_a_resume_goes_on_bit_for_bit(moving, tmp_path):
    straight, stopped, data = tmp_path / "straight", tmp_path / "stopped", moving / "clips.jsonl"
    own = ("--data", data, "--evaluation.data", data, "--prompts", "--rewards", "--learning.group-size", 1,
           "--iterations", 2, "--rollout.prompts-per-iteration", 2, "--checkpoint.every", 1)  # fmt: skip
    words = ("experiments.sft", "skyreels_tiny", *from_picture(moving), *own, "--run-dir")
    outcome = command(*words, straight)
    assert outcome.code == 0 and not outcome.err, outcome
    summary = json.loads((straight / "summary.json").read_text())
    assert summary["after"]["flow_loss"]["overall"] < summary["before"]["flow_loss"]["overall"]
    assert (straight / "model" / "model_index.json").is_file()
    shutil.copytree(straight, stopped)
    shutil.rmtree(stopped / "checkpoints" / "2")
    resumed = command(*words, stopped, "--resume")
    assert resumed.code == 0 and "Resuming after iteration 1" in resumed.out, resumed
    assert metrics(stopped) == metrics(straight)
    assert_same_state(straight, stopped, 2)


@pytest.fixture(scope="module")
def skyreels():
    return load_model(ModelConfig(path="skyreels_tiny"))


def rollout_shapes(loaded, frames: int, **changes):
    """Episodes of two prompts, two each, from shapes alone."""
    settings = RolloutConfig(thinking=False, image_height=32, image_width=32, frames=frames, frames_per_second=8.0,
                             flow_steps=3, timestep_shift=0.0, window_size=1, window_range=(0, 2), **changes)  # fmt: skip
    program = training_rollout(settings, loaded.network, loaded.autoencoder, 2)
    picture = picture_shapes(2, loaded.network, settings) if loaded.network.begins else None
    shapes = {name: jax.ShapeDtypeStruct(x, np.float32) for name, x in loaded.autoencoder.shapes().items()}
    return jax.eval_shape(program.__call__, loaded.stored_params(), shapes, loaded.codec.shapes(2, 0), 0, 0, 0, picture)


@pytest.mark.parametrize("toy, size", [("hunyuan_tiny", (720, 1280, 129)), ("skyreels_tiny", (544, 960, 97))])
def test_a_folder_that_does_not_say_what_it_draws_draws_what_its_pipeline_does(toy, size, tmp_path):
    folder = shutil.copytree(find_folder(toy), tmp_path / "folder")
    path = folder / "vae" / "config.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in said.items() if not name.startswith("sample_")}))
    assert load_model(ModelConfig(path=str(folder))).published.rollout.items() >= {
        "image_height": size[0], "image_width": size[1], "frames": size[2]}.items()  # fmt: skip


def test_a_clip_of_one_frame_is_an_image():
    loaded = load_model(ModelConfig(path="hunyuan_tiny"))
    one, more = (rollout_shapes(loaded, frames) for frames in (1, 9))
    assert {name: x.shape for name, x in one.drawing.media.items()} == {"image": (4, 32, 32, 3)} and one.fps is None
    assert {name: x.shape for name, x in more.drawing.media.items()} == {"video": (4, 9, 32, 32, 3)} and more.fps == 8
    assert (one.drawing.x.shape, more.drawing.x.shape) == ((4, 1, 4, 64), (4, 1, 12, 64))


def test_episodes_that_go_on_from_a_picture_keep_its_latents(skyreels):
    episodes = rollout_shapes(skyreels, 9, guidance=5.0)
    assert episodes.picture.latent.shape == (4, 1, 4, 4, 16) and episodes.picture.patches is None
    assert episodes.drawing.media["video"].shape == (4, 9, 32, 32, 3)


def picture(tmp_path: pathlib.Path, height: int, width: int) -> Prompt:
    """A prompt with a picture whose left half is black, its right half white."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, width // 2 :] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return Prompt(text="it moves", metadata={}, picture=lambda: np.asarray(Image.open(tmp_path / "a.png")))


def test_a_first_frame_of_any_size_is_scaled_and_cut_out_of_its_middle(skyreels, tmp_path):
    settings = RolloutConfig(image_height=32, image_width=32)
    for size in ((32, 32), (16, 64), (64, 200)):
        found = given_pictures([picture(tmp_path, *size)], skyreels.network, settings)
        assert found.pixels.shape == (1, 32, 32, 3) and found.patches is None
        assert (found.levels[0, :, :14] < 40).all() and (found.levels[0, :, 18:] > 215).all()


def test_a_model_that_goes_on_from_a_picture_says_that_there_is_none(skyreels):
    with pytest.raises(ConfigError, match='goes on from a picture, .* the prompts come with none; give each an "image".$'):
        given_pictures([Prompt(text="it moves", metadata={})], skyreels.network, RolloutConfig())


def test_the_text_of_a_blank_episode_keeps_its_mask():
    """A mean over its tokens is then 0 and not 0 / 0, which would spoil the update of all others."""
    text = TextStates(np.full((2, 3, 4), np.inf, np.float32), np.ones((2, 5), np.float32), np.array([[1, 1, 0]] * 2, bool))
    x = jnp.ones((2, 1, 4, 2))
    drawn = Drawing(steps=jnp.zeros((2, 1), int), x=x, noise=x, mean=x, latent=x[:, 0], media={},
                    finite=jnp.array([True, False]))  # fmt: skip
    found = blank(Episodes(prompt=text, segments=(drawn,)), None).prompt
    np.testing.assert_array_equal(found.mask, text.mask)
    assert np.isinf(found.states[0]).all() and not found.states[1].any() and not found.pooled[1].any()


def test_shapes_of_pictures_that_nothing_would_see_are_refused():
    painter = load_model(ModelConfig(path="hunyuan_tiny")).network
    with pytest.raises(ConfigError, match="the model only draws and sees none; leave them out.$"):
        picture_shapes(2, painter, RolloutConfig())
