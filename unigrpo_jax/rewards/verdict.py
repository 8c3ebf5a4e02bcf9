"""The number that a judge gave, from the text of its reply; where it is not plain which one that is, there is none.

What counts, the first that is there:

1. JSON objects, fenced or embedded: a key that is called a score, outermost first, with what it is out of (`judge_scale`).
2. A label (`LABELS`) with a number behind it, whatever quotes, brackets, markdown, tags or table lines stand between.
3. n/high and "n out of high".
4. The only number of the text, where it does not count something ("3 circles").

A total or overall score goes before others; of several numbers that differ none is taken, nor where the text
contradicts the object.  A number out of anything but [low, high] is not converted.

Where several things were asked for by name, each name, perhaps with "score" or "rating" behind it, is the only label that
counts for it: a key of an object, else what stands before a number.
"""

import html
import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from unigrpo_jax.rewards import judge_scale
from unigrpo_jax.rewards.judge_scale import PLAIN, as_float, letters, parsed

READ = 100_000  # characters
LABELS = {  # the higher, the more it is the whole; the rank
    **dict.fromkeys(("finalscore", "overallscore", "totalscore", "overall", "finalrating", "overallrating", "finalgrade",
                     "overallgrade", "totalrating", "finalanswer", "finalverdict"), 2),
    **dict.fromkeys(("score", "rating", "grade"), 1),
    **dict.fromkeys(("answer", "verdict", "result", "value", "points", "total", "judgement", "judgment", "number"), 0),
}  # fmt: skip

_DIGITS = r"(?:[0-9]+(?:[.,][0-9]+)?|\.[0-9]+)"
# Not a number: a piece of a name (GPT-4), of 1,000 or 1 000 (which may mean either), of a list or a range, a bound, a sum.
_BOUNDS = ("minus", "negative", "not", "than", "least", "most", "under", "below", "above")
_BEFORE = "".join(rf"(?<!\b{word}\s)" for word in _BOUNDS)
_BESIDE = r"[-~+*×÷^=:\\]|to\b|or\b|and\b|minus\b|plus\b|times\b"
_NUMBER = (
    rf"(?<![A-Za-z0-9_.,])(?<![A-Za-z0-9)]-)(?<![0-9]['’:])(?<![<>≤≥])(?<![<>≤≥]\s){_BEFORE}"
    rf"[-+]?{_DIGITS}(?:[eE][-+]?[0-9]+)?"
    rf"(?![A-Za-z0-9_‰]|[.,'’:·][0-9]|\s?‰)(?![^\S\n]{{0,3}}(?:{_BESIDE})[^\S\n]{{0,3}}[-+.]?[0-9])"
    r"(?!,\s{1,3}[0-9.]+\s*(?:$|[,\n]))(?![^\S\n]{1,3}(?:[0-9]|of\s{1,3}(?:the|these|them|all|its|those)\b))"
)
_THOUSANDS = re.compile(r"[-+]?[1-9][0-9]{0,2},[0-9]{3}")
_CLOSING = r"[\s\"'`*)\]}|(\[]{0,6}"
_OUT_OF = re.compile(
    rf"(?P<value>{_NUMBER})(?:\s?(?P<percent>%|per\s?cent|pct\b)|{_CLOSING}(?:points?\b|pts\b|stars?\b)?{_CLOSING}"
    rf"(?P<link>/|out\s{{1,3}}of\b|of\b)[\s\"'`*]{{0,4}}(?:a\s{{1,3}}(?:possible|maximum|total)\s{{1,3}}(?:of\s{{1,3}})?)?"
    rf"(?P<most>{PLAIN}(?![0-9.,]*[0-9])|ten\b|five\b|(?:a\s)?hundred\b))?",
    re.IGNORECASE,
)
_BEGINS = re.compile(rf"[\W_]*?{_OUT_OF.pattern}", re.IGNORECASE)
# What a number counts stands behind it, and is none of these.
_COUNTS = re.compile(
    r"[^\S\n]{1,3}(?!(?:points?|pts|stars?|out|of|on|for|because|since|as|and|but|with|due|in|overall|given|is|here|from|at|to|so|"
    r"this|the|it|if|when|where|max|maximum|best)\b)[a-z]"
)
_NAMES = (
    r"(?:(?:final|overall|total)[\s_-]{1,3})?(?:score|rating|grade)|final[\s_-]{1,3}(?:answer|verdict)|"
    r"overall|answer|verdict"
)


