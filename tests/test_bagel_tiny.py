"""The whole way of a BAGEL folder at toy size: train, checkpoint, resume, evaluate, generate, edit, answer, export."""

import json
import pathlib
import shutil
import unicodedata

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from tests import tiny
from tests.command import command
from unigrpo_jax.config import ModelConfig
from unigrpo_jax.config_json import load_run_config
from unigrpo_jax.learning.update import new_state
from unigrpo_jax.models.bagel import Bagel
from unigrpo_jax.models.bagel.tiny import make_tiny
from unigrpo_jax.models.building import lora
from unigrpo_jax.models.families import load_model
from unigrpo_jax.models.text_encoders.tokenizer import load_tokenizer
from unigrpo_jax.models.tree import flatten
from unigrpo_jax.training.checkpoint import Checkpoints, abstract

SMALL = ("--evaluation.prompts", 4, "--evaluation.batch", 4, "--evaluation.flow-steps", 2, "--evaluation.drift", 0,
         "--rollout.prompts-per-iteration", 2, "--learning.group-size", 4, "--devices", 1)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """The toy as a user finds it, in the published layout."""
    folder = tmp_path_factory.mktemp("bagel") / "tiny"
    folder.mkdir()
    make_tiny(folder)
    names = {"llm_config.json", "vit_config.json", "ema.safetensors", "ae.safetensors", "tokenizer.json",
             "tokenizer_config.json", "vocab.json", "merges.txt"}  # fmt: skip
    assert {path.name for path in folder.iterdir()} == names
    return folder


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory) -> pathlib.Path:
    run_dir = tmp_path_factory.mktemp("runs") / "tiny"
    outcome = command("experiments.run", "bagel_tiny", "--model.path", folder, "--run-dir", run_dir, *SMALL)
    assert outcome.code == 0, outcome
    return run_dir


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory) -> pathlib.Path:
    out = tmp_path_factory.mktemp("out") / "model"
    outcome = command("experiments.export", trained, out, "--dtype", "float32", "--shard-gb", 0.0004)
    assert outcome.code == 0 and "ema-00001-of-" in outcome.out, outcome
    return out


def test_it_trains_both_experts_and_nothing_else(folder, trained, exported):
    """What was frozen comes back in its own bits, what was trained does not; the ratios were 1."""
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and all(line["update/skipped"] == 0 for line in lines)
    for line in lines:
        assert line["flow/ratio_min"] == line["flow/ratio_max"] == line["text/ratio_min"] == line["text/ratio_max"] == 1
        assert line["text/log_prob_gap_max"] < 1e-4
    before = load_model(ModelConfig(path=str(folder)))
    after = load_model(ModelConfig(path=str(exported)))
    assert after.network.config == before.network.config and after.autoencoder == before.autoencoder
    old, new = flatten(before.params()), flatten(after.params())
    moved = {path for path in old if (np.asarray(old[path]) != np.asarray(new[path])).any()}
    frozen = lambda p: p.startswith(("embed", "lm_head", "vision", "connector")) or "norm" in p or "pos_embed" in p
    # A key's bias has no gradient where nothing is rotated against it; all else moves.
    assert {p for p in old if not frozen(p)} - moved <= {p for p in old if p.endswith("bias")} and moved
    assert not [p for p in moved if frozen(p)]
    assert load_file(exported / "ae.safetensors").keys() == load_file(folder / "ae.safetensors").keys()


def test_the_tokenizer_is_exported_in_all_of_its_files(folder, exported):
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        assert (exported / name).read_bytes() == (folder / name).read_bytes(), name


@pytest.fixture(scope="module")
def two_readings(folder, tmp_path_factory):
    """tokenizer.json by itself, and what Qwen2's tokenizer makes of the three other files."""
    parts = tmp_path_factory.mktemp("parts")
    for name in ("tokenizer_config.json", "vocab.json", "merges.txt"):
        shutil.copy(folder / name, parts)
    tokenizer = load_tokenizer(parts)
    assert type(tokenizer).__name__ == "Qwen2Tokenizer"
    return Tokenizer.from_file(str(folder / "tokenizer.json")), tokenizer


