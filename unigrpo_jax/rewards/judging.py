"""Calls rewards: beside each other, with a time limit, again where one failed, and never twice for the same episode.

From here on numbers are float32: NaN where judging failed, `ABSTAINED` where a reward abstained, else finite.
"""

import collections
import hashlib
import json
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from unigrpo_jax.config import ConfigError, JudgingConfig, RolloutConfig, require
from unigrpo_jax.foreign_text import said
from unigrpo_jax.rewards.load import OF_BOTH, OF_IMAGES, OF_SOUND, alone
from unigrpo_jax.rewards.noting import noting
from unigrpo_jax.rewards.protocol import ABSTAIN, CheckingReward, NoSound, NotDrawn, RewardBatch, RewardFunction

Columns = dict[str, np.ndarray]

PAUSE = 5.0  # seconds until a server that is away is asked again
LEFT_AFTER = 5.0  # seconds that rewards are still waited for when the run is told to end
ABSTAINED = np.float32(-np.inf)  # `protocol.ABSTAIN` among floats; no reward's own infinity, which counts as failed


class RewardError(RuntimeError):
    """A reward failed for good, or returned what is no reward; the message names it, without a full stop."""


class Away(RewardError):
    """A reward's server is away, and may come back."""


class Left(RewardError):
    """A reward was still judging when the run was told to end."""


class WrongMedium(RewardError):
    """A reward judges images, and clips are drawn, or the other way round."""


class _TooLong(Exception):
    """A reward took longer than its limit."""


def _on_device(reward: RewardFunction) -> bool:
    return getattr(reward, "cost", "host") == "device"


def hold_to_protocol(result, name: str, size: int) -> Columns:
    """What a reward returned, as {component: float32 [size]}.

    Args:
      result: a mapping of names to numbers; bare numbers count as one component called "reward".
      name: of the reward, for messages.
      size: number of episodes.

    Returns:
      The components; NaN where a number was not finite, so that the episode counts as not judged, and `ABSTAINED` where the
      reward abstained.

    Raises:
      RewardError: another length, no component, or no numbers.
    """
    components = dict(result) if isinstance(result, Mapping) else {"reward": result}
    if result is None or not components:
        words = "None" if result is None else "no component"
        raise RewardError(
            f"the reward function {name} returned {words}; it got {size} episodes and must return [{size}] numbers"
        )
    checked = {}
    for component, values in components.items():
        try:
            array = np.asarray(values, np.float32)
        except (TypeError, ValueError):
            raise RewardError(f"the reward function {name} returned no numbers for {component!r}") from None
        if array.shape != (size,):
            raise RewardError(
                f"the reward function {name} returned shape {list(array.shape)} for {component!r}; it got {size} "
                f"episodes and must return [{size}]"
            )
        array = np.where(np.isfinite(array), array, np.float32(np.nan))
        checked[str(component)] = np.where(_abstains(values), ABSTAINED, array)
    return checked


def _abstains(values) -> np.ndarray:
    """Where B numbers are `ABSTAIN`, bool [B]."""
    if isinstance(values, np.ma.MaskedArray):
        return np.ma.getmaskarray(values)
    if isinstance(values, np.ndarray) and values.dtype != object:
        return np.zeros(values.shape, bool)
    return np.array([value is ABSTAIN or value is np.ma.masked for value in values], bool)


