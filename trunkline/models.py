"""`trunkline models`: which encoders are prepared here, whether they are whole, and what each engine would cost and give."""

from collections.abc import Iterable
from typing import Annotated, Any, Final, cast, get_args

import typer
from rich.console import Console
from rich.markup import escape

from trunkline import paths
from trunkline.tables import print_table

app = typer.Typer(help="Prepare, list, verify and compare encoders.", no_args_is_help=True)
out: Final = Console(highlight=False, soft_wrap=True)
err: Final = Console(stderr=True, highlight=False, soft_wrap=True)

Model = Annotated[str | None, typer.Argument(help="A directory, a known or a hub name; all-MiniLM-L6-v2 when absent.")]
_COMPARED: Final = ("openvino-int8", "openvino-bf16", "openvino-fp32", "onnx-fp32", "onnx-int8")


def _progress(line: str) -> None:
    err.print(escape(line))


@app.command()
def prepare(
    model: Model = None,
    engine: Annotated[str, typer.Option(help="auto, or one by name; see `trunkline models compare`.")] = "auto",
) -> None:
    """Fetch an encoder and make it ready, so that the service starts at once; `auto` measures anew. Best on an idle machine."""
    from embedding_service.models.prepare import Engine  # noqa: PLC0415 (heavy)
    from embedding_service.models.prepare import prepare as prepare_trunk  # noqa: PLC0415

    chosen = cast("Engine", _known(engine, get_args(Engine)))
    ready = prepare_trunk(model, cache_dir=paths.cache_dir(), engine=chosen, measure_again=True, progress=_progress)
    spec = ready.spec
    out.print(escape(f"{spec.name} is ready: {ready.engine.label}, {spec.width} wide, at most {spec.max_tokens} tokens"))
    out.print(escape(f"fingerprint {spec.fingerprint}"))


@app.command("list")
def list_kept() -> None:
    """What is prepared on this machine."""
    from embedding_service.models.kept import kept_graphs  # noqa: PLC0415 (heavy)

    rows = (
        (
            graph.report.trunk,
            graph.label,
            _megabytes(graph.size_bytes),
            f"{graph.report.quality.agreement:.5f}",
            graph.report.fingerprint[:19] + "…",
            "" if graph.is_current else "of another version; `trunkline models prune` removes it",
        )
        for graph in kept_graphs(paths.cache_dir())
    )
    print_table(out, ("trunk", "engine", "MB", "cosine to float32", "fingerprint", ""), rows)


@app.command()
def verify() -> None:
    """Compare what is prepared with the hashes taken when it was measured; exit status 1 when something differs."""
    from embedding_service.models.kept import faults, kept_graphs  # noqa: PLC0415 (heavy)

    damaged = 0
    for graph, fault in faults(kept_graphs(paths.cache_dir())):
        damaged += bool(fault)
        out.print(escape(f"{graph.report.trunk}, {graph.label}: {fault or 'whole'}"))
    if damaged:
        raise typer.Exit(1)


@app.command()
def compare(
    model: Model = None,
    engines: Annotated[str, typer.Option(help="Names with commas between.")] = ",".join(_COMPARED),
) -> None:
    """Size, speed on this machine and nearness to float32 of an encoder by each engine. Run it on an idle machine."""
    from embedding_service.backend.load import EngineName  # noqa: PLC0415 (heavy)
    from embedding_service.models.kept import compare_engines  # noqa: PLC0415

    names = [cast("EngineName", _known(name.strip(), get_args(EngineName))) for name in engines.split(",")]
    rows = []
    for row in compare_engines(model, names, cache_dir=paths.cache_dir(), progress=_progress):
        quality = row.quality
        measured = (
            (f"{quality.agreement:.5f}", f"{quality.least:.5f}", f"{quality.labels:.2%}", row.refused)
            if quality
            else ("", "", "", row.refused)
        )
        speed = f"{row.texts_per_second:.0f}" if quality else ""
        rows.append((row.label, _megabytes(row.size_bytes) if quality else "", speed, *measured))
    print_table(out, ("engine", "MB", "texts/s", "mean cosine", "least cosine", "equal labels", ""), rows)


@app.command()
def prune() -> None:
    """Remove graphs of other versions, and what an interrupted preparation left."""
    from embedding_service.models.kept import remove_old  # noqa: PLC0415 (heavy)

    out.print(f"{_megabytes(remove_old(paths.cache_dir()))} MB removed")


def _known(name: str, names: Iterable[Any]) -> str:
    if name not in names:
        raise typer.BadParameter(f"there is no engine {name!r}; there are {', '.join(map(str, names))}")
    return name


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.0f}"
