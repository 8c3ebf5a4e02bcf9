"""The transformer of LTX-2 against diffusers: passes of video with sound, runs, transitions, gradients."""

import dataclasses
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import recorded_gradients
from tests.test_flops import counted
from unigrpo_jax.config import MeshConfig
from unigrpo_jax.models.building.computing import PLAIN, Computing
from unigrpo_jax.models.building.flat import linear, of_stack
from unigrpo_jax.models.building.flat_adapters import hits, linears
from unigrpo_jax.models.folders import component
from unigrpo_jax.models.ltx2.axes import AXES
from unigrpo_jax.models.ltx2.branch import Branch, Given
from unigrpo_jax.models.ltx2.config import FILES, KNOWN, read_transformer
from unigrpo_jax.models.ltx2.flops import evaluation
from unigrpo_jax.models.ltx2.guidance import Guidance, Scales
from unigrpo_jax.models.ltx2.layers import attention, rms
from unigrpo_jax.models.ltx2.modulation import CROSS, GATE, OTHER, parts, said_of, told
from unigrpo_jax.models.ltx2.positions import Positions
from unigrpo_jax.models.ltx2.scheduler import read_scheduler
from unigrpo_jax.models.ltx2.transformer import NOTHING, LTX2Transformer, Without
from unigrpo_jax.models.schedule import stretched
from unigrpo_jax.parallel import mesh as meshes
from unigrpo_jax.parallel.rules import Layout
from unigrpo_jax.rollout.step_rules import ODE, DanceSDE

BOTH = ("video", "audio")
PASSES = (None, "text", "unmixed", "alone")  # rows of a batch in the recorded runs
SAID = {"rope_type": "split", "timestep_scale_multiplier": 1000, "cross_attn_timestep_scale_multiplier": 1000}
# As LTX-2.3 has them.
NEWER = {"gated_attn": True, "cross_attn_mod": True, "audio_gated_attn": True, "audio_cross_attn_mod": True,
         "use_prompt_embeddings": False, "perturbed_attn": True}  # fmt: skip
SMALL = LTX2Transformer(
    video=Branch(modality="video", channels=5, heads=2, head_dim=6),
    audio=Branch(modality="audio", channels=3, heads=2, head_dim=4),
    layers=3, text_width=7, layout="split", gate_factor=1.0,
)  # fmt: skip
SMALL_NEWER = dataclasses.replace(
    SMALL, text_width=None, perturbed=True,
    **{name: dataclasses.replace(branch, gated=True, times_text=True) for name, branch in SMALL.branches.items()},
)  # fmt: skip


