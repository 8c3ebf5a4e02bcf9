"""The reward `judge`: a vision-language model on a server looks at the image and answers a question about it.

The server speaks the OpenAI chat API, as vLLM, SGLang and vendors do: POST {judge.url}/chat/completions with the image as a
PNG data URL in front of the text.  `judge.form` says what is made of the answer, always a score in [0, 1]:

- yes     probability of "yes" at the first token of the answer (`remote_reply.probability_of_yes`; needs logprobs);
- number  the number in the reply, judge.low..judge.high mapped to 0..1 (`remote_reply.score`);
- exam    the share of the prompt's own questions, a list of texts in its metadata, that are answered with yes.  Each is
          asked alone, one after the other, so that no answer depends on another one; the image comes first in all of them,
          so that a server with a prefix cache (vLLM's default) reads it once.

`judge:thinking` is the same judge asked about the thinking, which it reads together with the image: a process reward whose
component is `thought` (see `learning.thought_rewards`).

An episode with a question that failed is NaN.  What the judge reads of an episode is the model's own words and pixels, and
may try to talk it into a good score; `judge.show_thinking` is off for that reason, too.
"""

import asyncio
import base64
import collections
import hashlib
import io
import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unigrpo_jax.config import RunConfig, require
from unigrpo_jax.foreign_tokens import spaced
from unigrpo_jax.rewards import remote_reply
from unigrpo_jax.rewards.judging import RewardError
from unigrpo_jax.rewards.protocol import Cost, RewardBatch, RewardFunction
from unigrpo_jax.rewards.remote_chat import Chat, KeyRefused, connect, read_key
from unigrpo_jax.rewards.remote_reply import NotJudged, shown

QUESTIONS = {
    "yes": "Does this image show everything that the following text asks for, and nothing that contradicts it?\n"
    "<text>\n{prompt}\n</text>\nAnswer with yes or no alone.",
    "number": "How well does this image show what the following text asks for? Give a score from {low} (not at all) to "
    "{high} (perfectly).\n<text>\n{prompt}\n</text>\nAnswer with the number alone.",
    "exam": "Look at this image and answer the question with yes or no alone.\n<question>\n{point}\n</question>",
}
ABOUT_THINKING = {
    "yes": "Someone was asked for an image of the following text, thought about it, and then drew this image.\n"
    "<text>\n{prompt}\n</text>\n<thinking>\n{thinking}\n</thinking>\n"
    "Is what was thought right for the text, and does the image follow it? Answer with yes or no alone.",
    "number": "Someone was asked for an image of the following text, thought about it, and then drew this image.\n"
    "<text>\n{prompt}\n</text>\n<thinking>\n{thinking}\n</thinking>\n"
    "How right is what was thought for the text, and how well does the image follow it? Give a score from {low} (not at "
    "all) to {high} (perfectly). Answer with the number alone.",
}
THINKING = (
    "The following was thought before the image was drawn. Judge it together with the image.\n"
    "<thinking>\n{thinking}\n</thinking>\n"
)
DEADLINE = 0.9  # of judging.timeout_seconds: what is not judged by then is given up, so that the rest counts


def load(argument: str, config: RunConfig) -> RewardFunction:
    """The reward `judge` or `judge:thinking`; ConfigError where the key cannot be sent."""
    require(argument in ("", "thinking"), f"rewards: judge:{argument}: it is judge, or judge:thinking; see --judge.url.")
    read_key(config.judge)
    if argument:
        require(config.judge.form in ABOUT_THINKING,
                "rewards: judge:thinking asks one question, and judge.form = 'exam' many; use yes or number.")  # fmt: skip
        return Judge(config, about_thinking=True)
    return Judge(config)