TRICKY = st.sampled_from([" ", "  ", "\n", "\r\n", "'ll", "e\u0301", "12", "?!", "a red circle", "<|im_end|>", "\u3000"])


@settings(max_examples=100, deadline=None)
@given(st.lists(TRICKY | st.text(max_size=4), max_size=8).map("".join))
def test_the_two_ways_of_saving_the_tokenizer_give_the_same_ids_and_words(two_readings, text):
    whole, parts = two_readings
    ids = whole.encode(text).ids
    assert ids == parts.encode(text, add_special_tokens=False)
    assert whole.decode(ids, skip_special_tokens=False) == parts.decode(ids) == unicodedata.normalize("NFC", text)


def test_words_of_the_tokenizer_are_the_merges_made_by_hand(folder):
    """vocab.json and merges.txt as BPE says: pairs are joined in the order of the file, blanks belong to the word behind."""
    merges = [line.split(" ") for line in (folder / "merges.txt").read_text("utf-8").splitlines()[1:]]
    vocabulary = json.loads((folder / "vocab.json").read_text("utf-8"))

    def pieces(word):
        parts = list(word)
        for left, right in merges:
            at = 0
            while at < len(parts) - 1:
                if parts[at : at + 2] == [left, right]:
                    parts[at : at + 2] = [left + right]
                at += 1
        return parts

    words = ["a", "\u0120red", "\u0120circle", ",", "\u0120greening", "\u0120crosses", "\u0120yes"]
    expected = [vocabulary[piece] for word in words for piece in pieces(word)]
    assert load_tokenizer(folder).encode("a red circle, greening crosses yes") == expected
    assert len(expected) < sum(map(len, words)) / 2


def test_the_exported_folder_is_the_checkpoint(trained, exported, tmp_path):
    """Judged the same by the same seeds, with guidance by text and image, and exported again in the same bits."""
    tables = []
    for path in (trained, exported):
        out = tmp_path / "table.json"
        outcome = command("experiments.evaluate", path, "--preset", "bagel_tiny", "--out", out, "--evaluation.prompts", 4,
                          "--evaluation.batch", 4, "--evaluation.flow-steps", 2, "--evaluation.guidance", 3,
                          "--evaluation.guidance-image", 2, "--devices", 1)  # fmt: skip
        assert outcome.code == 0, outcome
        tables.append(json.loads(out.read_text())["table"])
    assert tables[0] == tables[1]
    again = tmp_path / "again"
    assert command("experiments.export", exported, again).code == 0
    index = json.loads((exported / "ema.safetensors.index.json").read_text())["weight_map"]
    second = load_file(again / "ema.safetensors")
    assert second.keys() == index.keys()
    for name, file in index.items():
        assert load_file(exported / file)[name].tobytes() == second[name].tobytes(), name


def test_a_run_resumes_and_refuses_other_weights(folder, trained, tmp_path):
    copy = shutil.copytree(trained, tmp_path / "copy")
    shutil.rmtree(copy / "checkpoints" / "2")
    lines = (copy / "metrics.jsonl").read_text().splitlines()
    outcome = command("experiments.run", "bagel_tiny", "--model.path", folder, "--run-dir", copy, "--resume", *SMALL)
    assert outcome.code == 0 and "Resuming after iteration 1" in outcome.out, outcome
    again = json.loads((copy / "metrics.jsonl").read_text().splitlines()[1])
    first = json.loads(lines[1])
    for name in ("loss", "grad_norm/denoising", "reward/mean", "text/entropy"):
        assert again[name] == first[name], name