class Recorded:
    """The recorded arrays, the networks that they are of, and the parameters.

    Attributes:
      grid: latents of the video (frames, rows, columns).
      networks: {"main", "alt"}: with the reading of times that the class takes where nobody says otherwise.
      params: of each.
    """

    def __init__(self, folder):
        self.folder = folder
        self.settings = json.loads((folder / "settings.json").read_text())
        self.grid, self.fps = tuple(self.settings["latent_grid"]), float(self.load("rope")["fps"])
        self.networks, self.params, self._passes = {}, {}, {}
        for name, own in (("main", "pipeline"), ("alt", "alt")):
            network = read_transformer(folder / own / "transformer" / "config.json")
            weights = component.open_weights(folder / own / "transformer", component.DIFFUSERS, network)
            self.networks[name] = dataclasses.replace(network, cross_times="own")
            self.params[name] = component.read(weights, network, np.float32)

    def load(self, name):
        return dict(np.load(self.folder / f"{name}.npz"))

    def case(self, times=("t_video", "t_audio"), before=""):
        """What single passes are given: latents, times, texts, and which of those are seen."""
        found = self.load("transformer")
        both = lambda names: {modality: found[name] for modality, name in zip(BOTH, names, strict=True)}
        mask = found[f"{before}text_mask"] > 0
        return both(BOTH), both(times), both((f"{before}video_text", f"{before}audio_text")), dict.fromkeys(BOTH, mask)

    def network(self, which="main", reading="own", remat="none"):
        """A network as a function of (params, x, times, texts, seen, sigmas, without)."""
        network = dataclasses.replace(self.networks[which], cross_times=reading)
        way = Computing(remat=remat)
        return lambda p, x, times, texts, seen=None, sigmas=None, without=NOTHING: network(
            p, x, times, texts, self.grid, self.fps, seen, sigmas, without, way)  # fmt: skip

    def run(self, *given, which="main", reading="own", **more):
        """The same, jitted once, upon its parameters."""
        key = which, reading
        if key not in self._passes:
            self._passes[key] = jax.jit(self.network(which, reading))
        return self._passes[key](self.params[which], *given, **more)

    def without(self, alone=(), unmixed=(), samples=2):
        """`Without`, of these samples."""
        rows = np.arange(samples)
        mixing = self.networks["main"].mixing(self.settings["stg_blocks"], np.isin(rows, unmixed))
        return Without(other=np.isin(rows, alone), mixing=mixing)

    def passes(self, x, t):
        """Velocities at one state of a recorded run, {pass: {modality: [1, N, C]}}, all from one batch."""
        run, rows = self.load("run"), len(PASSES)
        repeated = {name: np.repeat(np.asarray(own), rows, axis=0) for name, own in x.items()}
        texts = {name: np.concatenate([run[f"{'neg_' if row == 'text' else ''}{name}_text"] for row in PASSES])
                 for name in BOTH}  # fmt: skip
        seen = dict.fromkeys(BOTH, np.repeat(run["text_mask"] > 0, rows, axis=0))
        times = dict.fromkeys(BOTH, np.full(rows, 1000 * np.float32(t), np.float32))
        without = self.without([PASSES.index("alone")], [PASSES.index("unmixed")], rows)
        out = self.run(repeated, times, texts, seen, without=without, reading="other")
        return {row: {name: v[i : i + 1] for name, v in out.items()} for i, row in enumerate(PASSES)}


@pytest.fixture(scope="module")
def recorded(fixtures):
    """Everything."""
    return Recorded(fixtures / "ltx2")


@pytest.fixture(scope="module")
def close(recorded, assert_close):
    """Asserts that both velocities are those of a case."""
    found = recorded.load("transformer")

    def check(out, case, limit=5e-5):
        assert set(out) == set(BOTH)
        for name, v in out.items():
            assert_close(v, found[f"{case}_{name}_out"], limit, f"{case}: {name}")

    return check


def test_single_passes(recorded, close):
    x, times, texts, seen = recorded.case()
    everything, nothing = recorded.without([0, 1], [0, 1]), recorded.without()
    close(recorded.run(x, times, texts, seen, without=nothing), "diff")
    close(recorded.run(x, recorded.case(("t_same", "t_same"))[1], texts, seen, without=nothing), "same")
    whole = {name: np.ones_like(mask) for name, mask in seen.items()}
    close(recorded.run(x, times, texts, whole, without=nothing), "nomask")
    close(recorded.run(x, times, texts, seen, without=dataclasses.replace(nothing, other=everything.other)), "isolated")
    close(recorded.run(x, times, texts, seen, without=dataclasses.replace(nothing, mixing=everything.mixing)), "stg1")


def test_a_time_for_each_token(recorded, close):
    x, times, texts, seen = recorded.case(("t_video_tokens", "t_audio"))
    close(recorded.run(x, times, texts, seen, without=recorded.without()), "tokens")


def test_the_time_of_the_other_modality(recorded, close):
    x, times, texts, seen = recorded.case()
    close(recorded.run(x, times, texts, seen, sigmas=times, reading="other"), "cross")


def test_each_sample_goes_without_its_own(recorded, assert_close):
    """The first hears nothing of the other modality, the second does not mix."""
    found, (x, times, texts, seen) = recorded.load("transformer"), recorded.case()
    out = recorded.run(x, times, texts, seen, without=recorded.without([0], [1]))
    for name, v in out.items():
        want = np.stack([found[f"isolated_{name}_out"][0], found[f"stg1_{name}_out"][1]])
        assert_close(v, want, name=name)


