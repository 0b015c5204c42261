"""The command `trunkline`."""

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, get_args

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from clients import AsyncClient, Client, EmbeddingClient, HeadError, HeadResult, TrunklineError
from clients.wire.catalogue import LongText, Task
from trunkline import bulk, control, heads, keys, models, paths

app = typer.Typer(
    help="One BERT forward pass, any number of classifiers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(heads.app, name="heads")
app.add_typer(keys.app, name="keys")
app.add_typer(models.app, name="models")
app.add_typer(control.runs_app, name="runs")
app.add_typer(control.feedback_app, name="feedback")
out: Final = Console(highlight=False, soft_wrap=True)
err: Final = Console(stderr=True, highlight=False, soft_wrap=True)

Gateway = Annotated[str | None, typer.Option(help="URL of the gateway; the running local stack's when absent.")]
Heads = Annotated[str | None, typer.Option(help="Names with commas between; the default heads when absent.")]


def main() -> None:
    """Run a command; whatever fails in a way that can be foreseen is told in one sentence, exit status 1."""
    with _told():
        app()


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except TrunklineError as error:
        _fail(error.message)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    except Exception as error:
        if type(error).__module__.split(".")[0] not in _OURS or isinstance(error, AssertionError):
            raise
        _fail(str(error))


_OURS: Final = frozenset({"trunkline", "head_service", "embedding_service"})


def _fail(message: str) -> NoReturn:
    err.print(f"trunkline: {escape(message)}")
    sys.exit(1)


def _say(line: str) -> None:
    out.print(escape(line))


@app.command()
def up(
    port: Annotated[int, typer.Option(help="Of the gateway; 0: any free one.")] = 8080,
    any_port: Annotated[bool, typer.Option("--any-port", help="Take any free ports for all services.")] = False,
    demo_heads: Annotated[bool, typer.Option("--demo-heads", help="Train the demo heads first where they are missing.")] = False,
    model: Annotated[str | None, typer.Option(help="A local directory or hub name of the encoder.")] = None,
    engine: Annotated[str, typer.Option(help="auto, or one by name; see `trunkline models compare`.")] = "auto",
    layers: Annotated[str | None, typer.Option(help="Layers of the encoder that heads may read, such as -1,-2,-3,-4.")] = None,
    with_control: Annotated[
        bool, typer.Option("--control", help="Run the control plane too: runs, feedback, retraining; 280 MB more.")
    ] = False,
) -> None:
    """Run the local stack until Ctrl-C; the last line printed says `ready` and where."""
    from trunkline.up import run_up  # noqa: PLC0415 (the client commands do without the services' packages)

    stack = _stack(port, any_port, model, engine, layers=_numbers(layers), with_control=with_control)
    asyncio.run(_until_signalled(run_up(stack, demo_heads=demo_heads, say=_say)))


@app.command()
def demo() -> None:
    """Train three heads on real data, ask the gateway, measure accuracy through it, stop everything."""
    from trunkline.demo import run_demo  # noqa: PLC0415

    asyncio.run(_until_signalled(run_demo(_stack(0, True, None, "auto"), out)))


@app.command()
def train(
    file: Annotated[Path, typer.Argument(help="CSV, TSV or JSONL with a text and a label a row.")],
    head: Annotated[str, typer.Option(help="The head's name.")],
    text_column: Annotated[str | None, typer.Option(help="Guessed when absent.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Guessed when absent.")] = None,
    test: Annotated[Path | None, typer.Option(help="Held-out rows; a fifth of FILE when absent.")] = None,
    head_type: Annotated[
        str, typer.Option(help="linear, mix, mlp, fasttext, attention, textcnn; auto compares the cheap ones.")
    ] = "linear",
    task: Annotated[str, typer.Option(help="single_label, multi_label or regression.")] = "single_label",
    layers: Annotated[
        str | None, typer.Option(help="What the head reads, -1 is the last; the embedding service must compute them.")
    ] = None,
    label_separator: Annotated[str, typer.Option(help="Between the labels of a cell, for multi_label.")] = "|",
    level_separator: Annotated[str, typer.Option(help="Between the levels of a label: / in sports/football.")] = "",
    texts_in_report: Annotated[bool, typer.Option(help="Show the hardest errors' texts in the report.")] = True,
    balanced: Annotated[bool, typer.Option("--balanced", help="Let rare labels weigh as much as common ones.")] = False,
    seed: Annotated[int, typer.Option(help="Of all that is drawn: same data, same seed, same head.", min=0)] = 0,
    weights: Annotated[
        Path | None, typer.Option(help="An .npz file of a linear head that is fitted already; FILE only measures it.")
    ] = None,
    preprocess: Annotated[
        str, typer.Option(help="Steps that the head's texts go through, here and when served, such as nfkc,html-strip,lower.")
    ] = "",
    long_text: Annotated[
        str, typer.Option(help="Of texts longer than the encoder reads: cut, or the windows' mean or max of each score.")
    ] = "cut",
) -> None:
    """Train a head and make it live if it is no worse than what is; without a restart when the stack runs."""
    from head_service.exporting import export_here, exporting_beside  # noqa: PLC0415

    # What fits the other types loads TensorFlow here.
    beside = exporting_beside() if head_type == "linear" else contextlib.nullcontext(export_here)
    with beside as export:
        # Seconds of imports, while that process does its own.
        from head_service.training.fit import HEAD_CHOICES, FitOptions  # noqa: PLC0415
        from trunkline.training import HeadWanted, train_command  # noqa: PLC0415

        wanted = HeadWanted(
            FitOptions(_one_of(head_type, HEAD_CHOICES, "--head-type"), balanced=balanced, seed=seed),
            task=_one_of(task, get_args(Task), "--task"),
            label_separator=label_separator,
            level_separator=level_separator,
            layers=_numbers(layers),
            weights=weights,
            with_texts=texts_in_report,
            preprocess=tuple(preprocess.split(",")),
            long_text=_one_of(long_text, get_args(LongText), "--long-text"),
        )
        stack = _stack(0, True, None, "auto", layers=wanted.layers)
        asyncio.run(
            train_command(
                file,
                head=head,
                text_column=text_column,
                label_column=label_column,
                test_file=test,
                stack=stack,
                say=_say,
                wanted=wanted,
                export=export,
            )
        )


def _one_of(name: str, names: Sequence[Any], option: str) -> Any:
    if name not in names:
        _fail(f"{option} is one of {', '.join(names)}")
    return name


def _numbers(layers: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(layer) for layer in layers.split(",")) if layers else ()
    except ValueError:
        _fail("--layers are numbers with commas between, such as --layers=-1,-3")


@app.command()
def classify(
    text: Annotated[str | None, typer.Argument(help="One text.")] = None,
    heads: Heads = None,
    file: Annotated[Path | None, typer.Option(help="A .txt, .csv, .tsv or .jsonl file of texts.")] = None,
    out_file: Annotated[
        Path | None, typer.Option("--out", help="JSON lines; an interrupted run goes on where it stopped.")
    ] = None,
    text_column: Annotated[str | None, typer.Option(help="Of --file.")] = None,
    gateway: Gateway = None,
) -> None:
    """Label one text, or all texts of a file."""
    names = heads.split(",") if heads else None
    if (text is None) == (file is None):
        _fail("give either a text or --file")
    if text is not None:
        _classify_one(_gateway(gateway), text, names)
    elif file is not None:
        _classify_file(_gateway(gateway), file, out_file or file.with_suffix(".results.jsonl"), names, text_column)


def _classify_one(gateway: str, text: str, names: list[str] | None) -> None:
    with Client(gateway, api_key=keys.key_from_environment()) as client:
        [result] = client.classify(text, heads=names)
    for name, head in result.heads.items():
        _say(f"{name:<16} {_said(head)}")
    if result.truncated:
        err.print(f"the text was cut to {result.num_tokens} tokens")


def _said(head: HeadResult | HeadError) -> str:
    if isinstance(head, HeadError):
        return f"error: {head.message}"
    if head.value is not None:
        return f"{head.value:.4f}"
    said = head.label if head.labels is None else ", ".join(head.labels)
    return f"{said or 'no label'}  {head.score:.4f}"


def _classify_file(gateway: str, file: Path, out_file: Path, names: list[str] | None, column: str | None) -> None:
    texts = bulk.read_texts(file, column)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err) as progress:
        task = progress.add_task("classifying", total=len(texts))

        async def run() -> bulk.Progress:
            async with AsyncClient(gateway, timeout=60.0, api_key=keys.key_from_environment()) as client:
                return await bulk.classify_file(
                    client, texts, out_file, heads=names, on_progress=lambda now: progress.update(task, completed=now.done)
                )

        done = asyncio.run(run())
    _say(f"{done.done} texts in {out_file}" + (f"; {done.failed} with an error of their own" if done.failed else ""))


