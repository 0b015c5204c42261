"""From what a caller sent to token ids: a head's own steps, then the path of clients.wire.text; nothing to read is refused.

Heads may want texts to be read in several ways; what comes out the same is one input of the trunk.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple, TypeVar

from clients import Deadline, DeadlineExceeded, InvalidRequest, ServerFault, TrunklineError
from clients.wire.catalogue import Manifest
from clients.wire.chain import StepFailedError, chain_of
from clients.wire.text import Encoded, TextEncoder
from gateway.classification import TextFacts, Truncation

T = TypeVar("T")

NEVER: Final = Deadline.after(10**9)

INLINE_CHARACTERS: Final = 20_000
"""Up to here tokenising takes about a millisecond and stays on the loop."""

MAX_CHARACTERS: Final = 1_000_000


MAX_WINDOWS: Final = 2_048
"""Of one request beyond one a text: each is a forward pass over all that the trunk reads, and permits are counted by text."""


class Reading(NamedTuple):
    """How a head wants texts to be read: after *steps*, a long one in *windows*, whose outputs it aggregates, or cut."""

    steps: tuple[str, ...] = ()
    windows: bool = False


PLAIN: Final = Reading()


@dataclass(frozen=True, slots=True)
class Prepared:
    """*inputs* are distinct; *places*[reading][text] are those of its pieces among them: one, or one a window.

    *texts* tell of each text what the reading saw that saw most of it. *failed* are the readings that could not be had, and why;
    they have no places.
    """

    inputs: list[Encoded]
    places: dict[Reading, list[tuple[int, ...]]]
    texts: list[TextFacts]
    failed: dict[Reading, TrunklineError] = field(default_factory=dict)


def reading_of(manifest: Manifest) -> Reading:
    """How *manifest*'s head wants texts to be read."""
    return Reading(manifest.preprocess, manifest.long_text != "cut")


async def prepare(
    encoder: TextEncoder,
    texts: Sequence[str],
    readings: Sequence[Reading],
    truncation: Truncation = "right",
    *,
    deadline: Deadline = NEVER,
) -> Prepared:
    """Prepare and tokenise *texts* in the ways of *readings*; equal inputs become one.

    Raises:
        InvalidRequest: a text is empty, or too long to look at; the message says which by its index.
        DeadlineExceeded: *deadline* passed before it was done.
        ServerFault: a step of the trunk's own chain failed.
    """
    for index, text in enumerate(texts):
        if len(text) > MAX_CHARACTERS:
            raise InvalidRequest(f"text {index} is longer than {MAX_CHARACTERS} characters")
    is_quick = encoder.is_quick and sum(map(len, texts)) <= INLINE_CHARACTERS
    for reading in readings:
        is_quick = is_quick and (not reading.steps or chain_of(reading.steps).is_quick)
    try:
        if is_quick:
            return _prepare(encoder, texts, readings or (PLAIN,), truncation)
        return await on_a_thread(partial(_prepare, encoder, texts, readings or (PLAIN,), truncation), deadline)
    except StepFailedError as error:
        raise ServerFault(str(error)) from None


async def on_a_thread(work: Callable[[], T], deadline: Deadline) -> T:
    """What *work* with long texts gives. It is not begun where *deadline* passes while it waits for a thread.

    Raises:
        DeadlineExceeded: *deadline* passed before it was done.
    """
    try:
        async with asyncio.timeout(max(0.0, deadline.remaining())):
            return await asyncio.to_thread(work)
    except TimeoutError:
        raise DeadlineExceeded("the deadline passed while the texts were prepared") from None


