"""`trunkline keys`: the file of keys that services read with --keys-file. A key is shown once, when it is made."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, get_args

import typer
from rich.console import Console

from clients import InvalidRequest
from clients.wire.keys import KeyEntry, KeysError, Scope, add_key, read_keys, revoke_keys
from trunkline.tables import print_table

app = typer.Typer(help="Who may use the services.", no_args_is_help=True)
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

KeysPath = Annotated[
    Path, typer.Option("--file", envvar="TRUNKLINE_KEYS_FILE", help="The file of keys; made when it is not there.")
]


def key_from_environment() -> str | None:
    """The key that the client commands send; from the environment alone, since others see a command's arguments."""
    return os.environ.get("TRUNKLINE_API_KEY") or None


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Whose it is: a-z, 0-9, _ and -. Quotas and runs go by it.")],
    scopes: Annotated[str, typer.Option(help=f"Of {', '.join(get_args(Scope))}, with commas between; admin stands for all.")],
    file: KeysPath,
    days: Annotated[float | None, typer.Option(help="How long it is valid; for ever when absent.", min=0)] = None,
    texts_per_second: Annotated[float | None, typer.Option(help="Its quota, on average; none when absent.")] = None,
    burst: Annotated[float | None, typer.Option(help="Texts of the quota at once; ten seconds of it when absent.")] = None,
) -> None:
    """Make a key and print it, once; the file has its hash only. A second key of a name lets the first be exchanged."""
    given = [scope for scope in get_args(Scope) if scope in scopes.split(",")]
    if len(given) != len(scopes.split(",")):
        raise InvalidRequest(f"--scopes takes some of {', '.join(get_args(Scope))}, each once, with commas between")
    if burst is not None and texts_per_second is None:
        raise InvalidRequest("--burst belongs to --texts-per-second; give both")
    expires = None if days is None else datetime.now(UTC) + timedelta(days=days)
    try:
        key = add_key(file, name, given, expires, texts_per_second=texts_per_second, burst=burst)
    except KeysError as error:
        raise InvalidRequest(str(error)) from None
    # Alone on stdout, so that it can be put into a file.
    print(key)
    err.print("this is the only time it is shown")


@app.command("list")
def list_keys(file: KeysPath) -> None:
    """List the keys, without what makes them keys."""
    rows = (_cells(entry, datetime.now(UTC).timestamp()) for entry in _read(file))
    print_table(out, ("id", "name", "scopes", "expires", "texts a second"), rows)


@app.command()
def revoke(
    which: Annotated[str, typer.Argument(metavar="NAME|ID", help="All keys of a name, or one by its id.")], file: KeysPath
) -> None:
    """Take keys out of the file; services that run see it within a second."""
    try:
        count = revoke_keys(file, which)
    except KeysError as error:
        raise InvalidRequest(str(error)) from None
    if not count:
        raise InvalidRequest("there is no key of that name or id; `trunkline keys list` shows those there are")
    out.print(f"{count} revoked")


def _read(file: Path) -> tuple[KeyEntry, ...]:
    try:
        return read_keys(file)
    except KeysError as error:
        raise InvalidRequest(str(error)) from None


def _cells(entry: KeyEntry, now: float) -> tuple[str, ...]:
    expires = "never" if entry.expires is None else entry.expires.strftime("%Y-%m-%d %H:%M")
    quota = "" if entry.texts_per_second is None else f"{entry.texts_per_second:g}"
    return entry.id, entry.name, ", ".join(entry.scopes), f"{expires} (over)" if entry.is_over(now) else expires, quota
