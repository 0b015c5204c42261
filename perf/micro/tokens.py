"""`python -m perf.micro.tokens`: texts to token ids by the tokenizers library and by nanotoken (extra `quick-tokens`)."""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from rich.console import Console

from clients.wire.text import TextEncoder
from perf.report import ratios, spread
from perf.settings import wide_console
from perf.trunks import long_trunk
from perf.workloads import WORKLOADS, load_workload
from trunkline import paths

TEXTS_A_CALL = (1, 32)


def seconds_a_text(encoder: TextEncoder, texts: Sequence[str], at_once: int) -> float:
    """To encode all *texts*, *at_once* in a call."""
    began = time.perf_counter()
    for start in range(0, len(texts), at_once):
        encoder.encode(texts[start : start + at_once])
    return (time.perf_counter() - began) / len(texts)


def in_turns(ways: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Microseconds a text by each of *ways*, a number a round; the first round warms up and is left out."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            taken = 1e6 * way()
            if number:
                found[name].append(taken)
    return found


def compare(encoders: Mapping[str, TextEncoder], given: argparse.Namespace, tokenizer_json: bytes, console: Console) -> None:
    """Print what each takes, and the second beside the first."""
    for name in given.workloads:
        workload = load_workload(name, paths.cache_dir(), tokenizer_json)
        for at_once in TEXTS_A_CALL:
            ways = {who: partial(seconds_a_text, encoder, workload.texts, at_once) for who, encoder in encoders.items()}
            found = in_turns(ways, given.rounds)
            told = "; ".join(f"{who} {spread(taken, '{:.1f} us')}" for who, taken in found.items())
            library, quick = found.values()
            console.print(f"{workload}, {at_once} a call: {told}; ratio {spread(ratios(quick, library))}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m perf.micro.tokens", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    given = parser.parse_args()
    tokenizer_json = (long_trunk(paths.cache_dir()) / "tokenizer.json").read_bytes()
    encoders, seconds = {}, {}
    for name, is_quick in (("tokenizers", False), ("nanotoken", True)):
        began = time.perf_counter()
        encoders[name] = TextEncoder(tokenizer_json, max_tokens=512, quick_tokens=is_quick)
        seconds[name] = time.perf_counter() - began
    if reason := encoders["nanotoken"].why_not_quick:
        raise SystemExit(reason)
    console = wide_console()
    console.print(", ".join(f"{name} is ready after {taken:.2f} s" for name, taken in seconds.items()))
    compare(encoders, given, tokenizer_json, console)


if __name__ == "__main__":
    main()