def test_a_run_goes_on_upon_another_mesh(folder, trained, tmp_path):
    """The second iteration, of one device's first, on four devices that cut the parameters in two ways."""
    copy = shutil.copytree(trained, tmp_path / "copy")
    shutil.rmtree(copy / "checkpoints" / "2")
    first = json.loads((copy / "metrics.jsonl").read_text().splitlines()[1])
    mesh = ("--devices", 4, "--mesh.fsdp", 2, "--mesh.tensor", 2)
    small = [a for pair in zip(SMALL[::2], SMALL[1::2], strict=True) if pair[0] != "--devices" for a in pair]
    outcome = command("experiments.run", "bagel_tiny", "--model.path", folder, "--run-dir", copy, "--resume", *small, *mesh)
    assert outcome.code == 0 and "data 1, fsdp 2, sequence 1, tensor 2" in outcome.out, outcome
    again = json.loads((copy / "metrics.jsonl").read_text().splitlines()[1])
    for name in ("reward/mean", "grad_norm/denoising", "grad_norm/reasoning", "text/entropy", "flow/velocity_mse"):
        assert again[name] == pytest.approx(first[name], rel=2e-3), name
    assert again["text/ratio_min"] == again["flow/ratio_max"] == 1


def test_adapters_train_resume_in_the_same_bits_export_and_leave_the_base_alone(folder, tmp_path):
    """bfloat16 weights below float32 adapters: two iterations straight, and one, then one more.  The checkpoints hold
    adapters alone; the export is the base plus their products."""
    own = ("--model.lora.rank", 2, "--model.lora.alpha", 3, "--model.lora.targets", "layers/gen/.*_proj",
           "--model.param-dtype", "bfloat16", "--evaluation.no-thinking")  # fmt: skip
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    for run_dir, *more in ((straight, 2), (stopped, 1), (stopped, 2, "--resume")):
        outcome = command("experiments.run", "bagel_tiny", "--model.path", folder, "--run-dir", run_dir, *SMALL, *own,
                          "--iterations", *more)  # fmt: skip
        assert outcome.code == 0 and "adapters" in outcome.out, outcome
    config = load_run_config(straight / "config.json")
    loaded = load_model(config.model)
    assert loaded.network.lora_scale == 1.5
    like = jax.eval_shape(lambda p: new_state(p, config.learning, Bagel.trained_by), loaded.abstract_params())
    assert like.trained and all(map(lora.is_adapter, like.trained))
    place = abstract(like, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    states = [Checkpoints(run_dir / "checkpoints").load(2, place) for run_dir in (straight, stopped)]
    tiny.assert_trees_equal(*states)
    assert any(np.asarray(x).any() for path, x in states[0].trained.items() if path.endswith("lora_b"))
    assert command("experiments.export", straight, tmp_path / "out", "--dtype", "float32").code == 0
    before, after = load_file(folder / "ema.safetensors"), load_file(tmp_path / "out" / "ema.safetensors")
    moved = {name for name in before if (before[name].astype(np.float32) != after[name]).any()}
    gen = {n for n in before if n.endswith(".weight") and ("_proj_moe_gen" in n or "mlp_moe_gen" in n)}
    assert moved == gen


def test_it_draws_edits_and_answers(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGBA", (90, 50), (200, 30, 30, 128)).save("photo.png")
    small = ("--thinking-tokens", 5, "--flow-steps", 3)
    drawn = command("experiments.generate", "--model.path", folder, "a red circle", *small, "--height", 32, "--width", 48,
                    "--thinking-as-text")  # fmt: skip
    assert drawn.code == 0 and "Wrote a-red-circle.png" in drawn.out, drawn
    with Image.open("a-red-circle.png") as image:
        assert image.size == (48, 32)
    edited = command("experiments.generate", "--model.path", folder, "--image", "photo.png", "make it blue", *small)
    assert edited.code == 0, edited
    with Image.open("make-it-blue.png") as image:
        assert image.size == (64, 36)  # the picture's, by the rule
    answered = command("experiments.generate", "--model.path", folder, "--image", "photo.png", "--answer", "what?", *small)
    assert answered.code == 0 and answered.out.strip() and "Wrote" not in answered.out, answered


def test_the_toy_is_the_same_wherever_it_is_made(folder, tmp_path):
    make_tiny(tmp_path)
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rollout.image-height", 256], ["256 x 48 pixels has 64 x 12 latent tokens", "largest side is 64 pixels"]),
        (["--rollout.image-height", 30], ["does not divide into latent tokens of 4 px"]),
        (["--rollout.guidance", 0.5], ["rollout.guidance = 0.5", "must be 1"]),
        (["--model.param-dtype", "bfloat16"], ["must be float32", "model.lora.rank"]),
        (["--model.lora.rank", -1], ["model.lora.rank = -1"]),
        (["--model.lora.rank", 2, "--model.lora.targets", "q_proj"], ["model.lora.targets: 'q_proj' matches no projection"]),
        (["--prompts", ""], ["prompts is empty", "--prompts FILE.jsonl"]),
        (["--rewards"], ["rewards is empty", "package.module:function"]),
        (["--learning.frozen", ".*"], ["leaves no parameter to train"]),
        (["--model.path", "no/such-model"], ["no folder no/such-model", "HF_HUB_OFFLINE"]),
    ],
    ids=str,
)
def test_what_cannot_work_is_one_sentence(folder, tmp_path, arguments, words):
    outcome = command("experiments.run", "bagel_tiny", "--model.path", folder, "--run-dir", tmp_path / "run", *SMALL,
                      *arguments)  # fmt: skip
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and "Traceback" not in outcome.err, outcome
    for word in words:
        assert word in outcome.err, outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("module", "arguments", "words"),
    [
        ("generate", ["--model.path", "FOLDER", "a", "--image", "FOLDER/llm_config.json"], ["is not a picture"]),
        ("generate", ["--model.path", "FOLDER", "a", "--image", "none.png"], ["no picture none.png"]),
        ("generate", ["--model.path", "FOLDER", "a", "--height", 128], ["latent tokens", "largest side is 64 pixels"]),
        ("generate", ["--model.path", "FOLDER", "a", "--answer"], ["--image"]),
        ("generate", ["base", "a", "--model.path", "FOLDER"], ["either CHECKPOINT or --model"]),
        ("generate", ["base", "a", "--no-thinking", "--thinking-as-text"], ["thinking is off", "thinking_as_text out"]),
        ("generate", ["--model.path", "FOLDER", "a", "--image", "PICTURE", "--answer", "--thinking-as-text"],
         ["leave it out with --answer"]),
        ("generate", ["base", "a", "b"], ["expected [CHECKPOINT] PROMPT"]),
        ("generate", ["base", "a", "--image", "PICTURE", "--answer"], ["no vision encoder"]),
        ("export", ["FOLDER", "FOLDER"], ["is not empty", "new folder"]),
        ("export", ["nowhere", "out"], ["nowhere is no checkpoint"]),
        ("export", ["FOLDER", "out", "--shard-gb", 0], ["shard_gb = 0"]),
        ("export", ["FOLDER", "PICTURE/out"], ["cannot be written"]),
    ],
    ids=str,
)
def test_generate_and_export_refuse_in_one_sentence(folder, tmp_path, monkeypatch, module, arguments, words):
    monkeypatch.chdir(tmp_path)
    picture = tmp_path / "picture.png"
    Image.new("RGB", (20, 20)).save(picture)
    given = [str(a).replace("FOLDER", str(folder)).replace("PICTURE", str(picture)) for a in arguments]
    outcome = command(f"experiments.{module}", *given)
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and "Traceback" not in outcome.err, outcome
    for word in words:
        assert word in outcome.err, outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_the_whole_parameter_tree_is_read(folder):
    loaded = load_model(ModelConfig(path=str(folder)))
    assert jax.tree.structure(loaded.params()) == jax.tree.structure(loaded.stored_params())
