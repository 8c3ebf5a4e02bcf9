"""A name on the hub gives what the same folder on a disk gives; a loopback server speaks the hub's part."""

import errno
import http.server
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import urllib.parse

import huggingface_hub
import numpy as np
import pytest
from safetensors.numpy import save_file

from unigrpo_jax.config import ConfigError, ModelConfig, RunConfig
from unigrpo_jax.models.families import find_folder, load_model
from unigrpo_jax.models.folders.hub import fetch
from unigrpo_jax.models.folders.stored import StoredTensors
from unigrpo_jax.training.restore import restore

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FETCH = "import sys; from unigrpo_jax.models.families import find_folder as f; print(*map(f, sys.argv[1:]), sep='\\n')"


class Hub(http.server.BaseHTTPRequestHandler):
    """What the client asks for: which commit, which files, and each file; `root` holds owner/name folders."""

    root: pathlib.Path

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        parts = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        repo, rest = "/".join(parts[2:4] if api else parts[:2]), parts[4:] if api else parts[2:]
        files = [p for p in sorted((self.root / repo).rglob("*")) if p.is_file()]
        names = [str(p.relative_to(self.root / repo)) for p in files]
        if api and rest[:1] == ["tree"]:
            tree = [{"type": "file", "path": name, "size": p.stat().st_size, "oid": f"{abs(hash(name)):040x}"}
                    for name, p in zip(names, files, strict=True)]  # fmt: skip
            self.answer(json.dumps(tree).encode(), "application/json")
        elif api:
            self.answer(json.dumps({"id": repo, "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}).encode(),
                        "application/json")  # fmt: skip
        else:
            self.answer((self.root / repo / "/".join(rest[2:])).read_bytes(), "application/octet-stream", "/".join(rest))

    def answer(self, body, kind, name=""):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{abs(hash(name + self.path)):x}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


def sharded(folder: pathlib.Path, stem: str) -> None:
    """The weights as one shard, whose name has characters that a pattern would read, with an index."""
    names = sorted(StoredTensors(folder, "ema").names())
    (folder / "ema.safetensors").rename(folder / "part[1].safetensors")
    index = {"weight_map": dict.fromkeys(names, "part[1].safetensors")}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    shutil.copyfile(folder / "part[1].safetensors", folder / "part1.safetensors")  # which no index names


def write_adapters(folder: pathlib.Path) -> None:
    """Those of one linear map of the toy of FLUX, which has 64 inputs and 32 outputs."""
    shapes = {"A": (1, 64), "B": (32, 1)}
    arrays = {f"transformer.x_embedder.lora_{which}.weight": np.ones(shape, np.float32) for which, shape in shapes.items()}
    save_file(arrays, folder / "pytorch_lora_weights.safetensors")


@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    """{repository: its folder in the cache}, all fetched by one fresh process."""
    tmp = tmp_path_factory.mktemp("hub")
    names = ("a/release", "a/trainer", "a/shards", "a/both", "a/adapter", "a/parts")
    for name in names:
        toy = find_folder("flux_tiny" if name == "a/parts" else "tiny")
        folder = pathlib.Path(shutil.copytree(toy, tmp / name))
        (folder / "README.md").write_text("words")
        (folder / "sub").mkdir()
        (folder / "sub" / "config.json").write_text("{}")
        match name:
            case "a/trainer":
                (folder / "ema.safetensors").rename(folder / "model.safetensors")
            case "a/shards":
                sharded(folder, "model")
            case "a/both":
                sharded(folder, "ema")
                shutil.copyfile(folder / "part1.safetensors", folder / "model.safetensors")
            case "a/adapter":
                (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
                (folder / "adapter_model.safetensors").write_bytes(b"0")
            case "a/parts":
                write_adapters(folder)
                for file in ("flux1.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors", "vae/model.bin"):
                    (folder / file).write_bytes(b"0")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Served", (Hub,), {"root": tmp}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    env = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    env |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp / "home"), "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1"}  # fmt: skip
    try:
        done = subprocess.run([sys.executable, "-c", FETCH, *names], capture_output=True, text=True, env=env, timeout=120)
        assert done.returncode == 0, done.stderr
        server.shutdown()
        offline = [sys.executable, "-c", FETCH, *names]
        again = subprocess.run(offline, capture_output=True, text=True, env=env | {"HF_HUB_OFFLINE": "1"}, timeout=120)
        assert again.stdout == done.stdout and "No files matched" not in done.stderr + again.stderr
    finally:
        server.server_close()
    return dict(zip(names, map(pathlib.Path, done.stdout.split()), strict=True))


COMMON = {
    "llm_config.json",
    "vit_config.json",
    "ae.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
}


@pytest.mark.parametrize(
    "name, weights",
    [
        ("a/release", {"ema.safetensors"}),
        ("a/trainer", {"model.safetensors"}),
        ("a/shards", {"model.safetensors.index.json", "part[1].safetensors"}),
        ("a/both", {"ema.safetensors.index.json", "part[1].safetensors"}),
    ],
)
def test_the_hub_gives_what_the_folder_on_a_disk_is_read_from_and_no_more(fetched, name, weights):
    folder = fetched[name]
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == COMMON | weights
    assert folder.name == COMMIT
    loaded = load_model(ModelConfig(path=str(folder)))
    loaded.check_weights()
    assert loaded.network.config == load_model(ModelConfig(path="tiny")).network.config


def test_of_a_folder_of_parts_the_hub_gives_those_that_are_read(fetched):
    folder, toy = fetched["a/parts"], find_folder("flux_tiny")
    files = lambda place: {str(p.relative_to(place)) for p in place.rglob("*") if p.is_file()}
    assert files(folder) == files(toy) | {"pytorch_lora_weights.safetensors"}
    loaded = load_model(ModelConfig(path=str(folder)))
    assert list(loaded.adapters.modules) == ["x_embedder"] and loaded.unread_files == ()


def test_an_adapter_on_the_hub_is_refused_before_its_weights_are_fetched(fetched):
    folder = fetched["a/adapter"]
    assert not (folder / "ema.safetensors").exists()
    with pytest.raises(ConfigError, match="holds an adapter beside its model"):
        load_model(ModelConfig(path=str(folder)))


def test_what_is_fetched_lies_where_caches_do(tmp_path, monkeypatch):
    """Where the client's own place is none, as the one that it makes of a home that is not known."""
    asked = []
    answer = lambda *_, cache_dir, **__: asked.append(cache_dir) or tmp_path
    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    for place, wanted in (("~/hub", tmp_path / "caches" / "huggingface" / "hub"), (str(tmp_path / "own"), None)):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", place)
        fetch("a/b")
        assert set(asked) == {wanted}
        asked.clear()


def test_what_is_wrong_with_a_model_of_the_hub_is_told_where_a_checkpoint_is_asked_for(tmp_path, monkeypatch):
    (tmp_path / "adapter_config.json").write_text("{}")
    monkeypatch.setattr("unigrpo_jax.models.folders.hub.fetch", lambda *_: tmp_path)
    with pytest.raises(ConfigError, match="is an adapter"):
        restore("a/b", RunConfig())


def test_a_disk_that_cannot_keep_what_is_fetched_is_named(monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "/caches/blob")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(ConfigError, match="a/b cannot be kept here .No space left on device: /caches/blob.; set HF_HOME"):
        find_folder("a/b")


def test_weights_that_are_not_read_are_listed_or_named_where_there_are_no_others(tmp_path):
    folder = pathlib.Path(shutil.copytree(find_folder("tiny"), tmp_path / "model"))
    assert load_model(ModelConfig(path=str(folder))).unread_files == ()
    (folder / "style").mkdir()
    for name in ("style/adapter_config.json", "model.safetensors", "optimizer.pt"):
        (folder / name).write_text("{}")
    loaded = load_model(ModelConfig(path=str(folder)))
    assert loaded.unread_files == ("model.safetensors", "optimizer.pt", "style/adapter_config.json")
    (folder / "model.safetensors").unlink()
    (folder / "ema.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="holds no ema.safetensors.*pytorch_model.bin.*convert it to safetensors"):
        load_model(ModelConfig(path=str(folder)))


@pytest.mark.parametrize("names", [["adapter_config.json", "adapter_model.safetensors"], ["adapter_config.json"],
                                   ["adapter_model.bin"], ["pytorch_lora_weights.safetensors"],
                                   ["lora_config.json", "lora.safetensors"]])  # fmt: skip
def test_an_adapter_beside_the_weights_or_alone_is_told_with_the_way_to_fold_it_in(tmp_path, names):
    folder = pathlib.Path(shutil.copytree(find_folder("tiny"), tmp_path / "model"))
    for name in names:
        (folder / name).write_text('{"peft_type": "LORA"}')
    with pytest.raises(ConfigError) as beside:
        load_model(ModelConfig(path=str(folder)))
    for path in set(folder.iterdir()) - {folder / name for name in names}:
        path.unlink()
    with pytest.raises(ConfigError) as alone:
        load_model(ModelConfig(path=str(folder)))
    for text, what in ((str(beside.value), "holds an adapter beside its model"), (str(alone.value), "is an adapter (")):
        assert what in text and names[0] in text and "merge_and_unload" in text and "BAGEL's layout" in text
        assert "\n" not in text and text.endswith(".")
