"""Rewards made of CLIP, from their names on the command line to numbers."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.clip_oracle import END, ID, LETTERS, START, Oracle, make_folder, normalised, pictures
from unigrpo_jax.config import JudgingConfig, MeshConfig, RunConfig
from unigrpo_jax.models.text_encoders.coder import TextCoder, open_coder
from unigrpo_jax.models.text_encoders.tokenizer import load_tokenizer
from unigrpo_jax.rewards import clip_scores
from unigrpo_jax.rewards.clip_weights import open_clip_folder
from unigrpo_jax.rewards.judging import Judging
from unigrpo_jax.rewards.load import load_reward
from unigrpo_jax.rewards.protocol import Reward, RewardBatch

PROMPTS = ["red cat", "a", "red dog red dog red dog", "red cat", "Zoo"]
# By hand: CLIP lowers letters, joins by MERGES, and marks the end of a word.
WORDS = [
    ["red</w>", "c", "a", "t</w>"],
    ["a</w>"],
    ["red</w>", "d", "o", "g</w>", "red</w>", "d"],
    ["red</w>", "c", "a", "t</w>"],
    ["z", "o", "o</w>"],
]
IDS = [[START, *(ID[word] for word in words), END] for words in WORDS]
TOKENS = 8


def batch(count=5, height=20, width=20):
    prompts = [PROMPTS[i % 5] for i in range(count)]
    images = pictures(count, height, width)
    return RewardBatch(prompts=prompts, metadata=[{}] * count, images=images, thinking=[""] * count)


def padded():
    ids = np.array([row + [END] * (TOKENS - len(row)) for row in IDS])
    return ids, np.array([[1] * len(row) + [0] * (TOKENS - len(row)) for row in IDS])


def add_head(folder, layers=((7, 24), (5, 7), (1, 5)), seed=3):
    """A random head under the published one's kind of names; returns its tensors."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for number, shape in zip((0, 2, 7), layers, strict=False):
        tensors[f"layers.{number}.weight"] = rng.normal(size=shape).astype(np.float32)
        tensors[f"layers.{number}.bias"] = rng.normal(size=shape[:1]).astype(np.float32)
    save_file(tensors, folder / "aesthetic_head.safetensors")
    return tensors


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = make_folder(tmp_path_factory.mktemp("clip") / "model")
    add_head(folder)
    return folder


def test_clipscore_is_two_and_a_half_times_what_is_positive_of_the_cosine(folder):
    cosines = Oracle(folder).cosines(batch().images, *padded())
    assert cosines.min() < -0.01 and cosines.max() > 0.01  # so that both sides are seen
    found = load_reward(f"clipscore:{folder}", RunConfig())(batch())
    assert list(found) == ["clipscore"]
    np.testing.assert_allclose(found["clipscore"], 2.5 * np.maximum(cosines, 0), atol=1e-3)


def test_pickscore_is_the_scaled_cosine(folder):
    oracle = Oracle(folder)
    found = load_reward(f"pickscore:{folder}", RunConfig())(batch())
    np.testing.assert_allclose(found["pickscore"], oracle.scale * oracle.cosines(batch().images, *padded()), atol=1e-3)


def test_hpsv2_is_the_cosine_of_the_whole_picture(folder):
    """A picture twice as wide as high, at the model's size: nothing to resize, half of it black bars."""
    oracle, wide = Oracle(folder), batch(5, 8, 16)
    square = np.zeros((5, 16, 16, 3), np.uint8)
    square[:, 4:12] = wide.images
    texts = [oracle.text(*row) for row in zip(*padded(), strict=True)]
    wanted = [oracle.image(normalised(s)) @ t for s, t in zip(square, texts, strict=True)]
    np.testing.assert_allclose(load_reward(f"hpsv2:{folder}", RunConfig())(wide)["hpsv2"], wanted, atol=1e-5)


