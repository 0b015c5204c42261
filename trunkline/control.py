"""`trunkline runs` and `trunkline feedback`: the control plane from the command line. A command is a request or two."""

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import quote

import httpx
import typer
from rich.console import Console
from rich.markup import escape

from clients import InvalidRequest, InvalidResponse, Unavailable, error_for_http
from clients._channel import is_loopback
from trunkline import paths
from trunkline.measured import headline
from trunkline.tables import print_table

runs_app = typer.Typer(help="Training runs, done by workers.", no_args_is_help=True)
feedback_app = typer.Typer(help="What people said the labels are.", no_args_is_help=True)
out: Final = Console(highlight=False, soft_wrap=True)

DEFAULT_URL: Final = "http://127.0.0.1:8200"
FOLLOW_SECONDS: Final = 0.5
MEDIA_TYPES: Final = {".csv": "text/csv", ".tsv": "text/tab-separated-values", ".jsonl": "application/jsonl"}
_OPEN: Final = frozenset({"queued", "running"})

Url = Annotated[
    str | None,
    typer.Option("--control", envvar="TRUNKLINE_CONTROL_URL", help="URL of the control plane; the local stack's when absent."),
]
Head = Annotated[str, typer.Argument(help="The head's name.")]
RunId = Annotated[str, typer.Argument(help="As `submit` or `list` print it.")]


class Control:
    """The control plane's HTTP, with the key in TRUNKLINE_CONTROL_KEY where it takes one. Errors are those of `clients`."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def ask(self, method: str, path: str, **more: Any) -> Any:
        """The answer's JSON.

        Raises:
            TrunklineError: it was refused, could not be asked, or what answered is no control plane.
        """
        answer = self.send(method, path, **more)
        try:
            return answer.json()
        except ValueError:
            raise InvalidResponse(f"what answers at {self._client.base_url} is no control plane") from None

    def send(self, method: str, path: str, **more: Any) -> httpx.Response:
        """The answer; see `ask`."""
        try:
            answer = self._client.request(method, path, **more)
        except httpx.HTTPError as error:
            raise Unavailable(f"the control plane at {self._client.base_url} does not answer: {error}") from None
        if answer.is_error:
            raise _error_of(answer)
        return answer


@contextmanager
def _control(url: str | None) -> Iterator[Control]:
    key = os.environ.get("TRUNKLINE_CONTROL_KEY")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    base_url = _checked(url or _running() or DEFAULT_URL)
    # A proxy of the environment has no business on this machine.
    with httpx.Client(base_url=base_url, headers=headers, timeout=60.0, trust_env=not is_loopback(base_url.host)) as client:
        yield Control(client)


def _checked(url: str) -> httpx.URL:
    try:
        found = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InvalidRequest(f"{url} is no URL: {error}") from None
    if found.scheme not in ("http", "https") or not found.host:
        raise InvalidRequest(f"{url} is no URL of a control plane: it begins with http:// or https://")
    return found


def _path_of(run_id: str) -> str:
    return f"/v1/runs/{quote(run_id, safe='')}"


def _running() -> str:
    """The running local stack's control plane; "" when it has none."""
    from trunkline.stack import recorded  # noqa: PLC0415 (imports what serves heads)

    found = recorded(paths.home() / "stack.json")
    return found.control if found else ""


def _error_of(answer: httpx.Response) -> Exception:
    try:
        message = str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"the control plane answered with status {answer.status_code}"
    return error_for_http(answer.status_code)(message)


@runs_app.command()
def submit(
    head: Head,
    file: Annotated[Path | None, typer.Argument(help="CSV, TSV or JSONL; uploaded.")] = None,
    path: Annotated[str | None, typer.Option(help="In place of FILE: one below the control plane's data directory.")] = None,
    head_type: Annotated[str, typer.Option(help="How the head is made.")] = "linear",
    task: Annotated[str, typer.Option(help="single_label, multi_label or regression.")] = "single_label",
    seed: Annotated[int, typer.Option(help="Same data, same seed: same head.")] = 0,
    text_column: Annotated[str | None, typer.Option(help="Guessed when absent.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Guessed when absent.")] = None,
    publish: Annotated[str, typer.Option(help="live, or version: there, to be promoted by hand.")] = "live",
    follow: Annotated[bool, typer.Option("--follow", help="Show what it says until it ends.")] = False,
    preprocess: Annotated[str, typer.Option(help="Steps for the head's texts, such as nfkc,html-strip,lower.")] = "",
    long_text: Annotated[str, typer.Option(help="cut, or the windows' mean or max of each score.")] = "cut",
    level_separator: Annotated[str, typer.Option(help="Between a label's levels: / in sports/football.")] = "",
    control: Url = None,
) -> None:
    """Submit a training run; its id is printed."""
    if (file is None) == (path is None):
        raise InvalidRequest("give either FILE or --path")
    order: dict[str, Any] = {"head": head, "head_type": head_type, "task": task, "seed": seed, "publish": publish}
    order |= {"long_text": long_text, "preprocess": [name for name in preprocess.split(",") if name]}
    order |= {"level_separator": level_separator}
    order |= {name: value for name, value in (("text_column", text_column), ("label_column", label_column)) if value is not None}
    with _control(control) as service:
        order["data"] = {"path": path} if file is None else {"upload": _upload(service, file)}
        run = service.ask("POST", "/v1/runs", json=order, headers=_once())
        out.print(run["id"])
        if follow:
            _follow(service, run["id"])