def test_one_modality_alone_is_the_network_that_hears_nothing_of_the_other(recorded):
    given = recorded.case()
    apart = recorded.run(*given, without=recorded.without([0, 1]))
    for name in BOTH:
        x, times, texts, seen = ({name: own[name]} for own in given)
        out = recorded.run(x, times, texts, seen, without=recorded.without())
        assert set(out) == {name}
        np.testing.assert_array_equal(out[name], apart[name])


@pytest.mark.parametrize("reading, case", [("own", "alt_legacy"), ("other", "alt_cross")])
def test_what_ltx_2_3_has(recorded, close, reading, case):
    """Gated attention, texts and queries to them told the time, no projection of texts, neighbours that turn."""
    x, times, texts, seen = recorded.case(before="alt_")
    network = recorded.networks["alt"]
    assert network.video.gated and network.audio.times_text and network.text_width is None
    assert network.layout == "interleaved"
    close(recorded.run(x, times, texts, seen, times, which="alt", reading=reading), case)


def test_stages(recorded, assert_close):
    """What comes before the blocks, every attention of the first, and what leaves each block."""
    network, params, found = recorded.networks["main"], recorded.params["main"], recorded.load("transformer")
    x, times, texts, seen = recorded.case()
    close = lambda got, name: assert_close(got, found[f"diff_stage/{name}"], name=name)
    start = {name: found[f"diff_stage/{branch.prefix}proj_in"] for name, branch in network.branches.items()}

    def stages(params):
        out, p = {}, {name: own[0] for name, own in of_stack(params, "transformer_blocks").items()}
        column = {name: jnp.asarray(time)[:, None] for name, time in times.items()}
        said = {name: said_of(params, name, column, column, "own", network.gate_factor, np.float32, PLAIN) for name in BOTH}
        turns = network.turns(BOTH, x["audio"].shape[1], recorded.grid, recorded.fps)
        h, entered = start, {}
        for name, branch in network.branches.items():
            pre = branch.prefix
            out[f"{pre}proj_in"] = linear(params, f"{pre}proj_in", x[name])
            out[f"{pre}caption_projection"] = network.text(params, name, texts[name])
            for module, factor in ((f"{pre}time_embed", 1), (CROSS[name], 1), (GATE[name], network.gate_factor)):
                own = told(params, module, column[name] * jnp.float32(factor), np.float32)
                out |= {f"{module}.{i}": part[:, 0] for i, part in enumerate(own)}
            # Attention among themselves, by the tables: shift, scale, gate; then to the text, without any of it.
            shift, scale, gate, *_ = parts(p[f"{pre}scale_shift_table"], said[name].own)
            own = rms(h[name]) * (1 + scale) + shift
            mixed = attention(p, f"{pre}attn1", branch.heads, own, own, PLAIN, (turns[name][0],) * 2)
            text = found[f"diff_stage/{pre}caption_projection"]
            asked = attention(p, f"{pre}attn2", branch.heads, rms(h[name] + gate * mixed), text, PLAIN,
                              seen_BS=seen[name])  # fmt: skip
            out |= {f"transformer_blocks.0.{pre}attn1": mixed, f"transformer_blocks.0.{pre}attn2": asked}
            entered[name] = rms(h[name] + gate * mixed + asked)
        for name, at in (("video", 0), ("audio", 2)):  # rows of scale and shift in both tables
            rows = {each: parts(p[f"{each}_a2v_cross_attn_scale_shift_table"][:4], said[each].cross) for each in BOTH}
            query, context = (entered[each] * (1 + rows[each][at]) + rows[each][at + 1] for each in (name, OTHER[name]))
            module = f"{OTHER[name]}_to_{name}_attn"
            out[f"transformer_blocks.0.{module}"] = attention(p, module, network.audio.heads, query, context, PLAIN,
                                                              (turns[name][1], turns[OTHER[name]][1]))  # fmt: skip
        given = {name: Given(out[f"{branch.prefix}caption_projection"], seen[name], said[name], *turns[name])
                 for name, branch in network.branches.items()}  # fmt: skip
        for i in range(network.layers):
            p = {name: own[i] for name, own in of_stack(params, "transformer_blocks").items()}
            h = network.block((p, None), h, given)
            out |= {f"transformer_blocks.{i}.{j}": h[name] for j, name in enumerate(BOTH)}
        return out

    out = jax.jit(stages)(params)
    del out["transformer_blocks.0.audio_attn2"]  # is not recorded
    for name, got in out.items():
        close(got, name)
    assert {name.removeprefix("diff_stage/") for name in found if name.startswith("diff_stage/")} == set(out)


