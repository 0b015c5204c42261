"""`trunkline heads`: what the gateway offers, what the repository holds, and every change to what is live."""

import contextlib
import math
import os
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer
from rich.console import Console
from rich.markup import escape

from clients import Client
from trunkline import paths
from trunkline.keys import key_from_environment
from trunkline.measured import headline
from trunkline.tables import print_table

if TYPE_CHECKING:
    from clients.wire.catalogue import CatalogueHead, Manifest
    from clients.wire.credentials import Credentials
    from head_service.gate import Comparison, Scorer
    from head_service.lifecycle import HeadState, Lifecycle

app = typer.Typer(help="List the live heads; promote, roll back, try out and remove versions.", invoke_without_command=True)
out: Final = Console(highlight=False, soft_wrap=True)
err: Final = Console(stderr=True, highlight=False, soft_wrap=True)

SHOWN_EVENTS: Final = 20
MIRROR_POLL_SECONDS: Final = 1.0

Name = Annotated[str, typer.Argument(help="The head's name.")]
Version = Annotated[int, typer.Argument(min=1, help="The version's number.")]
MaybeVersion = Annotated[int | None, typer.Argument(min=1, help="The version's number.")]
Reason = Annotated[str, typer.Option(help="For the history.")]


class HeadsError(Exception):
    """A command that cannot be carried out; the message is one sentence saying why."""


@app.callback()
def heads(
    ctx: typer.Context,
    gateway: Annotated[str | None, typer.Option(help="URL of the gateway; the running local stack's when absent.")] = None,
) -> None:
    """List the heads that the gateway offers; the commands below work on the repository."""
    if ctx.invoked_subcommand is None:
        _list_offered(gateway)


def _list_offered(gateway: str | None) -> None:
    with Client(gateway or _running().gateway, api_key=key_from_environment()) as client:
        rows = client.heads()
    offered = []
    for row in rows:
        metric = headline(row["task"], row.get("metrics") or {})
        state = row.get("refused") or ("default" if row.get("default") else "on request")
        trunk = row.get("trunk") or {}
        offered.append((row["name"], row["version"], row["task"], len(row["labels"]), metric, trunk.get("name", ""), state))
    print_table(out, ("head", "version", "task", "labels", "metric", "trunk", "state"), offered)


@app.command("list")
def list_heads() -> None:
    """All heads of the repository: what answers, what is tried out, and every version's state."""
    rows = []
    lifecycle = _lifecycle()
    for state in lifecycle.states():
        entry = state.entry
        if not state.versions and entry is None:
            continue
        live = entry.versions[entry.stable] if entry else None
        canary = f"{entry.canary} ({entry.canary_share:.0%})" if entry and entry.canary is not None else ""
        versions = ", ".join(f"{version} {state.describe(version)}" for version in state.versions)
        asked = "" if entry is None else "default" if entry.default else "on request"
        rows.append(
            (
                state.name,
                str(entry.stable) if entry else "",
                canary,
                str(entry.shadow or "") if entry else "",
                versions,
                _metric(live),
                _age(live),
                asked,
                " ".join(entry.tags) if entry else "",
            )
        )
    print_table(out, ("head", "stable", "canary", "shadow", "versions", "metric", "age", "asked", "tags"), rows)


@app.command()
def show(name: Name) -> None:
    """One head: its versions, what the gate found of them, and what happened to it."""
    from head_service import history  # noqa: PLC0415 (of the heads extra, like all below)

    lifecycle = _lifecycle()
    state = lifecycle.state(name)
    rows = [_version_row(lifecycle, state, version) for version in state.versions]
    print_table(out, ("version", "state", "metric", "test texts", "age", "gate"), rows)
    if state.entry:
        _say(f"previous version: {state.entry.previous or 'none'}; {_asked(state.entry)}")
        _say(_reads(state.entry.versions[state.entry.stable]))
    events = history.events(lifecycle.repository.store, name)[-SHOWN_EVENTS:]
    print_table(
        out,
        ("when", "who", "what", "version", "from", "to", "reason"),
        [(e.when, e.who, e.what, *(str(n or "") for n in (e.version, e.before, e.after)), e.reason) for e in events],
    )


