"""The meeting of processes: who is missing, who means another run, and strangers at the door.  Threads play processes."""

import json
import socket
import threading

import pytest

from unigrpo_jax.config import ConfigError
from unigrpo_jax.parallel.roll_call import LONGEST, PeersMissing, roll_call


@pytest.fixture
def port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def meet(port, count, callers, wait=20.0, facts=lambda index: {"seed": 0}, every=30.0, before=None):
    """{caller's number in the list: None or its error} and all sentences, of callers [(index, count), ...]."""
    outcomes, told = {}, []

    def play(number, index, count):
        try:
            roll_call(f"127.0.0.1:{port}", count, index, facts(index), wait, told.append, every)
            outcomes[number] = None
        except (PeersMissing, ConfigError) as error:
            outcomes[number] = error

    threads = [threading.Thread(target=play, args=(n, i, c)) for n, (i, c) in enumerate(callers)]
    for thread in threads:
        thread.start()
    if before:
        before()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return outcomes, told


def test_all_there_and_of_one_mind_go_on_and_the_port_is_free(port):
    outcomes, told = meet(port, 4, [(2, 4), (0, 4), (3, 4), (1, 4)])
    assert outcomes == dict.fromkeys(range(4)) and not told
    socket.create_server(("", port)).close()


def test_who_is_missing_is_told_and_named_to_all_who_came(port):
    outcomes, told = meet(port, 4, [(0, 4), (2, 4)], wait=1.5, every=0.4)
    for error in outcomes.values():
        assert isinstance(error, PeersMissing)
        assert str(error) == "1, 3 of 4 processes did not come within 2 s"
    waiting = [words for words in told if words.startswith("Waiting for 1, 3 of 4 processes")]
    assert len(waiting) in (2, 3), told


def test_without_process_0_the_others_give_up_and_say_where_they_called(port):
    outcomes, told = meet(port, 2, [(1, 2)], wait=1.0, every=0.3)
    assert isinstance(outcomes[0], PeersMissing)
    assert f"process 0 of 2 did not answer at 127.0.0.1:{port}" in str(outcomes[0])
    assert any("Process 1 waits for process 0" in words for words in told)


def test_the_fact_on_which_they_disagree_is_named_to_all(port):
    facts = lambda index: {"seed": 0, "learning.group_size": 24 if index != 2 else 8, "jax": "0.10.2"}
    outcomes, _ = meet(port, 3, [(0, 3), (1, 3), (2, 3)], facts=facts)
    for error in outcomes.values():
        assert isinstance(error, ConfigError)
        assert "process 2 has learning.group_size = 8 (process 0: 24)" in str(error) and "seed" not in str(error)


def test_a_fact_that_only_one_has_is_a_difference(port):
    outcomes, _ = meet(port, 2, [(0, 2), (1, 2)], facts=lambda index: {"new": 1.5} if index else {})
    assert "process 1 has new = 1.5 (process 0: None)" in str(outcomes[0]) == str(outcomes[1])


@pytest.mark.parametrize(
    "callers, words",
    [
        ([(0, 3), (1, 3), (1, 3)], "two processes say that they are number 1 of 3"),
        ([(0, 2), (0, 2), (1, 2)], "cannot listen at port"),
        ([(0, 3), (1, 2)], "expects 2 processes, process 0 3"),
    ],
)
def test_a_wrong_start_is_one_sentence(port, callers, words):
    outcomes, _ = meet(port, 0, callers, wait=3.0)
    refused = [error for error in outcomes.values() if isinstance(error, ConfigError) and words in str(error)]
    assert len(refused) == (1 if "listen" in words else len(callers)), outcomes


def test_strangers_do_not_disturb(port):
    """A port scanner, a browser, a liar and a flood of bytes knock before the second process comes."""

    def knock():
        for data in (b"", b"GET / HTTP/1.1\r\n\r\n", b'{"index": "1"}\n', b"[1]\n", b"[" * 100_000 + b"\n",
                     b"x" * (LONGEST + 9), json.dumps({"index": 1, "facts": 3}).encode() + b"\n"):  # fmt: skip
            for _ in range(200):
                try:
                    stranger = socket.create_connection(("127.0.0.1", port), 5)
                    break
                except ConnectionRefusedError:
                    threading.Event().wait(0.02)
            with stranger:
                try:
                    stranger.sendall(data)
                    stranger.shutdown(socket.SHUT_WR)
                    stranger.recv(1)
                except OSError:
                    pass  # it was shown the door
        late.start()

    outcome = []
    late = threading.Thread(target=lambda: outcome.append(
        roll_call(f"127.0.0.1:{port}", 2, 1, {"seed": 0}, 20, lambda words: None)))  # fmt: skip
    outcomes, _ = meet(port, 2, [(0, 2)], before=knock)
    late.join(20)
    assert outcomes == {0: None} and outcome == [None]
