"""Settings of the remote judge: which are refused, which decide a score, and which a resume may change."""

import dataclasses
import json
import types

import pytest

from tests.judge_server import KEY, config, judge
from unigrpo_jax.config import ConfigError, JudgeConfig, RunConfig
from unigrpo_jax.config_checks import check
from unigrpo_jax.config_json import to_dict
from unigrpo_jax.rewards.load import load_reward
from unigrpo_jax.training.run_folder import check_folder

DECISIVE = dict(
    url="https://other/v1", model="m", form="number", question="{prompt}?", low=1.0, high=9.0, questions_key="q",
    top_logprobs=5, max_tokens=99, show_thinking=True, clip="video", frames=3,
)  # fmt: skip
INDIFFERENT = dict(concurrency=1, retries=9, backoff_seconds=3.0, connect_seconds=1.0, read_seconds=1.0, total_seconds=1.0,
                   retry_after_seconds=1.0, key_variable="X", hosts=("h",), allow_http=True)  # fmt: skip


def test_the_identity_changes_with_what_decides_a_score_and_with_nothing_else():
    identity = judge("https://h/v1").identity
    assert all(judge(**{"url": "https://h/v1", name: value}).identity != identity for name, value in DECISIVE.items())
    assert all(judge("https://h/v1", **{name: value}).identity == identity for name, value in INDIFFERENT.items())
    assert judge("https://h/v1", temperature=0.5).identity == ""
    number, names = dict(form="number", max_tokens=99), [(), ("a",), ("a", "b"), ("b", "a")]
    assert len({judge("https://h/v1", **number, dimensions=some).identity for some in names}) == 4
    assert {f.name for f in dataclasses.fields(JudgeConfig)} == {*DECISIVE, *INDIFFERENT, "temperature", "dimensions"}


REFUSED = [
    (dict(url=""), "judge.url is empty"),
    (dict(model=""), "judge.model is empty"),
    (dict(url="ftp://h/v1"), "no web address"),
    (dict(url="h:8000/v1"), "no web address"),
    (dict(url="https://"), "no web address"),
    (dict(url="https://h:99999/v1"), "no web address"),
    (dict(url="https://[::1/v1"), "no web address"),
    (dict(url="https://h/v1\r\nX: 1"), "no web address"),
    (dict(url="https://h\u0430/v1"), "no web address"),
    (dict(url=f"https://me:{KEY}@h/v1"), "keep the key in the environment"),
    (dict(url=f"https://h/v1?key={KEY}"), "keep the key in the environment"),
    (dict(url="http://h/v1"), "unencrypted"),
    (dict(url="http://127.0.0.1.example.org/v1"), "unencrypted"),
    (dict(url="http://192.168.0.3:8000/v1"), "unencrypted"),
    (dict(url="https://evil/v1", hosts=("good", "better")), "judge.url asks evil, but judge.hosts allows good, better only"),
    (dict(key_variable=KEY), "never the key itself"),
    (dict(key_variable=""), "not the name of an environment variable"),
    (dict(low=10.0), "judge.low = 10.0 is not below judge.high = 10.0"),
    (dict(concurrency=0), "judge.concurrency = 0"),
    (dict(retries=-1), "judge.retries = -1"),
    (dict(read_seconds=0.0), "judge.read_seconds = 0.0"),
    (dict(question="Is it good?"), "no place for {prompt}"),
    (dict(question="{prompt}", form="exam"), "no place for {point}"),
    (dict(question="{prompt}", show_thinking=True), "no place for {thinking}"),
    (dict(question="{prompt} {thinking}"), "thinking, which this judge is not shown"),
    (dict(question="{prompt} {point}"), "point, which this judge is not shown"),
    (dict(question="{prompt} {promt}"), "promt, but only"),
]  # fmt: skip


@pytest.mark.parametrize("settings, words", REFUSED, ids=[words for _, words in REFUSED])
def test_settings_that_cannot_work_or_are_unsafe_are_one_sentence(settings, words):
    with pytest.raises(ConfigError) as caught:
        check(config(**({"url": "https://h/v1"} | settings)))
    text = str(caught.value)
    assert words in text and text.endswith(".") and text.isprintable() and KEY not in text


@pytest.mark.parametrize(
    "settings",
    [dict(url="http://localhost:8000/v1"), dict(url="http://[::1]:8000/v1"), dict(url="http://127.8.9.1/v1/"),
     dict(url="http://10.0.0.2/v1", allow_http=True), dict(url="https://HOST:8443/a/v1", hosts=("Host",)),
     dict(form="exam", question='{"q": "{point}"} {} { } {{}} {Prompt}'), dict(question="{prompt}{low}{high}")],
    ids=str,
)  # fmt: skip
def test_settings_that_work_pass(settings):
    check(config(**({"url": "https://h/v1"} | settings)))


def test_a_run_without_a_judge_needs_no_settings_of_one():
    check(RunConfig())
    with pytest.raises(ConfigError, match="it is judge, or judge:thinking"):
        load_reward("judge:x", config("https://h/v1"))
    with pytest.raises(ConfigError, match="one question, and judge.form = 'exam' many"):
        load_reward("judge:thinking", config("https://h/v1", form="exam"))


def test_a_resume_may_change_where_and_how_the_judge_is_asked_but_not_what(tmp_path):
    before = config("https://h/v1")
    (tmp_path / "config.json").write_text(json.dumps(to_dict(before)))
    (tmp_path / "provenance.json").write_text('{"model_sha256": "0"}')
    (tmp_path / "metrics.jsonl").write_text("")
    loaded = types.SimpleNamespace(checksum=lambda: "0")
    after = lambda **change: types.SimpleNamespace(
        config=dataclasses.replace(before, judge=dataclasses.replace(before.judge, **change)), loaded=loaded, teacher=None
    )
    assert check_folder(tmp_path, after(**INDIFFERENT, url="https://other/v1"), resume=True)
    for name, value in (DECISIVE | {"temperature": 1.0, "dimensions": ("a",)}).items():
        if name != "url":
            with pytest.raises(ConfigError, match=f"another config: judge.{name} = "):
                check_folder(tmp_path, after(**{name: value}), resume=True)
