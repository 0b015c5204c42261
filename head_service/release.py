"""From a published version to a live one, through the gate: load it, weigh it, then promote it or keep it out."""

from typing import Final

from clients.wire.catalogue import Manifest
from head_service.errors import ConflictError
from head_service.gate import METRIC_TOLERANCE, Comparison, Remeasure, Scorer, weigh
from head_service.lifecycle import Lifecycle

_ATTEMPTS: Final = 3


def release(
    lifecycle: Lifecycle,
    name: str,
    version: int,
    *,
    scorer: Scorer,
    remeasure: Remeasure | None = None,
    tolerance: float = METRIC_TOLERANCE,
    reason: str = "",
) -> Comparison:
    """Promote *version* if the gate lets it; what the gate found, which is kept beside the version whatever it is.

    passed: the version is live. refused: it is marked so, and loaded no more. incomparable: it stays published, and a person may
    force it.

    Raises:
        RefusedError: it was refused before.
        RepositoryError, TrunklineError: it could not be loaded or weighed. What answers has not changed.
    """
    for _ in range(_ATTEMPTS - 1):
        try:
            return _release(lifecycle, name, version, scorer, remeasure, tolerance, reason)
        except ConflictError:
            # Another version went live while this one was weighed against the former.
            continue
    return _release(lifecycle, name, version, scorer, remeasure, tolerance, reason)


def force(lifecycle: Lifecycle, name: str, version: int, *, reason: str = "") -> None:
    """Promote *version* whatever the gate says or said: a person's decision, and the history says so."""
    said = reason or "forced"
    lifecycle.pardon(name, version, reason=said)
    lifecycle.promote(name, version, reason=said)


def _release(
    lifecycle: Lifecycle,
    name: str,
    version: int,
    scorer: Scorer,
    remeasure: Remeasure | None,
    tolerance: float,
    reason: str,
) -> Comparison:
    candidate = lifecycle.load_candidate(name, version)
    live = _live(lifecycle, name)
    try:
        comparison = weigh(candidate, live, scorer=scorer, remeasure=remeasure, tolerance=tolerance)
    except Exception:
        lifecycle.drop_candidate(name, version)
        raise
    if comparison.verdict == "refused" and not (live and live.version == version):
        lifecycle.refuse(name, version, comparison)
        return comparison
    lifecycle.keep_comparison(name, version, comparison)
    if comparison.verdict == "passed":
        lifecycle.promote(name, version, reason=reason or comparison.reason, expected_live=live.version if live else None)
    else:
        lifecycle.drop_candidate(name, version)
    return comparison


def _live(lifecycle: Lifecycle, name: str) -> Manifest | None:
    entry = lifecycle.state(name).entry
    return entry.versions[entry.stable] if entry else None
