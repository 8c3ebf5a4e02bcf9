"""The number that a judge gave, from the text of its reply; where it is not plain which one that is, there is none.

What counts, the first that is there:

1. JSON objects, fenced or embedded: a key that is called a score, outermost first, with what it is out of (`max`, `scale`).
2. A label (`LABELS`) with a number behind it, whatever quotes, brackets, markdown, tags or table lines stand between.
3. n/high and "n out of high".
4. The only number of the text.

A total or overall score goes before others; of several numbers that differ none is taken.  A number out of anything but
[low, high] is not converted: nobody knows what the judge meant by its other scale.
"""

import html
import json
import math
import re
import unicodedata
from collections.abc import Iterator
from typing import Any, NamedTuple

READ = 100_000  # characters
LABELS = {  # the higher, the more it is the whole; the rank
    **dict.fromkeys(("finalscore", "overallscore", "totalscore", "overall", "finalrating", "overallrating", "finalgrade",
                     "overallgrade", "totalrating", "finalanswer", "finalverdict"), 2),
    **dict.fromkeys(("score", "rating", "grade"), 1),
    **dict.fromkeys(("answer", "verdict", "result", "value", "points", "total", "judgement", "judgment", "number"), 0),
}  # fmt: skip
MOST = ("max", "maximum", "maxscore", "scoremax", "maxrating", "maximumscore", "maxpoints", "outof", "of", "scale", "range",
        "scorerange", "best", "highest")  # fmt: skip
LEAST = ("min", "minimum", "minscore", "scoremin", "minimumscore", "lowest")

