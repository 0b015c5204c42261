"""What is counted, and its names in Prometheus, which stand here alone.

Each part of the gateway has a Protocol of its own for what it tells, in words of that part; `Telemetry` is all of them.
Everything belongs to the event loop. Labels are bounded: routes, statuses, codes and stages are ours, heads and versions are
those of the catalogue and end with them, backends are those of the settings; whatever else comes is "other".
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal, Protocol

from prometheus_client import CollectorRegistry, generate_latest

from clients import HTTP_ERRORS, Deadline, Refused, TrunklineError
from clients.wire.catalogue import Catalogue, Manifest, servables_of
from clients.wire.series import OTHER, Counts, Gauges, Histograms, Labels, Series
from gateway import exchange
from gateway.classification import Answer
from gateway.ports import FloatArray, Predictor, Rows

STAGES: Final = ("preprocess", "embed", "heads", "total")

CODES: Final = frozenset(
    {"departed", "deadline_expired", "quota", "too_large", "unsupported_media_type", "draining", "method_not_allowed"}
    | {TrunklineError.code, Refused.code, *(error.code for error in HTTP_ERRORS.values())}
)
"""The reasons and outcomes that have series of their own."""


class HeadTelemetry(Protocol):
    """Told of the calls of heads; must be quick and never raise."""

    def head_ended(self, head: str, version: int, outcome: str, seconds: float) -> None:
        """A request's call of one head version was over after *seconds*; *outcome* is "ok" or an error's code."""
        ...


class RefusalTelemetry(Protocol):
    """Told of requests that are not served; must be quick and never raise."""

    def refused(self, status: int, reason: str = "") -> None:
        """A request ended with an error's *status*; *reason* is the error's code, "quota", "departed" or the like."""
        ...


class PoolFacts(Protocol):
    """The replicas of one backend, as they are now; asked whenever metrics are read."""

    @property
    def backend(self) -> str:
        """Its name: "embedding" or "heads"."""
        ...

    @property
    def snapshot(self) -> Sequence[tuple[str, int]]:
        """Of each replica its state, and the texts outstanding."""
        ...


class Telemetry:
    """All of it, into a Prometheus registry of its own. Method by method it is the Protocols above."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._inside = 0
        self._bound: Callable[[], float] | None = None
        self._catalogue_age = 0.0
        self._catalogue: Callable[[], Catalogue | None] = lambda: None
        self._watched: dict[str, list[Callable[[], int]]] = {}
        self._sizes: dict[str, Callable[[], float]] = {}
        self._requests = Counts("trunkline_gateway_requests_total", "Requests by status.", ["status"])
        self._refusals = Counts("trunkline_gateway_refusals_total", "Requests not served, by reason.", ["reason"])
        self._texts = Counts("trunkline_gateway_texts_total", "Texts answered.")
        self._tokens = Counts("trunkline_gateway_tokens_total", "Tokens of the texts answered.")
        self._truncated = Counts("trunkline_gateway_truncated_texts_total", "Texts answered that were cut.")
        self._stages = Histograms("trunkline_gateway_stage_seconds", "Stages of answered requests.", ["stage"])
        self._heads = Counts("trunkline_gateway_head_results_total", "Texts by head and outcome.", ["head", "outcome"])
        self._head_seconds = Histograms(
            "trunkline_gateway_head_seconds", "A request's call of one head, its waiting included.", ["head", "version"]
        )
        self._head_errors = Counts(
            "trunkline_gateway_head_errors_total", "Calls of heads that failed.", ["head", "version", "outcome"]
        )
        self._lookups = Counts("trunkline_gateway_cache_lookups_total", "Texts looked up by head.", ["head", "result"])
        self._dropped = Counts("trunkline_gateway_cache_dropped_total", "Cached answers that left, by reason.", ["reason"])
        # Series that are there from the start show a rate of zero, not nothing.
        self._requests.add(("200",), 0)
        for family in (self._texts, self._tokens, self._truncated):
            family.add((), 0)
        preprocess, embed, heads, total = (self._stages.of((stage,)).observe for stage in STAGES)
        self._observe_preprocess, self._observe_embed, self._observe_heads, self._observe_total = preprocess, embed, heads, total
        Series(self._registry, [*self._counted(), *self._asked()])

    @property
    def registry(self) -> CollectorRegistry:
        """For what is counted elsewhere."""
        return self._registry

    def answered(self, answer: Answer) -> None:
        """Texts were classified."""
        timings = answer.timings
        num_texts = len(answer.texts)
        self._texts.add((), num_texts)
        self._tokens.add((), sum([text.num_tokens for text in answer.texts]))
        num_truncated = sum([text.truncated for text in answer.texts])
        if num_truncated:
            self._truncated.add((), num_truncated)
        self._observe_preprocess(timings.preprocess)
        self._observe_embed(timings.embed)
        self._observe_heads(timings.heads)
        self._observe_total(timings.total)
        for name, outcome in answer.outcomes.items():
            self._heads.add((name.partition("@")[0], "ok" if isinstance(outcome, list) else _code(outcome.code)), num_texts)
        exchange.answered(answer)

    def served(self, status: int) -> None:
        """A request ended with *status*, and was no refusal."""
        self._requests.add((str(status),))

    def refused(self, status: int, reason: str = "") -> None:
        """A request ended with an error's *status*; *reason* is the error's code, "quota", "departed" or the like."""
        self._requests.add((str(status),))
        self._refusals.add((_code(reason or str(status)),))
        exchange.refused(reason)

    def head_ended(self, head: str, version: int, outcome: str, seconds: float) -> None:
        """See `HeadTelemetry`."""
        self._head_seconds.of((head, str(version))).observe(seconds)
        if outcome != "ok":
            self._head_errors.add((head, str(version), _code(outcome)))

    def cache_looked_up(self, head: str, *, hits: int, misses: int) -> None:
        """See `gateway.outputs.OutputTelemetry`."""
        if hits:
            self._lookups.add((head, "hit"), hits)
        if misses:
            self._lookups.add((head, "miss"), misses)

    def cache_dropped(self, reason: str, count: int) -> None:
        """See `gateway.outputs.OutputTelemetry`."""
        self._dropped.add((reason,), count)

    def watch_queue(self, name: str, depth: Callable[[], int]) -> None:
        """*depth* is asked how many texts wait in queue *name* whenever metrics are read; several of one name are added up."""
        self._watched.setdefault(name, []).append(depth)

    def watch_cache(self, *, entries: Callable[[], float], num_bytes: Callable[[], float]) -> None:
        """Both are asked whenever metrics are read."""
        self._sizes = {"entries": entries, "bytes": num_bytes}

    def watch_bound(self, bound: Callable[[], float]) -> None:
        """*bound* is asked how many texts may be inside whenever metrics are read."""
        self._bound = bound

    def watch_catalogue(self, current: Callable[[], Catalogue | None]) -> None:
        """*current* is asked which versions are live whenever metrics are read; series of others end then."""
        self._catalogue = current

    def render(self, *, inside: int, catalogue_age: float) -> bytes:
        """Prometheus text."""
        self._inside, self._catalogue_age = inside, catalogue_age
        self._forget_the_gone()
        return generate_latest(self._registry)

    def _forget_the_gone(self) -> None:
        catalogue = self._catalogue()
        if catalogue is None:
            return
        live = {(name, str(version)) for name, version in servables_of(catalogue)}
        names = catalogue.heads.keys()
        for family in (self._heads, self._lookups):
            family.keep(lambda labels: labels[0] in names or labels[0] == OTHER)
        for versions in (self._head_seconds, self._head_errors):
            versions.keep(lambda labels: labels[:2] in live or labels[0] == OTHER)

    def _counted(self) -> list[Counts | Histograms]:
        """In the order they are shown."""
        return [
            self._requests,
            self._refusals,
            self._texts,
            self._tokens,
            self._truncated,
            self._stages,
            self._heads,
            self._head_seconds,
            self._head_errors,
            self._lookups,
            self._dropped,
        ]

    def _asked(self) -> list[Gauges]:
        def one(read: Callable[[], float]) -> Callable[[], Iterable[tuple[Labels, float]]]:
            return lambda: [((), read())]

        return [
            Gauges("trunkline_gateway_texts_in_flight", "Texts inside.", [], one(lambda: self._inside)),
            Gauges(
                "trunkline_gateway_max_texts_in_flight",
                "Texts that may be inside now, by how fast they are answered.",
                [],
                lambda: [] if self._bound is None else [((), self._bound())],
            ),
            Gauges("trunkline_gateway_queue_texts", "Texts that wait for a backend.", ["queue"], self._queues),
            Gauges(
                "trunkline_gateway_catalogue_age_seconds",
                "Since the catalogue was last seen in order.",
                [],
                one(lambda: self._catalogue_age),
            ),
            Gauges("trunkline_gateway_head_version", "The version in each role.", ["head", "role"], self._versions),
            Gauges("trunkline_gateway_cache_entries", "Answers kept.", [], lambda: self._size("entries")),
            Gauges("trunkline_gateway_cache_bytes", "Memory of the answers kept.", [], lambda: self._size("bytes")),
        ]

    def _queues(self) -> Iterable[tuple[Labels, float]]:
        return [((name,), sum(depth() for depth in depths)) for name, depths in sorted(self._watched.items())]

    def _size(self, what: str) -> Iterable[tuple[Labels, float]]:
        return [((), self._sizes[what]())] if what in self._sizes else []

    def _versions(self) -> Iterable[tuple[Labels, float]]:
        catalogue = self._catalogue()
        return [] if catalogue is None else versions_live(catalogue)


