"""Plan one with our own engine: N whole models in one web process, each with its tokenizer, its trunk and its head.

`python -m perf.topologies.serve_engine --trunk DIRECTORY --weights FILE --num-heads N --port PORT`. `POST /classify` takes
{"text": "…"} and answers {"labels": {head: label}}; every text goes once through each of the models.
"""

import argparse
import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from clients.wire.text import TextEncoder
from embedding_service.backend import Backend, Batch, View
from embedding_service.backend.load import load_backend
from embedding_service.models.errors import PreparationError
from embedding_service.models.prepare import prepare
from perf.topologies.plan import HeadWeights
from perf.topologies.weights import label_of, read_weights

_VECTOR = View("mean", -1, normalize=True)


class Body(BaseModel):
    """One text."""

    text: str


@dataclass(frozen=True, slots=True, eq=False)
class WholeModel:
    """A classifier as it stands alone: text in, label out."""

    encoder: TextEncoder
    backend: Backend
    head: HeadWeights
    passes: "Passes"

    @classmethod
    def of(cls, backend: Backend, head: HeadWeights, passes: "Passes") -> "WholeModel":
        """With a tokenizer of its own, as every model has."""
        trunk = backend.trunk
        encoder = TextEncoder(trunk.tokenizer_json, max_tokens=trunk.max_tokens, prompt=trunk.prompt)
        return cls(encoder, backend, head, passes)

    def label(self, text: str) -> str:
        """One forward pass."""
        [encoded] = self.encoder.encode([text])
        with self.passes.one() as is_alone:
            [[vector]] = self.backend.embed(Batch((tuple(encoded.ids),), ((_VECTOR,),), is_alone=is_alone))
        return label_of(self.head, vector)


class Passes:
    """Those under way in this process, counted as the embedding service's batcher counts them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_running = 0

    @contextlib.contextmanager
    def one(self) -> Iterator[bool]:
        """Another; whether it is the only one as it begins."""
        with self._lock:
            is_alone = not self._num_running
            self._num_running += 1
        try:
            yield is_alone
        finally:
            with self._lock:
                self._num_running -= 1


def app_of(models: Sequence[WholeModel], pool: ThreadPoolExecutor) -> FastAPI:
    """The application. As many passes run at once as *pool* has threads, be they of one text or of several."""
    app = FastAPI()

    @app.post("/classify")
    async def classify(body: Body) -> dict[str, dict[str, str]]:
        loop = asyncio.get_running_loop()
        labels = await asyncio.gather(*(loop.run_in_executor(pool, model.label, body.text) for model in models))
        return {"labels": {model.head.name: label for model, label in zip(models, labels, strict=True)}}

    return app


def main() -> int:
    """The command line; the exit status."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    parser = argparse.ArgumentParser("python -m perf.topologies.serve_engine", description=__doc__)
    parser.add_argument("--trunk", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--num-heads", type=int, required=True)
    parser.add_argument("--cache-dir", type=Path, required=True)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--port", type=int, default=0)
    asked = parser.parse_args()
    try:
        prepared = prepare(str(asked.trunk), cache_dir=asked.cache_dir, engine=asked.engine)
        print(f"engine {prepared.engine.label}", flush=True)
        heads = read_weights(asked.weights)[: asked.num_heads]
        passes = Passes()
        models = [WholeModel.of(load_backend(prepared), head, passes) for head in heads]
    except PreparationError as error:
        print(error)
        return 1
    with ThreadPoolExecutor(prepared.engine.concurrency) as pool:
        uvicorn.run(app_of(models, pool), host="127.0.0.1", port=asked.port, access_log=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