@pytest.mark.parametrize("linear", [False, True])
def test_the_aesthetic_score_is_the_heads_number_and_looks_at_no_prompt(tmp_path, linear):
    folder = make_folder(tmp_path / "clip", image=20, tokenizer=False)  # pictures of this size are not resized
    head = add_head(folder)
    if linear:
        head = {"weight": head["layers.2.weight"][:1, :] @ head["layers.0.weight"], "bias": head["layers.7.bias"]}
        save_file(head, folder / "aesthetic_head.safetensors")
    oracle, wanted = Oracle(folder), []
    for image in batch().images:
        x = oracle.image(normalised(image))
        for name in sorted(n.removesuffix("weight") for n in head if n.endswith("weight")):
            x = head[name + "weight"] @ x + head[name + "bias"]
        wanted.append(x[0])
    found = load_reward(f"aesthetic:{folder}", RunConfig())(batch())
    np.testing.assert_allclose(found["aesthetic"], wanted, atol=1e-4)


@pytest.mark.parametrize("name", ["clipscore", "pickscore", "hpsv2", "aesthetic"])
def test_scores_are_the_same_on_one_device_and_cut_over_eight(folder, name):
    one = load_reward(f"{name}:{folder}", RunConfig(devices=1))
    whole = load_reward(f"{name}:{folder}", RunConfig(devices=8))
    cut = load_reward(f"{name}:{folder}", RunConfig(devices=8, mesh=MeshConfig(fsdp=8)))
    wanted = one(batch(11))[name]
    for reward in (whole, cut):
        np.testing.assert_allclose(reward(batch(11))[name], wanted, atol=1e-5)
    held = lambda reward: reward._params["vision"]["layers"]["fc1"]["kernel"].addressable_shards[0].data.size
    assert held(one) == held(whole) == 8 * held(cut)


def test_batches_of_all_sizes_run_in_one_shape_and_rows_do_not_meet(folder, monkeypatch):
    traced, program = [], clip_scores.cosine
    monkeypatch.setattr(clip_scores, "cosine", lambda *given: traced.append(given[2].shape) or program(*given))
    reward = load_reward(f"hpsv2:{folder}", RunConfig(devices=2))
    whole = reward(batch(37))["hpsv2"]
    for size in (1, 16, 17):
        np.testing.assert_allclose(reward(batch(37).take(range(size)))["hpsv2"], whole[:size], atol=1e-6)
    assert traced == [(16, 16, 16, 3)]


def test_prompts_become_clips_ids_and_a_long_one_keeps_its_end(folder):
    config = open_clip_folder(folder).config
    ids, mask = open_coder(folder, config.tokens, config.vocabulary, config.eos)(PROMPTS)
    assert [row[: kept.sum()].tolist() for row, kept in zip(ids, mask, strict=True)] == IDS
    assert ids.shape == mask.shape == (5, TOKENS) and ids.dtype == mask.dtype == np.int32
    assert (np.diff(mask, axis=1) <= 0).all()


@pytest.mark.parametrize("token", ["<|startoftext|>", "<|endoftext|>"])
def test_the_ends_that_a_prompt_names_are_its_letters(tmp_path, token):
    """A row is read out at its first end; the others keep their ids, and a long one its end."""
    words = [*LETTERS, *(c + "</w>" for c in LETTERS), *(c + end for c in "<|>" for end in ("", "</w>"))]
    known = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(known))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')
    start, end = known["<|startoftext|>"], known["<|endoftext|>"]
    coder = TextCoder(load_tokenizer(tmp_path), 24, len(known))
    ids, mask = coder(["ab", f"a{token} b", token * 3])
    assert ids[0].tolist() == [start, known["a"], known["b</w>"], *[end] * 21] and mask[0].sum() == 4
    spelled = [known[c] for c in token.strip("<|>")[:-1]]
    row = ids[1, : mask[1].sum()].tolist()
    assert row[:2] == [start, known["a</w>"]] and row[-2:] == [known["b</w>"], end]
    assert any(row[at : at + len(spelled)] == spelled for at in range(len(row))) and not {start, end} & set(row[1:-1])
    unknown = coder(["ab\u2603cd e"])[0][0].tolist()  # a letter that is not known is an end for CLIP, and stays one
    assert unknown == coder.tokenizer("ab\u2603cd e", padding="max_length", max_length=24)["input_ids"]
    assert mask[2].all() and ids[2, -1] == end and not {start, end} & set(ids[2, 1:-1].tolist())