@app.command()
def promote(
    name: Name,
    version: Version,
    force: Annotated[bool, typer.Option("--force", help="Whatever the gate says, or said.")] = False,
    tolerance: Annotated[float, typer.Option(min=0.0, help="How much worse than the live version it may be.")] = 0.005,
    reason: Reason = "",
) -> None:
    """Make a version the one that answers, if the gate lets it."""
    from head_service.release import force as promote_by_force  # noqa: PLC0415
    from head_service.release import release  # noqa: PLC0415

    if force:
        promote_by_force(_lifecycle(), name, version, reason=reason)
    else:
        with _scorer() as scorer:
            found = release(_lifecycle(), name, version, scorer=scorer, tolerance=tolerance, reason=reason)
        if found.verdict != "passed":
            hint = "; --force promotes it all the same" if found.verdict == "incomparable" else "; it is kept, marked refused"
            raise HeadsError(f"{name} version {version} is not promoted: {found.reason}{hint}")
        _say(f"gate: {found.reason}")
    _say(f"{name} version {version} is live")


@app.command()
def rollback(name: Name, reason: Reason = "") -> None:
    """Let the previous version answer again; doing it twice undoes it."""
    entry = _lifecycle().roll_back(name, reason=reason)
    _say(f"{name} version {entry.stable} is live again; version {entry.previous} is the previous one")


@app.command()
def canary(
    name: Name,
    version: MaybeVersion = None,
    share: Annotated[float, typer.Option(help="Of the callers, above 0 and up to 1.")] = 0.05,
    end: Annotated[bool, typer.Option("--end", help="The stable version answers everybody again.")] = False,
    reason: Reason = "",
) -> None:
    """Let a version answer a share of the callers, or end that."""
    if end:
        _lifecycle().end_canary(name, reason=reason)
        _say(f"{name} has no canary")
    else:
        number = _needed(version)
        _lifecycle().start_canary(name, number, share, reason=reason)
        _say(f"{name} version {number} answers {share:.1%} of the callers")


@app.command()
def shadow(
    name: Name,
    version: MaybeVersion = None,
    end: Annotated[bool, typer.Option("--end", help="Nothing runs beside the stable version any more.")] = False,
    reason: Reason = "",
) -> None:
    """Run a version beside the stable one, compared and never answered, or end that."""
    if end:
        _lifecycle().end_shadow(name, reason=reason)
        _say(f"{name} has no shadow")
    else:
        number = _needed(version)
        _lifecycle().start_shadow(name, number, reason=reason)
        _say(f"{name} version {number} runs as a shadow")


@app.command()
def remove(
    name: Name,
    version: MaybeVersion = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove a whole head without asking.")] = False,
    reason: Reason = "",
) -> None:
    """Delete a version that has no role, or a whole head."""
    lifecycle = _lifecycle()
    lifecycle.state(name)
    if version is None and not yes:
        typer.confirm(f"Remove head {name} with all its versions?", abort=True)
    lifecycle.remove(name, version, reason=reason)
    _say(f"{name}{f' version {version}' if version else ''} is removed")


@app.command()
def verify(name: Annotated[str | None, typer.Argument(help="One head; all when absent.")] = None) -> None:
    """Hold every version to its manifest, and models.config to the catalogue; exit status 1 when something differs."""
    lifecycle = _lifecycle()
    states = [lifecycle.state(name)] if name else lifecycle.states()
    faults = 0
    for state in states:
        for version in state.versions:
            fault = _fault(lifecycle, state.name, version)
            faults += bool(fault)
            _say(f"{state.name} version {version}: {fault or 'whole'}")
    for problem in _disagreements(lifecycle, states):
        faults += 1
        _say(problem)
    if faults:
        raise typer.Exit(1)


@app.command("set")
def set_head(
    name: Name,
    default: Annotated[bool | None, typer.Option("--default/--no-default", help="Whether it answers when none is named.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Again for each; together they replace the tags there are.")] = None,
    no_tags: Annotated[bool, typer.Option("--no-tags", help="Take all tags away.")] = False,
) -> None:
    """Set whether a head is a default one, and its tags."""
    if default is None and not tag and not no_tags:
        raise HeadsError("say what to set: --default, --no-default, --tag or --no-tags")
    tags = () if no_tags else tuple(dict.fromkeys(tag)) if tag else None
    _say(f"{name}: {_asked(_lifecycle().configure(name, default=default, tags=tags))}")


