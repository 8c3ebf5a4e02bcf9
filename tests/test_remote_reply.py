"""What is read from a remote judge's reply: the rule by hand, and that nothing but a number or "not judged" comes out."""

import datetime
import email.utils
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.judge_server import expects, says
from unigrpo_jax.rewards.remote_reply import (
    NotJudged,
    error_status,
    error_words,
    probability_of_yes,
    says_yes,
    score,
    shown,
    wait_asked_for,
)


def spoken(text, finish_reason="stop"):
    return json.loads(says(text, finish_reason).body)


def expected(**likeliest):
    return json.loads(expects(likeliest).body)


def tokens(*places):
    """A reply whose i-th token has the likeliest tokens {token: log-probability} of places[i]."""
    content = [{"token": next(iter(top)), "logprob": 0.0,
                "top_logprobs": [{"token": t, "logprob": v} for t, v in top.items()]} for top in places]  # fmt: skip
    return {"choices": [{"message": {"content": "x"}, "logprobs": {"content": content}}]}


def test_the_probability_of_yes_is_its_share_of_yes_and_no():
    likeliest = {"Yes": 0.5, " yes": 0.1, "YES\n": 0.05, "No": 0.2, " nO": 0.05, "Yesterday": 0.04, "maybe": 0.03}
    reply = json.loads(expects(likeliest).body)
    assert probability_of_yes(reply) == pytest.approx((0.5 + 0.1 + 0.05) / (0.5 + 0.1 + 0.05 + 0.2 + 0.05), rel=1e-12)


@pytest.mark.parametrize("likeliest, share", [({"yes": 1.0}, 1.0), ({"no": 1.0}, 0.0), ({"No": 0.15, "It": 0.85}, 0.0)])
def test_a_sure_judge_gives_one_or_zero(likeliest, share):
    assert probability_of_yes(json.loads(expects(likeliest).body)) == share


def test_log_probabilities_of_impossible_tokens_count_as_zero():
    for low in (-9999.0, -(10**400), -math.inf):
        assert probability_of_yes(tokens({"yes": -0.5, "no": low})) == 1.0


def test_leading_tokens_of_spaces_are_passed_over():
    reply = tokens({"\n\n": -0.1, "yes": -0.2}, {"no": math.log(0.75), "yes": math.log(0.25)}, {"yes": 0.0})
    assert probability_of_yes(reply) == pytest.approx(0.25, rel=1e-12)


def test_a_judge_that_was_about_to_say_something_else_does_not_judge():
    with pytest.raises(NotJudged, match="not about to answer yes or no") as caught:
        probability_of_yes(tokens({"The": math.log(0.95), "yes": math.log(0.03), "no": math.log(0.02)}))
    assert caught.value.said == "x"


@pytest.mark.parametrize(
    "reply",
    [{}, [], None, "yes", {"choices": []}, {"choices": {}}, {"choices": [{"logprobs": None}]}, spoken("yes"),
     tokens({"\n": 0.0}), {"choices": [{"logprobs": {"content": []}}]},
     {"choices": [{"logprobs": {"content": [{"token": "yes", "logprob": 0.0, "top_logprobs": []}]}}]}],
)  # fmt: skip
def test_a_reply_without_logprobs_says_what_the_server_must_do(reply):
    with pytest.raises(NotJudged, match="the server must serve logprobs"):
        probability_of_yes(reply)


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.5, 10**400, "0", None, True])
def test_a_logprob_that_is_none_is_not_judged(value):
    with pytest.raises(NotJudged, match="malformed"):
        probability_of_yes(tokens({"no": -0.1, "yes": value}))


