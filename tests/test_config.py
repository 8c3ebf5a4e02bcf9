"""Settings: every rule refuses in one sentence with the arithmetic and the fix; JSON and back changes nothing."""

import ast
import dataclasses
import inspect
import json
import math
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.command_line import preset, presets
from unigrpo_jax import config as module
from unigrpo_jax.config import ConfigError, RunConfig
from unigrpo_jax.config_checks import check, check_devices
from unigrpo_jax.config_json import from_dict, load_run_config, to_dict

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIGS = [value for value in vars(module).values() if dataclasses.is_dataclass(value)]


def changed(**sections) -> RunConfig:
    """The defaults with sections={"field": value} or field=value changed."""
    config = RunConfig()
    return dataclasses.replace(config, **{
        name: dataclasses.replace(getattr(config, name), **value) if isinstance(value, dict) else value
        for name, value in sections.items()
    })  # fmt: skip


def refusal(function, *arguments, **keywords) -> str:
    with pytest.raises(ConfigError) as caught:
        function(*arguments, **keywords)
    text = str(caught.value)
    assert "\n" not in text and text.endswith((".", "?")) and len(text) < 500, text
    return text


@pytest.mark.parametrize("name", presets())
def test_every_preset_passes_and_survives_json(name):
    config, rest = preset([name, "--seed", "1"], "shapes")
    check(config)
    check_devices(config, 1)
    assert rest == ["--seed", "1"]
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


