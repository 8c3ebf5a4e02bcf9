"""The loss of a batch: values and gradients against float64, exactness on-policy, and where no gradient may flow."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from tests import oracle, tiny
from unigrpo_jax.learning import parameters
from unigrpo_jax.learning.objective import with_ratio_std
from unigrpo_jax.models import tree
from unigrpo_jax.models.bagel import Bagel

# What is off in a run but must be right: a text KL and a latent KL to the reference.
KL = {"text_kl_weight": 0.1, "latent_kl_weight": 0.2}


def changed(objective, weights):
    """The objective with traced weights in the place of its numbers, to compile once for all of them."""
    return dataclasses.replace(objective, config=dataclasses.replace(objective.config, **weights))


@functools.cache
def compiled(**settings):
    """(weights, params, reference, start, episodes, advantages, on_policy) -> ((loss, metrics), gradients)."""
    objective = tiny.objective(**settings)

    def run(weights, params, reference, start, episodes, advantages, on_policy):
        loss = changed(objective, weights)
        anchors = loss.anchors(start, reference, episodes, own_start=False)
        return jax.value_and_grad(loss, has_aux=True)(params, episodes, anchors, advantages, on_policy)

    return tiny.jit(run)


@functools.cache
def value(**settings):
    """As `compiled`, without weights and gradients: losses of views, which one program makes for every setting."""
    objective = tiny.objective(**settings)
    view = tiny.jit(objective.policy.view) if "rule" in settings else tiny.view()
    loss = tiny.told(objective)

    @tiny.jit
    def run(params, reference, start, episodes, advantages, on_policy):
        anchors = loss.anchors(start, reference, episodes, own_start=False)
        return loss(params, episodes, anchors, advantages, on_policy)

    def measure(params, reference, start, episodes, advantages, on_policy):
        return run(*(view(p, episodes) for p in (params, reference, start)), episodes, advantages, on_policy)

    return measure


def weights(text=1.0, flow=1.0, mse=0.3):
    return {"text_weight": text, "flow_weight": flow, "mse_weight": mse}


START = tiny.params()
TRAINED = tiny.nearby(START, 0.02)
REFERENCE = tiny.nearby(START, 0.03, seed=8)
ADVANTAGES = tiny.advantages()


def gradient(params=START, reference=REFERENCE, batch=None, on_policy=True, settings=None, **kw):
    batch = tiny.episodes() if batch is None else batch
    program = compiled(**(settings or {}))
    (_, metrics), grads = program(weights(**kw), params, reference, START, batch, ADVANTAGES, on_policy)
    return metrics, tree.flatten(grads)


@pytest.fixture(scope="module")
def rows():
    return [oracle.episode(tiny.episodes(), i) for i in range(tiny.EPISODES)]


def views(params, rows, rule=oracle.flow_sde):
    exact = oracle.to64(params)
    return [oracle.view(exact, e, rule) for e in rows]


def close(actual, expected, relative=1e-4, absolute=2e-6):
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=relative, atol=absolute)


@pytest.fixture(scope="module")
def parts(rows):
    """The oracle's views under (start, trained, reference), and each episode's losses."""
    old, new, ref = (views(p, rows) for p in (START, TRAINED, REFERENCE))
    c = dataclasses.replace(tiny.LEARNING, **KL)
    each = [oracle.losses(*four, float(a), c) for *four, a in zip(new, old, ref, rows, ADVANTAGES, strict=True)]
    return old, new, ref, each, c


def test_loss_and_metrics_by_hand(rows, parts):
    old, new, _, each, c = parts
    _, m = compiled(**KL)(weights(), TRAINED, REFERENCE, START, tiny.episodes(), ADVANTAGES, False)[0]
    m = with_ratio_std(m)
    mean = lambda name: np.mean([e[name] for e in each])
    for name in ("text/loss", "flow/loss", "flow/velocity_mse", "text/reference_kl", "flow/latent_kl", "text/entropy"):
        close(m[name], mean(name))
    close(m["loss"], np.mean([oracle.total(e, c) for e in each]))

    token, flow = [e["token_ratio"] for e in each], np.stack([e["flow_ratio"] for e in each])
    second = np.mean([np.mean(r**2) for r in token])  # every sequence weighs the same, whatever its length
    close(m["text/ratio_mean"], np.mean([r.mean() for r in token]))
    close(m["text/ratio_std"], np.sqrt(second - np.mean([r.mean() for r in token]) ** 2))
    close(m["text/ratio_min"], min(map(np.min, token)))
    close(m["text/ratio_max"], max(map(np.max, token)))
    close(m["flow/ratio_mean"], flow.mean())
    close(m["flow/log_ratio_mean"], np.log(flow).mean(), relative=2e-3)
    close(m["flow/ratio_std"], flow.std(), relative=2e-3)
    close(m["flow/ratio_min"], flow.min())
    close(m["flow/ratio_max"], flow.max())

    a = np.asarray(ADVANTAGES)
    for name, ratios, clip in (("text", token, c.text_clip), ("flow", flow, c.flow_clip)):
        above = np.mean([np.mean(r > 1 + clip) * (x > 0) for r, x in zip(ratios, a, strict=True)])
        below = np.mean([np.mean(r < 1 - clip) * (x < 0) for r, x in zip(ratios, a, strict=True)])
        assert 0 < above < 0.5 and 0 < below < 0.5
        close(m[f"{name}/clip_fraction_above"], above)
        close(m[f"{name}/clip_fraction_below"], below)

    d = [n.log_probs - o.log_probs for n, o in zip(new, old, strict=True)]
    close(m["text/approx_kl"], np.mean([np.mean(np.exp(x) - x - 1) for x in d]), relative=1e-3)
    gap = [np.abs(n.log_probs - e.log_probs) for n, e in zip(new, rows, strict=True)]
    close(m["text/log_prob_gap_mean"], np.mean([g.mean() for g in gap]), absolute=1e-5)
    close(m["text/log_prob_gap_max"], max(g.max() for g in gap), absolute=1e-5)
    lengths = np.array([len(e.actions) for e in rows])
    close(m["text/length"], lengths.mean())
    close(m["text/truncated_share"], np.mean([e.actions[-1] != tiny.EOS for e in rows]))
    std = new[0].std
    kl = [np.mean((n.mean - o.mean) ** 2, axis=(1, 2)) / (2 * std**2) for n, o in zip(new, old, strict=True)]
    close(m["flow/approx_kl"], np.mean(kl), relative=1e-3)
    close(m["flow/entropy"], np.mean(0.5 * np.log(2 * np.pi * np.e * std**2)))
    w = std[:, None, None]
    density = lambda e, mu: -np.mean((e.mean + w * e.noise - mu) ** 2, axis=(1, 2)) / (2 * std**2)
    gap = np.abs([density(e, e.mean) - density(e, n.mean) for e, n in zip(rows, new, strict=True)])
    close(m["flow/log_prob_gap_mean"], gap.mean(), relative=1e-3, absolute=1e-5)
    close(m["flow/log_prob_gap_max"], gap.max(), relative=1e-3, absolute=1e-5)


@pytest.mark.parametrize(
    ("rule", "settings"),
    [(oracle.flow_sde, {"ratio_norm": False}), (oracle.cps, {"ratio_norm": False, "rule": "cps"})],
)
def test_the_plain_ratio_is_that_of_two_log_densities(rows, rule, settings):
    """Without RatioNorm: exp(log p_new(x') - log p_old(x')), the mean over dimensions; CPS has no 1 / (2 w^2)."""
    _, m = value(**settings)(TRAINED, REFERENCE, START, tiny.episodes(), ADVANTAGES, False)
    c = dataclasses.replace(tiny.LEARNING, ratio_norm=False)
    old, new, ref = (views(p, rows, rule) for p in (START, TRAINED, REFERENCE))
    each = [
        oracle.losses(*four, float(a), c, is_cps=rule is oracle.cps)
        for *four, a in zip(new, old, ref, rows, ADVANTAGES, strict=True)
    ]
    ratios = np.stack([e["flow_ratio"] for e in each])
    close(m["flow/loss"], np.mean([e["flow/loss"] for e in each]))
    close(m["flow/ratio_mean"], ratios.mean(), relative=1e-6)
    close(m["flow/ratio_min"], ratios.min(), relative=2e-6)
    close(m["flow/ratio_max"], ratios.max(), relative=2e-6)
    assert ratios.std() > 1e-4


def directions(count, only=".*"):
    """Random directions in parameter space, of unit length, zero outside of the paths that match."""
    import re

    for seed in range(count):
        rng = np.random.default_rng(100 + seed)
        flat = {k: rng.standard_normal(v.shape) for k, v in tree.flatten(START).items()}
        flat = {k: v * bool(re.match(only, k)) for k, v in flat.items()}
        norm = np.sqrt(sum(np.sum(v**2) for v in flat.values()))
        yield {k: v / norm for k, v in flat.items()}


def slope(function, at, direction, step=1e-5):
    """Central difference in float64."""
    flat = tree.flatten(oracle.to64(at))
    move = lambda h: tree.unflatten({k: flat[k] + h * direction[k] for k in flat})
    return (function(move(step)) - function(move(-step))) / (2 * step)


def along(grads, direction):
    return sum(np.sum(np.asarray(grads[k], np.float64) * direction[k]) for k in direction)


@pytest.mark.parametrize("only", [".*", r"layers/und|embed|norm_und|lm_head", r"layers/gen|vae2llm|time_embedder"])
def test_the_gradient_is_the_slope_of_the_loss_in_float64(rows, parts, only):
    """Every term at once, off-policy, some ratios clipped: the oracle's loss, differentiated numerically."""
    old, _, ref, _, c = parts
    _, grads = compiled(**KL)(weights(), TRAINED, REFERENCE, START, tiny.episodes(), ADVANTAGES, False)
    grads = tree.flatten(grads)

    def loss(p):
        each = zip(rows, old, ref, ADVANTAGES, strict=True)
        return np.mean([oracle.total(oracle.losses(oracle.view(p, e), o, r, e, float(a), c), c) for e, o, r, a in each])

    for direction in directions(2, only):
        expected = slope(loss, TRAINED, direction)
        assert abs(expected) > 1e-4
        close(along(grads, direction), expected, relative=1e-3, absolute=1e-6)


