"""The reward `judge`: a vision-language model on a server looks at the image or clip and answers a question about it.

The server speaks the OpenAI chat API, as vLLM, SGLang and vendors do: POST {judge.url}/chat/completions with what was drawn
in front of the text (`remote_media`).  `judge.form` says what is made of the answer, always a score in [0, 1]:

- yes     probability of "yes" at the first token of the answer (`remote_reply.probability_of_yes`; needs logprobs);
- number  the number in the reply, judge.low..judge.high mapped to 0..1 (`remote_reply.score`); with judge.dimensions one
          number under each of those names, which are the components then (`remote_reply.scores`);
- exam    the share of the prompt's own questions, a list of texts in its metadata, that are answered with yes.  Each is
          asked alone, one after the other, so that no answer depends on another one; the image comes first in all of them,
          so that a server with a prefix cache (vLLM's default) reads it once.

`judge:thinking` is the same judge asked about the thinking, which it reads together with the image: a process reward whose
component is `thought` (see `learning.thought_rewards`).

An episode with a question that failed, or a name without its number, is NaN.  What the judge reads of an episode is the
model's own words and pixels, and may try to talk it into a good score; `judge.show_thinking` is off for that reason, too.
"""

import asyncio
import collections
import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unigrpo_jax import clip_files
from unigrpo_jax.config import JudgeConfig, RunConfig, require
from unigrpo_jax.foreign_tokens import spaced
from unigrpo_jax.rewards import judge_scale, remote_reply
from unigrpo_jax.rewards.judging import Away, RewardError
from unigrpo_jax.rewards.protocol import Cost, RewardBatch, RewardFunction
from unigrpo_jax.rewards.remote_chat import Chat, KeyRefused, ServerAway, connect, read_key
from unigrpo_jax.rewards.remote_media import Shown, show
from unigrpo_jax.rewards.remote_reply import NotJudged, shown

# {medium} is "image" or "video", {a_medium} has its article.
QUESTIONS = {
    "yes": "Does this {medium} show everything that the following text asks for, and nothing that contradicts it?\n"
    "<text>\n{prompt}\n</text>\nAnswer with yes or no alone.",
    "number": "How well does this {medium} show what the following text asks for? Give a score from {low} (not at all) to "
    "{high} (perfectly).\n<text>\n{prompt}\n</text>\nAnswer with the number alone.",
    "exam": "Look at this {medium} and answer the question with yes or no alone.\n<question>\n{point}\n</question>",
}
DIMENSIONS = (
    "How good is this {medium}, which was made for the following text? Give {dimensions} a score each, from {low} (worst) "
    "to {high} (best).\n<text>\n{prompt}\n</text>\nAnswer with one JSON object alone, a number under each of these names."
)
ABOUT_THINKING = {
    "yes": "Someone was asked for {a_medium} of the following text, thought about it, and then drew this {medium}.\n"
    "<text>\n{prompt}\n</text>\n<thinking>\n{thinking}\n</thinking>\n"
    "Is what was thought right for the text, and does the {medium} follow it? Answer with yes or no alone.",
    "number": "Someone was asked for {a_medium} of the following text, thought about it, and then drew this {medium}.\n"
    "<text>\n{prompt}\n</text>\n<thinking>\n{thinking}\n</thinking>\n"
    "How right is what was thought for the text, and how well does the {medium} follow it? Give a score from {low} (not at "
    "all) to {high} (perfectly). Answer with the number alone.",
}
THINKING = (
    "The following was thought before the {medium} was drawn. Judge it together with the {medium}.\n"
    "<thinking>\n{thinking}\n</thinking>\n"
)
TOKENS_OF_A_DIMENSION = 16  # of a reply, at most: its name, its number, and what JSON puts around them
DEADLINE = 0.9  # of judging.timeout_seconds: what is not judged by then is given up, so that the rest counts


def load(argument: str, config: RunConfig) -> RewardFunction:
    """The reward `judge` or `judge:thinking`; ConfigError where the key cannot be sent, or the settings cannot work."""
    require(argument in ("", "thinking"), f"rewards: judge:{argument}: it is judge, or judge:thinking; see --judge.url.")
    read_key(config.judge)
    require(config.judge.clip == "frames" or clip_files.has_pyav(),
            f"judge.clip = 'video' sends MP4, but {clip_files.WITHOUT_PYAV}; or use --judge.clip frames.")  # fmt: skip
    _check_dimensions(config.judge)
    if argument:
        require(config.judge.form in ABOUT_THINKING,
                "rewards: judge:thinking asks one question, and judge.form = 'exam' many; use yes or number.")  # fmt: skip
        return Judge(config, about_thinking=True)
    return Judge(config)