@app.command()
def config(
    base_path: Annotated[str, typer.Option(help="Where the head server sees the repository, such as /repository.")],
    output: Annotated[Path | None, typer.Option(help="A file; in the repository's own folder it is kept current.")] = None,
) -> None:
    """Write a models.config for a head server that sees the repository at another path, as in a container."""
    from head_service.configuration import remember_base_path, render_config  # noqa: PLC0415
    from head_service.store import replace_file  # noqa: PLC0415

    if not Path(base_path).is_absolute():
        raise HeadsError("--base-path is an absolute path, such as /repository")
    lifecycle = _lifecycle()
    target = output or lifecycle.repository.root / "models.container.config"
    if lifecycle.repository.is_local and target.absolute().parent == lifecycle.repository.root.absolute():
        with lifecycle.repository.locked():
            remember_base_path(lifecycle.repository.store, target.name, base_path)
        lifecycle.write_configs()
        _say(f"{target} is written, and kept current by every command that changes a head")
    else:
        replace_file(target, render_config(lifecycle.served(), Path(base_path)))
        _say(f"{target} is written as of now; write it again after each promotion")


@app.command()
def bundle() -> None:
    """Make the bundles that are out of date: heads of one view, answered in one call. `trunkline up` does so by itself."""
    from head_service.bundling import bundle_once  # noqa: PLC0415

    found = _recorded()
    bundle_once(paths.repository(), found.heads_grpc if found else "", _say, _shown())
    _say("the bundles are up to date")


@app.command()
def mirror(
    directory: Annotated[Path, typer.Argument(help="Where to; a head server and a gateway read it.")],
    base_path: Annotated[Path | None, typer.Option(help="Where the head server sees it; its own path when absent.")] = None,
    heads_address: Annotated[str | None, typer.Option(help="HOST:PORT of the head server's gRPC, to ask what is loaded.")] = None,
    once: Annotated[bool, typer.Option("--once", help="One round, then end.")] = False,
) -> None:
    """Follow a repository in an object store (TRUNKLINE_REPOSITORY=s3://…) into a local directory until Ctrl-C."""
    from clients import HeadClient  # noqa: PLC0415
    from head_service.mirror import Mirror, follow_once  # noqa: PLC0415
    from head_service.repository import Repository  # noqa: PLC0415
    from head_service.scoring import is_available  # noqa: PLC0415

    followed = Mirror(Repository(paths.repository()), directory, base_path=base_path)
    if heads_address:
        followed.is_available = partial(is_available, HeadClient(heads_address, api_key=key_from_environment()))
    while True:
        follow_once(followed, _say)
        if once:
            return
        time.sleep(MIRROR_POLL_SECONDS)


@contextlib.contextmanager
def _scorer() -> "Iterator[Scorer]":
    """The running stack as the gate's scorer."""
    from clients import EmbeddingClient  # noqa: PLC0415
    from head_service.head_server import scorer_at  # noqa: PLC0415

    found = _recorded()
    if found is None:
        raise HeadsError("the gate needs the running stack to check golden examples; start `trunkline up`, or give --force")
    with (
        EmbeddingClient(found.embedding_grpc, api_key=key_from_environment()) as embedder,
        scorer_at(found.heads_grpc, embedder, _lifecycle().repository, _shown()) as scorer,
    ):
        yield scorer


def _lifecycle() -> "Lifecycle":
    from head_service.lifecycle import Lifecycle  # noqa: PLC0415
    from head_service.repository import Repository  # noqa: PLC0415

    lifecycle = Lifecycle(Repository(paths.repository()), grace_seconds=_grace_seconds())
    found = _recorded()
    if found is not None:
        from head_service.head_server import wait_until_available  # noqa: PLC0415

        lifecycle.wait_until_available = partial(wait_until_available, found.heads_grpc, credentials=_shown())
    return lifecycle