@pytest.mark.parametrize(
    "text, value",
    [
        ("7", 7), (" 7.5\n", 7.5), ("+3", 3), ("1e0", 1), ("0", 0), ("10", 10), ("10.", 10), ("7.", 7),
        ("Score: 8", 8), ("**Score:** 8", 8), ("score = 8.25.", 8.25), ("The score is 6", 6), ("Score:\n4", 4),
        ("Score: 8. There are 3 objects.", 8), ("Score: 2, final score: 4", 4),
        ("8/10", 8), ("Score: 8 / 10", 8), ("9 out of 10", 9), ("On a scale of 0-10: 6", 6), ("Score (0-10): 7", 7),
        ("Score (0–10): 7", 7), ("<think>score: 1, or 2?</think>\n9", 9), ("the GPT4 judge says 5", 5),
        ("v2.0.1 gives 6", 6), ("score8 is 5", 5), ("分数：8", 8), ("8分", 8), ("٣", None),
    ],
)  # fmt: skip
def test_the_number_of_a_reply(text, value):
    if value is None:
        with pytest.raises(NotJudged, match="no number"):
            score(spoken(text), 0, 10)
    else:
        assert score(spoken(text), 0, 10) == pytest.approx(value / 10, abs=1e-12)


@pytest.mark.parametrize("low, high, text, value", [(1, 5, "4", 0.75), (-1, 1, "Score: -0.5", 0.25), (0, 100, "85", 0.85)])
def test_the_range_is_mapped_to_zero_and_one(low, high, text, value):
    assert score(spoken(text), low, high) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "no number"), ("yes", "no number"), ("I count 3 objects, so I give 5", "several numbers"),
        ("1,000", "no number"), ("3-4", "no number"),
        ("nan", "no number"), ("Infinity", "no number"), ("11", "not between"), ("-1", "not between"),
        ("1e999", "not between"), ("9" * 9999, "not between"), ("85%", "not between"), ("4/5", "not out of judge.high = 10"),
        ("4 out of 5", "not out of"), (None, "no text"), (8, "no text"), ([{"type": "image"}], "no text"),
    ],
)  # fmt: skip
def test_what_is_no_score_is_not_judged(text, words):
    with pytest.raises(NotJudged, match=words):
        score(spoken(text), 0, 10)


PARTS = [{"type": "text", "text": "Score: "}, {"type": "image_url"}, {"type": "text", "text": "8"}, "."]


def test_the_parts_of_a_reply_are_one_text():
    assert score(spoken(PARTS), 0, 10) == 0.8 and says_yes(spoken([{"type": "text", "text": "Yes"}]))
    thought = [{"type": "reasoning", "text": "1"}, {"type": "thinking", "text": "Score: 3. "}]
    assert score(spoken([*thought, {"type": "output_text", "text": "8"}]), 0, 10) == 0.8


@pytest.mark.parametrize(
    "reason, words",
    [("length", "cut off"), ("MAX_TOKENS", "cut off"), ("content_filter", "filter kept"), ("SAFETY", "filter kept"),
     ("abort", "broke the reply off .abort"), ("error", "broke the reply off .error")],
)  # fmt: skip
def test_a_number_of_a_reply_that_is_not_whole_is_none(reason, words):
    """It may be the 1 of a 10."""
    with pytest.raises(NotJudged, match=words) as caught:
        score(message(reason, content="Score: 1"), 0, 10)
    assert caught.value.said == "Score: 1"


def message(finish_reason="stop", **fields):
    return {"choices": [{"message": fields, "finish_reason": finish_reason}]}


@pytest.mark.parametrize(
    "reply, words, said",
    [
        (message(content=None, refusal="I cannot look at this."), "the judge refused to answer", "I cannot look at this."),
        (message("length", content=""), "cut off; raise judge.max_tokens", ""),
        (message("length", content=None), "cut off; raise judge.max_tokens", ""),
        (message("length", content="<think>is it 3 or"), "cut off; raise judge.max_tokens", "<think>is it 3 or"),
        (message("length", content=None, reasoning_content="well, 3"), "cut off; raise judge.max_tokens", ""),
        (message(content="<think>3</think>"), "thought and then said nothing", "<think>3</think>"),
        (message(content=None, reasoning_content="well, 3"), "thought and then said nothing", "well, 3"),
        (message("content_filter", content=None), "content filter", ""),
        (message("SAFETY", content=""), "content filter", ""),
        (message(content=None), "the reply holds no text", None),
        (message(content=[]), "the reply holds no text", None),
        ({"id": "1"}, "the reply holds no text", '{"id": "1"}'),
    ],
)  # fmt: skip
def test_a_reply_without_an_answer_says_why(reply, words, said):
    for read in (says_yes, lambda reply: score(reply, 0, 10)):
        with pytest.raises(NotJudged, match=words) as caught:
            read(reply)
        assert said is None or caught.value.said == said


