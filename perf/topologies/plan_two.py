"""Plan two: the whole model behind TensorFlow Serving, N times for N heads; the caller tokenises and maps ids to labels."""

import asyncio
import contextlib
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from clients import AsyncHeadClient, Prediction
from clients.wire.text import TextEncoder
from clients.wire.tfs import serving_pb2 as pb
from embedding_service.backend import TrunkSpec
from embedding_service.models.prepare import find_source
from perf.systems import free_port
from perf.topologies.plan import Given, HeadWeights, Labels, Plan, RunningPlan
from perf.topologies.starting import ANSWER_SECONDS, told_in_one_line, until_answered
from perf.topologies.whole_models import DIFFERENCE_FILE, IntArray, padded, whole_models
from trunkline.processes import Child

NAME: Final = "plan-two"
REAL: Final = "tensorflow_model_server"
EMBEDDED: Final = "the embedded head server"
OUTPUT: Final = "scores"
MOST_CALLS: Final = 512
"""Under way at once, of one caller: the embedded server refuses what goes far beyond."""

_START_SECONDS: Final = 600.0
_STOP_SECONDS: Final = 8.0
_OURS_ALONE: Final = ("TF_CPP_MIN_LOG_LEVEL", "TF_ENABLE_ONEDNN_OPTS", "CUDA_VISIBLE_DEVICES")
"""What our own modules set for TensorFlow in the process they are imported by; a server of whole models does not inherit it."""


@dataclass(frozen=True, slots=True)
class Server:
    """How a head server is started; *ready* matches the line that says it serves, its group, where it has one, the address."""

    title: str
    command: list[str]
    env: Mapping[str, str]
    ready: re.Pattern[str]
    address: str = ""


def real_server(binary: str, config: Path, environ: Mapping[str, str]) -> Server:
    """TensorFlow Serving as it is by default: all cores for an operation, and for operations side by side."""
    port = free_port()
    command = [binary, f"--port={port}", f"--model_config_file={config}"]
    # Its ready line is information, and said only where that is not silenced.
    env = {**_without_ours(environ), "TF_CPP_MIN_LOG_LEVEL": "0"}
    return Server(REAL, command, env, re.compile(r"Running gRPC ModelServer at"), f"127.0.0.1:{port}")


def embedded_server(config: Path, environ: Mapping[str, str]) -> Server:
    """Ours, with the threads and the oneDNN kernels that TensorFlow Serving has by default: whole models are no small heads."""
    command = [sys.executable, "-m", "head_service.serving", "--port=0", "--rest_api_port=0", f"--model_config_file={config}"]
    command += ["--allow_foreign_models=true", "--enable_serialization_as_tensor_content=true"]
    command += [f"--tensorflow_session_parallelism={os.cpu_count() or 1}"]
    env = {**_without_ours(environ), "TF_ENABLE_ONEDNN_OPTS": "1", "PYTHONUNBUFFERED": "1"}
    return Server(EMBEDDED, command, env, re.compile(r"^serving grpc=(\S+) rest="))


def write_config(path: Path, place: Path, heads: Sequence[HeadWeights]) -> None:
    """The `ModelServerConfig` that names the whole models of *heads*, which lie in *place*."""
    config = pb.ModelServerConfig()
    for head in heads:
        config.model_config_list.config.add(name=head.name, base_path=str(place / head.name), model_platform="tensorflow")
    path.write_text(str(config))


class WholeModelCaller:
    """A caller of plan two: texts to token ids, one call a head, ids to labels."""

    def __init__(self, client: AsyncHeadClient, encoder: TextEncoder, heads: Sequence[HeadWeights]) -> None:
        self._client = client
        self._encoder = encoder
        self._heads = heads
        self._calls = asyncio.Semaphore(MOST_CALLS)

    async def classify(self, texts: Sequence[str]) -> list[Labels]:
        """See `Classify`.

        Raises:
            TrunklineError: a head does not answer.
        """
        token_ids, padding_mask = padded(encoded.ids for encoded in self._encoder.encode(texts))
        inputs = {"token_ids": token_ids, "padding_mask": padding_mask}
        predictions = await asyncio.gather(*(self._predict(head.name, inputs) for head in self._heads))
        return labels_of(self._heads, predictions, len(texts))

    async def _predict(self, name: str, inputs: Mapping[str, IntArray]) -> Prediction:
        async with self._calls:
            return await self._client.predict(name, inputs, output_filter=(OUTPUT,), timeout=ANSWER_SECONDS)


def labels_of(heads: Sequence[HeadWeights], predictions: Sequence[Prediction], num_texts: int) -> list[Labels]:
    """The likeliest label of each text by head."""
    places = [prediction.outputs[OUTPUT].argmax(axis=1) for prediction in predictions]
    return [
        {head.name: head.labels[int(place[row])] for head, place in zip(heads, places, strict=True)} for row in range(num_texts)
    ]


@contextlib.asynccontextmanager
async def start(given: Given) -> AsyncIterator[RunningPlan]:
    """See `Plan`."""
    heads = given.heads.first(given.num_heads)
    with told_in_one_line():
        spec, place = await asyncio.to_thread(_prepared, given)
    with tempfile.TemporaryDirectory() as scratch:
        config = Path(scratch) / "models.config"
        write_config(config, place, heads)
        binary = shutil.which(REAL)
        server = real_server(binary, config, os.environ) if binary else embedded_server(config, os.environ)
        child = Child(NAME, server.command, ready=server.ready, log=given.log_dir / f"{NAME}.log", env=server.env)
        begun = time.perf_counter()
        try:
            with told_in_one_line():
                match = await child.start(_START_SECONDS)
            address = server.address or match[1]
            async with AsyncHeadClient(address) as client:
                encoder = TextEncoder(spec.tokenizer_json, max_tokens=spec.max_tokens, prompt=spec.prompt)
                caller = WholeModelCaller(client, encoder, heads)
                await until_answered(caller.classify, _START_SECONDS)
                yield RunningPlan(
                    NAME,
                    given.num_heads,
                    {"heads": child.pid},
                    time.perf_counter() - begun,
                    caller.classify,
                    notes=_notes(server, place),
                    addresses={"heads": address},
                )
        finally:
            await child.stop(_STOP_SECONDS)


def _prepared(given: Given) -> tuple[TrunkSpec, Path]:
    source = find_source(str(given.trunk), cache_dir=given.cache_dir, engine="onnx-fp32", layers=(-1,), progress=given.say)
    return source.spec, whole_models(given, source.spec)


def _notes(server: Server, place: Path) -> tuple[str, ...]:
    difference = (place / DIFFERENCE_FILE).read_text()
    return (
        f"served by {server.title}",
        f"numbers of the exported encoder's vectors differ from float32 ONNX by at most {difference}",
    )


def _without_ours(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name not in _OURS_ALONE}


PLAN: Final = Plan(NAME, "plan two, TF-Serving alone", start, least_agreement=0.99)