def test_on_policy_every_ratio_is_exactly_one():
    for params in (START, TRAINED):  # whatever the anchors say: no step was taken
        m, _ = gradient(params)
        for name in ("text", "flow"):
            assert float(m[f"{name}/ratio_min"]) == float(m[f"{name}/ratio_max"]) == 1.0
            assert float(m[f"{name}/clip_fraction_above"]) == float(m[f"{name}/clip_fraction_below"]) == 0.0
            close(m[f"{name}/loss"], -np.mean(ADVANTAGES), relative=1e-6)
        assert float(m["flow/ratio_square"]) == 0.0 and float(m["flow/approx_kl"]) == 0.0
    m, _ = gradient(TRAINED, on_policy=False)
    assert float(m["text/ratio_max"]) > 1.01 and float(m["flow/ratio_max"]) > 1.0001


def test_the_on_policy_gradient_is_reinforce(rows):
    """-A grad log p: the mean over tokens, and for RatioNorm w log p, whose gradient is mean(eps grad mu)."""
    _, grads = gradient(mse=0.0)

    def loss(p):
        total = 0.0
        for e, a in zip(rows, np.asarray(ADVANTAGES, np.float64), strict=True):
            view = oracle.view(p, e)
            total -= a * (np.mean(view.log_probs) + np.mean(e.noise * view.mean))
        return total / len(rows)

    for direction in directions(2):
        close(along(grads, direction), slope(loss, START, direction), relative=1e-3, absolute=1e-6)


