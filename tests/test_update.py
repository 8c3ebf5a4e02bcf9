"""The update program: one step per minibatch, the same for any micro-batches, none where it is not finite."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from unigrpo_jax.learning import parameters
from unigrpo_jax.learning import policy as policies
from unigrpo_jax.learning.objective import Objective, reduce_metrics, with_ratio_std
from unigrpo_jax.learning.stepping import pieces
from unigrpo_jax.learning.update import UpdateProgram, differs, new_state
from unigrpo_jax.models import tree
from unigrpo_jax.models.bagel import Bagel

DECAY, FROZEN = 0.9, ("vae2llm",)
LEASH = {"text_kl_weight": 0.1, "latent_kl_weight": 0.2, "leash_times": (0.25, 0.6), "leash_weight": 0.2}  # and the MSE
RATES = (1e-3, 2e-3, 1.0)  # reasoning, denoising, largest gradient norm


@functools.cache
def program(**settings):
    """(state, reference, episodes, advantages, *RATES) -> (state, metrics); donates the state, as a run does."""
    base = tiny.update_program(ema_decay=DECAY, frozen=FROZEN, **(LEASH | settings))

    def run(state, reference, episodes, advantages, reasoning_lr, denoising_lr, max_grad_norm):
        rates = {"reasoning_lr": reasoning_lr, "denoising_lr": denoising_lr, "max_grad_norm": max_grad_norm}
        config = dataclasses.replace(base.config, **rates)
        return UpdateProgram(objective=base.objective, config=config)(state, FIXED, reference, episodes, advantages)

    return tiny.jit(run, donate_argnums=0)


START = tiny.params()
REFERENCE = tiny.nearby(START, 0.01, seed=8)
LABELS = parameters.groups(START, tiny.update_program(frozen=FROZEN).config, Bagel.trained_by)
_, FIXED = parameters.split(START, LABELS)


def copy(tree):
    return jax.tree.map(jnp.copy, tree)


def fresh(params=START):
    return new_state(copy(params), tiny.update_program(ema_decay=DECAY, frozen=FROZEN).config, Bagel.trained_by)


def update(state=None, advantages=None, rates=RATES, batch=None, kept=REFERENCE, **settings):
    state = fresh() if state is None else copy(state)
    batch = tiny.episodes() if batch is None else batch
    advantages = tiny.advantages() if advantages is None else advantages
    return jax.block_until_ready(program(**settings)(state, kept, batch, advantages, *rates))


@pytest.fixture(scope="module")
def once():
    return update()


def flat(state):
    return {k: np.asarray(v) for k, v in tree.flatten(state.params(FIXED)).items()}


def moved(state, since=START):
    """Paths of the parameters with any other bit."""
    before = {k: np.asarray(v) for k, v in tree.flatten(since).items()}
    return {k for k, v in flat(state).items() if v.tobytes() != before[k].tobytes()}


def test_a_reference_that_lies_on_the_host_changes_no_bit(once):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0], memory_kind="pinned_host")
    state, metrics = update(reference="host", kept=jax.device_put(REFERENCE, place))
    tiny.assert_trees_equal((state, metrics), once)


def test_without_a_reference_the_step_is_that_of_a_leash_to_itself_and_no_distance_is_measured():
    held, measured = update(kept=START)  # its leash is exactly 0
    loose = {"mse_weight": 0.0, "latent_kl_weight": 0.0, "text_kl_weight": 0.0, "leash_times": ()}
    state, metrics = update(reference="none", kept={}, **loose)
    for path, value in flat(state).items():
        np.testing.assert_allclose(value, flat(held)[path], rtol=0, atol=2e-7, err_msg=path)
    distances = {"flow/velocity_mse", "flow/leash_mse", "flow/latent_kl", "text/reference_kl"}
    assert measured.keys() - metrics.keys() == distances and metrics.keys() <= measured.keys()


IN_PIECES = {"micro_batches": 4, "window_steps": "scanned", "cooldown": (8, 12)}


def test_neither_micro_batches_nor_scanned_windows_nor_pieces_of_logits_change_an_update(once, monkeypatch):
    """Nor the first ratios, which are exactly 1, nor a cooldown that has not begun."""
    monkeypatch.setattr(policies, "LOGITS", 50)
    state, metrics = update(**IN_PIECES)
    for name in ("text", "flow"):
        assert float(metrics[f"{name}/ratio_min"]) == float(metrics[f"{name}/ratio_max"]) == 1.0
    for path, value in flat(state).items():
        np.testing.assert_allclose(value, flat(once[0])[path], rtol=0, atol=2e-7, err_msg=path)
    assert metrics.keys() == once[1].keys()
    for name, value in metrics.items():
        close = {"atol": 1e-6} if "gap" in name else {"rtol": 1e-5, "atol": 1e-7}
        np.testing.assert_allclose(value, once[1][name], err_msg=name, **close)


def test_pieces_share_every_group_and_hold_each_episode_once():
    ids = np.asarray(pieces(jnp.arange(tiny.EPISODES), 2))
    assert sorted(ids.reshape(-1)) == list(range(tiny.EPISODES))
    for piece in ids:
        assert np.bincount(piece // tiny.GROUP).tolist() == [tiny.GROUP // 2] * tiny.PROMPTS


def test_the_first_update_is_on_policy(once):
    _, m = once
    for name in ("text", "flow"):
        assert float(m[f"{name}/ratio_min"]) == float(m[f"{name}/ratio_max"]) == 1.0
        assert float(m[f"{name}/clip_fraction_above"]) == float(m[f"{name}/clip_fraction_below"]) == 0.0
    assert float(m["update/skipped"]) == 0 and float(m["grad_norm/reasoning"]) > float(m["grad_norm/denoising"]) > 0


SEEN = []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watched(Objective):
    """Notes what every piece of an update sees."""

    def __call__(self, params, episodes, anchors, advantage_B, on_policy, moved):
        loss, metrics = super().__call__(params, episodes, anchors, advantage_B, on_policy, moved)
        names = [f"{kind}/ratio_{end}" for kind in ("text", "flow") for end in ("min", "max")]
        jax.debug.callback(lambda *args: SEEN.append(args), on_policy, advantage_B, *(metrics[n] for n in names))
        return loss, metrics


def test_epochs_and_minibatches():
    """Two passes over two disjoint minibatches in two pieces: eight looks, of which the first step's are on-policy."""
    base = tiny.update_program(ppo_epochs=2, minibatches=2, micro_batches=2, frozen=FROZEN)
    watched = Watched(policy=base.objective.policy, config=base.config)
    run = tiny.jit(UpdateProgram(objective=watched, config=base.config).__call__)
    names = jnp.arange(1.0, tiny.EPISODES + 1)  # advantages that tell the episodes apart
    SEEN.clear()
    start = new_state(START, base.config, Bagel.trained_by)
    state, metrics = jax.block_until_ready(run(start, FIXED, REFERENCE, tiny.episodes(), names))
    jax.effects_barrier()
    first = [s for s in SEEN if bool(s[0])]
    later = [s for s in SEEN if not bool(s[0])]
    assert (len(first), len(later)) == (2, 6)
    everyone = np.sort(np.concatenate([np.asarray(s[1]) for s in SEEN]))
    np.testing.assert_array_equal(everyone, np.repeat(np.asarray(names), 2))  # once in each pass
    own = np.concatenate([np.asarray(s[1]) for s in first])
    assert len(set(own)) == tiny.EPISODES // 2
    np.testing.assert_array_equal(np.bincount((own.astype(int) - 1) // tiny.GROUP), [2, 2, 2, 2])
    for _, _, *ratios in first:
        assert [float(r) for r in ratios] == [1.0] * 4
    for _, _, text_min, text_max, flow_min, flow_max in later:
        assert text_max > 1.0001 and text_min < 0.9999 and flow_max - flow_min > 1e-6
    assert float(metrics["text/ratio_max"]) == max(float(s[3]) for s in SEEN)
    assert float(metrics["flow/ratio_min"]) == min(float(s[4]) for s in SEEN)
    assert float(metrics["text/log_prob_gap_max"]) < 2e-5  # measured before the first step alone
    counts = [x for x in jax.tree.leaves(state.opt_state) if x.dtype == jnp.int32]
    assert counts and all(int(c) == 4 for c in counts) and int(state.step) == 1

    SEEN.clear()
    spoiled, metrics = run(start, FIXED, REFERENCE, tiny.episodes(), names.at[3].set(jnp.nan))
    assert float(metrics["update/skipped"]) == 2  # its minibatch, in both passes
    counts = [x for x in jax.tree.leaves(spoiled.opt_state) if x.dtype == jnp.int32]
    assert all(int(c) == 2 for c in counts) and int(spoiled.skipped_in_row) == 1
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(spoiled.trained))


def test_each_expert_moves_at_its_own_rate(once):
    of = lambda group: {path for path, g in LABELS.items() if g == group}
    assert moved(once[0]) == of(parameters.REASONING) | of(parameters.DENOISING)
    for rates, group in (((0.0, 2e-3, 1.0), parameters.DENOISING), ((1e-3, 0.0, 1.0), parameters.REASONING)):
        state, metrics = update(rates=rates)
        assert moved(state) == of(group)
        other = ({parameters.DENOISING, parameters.REASONING} - {group}).pop()
        assert float(metrics[f"update_norm/{other}"]) == 0 < float(metrics[f"update_norm/{group}"])
        for path in of(group):  # neither rate has a part in the other's step
            np.testing.assert_array_equal(flat(state)[path], flat(once[0])[path])


def test_frozen_parameters_keep_their_bits_and_have_no_moments(once):
    for path in ("latent_pos_embed", "vae2llm/kernel", "vae2llm/bias"):
        np.testing.assert_array_equal(flat(once[0])[path], np.asarray(tree.flatten(START)[path]))
    paths = {jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(once[0].opt_state)}
    assert paths and not [p for p in paths if "vae2llm" in p or "latent_pos_embed" in p]


def test_the_norm_is_clipped_over_both_experts_together(once):
    """Adam's first moment is 0.1 * clipped gradient: both experts shrink by the same factor."""
    _, m = once
    norm = float(np.hypot(m["grad_norm/reasoning"], m["grad_norm/denoising"]))
    loose, _ = update(rates=(1e-3, 2e-3, 2 * norm))
    tight, _ = update(rates=(1e-3, 2e-3, norm / 4))

    def first_moments(state):
        leaves = jax.tree_util.tree_leaves_with_path(state.opt_state)
        return {jax.tree_util.keystr(p): np.asarray(x) for p, x in leaves if ".mu" in jax.tree_util.keystr(p)}

    a, b = first_moments(loose), first_moments(tight)
    assert len(a) == len(moved(once[0]))
    total = np.sqrt(sum(np.sum((x / 0.1) ** 2) for x in b.values()))
    np.testing.assert_allclose(total, norm / 4, rtol=1e-5)
    for path in a:
        np.testing.assert_allclose(b[path], a[path] / 4, rtol=1e-4, atol=1e-9)


def test_an_update_that_is_not_finite_is_dropped(once):
    state = once[0]
    for row in range(1, 3):
        before = copy(state)
        state, metrics = update(state, advantages=tiny.advantages().at[5].set(jnp.nan))
        tiny.assert_trees_equal((state.trained, state.opt_state), (before.trained, before.opt_state))
        assert float(metrics["update/skipped"]) == 1 and float(metrics["update_norm/denoising"]) == 0
        assert int(state.skipped_in_row) == row and int(state.step) == 1 + row
    good, metrics = update(state)
    assert int(good.skipped_in_row) == 0 and float(metrics["update/skipped"]) == 0 and moved(good, state.params(FIXED))


def test_parameters_or_a_reference_that_are_not_finite_drop_the_update():
    for bad in (jnp.nan, jnp.inf):
        broken = START | {"llm2vae": {**START["llm2vae"], "bias": START["llm2vae"]["bias"].at[0].set(bad)}}
        before = fresh(broken)
        state, metrics = update(before)
        assert float(metrics["update/skipped"]) == 1
        tiny.assert_trees_equal((state.trained, state.opt_state), (before.trained, before.opt_state))
        state, metrics = update(kept=broken)
        assert float(metrics["update/skipped"]) == 1 and not moved(state)


def test_without_a_signal_no_step_is_taken_and_nothing_moves(once):
    """Weights, moments, counts and the moving average keep their bits, where the leash pulls, too; a signal takes a step."""
    nothing = jnp.zeros(tiny.EPISODES)
    for before, reference in ((fresh(), START), (once[0], REFERENCE)):
        state, metrics = update(before, advantages=nothing, kept=reference)
        tiny.assert_trees_equal((state.trained, state.opt_state, state.ema), (before.trained, before.opt_state, before.ema))
        assert int(state.step) == int(before.step) + 1 and int(state.skipped_in_row) == 0
        found = {name: float(value) for name, value in metrics.items()}
        assert found["update/without_signal"] == 1 and found["update/skipped"] == 0
        assert found["update_norm/reasoning"] == found["update_norm/denoising"] == 0
        assert (found["flow/velocity_mse"] == 0) == (found["grad_norm/denoising"] == 0) == (reference is START)
    state, metrics = update(advantages=nothing.at[3].set(-1e-3))
    assert float(metrics["update/without_signal"]) == 0 and moved(state)


def test_the_leash_of_unmoved_weights_is_exactly_zero():
    """Velocity MSE, also beside the window, and both KLs, in a first step with a signal; of moved weights they are above."""
    names = ("flow/velocity_mse", "flow/leash_mse", "flow/latent_kl", "text/reference_kl")
    state, metrics = update(kept=START)
    assert [float(metrics[name]) for name in names] == [0.0] * 4 and moved(state)
    _, metrics = update(state, kept=START)
    assert all(float(metrics[name]) > 0 for name in names)


def test_weights_are_compared_as_the_network_casts_them():
    weights = {"a/kernel": jnp.array([1.0, 2.0 + 1e-4]), "a/lora_a": jnp.ones(2), "a/lora_b": jnp.zeros(2)}
    kept = lambda value, dtype=jnp.bfloat16: {"a": {"kernel": jnp.array([1.0, value], dtype)}}
    assert not differs(weights, kept(2.0)) and differs(weights, kept(2.5)) and differs(weights, kept(2.0, jnp.float32))
    assert differs(weights | {"a/lora_b": jnp.array([0.0, 1e-9])}, kept(2.0))


def test_the_moving_average_is_decay_old_plus_rest_new(once):
    second, _ = update(once[0], batch=tiny.episodes(0, 1))
    assert second.ema.keys() == second.trained.keys() == set(tree.flatten(START)) - set(FIXED)
    for path in second.ema:
        start = tree.flatten(START)[path]
        average = np.asarray(start, np.float64)
        for state in (once[0], second):
            average = DECAY * average + (1 - DECAY) * flat(state)[path]
        np.testing.assert_allclose(second.ema[path], average, rtol=1e-6, atol=1e-7)


def test_nothing_is_traced_again_and_donation_spares_the_reference():
    """Several iterations as a run does them: other episodes, windows and advantages, the state donated each time."""
    run, state, reference = program(), fresh(), copy(REFERENCE)
    for step in range(4):
        given = state
        state, metrics = run(given, reference, tiny.episodes(0, step), tiny.advantages(step), *RATES)
        assert run._cache_size() == 1 and int(state.step) == step + 1
        assert given.trained["lm_head/kernel"].is_deleted()
        assert float(metrics["update/skipped"]) == 0
    assert len({int(tiny.episodes(0, s).drawing.steps[0, 0]) for s in range(4)}) > 1
    tiny.assert_trees_equal(reference, REFERENCE)


def test_metrics_of_pieces_combine_by_their_names():
    m = {"a": jnp.array([1.0, 4.0]), "b_min": jnp.array([1.0, 4.0]), "c_max": jnp.array([1.0, 4.0])}
    assert {k: float(v) for k, v in reduce_metrics(m).items()} == {"a": 2.5, "b_min": 1.0, "c_max": 4.0}
    r = np.array([0.5, 1.0, 2.5])
    f = 1 + np.array([1e-6, -3e-6, 2.5e-6])
    moments = {"text/ratio_mean": r.mean(), "text/ratio_square": (r**2).mean()}
    moments |= {"flow/ratio_mean": f.mean(), "flow/ratio_square": ((f - 1) ** 2).mean()}
    out = with_ratio_std({k: jnp.float32(v) for k, v in moments.items()})
    assert set(out) == {f"{n}/ratio_{s}" for n in ("text", "flow") for s in ("mean", "std")}
    np.testing.assert_allclose(out["text/ratio_std"], r.std(), rtol=1e-6)
    np.testing.assert_allclose(out["flow/ratio_std"], f.std(), rtol=1e-2)  # as small as the paper's clip range


@pytest.mark.parametrize(("step", "share"), [(0, 1.0), (7, 1.0), (8, 1.0), (9, 0.75), (11, 0.25), (12, 0.0)])
def test_in_a_cooldown_the_step_is_a_share_of_what_it_was(once, step, share):
    """Rates fall on a line from iteration 8 to 12; moments are those of the full rate."""
    first, cooled = (update(fresh().replace(step=jnp.int32(at)), **IN_PIECES)[0] for at in (0, step))
    for path, x in once[0].trained.items():
        before = np.asarray(tree.flatten(START)[path], np.float64)
        full, found = np.asarray(x, np.float64) - before, np.asarray(cooled.trained[path], np.float64) - before
        np.testing.assert_allclose(found, share * full, rtol=1e-3, atol=1e-6, err_msg=path)
    tiny.assert_trees_equal(cooled.opt_state, first.opt_state)
