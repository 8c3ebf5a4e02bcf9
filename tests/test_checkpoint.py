"""Checkpoints: written while the state is used up, whole or not at all, known by their bytes, and which of them are kept."""

import asyncio
import errno
import json
import resource
import shutil
import sys
import threading

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore

from unigrpo_jax.config import CheckpointConfig, ConfigError
from unigrpo_jax.learning.update import TrainState
from unigrpo_jax.training import checkpoint, manifest, storage
from unigrpo_jax.training.checkpoint import Checkpoints, abstract, kept

FACTS = {"seed": 3, "model_sha256": "abc", "versions": {"jax": "x"}, "config": {"evaluation": {"seed": 0}}}


def state_of(step: int, size: int = 1000) -> TrainState:
    """A state that says which step it is of in every number."""
    values = np.arange(size, dtype=np.float32) + step
    return TrainState(trained={"a/b": jnp.array(values)}, opt_state=({"m": jnp.array(-values)},), ema=None,
                      step=jnp.int32(step), skipped_in_row=jnp.int32(0))  # fmt: skip


def open_(folder, **config) -> Checkpoints:
    checkpoints = Checkpoints(folder / "checkpoints", CheckpointConfig(**{"keep": 10} | config), FACTS)
    checkpoints.prepare()
    return checkpoints


@pytest.fixture
def three(tmp_path):
    """Checkpoints of steps 2, 4 and 6."""
    checkpoints = open_(tmp_path)
    for step in (2, 4, 6):
        checkpoints.save(state_of(step))
    checkpoints.close()
    assert checkpoints.failure() is None and checkpoints.steps() == [2, 4, 6]
    return tmp_path


def assert_is(state: TrainState, step: int):
    jax.tree.map(np.testing.assert_array_equal, state, state_of(step, state.trained["a/b"].size))


@pytest.mark.parametrize(
    ("config", "scores", "expected"),
    [
        (dict(keep=2, keep_best=0), {1: None, 2: 0.9, 3: None}, {2, 3}),
        (dict(keep=1, keep_best=1), {1: 0.2, 2: 0.9, 3: 0.9, 4: 0.1}, {2, 4}),  # of equal ones the first
        (dict(keep=1, keep_best=2), {1: 0.2, 2: 0.9, 3: 0.5, 4: None}, {2, 3, 4}),
        (dict(keep=1, keep_every=4), {2: None, 4: None, 6: None, 8: None, 10: None}, {4, 8, 10}),
        (dict(keep=5), {2: None}, {2}),
        (dict(keep=1), {}, set()),
    ],
)
def test_the_newest_the_best_and_regular_ones_are_kept(config, scores, expected):
    assert kept(scores, CheckpointConfig(**config)) == expected


@flax.struct.dataclass
class Older:
    """A state as it was before the policy that samples could be another one."""

    trained: dict
    opt_state: tuple
    ema: dict | None
    step: jax.Array
    skipped_in_row: jax.Array


def test_a_checkpoint_of_an_older_state_is_read(tmp_path):
    new = state_of(4)
    assert new.old is None
    old = Older(**{name: getattr(new, name) for name in Older.__dataclass_fields__})
    checkpoints = open_(tmp_path)
    checkpoints.save(old)
    checkpoints.close()
    assert checkpoints.failure() is None
    loaded = open_(tmp_path).load(4, abstract(new))
    assert_is(loaded, 4)
    assert loaded.old is None and loaded.ema is None


def test_a_state_may_be_donated_as_soon_as_it_is_being_saved(tmp_path):
    """The next updates overwrite the very buffers while they are written; what is read back is what was saved."""
    next_step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s).replace(step=s.step + 1), donate_argnums=0)
    checkpoints, size = open_(tmp_path), 3_000_000
    state, deleted = state_of(0, size), []
    for _ in range(3):
        checkpoints.save(state)
        for _ in range(4):
            used, state = state, next_step(state)
            deleted.append(used.trained["a/b"].is_deleted())
    checkpoints.close()
    assert sum(deleted) >= 9  # else nothing was donated, and this proves nothing
    assert checkpoints.steps() == [0, 4, 8]
    for step in (0, 4, 8):
        loaded = checkpoints.load(step, abstract(state))
        first = np.arange(size, dtype=np.float32)
        np.testing.assert_array_equal(loaded.trained["a/b"], first + step)
        np.testing.assert_array_equal(loaded.opt_state[0]["m"], step - first)
        assert int(loaded.step) == step


