"""Asks a chat server over HTTP, and trusts it with nothing.

The server may be slow, broken or hostile: every request has time-outs, a reply is read up to a limit and never unpacked, and
redirects are not followed.  Proxies and .netrc of the environment are not used (`trust_env`), so that images and key go to
the host in the settings and nowhere else.  The key is read from the environment at each connection and kept no longer; since
a server may send it back, the HTTP library's own log of requests and headers is off, and messages quote nothing but bodies,
without the key.
"""

import asyncio
import contextlib
import json
import logging
import os
import random
import re
from collections.abc import AsyncIterator
from typing import Any

from unigrpo_jax.config import JudgeConfig, require
from unigrpo_jax.rewards.remote_reply import NotJudged, error_status, error_words, wait_asked_for

REPLY_LIMIT = 2**20  # bytes
GATEWAY = (502, 503, 504)  # what stands before a server that is away or loads its model
OTHERWISE = {  # what a model refuses as OpenAI's newer ones do, and what to do
    "max_tokens": "this model takes no max_tokens, which is always sent; name another judge.model",
    "temperature": "this model takes no other temperature than its own; use --judge.temperature 1",
}
SHOWN = 10_000  # characters of the server that are kept for a message, which shows fewer


class KeyRefused(NotJudged):
    """HTTP 401: no question will be answered."""


class ServerAway(NotJudged):
    """Nobody listens, or a gateway says so: whatever is asked."""


class _Again(Exception):
    """A failure that may pass: its words, those of the server, the seconds that it asks to wait, and whether it is away."""

    def __init__(self, reason: str, said: str = "", wait: float = 0.0, away: bool = False):
        super().__init__(reason)
        self.said, self.wait, self.away = said, wait, away


def read_key(settings: JudgeConfig) -> str:
    """The API key, "" where there is none; ConfigError where a header cannot hold it."""
    key = os.environ.get(settings.key_variable, "").strip()
    require(
        key.isascii() and key.isprintable() and " " not in key,
        f"the environment variable {settings.key_variable} (judge.key_variable) holds no API key, since it has spaces or "
        "characters beyond ASCII; set it to the key alone.",
    )
    return key


@contextlib.asynccontextmanager
async def connect(settings: JudgeConfig) -> AsyncIterator["Chat"]:
    """A server that can be asked; closed at the end."""
    import httpx2

    for name in ("httpx2", "httpcore2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    key = read_key(settings)
    headers = {"Accept": "application/json", "Accept-Encoding": "identity", "Content-Type": "application/json"}
    async with httpx2.AsyncClient(
        headers=headers | ({"Authorization": f"Bearer {key}"} if key else {}),
        timeout=httpx2.Timeout(settings.read_seconds, connect=settings.connect_seconds, pool=None),
        limits=httpx2.Limits(),  # none: the semaphore of whoever asks is the limit
        follow_redirects=False,
        trust_env=False,
    ) as client:
        yield Chat(settings, client)


class Chat:
    """A connection to the server of the settings; see `connect`."""

    def __init__(self, settings: JudgeConfig, client):
        self._settings, self._client = settings, client
        self._url = f"{settings.url.rstrip('/')}/chat/completions"

    async def ask(self, question: dict[str, Any]) -> Any:
        """The JSON that the server replies to a request's JSON.

        Repeats a request, after growing waits or that of Retry-After, upon HTTP 429 and 5xx, failed connections, replies
        that break off, and time-outs.  An error in the body of HTTP 200 counts as the status that it names.

        Raises:
          NotJudged: any other failure, or retries in vain; `KeyRefused` upon HTTP 401, `ServerAway` where the last retry
            found no connection, or HTTP 502, 503 or 504.
        """
        body, retries = json.dumps(question).encode(), self._settings.retries
        for attempt in range(retries + 1):
            try:
                async with asyncio.timeout(self._settings.total_seconds):
                    return await self._once(body)
            except TimeoutError:
                failure = _Again(f"no reply within judge.total_seconds = {self._settings.total_seconds:g}")
            except _Again as error:
                failure = error
            if attempt < retries:
                asked = min(failure.wait, self._settings.retry_after_seconds)
                own = self._settings.backoff_seconds * 2**attempt * random.uniform(0.5, 1)
                await asyncio.sleep(max(asked, own))
        kind = ServerAway if failure.away else NotJudged
        raise kind(f"{failure}{f', after {retries} retries' if retries else ''}", said=failure.said)

    async def _once(self, body: bytes) -> Any:
        """One request; `_Again` upon what may pass."""
        import httpx2

        try:
            async with self._client.stream("POST", self._url, content=body) as response:
                await self._refuse(response)
                text, whole = await _read(response)
        except httpx2.TransportError as error:  # its words may hold what the server sent
            away = isinstance(error, (httpx2.ConnectError, httpx2.ConnectTimeout))
            raise _Again(f"the connection failed ({type(error).__name__})", away=away) from None
        if not whole:
            raise NotJudged(f"the reply is longer than {REPLY_LIMIT} bytes")
        try:
            reply = json.loads(text)
        except (ValueError, RecursionError):
            raise NotJudged("the reply is not JSON", said=error_words(text)[:SHOWN]) from None
        status = error_status(reply)
        if status is not None:
            error = f"HTTP {status} in the body of an HTTP 200" if status else "HTTP 200 with an error"
            self._refuse_status(status, error, error_words(reply)[:SHOWN], response)
        return reply

    async def _refuse(self, response) -> None:
        """Raises unless the status promises a reply that can be read."""
        status = response.status_code
        if 300 <= status < 400:
            raise NotJudged(f"the server answered HTTP {status}, a redirect, which is not followed; correct judge.url")
        if status != 200:
            said = b"" if _is_packed(response) else (await _read(response))[0]
            self._refuse_status(status, f"HTTP {status}", error_words(said)[:SHOWN], response)
        if _is_packed(response):
            raise NotJudged("the server packed its reply, which was not asked for")

    def _refuse_status(self, status: int, answered: str, said: str, response) -> None:
        """Raises what a status other than 200 means; `answered` says where it stood."""
        words, variable = f"the server answered {answered}", self._settings.key_variable
        if status == 429 or 500 <= status < 600:
            raise _Again(words, said, wait_asked_for(response.headers.get("retry-after")), status in GATEWAY)
        if status == 401:
            state = "is not accepted" if os.environ.get(variable) else "is not set"
            raise KeyRefused(f"{words}: the API key in {variable} {state}", said)
        if status == 403:
            raise NotJudged(f"{words}: the key in {variable} may not do this", said)
        unsupported = re.search(r"unsupported (?:parameter|value): '(max_tokens|temperature)'", said, re.IGNORECASE)
        if status == 400 and unsupported:
            raise NotJudged(f"{words}: {OTHERWISE[unsupported[1]]}", said)
        raise NotJudged(words, said)


def _is_packed(response) -> bool:
    return response.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity")


async def _read(response) -> tuple[bytes, bool]:
    """The body, and whether that is all of it; what is beyond the limit is not read."""
    body = bytearray()
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > REPLY_LIMIT:
            return bytes(body), False
    return bytes(body), True