def _labelled(names: str) -> re.Pattern:
    """A label that one of `names` is, a pattern, up to the number behind it."""
    return re.compile(
        rf"(?<![A-Za-z0-9])(?P<name>{names})(?![A-Za-z0-9_])"
        r"(?:[\s\"'`*]{0,4}[(\[](?P<scale>[^()\[\]\n]{1,60})[)\]][\s\"'`*|]{0,6}[:=][\s\"'`*]{0,6}|\s{1,3}is\b)?"
        r"[\s:;=*\"'`“”‘’„«»‹›「」『』【】《》()\[\]{}|#—$]{0,24}(?:-{1,3}\s{1,3})?(?=[-+]?\.?[0-9])",
        re.IGNORECASE,
    )


_LABELLED = _labelled(rf"{_NAMES}|\\boxed")
_NAME_WITH_DIGITS = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*|[0-9]+[A-Za-z_]\w*")
_FIELD = re.compile(r"\{[^{}]*:")  # of an object that is no JSON: its numbers have names
_ORDINAL = re.compile(r"^[ \t]*[0-9]{1,2}[.)](?=[ \t]+\S)", re.MULTILINE)
_INLINE = ("b", "i", "u", "em", "strong", "span", "code", "mark", "sub", "sup", "font", "small", "big")
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
    read = lambda: _of_objects(text, high) or _of_text(_without_objects(text), high, low < 0)
    (found,) = _held(text, low, high, lambda: {"the number": read()}).values()
    return found


def numbers(text: str, names: Sequence[str], low: float, high: float) -> dict[str, float]:
    """{name: number from `low` to `high`} of several things that a judge was asked for by name; NotJudged as `number`.

    A name is found however its words are joined and whatever letters are capitals; no two may have the same letters.
    """
    return _held(text, low, high, lambda: {name: _of_name(text, name, _called(name, names), low < 0) for name in names})


def _held(text: str, low: float, high: float, read: Callable[[], dict[str, "_Found"]]) -> dict[str, float]:
    """What `read` finds in a text, held to the range and the scale that were asked for."""
    if len(text) > READ:
        raise NotJudged(f"the reply is longer than {READ} characters", said=text)
    try:
        every = read()
    except NotJudged as error:
        raise NotJudged(error.reason, said=text) from None
    except RecursionError:
        raise NotJudged("the reply's JSON is nested too deeply", said=text) from None
    for name, found in every.items():
        if not low <= found.value <= high:
            raise NotJudged(f"{name} is not between judge.low = {low:g} and judge.high = {high:g}", said=text)
        if found.high is not None and found.high != high:
            raise NotJudged(f"{name} is not out of judge.high = {high:g}", said=text)
        if found.low is not None and found.low != low:
            raise NotJudged(f"{name}'s scale does not begin at judge.low = {low:g}", said=text)
    return {name: float(found.value) for name, found in every.items()}


def spoken(text: str) -> str:
    """The text without what the judge thought aloud, whether or not the server kept where that began."""
    kept = _THOUGHT.sub(" ", text)
    return _THOUGHT_END.split(kept)[-1].strip()


def _agreed(found: list[_Found], what: str) -> _Found | None:
    """The one thing that all say, a scale that only some name included."""
    said = [set(values) - {None} for values in zip(*found, strict=True)]
    if any(len(values) > 1 for values in said):
        raise NotJudged(f"the reply holds several {what} that differ")
    return _Found(*(next(iter(values), None) for values in said)) if found else None


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


def _of_objects(text: str, high: float) -> _Found | None:
    """What the objects of a text say, on the scale that the text around them names; None where they hold no score."""
    found = _agreed([found for _, _, value in _objects(text) for found in _of_value(value)], "scores")
    if found is None:
        return None
    around, scale = judge_scale.taken_out(_levelled(_without_objects(text, "{}")))
    behind = re.search(rf"\{{\}}[\s`]{{0,6}}(?:/{{1,2}}\s?)?(?:(?<=/)|out\s{{1,3}}of\s{{1,3}})(?P<most>{PLAIN})", around)
    said = [label for label in _labels(around) if label is not None and label.high in (None, high)]
    if any(label.value != found.value for label in said):
        raise NotJudged("the reply holds several scores that differ")
    return _on(found, (scale[0], parsed(behind["most"]) if behind else scale[1]))


def _without_objects(text: str, instead: str = " ") -> str:
    """The text with something else for its JSON objects."""
    out, last = [], 0
    for begin, end, _ in _objects(text):
        out += [text[last:begin], instead]
        last = end
    return "".join([*out, text[last:]])