def test_training_goes_on_while_a_checkpoint_is_written_and_the_next_one_waits(tmp_path, monkeypatch):
    may_end, write = threading.Event(), manifest.write
    monkeypatch.setattr(manifest, "write", lambda *given: (may_end.wait(60), write(*given)))
    checkpoints = open_(tmp_path, keep=1)
    checkpoints.save(state_of(2))
    assert checkpoints.steps() == []  # `save` is back, and the checkpoint is not there yet
    second = threading.Thread(target=checkpoints.save, args=(state_of(4),))
    second.start()
    second.join(0.3)
    assert second.is_alive()
    may_end.set()
    second.join(60)
    checkpoints.close()
    assert checkpoints.steps() == [4]


def test_the_one_before_stays_until_the_next_is_whole(tmp_path, monkeypatch):
    """With keep = 1 a kill between orbax's last byte and the manifest must leave the older one."""
    checkpoints, write, seen = open_(tmp_path, keep=1), manifest.write, []
    monkeypatch.setattr(manifest, "write", lambda *given: (seen.append(checkpoints.steps()), write(*given)))
    for step in (2, 4, 6):
        checkpoints.save(state_of(step))
    checkpoints.close()
    assert seen == [[], [2], [4]] and checkpoints.steps() == [6]


def test_a_checkpoint_says_what_it_is_of(three):
    checkpoints = Checkpoints(three / "checkpoints")
    facts = checkpoints.facts(4)
    assert {name: facts[name] for name in FACTS} == FACTS
    assert facts["step"] == 4 and facts["best"] is None and facts["evaluation"] == {}
    there = {str(p.relative_to(three / "checkpoints/4")) for p in (three / "checkpoints/4").rglob("*") if p.is_file()}
    assert set(facts["files"]) == there - {"manifest.json"}
    assert_is(checkpoints.load(4, abstract(state_of(0))), 4)


def cut(path):
    path.write_bytes(path.read_bytes()[:-2])  # the manifest's last byte is a newline


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [cut, flip, lambda path: path.unlink()], ids=["cut", "flipped", "removed"])
def test_harm_to_any_file_is_noticed_and_the_one_before_is_taken(three, tmp_path, harm):
    folder = three / "checkpoints" / "6"
    names = [p.relative_to(folder) for p in folder.rglob("*") if p.is_file() and p.stat().st_size]
    assert len(names) > 5
    for name in names:
        shutil.copytree(folder, tmp_path / "saved")
        harm(folder / name)
        checkpoints = Checkpoints(three / "checkpoints")
        step, (words,) = checkpoints.newest()
        assert step == 4 and words.startswith(f"Skipping the checkpoint {folder}: ")
        assert str(name) in words, words
        with pytest.raises(ConfigError, match="checkpoints/6 is damaged"):
            Checkpoints(three / "checkpoints").facts(6)
        shutil.rmtree(folder)
        (tmp_path / "saved").rename(folder)
    assert Checkpoints(three / "checkpoints").newest() == (6, [])


def test_processes_that_each_read_a_share_read_everything_once(three):
    folder = three / "checkpoints" / "2"
    files = manifest.read(folder)["files"]
    flip(folder / sorted(files)[4])
    noticed = []
    for index in range(3):
        try:
            manifest.check(folder, files, (index, 3))
        except manifest.Damaged:
            noticed.append(index)
    assert noticed == [1]  # of files 0 to 9 the process 1 reads 1, 4, 7