def _check_dimensions(judge: JudgeConfig) -> None:
    """ConfigError unless the names of several numbers can be told apart in a reply that is long enough for them."""
    names = judge.dimensions
    require(not names or judge.form == "number", f"judge.dimensions = {' '.join(names)} get a number each, but judge.form = "
            f"{judge.form!r} gives one score; use --judge.form number.")  # fmt: skip
    for name in names:
        require(re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) is not None,
                f"judge.dimensions names {shown(name)}, which is no name of a component; use letters, digits and _.")
        require(not judge_scale.is_end(name), f"judge.dimensions names {name!r}, which in a reply says what a number is out "
                                              "of; use another name.")  # fmt: skip
    require(len({judge_scale.letters(name) for name in names}) == len(names),
            f"judge.dimensions = {' '.join(names)} holds two names with the same letters, which are not told apart in a "
            "reply; let their letters differ.")  # fmt: skip
    least = TOKENS_OF_A_DIMENSION * len(names)
    require(judge.max_tokens >= least, f"judge.max_tokens = {judge.max_tokens} is too short for a reply with {len(names)} "
                                       f"numbers and their names; use --judge.max-tokens {least} or more.")  # fmt: skip


class Judge:
    """The remote judge as a reward (`unigrpo_jax.rewards.protocol.Reward`).

    Its component is `judge`, or `thought`; with judge.dimensions each of those is one.
    """

    cost: Cost = "remote"

    def __init__(self, config: RunConfig, about_thinking: bool = False):
        self._settings, self._deadline = config.judge, DEADLINE * config.judging.timeout_seconds
        s = self._settings
        self._dimensions = () if about_thinking else s.dimensions
        own = (THINKING if s.show_thinking else "") + (DIMENSIONS if s.dimensions else QUESTIONS[s.form])
        self._question = ABOUT_THINKING[s.form] if about_thinking else s.question or own
        self._component = "thought" if about_thinking else "judge"
        self._worked = False
        decisive = [s.url, s.model, s.form, self._question, s.low, s.high, s.questions_key, s.top_logprobs, s.max_tokens,
                    self._dimensions, s.clip, s.frames]  # fmt: skip
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
        """{component: float64 [B]}, NaN where an episode was not judged.

        The commonest reason is logged.  RewardError where the key is not accepted, or where nothing at all was judged and
        nothing has ever been: then the settings are wrong, not the episodes.  `Away` where nothing was judged because the
        server is away.
        """
        scores, failures, late = asyncio.run(self._judge(batch))
        nothing = len(failures) + late == len(scores)
        if nothing and failures and all(isinstance(f, ServerAway) for f in failures):
            raise Away(self._words(failures, len(scores)))  # those that nobody came to in time say nothing else
        failures += [NotJudged("judging.timeout_seconds are almost over; raise it or judge.concurrency")] * late
        if failures:
            words = self._words(failures, len(scores))
            if not self._worked and nothing:
                raise RewardError(words)
            logging.getLogger(__name__).warning("%s.", words)
        self._worked = self._worked or not nothing
        return dict(zip(self._dimensions or (self._component,), scores.T, strict=True))

    def _words(self, failures: Sequence[NotJudged], count: int) -> str:
        """Of how many of `count` episodes there is no score, and the commonest reason."""
        reason, times = collections.Counter(f.reason for f in failures).most_common(1)[0]
        said = next(f.said for f in failures if f.reason == reason)
        return (
            f"the judge at {self._settings.url} gave no score for {len(failures)} of {count} episodes, {times} times "
            f"because {reason}{self._quoted(said)}"
        )

    async def _judge(self, batch: RewardBatch) -> tuple[np.ndarray, list[NotJudged], int]:
        """Scores [B, components], why some rows are NaN, and how many more are because there was no time left."""
        scores = np.full((len(batch.prompts), len(self._dimensions) or 1), np.nan)
        failures, places = [], asyncio.Semaphore(self._settings.concurrency)
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
        return scores, failures, len(late)

    async def _score(self, chat: Chat, batch: RewardBatch, row: int) -> float | list[float]:
        """The score of one episode, or one for each dimension."""
        s, drawn = self._settings, await asyncio.to_thread(show, batch, row, self._settings)
        facts = {"prompt": batch.prompts[row], "thinking": batch.thinking[row], "low": f"{s.low:g}", "high": f"{s.high:g}",
                 "dimensions": ", ".join(self._dimensions), "medium": drawn.medium, "a_medium": drawn.a_medium}  # fmt: skip
        ask = lambda **more: chat.ask(self._request(fill(self._question, facts | more), drawn))
        if self._dimensions:
            found = remote_reply.scores(await ask(), self._dimensions, s.low, s.high)
            return [found[name] for name in self._dimensions]
        if s.form == "yes":
            return remote_reply.probability_of_yes(await ask())
        if s.form == "number":
            return remote_reply.score(await ask(), s.low, s.high)
        points = exam_points(batch.metadata[row], s.questions_key)
        if not points:
            raise NotJudged(f"the prompt's metadata has no list of questions under {s.questions_key!r}")
        return float(np.mean([remote_reply.says_yes(await ask(point=point)) for point in points]))

    def _request(self, text: str, drawn: Shown) -> dict[str, Any]:
        """The JSON of one request."""
        s = self._settings
        content = [*drawn.parts, {"type": "text", "text": drawn.words + text}]
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
