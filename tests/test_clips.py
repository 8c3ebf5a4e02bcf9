"""Clips on their way: episodes' media, reward batches, rewards of images frame by frame, and canaries that none sees."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments.generate import write_drawn
from tests.moving import FPS, batch, clip
from unigrpo_jax.clip_files import has_pyav, read_clip, read_clip_sound
from unigrpo_jax.config import ConfigError, EvaluationConfig, JudgingConfig, LearningConfig, RolloutConfig, RunConfig
from unigrpo_jax.episode import Drawing, Episodes
from unigrpo_jax.rewards.frames import Frames
from unigrpo_jax.rewards.judging import ABSTAINED, Judging, RewardError
from unigrpo_jax.rewards.load import load_reward
from unigrpo_jax.rewards.protocol import ABSTAIN, NotDrawn, Reward, RewardBatch
from unigrpo_jax.rollout.drawing import FlowSampler, draw
from unigrpo_jax.rollout.step_rules import ODE
from unigrpo_jax.sound_files import read_sound
from unigrpo_jax.training.evaluation import Evaluator, _Call, by_round, by_rule, join
from unigrpo_jax.training.health import MEANINGS, alarms, second_judges
from unigrpo_jax.training.image_statistics import colour_entropy, edge_density, frame_difference, statistics
from unigrpo_jax.training.measured import means
from unigrpo_jax.training.run_folder import save_episodes
from unigrpo_jax.training.trainer import OwnEpisodes, Trainer
from unigrpo_jax.worlds.prompt import Prompt

ONCE = JudgingConfig(retries=0)
redness = lambda batch: {"red": batch.images[..., 0].mean(axis=(1, 2)) / 255}
motion = lambda batch: {"moved": np.abs(np.diff(batch.videos.astype(int), axis=1)).mean(axis=(1, 2, 3, 4)) * batch.fps}


# --- batches ------------------------------------------------------------------------------------------------------------


def test_a_batch_of_images_is_what_it_was():
    images = np.zeros((2, 4, 6, 3), np.uint8)
    made = RewardBatch(prompts=["a", "b"], metadata=[{}] * 2, images=images, thinking=[""] * 2)
    assert made.images is images and made.size == (4, 6) and made.media == {"image": images} and made.fps == 0
    assert made.take([1]).images.shape == (1, 4, 6, 3) and not hasattr(made, "videos")
    assert dataclasses.replace(made, images=images[:, :2]).size == (2, 6)


def test_a_batch_of_clips_has_videos_and_their_speed():
    made = batch(3)
    assert made.videos.shape == (3, 6, 24, 32, 3) and made.fps == FPS and made.size == (24, 32)
    part = made.take([2, 0])
    np.testing.assert_array_equal(part.videos, made.videos[[2, 0]])
    assert (part.prompts, part.fps, part.group.tolist()) == (["square 2", "square 0"], FPS, [0, 0])
    assert dataclasses.replace(made, prompts=["x"] * 3).videos is made.videos and not hasattr(made, "images")
    with pytest.raises(NotDrawn, match="asked for batch.images, but this run draws clips"):
        made.images  # noqa: B018


@pytest.mark.parametrize("wrong", [{}, {"videos": clip()[None]}, {"images": clip()[:1], "fps": 8.0}])
def test_a_batch_has_images_or_clips_with_their_speed(wrong):
    with pytest.raises(ValueError, match="images, or videos and their fps"):
        RewardBatch(prompts=["a"], metadata=[{}], thinking=[""], **wrong)


# --- rewards ------------------------------------------------------------------------------------------------------------


def test_a_reward_of_clips_is_a_function_of_videos():
    found = Judging({"motion": motion}, ONCE)(batch(2, speed=2))["moved"]
    still = Judging({"motion": motion}, ONCE)(batch(2, speed=0))["moved"]
    assert (found > 0).all() and (still == 0).all()


def test_a_reward_of_images_says_that_the_run_draws_clips_and_one_of_clips_that_it_draws_images():
    calls = []
    ask = lambda batch: calls.append(1) or redness(batch)
    with pytest.raises(RewardError) as caught:
        Judging({"my:red": ask}, JudgingConfig(retries=3, backoff_seconds=0.0))(batch())
    assert str(caught.value) == (
        "the reward function my:red asked for batch.images, but this run draws clips: batch.videos, and batch.fps; "
        "frames:mean:my:red has it judge each frame"
    )
    assert len(calls) == 1, "asking again would change nothing"
    images = RewardBatch(prompts=["a"], metadata=[{}], thinking=[""], images=clip()[:1])
    with pytest.raises(RewardError, match="my:motion asked for batch.videos, but this run draws images: batch.images$"):
        Judging({"my:motion": motion}, ONCE)(images)


def test_the_same_frames_at_another_speed_are_another_episode():
    asked = []

    class Remembering:
        cost, identity = "host", "some"

        def __call__(self, batch):
            asked.append(batch.fps)
            return {"x": [1.0] * len(batch.prompts)}

    judging = Judging({"r": Remembering()}, JudgingConfig())
    for fps in (FPS, FPS, 2 * FPS):
        judging(dataclasses.replace(batch(1), fps=fps))
    assert asked == [FPS, 2 * FPS]


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A user's module in the current folder: a reward of images, and one of clips."""
    (tmp_path / "user_frames.py").write_text(
        "def red(batch):\n    return {'red': batch.images[..., 0].mean(axis=(1, 2)) / 255}\n"
        "def moved(batch):\n    return {'moved': batch.videos[:, -1].mean(axis=(1, 2, 3))}\n"
    )
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "how, component, wanted",
    [
        ("mean", "red_mean", lambda red: red.mean(axis=1)),
        ("min", "red_min", lambda red: red.min(axis=1)),
        ("mean/2", "red_mean_2", lambda red: red[:, [0, 2, 4]].mean(axis=1)),
        ("min/4", "red_min_4", lambda red: red[:, [0, 4]].min(axis=1)),
        ("mean/99", "red_mean_99", lambda red: red[:, 0]),
    ],
)
def test_a_reward_of_images_judges_clips_by_their_frames(module, how, component, wanted):
    made = batch(3)
    fading = (made.videos * np.linspace(1, 0.4, 6).reshape(1, 6, 1, 1, 1)).astype(np.uint8)
    made = dataclasses.replace(made, videos=fading)
    reward = load_reward(f"frames:{how}:user_frames:red", RunConfig())
    found = Judging({"r": reward}, ONCE)(made)
    red = fading[..., 0].mean(axis=(2, 3)) / 255
    assert list(found) == [component]
    np.testing.assert_allclose(found[component], wanted(red), rtol=1e-6)