def test_what_another_process_did_not_see_is_read_by_the_one_that_describes(three):
    folder = three / "checkpoints" / "2"
    record = manifest.read(folder)
    assert manifest.digests(folder, [*record["files"], "none"]) == [*record["files"].values(), None]
    (folder / "manifest.json").unlink()
    manifest.write(folder, FACTS, record["files"] | {"state/_METADATA": None, "_CHECKPOINT_METADATA": None})
    assert manifest.read(folder)["files"] == record["files"]


def test_without_a_whole_one_nothing_is_started_anew(three):
    """One that was finished and is damaged is enough, for it says that there was a state to go on from."""
    for step in (2, 6):
        (three / "checkpoints" / str(step) / "manifest.json").unlink()
    flip(three / "checkpoints" / "4" / "_CHECKPOINT_METADATA")
    with pytest.raises(ConfigError, match="none of the 3 checkpoints in .* is whole .*manifest.json is missing"):
        Checkpoints(three / "checkpoints").newest()
    assert Checkpoints(three / "none").newest() == (None, [])


def test_a_run_that_kills_ended_before_each_manifest_starts_anew(three):
    """Between the name that orbax gives and the manifest, at any number: the best one's, or that of a signal."""
    folder = three / "checkpoints"
    for step in (2, 4, 6):
        (folder / str(step) / "manifest.json").unlink()
    checkpoints = Checkpoints(folder, CheckpointConfig(keep=10), FACTS)
    missing = "it was not finished: manifest.json is missing."
    assert checkpoints.newest() == (None, [f"Skipping the checkpoint {folder / str(n)}: {missing}" for n in (6, 4, 2)])
    checkpoints.prepare()
    assert list(folder.iterdir()) == []
    checkpoints.save(state_of(4))
    checkpoints.close()
    assert checkpoints.failure() is None and Checkpoints(folder).newest() == (4, [])


def test_the_first_process_clears_the_place_of_a_damaged_one_before_orbax_asks_who_sees_it(three, monkeypatch):
    """Orbax waits for the others in those processes alone that still see it."""
    flip(three / "checkpoints" / "6" / "_CHECKPOINT_METADATA")
    checkpoints, save, seen = open_(three), checkpoint.ocp.save_async, []
    assert checkpoints.newest()[0] == 4
    there = lambda place, *rest, **named: (seen.append(place.exists()), save(place, *rest, **named))[1]
    monkeypatch.setattr(checkpoint.ocp, "save_async", there)
    checkpoints.save(state_of(6))
    checkpoints.close()
    assert seen == [False] and Checkpoints(three / "checkpoints").newest() == (6, [])


def test_all_processes_take_what_the_first_one_sees(three, monkeypatch):
    """The first one's folder does not show the newest yet; `gather` stands for it."""
    monkeypatch.setattr(checkpoint.processes, "gather", lambda own: [[2, 4], own] if own == [] else [own, own])
    monkeypatch.setattr(checkpoint.processes, "is_first", lambda: False)
    assert Checkpoints(three / "checkpoints").newest() == (4, [])


def test_what_storage_does_not_give_is_asked_for_again_and_never_removed(three, monkeypatch):
    monkeypatch.setattr(checkpoint, "READ_AGAIN", (0.0, 0.0))
    digest, refused = manifest._digest, []

    def fails(times):
        def read(path):
            if "checkpoints/6/state" in str(path) and len(refused) < times:
                refused.append(path)
                raise OSError(errno.EIO, "Input/output error")
            return digest(path)

        return read

    monkeypatch.setattr(manifest, "_digest", fails(1))
    assert open_(three).newest() == (6, []) and len(refused) == 1
    monkeypatch.setattr(manifest, "_digest", fails(10**6))
    checkpoints = open_(three, keep=1)
    step, (words,) = checkpoints.newest()
    assert step == 4 and "checkpoints/6: Input/output error" in words
    monkeypatch.setattr(manifest, "_digest", digest)
    checkpoints.save(state_of(5))
    checkpoints.close()
    assert checkpoints.failure() is None and checkpoints.steps() == [5, 6]
    assert_is(checkpoints.load(6, abstract(state_of(0))), 6)