QUIET = dict(rollout=dict(thinking=False))
RULES = [
    (dict(learning=dict(group_size=1)), ["learning.group_size = 1", "at least 2"]),
    (dict(model=dict(embeddings=module.EmbeddingsConfig(gigabytes=0.0))), ["model.embeddings.gigabytes = 0.0", "above 0"]),
    (dict(model=dict(embeddings=module.EmbeddingsConfig(folder=""))), ["model.embeddings.folder is empty"]),
    (dict(rollout=dict(window_size=4, window_range=(2, 5))), ["window_size = 4", "[2, 5)", "3 transitions"]),
    (dict(rollout=dict(window_range=(5, 5))), ["[5, 5)", "0 transitions"]),
    (dict(rollout=dict(window_range=(-1, 5))), ["[-1, 5)"]),
    (dict(rollout=dict(window_range=(0, 11))), ["[0, 11)", "flow_steps = 10", "ends at 10 or before"]),
    (dict(rollout=dict(flow_steps=0)), ["rollout.flow_steps = 0", "at least 1"]),
    (dict(rollout=dict(frames=0)), ["rollout.frames = 0", "at least 1"]),
    (dict(rollout=dict(frames=10**6 + 1)), ["rollout.frames = 1000001 of 24 x 24 pixels", "use at most 466033 frames"]),
    (dict(rollout=dict(frames_per_second=-1.0)), ["rollout.frames_per_second = -1", "from 0.1 to 240"]),
    (dict(rollout=dict(frames_per_second=1e9)), ["rollout.frames_per_second = 1e+09", "from 0.1 to 240"]),
    (dict(rollout=dict(frames_per_second=0.0)), ["rollout.frames_per_second = 0", "from 0.1 to 240"]),
    (dict(rollout=dict(frames_per_second=241.0)), ["rollout.frames_per_second = 241", "from 0.1 to 240"]),
    (dict(rollout=dict(window_size=0)), ["rollout.window_size = 0", "at least 1"]),
    (dict(evaluation=dict(flow_steps=0)), ["evaluation.flow_steps = 0", "at least 1"]),
    (dict(learning=dict(flow_clip=0.0)), ["learning.flow_clip = 0.0", "above 0"]),
    (dict(learning=dict(text_clip=-0.1)), ["learning.text_clip = -0.1", "above 0"]),
    (dict(learning=dict(reasoning_lr=-1.0)), ["learning.reasoning_lr = -1.0", "0 or more"]),
    (dict(learning=dict(adam_b2=1.0)), ["learning.adam_b2 = 1.0", "below 1"]),
    (dict(learning=dict(ema_decay=1.0)), ["learning.ema_decay = 1.0", "below 1"]),
    (dict(rollout=dict(step_rule="cps", window_range=(0, 10))), ["[0, 10)", "cps has no noise", "end at 9"]),
    (dict(rollout=dict(step_rule="cps", noise_level=2.0)), ["noise_level = 2.0", "below 2"]),
    (dict(rollout=dict(noise_range=(2, 11))), ["noise_range = [2, 11)", "[0, 10)"]),
    (dict(rollout=dict(noise_range=(2, 4), step_rule="cps", window_range=(0, 10))), ["[0, 10)", "cps has no noise"]),
    (dict(rollout=dict(guidance=2.0), learning=dict(minibatches=2)), ["guidance = 2.0", "2 optimizer steps", "use 1 and 1"]),
    (dict(rollout=dict(step_rule="ddim", noise_level=1.1)), ["noise_level = 1.1", "eta, at most 1"]),
    (dict(rollout=dict(step_rule="ode")), ["'ode'", "flow_sde"]),
    (dict(learning=dict(reference="none")), ["learning.mse_weight = 0.005", "'device'", "weight of 0"]),
    (dict(rollout=dict(noise_level=0.0)), ["noise_level = 0.0", "above 0"]),
    (dict(rollout=dict(temperature=0.0)), ["rollout.temperature = 0", "use 1"]),
    (dict(rollout=dict(top_p=0.0)), ["rollout.top_p = 0.0", "at most 1"]),
    (dict(rollout=dict(micro_batches=5)), ["prompts_per_iteration = 12", "micro_batches = 5", "4 or 6"]),
    (dict(learning=dict(best=5, worst=4)), ["5 + 4 is more than learning.group_size = 8"]),
    (dict(learning=dict(best=2, worst=1, minibatches=5)), ["(learning.best + learning.worst)", "3 * 12 = 36", "4 or 6"]),
    (dict(rollout=dict(window_stride=0)), ["rollout.window_stride = 0", "at least 1"]),
    (dict(learning=dict(minibatches=5)), ["8 * 12 = 96", "5 * 1 = 5", "4 or 6"]),
    (dict(learning=dict(minibatches=97)), ["97 * 1 = 97 pieces", "be 96."]),
    (dict(learning=dict(text_weight=0.0, flow_weight=0.0)), ["both 0", "above 0"]),
    (dict(rollout=dict(thinking=False), learning=dict(flow_weight=0.0)), ["nothing learns"]),
    (dict(learning=dict(credit="segment")), ["learning.credit = 'segment'", "use both or neither"]),
    (dict(learning=dict(thought_rewards=("plan",))), ["learning.credit = 'shared'", "use both or neither"]),
    (dict(rollout=dict(thinking=False), learning=dict(credit="segment", thought_rewards=("plan",))), ["thinking is off"]),
    (dict(learning=dict(credit_by={"a": "video"})), ["credit_by", "rollout.thinking is on", "--rollout.no-thinking"]),
    (dict(learning=dict(credit_by={"a": "video"}, best=1)), ["credit_by", "learning.best = 1", "use 'grpo', 'shared', 0"]),
    (dict(learning=dict(credit_by={"a": "video"}, credit="round")), ["credit_by", "learning.credit = 'round'"]),
    (dict(learning=dict(credit_by={"a": "video"}, method="refl")), ["credit_by", "learning.method = 'refl'"]),
    (QUIET | dict(learning=dict(credit_by={"a": "video,,audio"})), ["credit_by[a] = 'video,,audio'", "or video,audio"]),
    (QUIET | dict(learning=dict(credit_by={"a": ""})), ["learning.credit_by[a] = ''", "name modalities"]),
    (QUIET | dict(learning=dict(credit_by={"a": "audio"}, modality_weights={"audio": 0.0})), ["gives a to audio", "are 0"]),
    (dict(learning=dict(modality_weights={"audio": -1.0})), ["learning.modality_weights[audio] = -1", "0 or more"]),
    (dict(learning=dict(modality_weights={"audio": math.nan})), ["modality_weights[audio] = nan", "finite"]),
    (dict(learning=dict(cooldown=(5, 5))), ["learning.cooldown = (5, 5)", "before its end"]),
    (dict(learning=dict(cooldown=(50, 99))), ["after iteration 99", "iterations = 100", "--learning.cooldown 50 100"]),
    (dict(evaluation=dict(images_per_prompt=7)), ["batch = 96", "images_per_prompt = 7", "91 or 98"]),
    (dict(evaluation=dict(guidance_interval=(0.5, 0.5))), ["(0.5, 0.5)", "0 <= low < high <= 1"]),
    (dict(evaluation=dict(guidance_renorm_min=1.5)), ["guidance_renorm_min = 1.5", "from 0 to 1"]),
    (dict(iterations=0), ["iterations = 0", "at least 1"]),
    (dict(seed=-1), ["seed = -1", "0 or more"]),
    (dict(seed=2**31), ["seed = 2147483648", "32 bits"]),
    (dict(evaluation=dict(seed=-1)), ["evaluation.seed = -1", "0 or more"]),
    (dict(devices=-1), ["devices = -1", "0 (all of them)"]),
    (dict(name="a/b"), ["name = 'a/b'", "--run-dir"]),
    (dict(checkpoint=dict(every=0)), ["checkpoint.every = 0", "at least 1"]),
    (dict(checkpoint=dict(keep_every=-1)), ["checkpoint.keep_every = -1", "0 or more"]),
    (dict(checkpoint=dict(best_metric="eval/exact")), ["checkpoint.best_metric = 'eval/exact'", "evaluation.every = 0"]),
    (dict(alarms=dict(compared=1)), ["alarms.compared = 1", "at least 2"]),
    (dict(alarms=dict(window=19)), ["alarms.window = 19", "alarms.compared = 10", "use 20"]),
    (dict(alarms=dict(image_range=(1.5, 4.0))), ["alarms.image_range = (1.5, 4.0)", "lie inside"]),
    (dict(alarms=dict(sigmas=0.0)), ["alarms.sigmas = 0.0", "above 0"]),
    (dict(alarms=dict(text_ratio=0.5)), ["alarms.text_ratio = 0.5", "at least 1"]),
]  # fmt: skip