class Judging:
    """The rewards of a run.

    Attributes:
      settings: how they are called.
      told: the signal by which the run was told to end at once, or None; what is then waited for is soon left.
    """

    def __init__(self, rewards: Mapping[str, RewardFunction], settings: JudgingConfig):
        self._rewards, self.settings = dict(rewards), settings
        self.told: Callable[[], str | None] = lambda: None
        self._remembered: collections.OrderedDict[bytes, dict[str, float]] = collections.OrderedDict()
        self._noted: dict[str, set[str]] = {}  # what of `noting.ASKED` each reward that was called has looked at
        self._components: dict[str, set[str]] = {}
        self._answered: set[str] = set()  # rewards that have judged something, now or before the run was continued

    @property
    def longest_seconds(self) -> float:
        """How long one batch may be judged before what takes longer has failed, all retries and waits included.

        0 where all rewards compute on the devices, which have no limit.
        """
        s = self.settings
        if all(map(_on_device, self._rewards.values())):
            return 0.0
        waits = any(getattr(reward, "cost", "host") == "remote" for reward in self._rewards.values())
        return (s.retries + 1 + waits) * s.timeout_seconds + s.backoff_seconds * (2.0**s.retries - 1)

    def go_on(self) -> None:
        """For a run that was judged before it was continued: a server that is away when it is first asked is waited for."""
        self._answered.update(self._rewards)

    def blind(self, weights: Mapping[str, float]) -> list[str]:
        """The rewards that are trained by, where none of them has looked at prompts or what comes with them so far; else [].

        `weights` are those of components, as `learning.reward_weights`: what has weight 0 is not trained by.
        """
        trained = [name for name, found in self._components.items() if any(weights.get(c, 1) != 0 for c in found)]
        return [] if any(self._noted.get(name) for name in trained) else trained

    def start(self, batch: RewardBatch) -> Callable[[], Columns]:
        """Begins to judge B episodes in the background; the result is a function that waits for {component: float32 [B]}.

        NaN stands where an episode was not judged after all retries, `ABSTAINED` where a reward abstains.  Rewards that
        compute on the devices run when the result is waited for.  RewardError where a reward gave nothing at all, broke the
        protocol, or two rewards name a component alike.
        """
        waits = {name: self._begin(name, reward, batch) for name, reward in self._rewards.items()}

        def finish() -> Columns:
            columns: Columns = {}
            for name, wait in waits.items():
                found = wait()
                twice = sorted(set(found) & set(columns))
                if twice:
                    raise RewardError(f"the reward function {name} returned {twice[0]!r}, as another one does; rename it")
                columns |= found
                self._components.setdefault(name, set()).update(found)
            return columns

        return finish

    def check(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
        """ConfigError where a reward says that it cannot judge images of these prompts."""
        for reward in self._rewards.values():
            if isinstance(reward, CheckingReward):
                reward.check(prompts, metadata)

    def check_drawn(self, prompt: str, metadata: Mapping[str, Any], rollout: RolloutConfig, rate: float = 0.0) -> None:
        """ConfigError where a reward judges images, and clips are drawn, or the other way round, or hears what has no sound.

        Most do not say which they judge, as a function of one's own: where clips are drawn such a one is asked once, about a
        black clip for this prompt, and whatever else comes of that is not looked at.  `rate` is that of the clips' sound, 0
        where they have none.
        """
        clips = rollout.frames > 1
        for name, reward in self._rewards.items():
            kind, own = name.partition(":")[0], alone(name)
            require(not clips or kind not in OF_IMAGES, f"rewards: {name} judges images, but clips of {rollout.frames} "
                    f"frames are drawn; use frames:mean:{name}, which has it judge each frame.")  # fmt: skip
            require(clips or kind != "frames", f"rewards: {name} judges clips, but rollout.frames = 1 draws images; use "
                                               f"{own}.")  # fmt: skip
            require(clips or kind not in OF_SOUND, f"rewards: {name} hears the sound of clips, but rollout.frames = 1 draws "
                                                   "images; leave it out.")  # fmt: skip
            if clips and own.partition(":")[0] not in (*OF_IMAGES, *OF_BOTH):
                self._try(name, reward, prompt, metadata, rollout, rate)

    def _try(
        self, name: str, reward: RewardFunction, prompt: str, metadata: Mapping[str, Any], rollout: RolloutConfig,
        rate: float,
    ) -> None:  # fmt: skip
        """ConfigError where a reward asks for images of a black clip, or for the sound of one that has none."""
        black = np.zeros((1, rollout.frames, rollout.image_height, rollout.image_width, 3), np.uint8)
        silence = np.zeros((1, round(rollout.frames / rollout.frames_per_second * rate), 2), np.float32) if rate else None
        batch = RewardBatch(prompts=[prompt], metadata=[metadata], thinking=[""], videos=black, audio=silence, rate=rate,
                            fps=rollout.frames_per_second, group=np.zeros(1, int))  # fmt: skip
        try:
            self._limited(name, reward, batch)
        except NotDrawn as error:
            by_frames = f"use frames:mean:{name}, which has it judge each frame"
            words = "leave it out" if isinstance(error, NoSound) else by_frames
            raise ConfigError(f"rewards: {name} {error}; {words}.") from None
        except WrongMedium as error:
            raise ConfigError(f"rewards: {error}.") from None
        except BaseException as error:  # its own, of a clip that nobody drew
            if isinstance(error, KeyboardInterrupt):
                raise

    def __call__(self, batch: RewardBatch) -> Columns:
        """Judges B episodes."""
        return self.start(batch)()

    def hold_to_share(self, judged: np.ndarray, what: str, who: str = "") -> None:
        """RewardError where more than `max_dropped` of `judged`, bool [N], is False, or all of it.

        `what` names the N, `who` is to blame; the rewards, unless told.  What no reward applies to was not lost by one.
        """
        lost, most = int((~judged).sum()), self.settings.max_dropped
        if lost > most * len(judged) or lost == len(judged):
            hint = "" if who else "; where a reward does not apply, it returns ABSTAIN of unigrpo_jax.rewards.protocol"
            who = who or f"the reward function {', '.join(self._rewards)}"
            raise RewardError(
                f"{who} gave no finite number for {lost} of {len(judged)} {what}, "
                f"more than judging.max_dropped = {most:g} allows{hint}"
            )

    def _begin(self, name: str, reward: RewardFunction, batch: RewardBatch) -> Callable[[], Columns]:
        judge = lambda: self._judge(name, reward, batch)
        if _on_device(reward):
            return judge
        outcome: queue.Queue = queue.Queue()

        def work():
            try:
                outcome.put((judge(), None))
            except BaseException as error:  # handed to who waits
                outcome.put((None, error))

        threading.Thread(target=work, name=f"reward {name}", daemon=True).start()

        def wait() -> Columns:
            left = math.inf
            while True:
                try:
                    columns, error = outcome.get(timeout=0.2)  # a signal that another thread took is heard between two waits
                    break
                except queue.Empty:
                    signal = self.told()
                    left = min(left, time.monotonic() + LEFT_AFTER) if signal else math.inf
                if time.monotonic() >= left:
                    raise Left(f"{signal} came while the reward function {name} was judging")
            if error is not None:
                raise error
            return columns

        return wait

    def _judge(self, name: str, reward: RewardFunction, batch: RewardBatch) -> Columns:
        """One reward's numbers, from memory where they are known."""
        identity = getattr(reward, "identity", "") if self.settings.remembered else ""
        size = len(batch.prompts)
        keys = [_key(name, identity, batch, row) for row in range(size)] if identity else list(range(size))
        known = {key: self._remembered[key] for key in keys if key in self._remembered}
        unknown: dict = {}
        for row, key in enumerate(keys):
            if key not in known:
                unknown.setdefault(key, row)
        if unknown:
            found = self._insist(name, reward, batch.take(list(unknown.values())), alone=bool(identity))
            for place, key in enumerate(unknown):
                known[key] = {component: float(values[place]) for component, values in found.items()}
        if identity:
            for key in keys:
                if not any(np.isnan(list(known[key].values()))):
                    self._remembered[key] = known[key]
                    self._remembered.move_to_end(key)
            while len(self._remembered) > self.settings.remembered:
                self._remembered.popitem(last=False)
        components = list(known[keys[0]]) if size else []
        return {c: np.array([known[key].get(c, np.nan) for key in keys], np.float32) for c in components}

    def _insist(self, name: str, reward: RewardFunction, batch: RewardBatch, alone: bool) -> Columns:
        """Asks again, after growing pauses, for what was not judged.

        A reward may compare the episodes of a group, so that a group is judged again as a whole, and its numbers are taken
        anew unless more of them failed.  `alone`: the reward has an identity, by which an episode's number depends on that
        episode alone; then single episodes are.
        """
        columns: Columns = {}
        every = np.arange(len(batch.prompts))
        group = every if alone or batch.group is None else np.unique(batch.group, return_inverse=True)[1]
        failures = np.full(len(every), len(every))  # by group
        rows, failure, until = every, None, time.monotonic() + self.settings.timeout_seconds
        for attempt in range(self.settings.retries + 1):
            if attempt:
                time.sleep(self.settings.backoff_seconds * 2 ** (attempt - 1))
            try:
                found = hold_to_protocol(self._reached(name, reward, batch.take(rows), until), name, len(rows))
            except RewardError:
                raise
            except NotDrawn as error:
                raise WrongMedium(f"the reward function {name} {error}{_instead(name, batch, error)}") from None
            except BaseException as error:  # a user's function may raise anything, and in its own thread no signal arrives
                if _on_device(reward) and not isinstance(error, Exception):
                    raise
                failure = error
                continue
            failed = np.any([np.isnan(values) for values in found.values()], axis=0)
            if not failed.all():
                self._answered.add(name)
            count = np.bincount(group[rows], weights=failed, minlength=len(every))
            better = (count <= failures)[group[rows]]
            failures[group[rows[better]]] = count[group[rows[better]]]
            for component, values in found.items():
                column = columns.setdefault(component, np.full(len(every), np.nan, np.float32))
                column[rows[better]] = values[better]
            lost = np.any([np.isnan(column) for column in columns.values()], axis=0)
            rows = np.flatnonzero(np.isin(group, group[lost]))
            if not len(rows):
                break
        if not columns:
            words, again = said(failure), f", after {self.settings.retries} retries" if self.settings.retries else ""
            if not isinstance(failure, _TooLong):
                words = f"raised {type(failure).__name__}{f': {words}' if words else ''}"
            raise RewardError(f"the reward function {name} {words}{again}") from failure
        return columns

    def _reached(self, name: str, reward: RewardFunction, batch: RewardBatch, until: float):
        """As `_limited`; a server that has judged before and is away is asked again until that time of `time.monotonic`.

        RewardError at once where it has not; `Away` where it does not come back.
        """
        told = False
        while True:
            try:
                return self._limited(name, reward, batch)
            except Away as error:
                limit = f"{self.settings.timeout_seconds:g} s (judging.timeout_seconds)"
                if name not in self._answered:
                    raise RewardError(said(error)) from None
                if time.monotonic() >= until:
                    raise Away(f"{said(error)}, and was waited for {limit}") from None
                if not told:
                    logging.getLogger(__name__).warning("%s; it is waited for, %s at most.", said(error), limit)
                told = True
                time.sleep(PAUSE)

    def _limited(self, name: str, reward: RewardFunction, batch: RewardBatch):
        """The reward's result; _TooLong after the time limit, when its thread is left behind.

        What computes on the devices has no limit of its own: it cannot be left behind while other programs run.
        """
        batch = noting(batch, self._noted.setdefault(name, set()))
        if _on_device(reward):
            return reward(batch)
        outcome: queue.Queue = queue.Queue()

        def work():
            try:
                outcome.put((reward(batch), None))
            except BaseException as error:  # handed to who waits
                outcome.put((None, error))

        threading.Thread(target=work, name=f"reward {name}, one call", daemon=True).start()
        limit = self.settings.timeout_seconds
        try:
            result, error = outcome.get(timeout=limit)
        except queue.Empty:
            raise _TooLong(f"took longer than judging.timeout_seconds = {limit:g}") from None
        if error is not None:
            raise error
        return result


def _key(name: str, identity: str, batch: RewardBatch, row: int) -> bytes:
    """A hash of everything that a reward may look at."""
    words = [name, identity, batch.prompts[row], batch.thinking[row], list(batch.size), sorted(batch.media), batch.fps,
             batch.rate]  # fmt: skip
    words.append(json.dumps(batch.metadata[row], sort_keys=True, default=str))
    digest = hashlib.sha256(json.dumps(words).encode())
    for pixels in (*(batch.media[medium] for medium in sorted(batch.media)), batch.before):
        if pixels is not None:
            digest.update(np.ascontiguousarray(pixels[row]).tobytes())
    return digest.digest()


def _instead(name: str, batch: RewardBatch, error: NotDrawn) -> str:
    """What a reward of images may be called instead where clips are drawn."""
    may = "video" in batch.media and not isinstance(error, NoSound)
    return f"; frames:mean:{name} has it judge each frame" if may else ""