def test_one_that_cannot_be_removed_hinders_no_save_and_goes_later(three, monkeypatch, capsys):
    """As where somebody reads it over a network's file system."""
    checkpoints, remove = open_(three, keep=1), storage.LiteralPath.rmtree

    def refuses(path, **how):
        if path.name == "2":
            raise OSError(errno.ENOTEMPTY, "Directory not empty")
        remove(path, **how)

    with monkeypatch.context() as patch:
        patch.setattr(storage.LiteralPath, "rmtree", refuses)
        for step in (8, 10):
            checkpoints.save(state_of(step))
            checkpoints.wait()
            assert checkpoints.failure() is None and checkpoints.steps()[-1] == step
    assert capsys.readouterr().err.count("could not be removed (Directory not empty)") == 1
    checkpoints.save(state_of(12))
    checkpoints.close()
    assert [path.name for path in (three / "checkpoints").iterdir()] == ["12"]


def test_what_a_kill_left_goes_and_a_damaged_one_is_written_again(three):
    folder = three / "checkpoints"
    shutil.copytree(folder / "6", folder / "8.orbax-checkpoint-tmp")
    flip(folder / "6" / "_CHECKPOINT_METADATA")
    (folder / "notes").mkdir()
    checkpoints = open_(three, keep=2)
    assert checkpoints.newest()[0] == 4 and not (folder / "8.orbax-checkpoint-tmp").exists()
    checkpoints.save(state_of(6))
    checkpoints.close()
    assert checkpoints.steps() == [4, 6] and (folder / "notes").exists()
    assert Checkpoints(folder).newest() == (6, [])
    assert_is(checkpoints.load(6, abstract(state_of(0))), 6)


def test_the_best_evaluation_is_kept_and_remembered(tmp_path):
    scores = {2: 0.3, 4: 0.7, 6: 0.5, 8: None, 10: 0.6}
    checkpoints = open_(tmp_path, keep=1, best_metric="eval/b")
    for step, score in scores.items():
        given = {} if score is None else {"eval/a": -step, "eval/b": score}
        assert checkpoints.improves(given) == (step in (2, 4))
        checkpoints.save(state_of(step), given)
    checkpoints.close()
    assert checkpoints.steps() == [4, 10]
    again = open_(tmp_path, keep=1, best_metric="eval/b")
    assert again.newest() == (10, []) and again.best == {"metric": "eval/b", "value": 0.7, "step": 4}
    assert again.improves({"eval/b": 0.71}) and not again.improves({"eval/b": 0.7}) and not again.improves({})


def test_a_best_by_another_metric_is_not_compared(tmp_path):
    """A resume may name another one; a loss of 5 would never be better than a share of 0.7."""
    checkpoints = open_(tmp_path, best_metric="eval/exact")
    checkpoints.save(state_of(2), {"eval/exact": 0.7, "eval/loss": 5.0})
    checkpoints.close()
    again = open_(tmp_path, best_metric="eval/loss")
    assert again.newest() == (2, []) and again.improves({"eval/loss": 5.0})
    again.save(state_of(4), {"eval/loss": 5.0})
    again.close()
    assert again.best == {"metric": "eval/loss", "value": 5.0, "step": 4} and not again.improves({"eval/loss": 5.5})


def test_evaluations_of_other_settings_are_not_compared(tmp_path):
    checkpoints = open_(tmp_path, keep=1)
    checkpoints.save(state_of(2), {"eval/a": 0.9})
    checkpoints.close()
    other = FACTS | {"config": {"evaluation": {"seed": 1}}}
    again = Checkpoints(tmp_path / "checkpoints", CheckpointConfig(keep=1), other)
    assert again.newest()[0] == 2 and again.best is None
    again.save(state_of(4), {"eval/a": 0.1})
    again.close()
    assert again.steps() == [4]