@pytest.mark.parametrize("sections, words", RULES, ids=[str(s) for s, _ in RULES])
def test_what_cannot_work_is_refused_with_its_numbers_and_a_fix(sections, words):
    text = refusal(check, changed(**sections))
    for word in words:
        assert word in text, text


SECTIONS = [f.name for f in dataclasses.fields(RunConfig) if dataclasses.is_dataclass(f.default_factory)]


def every_number():
    """(section or None, field, tuple position or None) of each float and int setting."""
    for section in [None, *SECTIONS]:
        holder = RunConfig() if section is None else getattr(RunConfig(), section)
        for field in dataclasses.fields(holder):
            value = getattr(holder, field.name)
            if type(value) in (int, float):
                yield section, field.name, None
            elif isinstance(value, tuple) and value and type(value[0]) in (int, float):
                yield from ((section, field.name, position) for position in range(len(value)))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 10**400])
def test_no_number_may_be_nan_or_infinite_or_too_large(bad):
    names = list(every_number())
    assert len(names) > 50
    for section, field, position in names:
        holder = RunConfig() if section is None else getattr(RunConfig(), section)
        value = bad
        if position is not None:
            value = list(getattr(holder, field))
            value[position] = bad
            value = tuple(value)
        with pytest.raises(ConfigError, match=field):
            check(changed(**{field: value}) if section is None else changed(**{section: {field: value}}))
    with pytest.raises(ConfigError, match="reward_weights.exact"):
        check(changed(learning=dict(reward_weights={"exact": bad})))


@given(
    prompts=st.integers(1, 40), group=st.integers(2, 24), rollouts=st.integers(1, 8), minibatches=st.integers(1, 8),
    micro=st.integers(1, 8), devices=st.integers(1, 64),
)  # fmt: skip
def test_what_the_device_check_proposes_works(prompts, group, rollouts, minibatches, micro, devices):
    """By exhaustion: both proposals divide, they are the nearest below and above, and fewer devices are the most."""
    config = changed(
        rollout=dict(prompts_per_iteration=prompts, micro_batches=rollouts),
        learning=dict(group_size=group, minibatches=minibatches, micro_batches=micro),
    )
    try:
        check(config)
    except ConfigError:
        return

    def works(p, devices):
        spread = p * group % (devices * minibatches * micro) == 0 and p * group // rollouts % devices == 0
        return spread and p % rollouts == 0

    if works(prompts, devices):
        return check_devices(config, devices)
    text = refusal(check_devices, config, devices)
    assert f"{group} * {prompts} = {prompts * group} episodes" in text and f"{devices} devices" in text
    above = next(p for p in range(prompts, 10**6) if works(p, devices))
    below = next((p for p in range(prompts, 0, -1) if works(p, devices)), None)
    options = f"{below} ({below * group}) or {above} ({above * group})" if below else f"{above} ({above * group})"
    fewer = max(d for d in range(1, devices) if works(prompts, d))
    assert text.endswith(f"use rollout.prompts_per_iteration = {options}, or devices = {fewer}."), text