class BackendMetrics:
    """What happens between the gateway and its backends, counted into *registry*; told as it happens, on the event loop.

    *backend* is "embedding" or "heads"; replicas have the numbers of their places in the settings.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._pools: list[PoolFacts] = []
        self._breaker_states: dict[tuple[str, int], int] = {}
        self._ejections = Counts("trunkline_gateway_backend_ejections_total", "Ejections.", ["backend", "replica", "reason"])
        self._retries = Counts(
            "trunkline_gateway_backend_retries_total", "Calls tried elsewhere, by outcome.", ["backend", "outcome"]
        )
        self._hedges = Counts("trunkline_gateway_backend_hedges_total", "Calls made twice.", ["backend"])
        self.families: Final[list[Counts | Histograms | Gauges]] = [
            self._ejections,
            self._retries,
            self._hedges,
            Gauges(
                "trunkline_gateway_backend_replicas_left_alone",
                "Replicas that get no calls now: ejected, draining, or not to be reached.",
                ["backend"],
                self._left_alone,
            ),
            Gauges(
                "trunkline_gateway_backend_outstanding_texts",
                "Texts under way at a replica, where there are several.",
                ["backend", "replica"],
                self._outstanding,
            ),
            Gauges("trunkline_gateway_head_breaker_state", "0 closed, 1 half open, 2 open.", ["head", "version"], self._breakers),
        ]
        Series(registry, self.families)

    def show(self, pool: PoolFacts) -> None:
        """Read *pool* whenever the metrics are."""
        self._pools.append(pool)

    def ejected(self, backend: str, replica: int, reason: str) -> None:
        """A replica gets no calls for a while."""
        self._ejections.add((backend, str(replica), reason))

    def readmitted(self, backend: str, replica: int) -> None:
        """It gets calls again: the gauge says so when it is read."""

    def retried(self, backend: str) -> None:
        """A call that failed is tried once more, elsewhere."""
        self._retries.add((backend, "made"))

    def retry_refused(self, backend: str) -> None:
        """It could have been tried elsewhere, but there was no permit before its deadline."""
        self._retries.add((backend, "no permit"))

    def hedged(self, backend: str) -> None:
        """A call that takes long is made a second time, elsewhere."""
        self._hedges.add((backend,))

    def breaker(self, head: str, version: int, state: Literal["closed", "open", "half_open"]) -> None:
        """A head version's breaker changed."""
        self._breaker_states[head, version] = {"closed": 0, "half_open": 1, "open": 2}[state]

    def follow(self, catalogue: Catalogue) -> None:
        """See `gateway.ports.CatalogueFollower`: the series of versions that are gone end."""
        live = servables_of(catalogue)
        self._breaker_states = {key: state for key, state in self._breaker_states.items() if key in live}

    def _left_alone(self) -> Iterable[tuple[Labels, float]]:
        return [((pool.backend,), sum(state in {"ejected", "draining"} for state, _ in pool.snapshot)) for pool in self._pools]

    def _outstanding(self) -> Iterable[tuple[Labels, float]]:
        return [
            ((pool.backend, str(number)), num_texts)
            for pool in self._pools
            for number, (_, num_texts) in enumerate(pool.snapshot)
        ]

    def _breakers(self) -> Iterable[tuple[Labels, float]]:
        return [((head, str(version)), state) for (head, version), state in sorted(self._breaker_states.items())]