def test_frames_come_with_the_prompt_and_the_group_of_their_clip():
    seen = []
    Frames(lambda batch: seen.append(batch) or redness(batch), "my:red", "mean", 3)(batch(2))
    (given,) = seen
    assert given.prompts == ["square 0"] * 2 + ["square 1"] * 2 and given.group.tolist() == [0] * 4
    assert [facts["number"] for facts in given.metadata] == [0, 0, 1, 1] and given.before is None
    np.testing.assert_array_equal(given.images, np.stack([clip(colour=c)[f] for c in (0, 1) for f in (0, 3)]))


def test_one_frame_that_is_not_judged_loses_the_clip_and_one_that_all_abstain_from_does_not():
    def moody(batch):
        asked = [(frame % 6, facts["number"]) for frame, facts in enumerate(batch.metadata)]
        return {"x": [np.nan if both == (2, 1) else ABSTAIN if both[1] == 2 else float(both[0]) for both in asked]}

    found = Judging({"r": Frames(moody, "my:moody", "mean", 1)}, ONCE)(batch(3))["x_mean"]
    np.testing.assert_array_equal(found, [2.5, np.nan, ABSTAINED])


def test_the_adapter_is_the_reward_that_it_asks():
    inner = types.SimpleNamespace(cost="device", identity="clip 1")
    mean, least = Frames(inner, "a", "mean", 1), Frames(inner, "a", "min", 1)
    assert isinstance(mean, Reward) and mean.cost == "device"
    assert len({inner.identity, mean.identity, least.identity, Frames(inner, "a", "mean", 2).identity}) == 4
    assert Frames(redness, "a", "mean", 1).identity == "" and Frames(redness, "a", "mean", 1).cost == "host"