def test_places_and_angles(recorded, assert_close):
    found, (x, *_) = recorded.load("rope"), recorded.case()
    network, grid, sounds = recorded.networks["main"], recorded.grid, x["audio"].shape[1]
    edges = network.positions.video(grid, recorded.fps)
    spread = [np.broadcast_to(np.expand_dims(own, [j for j in range(3) if j != i]), (*grid, 2)).reshape(-1, 2)
              for i, own in enumerate(edges)]  # fmt: skip
    assert_close(np.stack(spread), found["video_coords"], 1e-7, "intervals of the video")
    assert_close(network.positions.sound(sounds)[None], found["audio_coords"], 1e-7, "intervals of the sound")
    assert_close(spread[0].mean(axis=1), found["video_mid_seconds"], 1e-7, "seconds of the video")
    assert_close(network.positions.sound(sounds).mean(axis=1), found["audio_mid_seconds"], 1e-7, "seconds of the sound")
    for name, which in (("main", ""), ("alt", "alt_")):
        network = recorded.networks[name]
        turns = network.turns(BOTH, sounds, grid, recorded.fps)
        for modality, branch in network.branches.items():
            for kind, own in (("", turns[modality][0]), ("cross_", turns[modality][1])):
                if which and kind:
                    continue  # is not recorded
                for part in ("cos", "sin"):
                    table, want = getattr(own, part), found[f"{which}{kind}{modality}_{part}"]
                    heads = table.reshape(len(table), branch.heads, -1).swapaxes(0, 1)
                    table = heads if network.layout == "split" else np.repeat(table, 2, axis=1)
                    np.testing.assert_allclose(table, want, rtol=0, atol=2e-6, err_msg=f"{which}{kind}{modality}_{part}")


def test_seconds_of_a_clip_by_hand():
    """The first latent frame is one frame, each later one eight; sound at 100 frames of a spectrum a second."""
    places = Positions()
    time, rows, columns = places.video((3, 2, 1), 25.0)
    np.testing.assert_allclose(time, np.array([[0, 1], [1, 9], [9, 17]]) / 25, rtol=1e-6)
    np.testing.assert_array_equal(rows, [[0, 32], [32, 64]])
    np.testing.assert_array_equal(columns, [[0, 32]])
    np.testing.assert_allclose(places.sound(3), np.array([[0, 1], [1, 5], [5, 9]]) / 100, rtol=1e-6)
    frames, sounds = Positions(sound_seconds=40).shared_places((2, 1, 1), 25.0, 2)  # one clock for both
    np.testing.assert_allclose(frames, np.array([0.5, 5]) / 25 / 40, rtol=1e-6)
    np.testing.assert_allclose(sounds, np.array([0.5, 3]) / 100 / 40, rtol=1e-6)


@pytest.mark.parametrize("reading, scale, gate", [
    ("own", "own", "own"), ("other", "other", "other"), ("gate_of_other", "own", "other"),
])  # fmt: skip
def test_each_reading_of_whose_time_says_how_modalities_meet(recorded, assert_close, reading, scale, gate):
    """By hand, in float64: a time for each token of the video, another for each sample of the sound, noise levels beside."""
    params, factor = recorded.params["main"], recorded.networks["main"].gate_factor
    times = {"video": np.array([[900.0, 0.0, 30.5], [250.0, 700.0, 0.0]], np.float32), "audio": np.float32([[333], [41]])}
    sigmas = {"video": np.float32([[900], [700]]), "audio": np.float32([[800], [410]])}

    def said(module, time):
        get = lambda name: np.asarray(params[f"{module}.{name}"], np.float64)
        frequency = np.exp(-np.log(10000) * np.arange(128) / 128)
        angle = np.asarray(time, np.float64)[..., None] * frequency
        silu = lambda h: h / (1 + np.exp(-h))
        through = lambda name, h: h @ get(f"{name}.weight").T + get(f"{name}.bias")
        h = silu(through("emb.timestep_embedder.linear_1", np.concatenate([np.cos(angle), np.sin(angle)], axis=-1)))
        return through("linear", silu(through("emb.timestep_embedder.linear_2", h)))

    for name in BOTH:
        found = said_of(params, name, times, sigmas, reading, factor, np.float32, PLAIN)
        whose = {"own": times[name], "other": sigmas[OTHER[name]]}
        assert_close(found.cross, said(CROSS[name], whose[scale]), name=f"{name}: scale and shift")
        assert_close(found.gate, said(GATE[name], np.float64(factor) * whose[gate]), name=f"{name}: gate")


