"""The trainer by default: from an order's rows to a head version, by `head_service.training`. Runs in the training process."""

import contextlib
from functools import partial
from typing import Any, Final

import msgspec

from clients import EmbeddingClient, TrunklineError
from clients.wire.catalogue import Manifest, Metrics
from head_service.bundling import bundle_once
from head_service.control.words import Outcome, RunContext, RunResult, TrainingOrder
from head_service.errors import DataError, HeadServiceError, SupersededError
from head_service.exporting import Export, export_here, exporting_beside
from head_service.gate import Comparison, Remeasure, Scorer
from head_service.head_server import scorer_at, wait_until_available
from head_service.lifecycle import Lifecycle
from head_service.pieces import named_steps
from head_service.release import examine, release
from head_service.training.dataset import Dataset, read_dataset, test_part
from head_service.training.embeddings import EmbeddingCache
from head_service.training.fit import HEAD_CHOICES, FitOptions
from head_service.training.measured import LiveOnTestPart
from head_service.training.run import TrainingRequest, train

EMBED_TIMEOUT_SECONDS: Final = 120.0
"""For one part of the texts; it waits where the service is full."""


def train_head(order: TrainingOrder, run: RunContext) -> Outcome:
    """See `words.Trainer`."""
    with (
        EmbeddingClient(run.embedding_address, timeout=EMBED_TIMEOUT_SECONDS, **run.to_embedding._asdict()) as embedder,
        scorer_at(run.heads_address, embedder, run.repository, run.to_heads) as scorer,
    ):
        release_it = partial(_release, order, run, scorer)
        if run.published is not None:
            run.say(f"version {run.published} was published by an attempt before this one")
            comparison = release_it(order.head, run.published, partial(_remeasure, order, run, scorer))
            return with_bundles(run, _ended(order, run, run.published, comparison))
        options = _options(order)
        data = _rows(order, run)
        run.say(str(data))
        with _exporting(order) as export:
            result = train(
                TrainingRequest(
                    order.head,
                    data,
                    view=order.view,
                    options=options,
                    preprocess=named_steps(order.preprocess),
                    long_text=order.long_text,
                    level_separator=order.level_separator,
                ),
                embedder=embedder,
                cache=EmbeddingCache(run.cache_dir / "training-embeddings.sqlite"),
                repository=run.repository,
                go_live=release_it,
                scorer=scorer,
                say=run.say,
                embedding_progress=lambda done, total: run.progress("embedding", done, total),
                reports=run.folder,
                export=export,
            )
    report = "" if result.report is None else result.report.relative_to(run.folder).as_posix()
    return with_bundles(run, _ended(order, run, result.version, result.comparison, report))


def _exporting(order: TrainingOrder) -> contextlib.AbstractContextManager[Export]:
    """Beside, where fitting does without TensorFlow; what fits the other types loads it here."""
    return exporting_beside() if order.head_type == "linear" else contextlib.nullcontext(export_here)


def with_bundles(run: RunContext, outcome: Outcome) -> Outcome:
    """*outcome*, once a head that has become live is in its bundle: in this process, which ends and may load TensorFlow."""
    if run.bundles and run.heads_address and outcome.result.is_live:
        keep_bundles(run)
    return outcome


def keep_bundles(run: RunContext) -> None:
    """Make the bundles that are out of date. What goes wrong costs no answer and fails no run: heads answer by themselves."""
    try:
        bundle_once(run.repository.store.url, run.heads_address, run.say, run.to_heads)
    except (HeadServiceError, TrunklineError, OSError) as error:
        run.say(f"bundles stay as they are: {error}")


def _rows(order: TrainingOrder, run: RunContext) -> Dataset:
    return read_dataset(run.data, run.text_column, run.label_column, task=order.task)


def _remeasure(order: TrainingOrder, run: RunContext, scorer: Scorer, live: Manifest, candidate: Metrics) -> Metrics | None:
    """See `gate.Remeasure`, for a version of an attempt before this one: the same rows part in the same way.

    None where the rows are no longer those it was trained on, as a file named by its path may be.
    """
    try:
        held = test_part(_rows(order, run))
    except DataError:
        return None
    return LiveOnTestPart(held, scorer).remeasure(live, candidate) if held.digest() == candidate.data else None


def _release(
    order: TrainingOrder, run: RunContext, scorer: Scorer, head: str, version: int, remeasure: Remeasure | None
) -> Comparison | None:
    """Through the gate; what passes waits there where the order says so. Done again it changes nothing."""
    lifecycle = Lifecycle(run.repository, partial(wait_until_available, run.heads_address, credentials=run.to_heads))
    known, entry = lifecycle.comparison(head, version), lifecycle.state(head).entry
    if order.publish == "version":
        # One that is held in a role was put there by a person since.
        is_held = entry is not None and version in entry.versions
        return known if known or is_held else examine(lifecycle, head, version, scorer=scorer, remeasure=remeasure)
    if (known is not None and known.verdict != "passed") or (entry is not None and entry.stable >= version):
        # An attempt before this one was through, and another version may have followed since: never backwards.
        return known
    try:
        return release(lifecycle, head, version, scorer=scorer, remeasure=remeasure, reason=f"run {run.run_id}")
    except SupersededError as superseded:
        run.say(str(superseded))
        return lifecycle.comparison(head, version)


def _options(order: TrainingOrder) -> FitOptions:
    if order.head_type not in HEAD_CHOICES:
        raise DataError(f"head_type is one of {', '.join(HEAD_CHOICES)}")
    return FitOptions(order.head_type, seed=order.seed)


def _ended(order: TrainingOrder, run: RunContext, version: int, found: Comparison | None, report: str = "") -> Outcome:
    metrics = run.repository.manifest(order.head, version).metrics
    entry = Lifecycle(run.repository).state(order.head).entry
    is_live = entry is not None and entry.stable == version
    result = RunResult(version=version, is_live=is_live, metrics=_plain(metrics), comparison=_told(found), report=report)
    if found is not None and found.verdict != "passed":
        return Outcome(kind="refused", message=f"version {version} is not live: {found.reason}", result=result)
    return Outcome(kind="succeeded", message=f"version {version} is {'live' if is_live else 'published'}", result=result)


def _told(found: Comparison | None) -> dict[str, float | int | str | None]:
    if found is None:
        return {}
    names = ("verdict", "reason", "live_version", "metric", "candidate", "live", "tolerance")
    return {name: getattr(found, name) for name in names}


def _plain(metrics: Metrics | None) -> dict[str, Any]:
    return {} if metrics is None else msgspec.to_builtins(metrics)
