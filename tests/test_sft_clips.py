"""Learning from given clips: what is read, what is refused, the loss by hand, from a text and from a picture, and a run."""

import dataclasses
import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests import tiny
from tests.moving import FPS, clip
from tests.test_config import refusal
from unigrpo_jax.clip_files import check_clip, encode, has_pyav, save_clip
from unigrpo_jax.config import RolloutConfig
from unigrpo_jax.learning import parameters
from unigrpo_jax.learning.teaching import Lessons, Teaching, token_weights
from unigrpo_jax.learning.update import UpdateProgram, new_state
from unigrpo_jax.models.hunyuan_video.painter import HunyuanVideo
from unigrpo_jax.models.hunyuan_video.transformer import HunyuanVideoTransformer
from unigrpo_jax.models.text_encoders.states import TextStates
from unigrpo_jax.rollout import randomness
from unigrpo_jax.rollout.drawing import FlowSampler
from unigrpo_jax.rollout.step_rules import ODE
from unigrpo_jax.rollout.thinking import TokenSampler
from unigrpo_jax.training.taught import Pictures, read
from unigrpo_jax.worlds.examples import asked, read_examples

F, SIDE, B, DRAWS = 5, 32, 3, 2
ROLLOUT = RolloutConfig(thinking=False, image_height=SIDE, image_width=SIDE, frames=F)


# --- the loss -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class EveryFourth:
    """An autoencoder whose latents are the first of every four frames, and noise of its posterior."""

    def encode(self, params, clip, keys_B):
        """[B, 1 + (F - 1) / 4, H, W, 3] of clips or pictures."""
        latent = (clip if clip.ndim == 5 else clip[:, None])[:, ::4]
        return latent + 0.3 * jax.vmap(lambda key: jax.random.normal(key, latent.shape[1:]))(keys_B)


def painter(from_picture: bool) -> HunyuanVideo:
    """Of one block of each kind; a token is 2 x 2 pixels of a frame."""
    transformer = HunyuanVideoTransformer(
        channels=12, text_width=8, pooled_width=6, heads=2, axes=(2, 2, 4), double=1, single=1, guidance=False, refiner=1,
        from_picture=from_picture,
    )  # fmt: skip
    return HunyuanVideo(transformer=transformer, downsample=1)