def test_an_unknown_reading_is_refused():
    times = dict.fromkeys(BOTH, jnp.ones((1, 1)))
    with pytest.raises(ValueError, match="'neither'. There are: own, other, gate_of_other"):
        jax.eval_shape(lambda p: said_of(p, "video", times, times, "neither", 1.0, np.float32, PLAIN), abstract(SMALL))


@pytest.mark.parametrize("name", ["plain", "cfg", "full"])
def test_whole_runs(recorded, assert_close, name):
    run, asked = recorded.load("run"), recorded.settings["runs"][name]
    scales = lambda pre: Scales(text=asked[f"{pre}guidance_scale"], mixing=asked[f"{pre}stg_scale"],
                                other=asked[f"{pre}modality_scale"], rescale=asked[f"{pre}guidance_rescale"])  # fmt: skip
    guidance = Guidance(video=scales(""), audio=scales("audio_"))
    assert guidance.passes == {"plain": (), "cfg": ("text",), "full": ("text", "unmixed", "alone")}[name]
    x, times = {each: run[f"{each}_init"] for each in BOTH}, run["sigmas"]
    for i in range(len(times) - 1):
        v = recorded.passes(x, times[i])
        v = guidance.apply(x, times[i], v[None], **{which: v[which] for which in guidance.passes})
        for each in BOTH:
            assert_close(v[each], run[f"{name}_v_{each}"][i], 2e-4, f"velocity {i} of {each}")
            x[each], _ = ODE().transition(x[each], v[each], times[i], times[i + 1], times[1])
            assert_close(x[each], run[f"{name}_{each}"][i], 2e-4, f"{each} after step {i}")


def test_guidance_by_hand():
    """Two tokens of one number, t = 0.5; data of 1 and 3, of poorer passes 1 less, 2 less and twice as far apart."""
    x, data = np.float32([[[2], [4]]]), np.float32([[[1], [3]]])
    velocity = lambda data: (x - data) / np.float32(0.5)
    poorer = data - 1, data - 2, np.float32([[[0], [4]]])
    scales = Scales(text=3.0, mixing=0.5, other=2.0)
    pushed = np.float32([[[1 + 2 * 1 + 0.5 * 2 + 1 * 1], [3 + 2 * 1 + 0.5 * 2 + 1 * -1]]])  # 5 and 5
    out = scales.apply(x, 0.5, velocity(data), *map(velocity, poorer))
    np.testing.assert_allclose(out, velocity(pushed), rtol=1e-6)
    wide = Scales(other=0.0, rescale=0.25)  # data of 0 and 4 again, whose deviation is twice that of 1 and 3
    out = wide.apply(x, 0.5, velocity(data), v_alone=velocity(np.float32([[[0], [4]]])))
    np.testing.assert_allclose(out, velocity(0.25 * np.float32([[[0], [2]]]) + 0.75 * np.float32([[[0], [4]]])), rtol=1e-6)
    np.testing.assert_allclose(Scales().apply(x, 0.5, velocity(data)), velocity(data), rtol=1e-6)
    assert Guidance(audio=scales).passes == ("text", "unmixed", "alone") and Guidance(video=wide).passes == ("alone",)