@pytest.mark.parametrize(
    "reply, status",
    [
        ({"error": {"message": "image too large", "code": 400}}, 400), ({"error": {"code": "429"}}, 429),
        ({"error": {"code": 503.0}}, 503), ({"error": {"message": "x", "status": 502}}, 502),
        ({"error": {"code": "rate_limit_exceeded"}}, 429), ({"error": {"code": None, "type": "server_error"}}, 500),
        ({"error": {"type": "invalid_request_error"}}, 400), ({"error": "broken"}, 0), ({"error": {"code": 7}}, 0),
        ({"error": {"code": True}}, 0), ({"error": {"code": "9" * 9999}}, 0), ({"detail": "Not Found"}, 0),
        ({"object": "error", "message": "too long", "code": 400}, 400), ({"choices": [], "error": {"code": 500}}, 500),
        ({"choices": [{"error": {"code": 502}, "message": {"content": "Sco"}, "finish_reason": "error"}]}, 502),
        ([{"error": {"message": "x", "code": 400}}], 400),
        ({"error": {"message": "x"}, "status": 404}, 404), (spoken("8"), None), (spoken("8") | {"error": None}, None),
        (spoken("8") | {"error": {"code": 500}}, None), ({"choices": []}, None), ({}, None), ([], None), ("error", None),
    ],
)  # fmt: skip
def test_an_error_in_a_body_names_a_status(reply, status):
    assert error_status(reply) == status


@pytest.mark.parametrize(
    "body, words",
    [
        (b'{"error": {"message": "image too large", "code": 400}}', "image too large"), (b'{"error": "broken"}', "broken"),
        (b'{"detail": "Not Found"}', "Not Found"), (b"no such model", "no such model"), (b"", ""), (b"{}", ""),
        (b'{"detail": [{"loc": ["body", "model"], "msg": "Field required", "type": "missing"}]}',
         "body.model: Field required"),
        (b'{"object": "error", "message": "too long", "code": 400}', "too long"), (b'{"errors": ["a", "b"]}', "a; b"),
        (b'{"error": {"message": "Provider returned error", "metadata": {"raw": "too large"}}}',
         "Provider returned error: too large"),
        (b"<!DOCTYPE html><html><head><style>p {}</style><title>502 Bad Gateway</title></head><body><p>ng&amp;x</p></body>",
         "502 Bad Gateway ng&x"),
        (b'[{"error": {"message": "too large", "code": 400}}]', "too large"),
        (b'{"error": true, "message": "busy"}', "busy"),
        (b'{"error": {"code": 7}}', '{"code": 7}'), (b"[1]", "[1]"), (b"\xff", "\ufffd"),
    ],
)  # fmt: skip
def test_the_words_of_an_error_are_the_servers_own(body, words):
    assert error_words(body) == words


def test_a_number_that_may_have_been_cut_off_is_not_judged():
    with pytest.raises(NotJudged, match="cut off; raise judge.max_tokens"):
        score(spoken("Score: 1", "length"), 0, 10)


@pytest.mark.parametrize(
    "text, yes",
    [("Yes", True), ("no.", False), ("**YES**", True), (" \n'No', there is", False), ("<think>no</think> yes", True),
     ("Yesterday", None), ("not", None), ("It is, yes", None), ("", None), (None, None), (True, None)],
)  # fmt: skip
def test_the_first_word_is_the_answer(text, yes):
    if yes is None:
        with pytest.raises(NotJudged):
            says_yes(spoken(text))
    else:
        assert says_yes(spoken(text)) is yes