def _prepare(encoder: TextEncoder, texts: Sequence[str], readings: Sequence[Reading], truncation: Truncation) -> Prepared:
    stepped: dict[tuple[str, ...], Sequence[str] | TrunklineError] = {(): texts}
    read: dict[Reading, list[list[Encoded]]] = {}
    failed: dict[Reading, TrunklineError] = {}
    for reading in readings:
        if reading.steps not in stepped:
            stepped[reading.steps] = _after(reading.steps, texts)
        ready = stepped[reading.steps]
        found = ready if isinstance(ready, TrunklineError) else _read(encoder, texts, ready, reading, truncation)
        if isinstance(found, TrunklineError):
            failed[reading] = found
        else:
            read[reading] = found
    facts = _facts(len(texts), list(read.values()))
    if truncation == "error":
        for index, fact in enumerate(facts):
            if fact.truncated:
                raise InvalidRequest(f"text {index} is longer than the {encoder.max_tokens} tokens that the trunk reads")
    inputs, places = _distinct(read)
    return Prepared(inputs, places, facts, failed)


def _after(steps: tuple[str, ...], texts: Sequence[str]) -> Sequence[str] | TrunklineError:
    try:
        return list(map(chain_of(steps), texts))
    except StepFailedError as error:
        return ServerFault(str(error))


def _read(
    encoder: TextEncoder, given: Sequence[str], ready: Sequence[str], reading: Reading, truncation: Truncation
) -> list[list[Encoded]] | TrunklineError:
    """The pieces of each of the texts that are *ready*; an error where only the reading makes them nothing, or too many."""
    encoded = _encode(encoder, ready, reading, truncation)
    num_windows = sum(map(len, encoded))
    if num_windows - len(encoded) > MAX_WINDOWS:
        said = f"{len(encoded)} texts in {num_windows} windows are too much for one request; send fewer or shorter ones at once"
        if truncation == "window":
            raise InvalidRequest(said)
        return InvalidRequest(said)
    left: TrunklineError | None = None
    for index, pieces in enumerate(encoded):
        if not encoder.is_nothing(pieces[0]):
            continue
        if not reading.steps or encoder.is_nothing(encoder.encode([given[index]])[0]):
            raise InvalidRequest(f"text {index} is empty, or nothing but white space and control characters")
        left = left or InvalidRequest(f"text {index} has nothing in it for this head after {', '.join(reading.steps)}")
    return left or encoded


def _encode(encoder: TextEncoder, texts: Sequence[str], reading: Reading, truncation: Truncation) -> list[list[Encoded]]:
    """The pieces of each text."""
    if reading.windows or truncation == "window":
        return [encoder.encode_windows(text) for text in texts]
    return [[one] for one in encoder.encode(texts, side="left" if truncation == "left" else "right")]


def _facts(num_texts: int, read: Sequence[list[list[Encoded]]]) -> list[TextFacts]:
    if len(read) == 1:
        return [TextFacts(_num_tokens(pieces), pieces[0].truncated) for pieces in read[0]]
    everything = [[encoded[index] for encoded in read] for index in range(num_texts)]
    return [TextFacts(max(map(_num_tokens, ways), default=0), any(pieces[0].truncated for pieces in ways)) for ways in everything]


def _num_tokens(pieces: Sequence[Encoded]) -> int:
    return sum(len(piece.ids) for piece in pieces)


def _distinct(read: dict[Reading, list[list[Encoded]]]) -> tuple[list[Encoded], dict[Reading, list[tuple[int, ...]]]]:
    if len(read) == 1:
        ((reading, encoded),) = read.items()
        if len(encoded) == 1 and len(encoded[0]) == 1:
            return encoded[0], {reading: [(0,)]}
    inputs: list[Encoded] = []
    known: dict[tuple[int, ...], int] = {}
    places: dict[Reading, list[tuple[int, ...]]] = {}
    for reading, encoded in read.items():
        places[reading] = []
        for pieces in encoded:
            at = []
            for piece in pieces:
                ids = tuple(piece.ids)
                if ids not in known:
                    known[ids] = len(inputs)
                    inputs.append(piece)
                at.append(known[ids])
            places[reading].append(tuple(at))
    return inputs, places
