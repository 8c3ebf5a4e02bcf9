"""Reads what a remote judge replied.  Pure functions; replies are untrusted, so anything may stand in them.

Each function gives a number, or raises `NotJudged` with the reason; nothing else leaves it, whatever the reply holds.  A
reply is the JSON of the OpenAI chat API: choices[0].message.content is its text, and
choices[0].logprobs.content[i].top_logprobs lists {token, logprob} of the likeliest tokens at position i.
"""

import email.utils
import html
import json
import math
import re
import time
from collections.abc import Sequence
from typing import Any

from unigrpo_jax.rewards import verdict
from unigrpo_jax.rewards.verdict import NotJudged

ENOUGH = 0.1
_NAMED = {  # words that stand where a status could
    "rate_limit": 429, "overloaded": 503, "server_error": 500, "internal": 500, "unavailable": 503, "timeout": 504,
    "invalid_api_key": 401, "authentication": 401, "permission": 403, "invalid": 400, "badrequest": 400, "not_found": 404,
}  # fmt: skip
# Why a reply ended (finish_reason), where it is not whole.
_CUT = ("length", "max_tokens", "max_output_tokens", "model_length", "incomplete")
_FILTERED = ("content_filter", "safety", "recitation", "blocklist", "prohibited_content", "spii", "sensitive")
_BROKEN = ("error", "abort", "aborted", "cancelled", "network_error", "insufficient_system_resource")
_YES_OR_NO = re.compile(r"\W{0,20}(yes|no)\b", re.IGNORECASE)


def probability_of_yes(reply: Any) -> float:
    """P(yes) / (P(yes) + P(no)) at the first token of the answer, in [0, 1].

    RewardDance (arXiv 2509.08826) scores by P(yes), asking whether an image is better than a reference; here one image is
    asked about, and P(yes) is divided by what yes and no hold together.

    P(yes) is the sum over the reported tokens that are "yes" once spaces around them and capitals are disregarded, P(no)
    likewise.  The first token is the first one that is not made of spaces alone.

    Raises:
      NotJudged: there are no log-probabilities, one of them is no logarithm of a probability, or yes and no together have
        less than `ENOUGH`: the judge was about to say something else.
    """
    listed = _first(_at(reply, "choices"), "logprobs", "content")
    places = listed if isinstance(listed, list) else []
    is_blank = lambda entry: isinstance(_at(entry, "token"), str) and not entry["token"].strip()
    likeliest = _at(next((entry for entry in places if not is_blank(entry)), None), "top_logprobs")
    if not isinstance(likeliest, list) or not likeliest:
        raise NotJudged("the reply has no log-probabilities; the server must serve logprobs and top_logprobs for form yes")
    mass = {"yes": 0.0, "no": 0.0}
    for entry in likeliest:
        token, value = _at(entry, "token"), _at(entry, "logprob")
        if not isinstance(token, str) or not _is_number(value) or value > 1e-3:
            raise NotJudged("the reply's log-probabilities are malformed")
        word = token.strip().casefold()
        if word in mass:
            mass[word] += math.exp(max(value, -1e3))
    both = mass["yes"] + mass["no"]
    if both < ENOUGH:
        raise NotJudged("the judge was not about to answer yes or no", said=_words(reply))
    return mass["yes"] / both


def score(reply: Any, low: float, high: float) -> float:
    """The number in a reply, low to high, as a score from 0 to 1; `verdict` says which number that is.

    Raises:
      NotJudged: no text, a reply that was cut, no number, several, one outside [low, high], or one out of something else.
    """
    text = _text(reply)
    _refuse_cut(reply, text)
    return (verdict.number(text, low, high) - low) / (high - low)


def scores(reply: Any, names: Sequence[str], low: float, high: float) -> dict[str, float]:
    """{name: score from 0 to 1} of several things that the judge was asked for by name; NotJudged where one is missing."""
    text = _text(reply)
    _refuse_cut(reply, text)
    return {name: (x - low) / (high - low) for name, x in verdict.numbers(text, names, low, high).items()}


def says_yes(reply: Any) -> bool:
    """Whether a reply's first word is yes; NotJudged where it is neither yes nor no."""
    text = _text(reply)
    answer = _YES_OR_NO.match(text)
    if answer is None:
        raise NotJudged("the reply begins with neither yes nor no", said=text)
    return answer[1].casefold() == "yes"


def wait_asked_for(header: str | None) -> float:
    """Seconds of a Retry-After header, which holds seconds or a date; 0 where it holds neither."""
    if header is None:
        return 0.0
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError, IndexError):
            return 0.0
    return max(seconds, 0.0) if math.isfinite(seconds) else 0.0


def shown(words: str, limit: int = 120) -> str:
    """Text of others for one line of a message: in quotes, shortened, control characters and the like escaped."""
    return f"{words[:limit]!r}{'...' if len(words) > limit else ''}"


def _at(value: Any, name: str) -> Any:
    """value[name], or None where there is no such thing."""
    return value.get(name) if isinstance(value, dict) else None


def _first(value: Any, *names: str) -> Any:
    """value[0][name][name]..., or None where there is no such thing."""
    value = value[0] if isinstance(value, list) and value else None
    for name in names:
        value = _at(value, name)
    return value