def tokens(latent) -> np.ndarray:
    """Latents [B, frames, h, w, C] as tokens [B, N, 4 C], by hand: squares of 2 x 2 in planes."""
    b, frames, h, w, c = latent.shape
    cut = np.asarray(latent, np.float64).reshape(b, frames, h // 2, 2, w // 2, 2, c)
    return cut.transpose(0, 1, 2, 4, 6, 3, 5).reshape(b, -1, 4 * c)


@pytest.mark.parametrize("from_picture", [True, False])
def test_the_loss_of_clips_by_hand_and_a_step_upon_it(from_picture):
    """The velocity's squared error on noisy latents; what is gone on from is a sample of the picture's own posterior."""
    rng, model = np.random.default_rng(1), painter(from_picture)
    clips = rng.integers(0, 256, (B, F, 4, 4, 3)).astype(np.uint8)
    first = rng.integers(0, 256, (B, 4, 4, 3)).astype(np.uint8) if from_picture else None
    mask = np.arange(5) < np.array([[5], [2], [3]])
    text = TextStates(rng.normal(size=(B, 5, 8)).astype(np.float32), rng.normal(size=(B, 6)).astype(np.float32), mask)
    params, grid = tiny.nearby(jax.jit(model.init)(jax.random.key(0)), 0.1), model.grid(4, 4, F)
    lessons = Lessons(model=model, autoencoder=EveryFourth(), grid=grid, shift=0.0, draws=DRAWS)
    config = dataclasses.replace(tiny.LEARNING, method="sft", denoising_lr=1e-2, group_size=1)
    flow = FlowSampler(schedule=(1.0, 0.0), rule=ODE(), grid=grid)
    policy = dataclasses.replace(tiny.policy(), model=model, tokens=TokenSampler(), flow=flow)
    objective = Teaching(policy=policy, config=config)
    _, frozen = parameters.split(params, parameters.groups(params, config, model.trained_by))

    def once(state):
        episodes = lessons({}, text, None, clips, 5, 3, 0, first)
        update = UpdateProgram(objective=objective, config=config)
        state, found = update(state, frozen, params, episodes, token_weights(None, B))
        drawing, seen = episodes.drawing, episodes.picture
        condition = model.read(params, text, model.empty(B))
        if seen is not None:
            condition = model.begun(condition, seen.latent)
        v = [model.predict(params, drawing.x[:, n], drawing.times[:, n], grid, condition) for n in range(DRAWS)]
        return state, (found["flow/loss"], drawing, seen, jnp.stack(v, axis=1))

    state, once = new_state(params, config, model.trained_by), tiny.jit(once)
    state, (loss, drawing, seen, v) = jax.tree.map(np.asarray, once(state))

    def sample(levels, stream):
        keys = randomness.round_keys(5, 3, stream, 0, jnp.arange(B))
        latent = levels[:, ::4] / 127.5 - 1
        return tokens(latent + 0.3 * np.asarray(jax.vmap(lambda key: jax.random.normal(key, latent.shape[1:]))(keys)))

    data, noise = sample(clips, randomness.PICTURE), np.asarray(drawing.noise, np.float64)
    t = np.asarray(drawing.times, np.float64)[:, :, None, None]
    np.testing.assert_allclose(drawing.latent, data, atol=1e-5)
    np.testing.assert_allclose(drawing.x, (1 - t) * data[:, None] + t * noise, atol=1e-5)
    np.testing.assert_allclose(loss, np.mean((v - (noise - data[:, None])) ** 2), rtol=1e-5)
    assert drawing.x.shape == (B, DRAWS, 2 * 2 * 2, 12) and (seen is not None) == from_picture
    if from_picture:
        assert seen.latent.shape == (B, 1, 4, 4, 3)
        np.testing.assert_allclose(tokens(seen.latent), sample(first[:, None], randomness.FIRST), atol=1e-5)
    before = {path: np.asarray(x) for path, x in params.items()}
    still = {path for path, x in before.items() if (np.asarray(state.trained[path]) == x).all()}
    assert state.trained.keys() == before.keys() and all(path.endswith("to_k.bias") for path in still), still
    for _ in range(2):
        state, (last, *_) = once(state)
    assert last < loss


# --- what is read ---------------------------------------------------------------------------------------------------------


def write(folder, *lines):
    """FILE.jsonl of lines, a.webp of F frames of 32 x 32 pixels, and a picture of 40 x 20."""
    folder.mkdir(exist_ok=True)
    save_clip(folder / "a.webp", clip(F, SIDE, SIDE), FPS)
    Image.new("RGB", (40, 20), "red").save(folder / "a.png")
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "data.jsonl"


GOOD = {"prompt": "it moves", "video": "a.webp"}


def examples(file, clips=True):
    return read_examples(str(file), "--data", False, clips)


def test_a_line_is_a_prompt_and_a_clip_and_may_have_another_first_frame(tmp_path):
    file = write(tmp_path, GOOD, GOOD | {"image": "a.png", "source": "web"}, GOOD | {"image": None})
    found = examples(file)
    own, other, null = found.prompts
    assert found.unread == ("source",) and str(found.begun) == f"{file}, line 2" and null.picture is None
    drawn, first = read(own, ROLLOUT, True)
    assert drawn.shape == (F, SIDE, SIDE, 3) and (first == drawn[0]).all() and read(own, ROLLOUT, False)[1] is None
    drawn, first = read(other, ROLLOUT, True)
    assert first.shape == (SIDE, SIDE, 3) and (first == (255, 0, 0)).all() and (drawn[0] != first).any()
    for example, shown in ((own, drawn[0]), (other, np.full((20, 40, 3), (255, 0, 0)))):
        alone = asked(example, begins=True)
        np.testing.assert_array_equal(alone.picture(), shown)
        assert asked(example).picture is None and not {"video", "image"} & set(alone.metadata)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    clips, firsts = Pictures(ROLLOUT, 2, place, begins=True)([other, own])
    np.testing.assert_array_equal(clips, [drawn, drawn])
    np.testing.assert_array_equal(firsts, [first, drawn[0]])


def test_a_line_with_both_is_a_picture_where_pictures_are_learned(tmp_path):
    found = examples(write(tmp_path, GOOD | {"image": "a.png"}), clips=False)
    assert found.unread == ("video",) and found.begun is None and found.prompts[0].clip is None
    text = refusal(examples, write(tmp_path, GOOD), clips=False)
    assert 'line 1: has no "image"' in text and "or learn its clip with --rollout.frames." in text


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"prompt": "x", "image": "a.png"}, ['has no "video", and clips are drawn', "--rollout.frames 1"]),
        (GOOD | {"video": None}, ['has no "video"']),
        (GOOD | {"video": 3}, ['"video" is 3; write the path of a clip there']),
        (GOOD | {"video": ""}, ["\"video\" is ''; write the path"]),
        (GOOD | {"video": "b.webp"}, ["\"video\" is 'b.webp', but there is no such file"]),
        (GOOD | {"video": "../a.webp"}, ["leaves the folder", "put the clip there"]),
        (GOOD | {"video": "text.mp4"}, ["text.mp4 is not a clip that can be read (its first bytes"]),
        (GOOD | {"video": "empty.mp4"}, ["empty.mp4 is not a clip that can be read (it is empty)"]),
        (GOOD | {"video": "a.png"}, ["a.png is not a clip that can be read", "give an MP4, GIF or WebP file"]),
        (GOOD | {"image": "data.jsonl"}, ["data.jsonl is not a picture that can be read"]),
        (GOOD | {"image": "a.mp4"}, ["\"image\" is 'a.mp4', but there is no such file"]),
    ],
)
def test_what_is_no_example_is_refused_with_its_line(tmp_path, line, words):
    folder = tmp_path / "data"
    file = write(folder, GOOD, line)
    shutil.copy(folder / "a.webp", tmp_path / "a.webp")
    (folder / "text.mp4").write_text("not a clip at all")
    (folder / "empty.mp4").touch()
    text = refusal(examples, file)
    assert text.startswith(f"{file}, line 2: ") and all(word in text for word in words), text


