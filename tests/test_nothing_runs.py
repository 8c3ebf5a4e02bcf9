"""Nothing unpickles, evaluates, or asks a shell: by the sources of the package, and by files that try."""

import ast
import io
import json
import os
import pathlib
import pickle
import shutil
import zipfile

import numpy as np
import pytest

from tests.test_foreign_files import refusal
from unigrpo_jax import foreign_files
from unigrpo_jax.config import ConfigError
from unigrpo_jax.models.families import find_folder
from unigrpo_jax.models.text_encoders.tokenizer import load_tokenizer
from unigrpo_jax.training.report import write_report
from unigrpo_jax.training.samples import Sample, load_samples, save_samples, saved_steps

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCES = sorted(path for room in ("unigrpo_jax", "experiments", "launch") for path in (ROOT / room).rglob("*.py"))


MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch", "code", "pty"}
CALLS = {"eval", "exec", "compile", "__import__", "execfile", "getoutput", "getstatusoutput", "popen"}
ATTRIBUTES = {
    "os": {"system", "popen", "execv", "execve", "execvp", "spawnl", "spawnv"},
    "yaml": {"load", "load_all", "unsafe_load", "full_load"},
    "pandas": {"read_pickle"},
    "tempfile": {"mktemp"},
}


def dangers(source: str) -> list[str]:
    """What a Python source calls or imports that could run what a file holds."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.partition(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module] if (node.module or "").partition(".")[0] in MODULES else []
        elif isinstance(node, ast.Call):
            keywords = {k.arg: k.value for k in node.keywords}
            literal = lambda name, keywords=keywords: getattr(keywords.get(name), "value", None)
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            owner = getattr(getattr(node.func, "value", None), "id", "")
            bare = isinstance(node.func, ast.Name) and name in CALLS
            if bare or name in ATTRIBUTES.get(owner, ()) or name == "extractall":
                found.append(f"{owner}.{name}".lstrip("."))
            if "shell" in keywords and literal("shell") is not False:
                found.append("shell")
            loads = owner in ("np", "numpy") and name == "load"
            if (loads or "allow_pickle" in keywords) and literal("allow_pickle") is not False:
                found.append("allow_pickle")
            loads = name == "from_pretrained" or "trust_remote_code" in keywords
            if loads and literal("trust_remote_code") is not False:
                found.append("trust_remote_code")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_unpickles_evaluates_or_asks_a_shell(path):
    assert dangers(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from torch import load", "import dill.detect", "eval(x)", "exec('x')", "__import__(name)",
     "np.load(f)", "np.load(f, allow_pickle=True)", "np.load(f, allow_pickle=flag)", "os.system(x)",
     "subprocess.run(x, shell=True)", "yaml.load(x, L)", "f(x, trust_remote_code=True)",
     "AutoTokenizer.from_pretrained(x)", "archive.extractall(p)"],
)  # fmt: skip
def test_the_search_finds_what_it_looks_for(source):
    assert dangers(source)
    harmless = ("np.load(f, allow_pickle=False)", "re.compile(x)", "yaml.safe_load(x)", "subprocess.run([a])")
    assert dangers("; ".join(harmless)) == []


def test_code_beside_a_tokenizer_is_not_run_and_not_asked_for(tmp_path, monkeypatch):
    """transformers would ask on the terminal whether to run it, and do so upon "y"."""
    folder, mark = shutil.copytree(find_folder("tiny"), tmp_path / "model"), tmp_path / "mark"
    (folder / "tokenization.py").write_text(f"import os\nos.mkdir({os.fspath(mark)!r})\nclass T: pass\n")
    record = json.loads((folder / "tokenizer_config.json").read_text())
    record |= {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["tokenization.T", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(record))
    asked = []
    monkeypatch.setattr("builtins.input", lambda *words: asked.append(words) or "y")
    try:
        load_tokenizer(folder)
    except ConfigError as error:
        assert "the tokenizer in" in str(error) and "\n" not in str(error)
    assert not mark.exists() and asked == []


# npz

class Bomb:
    """Unpickled, it would make a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (os.fspath(self.mark),)


def npz(arrays: dict) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def test_an_npz_with_a_pickled_object_is_refused_and_runs_nothing(tmp_path):
    mark = tmp_path / "mark"
    evil = npz({"images": np.array([Bomb(mark)], object)})
    with np.load(io.BytesIO(evil), allow_pickle=True) as arrays, pytest.raises(Exception, match=r".*"):
        arrays["images"].shape + arrays["nothing"].shape
    assert mark.is_dir(), "the object is dangerous where it is unpickled"
    mark.rmdir()
    (tmp_path / "a.npz").write_bytes(evil)
    assert "is not a readable npz file of numbers (Object arrays" in refusal(foreign_files.read_arrays, tmp_path / "a.npz")
    image = np.zeros((8, 8, 3), np.uint8)
    save_samples(tmp_path, 0, [Sample(prompt="a", thinking="", image=image, verdict="", correct=None)])
    (tmp_path / "samples" / "000000.npz").write_bytes(evil)
    for reader, arguments in ((load_samples, (tmp_path, 0)), (write_report, (tmp_path,))):
        assert "000000.npz is not a readable npz file of numbers" in refusal(reader, *arguments)
    (tmp_path / "samples" / "000000.npz").write_bytes(pickle.dumps(Bomb(mark)))
    assert "is not a readable npz file" in refusal(load_samples, tmp_path, 0)
    assert not mark.exists()


def test_an_npz_that_unpacks_to_more_than_its_limit_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(npz({"images": np.zeros(10**6, np.uint8)}))
    assert path.stat().st_size < 10**4
    assert len(foreign_files.read_arrays(path)["images"]) == 10**6
    assert "unpacks to more than" in refusal(foreign_files.read_arrays, path, 10**5)


def test_an_npz_that_claims_an_endless_array_is_refused(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (2**40, 2**10)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("images.npy", header.getvalue() + b"few")
    assert "is not a readable npz file" in refusal(foreign_files.read_arrays, tmp_path / "a.npz")


@pytest.mark.parametrize("images", [np.zeros((1, 8, 8), np.uint8), np.zeros((1, 8, 8, 3)), np.zeros((2, 8, 8, 3), np.uint8)])
def test_samples_of_another_form_are_refused(tmp_path, images):
    image = np.zeros((8, 8, 3), np.uint8)
    save_samples(tmp_path, 0, [Sample(prompt="a", thinking="", image=image, verdict="", correct=None)])
    (tmp_path / "samples" / "000000.npz").write_bytes(npz({"images": images}))
    assert "does not hold" in refusal(load_samples, tmp_path, 0)


def test_only_names_that_samples_have_are_listed(tmp_path):
    (tmp_path / "samples").mkdir()
    for stem in ("7", "000007", "0000007", "1000000", "٠٠٠٠٠٧", "-00001", "1e5", "9" * 30):
        for kind in ("json", "npz"):
            (tmp_path / "samples" / f"{stem}.{kind}").touch()
    assert saved_steps(tmp_path) == [7, 10**6]