def _of_value(value: Any, beyond: judge_scale.Scale = (None, None)) -> list[_Found]:
    """Scores in a value of JSON: those of its own keys, else those within what it holds.  `beyond` is the scale around it.

    Words without a number, as {"overall": "good"}, are passed over where another key is called a score.
    """
    if not isinstance(value, _Pairs):
        return [found for inner in value for found in _of_value(inner, beyond)] if isinstance(value, list) else []
    scale = judge_scale.of_object(value, beyond)
    keys = [(*judge_scale.of_key(key), inner) for key, inner in value]
    called = [(LABELS[name], inner, ends) for name, ends, inner in keys if name in LABELS]
    called = [label for label in called if not _is_remark(label[1])] or called
    best = max((rank for rank, _, _ in called), default=0)
    named = [(inner, ends) for rank, inner, ends in called if rank == best]
    for total in [inner for key, inner in value if best and letters(key) == "total" and inner not in [n for n, _ in named]]:
        scale = judge_scale.of_object([("max", total)], scale)  # beside a score it is what the score is out of
    if not named:
        return [found for _, inner in value for found in _of_value(inner, scale)]
    return [_on(_labelled_value(inner, scale), ends) for inner, ends in named]


def _is_remark(value: Any) -> bool:
    """Words, or an object, that hold no score."""
    if isinstance(value, _Pairs):
        return not _of_value(value)
    begin = _BEGINS.match(value := _levelled(value)) if isinstance(value, str) else None
    return isinstance(value, str) and (begin is None or bool(_COUNTS.match(value, begin.end())))


def _labelled_value(value: Any, scale: judge_scale.Scale) -> _Found:
    if isinstance(value, str):
        found = _of_text(value, math.nan)
    elif isinstance(value, _Pairs):
        found = _agreed(_of_value(value), "scores")
        if found is None:
            raise NotJudged("the reply's score holds no number")
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(as_float(value)):
        found = _Found(as_float(value))
    else:
        raise NotJudged("the reply's score is no number")
    return _on(found, scale)


def _on(found: _Found, scale: judge_scale.Scale) -> _Found:
    """A number on the scale that was named beside it."""
    low, high = scale
    if None not in (found.high, high) and found.high != high:
        raise NotJudged("the reply names two scales")
    return _Found(found.value, low if found.low is None else found.low, high if found.high is None else found.high)


# Text.


def _of_text(text: str, high: float, signed: bool = False) -> _Found:
    """What a text without objects says; `signed` where its number may be negative, and a dash therefore matters."""
    text, scale = _without_scale(text, signed)
    labels = _labels(text)
    if None in labels:
        raise NotJudged("there is no number in the reply that can mean one thing only")
    out_of = [f for f in _all(text) if f.high == high]
    return _on(_agreed(labels, "scores") or _agreed(out_of, "numbers") or _only(text), scale)


def _without_scale(text: str, signed: bool) -> tuple[str, judge_scale.Scale]:
    """A text made plain, without the scale that it names, and that scale."""
    text, scale = judge_scale.taken_out(_levelled(text))
    return re.sub(r"(?<![0-9])(?<![0-9]\s)(?:—\s?|-\s)(?=\.?[0-9])", "x", text) if signed else text, scale


def _called(name: str, names: Sequence[str]) -> list[str]:
    """What a reply may call one of `names`: so, or as its score or rating, unless that is another of them."""
    others = {letters(other) for other in names}
    return [name, *(full for word in ("score", "rating") if letters(full := f"{name}_{word}") not in others)]


def _of_name(text: str, name: str, called: Sequence[str], signed: bool) -> _Found:
    """What objects and labels say of one name, which is so called; NotJudged where they do not, or differ."""
    around, scale = _without_scale(_without_objects(text), signed)
    words = (r"[\s_-]{0,3}".join(re.findall("[A-Za-z]+|[0-9]+", full)) for full in called)
    labels = _labels(around, _labelled("|".join(words)), {})
    if None in labels:
        raise NotJudged(f"there is no number for {name} in the reply that can mean one thing only")
    found = _agreed([f for *_, value in _objects(text) for f in _of_key(value, called)] + labels, f"scores for {name}")
    if found is None:
        raise NotJudged(f"the reply has no number for {name}")
    return _on(found, scale)