_DIGITS = r"(?:[0-9]+(?:[.,][0-9]+)?|\.[0-9]+)"
# Not a number: a piece of a name (GPT-4), of 1,000 (which may mean either), of a list or a range, a bound, a sum.
_NUMBER = (
    r"(?<![A-Za-z0-9_.,])(?<![A-Za-z0-9)]-)(?<![0-9]['’:])(?<![<>≤≥])(?<![<>≤≥]\s)"
    rf"[-+]?{_DIGITS}(?:[eE][-+]?[0-9]+)?"
    r"(?![A-Za-z0-9_]|[.,'’:·][0-9])(?!\s{0,3}(?:[-~+*×^=]|to\b|or\b|and\b)\s{0,3}[-+.]?[0-9])(?!,\s{1,3}[0-9.]+\s*(?:$|[,\n]))"
)
_THOUSANDS = re.compile(r"[-+]?[1-9][0-9]{0,2},[0-9]{3}")
_PLAIN = r"[-+]?[0-9]+(?:[.,][0-9]+)?"
_CLOSING = r"[\s\"'`*)\]}|(\[]{0,6}"
_OUT_OF = re.compile(
    rf"(?P<value>{_NUMBER})(?:\s?(?P<percent>%|percent\b)|{_CLOSING}(?:points?\b|pts\b|stars?\b)?{_CLOSING}"
    rf"(?P<link>/|out\s{{1,3}}of\b|of\b)[\s\"'`*]{{0,4}}(?P<most>{_PLAIN}(?![0-9.,]*[0-9])|ten\b|five\b|hundred\b))?",
    re.IGNORECASE,
)
_WORDS = {"ten": "10", "five": "5", "hundred": "100"}
_NAMES = (
    r"(?:(?:final|overall|total)[\s_-]{1,3})?(?:score|rating|grade)|final[\s_-]{1,3}(?:answer|verdict)|"
    r"overall|answer|verdict"
)
_LABELLED = re.compile(
    rf"(?<![A-Za-z0-9])(?P<name>{_NAMES}|\\boxed)(?![A-Za-z0-9_])"
    r"(?:[\s\"'`*]{0,4}[(\[](?P<scale>[^()\[\]\n]{1,60})[)\]][\s\"'`*|]{0,6}[:=][\s\"'`*]{0,6}|\s{1,3}is\b)?"
    r"[\s:;=*\"'`“”‘’„«»‹›「」『』【】《》()\[\]{}|#—$]{0,24}(?:-{1,3}\s{1,3})?(?=[-+]?\.?[0-9])",
    re.IGNORECASE,
)
_SCALE = re.compile(
    rf"(?:\b(?:scale|range)\b[\s:=\"'(\[]{{0,6}}(?:(?:of|from|between|is|was)\b)?[\s:=\"'(\[]{{0,6}})(?P<low>{_PLAIN})"
    rf"[\s\"']{{0,3}}(?:-|,|to\b|and\b)\s{{0,3}}(?P<high>{_PLAIN})[\])]?", re.IGNORECASE
)  # fmt: skip
_MOST = re.compile(
    r"(?<![A-Za-z0-9])(?:max(?:imum)?|highest(?:\s{1,3}possible)?|(?P<least>min(?:imum)?|lowest(?:\s{1,3}possible)?)|"
    r"out[_ ]of(?=[\"']?\s?[:=])|scale(?=[\"']?\s?[:=]))(?:[\s_]{1,3}(?:score|rating|grade|points))?"
    r"(?:\s{1,3}is\b|\s{1,3}of\b)?"
    rf"[\s.:=\"'|]{{1,6}}(?P<most>{_PLAIN})", re.IGNORECASE
)  # fmt: skip
_NAME_WITH_DIGITS = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*|[0-9]+[A-Za-z_]\w*")
_FIELD = re.compile(r"\{[^{}]*:")  # of an object that is no JSON: its numbers have names
_ORDINAL = re.compile(r"^[ \t]*[0-9]{1,2}[.)](?=[ \t]+\S)", re.MULTILINE)
_TAG = re.compile(r"<(/?)([A-Za-z][A-Za-z0-9_-]{0,30})((?:\s[^<>]{0,200})?)/?>")
_THOUGHT = re.compile(r"<(think|thinking|thought|reasoning)>.*?(?:</\1>|\Z)", re.IGNORECASE | re.DOTALL)
_THOUGHT_END = re.compile(r"</(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
_LIKE_ASCII = {c: c - 0xFEE0 for c in range(0xFF01, 0xFF5F)} | {
    ord("−"): "-", ord("–"): "-", ord("‐"): "-", ord("‑"): "-", ord("⁄"): "/", ord("∕"): "/", ord("、"): ",", ord("→"): ":",
    ord("➜"): ":", ord("⇒"): ":", 0x3000: " ", ord("│"): "|", ord("┃"): "|", ord("║"): "|",
}  # fmt: skip


class NotJudged(Exception):
    """A reply that is no judgement.

    Attributes:
      reason: words of ours, without a full stop.
      said: words of the server, to be shown with care.
    """

    def __init__(self, reason: str, said: str = ""):
        super().__init__(reason)
        self.reason, self.said = reason, said


class _Found(NamedTuple):
    """A number and the scale that was said with it; None where nothing was said."""

    value: float
    low: float | None = None
    high: float | None = None


def number(text: str, low: float, high: float) -> float:
    """The number that a judge gave, from `low` to `high`; NotJudged where there is none or it is not plain which."""
    if len(text) > READ:
        raise NotJudged(f"the reply is longer than {READ} characters", said=text)
    try:
        found = _of_objects(text) or _of_text(_without_objects(text), high)
    except NotJudged as error:
        raise NotJudged(error.reason, said=text) from None
    if not low <= found.value <= high:
        raise NotJudged(f"the number is not between judge.low = {low:g} and judge.high = {high:g}", said=text)
    if found.high is not None and found.high != high:
        raise NotJudged(f"the number is not out of judge.high = {high:g}", said=text)
    if found.low is not None and found.low != low:
        raise NotJudged(f"the number's scale does not begin at judge.low = {low:g}", said=text)
    return float(found.value)


def spoken(text: str) -> str:
    """The text without what the judge thought aloud, whether or not the server kept where that began."""
    kept = _THOUGHT.sub(" ", text)
    return _THOUGHT_END.split(kept)[-1].strip()


def _agreed(found: list[_Found], what: str) -> _Found | None:
    """The one thing that all say."""
    if len(set(found)) > 1:
        raise NotJudged(f"the reply holds several {what} that differ")
    return found[0] if found else None


# Objects: pairs are kept as a list, so that a key that stands there twice is seen.


class _Pairs(list):
    """An object of JSON."""


_DECODER = json.JSONDecoder(object_pairs_hook=_Pairs)


def _objects(text: str) -> Iterator[tuple[int, int, _Pairs]]:
    """Where the outermost JSON objects of a text begin and end, and what they hold; nothing inside of one that is broken."""
    at = text.find("{")
    while at >= 0:
        try:
            value, end = _DECODER.raw_decode(text, at)
            yield at, end, value
        except (ValueError, RecursionError):
            end = _closed(text, at)
            if end < 0:
                return
        at = text.find("{", end)


def _closed(text: str, at: int) -> int:
    """Behind the brace that closes the one at `at`; -1 where none does."""
    depth = 0
    for brace in re.finditer("[{}]", text[at:]):
        depth += 1 if brace[0] == "{" else -1
        if not depth:
            return at + brace.end()
    return -1


def _of_objects(text: str) -> _Found | None:
    try:
        return _agreed([found for _, _, value in _objects(text) for found in _of_value(value)], "scores")
    except RecursionError:
        raise NotJudged("the reply's JSON is nested too deeply") from None


def _without_objects(text: str) -> str:
    """The text with blanks for its JSON objects, in which no score was found."""
    out, last = [], 0
    for begin, end, _ in _objects(text):
        out += [text[last:begin], " "]
        last = end
    return "".join([*out, text[last:]])


def _key(key: str) -> str:
    return re.sub(r"[^a-z]", "", key.casefold())


def _of_value(value: Any) -> list[_Found]:
    """Scores in a value of JSON: those of its own keys, else those within what it holds."""
    if not isinstance(value, _Pairs):
        return [found for inner in value for found in _of_value(inner)] if isinstance(value, list) else []
    scale = _scale_of(value)
    ranks = [(LABELS[_key(key)], inner) for key, inner in value if _key(key) in LABELS]
    best = max((rank for rank, _ in ranks), default=0)
    named = [inner for rank, inner in ranks if rank == best]
    for total in [inner for key, inner in value if best and _key(key) == "total" and inner not in named]:
        scale = _scale_of(_Pairs([*value, ("max", total)]))  # beside a score it is what the score is out of
    if not named:
        return [found for _, inner in value for found in _of_value(inner)]
    return [_labelled_value(inner, scale) for inner in named]


def _labelled_value(value: Any, scale: _Found) -> _Found:
    if isinstance(value, str):
        found = _of_text(value, math.nan)
    elif isinstance(value, _Pairs):
        found = _agreed(_of_value(value), "scores")
        if found is None:
            raise NotJudged("the reply's score holds no number")
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(_as_float(value)):
        found = _Found(_as_float(value))
    else:
        raise NotJudged("the reply's score is no number")
    if None not in (found.high, scale.high) and found.high != scale.high:
        raise NotJudged("the reply names two scales")
    return _Found(
        found.value,
        scale.low if found.low is None else found.low,
        scale.high if found.high is None else found.high,
    )


def _scale_of(pairs: _Pairs) -> _Found:
    """The scale that an object names beside its score; `value` means nothing."""
    low = high = None
    for key, value in pairs:
        if _key(key) in (*MOST, *LEAST):
            numbers = _numbers(value)
            if len(numbers) == 2:
                low, high = numbers
            elif len(numbers) == 1:
                low, high = (numbers[0], high) if _key(key) in LEAST else (low, numbers[0])
    return _Found(0.0, low, high)


def _numbers(value: Any) -> list[float]:
    """The numbers of a scale, in whatever form it is said."""
    if isinstance(value, str):
        return [_parsed(n) for n in re.findall(r"(?:(?<![0-9\s])-)?[0-9]+(?:\.[0-9]+)?", value.translate(_LIKE_ASCII))]
    if isinstance(value, _Pairs):
        return [n for _, inner in value for n in _numbers(inner)]
    if isinstance(value, list):
        return [n for inner in value for n in _numbers(inner)]
    return [_as_float(value)] if isinstance(value, int | float) and not isinstance(value, bool) else []


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value)