def test_recorded_log_probs_are_used_as_they_are():
    """old_log_probs = rollout: what two programs disagree about shows in the ratio, on the first step, too."""
    program = value(old_log_probs="rollout")
    _, m = program(START, REFERENCE, START, tiny.episodes(), ADVANTAGES, True)
    assert 0 < float(m["text/log_prob_gap_max"]) < 2e-5 and float(m["flow/log_prob_gap_max"]) < 1e-5
    assert 0 < float(m["text/ratio_max"]) - float(m["text/ratio_min"]) < 4e-5
    assert float(m["flow/ratio_max"]) - float(m["flow/ratio_min"]) < 1e-5
    _, m = program(TRAINED, REFERENCE, START, tiny.episodes(), ADVANTAGES, True)
    assert float(m["text/ratio_max"]) > 1.01 and float(m["flow/ratio_max"]) > 1.0001


def split(grads):
    """Largest entry of each expert's gradient."""
    out = {}
    for path, g in grads.items():
        name = parameters.group_of(path, Bagel.trained_by, ())
        out[name] = max(out.get(name, 0.0), float(np.abs(g).max()))
    return out


def test_a_loss_of_weight_zero_sends_no_gradient():
    _, text = gradient(flow=0.0, mse=0.0)
    assert split(text)[parameters.DENOISING] == 0 and split(text)[parameters.REASONING] > 1e-3
    _, flow = gradient(text=0.0)
    assert np.abs(flow["lm_head/kernel"]).max() == 0 and split(flow)[parameters.DENOISING] > 1e-3
    _, both = gradient()
    for path in both:
        close(both[path], np.asarray(text[path]) + np.asarray(flow[path]), absolute=1e-6)


