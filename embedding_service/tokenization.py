"""From what a caller sent to token ids a trunk can take, or a sentence why it cannot. Pure; long texts go to a thread."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, TypeVar

from clients.wire.chain import StepFailedError
from clients.wire.text import Encoded, TextEncoder, TextPair
from embedding_service.backend import Pooling, TrunkSpec
from embedding_service.errors import DeadlineExceeded, InvalidInput, Overloaded
from embedding_service.priority import give_way

Result = TypeVar("Result")

Truncation = Literal["right", "left", "error", "window"]

INLINE_CHARACTERS: Final = 20_000
"""Up to here tokenising takes about a millisecond and stays on the loop; a thread hand-off would cost more than it frees."""

THREADS: Final = 2
"""That long texts are read on, of each trunk."""

MAX_WAITING_CHARACTERS: Final = 16_000_000
"""Of long texts that are read or wait for it, but for a single request's: some seconds' work."""


@dataclass(frozen=True, slots=True)
class TableKey:
    """A key of a table, to be found exactly as it is."""

    key: str


@dataclass(frozen=True, slots=True)
class TokenIds:
    """Token ids with their special tokens; *pair_at* is where the second text of a pair begins, 0 for a single text."""

    ids: Sequence[int]
    pair_at: int = 0


Input = str | TextPair | TokenIds | TableKey | Sequence[int]


@dataclass(frozen=True, slots=True)
class ViewChoice:
    """A view as asked for: what is None is the trunk's own habit."""

    pooling: Pooling | None = None
    layer: int | None = None
    normalize: bool | None = None
    dims: int = 0


@dataclass(frozen=True, slots=True)
class InputFacts:
    """What became of one input: *num_tokens* went through the trunk in *num_windows* rows.

    Of a table: *num_tokens* are words, *missing* the keys or words it does not have.
    """

    num_tokens: int
    truncated: bool = False
    num_windows: int = 1
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class InputLimits:
    """*max_request_inputs* is the most inputs, and windows of them, one call may carry; *max_characters* the most of one text."""

    max_request_inputs: int = 1_024
    max_characters: int = 1_000_000


