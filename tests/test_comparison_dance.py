"""DanceGRPO compared: its arms spend alike, can run and differ in what their names say; their page."""

import json

import pytest

from experiments.comparison import dance
from experiments.comparison.arms import changed
from experiments.presets import shapes_flux, shapes_sd
from tests.command import command
from tests.test_comparison_page import record
from unigrpo_jax.config import ConfigError
from unigrpo_jax.config_checks import check
from unigrpo_jax.models.families import load_model
from unigrpo_jax.rollout.program import check_window, flow_sampler


@pytest.mark.parametrize("preset", [shapes_flux, shapes_sd])
def test_every_arm_spends_the_same_and_can_run(preset):
    base = preset.config()
    arms, network = dance.arms(base), load_model(base.model).network
    assert len({a.name for a in arms}) == len(arms) and arms[0].stages == ()
    assert {name for _, names in dance.QUESTIONS for name in names} == {a.name for a in arms}
    for arm in arms[1:]:
        (config,) = arm.stages
        check(config)
        check_window(flow_sampler(config.rollout, network), config.rollout)
        assert (config.episodes, config.iterations) == (base.episodes, base.iterations)
        assert config.learning.ppo_epochs == base.learning.ppo_epochs
        assert config.learning.minibatches == base.learning.minibatches


def test_an_arm_is_what_its_name_says():
    base = shapes_flux.config()
    by_name = {a.name: a.stages[0] for a in dance.arms(base)[1:]}
    steps, trained = base.rollout.flow_steps, {name: c.rollout.window_size for name, c in by_name.items()}
    assert by_name["dance"] == base and base.rollout.shared_noise and base.rollout.noise_range == (0, steps)
    assert trained["dance"] == round(0.6 * steps) and base.rollout.window == "random"
    assert by_name["own_noise"] == changed(base, rollout={"shared_noise": False})
    assert trained["all_transitions"] == trained["flow_grpo"] == trained["ddpo"] + 1 == steps
    assert {c.rollout.noise_range for c in by_name.values()} == {(0, steps)}
    assert trained["first_30"] == 3 and by_name["first_30"].rollout.window_range == (0, 3)
    assert by_name["advantages"].rewards == by_name["sum"].rewards == ("shapes", "colourfulness")
    assert by_name["best_of_n"].learning.group_size == 2 * base.learning.group_size
    assert by_name["best_of_n"].trained_episodes * 2 == base.trained_episodes


@pytest.mark.parametrize(
    ("change", "words"),
    [({"rollout": {"prompts_per_iteration": 3}}, "must be even"), ({"rollout": {"flow_steps": 3}}, "at least 4")],
)
def test_what_cannot_be_changed_so_is_one_sentence(change, words):
    with pytest.raises(ConfigError, match=words):
        dance.arms(changed(shapes_flux.config(), **change))


def test_pages_show_each_question_with_means_over_seeds_and_what_is_missing(tmp_path):
    (tmp_path / "records").mkdir()
    for arm, seed, exact in (("dance", 0, 0.7), ("dance", 1, 0.8), ("own_noise", 0, 0.6)):
        found = record(arm, seed, exact, thinking=False)
        (tmp_path / "records" / f"{arm}-seed{seed}.json").write_text(json.dumps(found))
    assert command("experiments.compare", "dance", "--pages", "--out", tmp_path).code == 0
    page = (tmp_path / "dance.md").read_text()
    parts = dict(part.split("\n", 1) for part in page.split("\n## ")[1:])
    assert list(parts) == [question for question, _ in dance.QUESTIONS]
    noise = parts["Shared or own noise"]
    assert "| DanceGRPO | 2 | 0.750 ± 0.071 |" in noise and "| own noise | 1 | 0.600 |" in noise
    assert "| DDPO's settings | missing |" in parts["Against others' settings"]
    assert (tmp_path / "dance.html").stat().st_size and (tmp_path / "figures" / "dance.svg").stat().st_size