def test_times_of_the_sampler(recorded, assert_close):
    found = recorded.load("schedule")
    shift = read_scheduler(recorded.folder / "pipeline" / "scheduler" / "scheduler_config.json", FILES)
    cases = [re.fullmatch(r"steps(\d+)_seq(\d+)_sigmas", name) for name in found]
    for steps, tokens in (map(int, case.groups()) for case in cases if case):
        name = f"steps{steps}_seq{tokens}"
        assert_close(np.log(shift.of(tokens)), found[f"{name}_mu"], 1e-6, "mu")
        assert_close(shift.times(steps, tokens), found[f"{name}_sigmas"], 1e-6, name)
    run = recorded.load("run")
    assert_close(shift.times(len(run["sigmas"]) - 1, run["video_init"].shape[1]), run["sigmas"], 1e-6, "of the run")
    np.testing.assert_array_equal(shift.times(1, 16), [1, 0])


def test_stretched_times_by_hand():
    times = stretched(np.float32([1, 0.75, 0.5, 0]), 0.2)
    np.testing.assert_allclose(times, [1, 0.6, 0.2, 0], rtol=1e-6)


def test_transitions_with_noise(recorded, assert_close):
    found = recorded.load("dance")
    rule, times = DanceSDE(noise_level=float(found["eta"])), found["sigmas"]
    for i in range(len(times) - 1):
        v = recorded.passes({name: found[f"x_{name}"][i] for name in BOTH}, times[i])[None]
        for name in BOTH:
            x, x_next = found[f"x_{name}"][i : i + 2]
            assert_close(v[name], found[f"v_{name}"][i], name=f"velocity {i} of {name}")
            mean, std = rule.transition(x, v[name], times[i], times[i + 1], times[1])
            assert_close(mean, found[f"mean_{name}"][i], name=f"mean {i} of {name}")
            assert_close(std, found["std"][i], name=f"std {i}")
            assert_close(mean + std * found[f"noise_{name}"][i], x_next, name=f"{name} after {i}")
            log_prob = rule.log_prob(x_next, mean, std)
            np.testing.assert_allclose(log_prob, found[f"log_prob_{name}"][i], rtol=0, atol=1e-3)


def test_the_gradient_of_the_error_in_the_velocities(recorded, assert_close):
    target, given, network = recorded.load("mse_inputs"), recorded.case(), recorded.network()

    def loss(params):
        v = network(params, *given)
        return sum(jnp.mean((v[name] - target[f"target_{name}"]) ** 2) for name in BOTH)

    names = recorded.networks["main"].stored_names
    recorded_gradients.check(loss, recorded.params["main"], names, recorded.folder, "grad_mse", assert_close)


def test_the_gradient_of_a_transitions_log_probabilities(recorded, assert_close):
    """Blocks are computed again in the backward pass, which changes nothing."""
    found, run, step = recorded.load("dance"), recorded.load("run"), 1
    rule, network = DanceSDE(noise_level=float(found["eta"])), recorded.network(reading="other", remat="full")
    t, t_next, t_second = *found["sigmas"][step : step + 2], found["sigmas"][1]
    x, x_next = ({name: found[f"x_{name}"][i] for name in BOTH} for i in (step, step + 1))
    texts = {name: run[f"{name}_text"] for name in BOTH}

    def loss(params):
        v = network(params, x, dict.fromkeys(BOTH, jnp.full(1, 1000 * t)), texts)
        stepped = {name: rule.transition(x[name], v[name], t, t_next, t_second) for name in BOTH}
        return sum(jnp.sum(rule.log_prob(x_next[name], *stepped[name])) for name in BOTH)

    names = recorded.networks["main"].stored_names
    recorded_gradients.check(loss, recorded.params["main"], names, recorded.folder, "grad_logprob", assert_close)


def test_each_modality_is_pulled_through_the_other(recorded, assert_close):
    found, (x, times, texts, seen) = recorded.load("grad_cross"), recorded.case()
    network = recorded.network()

    @jax.jit
    def pulled(params):
        v, back = jax.vjp(lambda x: network(params, x, times, texts, seen), x)
        only = lambda name: {each: found[f"cot_{each}"] if each == name else jnp.zeros_like(v[each]) for each in BOTH}
        return {name: back(only(name))[0] for name in BOTH}

    for name, gradient in pulled(recorded.params["main"]).items():
        for each in BOTH:
            assert_close(gradient[each], found[f"d_{name}_out_d_{each}_in"], name=f"{name} by {each}")