# Text.


def _of_text(text: str, high: float) -> _Found:
    text = _levelled(text)
    low = most = None
    for found in _SCALE.finditer(text):
        low, most = _parsed(found["low"]), _parsed(found["high"])
    text = _SCALE.sub(" ", text)
    for found in _MOST.finditer(text):
        low, most = (_parsed(found["most"]), most) if found["least"] else (low, _parsed(found["most"]))
    text = _MOST.sub(" ", text)
    found = _labelled(text) or _agreed([f for f in _all(text) if f.high == high], "numbers") or _only(text)
    if most is not None and found.high not in (None, most):
        raise NotJudged("the reply names two scales")
    return _Found(found.value, low if found.low is None else found.low, most if found.high is None else found.high)


def _labelled(text: str) -> _Found | None:
    """What stands behind the labels of the highest rank."""
    ranked: dict[int, list[_Found]] = {}
    for label in _LABELLED.finditer(text):
        match, name = _OUT_OF.match(text, label.end()), _key(label["name"])
        found = None if match is None else _read(match)
        if found is not None and label["scale"]:
            numbers = _numbers(label["scale"])
            if len(numbers) == 2:
                found = _Found(found.value, *numbers)
            elif len(numbers) == 1 and found.high is None:
                found = _Found(found.value, None, numbers[0])
        ranked.setdefault(LABELS.get(name, 2), []).append(found)
    if not ranked:
        return None
    best = ranked[max(ranked)]
    if None in best:
        raise NotJudged("there is no number in the reply that can mean one thing only")
    return _agreed(best, "scores")


