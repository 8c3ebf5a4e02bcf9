"""What a judge's number is out of, in the judge's own words: "on a scale of 1 to 5", "5 being the best", `"max": 5`.

Each function gives (low, high), None for an end that is not said.  A scale is only compared with the one that was asked for,
never used to convert: nobody knows what the judge meant by its other scale.
"""

import math
import re
from typing import Any

PLAIN = r"[-+]?[0-9]+(?:[.,][0-9]+)?"
WORDS = {"ten": "10", "five": "5", "hundred": "100", "a hundred": "100"}
Scale = tuple[float | None, float | None]

_TO = r"\s{0,3}(?:-|,|to\b|and\b)\s{0,3}"
_RANGES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\b(?:scale|range)\b[\s:=\"'(\[]{0,6}(?:(?:of|from|between|is|was)\b)?[\s:=\"'(\[]{0,6}"
        rf"(?P<low>{PLAIN})[\s\"']{{0,3}}{_TO}(?P<high>{PLAIN})[\])]?",
        rf"(?<![A-Za-z0-9_.,])(?P<low>{PLAIN}){_TO}(?P<high>{PLAIN})[\s-]{{1,2}}(?:(?:points?|stars?)[\s-])?(?:scale|range)\b",
        rf"[(\[]\s{{0,3}}(?:from\b|between\b|scale:?)?\s{{0,3}}(?P<low>{PLAIN})\s{{0,3}}(?:-|to\b|and\b)\s{{0,3}}(?P<high>{PLAIN})"
        r"\s{0,3}(?:points?\b|stars?\b|inclusive\b)?\s{0,3}[\])]",
    )
)
_ENDS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"(?<![A-Za-z0-9_.,])(?P<end>{PLAIN}|ten|five|hundred)[\s-]point[\s-]{{1,3}}scale\b",
        rf"\bout\sof\s{{1,3}}(?P<end>{PLAIN}|ten|five|hundred)(?=\s?[:=])",
        r"(?<![A-Za-z0-9])(?:max(?:imum)?|highest(?:\s{1,3}possible)?|(?P<least>min(?:imum)?|lowest(?:\s{1,3}possible)?)|"
        r"out[_ ]of(?=[\"']?\s?[:=])|scale(?=[\"']?\s?[:=]))(?:[\s_]{1,3}(?:score|rating|grade|points))?"
        rf"(?:\s{{1,3}}is\b|\s{{1,3}}of\b)?[\s.:=\"'|]{{1,6}}(?P<end>{PLAIN})",
        rf"\bscale\s{{1,3}}(?:up\s)?(?:of|to)\s{{1,3}}(?P<end>{PLAIN}|ten\b|five\b|hundred\b)",
        rf"(?<![A-Za-z0-9_.,])(?P<end>{PLAIN})\s{{1,3}}(?:is|being|means|as)\s{{1,3}}(?:the\s{{1,3}})?"
        r"(?:best|highest|max(?:imum)?|(?P<least>worst|lowest|min(?:imum)?))\b",
        rf"(?<![A-Za-z0-9_.,])(?P<end>{PLAIN})\s?=\s?(?:the\s)?(?:best|highest|max(?:imum)?|perfect|excellent|"
        r"(?P<least>worst|lowest|min(?:imum)?|bad|poor|terrible))\b",
    )
)
_AROUND = "(?:score|scoring|rating|grading|grade|points|marks|total|possible)"
_MOST = re.compile(
    rf"{_AROUND}*(?:(?:max|maximum)(?:scale|value)?|outof|of|scale(?:max)?|range|best|highest|upper(?:bound|limit)?|"
    rf"denominator){_AROUND}*|possible|{_AROUND}possible"
)  # fmt: skip
_LEAST = re.compile(rf"{_AROUND}*(?:(?:min|minimum)(?:value)?|lowest|lower(?:bound|limit)?|scalemin){_AROUND}*")
_KEY_SCALE = re.compile(r"[(\[]|(?:(?<![A-Za-z])|_)(?:out[\s_-]?of|from|max|[0-9]+[\s_-]{0,3}(?:to|-))|(?<=[a-z])OutOf")


def letters(key: str) -> str:
    """A key or label as it is compared: its letters alone, none of them a capital."""
    return re.sub(r"[^a-z]", "", key.casefold())


def of_key(key: str) -> tuple[str, Scale]:
    """What a key is called, and the scale that it names: "score" and (1, 5) of "Score (1-5)" or "score_1_to_5"."""
    begin = _KEY_SCALE.search(key)
    if begin is None or not letters(key[: begin.start()]):
        return letters(key), (None, None)
    return letters(key[: begin.start()]), of_words(key[begin.start() :])


def of_words(words: str) -> Scale:
    """The scale of words that stand where a scale does: "1-5", "out of 5", "percent"."""
    return _ends(_numbers(words))


def is_end(key: str) -> bool:
    """Whether a key names a scale, or an end of one."""
    return of_key(key)[1] == (None, None) and bool(_MOST.fullmatch(letters(key)) or _LEAST.fullmatch(letters(key)))


def _is_percent(value: Any) -> bool:
    return isinstance(value, str) and bool(re.search(r"%|\bpercent|\bper cent\b", value, re.IGNORECASE))


def of_object(pairs: list[tuple[str, Any]], beyond: Scale) -> Scale:
    """The scale that an object's keys name; where they do not, the one that was named around it."""
    low, high = beyond
    for key, value in pairs:
        if is_end(key) or letters(key) in ("unit", "units") and _is_percent(value):
            found = _numbers(value)
            if _LEAST.fullmatch(letters(key)) and len(found) == 1:
                low = found[0]
            else:
                least, most = _ends(found)
                low, high = low if least is None else least, high if most is None else most
    return low, high


def taken_out(text: str) -> tuple[str, Scale]:
    """A text without the scale that it names, and that scale."""
    low = high = None
    for pattern in _RANGES:
        for found in pattern.finditer(text):
            low, high = parsed(found["low"]), parsed(found["high"])
        text = pattern.sub(" ", text)
    for pattern in _ENDS:
        for found in pattern.finditer(text):
            if "least" in pattern.groupindex and found["least"]:
                low = parsed(found["end"])
            else:
                high = parsed(found["end"])
        text = pattern.sub(" ", text)
    return text, (low, high)


def parsed(words: str) -> float:
    """The number of its words."""
    return float(WORDS.get(words.lower(), words).replace(",", "."))


def as_float(value: float) -> float:
    """A number of JSON, infinite where it is too large."""
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value)


def _ends(numbers: list[float]) -> Scale:
    return (numbers[0], numbers[1]) if len(numbers) == 2 else (None, numbers[0] if len(numbers) == 1 else None)


def _numbers(value: Any) -> list[float]:
    """The numbers of a scale, in whatever form it is said."""
    if isinstance(value, str):
        value = value.replace("–", "-").replace("−", "-").replace("—", "-")
        found = [parsed(n) for n in re.findall(r"(?:(?<![0-9\s])-)?[0-9]+(?:\.[0-9]+)?", value)]
        return [0.0, 100.0] if not found and _is_percent(value) else found
    if isinstance(value, list):  # of an object, pairs of key and value
        return [n for inner in value for n in _numbers(inner[1] if isinstance(inner, tuple) else inner)]
    return [as_float(value)] if isinstance(value, int | float) and not isinstance(value, bool) else []
