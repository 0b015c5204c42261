"""`python -m perf.micro.int8_groups`: OpenVINO's int8 by how many activations share a scale, beside its bf16, in turns.

The bare loop on SHORT, and how near the vectors are to float32's by the measure of the quality gate.
"""

import argparse
from contextlib import ExitStack, closing
from typing import Final

from embedding_service.backend import Backend
from embedding_service.backend.load import load_backend
from embedding_service.backend.openvino import OpenVinoBackend
from embedding_service.models.prepare import prepare
from embedding_service.models.quality import compare, vectors_of
from perf.bare_loop import bare_loop
from perf.report import ratios, spread
from perf.settings import wide_console
from perf.systems import token_ids_of
from perf.trunks import long_trunk
from perf.workloads import load_workload
from trunkline import paths

GROUPS: Final = (32, 64, 128, 384)
BATCH_SIZE: Final = 16


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m perf.micro.int8_groups", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each round")
    given = parser.parse_args()
    console, cache_dir = wide_console(), paths.cache_dir()
    trunk = str(long_trunk(cache_dir))
    exact, half = (prepare(trunk, cache_dir=cache_dir, engine=engine) for engine in ("onnx-fp32", "openvino-bf16"))
    int8 = prepare(trunk, cache_dir=cache_dir, engine="openvino-int8")
    with ExitStack() as stack:
        reference = stack.enter_context(closing(load_backend(exact)))
        backends: dict[str, Backend] = {"bf16": stack.enter_context(closing(load_backend(half)))}
        for group in GROUPS:
            made = OpenVinoBackend(int8.spec, int8.engine, int8.graph, "int8", int8_group=group)
            backends[f"int8, {group} a scale"] = stack.enter_context(closing(made))
        token_ids = token_ids_of(reference, load_workload("short", cache_dir, exact.spec.tokenizer_json).texts)
        expected = vectors_of(reference, exact.spec)
        found: dict[str, list[float]] = {name: [] for name in backends}
        for _ in range(given.rounds):
            for name, backend in backends.items():
                found[name].append(bare_loop(backend, token_ids, BATCH_SIZE, given.seconds).throughput)
        for name, backend in backends.items():
            quality = compare(expected, vectors_of(backend, exact.spec))
            console.print(
                f"{name}: {spread(found[name], '{:.0f}')} texts/s, {spread(ratios(found[name], found['bf16']))} of bf16; "
                f"mean cosine {quality.agreement:.5f}, least {quality.least:.4f}, labels {quality.labels:.4f}"
            )


if __name__ == "__main__":
    main()