# ---- sizes, places on a mesh, cost


def abstract(network, dtype=jnp.float32):
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in network.shapes().items()}


def published(tmp_path, data=None) -> LTX2Transformer:
    (tmp_path / "config.json").write_text(json.dumps(SAID | (data or {})))
    return read_transformer(tmp_path / "config.json")


def test_every_name_and_shape_of_the_published_size(fixtures, tmp_path):
    data = json.loads((fixtures / "ltx2" / "param_shapes_full.json").read_text())
    network = published(tmp_path)
    assert component.wanted(network) == {name: tuple(shape) for name, shape in data["shapes"]["transformer"].items()}
    assert component.count(network) == data["param_count"]["transformer"] == 18_876_174_592
    assert network.cross_times == "other" and not network.perturbed


def test_every_parameter_has_one_rule_and_every_rule_a_parameter(tmp_path):
    """At the published sizes, of LTX-2 and of what LTX-2.3 has; what a mesh of those sizes cuts divides."""
    hits = {pattern: 0 for pattern, _ in AXES}
    for data in ({}, NEWER):
        network = published(tmp_path, data)
        layout = Layout(meshes.make_mesh(8, MeshConfig(fsdp=4, tensor=2)), AXES)
        for name, shape in network.shapes().items():
            found = [(pattern, axes) for pattern, axes in AXES if re.fullmatch(pattern, name)]
            assert len(found) == 1 and len(found[0][1]) == len(shape), (name, found)
            hits[found[0][0]] += 1
            layout.parameter(name, shape)
        assert network.cuts() == {
            "fsdp": {"width of video": 4096, "width of audio": 2048},
            "tensor": {"heads of video": 32, "heads of audio": 32, "MLP of video": 16384, "MLP of audio": 8192},
        }
    assert [pattern for pattern, count in hits.items() if not count and "lora" not in pattern] == []


def test_adapters_are_for_linear_maps_alone():
    """A block's table has two axes, too, and is none."""
    found = linears(SMALL_NEWER)
    assert not any("table" in name or "norm" in name for name in found)
    assert {f"transformer_blocks.{name}" for name in ("audio_to_video_attn.to_q", "attn1.to_gate_logits")} <= set(found)
    assert hits(SMALL, (r"transformer_blocks\..*_to_.*_attn\.to_[qk]", "proj_out")) == {
        r"transformer_blocks\..*_to_.*_attn\.to_[qk]": 4 * SMALL.layers, "proj_out": 1}  # fmt: skip


def small_call(network, way=PLAIN, dtype=jnp.float32):
    """(function of abstract parameters, those): two samples of 4 video tokens and 5 of sound, texts of 6 tokens."""
    widths = {name: network.text_width or branch.width for name, branch in network.branches.items()}
    x = {"video": jnp.zeros((2, 4, 5), dtype), "audio": jnp.zeros((2, 5, 3), dtype)}
    texts = {name: jnp.zeros((2, 6, width)) for name, width in widths.items()}
    times = dict.fromkeys(BOTH, jnp.ones(2))
    return lambda p: network(p, x, times, texts, (2, 1, 2), 24.0, way=way), abstract(network)


@pytest.mark.parametrize("network", [SMALL, SMALL_NEWER], ids=["2", "2.3"])
def test_an_evaluation_executes_what_the_formula_says(network):
    function, params = small_call(network)
    each = evaluation(network, 4, 5, 6)
    assert counted(function, params) == 2 * (each.layers + each.others) > 0
    matrices = {name: p.shape for name, p in params.items() if name.endswith(".weight") and "norm" not in name}
    assert each.weights == sum(map(math.prod, matrices.values()))


