"""The remote judge on clips, by a real server on loopback: what it is shown, and several named numbers in one answer."""

import base64
import dataclasses
import io
import sys

import numpy as np
import pytest
from PIL import Image

from tests.judge_server import Answer, always, config, expects, in_turn, judge, says, serving
from tests.judge_server import batch as images
from tests.moving import FPS, batch, clip
from unigrpo_jax.clip_files import read_clip, read_clip_sound
from unigrpo_jax.config import ConfigError, JudgingConfig, LearningConfig
from unigrpo_jax.config_checks import check
from unigrpo_jax.learning import credit
from unigrpo_jax.rewards.judging import Judging
from unigrpo_jax.rewards.load import load_reward
from unigrpo_jax.rewards.protocol import RewardBatch
from unigrpo_jax.rewards.remote_reply import NotJudged, scores
from unigrpo_jax.rewards.verdict import numbers

NAMES = ("visual_quality", "motion_quality", "text_alignment")
GOOD = '{"visual_quality": 8, "motion_quality": 5, "text_alignment": 10}'
SEVERAL = dict(form="number", dimensions=NAMES, max_tokens=64)


def parts(request) -> list:
    """What stands in front of the text of a request, and the text."""
    *shown, text = request["messages"][0]["content"]
    assert text["type"] == "text"
    return [*shown, text["text"]]