@dataclass(frozen=True, slots=True)
class TokenizedInput:
    """One input as the trunk will see it: *windows* is one row, or more for a long text under the policy "window"."""

    windows: tuple[Encoded, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens that go through the trunk, special ones and overlaps included."""
        return sum(len(window.ids) for window in self.windows)

    @property
    def truncated(self) -> bool:
        """Whether some of the input goes through no forward pass."""
        return any(window.truncated for window in self.windows)


class InputTokenizer:
    """Checks and tokenises inputs for one trunk. *encoder* is the trunk's."""

    def __init__(self, spec: TrunkSpec, encoder: TextEncoder) -> None:
        self._spec = spec
        self._encoder = encoder
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix=f"tokens-{spec.name}", initializer=give_way)
        self._num_waiting = 0
        """Characters that wait for one of the threads, or are read there."""

    async def tokenize(
        self,
        inputs: Sequence[Input],
        truncation: Truncation,
        limits: InputLimits,
        prompt_name: str = "",
        *,
        deadline: float = math.inf,
    ) -> list[TokenizedInput]:
        """Each of *inputs* as token ids, the prompt of that name before its text ("": the trunk's own).

        Long ones are read on threads, and not begun once *deadline*, of `time.monotonic`, has passed.

        Raises:
            InvalidInput: one of them can never be served as it is.
            Overloaded: too many long ones wait.
            DeadlineExceeded: *deadline* passed before they were read.
        """
        prompt = self._prompt(prompt_name) if prompt_name else None
        try:
            num_characters = sum(map(_num_characters, inputs))
            if self._encoder.is_quick and num_characters <= INLINE_CHARACTERS:
                return self._tokenize(inputs, truncation, limits, prompt)
            work = partial(self._tokenize, inputs, truncation, limits, prompt)
            return await self.on_a_thread(work, num_characters, deadline)
        except StepFailedError as error:
            raise InvalidInput(str(error)) from None

    async def on_a_thread(self, work: Callable[[], Result], num_characters: int, deadline: float) -> Result:
        """What *work* makes of texts of *num_characters*, done where long ones are read and not begun after *deadline*.

        Raises:
            Overloaded: too many long texts wait.
            DeadlineExceeded: *deadline*, of `time.monotonic`, passed before it was done.
        """
        if self._num_waiting and self._num_waiting + num_characters > MAX_WAITING_CHARACTERS:
            raise Overloaded("too many long texts wait to be read", retry_after=1.0)
        self._num_waiting += num_characters
        try:
            async with asyncio.timeout(None if deadline == math.inf else max(0.0, deadline - time.monotonic())):
                return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed while the texts were read") from None
        finally:
            self._num_waiting -= num_characters

    def _prompt(self, name: str) -> str:
        prompt = self._spec.prompts.get(name)
        if prompt is None:
            known = ", ".join(sorted(self._spec.prompts)) or "none to choose from"
            raise InvalidInput(f"trunk {self._spec.name!r} has no prompt of that name; it has: {known}")
        return prompt

    def _tokenize(
        self, inputs: Sequence[Input], truncation: Truncation, limits: InputLimits, prompt: str | None
    ) -> list[TokenizedInput]:
        texts = {index: value for index, value in enumerate(inputs) if isinstance(value, str)}
        for index, text in texts.items():
            check_text(f"input {index}", text, limits)
        encoded = dict(zip(texts, self._encode(list(texts.values()), truncation, prompt), strict=True))
        for index, item in encoded.items():
            if self._encoder.is_nothing(item.windows[0], prompt=prompt):
                raise InvalidInput(f"input {index} is empty once white space and control characters are gone")
        found = [
            encoded[index] if isinstance(value, str) else TokenizedInput((self._other(index, value, truncation, limits, prompt),))
            for index, value in enumerate(inputs)
        ]
        self._check(found, truncation, limits)
        return found

    def _encode(self, texts: list[str], truncation: Truncation, prompt: str | None) -> list[TokenizedInput]:
        if truncation == "window":
            return [TokenizedInput(tuple(self._encoder.encode_windows(text, prompt=prompt))) for text in texts]
        side: Literal["left", "right"] = "left" if truncation == "left" else "right"
        if sum(map(len, texts)) <= INLINE_CHARACTERS:
            return [TokenizedInput((item,)) for item in self._encoder.encode(texts, side=side, prompt=prompt)]
        # One by one: what the tokenizer knows of a text before it is cut takes hundreds of times its length.
        return [TokenizedInput(tuple(self._encoder.encode([text], side=side, prompt=prompt))) for text in texts]

    def _other(self, index: int, value: Input, truncation: Truncation, limits: InputLimits, prompt: str | None) -> Encoded:
        if isinstance(value, TableKey):
            raise InvalidInput(f"input {index} is a key; trunk {self._spec.name!r} takes texts or token ids, keys are for tables")
        if not isinstance(value, TextPair):
            given = value if isinstance(value, TokenIds) else TokenIds(value)  # type: ignore[arg-type]
            return self._checked_ids(index, given)
        for name, text in (("first", value.first), ("second", value.second)):
            check_text(f"the {name} text of input {index}", text, limits)
        encoded = self._encoder.encode_pair(value, side="left" if truncation == "left" else "right", prompt=prompt)
        if encoded.lacks_text:
            raise InvalidInput(f"a text of input {index} is empty once white space and control characters are gone")
        return encoded

    def _checked_ids(self, index: int, given: TokenIds) -> Encoded:
        ids, spec = given.ids, self._spec
        if len(ids) < 1:
            raise InvalidInput(f"input {index} has no token ids")
        if len(ids) > spec.max_tokens:
            raise InvalidInput(f"input {index} has {len(ids)} token ids, more than the {spec.max_tokens} of trunk {spec.name!r}")
        if max(ids) >= spec.vocab_size or min(ids) < 0:
            raise InvalidInput(f"input {index} has a token id outside the vocabulary of {spec.vocab_size}")
        if not 0 <= given.pair_at < len(ids):
            raise InvalidInput(f"input {index} has its second text begin outside its {len(ids)} token ids")
        return Encoded(list(ids), truncated=False, pair_at=given.pair_at)

    def _check(self, found: list[TokenizedInput], truncation: Truncation, limits: InputLimits) -> None:
        for index, item in enumerate(found):
            if item.truncated and truncation in {"error", "window"}:
                raise InvalidInput(f"input {index} has more than the {self._spec.max_tokens} tokens of trunk {self._spec.name!r}")
        num_windows = sum(len(item.windows) for item in found)
        if num_windows > limits.max_request_inputs:
            raise InvalidInput(f"these inputs make {num_windows} windows, more than the {limits.max_request_inputs} of one call")


def _num_characters(value: Input) -> int:
    if isinstance(value, str):
        return len(value)
    return len(value.first) + len(value.second) if isinstance(value, TextPair) else 0


def check_text(name: str, text: str, limits: InputLimits) -> None:
    """Refuse *text*, to be called *name*, when it is empty or too long.

    Raises:
        InvalidInput: it is.
    """
    if not text:
        raise InvalidInput(f"{name} is empty")
    if len(text) > limits.max_characters:
        raise InvalidInput(f"{name} is longer than {limits.max_characters} characters")
