"""The main job on real data, for a newcomer: prepare, train three heads, ask the gateway, measure through it, stop."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import httpx
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clients import AsyncClient, EmbeddingClient
from head_service.catalogue import read_catalogue
from trunkline.bulk import REQUESTS_IN_FLIGHT, TEXTS_A_REQUEST, patiently
from trunkline.demo_data import DemoHead, prepare_demo_data, read_labelled
from trunkline.keys import key_from_environment
from trunkline.processes import StackError
from trunkline.stack import Addresses, Stack
from trunkline.training import LiveStack, train_head

SHOWN_A_HEAD: Final = 2
LIVE_WITHIN_SECONDS: Final = 30.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """*correct* of *total* held-out texts, as the gateway labelled them."""

    correct: int
    total: int
    seconds: float

    @property
    def share(self) -> float:
        """Between 0 and 1."""
        return self.correct / self.total


def ensure_heads(heads: Sequence[DemoHead], live: LiveStack, say: Say) -> None:
    """Train each demo head that this trunk has none of yet."""
    with EmbeddingClient(live.embedding_grpc, api_key=key_from_environment()) as client:
        fingerprint = client.trunk().fingerprint
    known = read_catalogue(live.repository)
    for head in heads:
        entry = known.heads.get(head.name)
        if entry and entry.versions[entry.stable].trunk.fingerprint == fingerprint:
            say(f"head {head.name}: version {entry.stable} is there already")
            continue
        result = train_head(live, head.train_csv, name=head.name, test_file=head.test_csv, say=say)
        if not result.is_live and result.comparison is not None:
            raise StackError(f"head {head.name} did not pass the gate: {result.comparison.reason}")


async def wait_until_live(client: AsyncClient, names: Sequence[str]) -> None:
    """Wait until the gateway lists all of *names*.

    Raises:
        StackError: it does not within `LIVE_WITHIN_SECONDS`.
    """
    missing = set(names)
    try:
        async with asyncio.timeout(LIVE_WITHIN_SECONDS):
            # The gateway learns of heads by polling too, so there is nothing to be woken by.
            while missing := set(names) - {str(head["name"]) for head in await client.heads()}:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise StackError(f"the gateway does not offer the heads {', '.join(sorted(missing))}") from None


async def show_examples(gateway: str, heads: Sequence[DemoHead], console: Console, api_key: str | None = None) -> None:
    """POST a few held-out texts, one request each, and print label and score of each of *heads* with the stage timings."""
    shown = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
    async with httpx.AsyncClient(base_url=gateway, headers=shown, timeout=30.0, trust_env=False) as http:
        for head in heads:
            texts, labels = read_labelled(head.test_csv)
            for text, label in list(zip(texts, labels, strict=True))[:SHOWN_A_HEAD]:
                asked = {"text": text, "heads": [one.name for one in heads]}
                answer = (await http.post("/v1/classify", json=asked)).raise_for_status().json()
                console.print(_example(text, f"{head.name}: {label}", answer))


def _example(text: str, truth: str, answer: dict[str, Any]) -> Table:
    shown = " ".join(text.split())
    shown = shown if len(shown) <= 90 else shown[:87] + "..."
    [result] = answer["results"]
    stages = "  ".join(f"{name.removesuffix('_ms')} {value:.1f} ms" for name, value in answer["timings"].items())
    caption = f"{result['num_tokens']} tokens{', truncated' if result['truncated'] else ''}  |  {stages}"
    title = Text(f"“{shown}”\n(held out, {truth})")
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for column in ("head", "label", "score"):
        table.add_column(column, min_width=12)
    for name, said in result["heads"].items():
        table.add_row(name, *_said(said))
    return table


def _said(head: dict[str, Any]) -> tuple[str, str]:
    """Label and score, whatever the task of a head that somebody put in the place of the demo's."""
    if "error" in head:
        return f"error: {head['error']['message']}", ""
    if "value" in head:
        return f"{head['value']:.4f}", ""
    labels = [head["label"]] if head.get("label") else head.get("labels") or ()
    return ", ".join(labels) or "no label", f"{head['score']:.3f}"


async def measure(client: AsyncClient, head: DemoHead) -> Accuracy:
    """Label the whole held-out split of *head* through the gateway and compare."""
    texts, labels = read_labelled(head.test_csv)
    started = time.monotonic()
    permits = asyncio.Semaphore(REQUESTS_IN_FLIGHT)

    async def correct_in(start: int) -> int:
        async with permits:
            block = texts[start : start + TEXTS_A_REQUEST]
            results = await patiently(client, block, [head.name])
        found = [getattr(result.heads[head.name], "label", None) for result in results]
        return sum(a == b for a, b in zip(found, labels[start : start + TEXTS_A_REQUEST], strict=True))

    counts = await asyncio.gather(*(correct_in(start) for start in range(0, len(texts), TEXTS_A_REQUEST)))
    return Accuracy(sum(counts), len(texts), time.monotonic() - started)


async def run_demo(stack: Stack, console: Console) -> None:
    """The whole demo around *stack*, which is stopped in the end whatever happens."""
    say = console.print
    heads = prepare_demo_data(stack.settings.cache_dir, say)
    try:
        console.rule("Starting the three services")
        addresses = await stack.start()
        for line in address_lines(addresses):
            say(line)
        live = LiveStack.of(addresses, stack.settings.location, stack.settings.cache_dir)
        console.rule("Training the heads through the embedding service")
        await asyncio.to_thread(ensure_heads, heads, live, say)
        api_key = key_from_environment()
        async with AsyncClient(addresses.gateway, timeout=60.0, api_key=api_key) as client:
            await wait_until_live(client, [head.name for head in heads])
            console.rule("Raw text in, labels out")
            await show_examples(addresses.gateway, heads, console, api_key)
            console.rule("Accuracy on the held-out splits, measured through the gateway")
            await _print_accuracies(client, heads, console)
    finally:
        say("stopping the services")
        await stack.stop()


async def _print_accuracies(client: AsyncClient, heads: Sequence[DemoHead], console: Console) -> None:
    for head in heads:
        with console.status(f"{head.name}: {head.title}"):
            accuracy = await measure(client, head)
        console.print(
            f"{head.name:<12} {accuracy.share:.4f}  ({accuracy.correct} of {accuracy.total}; "
            f"{accuracy.total / accuracy.seconds:.0f} texts/s; {head.title})"
        )


def address_lines(addresses: Addresses) -> list[str]:
    """One line an address; the gateway's own is printed last, by whoever knows that all is ready."""
    return [
        *([f"embedding {addresses.embedding}"] if addresses.embedding else []),
        f"embedding-grpc {addresses.embedding_grpc}",
        f"heads {addresses.heads}",
        f"heads-grpc {addresses.heads_grpc}",
        *([f"control {addresses.control}"] if addresses.control else []),
        f"gateway {addresses.gateway}",
    ]
