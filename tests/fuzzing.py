"""What the fuzz tests share: hostile inputs made by mutating valid ones, and a count of those that were tried.

    python -m pytest tests/test_fuzz_*.py -s                       what CI runs: the same inputs every time, with counts
    UNIGRPO_FUZZ=100 python -m pytest tests/test_fuzz_*.py -s      a hundred times as many, others each time

The property is always the same: a reader gives a value or its own error, whose message is short enough to print; anything
else is a traceback that a user would see.
"""

import collections
import contextlib
import copy
import io
import json
import os
from collections.abc import Callable

import hypothesis
from hypothesis import strategies as st

TIMES = int(os.environ.get("UNIGRPO_FUZZ", "1"))
LONGEST_MESSAGE = 20_000  # the longest honest one lists the tensors that a folder lacks
EVIL_TEXTS = (
    "", " ", "\x00", "\x1b]0;title\x07\x1b[2J", "[red]x[/red][link=http://e]y[/link]", "\ud800", "\u202egnp.exe", "\u2066a",
    "</script><script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "' onmouseover='x", "{0.__class__}", "%s%n",
    "../../etc/passwd", "/etc/passwd", "~root", "a/../b", "C:\\x", "$(reboot)`reboot`;#", "!!python/object:os.system", "(",
    "(a+)+$", "\r\nX: y", "\u2028", "٣", "1e999", "nan", "-1", "--help", "A" * 3000, "é" * 300,
)  # fmt: skip
EVIL_NUMBERS = (0, -1, 1, 2, 3, 7, 255, 2**31 - 1, 2**31, 2**53, 2**63, -(2**63), 10**400, 0.5, -0.0, 1e-300, 1e308, -1e308,
                float("inf"), float("-inf"), float("nan"))  # fmt: skip
EVIL_BYTES = (b"", b"\0", b"\n", b"\r", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b'"', b"\\", b"{", b"}", b"[", b"]", b",",
              b":", b"null", b"NaN", b"-Infinity", b"1e999", b"9" * 4400, b"[" * 3000, b'{"a":' * 3000, b"\\ud800",
              b"\x00" * 8, b"\xff" * 8, b"\x1b[31m", b"\xe2\x80\xae")  # fmt: skip

texts = st.sampled_from(EVIL_TEXTS) | st.text(max_size=12)
scalars = st.one_of(st.none(), st.booleans(), st.sampled_from(EVIL_NUMBERS), texts, st.integers(-9, 99))
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=4
)

_tried: collections.Counter = collections.Counter()
_refused: collections.Counter = collections.Counter()


def fuzz(inputs: int, *strategies) -> Callable:
    """Runs a test with that many inputs, the same ones each time unless UNIGRPO_FUZZ asks for more."""

    def decorate(test):
        settings = hypothesis.settings(
            max_examples=inputs * TIMES, derandomize=TIMES == 1, database=None, deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck), phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        )  # fmt: skip
        return settings(hypothesis.given(*strategies)(test))

    return decorate


def survives(name: str, reader: Callable, *arguments, clean=ValueError):
    """What a reader gives, or None where it refuses with one of its `clean` errors."""
    _tried[name] += 1
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            return reader(*arguments)
    except clean as error:
        _refused[name] += 1
        assert len(str(error)) <= LONGEST_MESSAGE, f"a message of {len(str(error))} characters"
        return None


@st.composite
def changed_json(draw, valid):
    """A valid JSON value with one to three of its parts replaced, renamed, removed or doubled."""
    value = copy.deepcopy(draw(st.sampled_from(valid)) if isinstance(valid, tuple) else valid)
    for _ in range(draw(st.integers(1, 3))):
        value = _change(draw, value)
    return value


def _change(draw, value):
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 9)) == 0:
        return draw(values)
    key = draw(st.sampled_from(list(value) if isinstance(value, dict) else range(len(value))))
    kind = draw(st.sampled_from(["deeper", "deeper", "deeper", "alike", "alike", "replace", "remove", "rename", "double"]))
    alike = [x for x in EVIL_NUMBERS + EVIL_TEXTS if type(x) is type(value[key])]
    if kind == "alike" and alike:
        value[key] = draw(st.sampled_from(alike))
    elif kind in ("alike", "deeper"):
        value[key] = _change(draw, value[key])
    elif kind == "replace":
        value[key] = draw(values)
    elif kind == "remove":
        del value[key]
    elif isinstance(value, list):
        value.append(copy.deepcopy(value[key]))
    else:
        name = draw(st.sampled_from(EVIL_TEXTS) | st.sampled_from(list(value)))
        value[name] = value.pop(key) if kind == "rename" else copy.deepcopy(value[key])
    return value


@st.composite
def changed_bytes(draw, valid):
    """Valid bytes with a few of them cut, overwritten, swapped for hostile ones, or said twice."""
    data = bytearray(draw(st.sampled_from(valid)) if isinstance(valid, tuple) else valid)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 8))
        kind = draw(st.sampled_from(["cut", "write", "insert", "flip", "double", "end"]))
        if kind == "cut":
            del data[at : at + length]
        elif kind == "write":
            evil = draw(st.sampled_from(EVIL_BYTES) | st.binary(max_size=8))
            data[at : at + len(evil)] = evil
        elif kind == "insert":
            data[at:at] = draw(st.sampled_from(EVIL_BYTES))
        elif kind == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "double":
            data[at:at] = data[at : at + 50]
        elif kind == "end":
            del data[at:]
    return bytes(data)


def as_json(value) -> bytes:
    """The value as a file would hold it, halves of surrogate pairs as escapes."""
    return json.dumps(value).encode()


def summary() -> list[str]:
    """One line per reader that was fuzzed, and a line of the total."""
    lines = [f"fuzz: {name:<34}{count:>8} inputs, {_refused[name]:>7} refused" for name, count in sorted(_tried.items())]
    return [*lines, f"fuzz: {'together':<34}{sum(_tried.values()):>8} inputs"]