def test_a_reward_says_what_it_is(folder):
    reward = load_reward(f"clipscore:{folder}", RunConfig())
    assert isinstance(reward, Reward) and reward.cost == "device" and reward.identity.startswith("clipscore ")
    assert reward.identity == load_reward(f"clipscore:{folder}", RunConfig(devices=1)).identity


@pytest.mark.parametrize("change", ["weights", "config", "tokenizer", "preprocessor", "head", "name"])
def test_another_model_has_another_identity(tmp_path, change):
    name, folder = "aesthetic" if change == "head" else "clipscore", make_folder(tmp_path / "clip")
    add_head(folder)
    first = load_reward(f"{name}:{folder}", RunConfig()).identity
    if change == "weights":
        tensors = load_file(folder / "model.safetensors")
        tensors["vision_model.post_layernorm.bias"][0] += 1e-3
        save_file(tensors, folder / "model.safetensors")
    elif change == "config":
        path = folder / "config.json"
        path.write_text(path.read_text().replace("quick_gelu", "gelu"))
    elif change == "tokenizer":
        (folder / "merges.txt").write_text("#version: 0.2\nr e\n")
    elif change == "preprocessor":
        (folder / "preprocessor_config.json").write_text(json.dumps({"size": 20}))
    elif change == "head":
        add_head(folder, seed=4)
    else:
        name = "pickscore"
    assert load_reward(f"{name}:{folder}", RunConfig()).identity != first


def test_several_judge_together_and_remember(folder):
    rewards = {n: load_reward(f"{n}:{folder}", RunConfig(devices=1)) for n in ("clipscore", "aesthetic")}
    judging = Judging(rewards, JudgingConfig())
    first = judging(batch())
    assert set(first) == {"clipscore", "aesthetic"} and first["aesthetic"].dtype == np.float32
    del rewards["clipscore"]._params, rewards["aesthetic"]._params
    again = judging(batch())
    assert all((again[name] == first[name]).all() for name in first)
    assert not any("_params" in vars(reward) for reward in rewards.values())  # the second time nothing was computed


def test_weights_are_read_at_the_first_call(folder):
    reward = load_reward(f"pickscore:{folder}", RunConfig())
    assert "_params" not in vars(reward)
    reward(batch(1))
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(reward._params))


def test_clips_are_scored_by_their_frames(folder):
    """Two clips of four frames, with a prompt each."""
    one = load_reward(f"clipscore:{folder}", RunConfig(devices=1))
    images, prompts = batch(8).images, ["red cat", "Zoo"]
    alone = dict(metadata=[{}] * 8, thinking=[""] * 8, prompts=[p for p in prompts for _ in range(4)])
    scores = one(RewardBatch(images=images, **alone))["clipscore"].reshape(2, 4)
    assert scores.std(axis=1).min() > 1e-4
    clips = RewardBatch(
        prompts=prompts, metadata=[{}] * 2, thinking=[""] * 2, videos=images.reshape(2, 4, 20, 20, 3), fps=8.0
    )
    wants = {"mean": scores.mean(axis=1), "min": scores.min(axis=1), "mean/3": scores[:, [0, 3]].mean(axis=1)}
    for name, wanted in wants.items():
        reward = load_reward(f"frames:{name}:clipscore:{folder}", RunConfig(devices=1))
        assert reward.cost == "device" and one.identity in reward.identity
        found = Judging({"r": reward}, JudgingConfig())(clips)
        np.testing.assert_allclose(found[f"clipscore_{name.replace('/', '_')}"], wanted, atol=1e-6)