@pytest.mark.parametrize(
    "name, words",
    [
        ("frames", "it is frames:HOW:REWARD"),
        ("frames:mean", "it is frames:HOW:REWARD"),
        ("frames:mean:", "it is frames:HOW:REWARD"),
        ("frames:max:user_frames:red", "HOW is mean or min"),
        ("frames:mean/0:user_frames:red", "of every 8th frame mean/8 or min/8"),
        ("frames:clipscore:FOLDER", "it is frames:HOW:REWARD"),
        ("frames:mean:frames:min:user_frames:red", "frames is shown whole clips"),
        ("frames:mean:judge", "give judge alone, with --judge.frames"),
        ("frames:mean:judge:thinking", "give judge:thinking alone"),
        ("frames:mean:clipscore", "clipscore needs the folder"),
        ("frames:mean:nothing", "'nothing' is neither one of"),
    ],
)
def test_a_way_that_is_none_is_one_sentence(module, name, words):
    with pytest.raises(ConfigError) as caught:
        load_reward(name, RunConfig())
    assert words in str(caught.value) and str(caught.value).endswith((".", "module:function.", "?")), caught.value


def test_a_reward_that_judges_clips_is_not_asked_about_frames_and_images_have_none(module):
    with pytest.raises(RewardError, match="user_frames:moved judges clips as they are; leave frames:mean: out"):
        Judging({"r": load_reward("frames:mean:user_frames:moved", RunConfig())}, ONCE)(batch())
    images = RewardBatch(prompts=["a"], metadata=[{}], thinking=[""], images=clip()[:1])
    with pytest.raises(RewardError, match="draws images; leave frames:min/2: out"):
        Judging({"r": load_reward("frames:min/2:user_frames:red", RunConfig())}, ONCE)(images)


def refused(names, frames: int) -> str:
    """What is said at the start of a run that draws so many frames; "" where it may begin."""
    rewards = {name: load_reward(name, RunConfig()) for name in names}
    rollout = RolloutConfig(image_height=8, image_width=8, frames=frames)
    try:
        Judging(rewards, ONCE).check_drawn("a prompt", {"number": 1}, rollout)
    except ConfigError as error:
        assert str(error).startswith("rewards: ") and str(error).endswith("."), error
        return str(error)
    return ""


def test_a_reward_of_the_other_medium_is_refused_before_anything_is_drawn(module):
    mine, clips = "user_frames:red", "user_frames:moved"
    assert "colourfulness judges images, but clips of 5 frames are drawn; use frames:mean:colourfulness" in refused(
        ["frames:mean:colourfulness", "colourfulness"], 5
    )
    assert "user_frames:red asked for batch.images" in (text := refused([mine], 5)) and f"use frames:mean:{mine}" in text
    assert "user_frames:moved judges clips as they are; leave frames:mean: out" in refused([f"frames:mean:{clips}"], 5)
    assert f"judges clips, but rollout.frames = 1 draws images; use {mine}" in refused([f"frames:min/2:{mine}"], 1)
    assert not refused([clips, f"frames:mean:{mine}", "frames:min:colourfulness"], 5)
    assert not refused([mine, "colourfulness"], 1)
    shapes = {"shapes": lambda batch: redness(batch)}  # which judges as the world of its prompts does
    with pytest.raises(ConfigError, match="rewards: shapes asked for batch.images, .*; use frames:mean:shapes, which"):
        Judging(shapes, ONCE).check_drawn("a prompt", {}, RolloutConfig(frames=5))
    Judging({"shapes": motion}, ONCE).check_drawn("a prompt", {}, RolloutConfig(frames=5))