NUMBERS = st.integers() | st.floats() | st.sampled_from([0, -1, -0.0, 10**400, -(10**400), math.nan, -math.inf])
SNIPPETS = st.sampled_from(
    ["Yes", " no", "score", "Score: ", "8", "/10", " out of ", "-", ".", ",", "\n", "\0", "\ud800", "1e999", "</think>", "٣"]
)
TEXTS = st.text(max_size=20) | st.lists(SNIPPETS, max_size=8).map("".join)
ANY = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def fields(**values):
    """A mapping with some of these fields, each as it should be or anything else."""
    return st.fixed_dictionaries({}, optional={name: value | ANY for name, value in values.items()})


TOKEN = fields(token=st.sampled_from(["Yes", "no", " NO", "\n", "The"]), logprob=st.floats(-20, 0) | NUMBERS)
PLACE = fields(token=st.sampled_from(["yes", "\n", ""]), top_logprobs=st.lists(TOKEN, max_size=4))
CHOICE = fields(
    message=fields(content=TEXTS),
    logprobs=fields(content=st.lists(PLACE, max_size=3)),
    finish_reason=st.sampled_from(["stop", "length"]),
)
REPLIES = fields(choices=st.lists(CHOICE, max_size=2)) | ANY


@settings(max_examples=3000, deadline=None)
@given(REPLIES, st.sampled_from([(0, 10), (-1.0, 1.0), (1, 5)]))
def test_nothing_but_a_score_or_not_judged_comes_out_of_any_reply(reply, limits):
    assert error_status(reply) in (None, *range(600)) and isinstance(error_words(reply), str)
    for read in (probability_of_yes, says_yes, lambda reply: score(reply, *limits)):
        try:
            value = read(reply)
        except NotJudged as error:
            assert error.reason and error.reason.isprintable() and not error.reason.endswith(".")
            assert isinstance(error.said, str)
        else:
            assert isinstance(value, float | bool) and 0 <= value <= 1


@settings(max_examples=500, deadline=None)
@given(st.lists(st.floats(-8, 0), min_size=1, max_size=6), st.data())
def test_the_share_agrees_with_numpy(values, data):
    words = data.draw(st.lists(st.sampled_from(["yes", " Yes", "NO", "no ", "perhaps"]), min_size=len(values),
                               max_size=len(values)))  # fmt: skip
    top = [{"token": word, "logprob": value} for word, value in zip(words, values, strict=True)]
    reply = {"choices": [{"logprobs": {"content": [{"token": "x", "top_logprobs": top}]}}]}
    p, kinds = np.exp(np.float64(values)), np.array([word.strip().lower() for word in words])
    yes, no = p[kinds == "yes"].sum(), p[kinds == "no"].sum()
    if yes + no < 0.1:
        with pytest.raises(NotJudged):
            probability_of_yes(reply)
    else:
        assert probability_of_yes(reply) == pytest.approx(yes / (yes + no), rel=1e-9, abs=1e-12)


@given(st.text(max_size=300))
def test_shown_text_is_one_printable_line_and_short(words):
    line = shown(words)
    assert line.isprintable() and len(line) <= 10 * 120 + 5 and line.endswith("...") == (len(words) > 120)


@pytest.mark.parametrize(
    "header, seconds", [("7", 7), ("0.5", 0.5), ("-3", 0), ("nan", 0), ("inf", 0), ("soon", 0), (None, 0)]
)
def test_a_server_asks_to_wait_for_seconds(header, seconds):
    assert wait_asked_for(header) == seconds


def test_a_server_asks_to_wait_until_a_date():
    at = lambda hours: email.utils.format_datetime(
        datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=hours), usegmt=True
    )
    assert 3000 < wait_asked_for(at(1)) <= 3600
    assert wait_asked_for(at(-1)) == 0


@given(TEXTS | st.text(alphabet="0123456789 :,GMTMonJan+-", max_size=40))
def test_any_header_gives_a_finite_wait(header):
    assert 0 <= wait_asked_for(header) < math.inf