def test_stopped_contexts_keep_the_image_losses_out_of_the_text():
    """With `stop` they reach `und` only through the two markers of the image block; with `full`, every word."""
    stop = {"context_gradient": "stop"}
    markers = [tiny.IMAGE_START, tiny.IMAGE_END]
    words = np.unique(np.asarray(tiny.prompts().tokens)[np.asarray(tiny.prompts().valid)])
    _, full = gradient(text=0.0)
    _, stopped = gradient(text=0.0, settings=stop)
    rows_of = lambda grads: np.abs(np.asarray(grads["embed/embedding"])).max(axis=1)
    assert (rows_of(full)[words] > 0).all() and (rows_of(full)[markers] > 0).all()
    assert (np.delete(rows_of(stopped), markers) == 0).all() and (rows_of(stopped)[markers] > 0).all()
    for grads in (full, stopped):
        assert np.abs(grads["lm_head/kernel"]).max() == 0 and np.abs(grads["norm_und/scale"]).max() == 0
    close(stopped["llm2vae/kernel"], full["llm2vae/kernel"], absolute=1e-6)
    _, text = gradient(flow=0.0, mse=0.0)
    _, text_stopped = gradient(flow=0.0, mse=0.0, settings=stop)
    for path in text:
        close(text_stopped[path], text[path], absolute=1e-6)


def test_the_velocity_mse_pulls_to_the_reference_and_rests_there():
    largest = lambda grads: max(split(grads).values())
    alone = {"text": 0.0, "flow": 0.0, "mse": 1.0}
    m, away = gradient(**alone)
    at, rest = gradient(reference=START, **alone)
    assert float(at["flow/velocity_mse"]) < 1e-10 and largest(rest) < 1e-5 * largest(away)
    _, other = gradient(reference=tiny.nearby(START, 0.03, seed=9), **alone)
    assert largest({k: other[k] - away[k] for k in away}) > 0.1 * largest(away)
    flat, step = tree.flatten(START), 1e-3 / largest(away)
    closer, _ = gradient(tree.unflatten({k: flat[k] - step * away[k] for k in flat}), **alone)
    assert float(closer["flow/velocity_mse"]) < float(m["flow/velocity_mse"])


def test_the_text_kl_pulls_to_the_reference_and_rests_there():
    """k3: its gradient depends on the reference, as that of k1 as a loss would not."""
    none = {"text": 0.0, "flow": 0.0, "mse": 0.0, "settings": KL}
    largest = lambda grads: max(split(grads).values())
    m, away = gradient(**none)
    at, rest = gradient(reference=START, **none)
    assert abs(float(at["text/reference_kl"])) < 1e-9 and float(at["flow/latent_kl"]) < 1e-9
    assert largest(rest) < 1e-4 * largest(away)
    flat, step = tree.flatten(START), 1e-3 / largest(away)
    closer, _ = gradient(tree.unflatten({k: flat[k] - step * away[k] for k in flat}), **none)
    assert float(closer["text/reference_kl"]) < float(m["text/reference_kl"])
    assert float(closer["flow/latent_kl"]) < float(m["flow/latent_kl"])


def test_the_reference_reads_with_its_own_eyes():
    """Only the reference's `und` expert moves: its velocity moves, and with it the leash."""
    und = tiny.nearby(START["layers"]["und"], 0.05)
    reader = START | {"layers": START["layers"] | {"und": und}}
    m, grads = gradient(reference=reader, text=0.0, flow=0.0, mse=1.0)
    assert float(m["flow/velocity_mse"]) > 1e-6 and split(grads)[parameters.DENOISING] > 1e-5


def test_masked_positions_change_neither_loss_nor_gradient():
    """NaN-free, and without even a gradient to the embedding of the token that stands there."""
    batch, unused = tiny.episodes(), 9
    plain, grads = gradient(TRAINED, batch=tiny.spoil(batch, tiny.PAD), on_policy=False)
    spoiled, same = gradient(TRAINED, batch=tiny.spoil(batch, unused), on_policy=False)
    for name in plain:
        close(spoiled[name], np.asarray(plain[name], np.float64), relative=1e-6, absolute=1e-7)
    for path in grads:
        close(same[path], np.asarray(grads[path], np.float64), absolute=1e-7)


def test_without_thinking_only_the_flow_is_trained():
    batch = tiny.episodes()
    m, grads = gradient(batch=batch.replace(segments=(batch.drawing,)))
    assert not [name for name in m if name.startswith("text/")]
    close(m["loss"], float(m["flow/loss"]) + 0.3 * float(m["flow/velocity_mse"]))
    assert np.abs(grads["lm_head/kernel"]).max() == 0 and split(grads)[parameters.DENOISING] > 1e-3