@pytest.mark.parametrize(
    "data, words",
    [
        ({"learning": {"group_sizes": 4}}, ["config.learning", "'group_sizes'", "did you mean 'group_size'?"]),
        ({"xyzzy": 4}, ["config: no field is called 'xyzzy'"]),
        ({"seed": "3"}, ["config.seed = '3'", "a whole number"]),
        ({"seed": 3.5}, ["config.seed = 3.5", "a whole number"]),
        ({"seed": True}, ["config.seed = True", "a whole number"]),
        ({"learning": {"text_clip": "0.2"}}, ["config.learning.text_clip = '0.2'", "a number"]),
        ({"learning": {"ratio_norm": 1}}, ["config.learning.ratio_norm = 1", "true or false"]),
        ({"learning": {"reward_weights": {"exact": "1"}}}, ["reward_weights[exact] = '1'", "a number"]),
        ({"learning": {"reward_weights": [1]}}, ["reward_weights = [1]", "a mapping", "to numbers"]),
        ({"learning": {"credit_by": {"a": 1}}}, ["credit_by[a] = 1", "text"]),
        ({"learning": {"credit_by": "a"}}, ["credit_by = 'a'", "a mapping of names to names"]),
        ({"learning": {"frozen": "x"}}, ["config.learning.frozen = 'x'", "a list"]),
        ({"rollout": {"window_range": [0]}}, ["config.rollout.window_range = [0]", "2 values"]),
        ({"rollout": {"window_range": 3}}, ["config.rollout.window_range = 3", "a list"]),
        ({"rollout": {"step_rule": "sde"}}, ["'sde'", "flow_sde, dance_sde, cps, ddim, ode"]),
        ({"model": {"path": 3}}, ["config.model.path = 3", "text"]),
        ({"model": None}, ["config.model is not a mapping"]),
        ([], ["config is not a mapping"]),
    ],
)
def test_a_json_that_does_not_fit_is_refused_in_one_sentence(data, words):
    text = refusal(from_dict, data)
    for word in words:
        assert word in text, text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
FIELDS = {cls: [f.name for f in dataclasses.fields(cls)] for cls in CONFIGS}


@given(st.sampled_from(CONFIGS).flatmap(lambda cls: st.tuples(
    st.just(cls), st.dictionaries(st.sampled_from(FIELDS[cls]) | st.text(max_size=4) | st.integers(), JSON, max_size=3)
)))  # fmt: skip
def test_only_config_errors_leave_from_dict_and_check(case):
    cls, data = case
    try:
        config = from_dict(data, cls)
        check(config if cls is RunConfig else RunConfig())
        assert repr(from_dict(to_dict(config), cls)) == repr(config)  # which tells 1 from 1.0, and finds NaN equal to itself
    except ConfigError:
        pass


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 10**5, b"[1]", b'{"seed": ' + b"1" * 5000 + b"}", None])
def test_a_broken_config_file_is_one_sentence(tmp_path, content):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    assert str(path) in refusal(load_run_config, path)


def attributes() -> set[str]:
    """Names that are read as attributes, or named in text, outside the files that hold the settings."""
    found, settings = set(), {pathlib.Path(inspect.getfile(cls)) for cls in CONFIGS}
    for folder in ("unigrpo_jax", "experiments"):
        for path in (ROOT / folder).rglob("*.py"):
            if path not in settings:
                found |= {n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}
    return found


@pytest.mark.parametrize("cls", CONFIGS, ids=lambda cls: cls.__name__)
def test_every_field_is_read_somewhere_and_explained(cls):
    read = attributes()
    assert [f.name for f in dataclasses.fields(cls) if f.name not in read] == []
    (node,) = [n for n in ast.parse(pathlib.Path(inspect.getfile(cls)).read_text()).body
               if isinstance(n, ast.ClassDef) and n.name == cls.__name__]  # fmt: skip
    nested = [*SECTIONS, "lora", "embeddings", "nft", "distillation"]
    for field, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign) and field.target.id not in nested:
            explained = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            assert explained and after.value.value.endswith("."), field.target.id
