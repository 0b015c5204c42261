"""A resource table behind the same calls as a trunk: keys, or texts as the mean of their words, in; vectors out."""

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np

from clients.wire.logs import AtMostEvery, describe
from embedding_service.backend import BackendError, FloatArray, View
from embedding_service.backend.pooling import finish
from embedding_service.backend.tables import Table
from embedding_service.errors import DeadlineExceeded, InvalidInput, Overloaded, Unavailable
from embedding_service.tokenization import Input, InputFacts, InputLimits, TableKey, ViewChoice, check_text

_log = logging.getLogger(__name__)
_log.addFilter(AtMostEvery(1.0))

MAX_WAITING_INPUTS: Final = 16_384
"""Inputs of all calls under way: several seconds of look-ups, and what they may hold in memory."""


class HostedTable:
    """A table and the one thread that reads it: it lies on disk, and the event loop must not wait for that."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.spec = table.spec
        self._num_waiting = 0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"table-{table.spec.name}")

    async def look_up(
        self, inputs: Sequence[Input], views: Sequence[View], limits: InputLimits, deadline: float
    ) -> tuple[list[list[FloatArray]], list[InputFacts]]:
        """For each input a vector a view, and its facts; *deadline* is of `time.monotonic`.

        Raises:
            InvalidInput: an input is neither a key nor a text with something in it.
            Overloaded: too much waits already.
            DeadlineExceeded, Unavailable: see `batching.Batcher.run`.
        """
        for index, value in enumerate(inputs):
            self._check(index, value, limits)
        if deadline <= time.monotonic():
            raise DeadlineExceeded("the deadline had passed on arrival")
        if self._num_waiting and self._num_waiting + len(inputs) > MAX_WAITING_INPUTS:
            raise Overloaded("too many look-ups wait for this table", retry_after=0.5)
        self._num_waiting += len(inputs)
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await asyncio.get_running_loop().run_in_executor(self._pool, self._read, inputs, views)
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the vectors were ready") from None
        except BackendError as error:
            _log.error("the table %s could not be read: %s", self.spec.name, ", ".join(describe(error)))
            raise Unavailable("the table could not be read") from None
        finally:
            self._num_waiting -= len(inputs)

    def resolve(self, choice: ViewChoice) -> View:
        """*choice* as far as a table knows views: scaling and cutting.

        Raises:
            InvalidInput: it asks for more.
        """
        if choice.pooling not in {None, "mean"} or choice.layer is not None:
            raise InvalidInput(f"{self.spec.name!r} is a table: it has no layers and no other pooling than the mean of words")
        if choice.dims > self.spec.width:
            raise InvalidInput(f"{choice.dims} dims are more than the {self.spec.width} of this table")
        return View("mean", -1, bool(choice.normalize), choice.dims)

    def close(self) -> None:
        """Give back the thread and the files. Nothing may be under way."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.table.close()

    def _check(self, index: int, value: Input, limits: InputLimits) -> None:
        if isinstance(value, TableKey):
            check_text(f"the key of input {index}", value.key, limits)
        elif isinstance(value, str):
            check_text(f"input {index}", value, limits)
        else:
            raise InvalidInput(f"input {index} is neither a text nor a key; {self.spec.name!r} is a table and has no token ids")

    def _read(self, inputs: Sequence[Input], views: Sequence[View]) -> tuple[list[list[FloatArray]], list[InputFacts]]:
        keys = [value.key for value in inputs if isinstance(value, TableKey)]
        texts = [value for value in inputs if isinstance(value, str)]
        found = self.table.find(keys)
        absent = set(found.missing)
        of_keys = iter(
            (vector, InputFacts(num_tokens=1, missing=(key,) if place in absent else ()))
            for place, (key, vector) in enumerate(zip(keys, found.vectors, strict=True))
        )
        of_texts = iter(
            (text.vector, InputFacts(num_tokens=text.num_words, missing=tuple(dict.fromkeys(text.missing))))
            for text in self.table.embed_texts(texts)
        )
        pairs = [next(of_keys if isinstance(value, TableKey) else of_texts) for value in inputs]
        # A table's numbers may be of any size: float64 holds the squares of any float32.
        wide = [vector[None].astype(np.float64) for vector, _ in pairs]
        return [[finish(vector, view)[0] for view in views] for vector in wide], [facts for _, facts in pairs]
