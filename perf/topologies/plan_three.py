"""Plan three: an embedding service, a head server, and a caller who does both hops and turns numbers into labels."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from clients import AsyncEmbeddingClient, AsyncHeadClient, Deadline, Prediction, View
from clients.wire.catalogue import Manifest
from head_service.catalogue import read_catalogue
from perf.topologies.heads import deployed
from perf.topologies.plan import FloatArray, Given, Labels, Plan, RunningPlan
from perf.topologies.starting import ANSWER_SECONDS, told_in_one_line, until_answered, without_caches
from trunkline.stack import Stack, StackSettings

NAME: Final = "plan-three"
_VECTOR: Final = View("mean", -1, normalize=True)


class Embedding(Protocol):
    """Of `clients.AsyncEmbeddingStream` what is used here."""

    async def embed(self, inputs: Sequence[str], deadline: Deadline, /) -> Sequence[Sequence[FloatArray]]:
        """Of each input one vector a view."""
        ...


class Predicting(Protocol):
    """Of `clients.AsyncHeadClient` what is used here."""

    async def predict(
        self, head: str, inputs: Mapping[str, FloatArray], /, *, output_filter: Sequence[str], timeout: float
    ) -> Prediction:
        """One call of one head."""
        ...


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. Calls may run at the same time; they share a stream to the one and a connection to the other server.

    *manifests* are those of the heads asked: where the caller has the labels from.
    """

    stream: Embedding
    heads: Predicting
    manifests: Sequence[Manifest]

    async def classify(self, texts: Sequence[str]) -> list[Labels]:
        """See `plan.Classify`; raises TrunklineError."""
        found = await self.stream.embed(texts, Deadline.after(ANSWER_SECONDS))
        vectors = np.stack([vector for (vector,) in found])
        scores = await asyncio.gather(*(self._scores(manifest, vectors) for manifest in self.manifests))
        return labels_of(self.manifests, scores, len(texts))

    async def _scores(self, manifest: Manifest, vectors: FloatArray) -> FloatArray:
        answer = await self.heads.predict(
            manifest.name, {manifest.input: vectors}, output_filter=(manifest.output,), timeout=ANSWER_SECONDS
        )
        return np.asarray(answer.outputs[manifest.output], np.float32)


def labels_of(manifests: Sequence[Manifest], scores: Sequence[FloatArray], count: int) -> list[Labels]:
    """Of *count* texts, from *scores* a head, float32 [texts, labels]: the likeliest."""
    found: list[dict[str, str]] = [{} for _ in range(count)]
    for manifest, of_head in zip(manifests, scores, strict=True):
        for labels, place in zip(found, of_head.argmax(axis=1), strict=True):
            labels[manifest.name] = manifest.labels[place]
    return list[Labels](found)


def manifests_in(repository: Path, names: Sequence[str]) -> list[Manifest]:
    """The stable versions of *names*."""
    catalogue = read_catalogue(repository)
    return [catalogue.heads[name].versions[catalogue.heads[name].stable] for name in names]


def pids_of(stack: Stack) -> Mapping[str, int]:
    """Of what *stack* runs."""
    return {name: child.pid for name, child in stack.children.items()}


def settings_of(given: Given, repository: Path) -> StackSettings:
    """Of a stack that serves *given*'s trunk, and the heads in *repository*, on any ports."""
    settings = StackSettings(
        repository,
        given.cache_dir,
        given.log_dir,
        model=str(given.trunk),
        engine=given.engine,
        embedding_address=given.embedding_address or "",
    )
    return settings.on_any_ports()


@contextlib.asynccontextmanager
async def start(given: Given) -> AsyncIterator[RunningPlan]:
    """See `Plan`."""
    with told_in_one_line():
        repository = await asyncio.to_thread(deployed, given.heads, given.num_heads, bundled=False, say=given.say)
    manifests = manifests_in(repository, [head.name for head in given.heads.first(given.num_heads)])
    stack = Stack(settings_of(given, repository), given.say)
    try:
        begun = time.perf_counter()
        with told_in_one_line(), without_caches():
            embedding, heads = await _started(stack)
        async with AsyncEmbeddingClient(embedding) as client, AsyncHeadClient(heads) as head_client:
            stream = client.stream(views=(_VECTOR,), trunk_fingerprint=manifests[0].trunk.fingerprint)
            try:
                caller = Caller(stream, head_client, manifests)
                await until_answered(caller.classify)
                seconds = time.perf_counter() - begun
                with told_in_one_line():
                    notes = (f"engine {(await client.trunk()).engine}", head_server_note(stack))
                addresses = {"embedding": embedding, "heads": heads}
                yield RunningPlan(
                    NAME, given.num_heads, pids_of(stack), seconds, caller.classify, notes=notes, addresses=addresses
                )
            finally:
                await stream.close()
    finally:
        await stack.stop()


async def _started(stack: Stack) -> tuple[str, str]:
    """Both servers' gRPC addresses. Neither is left starting when the other cannot."""
    both = await asyncio.gather(stack.start_embedding(), stack.start_heads(), return_exceptions=True)
    for found in both:
        if isinstance(found, BaseException):
            raise found
    (embedding, _), (heads, _) = (found for found in both if not isinstance(found, BaseException))
    return embedding, heads


def head_server_note(stack: Stack) -> str:
    """Which of the two it is."""
    is_real = Path(stack.children["heads"].command[0]).name == "tensorflow_model_server"
    return "heads by TensorFlow Serving" if is_real else "heads by the embedded server"


PLAN: Final = Plan(NAME, "plan three, two hops", start)
