"""`python -m perf.finetune`: what training the whole encoder for one task would give, and what that costs. For the record.

The same encoder, texts, labels and held-out parts as `perf.heads_accuracy`. Mean pooling and a linear layer on top, AdamW, the
rate rising for a tenth of the steps and then falling to nothing, batches of texts of about one length, bfloat16 in the encoder.
The number of epochs is the one that was best on a tenth of the training texts; the held-out texts are looked at once. Runs where
PyTorch and transformers are (the environment of `make test-torch`); the files of texts are prepared by the first run of
`perf.heads_accuracy`.
"""

import argparse
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from clients.wire.text import TextEncoder
from embedding_service.models.fetch import fetch
from perf.heads_data import HeadData, prepare_heads_data
from trunkline import paths
from trunkline.demo_data import read_labelled

VALIDATION_SHARE: Final = 0.1
WARM_UP_SHARE: Final = 0.1

Ids = list[list[int]]


@dataclass(frozen=True, slots=True)
class Examples:
    """Token ids and the number of each text's label."""

    token_ids: Ids
    labels: list[int]

    def part(self, places: Sequence[int]) -> "Examples":
        """Those at *places*."""
        return Examples([self.token_ids[place] for place in places], [self.labels[place] for place in places])

    def batches(self, size: int, chance: random.Random | None = None) -> Iterator[list[int]]:
        """Places, a batch at a time, of about one length each; in the order of *chance*, when there is one."""
        noise = [chance.random() * 8 if chance else 0.0 for _ in self.token_ids]
        order = sorted(range(len(self.token_ids)), key=lambda place: len(self.token_ids[place]) + noise[place])
        groups = [order[start : start + size] for start in range(0, len(order), size)]
        if chance:
            chance.shuffle(groups)
        yield from groups


def read_examples(path: Path, encoder: TextEncoder, names: list[str]) -> Examples:
    """The rows of *path*; labels not seen before are added to *names*."""
    texts, labels = read_labelled(path)
    names.extend(sorted(set(labels) - set(names)))
    return Examples([encoded.ids for encoded in encoder.encode(texts)], [names.index(label) for label in labels])


def padded(token_ids: Ids, torch: Any) -> tuple[Any, Any]:
    """(ids, mask) as tensors [texts, tokens]."""
    longest = max(map(len, token_ids))
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in token_ids])
    return torch.tensor([ids + [0] * (longest - len(ids)) for ids in token_ids]), mask


class Classifier:
    """The encoder in *trunk*, mean pooling, and a linear layer for *num_labels*; every weight of it learns."""

    def __init__(self, trunk: Path, num_labels: int) -> None:
        import torch  # noqa: PLC0415 (another environment's)
        from transformers import AutoModel  # noqa: PLC0415

        self.torch: Any = torch
        encoder = AutoModel.from_pretrained(trunk, local_files_only=True, use_safetensors=True, attn_implementation="sdpa")
        self.net: Any = torch.nn.ModuleDict({"encoder": encoder, "top": torch.nn.Linear(encoder.config.hidden_size, num_labels)})

    def logits(self, token_ids: Ids) -> Any:
        """float32 [texts, labels]."""
        ids, mask = padded(token_ids, self.torch)
        with self.torch.autocast("cpu", dtype=self.torch.bfloat16):
            hidden = self.net["encoder"](input_ids=ids, attention_mask=mask).last_hidden_state.float()
        weights = mask[:, :, None].float()
        return self.net["top"]((hidden * weights).sum(1) / weights.sum(1))

    def accuracy(self, examples: Examples) -> float:
        """The share of *examples* whose best label is theirs."""
        self.net.eval()
        right = 0
        with self.torch.inference_mode():
            for places in examples.batches(32):
                part = examples.part(places)
                best = self.logits(part.token_ids).argmax(1).tolist()
                right += sum(label == truth for label, truth in zip(best, part.labels, strict=True))
        return right / len(examples.labels)

    def epochs(self, examples: Examples, given: argparse.Namespace, chance: random.Random) -> Iterator[int]:
        """Learn from *examples*; gives the number of each epoch when it is over."""
        torch, parameters = self.torch, list(self.net.parameters())
        steps = given.epochs * -(-len(examples.labels) // given.batch)
        rise = max(1, round(WARM_UP_SHARE * steps))
        optimiser = torch.optim.AdamW(parameters, lr=given.rate, weight_decay=0.01)
        pace = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: min((step + 1) / rise, max(0.0, (steps - step) / max(1, steps - rise)))
        )
        for epoch in range(1, given.epochs + 1):
            self.net.train()
            for places in examples.batches(given.batch, chance):
                part = examples.part(places)
                loss = torch.nn.functional.cross_entropy(self.logits(part.token_ids), torch.tensor(part.labels))
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimiser.step()
                pace.step()
            yield epoch

    def weights(self) -> dict[str, Any]:
        """A copy of all of them."""
        return {name: tensor.clone() for name, tensor in self.net.state_dict().items()}


def finetune(trunk: Path, data: HeadData, given: argparse.Namespace) -> str:
    """Train on the one file, count on the other; a line for people."""
    chance = random.Random(given.seed)  # noqa: S311 (repeatable, no secret)
    tokens = TextEncoder((trunk / "tokenizer.json").read_bytes(), max_tokens=given.max_tokens)
    names: list[str] = []
    known, unseen = (read_examples(path, tokens, names) for path in (data.train_csv, data.test_csv))
    order = chance.sample(range(len(known.labels)), len(known.labels))
    cut = round(VALIDATION_SHARE * len(order))
    held, learnt = known.part(order[:cut]), known.part(order[cut:])
    model = Classifier(trunk, len(names))
    started, cpu = time.perf_counter(), time.process_time()
    best, best_epoch, weights = -1.0, 0, {}
    for epoch in model.epochs(learnt, given, chance):
        reached = model.accuracy(held)
        print(f"  {data.name}: epoch {epoch}, validation {reached:.4f}, {time.perf_counter() - started:.0f} s", flush=True)
        if reached > best:
            best, best_epoch, weights = reached, epoch, model.weights()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    model.net.load_state_dict(weights)
    return (
        f"{data.name:<7} fine-tuned {model.accuracy(unseen):.4f}  (validation {best:.4f} after epoch {best_epoch} of "
        f"{given.epochs}; {seconds:.0f} s, {cpu_seconds:.0f} s of CPU; {data.title})"
    )


def _seed(seed: int) -> None:
    import torch  # noqa: PLC0415 (another environment's)

    torch.manual_seed(seed)


def main() -> None:
    """Print a line a set."""
    parser = argparse.ArgumentParser(prog="python -m perf.finetune", description=__doc__)
    parser.add_argument("--sets", nargs="+", choices=["topic", "spam", "tweets", "movie"], help="all when absent")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=5e-5)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    _seed(given.seed)
    cache = Path(paths.cache_dir())
    trunk = fetch(None, cache_dir=cache, progress=print).directory
    sets = {data.name: data for data in prepare_heads_data(cache, print)}
    for name in given.sets or sets:
        print(finetune(trunk, sets[name], given), flush=True)


if __name__ == "__main__":
    main()