class Judge:
    """The remote judge as a reward (`unigrpo_jax.rewards.protocol.Reward`) with the component `judge`, or `thought`."""

    cost: Cost = "remote"

    def __init__(self, config: RunConfig, about_thinking: bool = False):
        self._settings, self._deadline = config.judge, DEADLINE * config.judging.timeout_seconds
        own = (THINKING if self._settings.show_thinking else "") + QUESTIONS[self._settings.form]
        self._question = ABOUT_THINKING[self._settings.form] if about_thinking else self._settings.question or own
        self._component = "thought" if about_thinking else "judge"
        self._worked = False
        s = self._settings
        decisive = [s.url, s.model, s.form, self._question, s.low, s.high, s.questions_key, s.top_logprobs, s.max_tokens]
        digest = hashlib.sha256(json.dumps(decisive).encode()).hexdigest()
        self.identity = "" if s.temperature else f"judge {digest}"

    def check(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
        """ConfigError where a prompt of an exam has no questions."""
        key = self._settings.questions_key
        for prompt, facts in zip(prompts, metadata, strict=True):
            require(
                self._settings.form != "exam" or bool(exam_points(facts, key)),
                f"judge.form = 'exam', but the prompt {shown(prompt)} has no list of questions under {key!r}; add it to the "
                "prompt file, or name another judge.questions_key.",
            )

    def __call__(self, batch: RewardBatch) -> dict[str, np.ndarray]:
        """{"judge" or "thought": float64 [B]}, NaN where an episode was not judged.

        The commonest reason is logged.  RewardError where the key is not accepted, or where nothing at all was judged and
        nothing has ever been: then the settings are wrong, not the episodes.
        """
        scores, failures = asyncio.run(self._judge(batch))
        if failures:
            reason, count = collections.Counter(f.reason for f in failures).most_common(1)[0]
            said = next(f.said for f in failures if f.reason == reason)
            words = (
                f"the judge at {self._settings.url} gave no score for {len(failures)} of {len(scores)} episodes, {count} "
                f"times because {reason}{self._quoted(said)}"
            )
            if not self._worked and len(failures) == len(scores):
                raise RewardError(words)
            logging.getLogger(__name__).warning("%s.", words)
        self._worked = self._worked or len(failures) < len(scores)
        return {self._component: scores}

    async def _judge(self, batch: RewardBatch) -> tuple[np.ndarray, list[NotJudged]]:
        """Scores [B], and why some are NaN."""
        scores, failures, places = np.full(len(batch.prompts), np.nan), [], asyncio.Semaphore(self._settings.concurrency)
        async with connect(self._settings) as chat:

            async def judge_one(row: int) -> None:
                async with places:
                    try:
                        scores[row] = await self._score(chat, batch, row)
                    except KeyRefused as error:
                        raise RewardError(error.reason + self._quoted(error.said)) from None
                    except NotJudged as error:
                        failures.append(error)

            tasks = [asyncio.create_task(judge_one(row)) for row in range(len(batch.prompts))]
            done, late = await asyncio.wait(tasks, timeout=self._deadline, return_when=asyncio.FIRST_EXCEPTION)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
            for error in [error for task in done if (error := task.exception())]:
                raise error
        failures += [NotJudged("judging.timeout_seconds are almost over; raise it or judge.concurrency")] * len(late)
        return scores, failures

    async def _score(self, chat: Chat, batch: RewardBatch, row: int) -> float:
        """The score of one episode."""
        s, image = self._settings, await asyncio.to_thread(data_url, batch.images[row])
        facts = {"prompt": batch.prompts[row], "thinking": batch.thinking[row], "low": f"{s.low:g}", "high": f"{s.high:g}"}
        ask = lambda **more: chat.ask(self._request(fill(self._question, facts | more), image))
        if s.form == "yes":
            return remote_reply.probability_of_yes(await ask())
        if s.form == "number":
            return remote_reply.score(await ask(), s.low, s.high)
        points = exam_points(batch.metadata[row], s.questions_key)
        if not points:
            raise NotJudged(f"the prompt's metadata has no list of questions under {s.questions_key!r}")
        return float(np.mean([remote_reply.says_yes(await ask(point=point)) for point in points]))

    def _request(self, text: str, image: str) -> dict[str, Any]:
        """The JSON of one request."""
        s = self._settings
        content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": text}]
        logprobs = {"logprobs": True, "top_logprobs": s.top_logprobs} if s.form == "yes" else {}
        settings = {"model": s.model, "temperature": s.temperature, "max_tokens": s.max_tokens}
        return settings | logprobs | {"messages": [{"role": "user", "content": content}]}

    def _quoted(self, said: str) -> str:
        """Words of the server for the end of a message, without the key, which it may have sent back."""
        key = read_key(self._settings)
        return f": {shown(said.replace(key, '[key]') if key else said)}" if said.strip() else ""


def fill(question: str, facts: Mapping[str, str]) -> str:
    """The question with {name} replaced, in one pass: braces in what is filled in, and any others, stay as they are.

    A control token's name in what is filled in gets a blank, lest the server's tokenizer makes that token of it.
    """
    return re.sub(r"\{(\w+)\}", lambda found: spaced(facts[found[1]]) if found[1] in facts else found[0], question)


def exam_points(metadata: Mapping[str, Any], key: str) -> list[str]:
    """The questions of a prompt; none where there is no list of texts."""
    points = metadata.get(key)
    return points if isinstance(points, list) and all(isinstance(p, str) and p.strip() for p in points) else []


def data_url(image: np.ndarray) -> str:
    """An image, uint8 [H, W, 3], as a PNG data URL, without loss."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