def test_what_cannot_be_decoded_or_has_another_size_is_refused_with_its_line(tmp_path):
    file = write(tmp_path, *(GOOD | {"video": f"{name}.webp"} for name in ("long", "wide", "one", "cut")))
    save_clip(tmp_path / "long.webp", clip(F + 1, SIDE, SIDE), FPS)
    save_clip(tmp_path / "wide.webp", clip(F, SIDE, SIDE + 8), FPS)
    Image.fromarray(clip()[0]).save(tmp_path / "one.webp")
    (tmp_path / "cut.webp").write_bytes((tmp_path / "long.webp").read_bytes()[:200])
    long, wide, one, cut = examples(file).prompts
    text = refusal(read, long, ROLLOUT, False)
    assert "line 1): its clip has 6 frames of 32 x 32 pixels (height x width), and the run draws 5 frames of 32 x 32" in text
    assert "line 2): its clip has 5 frames of 32 x 40 pixels" in refusal(read, wide, ROLLOUT, False)
    assert "one.webp is not a clip that can be read (it is a single picture)" in refusal(read, one, ROLLOUT, False)
    assert "line 4" in (text := refusal(read, cut, ROLLOUT, False)) and "cut.webp is not a clip" in text


def test_without_pyav_an_mp4_says_what_to_install_before_anything_is_read(tmp_path, monkeypatch):
    file = write(tmp_path, GOOD | {"video": "a.mp4"})
    data = encode(clip(F, SIDE, SIDE), FPS, "mp4") if has_pyav() else b"\0\0\0\x20ftypisom"
    (tmp_path / "a.mp4").write_bytes(data)
    if has_pyav():
        assert read(examples(file).prompts[0], ROLLOUT, False)[0].shape == (F, SIDE, SIDE, 3)
        (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
        check_clip(tmp_path / "cut.mp4")
        half = write(tmp_path, GOOD | {"video": "cut.mp4"})
        assert "cut.mp4 is not a clip that can be read" in refusal(read, examples(half).prompts[0], ROLLOUT, False)
    file = write(tmp_path, GOOD | {"video": "a.mp4"})
    monkeypatch.setitem(sys.modules, "av", None)
    text = refusal(examples, file)
    assert "line 1" in text and "pip install 'unigrpo_jax[video]'; or give a GIF or WebP file" in text