def _of_key(value: Any, names: Sequence[str], beyond: judge_scale.Scale = (None, None)) -> list[_Found]:
    """What stands under a key of these names in a value of JSON, outermost first.  `beyond` is the scale around it."""
    if not isinstance(value, _Pairs):
        return [found for inner in value for found in _of_key(inner, names, beyond)] if isinstance(value, list) else []
    scale = judge_scale.of_object(value, beyond)
    keys = [(key, *judge_scale.of_key(key), inner) for key, inner in value]
    wanted = {letters(name) for name in names}
    called = [(inner, ends) for key, own, ends, inner in keys if wanted & {own, letters(key)}]
    called = [both for both in called if not _is_remark(both[0])] or called
    if not called:
        return [found for _, inner in value for found in _of_key(inner, names, scale)]
    return [_on(_labelled_value(inner, scale), ends) for inner, ends in called]


def _labels(text: str, labelled: re.Pattern = _LABELLED, rank_of: Mapping[str, int] = LABELS) -> list[_Found | None]:
    """What stands behind the labels of the highest rank; None for what can mean more than one thing.

    `rank_of` a label's letters; any other label has the highest.
    """
    ranked: dict[int, list[_Found | None]] = {}
    out_of = any(found.high is not None for found in _all(text))
    for label in labelled.finditer(text):
        match, rank = _OUT_OF.match(text, label.end()), rank_of.get(letters(label["name"]), 2)
        if match and re.search("answer|verdict", label["name"], re.IGNORECASE) and _COUNTS.match(text, match.end()):
            continue  # it says how many there are
        found = None if match is None else _read(match)
        if found and out_of and found.high is None and _COUNTS.match(text, match.end()):
            found = None  # "Score: 3 circles are there, so 8/10"
        if found is not None and label["scale"]:
            low, high = judge_scale.of_words(label["scale"])
            found = _Found(found.value, low, high if low is not None or found.high is None else found.high)
        ranked.setdefault(rank, []).append(found)
    return ranked[max(ranked)] if ranked else []


def _only(text: str) -> _Found:
    """The only number of a text."""
    matches = list(_OUT_OF.finditer(text))
    rest = _NAME_WITH_DIGITS.sub(" ", _OUT_OF.sub(" ", text))
    found = [found for match in matches if (found := _read(match)) is not None]
    if not found or _FIELD.search(text):
        raise NotJudged("there is no number in the reply" if not found else "no number in the reply is called the score")
    if len(matches) > 1 or re.search("[0-9]", rest):
        raise NotJudged("the reply holds several numbers, and none is called the score")
    if _COUNTS.match(text, matches[0].end()):
        raise NotJudged("the only number in the reply counts something, and is not called the score")
    return found[0]


def _all(text: str) -> list[_Found]:
    return [found for match in _OUT_OF.finditer(text) if (found := _read(match)) is not None and match["link"] != "of"]


def _read(match: re.Match) -> _Found | None:
    """A number and what it is out of; None for 1,000, which is 1 or a thousand."""
    if _THOUSANDS.fullmatch(match["value"]):
        return None
    value = parsed(match["value"])
    if match["percent"]:
        return _Found(value, 0.0, 100.0)
    return _Found(value, None, parsed(match["most"]) if match["most"] else None)


def _levelled(text: str) -> str:
    """The text with markup, tables and numbered lists made plain, and other alphabets' signs as ASCII's."""
    text = html.unescape(text).translate(_LIKE_ASCII)
    foreign = lambda c: c > "\x7f" and unicodedata.category(c) in ("Nd", "Nl", "No")
    text = "".join("\0" if foreign(c) else c for c in text)
    text = re.sub("(?<=[0-9]) ?\0|\0", "x", text)  # glued to what it belongs to: neither 7½ nor 7 ½ is 7
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
    kept = not closes and (letters(name) in LABELS or judge_scale.is_end(name))
    return f"\n{name}{attributes}: " if kept else "\n" if closes and name.lower() not in _INLINE else " "


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
    is_label = lambda name: judge_scale.of_key(name)[0] in LABELS
    column = next((i for i, name in enumerate(header) if i and is_label(name)), 1 if len(header) == 2 else None)
    pairs = [f"{name}: {cell}" for name, cell in zip(header, rows[0], strict=False)] if len(rows) == 1 else []
    first_is_label = len(rows) > 1 or (is_label(rows[0][0]) and len(header) == 2)
    if first_is_label:
        scale = header[column][len(header[column].split("(")[0]) :] if column is not None else ""
        return [f"{row[0]} {scale}: {row[column]}" for row in rows if column is not None and column < len(row)]
    return pairs
