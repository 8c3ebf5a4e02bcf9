"""A chat server on loopback that answers as it is told to, and misbehaves as real ones do; and who asks it."""

import base64
import contextlib
import dataclasses
import http.server
import io
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image

from unigrpo_jax.config import JudgeConfig, JudgingConfig, RunConfig
from unigrpo_jax.config_checks import check
from unigrpo_jax.rewards.load import load_reward
from unigrpo_jax.rewards.protocol import RewardBatch, RewardFunction


@dataclasses.dataclass(frozen=True)
class Answer:
    """Status, headers and body of an HTTP answer; `length` overrides the Content-Length, None leaves it out."""

    body: bytes = b"{}"
    status: int = 200
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    length: int | None = -1


Behaviour = Callable[[int, dict[str, Any], http.server.BaseHTTPRequestHandler], Answer | None]


class JudgeServer(http.server.ThreadingHTTPServer):
    """Calls `behaviour(number from 0, request's JSON, handler)`; None where that has written to the handler itself.

    Attributes:
      requests: JSON of each request, as it came.
      headers: headers of each request.
      at_once: most requests that were in work at the same time.
      over: set when the test is over, for behaviours that hang.
    """

    daemon_threads, block_on_close, request_queue_size = True, False, 64

    def __init__(self, behaviour: Behaviour, port: int):
        super().__init__(("127.0.0.1", port), _Handler)
        self.behaviour, self.requests, self.headers, self.paths = behaviour, [], [], []
        self.at_once = self.now = 0
        self.lock, self.over = threading.Lock(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        """A client that goes away is no error here."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: JudgeServer

    def log_message(self, *arguments):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            number = len(server.requests)
            server.requests.append(body)
            server.headers.append(dict(self.headers))
            server.paths.append(self.path)
            server.now += 1
            server.at_once = max(server.at_once, server.now)
        try:
            answer = server.behaviour(number, body, self)
        finally:
            with server.lock:
                server.now -= 1
        if answer is None:
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.length is not None:
            self.send_header("Content-Length", str(len(answer.body) if answer.length < 0 else answer.length))
        else:
            self.close_connection = True
        self.end_headers()
        self.wfile.write(answer.body)
        if answer.length is not None and answer.length > len(answer.body):
            self.close_connection = True

    do_GET = do_POST


@contextlib.contextmanager
def serving(behaviour: Behaviour, port: int = 0) -> Iterator[JudgeServer]:
    """A server in the background, at any free port where none is named."""
    server = JudgeServer(behaviour, port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def says(text: Any, finish_reason: str = "stop") -> Answer:
    """A chat completion with this text."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    return Answer(json.dumps({"id": "1", "object": "chat.completion", "choices": [choice]}).encode())


def expects(likeliest: Mapping[str, float]) -> Answer:
    """A chat completion whose first token has these probabilities."""
    top = [{"token": token, "logprob": float(np.log(p)), "bytes": list(token.encode())} for token, p in likeliest.items()]
    content = [{**top[0], "top_logprobs": top}] if top else []
    choice = {"index": 0, "message": {"role": "assistant", "content": next(iter(likeliest), "")}, "finish_reason": "stop",
              "logprobs": {"content": content}}  # fmt: skip
    return Answer(json.dumps({"choices": [choice]}).encode())


def text_of(request: Mapping[str, Any]) -> str:
    """The text of a request."""
    return request["messages"][0]["content"][1]["text"]


def image_of(request: Mapping[str, Any]) -> np.ndarray:
    """The pixels of a request's image."""
    head, _, data = request["messages"][0]["content"][0]["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
        assert image.format == "PNG" and image.mode == "RGB"
        return np.array(image)


KEY = "sk-not-to-be-seen-0123456789abcdef"
YES = {"Yes": 0.6, " yes": 0.2, "no": 0.2}  # 0.8

os.environ.pop("UNIGRPO_JUDGE_KEY", None)


def config(url: str, judging: JudgingConfig | None = None, **settings) -> RunConfig:
    """A run that is judged at `url`, without waits between retries."""
    judge = {"url": url, "model": "eyes", "backoff_seconds": 0.0, "retries": 2} | settings
    return RunConfig(rewards=("judge",), judge=JudgeConfig(**judge), judging=judging or JudgingConfig(retries=0))


def judge(url: str, **settings) -> RewardFunction:
    """The reward `judge` as a run gets it."""
    made = config(url, **settings)
    check(made)
    return load_reward("judge", made)


def batch(*prompts: str, metadata=None, thinking=None) -> RewardBatch:
    """Episodes with random pixels, none of them square."""
    images = np.random.default_rng(0).integers(0, 256, (len(prompts), 12, 20, 3), np.uint8)
    return RewardBatch(
        prompts=prompts,
        metadata=metadata or [{}] * len(prompts),
        images=images,
        thinking=thinking or ["I will draw it."] * len(prompts),
    )


def always(answer: Answer) -> Behaviour:
    """The same answer to all."""
    return lambda number, request, handler: answer


def in_turn(*answers: Answer) -> Behaviour:
    """These answers, the last one for ever."""
    return lambda number, request, handler: answers[min(number, len(answers) - 1)]