def test_a_function_that_fails_on_a_black_clip_may_begin_and_one_of_images_is_not_asked(tmp_path, monkeypatch):
    (tmp_path / "user_moody.py").write_text(
        "asked = []\n"
        "def moody(batch):\n    asked.append((batch.videos.shape, batch.fps, list(batch.metadata)))\n"
        "    raise SystemExit(3)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert not refused(["user_moody:moody"], 1) and not refused(["user_moody:moody"], 5)
    import user_moody

    assert user_moody.asked == [((1, 5, 8, 8, 3), 24.0, [{"number": 1}])]


def test_rules_of_images_are_no_rules_of_clips():
    world = types.SimpleNamespace(judge=lambda batch: batch.images.mean())
    with pytest.raises(RewardError, match="the rules of these prompts asked for batch.images, but this run draws clips"):
        by_rule(world, batch())


# --- episodes -----------------------------------------------------------------------------------------------------------


def episodes(count=2) -> Episodes:
    """Finished episodes that drew clips; of what is learned from there is nothing."""
    videos = jnp.asarray(np.stack([clip(colour=row) for row in range(count)]))
    nothing = jnp.zeros((count, 0))
    drawing = Drawing(
        steps=nothing, x=nothing, noise=nothing, mean=nothing, latent=nothing, media={"video": videos},
        finite=jnp.ones(count, bool),
    )  # fmt: skip
    return Episodes(prompt=None, segments=(drawing,), fps=FPS)


def test_clips_go_from_episodes_to_rewards_with_their_speed():
    asked = [Prompt(text=f"p{row}", metadata={"n": row}) for row in range(2)]
    codec = types.SimpleNamespace(thoughts=lambda thinking, count: [""] * count)
    (found,) = by_round(episodes(), asked, codec, np.asarray, None, group=np.arange(2))
    np.testing.assert_array_equal(found.videos[1], clip(colour=1))
    assert found.fps == FPS and found.prompts == ["p0", "p1"]
    both = join([found, found.take([0])])
    assert both.videos.shape[0] == 3 and both.fps == FPS and both.group.tolist() == [0, 1, 0]


def test_what_a_decoder_of_clips_gives_is_a_video():
    """From shapes alone: a painter whose latent is one token per pixel."""
    model = types.SimpleNamespace(
        hold=None,
        begins=False,
        two_times=False,
        predict=lambda params, x, t, grid, condition, to: x,
        to_latent=lambda tokens, grid: tokens.reshape(-1, 4, 5, 3),
    )
    flow = FlowSampler(schedule=(1.0, 0.5, 0.0), rule=ODE(), grid=(4, 5))
    x = jnp.zeros((2, 20, 3))
    of_clips = lambda latent: jnp.repeat(latent[:, None], 7, axis=1)
    drawn = lambda decode, parts: jax.eval_shape(
        lambda: draw(model, {}, None, x, None, jnp.zeros(0, jnp.int32), flow, decode, parts=parts)
    )
    found = drawn(of_clips, 2)
    assert {name: (x.shape, x.dtype) for name, x in found.media.items()} == {"video": ((2, 7, 4, 5, 3), np.uint8)}
    assert found.seen is found.media["video"] and found.finite.shape == (2,)
    for found in (drawn(lambda latent: latent, 0), drawn(lambda latent: latent[:, None], 2)):
        assert found.image.shape == (2, 4, 5, 3) and found.seen is found.image


def test_generate_writes_a_clip_where_one_was_drawn(tmp_path):
    for name, written in (("a-square.png", "a-square"), ("mine.webp", "mine.webp"), ("v1.2", "v1.2.")):
        (out,) = write_drawn(episodes(), tmp_path / name, 2)
        assert out.name.startswith(written) and out.suffix in (".mp4", ".webp")
        frames, fps = read_clip(out)
        assert frames.shape == (6, 48, 64, 3) and fps == pytest.approx(FPS, rel=0.02)
    drawing = episodes().drawing
    picture = Episodes(prompt=None, segments=(drawing.replace(media={"image": drawing.media["video"][:, 0]}),))
    assert write_drawn(picture, tmp_path / "b.png", 1) == [tmp_path / "b.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "b.png")), clip()[0])


MP4 = pytest.mark.skipif(not has_pyav(), reason="PyAV writes MP4")


@pytest.mark.parametrize("name, rate, files", [
    ("a.webp", 8000, ["a.webp", "a.wav"]),  # has no sound
    pytest.param("a.mp4", 8000, ["a.mp4"], marks=MP4),
    pytest.param("a.mp4", 4000, ["a.mp4"], marks=MP4),  # AAC knows no such rate, but the next
])  # fmt: skip
def test_generate_writes_the_sound_of_a_clip(tmp_path, name, rate, files):
    seen = episodes()
    sound = np.full((len(seen.drawing.media["video"]), 6 * rate // 8, 2), 0.25, np.float32)
    sound[0, 100] = np.nan
    heard = seen.replace(segments=(seen.drawing.replace(media=seen.drawing.media | {"audio": sound}),), rate=float(rate))
    found = write_drawn(heard, tmp_path / name, 1)
    assert [path.name for path in found] == files
    samples, per_second = read_sound(found[1]) if len(found) == 2 else read_clip_sound(found[0])
    assert per_second == max(rate, 8000) and abs(np.median(samples) - 0.25) < 0.01
    assert len(found) == 1 or not samples[100].any()


def test_clips_that_could_not_be_judged_are_kept_with_their_sound(tmp_path):
    sound = np.linspace(-1, 1, 3 * 20 * 2, dtype=np.float32).reshape(3, 20, 2)
    heard = RewardBatch(prompts=["a"] * 3, metadata=[{}] * 3, thinking=[""] * 3, fps=FPS, rate=8000,
                        media={"audio": sound} | batch().media)  # fmt: skip
    assert heard.size == batch().size == clip().shape[1:3]
    own = OwnEpisodes(rows=np.arange(3), batches=(heard,), tokens=np.zeros(3, int), finite=np.ones(3, bool))
    folder = save_episodes(tmp_path, 4, own)
    with np.load(folder / "videos.npz") as arrays:
        np.testing.assert_array_equal(arrays["videos"], batch().videos)
        np.testing.assert_array_equal(arrays["audio"], sound)
        assert arrays["fps"] == FPS and arrays["episodes"].tolist() == [0, 1, 2]


# --- what no reward sees --------------------------------------------------------------------------------------------------


def test_the_difference_from_frame_to_frame_by_hand():
    """Of 4 x 5 pixels one becomes white in one channel in the first step, and two in all channels in the second."""
    frames = np.zeros((3, 4, 5, 3), np.uint8)
    frames[1, 0, 0, 1] = 255
    frames[2] = frames[1]
    frames[2, 1, :2] = 51
    assert frame_difference(frames) == pytest.approx((1 / 60 + 6 * 0.2 / 60) / 2)
    assert frame_difference(frames[:1]) == 0 and frame_difference(np.repeat(frames[:1], 5, axis=0)) == 0
    assert frame_difference(np.array([0, 255, 0], np.uint8).repeat(12).reshape(3, 2, 2, 3)) == 1


def test_statistics_of_images_are_as_ever_and_those_of_clips_are_means_over_frames():
    images = np.stack([clip(colour=c)[0] for c in range(3)])
    found = statistics({"image": images})
    assert list(found) == ["image/edge_density", "image/colour_entropy"]
    np.testing.assert_array_equal(found["image/edge_density"], edge_density(images))
    found = statistics({"video": batch(2).videos})
    for name, of in (("image/edge_density", edge_density), ("image/colour_entropy", colour_entropy)):
        np.testing.assert_allclose(found[name], [of(clip(colour=c)).mean() for c in (0, 1)])
    np.testing.assert_allclose(found["video/frame_difference"], [frame_difference(clip(colour=c)) for c in (0, 1)])
    long = clip(frames=30)
    some = long[[0, 4, 8, 12, 17, 21, 25, 29]]
    np.testing.assert_allclose(statistics({"video": long[None]})["image/edge_density"], [edge_density(some).mean()])
    assert {x.shape for x in statistics({"video": batch(2).videos[:0]}).values()} == {(0,)}


def test_clips_that_stand_still_ring_and_are_a_second_judge():
    config = RunConfig()
    lines = [{"step": s, "reward/mean": 0.01 * s + 0.001 * (s % 3), "video/frame_difference": 0.05 if s < 30 else 0.005}
             for s in range(1, 61)]  # fmt: skip
    rings = alarms(lines, config.alarms, config.learning)
    assert "video/frame_difference went from 0.05 to 0.005" in rings["image"] and "stiller" in MEANINGS["image"]
    assert "video/frame_difference falls" in rings["hacking"]
    assert second_judges(lines[-1], config.learning) == ["video/frame_difference"]
    assert means([{"video/frame_difference": np.array([0.1, 0.3, np.nan], np.float32)}]) == {
        "video/frame_difference": pytest.approx(0.2)
    }




# --- a run's two ways to judge ------------------------------------------------------------------------------------------


def test_an_iteration_of_clips_has_their_rewards_and_their_statistics():
    """Of two groups of two the second one is lost, since a frame of one of its clips was not judged."""
    config = RunConfig(
        learning=LearningConfig(group_size=2), rollout=RolloutConfig(prompts_per_iteration=2),
        judging=JudgingConfig(retries=0, max_dropped=0.5),
    )  # fmt: skip
    dark = lambda batch: {"red": np.where([m["number"] == 3 for m in batch.metadata], np.nan, redness(batch)["red"])}
    trainer = Trainer.__new__(Trainer)
    trainer._token = (1, 1)
    judging = Judging({"motion": motion, "dark": Frames(dark, "my:dark", "min", 2)}, config.judging)
    trainer.parts = types.SimpleNamespace(config=config, judging=judging, world=types.SimpleNamespace(judge=None))
    made = dataclasses.replace(batch(4), group=np.array([0, 0, 1, 1]))
    own = OwnEpisodes(rows=np.arange(4), batches=(made,), tokens=np.zeros(4, int), finite=np.ones(4, bool))
    advantages, metrics = trainer.judge(own, {"time/rollout_text": 1.0, "time/rollout_flow": 1.0})
    assert np.abs(advantages[:2]).min() > 0 and np.abs(advantages[2:]).max() == 0
    assert metrics["reward/dropped_share"] == 0.5 and {"reward/moved/mean", "reward/red_min_2/mean"} <= set(metrics)
    differences = [frame_difference(clip(colour=c)) for c in range(4)]
    assert metrics["video/frame_difference"] == pytest.approx(np.mean(differences), rel=1e-5)
    assert {"image/edge_density", "image/colour_entropy"} <= set(metrics)


def test_an_evaluation_of_clips_has_a_table_and_clips_to_look_at():
    evaluator = Evaluator.__new__(Evaluator)
    evaluator.prompts = [Prompt(text="p", metadata={})] * 3
    evaluator._config, evaluator._world = EvaluationConfig(images_per_prompt=1), types.SimpleNamespace(judge=None)
    evaluator._judging = Judging({"motion": motion}, ONCE)
    first, last = batch(2), batch(1)
    found = evaluator._judge(
        [_Call(np.arange(2), (first,), 2, ({"video": first.videos[:1]},)),
         _Call(np.array([2]), (last,), 1, ({"video": last.videos[:1]},))]
    )
    wanted = np.mean([*motion(first)["moved"], *motion(last)["moved"]])
    assert found.table["moved"]["overall"] == pytest.approx(wanted, abs=1e-6)
    (shown,) = found.samples
    assert (shown.clip.frames, shown.clip.fps, shown.image) == (6, FPS, None) and shown.verdict.startswith("moved ")