@runs_app.command("list")
def list_runs(
    head: Annotated[str | None, typer.Option(help="Of this head only.")] = None,
    state: Annotated[str | None, typer.Option(help="In this state only.")] = None,
    limit: Annotated[int, typer.Option(help="How many, the newest first.")] = 20,
    control: Url = None,
) -> None:
    """List runs, the newest first."""
    given = {"head": head, "state": state, "limit": limit}
    with _control(control) as service:
        found = service.ask("GET", "/v1/runs", params={name: value for name, value in given.items() if value is not None})
    columns = ("run", "head", "state", "attempt", "progress", "version", "metric", "message")
    print_table(out, columns, map(_cells, found["runs"]))


@runs_app.command()
def show(run: RunId, control: Url = None) -> None:
    """Show one run."""
    with _control(control) as service:
        found = service.ask("GET", _path_of(run))
    result = found.pop("result")
    for name, value in {**found.pop("order"), **found, **result.pop("metrics", {}), **result}.items():
        if value is not None and value != "":
            out.print(escape(f"{name:<16} {value}"))


@runs_app.command()
def cancel(run: RunId, control: Url = None) -> None:
    """Stop a run, unless it has published already."""
    with _control(control) as service:
        found = service.ask("POST", f"{_path_of(run)}/cancel")
    out.print("it will be stopped" if found["state"] == "running" else f"it is {found['state']}")


@runs_app.command()
def logs(
    run: RunId,
    follow: Annotated[bool, typer.Option("--follow", help="Until it ends.")] = False,
    control: Url = None,
) -> None:
    """Print what a run said."""
    with _control(control) as service:
        if follow:
            _follow(service, run)
        else:
            _print_lines(service, run, until_complete=False)


@feedback_app.command()
def give(
    head: Head,
    label: str,
    text: str,
    several: Annotated[bool, typer.Option("--several", help="LABEL is all labels of the text with | between, or empty.")] = False,
    control: Url = None,
) -> None:
    """Say what the label of a text is; it is kept when this returns."""
    given = {"labels": [each for each in label.split("|") if each.strip()]} if several else {"label": label}
    body = {"head": head, "text": text, **given}
    with _control(control) as service:
        out.print(service.ask("POST", "/v1/feedback", json=body, headers=_once())["id"])


@feedback_app.command()
def counts(head: Head, control: Url = None) -> None:
    """How much feedback a head has, by label; texts that tie are left out of training."""
    with _control(control) as service:
        found = service.ask("GET", "/v1/feedback/counts", params={"head": head})
    out.print(
        f"{found['rows']} rows, {found['texts']} texts, {found['conflicts']} with several labels, {found['ties']} of them tied"
    )
    for label, count in found["labels"].items():
        out.print(escape(f"{label:<24} {count}"))


@feedback_app.command()
def export(
    head: Head,
    out_file: Annotated[Path, typer.Argument(metavar="FILE", help=".csv or .jsonl, in the form that training reads.")],
    control: Url = None,
) -> None:
    """Write a head's feedback as a dataset: each text once, with the label most of its rows say."""
    form = out_file.suffix.lower().removeprefix(".")
    with _control(control) as service:
        answer = service.send("GET", "/v1/feedback/export", params={"head": head, "form": form})
    out_file.write_bytes(answer.content)


@feedback_app.command()
def retrain(
    head: Head,
    file: Annotated[Path | None, typer.Argument(help="Rows to put the feedback over; the last run's when absent.")] = None,
    publish: Annotated[str, typer.Option(help="version: there, to be promoted by hand; or live.")] = "version",
    follow: Annotated[bool, typer.Option("--follow", help="Show what it says until it ends.")] = False,
    control: Url = None,
) -> None:
    """Train a head on its feedback, over what it was trained on; the gate is the same as ever."""
    with _control(control) as service:
        body: dict[str, Any] = {"head": head, "publish": publish}
        if file is not None:
            body["data"] = {"upload": _upload(service, file)}
        run = service.ask("POST", "/v1/feedback/retrain", json=body, headers=_once())
        out.print(run["id"])
        if follow:
            _follow(service, run["id"])


def _upload(service: Control, file: Path) -> str:
    media_type = MEDIA_TYPES.get(file.suffix.lower())
    if media_type is None:
        raise InvalidRequest(f"{file.name} is of an unknown kind: training data is read from .csv, .tsv and .jsonl")
    with file.open("rb") as content:
        answer = service.ask("POST", "/v1/data", content=content, headers={"content-type": media_type})
    return str(answer["id"])


def _once() -> dict[str, str]:
    """So that a request that is sent twice on the way is done once."""
    return {"idempotency-key": uuid.uuid4().hex}


def _follow(service: Control, run_id: str) -> None:
    _print_lines(service, run_id, until_complete=True)
    run = service.ask("GET", _path_of(run_id))
    out.print(escape(f"{run['state']}: {run['message']}"))
    if run["state"] != "succeeded":
        raise typer.Exit(1)


def _print_lines(service: Control, run_id: str, *, until_complete: bool) -> None:
    """To the last line there is, or there ever will be."""
    offset = 0
    while True:
        page = service.ask("GET", f"{_path_of(run_id)}/logs", params={"offset": offset})
        for line in page["lines"]:
            out.print(escape(line["line"]))
        offset = page["next_offset"]
        if page["is_complete"] or not (until_complete or page["lines"]):
            return
        if not page["lines"]:
            time.sleep(FOLLOW_SECONDS)


def _cells(run: dict[str, Any]) -> tuple[object, ...]:
    result = run["result"]
    metric = headline(run["order"].get("task", ""), result.get("metrics") or {})
    version = result.get("version") or ""
    return run["id"], run["head"], run["state"], run["attempt"], _progress(run), version, metric, run["message"]


def _progress(run: dict[str, Any]) -> str:
    if run["state"] not in _OPEN or not run["step"]:
        return ""
    return f"{run['step']} {run['done']}/{run['total']}" if run["total"] else str(run["step"])