def test_bfloat16_stays_what_it_is_through_the_blocks_and_velocities_are_float32():
    held = []
    way = Computing(hold=lambda x: held.append(x) or x)
    function, params = small_call(SMALL_NEWER, way, jnp.bfloat16)
    out = jax.eval_shape(function, params)
    assert {name: (v.shape, v.dtype) for name, v in out.items()} == {
        "video": ((2, 4, 5), jnp.float32), "audio": ((2, 5, 3), jnp.float32)}  # fmt: skip
    assert {x.dtype for x in held} == {jnp.dtype(jnp.bfloat16)} and {x.shape[0] for x in held} == {2}
    assert {(2, 4, 12), (2, 5, 8)} <= {x.shape for x in held}


# ---- what cannot be done


@pytest.mark.parametrize("changes, words", [
    ({"x": {}}, "latents of nothing cannot be denoised"),
    ({"x": {"smell": jnp.zeros((2, 4, 5))}}, "latents of smell cannot be denoised"),
    ({"grid": (2, 2, 2)}, "the video has 4 tokens, but a grid of 2 x 2 x 2 has 8"),
    ({"times": {"video": jnp.ones((2, 3)), "audio": jnp.ones(2)}}, r"times of video have the shape \(2, 3\); give one for"),
    ({"times": {"video": jnp.ones((2, 4)), "audio": jnp.ones(2)}}, "video has a time for each token, and .*; give sigmas"),
    ({"without": Without(mixing=jnp.ones((3, 2), bool))}, "was not made to go without mixing"),
])  # fmt: skip
def test_what_does_not_fit_is_one_sentence(changes, words):
    given = {"x": {"video": jnp.zeros((2, 4, 5)), "audio": jnp.zeros((2, 5, 3))}, "times": dict.fromkeys(BOTH, jnp.ones(2)),
             "texts": dict.fromkeys(BOTH, jnp.zeros((2, 6, 7))), "grid": (2, 1, 2), "fps": 24.0} | changes  # fmt: skip
    with pytest.raises(ValueError, match=words):
        SMALL({}, **given)


def test_blocks_to_leave_unmixed():
    np.testing.assert_array_equal(SMALL.mixing((0, 2), [True, False]), [[True, False], [False, False], [True, False]])
    for block in (3, -1):
        with pytest.raises(ValueError, match=f"there is no block {block} to leave unmixed; the network has 0 to 2"):
            SMALL.mixing((block,), [True])


@pytest.mark.parametrize("data, words", [
    ({"_class_name": "HunyuanVideoTransformer3DModel"}, "this network knows only 'LTX2VideoTransformer3DModel'"),
    ({"rope_type": None}, "rope_type = None, but it must be said"),
    ({"rope_type": "halves"}, "rope_type = 'halves'"),
    ({"cross_attn_timestep_scale_multiplier": None}, "it must be said"),
    ({"timestep_scale_multiplier": 0}, "it must be a number above 0"),
    ({"patch_size": 2}, "patch_size = 2, but this network knows only 1"),
    ({"qk_norm": "rms_norm"}, "this network knows only 'rms_norm_across_heads'"),
    ({"norm_eps": 1e-5}, "this network knows only 1e-06"),
    ({"ff_bias": False}, "this network knows only True"),
    ({"out_channels": 64}, "this network knows only 128"),
    ({"cross_attention_dim": 2048}, "it must be the branch's width, 32 x 128 = 4096"),
    ({"audio_num_attention_heads": 16, "audio_attention_head_dim": 128}, "it must be num_attention_heads = 32"),
    ({"attention_head_dim": 127, "cross_attention_dim": 4064}, "it must be even"),
    ({"vae_scale_factors": [8, 32]}, "it must be three"),
    ({"cross_attn_mod": True, "use_prompt_adaln_single": False}, "use_prompt_adaln_single = False"),
    ({"use_keyframes_abs_pos_embedding": True}, "this network knows only False"),
])  # fmt: skip
def test_what_would_be_another_network_is_refused(tmp_path, data, words):
    with pytest.raises(ValueError) as error:
        published(tmp_path, data)
    assert words in str(error.value)


def test_every_setting_of_the_recorded_files_is_known(recorded):
    for own in ("pipeline", "alt"):
        assert set(json.loads((recorded.folder / own / "transformer" / "config.json").read_text())) <= KNOWN