def _words(reply: Any) -> str:
    """The reply's text, "" where it has none."""
    try:
        return _text(reply)
    except NotJudged as error:
        return error.said


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _text(reply: Any) -> str:
    """The reply's text, behind what the judge thought aloud; NotJudged, with whatever the server said, where it has none."""
    message = _first(_at(reply, "choices"), "message")
    content = _at(message, "content")
    if isinstance(content, list):  # parts; pictures say nothing, and what is thought is not the answer
        parts = [part if isinstance(part, str) else _at(part, "text") for part in content if _answers(part)]
        texts = [part for part in parts if isinstance(part, str)]
        content = "".join(texts) if texts else None
    text = verdict.spoken(content) if isinstance(content, str) else ""
    if text:
        return text
    if isinstance(refusal := _at(message, "refusal"), str) and refusal.strip():
        raise NotJudged("the judge refused to answer", said=refusal)
    _refuse_cut(reply, content if isinstance(content, str) else "")
    thought = _at(message, "reasoning_content") or _at(message, "reasoning")
    if isinstance(content, str) and content.strip() or isinstance(thought, str) and thought.strip():
        raise NotJudged("the judge thought and then said nothing", said=content or thought)
    if isinstance(content, str):
        raise NotJudged("the reply is empty, no number and no word is in it")
    raise NotJudged("the reply holds no text", said=error_words(reply) if isinstance(reply, dict) else "")


def _answers(part: Any) -> bool:
    """Whether a part of a reply belongs to the answer: text, and none of its thinking."""
    kind = _at(part, "type")
    return not isinstance(kind, str) or "text" in kind


def _refuse_cut(reply: Any, text: str) -> None:
    """NotJudged where the server says that the reply is not whole."""
    reason = _first(_at(reply, "choices"), "finish_reason")
    kind = reason.casefold() if isinstance(reason, str) else ""
    if kind in _CUT:
        raise NotJudged("the reply was cut off; raise judge.max_tokens or ask for a shorter one", said=text)
    if kind in _FILTERED:
        raise NotJudged("the server's content filter kept the reply back", said=text)
    if kind in _BROKEN:
        raise NotJudged(f"the server broke the reply off ({kind})", said=text)


def error_status(reply: Any) -> int | None:
    """The HTTP status that a reply's body names as its error, 0 where it tells of one without a status; None of none.

    Gateways answer HTTP 200 with {"error": {"message": ..., "code": 429}} where the server behind them failed; the code is a
    number, its digits, or a word.  A reply that has an answer beside it is no error.
    """
    reply = _only_one(reply)
    choices = _at(reply, "choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    error = _at(reply, "error") or _at(first, "error")
    if not error and _at(reply, "object") == "error":
        error = reply  # vLLM's older form
    if not error and choices is None and (_at(reply, "detail") or _at(reply, "errors")):
        error = reply
    if not error or _has_answer(first):
        return None
    named = [_at(where, name) for where in (error, reply) for name in ("code", "status", "status_code")]
    for code in named:
        if isinstance(code, str) and code.strip().isascii() and code.strip().isdigit():
            code = int(code.strip()[:6])
        if isinstance(code, int | float) and not isinstance(code, bool) and code == code and 300 <= code < 600:
            return int(code)
    words = " ".join(str(w) for w in (*named, _at(error, "type")) if isinstance(w, str)).casefold()
    return next((status for name, status in _NAMED.items() if name in words), 0)


def _only_one(body: Any) -> Any:
    """What an error is in: some servers put it into a list."""
    return body[0] if isinstance(body, list) and len(body) == 1 and isinstance(body[0], dict) else body


def _has_answer(choice: Any) -> bool:
    content = _at(_at(choice, "message"), "content")
    return bool(content) and isinstance(content, str | list) and _at(choice, "finish_reason") != "error"


def error_words(body: Any) -> str:
    """What a server's error says, in its own words: a body's text, or of its JSON the message, wherever servers put it.

    OpenAI {"error": {"message"}}, vLLM {"message"} and {"detail"}, FastAPI {"detail": [{"loc", "msg"}]}, plain strings, and
    pages of HTML without their tags.
    """
    if isinstance(body, bytes):
        text = body.decode(errors="replace")
        try:
            body = json.loads(text)
        except (ValueError, RecursionError):
            return _without_tags(text)
    body = _only_one(body)
    if not isinstance(body, dict):
        return body if isinstance(body, str) else "" if body is None else _as_json(body)
    choices = body.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    places = (body.get("error"), _at(first, "error"), *map(body.get, ("message", "detail", "errors")))
    found = next((words for words in places if words and words is not True), None)
    message = _at(found, "message") or _at(found, "detail") or _at(found, "msg") or found
    if isinstance(message, list):
        message = "; ".join(_one_detail(detail) for detail in message[:4])
    raw = _at(_at(found, "metadata"), "raw")  # what a gateway was told by who is behind it
    words = message if isinstance(message, str) else _as_json(message) if message else _as_json(body) if body else ""
    return f"{words}: {raw}" if isinstance(raw, str) and raw not in words else words


def _one_detail(detail: Any) -> str:
    """A line of FastAPI's validation."""
    place, words = _at(detail, "loc"), _at(detail, "msg") or _at(detail, "message")
    if not isinstance(words, str):
        return detail if isinstance(detail, str) else _as_json(detail)
    return f"{'.'.join(map(str, place))}: {words}" if isinstance(place, list) and place else words


def _as_json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError):
        return "a value that is nested too deeply"


def _without_tags(text: str) -> str:
    """A page's words; text that is no page stays as it is."""
    if not re.match(r"\s*<(?:!doctype|html|head|body|h1|center|title|\?xml)\b", text, re.IGNORECASE):
        return text
    text = re.sub(r"<(script|style)\b.*?(?:</\1>|\Z)|<!--.*?(?:-->|\Z)", " ", text, flags=re.IGNORECASE | re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^<>]*>", " ", text)).split()) or "a page without words"
