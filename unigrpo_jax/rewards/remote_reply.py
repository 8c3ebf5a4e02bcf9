"""Reads what a remote judge replied.  Pure functions; replies are untrusted, so anything may stand in them.

Each function gives a number, or raises `NotJudged` with the reason; nothing else leaves it, whatever the reply holds.  A
reply is the JSON of the OpenAI chat API: choices[0].message.content is its text, and
choices[0].logprobs.content[i].top_logprobs lists {token, logprob} of the likeliest tokens at position i.
"""

import email.utils
import math
import re
import time
from typing import Any

ENOUGH = 0.1
READ = 10_000  # characters at a reply's end that are searched

# Not a number: a piece of a word, of 1,000 or 7,5 (which may mean either), or of a range such as 0-10.
_NUMBER = r"(?<![A-Za-z0-9_.,])(?<![0-9][-–])[-+]?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?(?![A-Za-z0-9_]|[.,–-][0-9])"
_OUT_OF = rf"(?P<value>{_NUMBER})(?:\s{{0,3}}(?:/|out of)\s{{0,3}}(?P<most>[0-9]+(?:\.[0-9]+)?))?"
_LABELLED = re.compile(rf"\bscore(?:\s{{1,3}}is)?[\s:=*_'`]{{0,10}}{_OUT_OF}", re.IGNORECASE)
_ANYWHERE = re.compile(_OUT_OF, re.IGNORECASE)
_YES_OR_NO = re.compile(r"\W{0,20}(yes|no)\b", re.IGNORECASE)


class NotJudged(Exception):
    """A reply that is no judgement.

    Attributes:
      reason: words of ours, without a full stop.
      said: words of the server, to be shown with care.
    """

    def __init__(self, reason: str, said: str = ""):
        super().__init__(reason)
        self.reason, self.said = reason, said


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
        raise NotJudged("the judge was not about to answer yes or no", said=_text(reply) if _has_text(reply) else "")
    return mass["yes"] / both


def score(reply: Any, low: float, high: float) -> float:
    """The number in a reply, low to high, as a score from 0 to 1.

    It is the last number that follows the word "score", else the last number of the reply.  "7/10" and "7 out of 10" are 7
    where high is 10.

    Raises:
      NotJudged: no text, a reply that was cut off, no number, one outside [low, high], or one out of something else.
    """
    text = _text(reply)[-READ:]
    if _first(_at(reply, "choices"), "finish_reason") == "length":
        raise NotJudged("the reply was cut off; raise judge.max_tokens or ask for a shorter one", said=text)
    found = [*_LABELLED.finditer(text)] or [*_ANYWHERE.finditer(text)]
    if not found:
        raise NotJudged("there is no number in the reply", said=text)
    value, most = float(found[-1]["value"]), found[-1]["most"]
    if most is not None and float(most) != high:
        raise NotJudged(f"the number is not out of judge.high = {high:g}", said=text)
    if not low <= value <= high:
        raise NotJudged(f"the number is not between judge.low = {low:g} and judge.high = {high:g}", said=text)
    return (value - low) / (high - low)


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


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _has_text(reply: Any) -> bool:
    return isinstance(_first(_at(reply, "choices"), "message", "content"), str)


def _text(reply: Any) -> str:
    """The end of the reply's text, behind what the judge thought aloud."""
    if not _has_text(reply):
        raise NotJudged("the reply holds no text")
    return _first(_at(reply, "choices"), "message", "content").rpartition("</think>")[2].strip()