class TimedPredictor:
    """A `Predictor` that tells *telemetry*, and the request it works for, how long each head took."""

    def __init__(self, predictor: Predictor, telemetry: HeadTelemetry) -> None:
        self._predictor = predictor
        self._telemetry = telemetry

    async def predict(self, manifest: Manifest, rows: Rows, deadline: Deadline) -> FloatArray:
        """See `gateway.ports.Predictor`."""
        started = exchange.clock()
        outcome = "cancelled"
        try:
            scores = await self._predictor.predict(manifest, rows, deadline)
            outcome = "ok"
        except TrunklineError as error:
            outcome = error.code
            raise
        except Exception:
            outcome = TrunklineError.code
            raise
        finally:
            seconds = exchange.clock() - started
            self._telemetry.head_ended(manifest.name, manifest.version, outcome, seconds)
            exchange.head_ended(manifest.name, manifest.version, outcome, started, seconds)
        return scores


def versions_live(catalogue: Catalogue) -> list[tuple[Labels, float]]:
    """((head, role), version) of each role that is taken; the gauge's value is the version."""
    return [
        ((name, role), float(version))
        for name, head in sorted(catalogue.heads.items())
        for role, version in (("stable", head.stable), ("canary", head.canary), ("shadow", head.shadow))
        if version is not None
    ]


def _code(code: str) -> str:
    return code if code in CODES else OTHER