@app.command()
def embed(
    texts: Annotated[list[str], typer.Argument(help="Texts.")],
    address: Annotated[str | None, typer.Option(help="HOST:PORT of the embedding service's gRPC.")] = None,
) -> None:
    """Print one JSON line a text with its embedding by the shared trunk."""
    with EmbeddingClient(address or _running().embedding_grpc, api_key=keys.key_from_environment()) as client:
        answer = client.embed_all(texts)
    for vector, count in zip(answer.vectors, answer.num_tokens, strict=True):
        sys.stdout.write(json.dumps({"embedding": [round(float(x), 7) for x in vector], "num_tokens": count}) + "\n")


def _gateway(url: str | None) -> str:
    return url or _running().gateway


def _running() -> Any:
    from trunkline.stack import recorded  # noqa: PLC0415

    found = recorded(paths.home() / "stack.json")
    if found is None:
        _fail("no local stack runs; start one with `trunkline up`, or name a service by its address")
    return found


def _stack(
    port: int, any_port: bool, model: str | None, engine: str, *, layers: tuple[int, ...] = (), with_control: bool = False
) -> Any:
    from head_service.store import is_remote  # noqa: PLC0415
    from trunkline.stack import Stack, StackSettings  # noqa: PLC0415

    home, location = paths.home(), paths.repository()
    settings = StackSettings(
        repository=home / "mirror" if is_remote(location) else Path(location),
        source=location if is_remote(location) else "",
        cache_dir=paths.cache_dir(),
        log_dir=home / "logs",
        gateway_port=port,
        model=model,
        engine=engine,
        layers=layers,
        with_control=with_control,
        control_home=home / "control",
    )
    if any_port:
        settings = settings.on_any_ports()
    return Stack(settings, _say)


async def _until_signalled(work: Coroutine[Any, Any, None]) -> None:
    """Run *work*; SIGTERM and SIGINT cancel it once, so that it can stop what it started."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    cancel: Callable[[], object] = task.cancel
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task