def _only(text: str) -> _Found:
    """The only number of a text."""
    matches = list(_OUT_OF.finditer(text))
    rest = _NAME_WITH_DIGITS.sub(" ", _OUT_OF.sub(" ", text))
    found = [found for match in matches if (found := _read(match)) is not None]
    if not found or _FIELD.search(text):
        raise NotJudged("there is no number in the reply" if not found else "no number in the reply is called the score")
    if len(matches) > 1 or re.search("[0-9]", rest):
        raise NotJudged("the reply holds several numbers, and none is called the score")
    return found[0]


def _all(text: str) -> list[_Found]:
    return [found for match in _OUT_OF.finditer(text) if (found := _read(match)) is not None and match["link"] != "of"]


def _read(match: re.Match) -> _Found | None:
    """A number and what it is out of; None for 1,000, which is 1 or a thousand."""
    if _THOUSANDS.fullmatch(match["value"]):
        return None
    value = _parsed(match["value"])
    if match["percent"]:
        return _Found(value, 0.0, 100.0)
    return _Found(value, None, _parsed(_WORDS.get(match["most"].lower(), match["most"])) if match["most"] else None)


def _parsed(words: str) -> float:
    return float(words.replace(",", "."))


def _levelled(text: str) -> str:
    """The text with markup, tables and numbered lists made plain, and other alphabets' signs as ASCII's."""
    text = html.unescape(text).translate(_LIKE_ASCII)
    foreign = lambda c: c > "\x7f" and unicodedata.category(c) in ("Nd", "Nl", "No")
    text = "".join("x" if foreign(c) else c for c in text)  # glued to what it belongs to: 7½ is no 7
    text = re.sub(r"~~[^~\n]*~~", " ", text)
    text = re.sub(r"(?<=[0-9])\s?(?:…|\.{2,})\s?(?=[0-9])", "-", text)
    text = re.sub(r"…|\.{2,}", " ", text)
    text = re.sub(r"[-=]{1,3}>", ":", text)
    text = _TAG.sub(_tag, text)
    text = re.sub(r"^[ \t]*>+", " ", text, flags=re.MULTILINE)
    text = re.sub(r"_+", lambda found: "_" if _joins(found) else " ", text)
    ordinals = [found[0].strip(" \t.)") for found in _ORDINAL.finditer(text)]
    if "1" in ordinals:
        text = _ORDINAL.sub(" ", text)
    return _tables(text)


def _joins(underscores: re.Match) -> bool:
    """Whether they are part of a name; else they are emphasis."""
    around = underscores.string[max(underscores.start() - 1, 0) : underscores.end() + 1].split("_")
    return all(side.isascii() and side.isalnum() for side in (around[0], around[-1]))


def _tag(found: re.Match) -> str:
    """A tag's name where it is a label, else nothing; a label's attributes stay, since they may name a scale."""
    closes, name, attributes = found.groups()
    return f"\n{name}{attributes}: " if not closes and _key(name) in LABELS else " "


_RULE = re.compile(r"\s*\|?\s*:?-{2,}:?\s*(?:\|\s*:?-{2,}:?\s*)*\|?\s*")


def _tables(text: str) -> str:
    """Tables of markdown as lines "header: cell", or "first cell: score" where there are several rows."""
    lines, out, at = text.split("\n"), [], 0
    cells = lambda line: [cell.strip() for cell in line.strip().strip("|").split("|")]
    while at < len(lines):
        rule = lines[at + 1] if at + 1 < len(lines) else ""
        if "|" not in lines[at] or "-" not in rule or len(rule) > 1000 or not _RULE.fullmatch(rule):
            out.append(lines[at])
            at += 1
            continue
        header, rows, at = cells(lines[at]), [], at + 2
        while at < len(lines) and "|" in lines[at]:
            rows.append(cells(lines[at]))
            at += 1
        out += _table(header, rows)
    return "\n".join(out)


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    if not rows:
        return [" | ".join(header)]
    column = next((i for i, name in enumerate(header) if i and _key(name) in LABELS), 1 if len(header) == 2 else None)
    pairs = [f"{name}: {cell}" for name, cell in zip(header, rows[0], strict=False)] if len(rows) == 1 else []
    first_is_label = len(rows) > 1 or (_key(rows[0][0]) in LABELS and len(header) == 2)
    if first_is_label:
        return [f"{row[0]}: {row[column]}" for row in rows if column is not None and column < len(row)]
    return pairs
