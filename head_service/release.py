"""From a published version to a live one, through the gate: load it, weigh it, then promote it or keep it out.

What is examined where its test part is at hand may be promoted later, where it is not.
"""

from typing import Final

from clients.wire.catalogue import Manifest
from head_service.errors import ConflictError, SupersededError
from head_service.gate import METRIC_TOLERANCE, Comparison, Remeasure, Scorer, as_found, weigh
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
    force it. Without *remeasure* the live version is taken for as good as `examine` found it, where that one is live still.

    Raises:
        RefusedError: it was refused before.
        SupersededError: a newer version went live meanwhile, which this one is not to take the place of.
        RepositoryError, TrunklineError: it could not be loaded or weighed. What answers has not changed.
    """
    is_first = True
    for _ in range(_ATTEMPTS - 1):
        try:
            return _release(lifecycle, name, version, scorer, remeasure, tolerance, reason, may_go_back=is_first)
        except ConflictError:
            # Another version went live while this one was weighed against the former.
            is_first = False
            continue
    return _release(lifecycle, name, version, scorer, remeasure, tolerance, reason, may_go_back=False)


def examine(
    lifecycle: Lifecycle,
    name: str,
    version: int,
    *,
    scorer: Scorer,
    remeasure: Remeasure | None = None,
    tolerance: float = METRIC_TOLERANCE,
) -> Comparison:
    """What the gate finds of *version*, kept as by `release`, and raised like it; what passes waits to be released."""
    comparison, _ = _weighed(lifecycle, name, version, scorer, remeasure, tolerance)
    if comparison.verdict == "passed":
        lifecycle.drop_candidate(name, version)
    return comparison


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
    *,
    may_go_back: bool,
) -> Comparison:
    """One attempt. Not where *may_go_back*, what went live meanwhile and is newer stays, though this one is hardly worse."""
    comparison, live = _weighed(lifecycle, name, version, scorer, remeasure or _as_examined(lifecycle, name, version), tolerance)
    if comparison.verdict == "passed":
        if live is not None and live > version and not may_go_back:
            lifecycle.drop_candidate(name, version)
            raise SupersededError(f"version {live} of {name} went live meanwhile; {version}, which is older, stays published")
        lifecycle.promote(name, version, reason=reason or comparison.reason, expected_live=live)
    return comparison


def _weighed(
    lifecycle: Lifecycle, name: str, version: int, scorer: Scorer, remeasure: Remeasure | None, tolerance: float
) -> tuple[Comparison, int | None]:
    """What was found, which is kept, and the version that was live then. Only what passed is loaded still."""
    candidate = lifecycle.load_candidate(name, version)
    live = _live(lifecycle, name)
    try:
        comparison = weigh(candidate, live, scorer=scorer, remeasure=remeasure, tolerance=tolerance)
    except Exception:
        lifecycle.drop_candidate(name, version)
        raise
    if comparison.verdict == "refused" and not (live and live.version == version):
        lifecycle.refuse(name, version, comparison)
    else:
        lifecycle.keep_comparison(name, version, comparison)
        if comparison.verdict != "passed":
            lifecycle.drop_candidate(name, version)
    return comparison, live.version if live else None


def _as_examined(lifecycle: Lifecycle, name: str, version: int) -> Remeasure | None:
    kept = lifecycle.comparison(name, version)
    return as_found(kept) if kept else None


def _live(lifecycle: Lifecycle, name: str) -> Manifest | None:
    entry = lifecycle.state(name).entry
    return entry.versions[entry.stable] if entry else None