def pixels(part) -> np.ndarray:
    """Of an image part."""
    assert part.keys() == {"type", "image_url"} and part["type"] == "image_url"
    head, _, data = part["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data, validate=True))))


# --- what is shown ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count, wanted", [(3, [0, 2, 5]), (1, [0]), (8, [0, 1, 2, 3, 4, 5])])
def test_frames_are_shown_in_order_with_their_times(count, wanted):
    with serving(always(expects({"yes": 0.75, "no": 0.25}))) as server:
        found = judge(server.url, frames=count)(batch(1))
    np.testing.assert_allclose(found["judge"], [0.75])
    *shown, text = parts(server.requests[0])
    for part, number in zip(shown, wanted, strict=True):
        np.testing.assert_array_equal(pixels(part), clip()[number])
    seconds = ", ".join(f"{number / FPS:.2f}" for number in wanted)
    said = f"The images are frames of one video, in order, at these seconds: {seconds}.\nDoes this video show"
    assert text.startswith(said)
    assert "<text>\nsquare 0\n</text>" in text and "image show" not in text


def test_a_whole_clip_is_shown_as_mp4_in_a_data_url(tmp_path):
    pytest.importorskip("av")
    with serving(always(says("7"))) as server:
        found = judge(server.url, clip="video", form="number")(batch(2))
    np.testing.assert_allclose(found["judge"], [0.7, 0.7])
    for request in server.requests:
        part, text = parts(request)
        head, _, data = part["video_url"]["url"].partition(",")
        assert part["type"] == "video_url" and head == "data:video/mp4;base64"
        assert text.startswith("How well does this video")
        (tmp_path / "sent.mp4").write_bytes(base64.b64decode(data, validate=True))
        frames, fps = read_clip(tmp_path / "sent.mp4")
        row = int("square 1" in text)
        assert fps == FPS and np.abs(frames.astype(int) - clip(colour=row)).mean() < 3


@pytest.mark.parametrize("rate, sides", [(16000, 2), (4000, 1)])
def test_a_whole_clip_is_sent_with_its_sound_and_frames_without(tmp_path, rate, sides):
    """Each with its own tone, at its rate or the next one that MP4 knows; numbers that are none are silence."""
    pytest.importorskip("av")
    seconds, tones = np.arange(round(0.75 * rate))[:, None] / rate, (220.0, 440.0)
    audio = np.float32([0.5 * np.sin(2 * np.pi * tone * seconds) * np.ones(sides) for tone in tones])
    audio[1, -3:] = np.nan
    given = batch(2)
    clips = RewardBatch(prompts=given.prompts, metadata=given.metadata, thinking=given.thinking, videos=given.videos,
                        audio=audio, fps=FPS, rate=float(rate))  # fmt: skip
    with serving(always(says("7"))) as server:
        judge(server.url, clip="video", form="number")(clips)
        judge(server.url, clip="frames", form="number")(clips)
    sent = {"video_url": 0, "image_url": 0}
    for request in server.requests:
        part, *_, text = parts(request)
        sent[part["type"]] += 1
        if part["type"] == "image_url":
            continue
        (tmp_path / "sent.mp4").write_bytes(base64.b64decode(part["video_url"]["url"].partition(",")[2], validate=True))
        heard, own = read_clip_sound(tmp_path / "sent.mp4")
        assert own == {16000: 16000, 4000: 8000}[rate] and heard.shape[1] == sides
        assert abs(len(heard) / own - 0.75) < 0.15 and np.isfinite(heard).all() and 0.25 < heard.std() < 0.4
        spectrum = np.abs(np.fft.rfft(heard[:, 0]))
        assert abs(spectrum.argmax() * own / len(heard) - tones["square 1" in text]) < 5
        assert read_clip(tmp_path / "sent.mp4")[0].shape == given.videos.shape[1:]
    assert sent == {"video_url": 2, "image_url": 2}


def test_what_is_asked_about_images_is_what_it_was():
    with serving(always(says("yes"))) as server:
        with pytest.raises(Exception, match="log-probabilities"):
            judge(server.url, clip="frames", retries=0)(images("a cat"))
    shown, text = parts(server.requests[0])
    np.testing.assert_array_equal(pixels(shown), images("a cat").images[0])
    assert text == (
        "Does this image show everything that the following text asks for, and nothing that contradicts it?\n"
        "<text>\na cat\n</text>\nAnswer with yes or no alone."
    )


@pytest.mark.parametrize("form", ["yes", "number"])
def test_a_judge_of_thoughts_is_asked_about_the_video(form):
    answer = {"yes": expects({"yes": 0.5, "no": 0.5}), "number": says("5")}[form]
    with serving(always(answer)) as server:
        load_reward("judge:thinking", config(server.url, form=form))(batch(1))
    text = parts(server.requests[0])[-1]
    assert "Someone was asked for a video of" in text and "then drew this video" in text and "image follow" not in text


def test_without_pyav_a_whole_clip_is_refused_before_anything_runs(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match=r"judge.clip = 'video' sends MP4, .* or use --judge.clip frames\.$"):
        load_reward("judge", config("https://h/v1", clip="video"))
    load_reward("judge", config("https://h/v1", clip="frames"))


# --- several numbers ----------------------------------------------------------------------------------------------------


def test_one_answer_gives_several_components():
    with serving(always(says(GOOD))) as server:
        found = judge(server.url, **SEVERAL)(batch(2))
    assert list(found) == list(NAMES) and len(server.requests) == 2
    np.testing.assert_allclose([found[name] for name in NAMES], [[0.8, 0.8], [0.5, 0.5], [1.0, 1.0]])
    text = parts(server.requests[0])[-1]
    assert "Give visual_quality, motion_quality, text_alignment a score each, from 0 (worst) to 10 (best)" in text
    assert "How good is this video" in text and "Answer with one JSON object alone" in text


def test_images_have_several_numbers_too_and_a_question_of_ones_own():
    with serving(always(says(GOOD))) as server:
        found = judge(server.url, **SEVERAL, question='Rate {dimensions} for {prompt}, as {"x": 1}!')(images("a cat"))
    assert found["motion_quality"].tolist() == [0.5]
    assert parts(server.requests[0])[-1] == (
        'Rate visual_quality, motion_quality, text_alignment for a cat, as {"x": 1}!'
    )


def test_where_a_number_is_missing_the_episode_is_asked_again_and_its_group_is_dropped(caplog):
    """Of two groups of two the second one stays without its motion; the first one has it when it is asked again."""
    short = '{"visual_quality": 8, "text_alignment": 10}'
    asked = {"square 1": 0}

    def answer(number, request, handler):
        text = parts(request)[-1]
        if "square 1" in text:
            asked["square 1"] += 1
            return says(GOOD if asked["square 1"] > 1 else short)
        return says(short if "square 3" in text else GOOD)

    clips = dataclasses.replace(batch(4), group=np.array([0, 0, 1, 1]))
    with serving(answer) as server:
        made = config(server.url, judging=JudgingConfig(retries=2, backoff_seconds=0.0), **SEVERAL)
        found = Judging({"judge": load_reward("judge", made)}, made.judging)(clips)
    known = np.isfinite([found[name] for name in NAMES])
    assert known[:, :3].all() and not known[:, 3].any()
    assert "because the reply has no number for motion_quality" in caplog.text
    assert len(server.requests) == 4 + 2 + 1, "what was judged is not asked again"
    rounds = credit.rewarded([{name: x.reshape(2, 2) for name, x in found.items()}], LearningConfig(group_size=2))
    judged, failed = credit.judged_and_failed(rounds)
    assert np.asarray(judged).tolist() == [True, False] and np.asarray(failed).tolist() == [False, True]


def test_a_reply_that_was_cut_names_the_setting():
    with serving(in_turn(says(GOOD[:30], "length"))) as server:
        with pytest.raises(Exception, match="raise judge.max_tokens"):
            judge(server.url, **SEVERAL)(batch(1))
    with serving(always(Answer(status=400, body=b"no video_url here"))) as server:
        with pytest.raises(Exception, match="HTTP 400: 'no video_url here'"):
            judge(server.url, **SEVERAL)(batch(1))


READ = [
    GOOD,
    f"Here it is:\n```json\n{GOOD}\n```",
    '{"Visual Quality": "8/10", "motion-quality": {"score": 5, "reason": "2 of 3 jump"}, "textAlignment": 10, "max": 10}',
    '{"scores": {"visual_quality": 8, "motion_quality": 5.0, "text_alignment": 10}, "overall": 3}',
    '[{"visual_quality": 8}, {"motion_quality": 5}, {"text_alignment": 10}]',
    '{"visual_quality_reason": "4 blurs", "visual_quality": 8, "motion_quality": 5, "text_alignment": 10}',
    "Visual quality: 8/10\n**Motion Quality** - 5\nText alignment: 10 out of 10",
    "visual_quality (0-10): 8, motion_quality (0-10): 5, text_alignment (0-10): 10",
    "| dimension | score |\n|---|---|\n| visual quality | 8 |\n| motion quality | 5 |\n| text alignment | 10 |",
    "<think>motion quality: 3?</think>" + GOOD,
]
NOT_READ = {
    "8, 5, 10": "no number for visual_quality",
    "8": "no number for visual_quality",
    '{"score": 8}': "no number for visual_quality",
    '{"visual_quality": 8, "motion_quality": 5}': "no number for text_alignment",
    '{"visual_quality": 8, "motion_quality": "smooth", "text_alignment": 10}': "no number",
    '{"visual_quality": true, "motion_quality": 5, "text_alignment": 10}': "is no number",
    '{"visual_quality": 8, "motion_quality": 5, "text_alignment": 11}': "text_alignment is not between judge.low = 0",
    '{"visual_quality": 4, "motion_quality": 5, "text_alignment": 5, "scale": "1-5"}': "is not out of judge.high = 10",
    GOOD + " In short, motion quality: 4": "several scores for motion_quality that differ",
    GOOD.replace("}", ', "motion_quality": 6}'): "several scores for motion_quality that differ",
    "visual quality: 8\nmotion quality: 4-6\ntext alignment: 10": "no number for motion_quality",
    "visual quality: 8\nmotion quality: 3 cuts are seen, so 5/10\ntext alignment: 10": "can mean one thing only",
    "": "empty",
}


@pytest.mark.parametrize("text", READ)
def test_named_numbers_are_read_in_whatever_form_they_come(text):
    reply = {"choices": [{"message": {"content": text}}]}
    assert scores(reply, NAMES, 0, 10) == {"visual_quality": 0.8, "motion_quality": 0.5, "text_alignment": 1.0}


@pytest.mark.parametrize("text", NOT_READ)
def test_what_is_not_plain_is_not_judged(text):
    with pytest.raises(NotJudged, match=NOT_READ[text]):
        scores({"choices": [{"message": {"content": text}}]}, NAMES, 0, 10)


@pytest.mark.parametrize("text", [
    "Alignment Score (1-5): 4.0\nCoherence Score (1-5): 3.5\nStyle Score (1-5): 3.8",
    "**Alignment rating**: 4\ncoherence_score = 3.5/5\nStyle: 3.8",
    '{"alignment_score": 4, "CoherenceRating": 3.5, "Style Score (1-5)": 3.8}',
    '{"alignment": "as asked for", "alignment_score": 4, "coherence": 3.5} Style score: 3.8',
])  # fmt: skip
def test_a_name_may_be_called_its_score_or_rating(text):
    """The first is UnifiedReward's form."""
    wanted = {"alignment": 4.0, "coherence": 3.5, "style": 3.8}
    assert numbers(text, tuple(wanted), 1, 5) == wanted


@pytest.mark.parametrize("text, words", [
    ("Alignment Score: 4\nAlignment: 3", "several scores for alignment that differ"),
    ('{"alignment": 3, "alignment_score": 4}', "several scores for alignment that differ"),
    ("Total score: 4\nTotal: 3", "no number for alignment"),
])  # fmt: skip
def test_a_name_that_its_score_contradicts_is_not_judged(text, words):
    with pytest.raises(NotJudged, match=words):
        numbers(text, ("alignment",), 1, 5)


def test_a_score_that_is_itself_asked_for_is_not_also_that_of_the_shorter_name():
    for text in ("Style: 2\nStyle score: 4", '{"style": 2, "style_score": 4}'):
        assert numbers(text, ("style", "style_score"), 1, 5) == {"style": 2.0, "style_score": 4.0}
    with pytest.raises(NotJudged, match="no number for style$"):
        numbers("Style score: 4", ("style", "style_score"), 1, 5)


def test_no_label_of_a_name_goes_before_another():
    with pytest.raises(NotJudged, match="several scores for total that differ"):
        numbers("Total: 3\nTotal score: 4", ("total",), 1, 5)


def test_the_scale_and_its_sign_are_those_that_were_asked_for():
    assert numbers('{"a": -1.5, "b": 2}', ("a", "b"), -2, 2) == {"a": -1.5, "b": 2.0}
    assert numbers("a: -1.5\nb: 2", ("a", "b"), -2, 2) == {"a": -1.5, "b": 2.0}
    with pytest.raises(NotJudged, match="no number for b"):
        numbers("a: 1\nb — 2", ("a", "b"), -2, 2)
    with pytest.raises(NotJudged, match="nested too deeply|no number for a"):
        numbers('{"x":' * 9000 + "1", ("a",), 0, 1)


REFUSED = [
    (dict(form="yes"), "use --judge.form number"),
    (dict(form="exam"), "use --judge.form number"),
    (dict(dimensions=("visual quality",)), "use letters, digits and _"),
    (dict(dimensions=("",)), "use letters, digits and _"),
    (dict(dimensions=("a", "max")), "'max', which in a reply says what a number is out of"),
    (dict(dimensions=("a1", "a2")), "two names with the same letters"),
    (dict(dimensions=("a", "a")), "two names with the same letters"),
    (dict(max_tokens=47), "use --judge.max-tokens 48 or more"),
]


@pytest.mark.parametrize("settings, words", REFUSED, ids=[words for _, words in REFUSED])
def test_settings_that_cannot_work_are_one_sentence(settings, words):
    with pytest.raises(ConfigError) as caught:
        load_reward("judge", config("https://h/v1", **(SEVERAL | settings)))
    assert words in str(caught.value) and str(caught.value).endswith(".")


def test_names_are_filled_into_a_question_only_where_there_are_some():
    check(config("https://h/v1", **SEVERAL, question="{dimensions} of {prompt}?"))
    with pytest.raises(ConfigError, match="judge.question names dimensions"):
        check(config("https://h/v1", question="{dimensions} of {prompt}?"))
    with pytest.raises(ConfigError, match="judge.frames = 0"):
        check(config("https://h/v1", frames=0))