def test_a_disk_that_takes_no_more_is_one_sentence_and_leaves_the_one_before(tmp_path):
    """Files may not grow beyond 1 MB here; the state has 24."""
    checkpoints, soft = open_(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoints.save(state_of(2))
    checkpoints.wait()
    noise = {"a/b": jax.random.normal(jax.random.key(0), (3_000_000,))}  # cannot be compressed below the limit
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, soft[1]))
    try:
        checkpoints.save(state_of(4).replace(trained=noise))
        checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, soft)
    place = tmp_path / "checkpoints" / "4"
    assert checkpoints.failure() == f"the checkpoint {place} could not be written (File too large)"
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["2"]
    again = open_(tmp_path)
    assert again.newest() == (2, [])
    again.save(state_of(4))
    again.close()
    assert again.newest() == (4, [])


def test_a_folder_that_is_gone_is_not_made_again(tmp_path):
    checkpoints = open_(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    checkpoints.save(state_of(2))
    checkpoints.close()
    assert "No such file or directory" in checkpoints.failure() and not (tmp_path / "run").exists()


def test_a_folder_that_goes_while_it_is_written_to_leaves_nothing_in_its_place(tmp_path):
    """The store's client makes the folder anew for what it still writes; such a half must not be called whole."""
    run_dir, check = tmp_path / "run", Checkpoints._check_folder
    checkpoints = open_(run_dir)
    checkpoints.save(state_of(2))
    checkpoints.wait()

    def goes(self):  # just before the manifest
        run_dir.rename(tmp_path / "away")
        shutil.copytree(tmp_path / "away" / "checkpoints" / "4", run_dir / "checkpoints" / "4")
        check(self)

    checkpoints._check_folder = lambda: setattr(checkpoints, "_check_folder", lambda: goes(checkpoints))
    checkpoints.save(state_of(4))
    checkpoints.close()
    assert "No such file or directory" in checkpoints.failure() and not run_dir.exists()
    step, (words,) = Checkpoints(tmp_path / "away" / "checkpoints").newest()
    assert step == 2 and "checkpoints/4: it was not finished" in words


def test_a_checkpoint_of_other_shapes_is_refused_by_name(three):
    with pytest.raises(ConfigError, match=r"a/b has shape \[1000\] in the checkpoint and has shape \[7\] in the config"):
        Checkpoints(three / "checkpoints").load(6, abstract(state_of(0, 7).replace(opt_state=state_of(0).opt_state)))


@pytest.mark.parametrize("name", ["exp[lr=1e-4]", "a*", "why?", "[!x]", "100 %", "ü{b}"])
def test_a_name_is_never_a_pattern(tmp_path, name):
    """Of the run or of a folder above, which may be renamed."""
    checkpoints = open_(tmp_path / name / "runs" / name)
    checkpoints.probe()
    checkpoints.save(state_of(2))
    checkpoints.close()
    assert checkpoints.failure() is None
    (tmp_path / name).rename(tmp_path / "moved [1]")
    again = Checkpoints(tmp_path / "moved [1]" / "runs" / name / "checkpoints")
    assert again.newest() == (2, [])
    assert_is(again.load(2, abstract(state_of(0))), 2)


def test_what_a_restore_opens_must_be_there(three):
    """Without any of these a restore fails, so that no manifest is written, and an old one is not believed."""
    folder = three / "checkpoints" / "6"
    for name in manifest.REQUIRED:
        (folder / name).rename(three / "away")
        with pytest.raises(ConfigError, match="cannot be read|does not fit"):
            Checkpoints(three / "checkpoints").load(6, abstract(state_of(0)))
        (folder / "manifest.json").rename(three / "saved")
        with pytest.raises(manifest.Damaged, match=f"{name} was never written"):
            manifest.write(folder, FACTS)
        assert not (folder / "manifest.json").exists()
        (three / "saved").rename(folder / "manifest.json")
        files = {other: found for other, found in manifest.read(folder)["files"].items() if other != name}
        with pytest.raises(manifest.Damaged, match=f"{name} was never written"):
            manifest.check(folder, files)
        (three / "away").rename(folder / name)
    assert_is(Checkpoints(three / "checkpoints").load(6, abstract(state_of(0))), 6)


def test_a_folder_whose_checkpoints_cannot_be_read_back_is_refused_before_a_run(tmp_path, monkeypatch):
    checkpoints = open_(tmp_path)
    checkpoints.probe()
    assert list((tmp_path / "checkpoints").iterdir()) == []
    load = checkpoint.ocp.load
    monkeypatch.setattr(checkpoint.ocp, "load", lambda place, like: jax.tree.map(lambda x: x + 1, load(place, like)))
    with pytest.raises(ConfigError, match=r"could not be read back \(other numbers were read"):
        checkpoints.probe()
    monkeypatch.undo()
    monkeypatch.setattr(storage.LiteralPath, "glob", storage._GPath.glob)
    checkpoints = open_(tmp_path / "a[b]")
    with pytest.raises(ConfigError, match=r"a\[b\]/checkpoints could not be read back .* another --run-dir"):
        checkpoints.probe()


def test_a_folder_that_lets_nothing_be_removed_is_refused_before_a_run(tmp_path, monkeypatch):
    checkpoints = open_(tmp_path)

    def refuses():
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(checkpoints, "_remove_probe", refuses)
    with pytest.raises(ConfigError, match="what was written cannot be removed: Permission denied"):
        checkpoints.probe()


def test_the_words_of_the_store_are_translated(tmp_path):
    words = "RESOURCE_EXHAUSTED: Failed writing: Failed to write 9 bytes: No space left on device [os_error_code='28']"
    said = Checkpoints(tmp_path)._words(6, ValueError(words))
    assert said.endswith("6 could not be written (No space left on device)")
    said = Checkpoints(tmp_path)._words(6, OSError(errno.EROFS, "Read-only file system", "x"))
    assert said.endswith("(Read-only file system)")
    assert checkpoint.Checkpoints(tmp_path)._words(6, ValueError("first\nsecond")).endswith("(first)")


def test_a_manifest_is_json_with_sizes(three):
    record = json.loads((three / "checkpoints/2/manifest.json").read_text())
    for name, (size, digest) in record["files"].items():
        assert (three / "checkpoints/2" / name).stat().st_size == size and len(digest) == 64


def test_a_write_that_ends_after_its_save_failed_is_passed_over_and_nothing_else(monkeypatch):
    """A store's thread that reports to a closed event loop; another error that Python cannot raise is still told."""
    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: told.append(str(found.exc_value)))
    checkpoint.pass_over_late_writes()
    checkpoint.pass_over_late_writes()  # every run of a process asks for it
    promise, future = tensorstore.Promise.new()
    loop = asyncio.new_event_loop()

    async def write():
        return await future

    async def save():
        waiting = asyncio.ensure_future(write())
        await asyncio.sleep(0.01)
        waiting._log_destroy_pending = False  # asyncio would warn of it, as orbax's own tasks do not
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        loop.run_until_complete(save())
    loop.close()
    late = threading.Thread(target=lambda: promise.set_result(5))
    late.start()
    late.join()
    assert told == []

    class Other:
        def __del__(self):
            raise RuntimeError("another")

    other = Other()
    del other
    assert told == ["another"]


def test_scores_that_come_after_a_state_was_saved_are_written_beside_it(tmp_path):
    """The last state of a run is judged when it is saved already; the older best one goes then."""
    checkpoints = open_(tmp_path, keep=1, keep_best=1)
    checkpoints.save(state_of(2), {"exact": 0.5})
    checkpoints.save(state_of(4))
    checkpoints.wait()
    assert checkpoints.steps() == [2, 4] and checkpoints.facts(4)["evaluation"] == {}
    place = tmp_path / "checkpoints" / "4"
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file() and path.name != "manifest.json"}
    checkpoints.save(state_of(4), {"exact": 0.7})
    checkpoints.close()
    assert checkpoints.failure() is None and checkpoints.steps() == [4]
    assert checkpoints.facts(4)["evaluation"] == {"exact": 0.7}
    assert checkpoints.facts(4)["best"] == {"metric": "exact", "value": 0.7, "step": 4}
    assert before == {path: path.stat().st_mtime_ns for path in before}  # the arrays were not written again
    assert_is(open_(tmp_path).load(4, abstract(state_of(4))), 4)