def _grace_seconds() -> float:
    """TRUNKLINE_GRACE_SECONDS: over twice what the slowest gateway takes from poll to poll."""
    from head_service.lifecycle import GRACE_SECONDS  # noqa: PLC0415

    said = os.environ.get("TRUNKLINE_GRACE_SECONDS", "")
    try:
        seconds = float(said) if said else GRACE_SECONDS
    except ValueError:
        seconds = math.nan
    if not 0.0 <= seconds < math.inf:
        raise HeadsError("TRUNKLINE_GRACE_SECONDS is not a number of seconds")
    return seconds


def _shown() -> "Credentials":
    """What the services of the running stack are shown."""
    from clients.wire.credentials import Credentials  # noqa: PLC0415

    return Credentials(key_from_environment())


def _recorded() -> Any:
    from trunkline.stack import recorded  # noqa: PLC0415

    return recorded(paths.home() / "stack.json")


def _running() -> Any:
    found = _recorded()
    if found is None:
        raise HeadsError("no local stack runs; start one with `trunkline up`, or name a gateway with --gateway")
    return found


def _needed(version: int | None) -> int:
    if version is None:
        raise HeadsError("name the version, or end it with --end")
    return version


def _version_row(lifecycle: "Lifecycle", state: "HeadState", version: int) -> tuple[str, ...]:
    from head_service.errors import HeadServiceError  # noqa: PLC0415

    try:
        manifest = lifecycle.repository.manifest(state.name, version)
    except HeadServiceError as error:
        return (str(version), f"broken: {error}", "", "", "", "")
    texts = str(manifest.metrics.num_test) if manifest.metrics else ""
    gate = _told(lifecycle.comparison(state.name, version))
    return (str(version), state.describe(version), _metric(manifest), texts, _age(manifest), gate)


def _told(found: "Comparison | None") -> str:
    return f"{found.verdict}: {found.reason}" if found else ""


def _fault(lifecycle: "Lifecycle", name: str, version: int) -> str:
    from head_service.errors import HeadServiceError  # noqa: PLC0415

    try:
        lifecycle.repository.verify(name, version)
    except HeadServiceError as error:
        return str(error)
    return ""


def _disagreements(lifecycle: "Lifecycle", states: Sequence["HeadState"]) -> list[str]:
    """Between catalogue, models.config and marks, of the heads in *states*."""
    from clients.wire.catalogue import Catalogue  # noqa: PLC0415
    from head_service.configuration import MODELS_CONFIG, consistent, parse_config  # noqa: PLC0415

    stored = lifecycle.repository.store.read(MODELS_CONFIG)
    entries = {state.name: state.entry for state in states if state.entry is not None}
    gone = [f"{name}: version {v} is in the catalogue and not there" for name, v in _missing(states)]
    if not lifecycle.repository.is_local:
        return gone
    refused = [(state.name, version) for state in states for version, mark in state.marks.items() if mark.state == "refused"]
    return gone + consistent(Catalogue(entries), parse_config(stored.content) if stored else {}, refused)


def _asked(entry: "CatalogueHead") -> str:
    when = "answers when no head is named" if entry.default else "answers on request"
    return f"{when}; tags: {' '.join(entry.tags) or 'none'}"


def _reads(manifest: "Manifest") -> str:
    steps = ", ".join(manifest.preprocess) or "the trunk's own normaliser alone"
    long = "cut" if manifest.long_text == "cut" else f"read in windows, {manifest.long_text} of their scores"
    return f"texts go through {steps}; long ones are {long}"


def _missing(states: Sequence["HeadState"]) -> list[tuple[str, int]]:
    entries = [(state, version) for state in states if state.entry for version in state.entry.versions]
    return [(state.name, version) for state, version in entries if version not in state.versions]


def _metric(manifest: "Manifest | None") -> str:
    if manifest is None or manifest.metrics is None:
        return ""
    return headline(manifest.task, msgspec.structs.asdict(manifest.metrics))


def _age(manifest: "Manifest | None") -> str:
    try:
        made = datetime.fromisoformat(manifest.created if manifest else "")
        seconds = (datetime.now(UTC) - made).total_seconds()
    except (ValueError, TypeError):
        return ""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _say(line: str) -> None:
    out.print(escape(line))
