"""A chat server that is slow, broken or hostile: what is tried again, what is read, where nothing goes, who sees the key."""

import asyncio
import gzip
import json
import logging
import threading
import traceback

import numpy as np
import pytest

from tests.judge_server import KEY, YES, Answer, always, batch, expects, in_turn, judge, says, serving
from unigrpo_jax.config import ConfigError
from unigrpo_jax.rewards.judging import RewardError


@pytest.fixture
def pauses(monkeypatch):
    """Seconds that are waited between retries; none of them is."""
    found, sleep = [], asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda seconds, *rest: (found.append(seconds), sleep(0, *rest))[1])
    return found


def half(number, request, handler):
    """Closes in the middle of the body."""
    return Answer(b'{"choices": [', length=500)


def silent(number, request, handler):
    handler.server.over.wait(20)


def slow_headers(number, request, handler):
    """Three seconds of single bytes of a header, so that no single read times out, then an answer."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    for _ in range(150):
        handler.server.over.wait(0.02)
        handler.wfile.write(b"x")
    body = expects(YES).body
    handler.wfile.write(b"\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


def slow_body(number, request, handler):
    """Three seconds of single spaces in front of an answer."""
    body = expects(YES).body
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(body) + 150))
    for _ in range(150):
        handler.server.over.wait(0.02)
        handler.wfile.write(b" ")
    handler.wfile.write(body)


def no_http(number, request, handler):
    handler.wfile.write(b"220 mail.example.org ESMTP\r\n")


TRANSIENT = [
    (half, "the connection failed (RemoteProtocolError), after 2 retries"),
    (silent, "the connection failed (ReadTimeout), after 2 retries"),
    (slow_headers, "no reply within judge.total_seconds = 0.4, after 2 retries"),
    (slow_body, "no reply within judge.total_seconds = 0.4, after 2 retries"),
    (no_http, "the connection failed (RemoteProtocolError), after 2 retries"),
    (always(Answer(status=500)), "HTTP 500, after 2 retries"),
    (always(Answer(status=503, headers={"Retry-After": "0"})), "HTTP 503, after 2 retries"),
    (always(Answer(status=429, headers={"Retry-After": "nan"})), "HTTP 429, after 2 retries"),
]


@pytest.mark.parametrize("behaviour, words", TRANSIENT, ids=[words for _, words in TRANSIENT])
def test_what_may_pass_is_tried_again_and_then_not_judged(behaviour, words):
    with serving(behaviour) as server, pytest.raises(RewardError) as caught:
        judge(server.url, read_seconds=0.2, total_seconds=0.4)(batch("a"))
    assert words in str(caught.value) and len(server.requests) == 3
    assert str(caught.value).startswith(f"the judge at {server.url} gave no score for 1 of 1 episodes, 1 times because ")


def test_a_server_that_is_not_there_is_tried_again():
    with serving(always(says("8"))) as server:
        url = server.url
    with pytest.raises(RewardError, match="the connection failed .ConnectError., after 2 retries"):
        judge(url)(batch("a"))


@pytest.mark.parametrize("url", ["https://no-such-host.invalid/v1", "https://" + "a" * 80 + "/v1", "https://..:1/v1"])
def test_a_host_that_cannot_be_is_not_judged(url):
    with pytest.raises(RewardError, match="the connection failed"):
        judge(url, retries=0)(batch("a"))


def test_a_plain_server_does_not_pass_for_an_encrypted_one():
    with serving(always(says("8"))) as server, pytest.raises(RewardError, match="the connection failed .ConnectError."):
        judge(server.url.replace("http:", "https:"), retries=0)(batch("a"))
    assert server.requests == []


def completion(**choice) -> Answer:
    return Answer(json.dumps({"choices": [choice]}).encode())


BOMB = gzip.compress(bytes(10**7))
FINAL = [
    (Answer(status=400, body=b'{"error": "no image \x1b[2J\xff"}'), 'HTTP 400: \'{"error": "no image \\x1b[2J\ufffd"}\''),
    (Answer(status=422, body=b'{"detail": [{"loc": ["body", "model"], "msg": "Field required"}]}'),
     "HTTP 422: 'body.model: Field required'"),
    (Answer(status=404, body=b'{"detail": "Not Found"}'), "HTTP 404: 'Not Found'"),
    (Answer(status=404, body=b"no such model"), "HTTP 404: 'no such model'"),
    (Answer(status=400, body=b"""{"error": {"message": "Unsupported parameter: 'max_tokens' is not supported."}}"""),
     "HTTP 400: this model takes no max_tokens, which is always sent; name another judge.model: "),
    (Answer(status=400, body=b"""{"error": {"message": "Unsupported value: 'temperature' does not support 0."}}"""),
     "HTTP 400: this model takes no other temperature than its own; use --judge.temperature 1: "),
    (Answer(status=400, body=b"max_tokens is too large"), "HTTP 400: 'max_tokens is too large'"),
    (Answer(status=403), "HTTP 403: the key in UNIGRPO_JUDGE_KEY may not do this"),
    (Answer(status=204, body=b""), "HTTP 204"),
    (Answer(status=307, headers={"Location": "/v1/elsewhere"}), "HTTP 307, a redirect, which is not followed"),
    (Answer(b"<html>"), "the reply is not JSON: 'a page without words'"),
    (Answer(b'{"choices": [', length=None), "the reply is not JSON"),
    (Answer(b"\xff\xfe\x00"), "the reply is not JSON"),
    (Answer(b"[" * 10**5), "the reply is not JSON"),
    (Answer(b"1" * 10**5), "the reply is not JSON"),
    (Answer(b" " * (2**20 + 1)), "the reply is longer than 1048576 bytes"),
    (Answer(BOMB, headers={"Content-Encoding": "gzip"}), "the server packed its reply"),
    (Answer(BOMB), "the reply is not JSON"),
    (Answer(b"[]"), "the server must serve logprobs"),
    (says("yes"), "the server must serve logprobs and top_logprobs for form yes"),
    (completion(logprobs={"content": [{"top_logprobs": [{"token": "yes", "logprob": np.nan}]}]}), "malformed"),
    (expects({"The": 0.99, "yes": 0.01}), "not about to answer yes or no: 'The'"),
]


def body(value) -> Answer:
    """HTTP 200 with this JSON."""
    return Answer(json.dumps(value).encode())


ERRORS = [  # an error in the body of HTTP 200, how often it is asked, what is said
    ({"error": {"message": "Provider returned error: image too large", "code": 400}}, 1,
     "HTTP 400 in the body of an HTTP 200: 'Provider returned error: image too large'"),
    ({"error": {"message": "slow\x1b[2J down", "code": "429"}}, 3,
     "HTTP 429 in the body of an HTTP 200, after 2 retries: 'slow\\x1b"),
    ({"error": {"message": "overloaded", "type": "server_error"}}, 3,
     "HTTP 500 in the body of an HTTP 200, after 2 retries"),
    ({"error": "model crashed"}, 1, "HTTP 200 with an error: 'model crashed'"),
    ({"error": {"message": "no key", "code": 401}}, 1,
     "HTTP 401 in the body of an HTTP 200: the API key in UNIGRPO_JUDGE_KEY is"),
]  # fmt: skip


@pytest.mark.parametrize("reply, asked, words", ERRORS, ids=[words[:30] for *_, words in ERRORS])
def test_an_error_in_the_body_counts_as_the_status_that_it_names(reply, asked, words):
    with serving(always(body(reply))) as server, pytest.raises(RewardError) as caught:
        judge(server.url)(batch("a"))
    assert words in str(caught.value) and str(caught.value).isprintable() and len(server.requests) == asked


def test_the_words_of_a_server_that_is_asked_again_are_shown():
    words = "HTTP 503, after 2 retries: '503 Busy Try later'"
    page = Answer(b"<html><head><title>503 Busy</title></head><body><script>x</script>Try later</body></html>", 503)
    with serving(always(page)) as server, pytest.raises(RewardError, match=words):
        judge(server.url)(batch("a"))


@pytest.mark.parametrize("answer, words", FINAL, ids=[words for _, words in FINAL])
def test_what_will_not_pass_is_asked_once_and_said_in_one_line(answer, words):
    with serving(always(answer)) as server, pytest.raises(RewardError) as caught:
        judge(server.url)(batch("a"))
    assert words in str(caught.value) and str(caught.value).isprintable() and len(str(caught.value)) < 600
    assert len(server.requests) == 1


def test_a_reply_without_an_end_is_left_at_the_limit():
    """The server offers 1 GiB; how much it can send says how much is read (and lies in the sockets)."""
    sent = []

    def floods(number, request, handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n")
        for _ in range(1024):
            handler.wfile.write(bytes(2**20))
            sent.append(2**20)

    with serving(floods) as server, pytest.raises(RewardError, match="longer than 1048576 bytes"):
        judge(server.url)(batch("a"))
    assert len(sent) < 64 and len(server.requests) == 1


def test_a_redirect_leads_nowhere():
    with serving(always(expects(YES))) as other:
        redirect = Answer(status=307, headers={"Location": f"{other.url}/chat/completions"})
        with serving(always(redirect)) as server, pytest.raises(RewardError, match="not followed"):
            judge(server.url)(batch("a"))
        assert other.requests == []


def test_proxies_of_the_environment_are_not_used(monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("default login me password secret\n")
    with serving(always(says("8"))) as proxy, serving(always(expects(YES))) as server:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert judge(server.url)(batch("a"))["judge"] == pytest.approx(0.8)
        assert proxy.requests == [] and "Authorization" not in server.headers[0]


def test_retries_wait_longer_each_time_with_some_chance(pauses):
    with serving(in_turn(*[Answer(status=500)] * 4, expects(YES))) as server:
        assert judge(server.url, retries=4, backoff_seconds=2.0)(batch("a"))["judge"] == pytest.approx(0.8)
    waited = [seconds for seconds in pauses if seconds]
    assert len(waited) == 4
    for attempt, seconds in enumerate(waited):
        assert 2**attempt <= seconds <= 2 * 2**attempt
    assert waited != [2 * 2**attempt for attempt in range(4)]


def test_retry_after_is_honoured_up_to_its_bound(pauses):
    busy = lambda header: Answer(status=429, headers={"Retry-After": header})
    with serving(in_turn(busy("7"), busy("86400"), busy("-5"), expects(YES))) as server:
        judge(server.url, retries=3, retry_after_seconds=30.0)(batch("a"))
    assert [seconds for seconds in pauses if seconds] == [7.0, 30.0]


def test_as_many_episodes_as_allowed_are_judged_at_once_and_no_more():
    meeting = threading.Barrier(3, timeout=20)

    def meets(number, request, handler):
        meeting.wait()
        return expects(YES)

    with serving(meets) as server:
        found = judge(server.url, concurrency=3)(batch(*"abcdefghi"))
    np.testing.assert_allclose(found["judge"], [0.8] * 9)
    assert server.at_once == 3 and len(server.requests) == 9


def test_a_key_that_is_not_accepted_stops_at_once(monkeypatch):
    with serving(always(Answer(status=401))) as server:
        with pytest.raises(RewardError, match="HTTP 401: the API key in UNIGRPO_JUDGE_KEY is not set"):
            judge(server.url, concurrency=1)(batch(*"abcdef"))
        monkeypatch.setenv("MY_KEY", KEY)
        with pytest.raises(RewardError, match="HTTP 401: the API key in MY_KEY is not accepted"):
            judge(server.url, concurrency=1, key_variable="MY_KEY")(batch(*"abcdef"))
    assert len(server.requests) < 6


def test_a_refusal_of_everything_is_an_error_only_as_long_as_nothing_was_ever_judged():
    """One picture that a vendor will not look at must not end a run; a key without rights must."""
    with serving(in_turn(expects(YES), Answer(status=403))) as server:
        made = judge(server.url)
        assert made(batch("a"))["judge"] == pytest.approx(0.8)
        assert np.isnan(made(batch("a", "b"))["judge"]).all()


@pytest.mark.parametrize("key", ["two words", "tab\there", "ключ", "new\nline"])
def test_a_key_that_no_header_can_hold_is_refused_unseen(monkeypatch, key):
    monkeypatch.setenv("UNIGRPO_JUDGE_KEY", key)
    with pytest.raises(ConfigError, match="UNIGRPO_JUDGE_KEY .* holds no API key") as caught:
        judge("https://h/v1")
    assert not any(part in str(caught.value) for part in key.split())


@pytest.mark.parametrize("code", [400, 401, 403, 429, "x"])
def test_the_key_is_not_in_the_words_of_an_error_in_the_body(monkeypatch, code):
    monkeypatch.setenv("UNIGRPO_JUDGE_KEY", KEY)
    reply = body({"error": {"message": f"Bearer {KEY} is wrong", "code": code}})
    with serving(always(reply)) as server, pytest.raises(RewardError) as caught:
        judge(server.url, retries=0)(batch("a"))
    assert "Bearer [key] is wrong" in str(caught.value)
    assert KEY[5:20] not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("status", [200, 302, 400, 401, 403, 429, 500])
@pytest.mark.parametrize("form", ["yes", "number"])
def test_the_key_is_in_no_message_no_log_and_no_object(monkeypatch, caplog, status, form):
    """The server sends it back wherever it can, whole and escaped."""
    monkeypatch.setenv("UNIGRPO_JUDGE_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    escaped = "".join(f"\\u{ord(c):04x}" for c in KEY)
    logprobs = '{"content": [{"token": "x", "top_logprobs": [{"token": "x", "logprob": 0}]}]}'
    body = f'{{"choices": [{{"message": {{"content": "{KEY} {escaped}"}}, "logprobs": {logprobs}}}]}}'
    if status not in (200, 401):
        body = f"Bearer {KEY} is wrong"
    headers = {"X-Echo": KEY, "Location": f"/{KEY}", "Retry-After": KEY, "Set-Cookie": f"a={KEY}"}
    echo = Answer(body.encode(), status, headers)
    with serving(always(echo)) as server:
        made = judge(server.url, form=form, retries=1)
        with pytest.raises(RewardError) as caught:
            made(batch("a"))
        made._worked = True  # so that the failure is logged instead
        if status != 401:
            made(batch("a", "b"))
    assert all(headers["Authorization"] == f"Bearer {KEY}" for headers in server.headers)
    told = "".join(traceback.format_exception(caught.value)) + caplog.text + repr(vars(made)) + made.identity
    assert KEY not in told and KEY[5:20] not in told
    if status in (200, 400):
        assert "[key]" in told
