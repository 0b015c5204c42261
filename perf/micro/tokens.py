"""`python -m perf.micro.tokens`: texts to token ids by the tokenizers library and by nanotoken (extra `quick-tokens`).

Both with all that we do for a text. Then the library by itself: as it comes, and with its normaliser before it.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from tokenizers import Tokenizer

from clients.wire.library_tokens import Read, ids_of, library_reader
from clients.wire.text import TextEncoder, normalize_text
from perf.report import ratios, spread
from perf.settings import wide_console
from perf.trunks import long_trunk
from perf.workloads import WORKLOADS, load_workload
from trunkline import paths

TEXTS_A_CALL = (1, 32)

Encode = Callable[[Sequence[str]], object]


def seconds_a_text(encode: Encode, texts: Sequence[str], at_once: int) -> float:
    """To *encode* all *texts*, *at_once* in a call."""
    began = time.perf_counter()
    for start in range(0, len(texts), at_once):
        encode(texts[start : start + at_once])
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


def compare(encodes: Mapping[str, Encode], texts: Sequence[str], at_once: int, rounds: int) -> str:
    """What each takes, and the second beside the first."""
    ways = {who: partial(seconds_a_text, encode, texts, at_once) for who, encode in encodes.items()}
    found = in_turns(ways, rounds)
    first, second = found.values()
    told = "; ".join(f"{who} {spread(taken, '{:.1f} us')}" for who, taken in found.items())
    return f"{told}; ratio {spread(ratios(second, first))}"


def reads_of(tokenizer_json: bytes) -> dict[str, Read]:
    """The library as it comes, and with its normaliser before it."""
    tokenizer = Tokenizer.from_str(tokenizer_json.decode())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return {"as it comes": partial(ids_of, tokenizer), "normalised before": library_reader(tokenizer)}


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
    whole, reads = {name: encoder.encode for name, encoder in encoders.items()}, reads_of(tokenizer_json)
    for name in given.workloads:
        workload = load_workload(name, paths.cache_dir(), tokenizer_json)
        normalized = [normalize_text(text) for text in workload.texts]
        for at_once in TEXTS_A_CALL:
            console.print(f"{workload}, {at_once} a call: {compare(whole, workload.texts, at_once, given.rounds)}")
            console.print(f"  the library itself: {compare(reads, normalized, at_once, given.rounds)}")


if __name__ == "__main__":
    main()
