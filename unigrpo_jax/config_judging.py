"""Settings of how rewards are called, and of the remote judge."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgingConfig:
    """How rewards are called, and what becomes of one that fails."""

    timeout_seconds: float = 1800.0
    """A reward on the host or a server that takes longer has failed; so long a judge that went away is waited for."""
    retries: int = 2
    """How often a failed reward is asked again, for the episodes that it did not judge."""
    backoff_seconds: float = 1.0
    """Wait before the first retry; each later wait is twice as long."""
    max_dropped: float = 0.5
    """Groups with an episode that was not judged teach nothing; the run stops where more than this share is lost."""
    remembered: int = 4096
    """Episodes whose rewards are kept in memory, so that the same image is not judged twice; 0 keeps none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """The reward `judge`: a vision-language model behind an OpenAI-compatible server (unigrpo_jax.rewards.remote)."""

    url: str = ""
    """Where the server's API begins, such as https://host/v1; `/chat/completions` is added."""
    model: str = ""
    """Name of the model on that server."""
    form: Literal["yes", "number", "exam"] = "yes"
    """Score: probability of "yes", a number in the reply, or the share of a prompt's own questions answered with yes."""
    dimensions: tuple[str, ...] = ()
    """Form `number`: names of several numbers that one reply gives, such as visual_quality motion_quality text_alignment;
    each is a component of the reward. Empty is one number, the component `judge`."""
    question: str = ""
    """What is asked; {prompt}, {thinking}, {point}, {low}, {high} and {dimensions} are filled in. Empty is the form's own
    question."""
    clip: Literal["frames", "video"] = "frames"
    """How a clip is shown: some frames of it as images, or all as one MP4, with its sound where it has one (`video_url`,
    which vLLM and SGLang take)."""
    frames: int = 8
    """Frames of a clip that are shown: the first, the last and others evenly between."""
    show_thinking: bool = False
    """Show the thinking beside the image."""
    low: float = 0.0
    """Form `number`: the number that becomes score 0."""
    high: float = 10.0
    """Form `number`: the number that becomes score 1."""
    questions_key: str = "questions"
    """Form `exam`: where a prompt's metadata holds its list of yes/no questions."""
    temperature: float = 0.0
    """Of the judge; above 0 the same image may get another score, and none is remembered."""
    top_logprobs: int = 20
    """Form `yes`: likeliest tokens that the server reports; vLLM and OpenAI allow 20."""
    max_tokens: int = 16
    """Longest reply; more for a judge that reasons before it answers."""
    concurrency: int = 16
    """Episodes that one process has judged at the same time."""
    connect_seconds: float = 10.0
    """Time-out of connecting."""
    read_seconds: float = 60.0
    """Longest silence of the server while it is read from or written to."""
    total_seconds: float = 120.0
    """Time-out of one request from connecting to the last byte."""
    retries: int = 3
    """How often a request is repeated after HTTP 429 or 5xx, a failed connection or a time-out."""
    backoff_seconds: float = 1.0
    """Wait before the first repetition; each later one waits twice as long, less up to half of it at random."""
    retry_after_seconds: float = 60.0
    """Longest wait that the server may ask for (Retry-After)."""
    key_variable: str = "UNIGRPO_JUDGE_KEY"
    """Environment variable that holds the API key; where it is not set, none is sent."""
    hosts: tuple[str, ...] = ()
    """Hosts that may be asked; empty is the one of judge.url."""
    allow_http: bool = False
    """Let images and key go unencrypted to another machine; on this one http needs no leave."""
