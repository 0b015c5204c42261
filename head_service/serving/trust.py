"""What a version directory has to be before TensorFlow sees it: a SavedModel is a program, and loading one runs it.

A head (a version with a manifest) is read once into a private copy whose hashes are the manifest's, its graph is made of allowed
operations only, and its signature is what the manifest says. A foreign version (without) is only looked at: is all of it there.
Nothing here imports TensorFlow.
"""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError

from clients.wire.catalogue import MANIFEST_PATH, Manifest
from clients.wire.tfs import server_pb2, tensor_pb2
from head_service.errors import ManifestError
from head_service.manifest import verify
from head_service.serving.allowed_ops import ALL_OPS, COMPUTING_OPS, LOADING_OPS, STEADY_OPS
from head_service.serving.signature import DEFAULT_SIGNATURE, INIT_SIGNATURE

GRAPH_PATH: Final = "saved_model.pb"
SERVE_TAG: Final = "serve"
INIT_COLLECTIONS: Final = ("saved_model_main_op", "legacy_init_op")
SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 (a file there is made by mkdtemp)
_SHARD: Final = re.compile(r"variables\.data-\d{5}-of-(\d{5})")
MAX_NAMED: Final = 5


class LoadError(Exception):
    """A version that cannot be served; the message goes into its status."""


class RefusedError(LoadError):
    """It is served only once its files have changed: trying again would find the same."""


@contextlib.contextmanager
def checked(directory: Path, *, allow_foreign: bool) -> Iterator[tuple[Path, Manifest | None]]:
    """Where to load the version in *directory* from, for as long as the context lasts, and its manifest if it is a head.

    Raises:
        LoadError: it may not be loaded, or not yet.
    """
    if (directory / MANIFEST_PATH).exists():
        with _private_copy(directory) as copy:
            yield copy, check_head(copy)
    elif not allow_foreign:
        raise RefusedError(f"there is no {MANIFEST_PATH}, and --allow_foreign_models=false")
    else:
        check_foreign(directory)
        yield directory, None


def check_head(directory: Path) -> Manifest:
    """The manifest of the head in *directory*, once files, graph and signature are in order.

    Raises:
        RefusedError: they are not; the message says what is wrong.
    """
    _check_links(directory, directory)
    try:
        manifest = verify(directory)
    except ManifestError as error:
        raise RefusedError(str(error)) from None
    model = _read_graph(directory)
    if list(_tags(model)) != [{SERVE_TAG}]:
        raise RefusedError(f"{GRAPH_PATH} must hold one graph, tagged {SERVE_TAG!r}")
    [graph] = model.meta_graphs
    check_ops(graph)
    check_signature(graph, manifest)
    return manifest


def check_foreign(directory: Path) -> None:
    """Whether all files of a SavedModel without a manifest are there.

    Raises:
        LoadError: they are not, or not yet.
    """
    _check_links(directory, directory.resolve())
    if not (directory / GRAPH_PATH).is_file():
        if (directory / "saved_model.pbtxt").is_file():
            return
        raise LoadError(f"there is no {GRAPH_PATH} in it")
    model = _read_graph(directory)
    variables = directory / "variables"
    if any(_has_variables(graph) for graph in model.meta_graphs) and not (variables / "variables.index").is_file():
        raise LoadError("there is no variables/variables.index in it")
    shards = [match for path in variables.glob("variables.data-*") if (match := _SHARD.fullmatch(path.name))]
    if (variables / "variables.index").is_file() and (not shards or len(shards) != int(shards[0][1])):
        raise LoadError("not all of variables/variables.data-* are there")


def check_ops(graph: server_pb2.MetaGraph) -> None:
    """Whether every operation of *graph*, and of the functions it calls, is one that a head may have where it stands.

    Raises:
        RefusedError: one is not, or functions call each other in a circle.
    """
    functions = {function.signature.name: function.node_def for function in graph.graph_def.library.function}
    nodes = {node.name: node for node in graph.graph_def.node}
    # TensorFlow's own operations never begin so: a function cannot pass for one of them.
    if misnamed := [name for name in functions if not name.startswith("__")]:
        raise RefusedError(f"functions whose names could be an operation's: {_named(misnamed)}")
    # The optimiser would put another function in its place, one that nothing seemed to call.
    if any("api_implements" in function.attr for function in graph.graph_def.library.function):
        raise RefusedError("a function that stands in for another one")
    everything: list[Iterable[server_pb2.Node]] = [graph.graph_def.node, *functions.values()]
    _refuse_others({node.op for group in everything for node in group} - functions.keys(), ALL_OPS, "")
    _refuse_circles(functions)
    loading = [graph.saver_def.restore_op_name, *_initialisers(graph)]
    _refuse_others(reachable_ops(nodes, functions, loading), LOADING_OPS, " where the version is loaded")
    _refuse_others(reachable_ops(nodes, functions, _computed(graph)), COMPUTING_OPS, " in a signature")


def is_steady(graph: server_pb2.MetaGraph) -> bool:
    """Whether running a signature of *graph* takes as long as its inputs are large, whatever they say: nothing in it loops."""
    functions = {function.signature.name: function.node_def for function in graph.graph_def.library.function}
    nodes = {node.name: node for node in graph.graph_def.node}
    return reachable_ops(nodes, functions, _computed(graph)) <= STEADY_OPS


def reachable_ops(
    nodes: Mapping[str, server_pb2.Node], functions: Mapping[str, Iterable[server_pb2.Node]], roots: Iterable[str]
) -> set[str]:
    """The operations that running *roots*, node or tensor names, can run: their inputs' inputs, and all of called functions."""
    ops: set[str] = set()
    seen: set[str] = set()
    entered: set[str] = set()
    waiting = [_node_of(name) for name in roots if name]
    while waiting:
        name = waiting.pop()
        if name in seen or name not in nodes:
            continue
        seen.add(name)
        waiting.extend(_node_of(given) for given in nodes[name].input)
        called = [nodes[name]]
        while called:
            node = called.pop()
            if node.op not in functions:
                ops.add(node.op)
            for function in _calls(node, functions) - entered:
                entered.add(function)
                called.extend(functions[function])
    return ops


def check_signature(graph: server_pb2.MetaGraph, manifest: Manifest) -> None:
    """Whether the default signature takes and gives what *manifest* says.

    Raises:
        RefusedError: it does not.
    """
    if DEFAULT_SIGNATURE not in graph.signature_def:
        raise RefusedError(f"there is no signature {DEFAULT_SIGNATURE!r}")
    signature = graph.signature_def[DEFAULT_SIGNATURE]
    rank = 3 if manifest.view.pooling == "tokens" else 2
    wanted = {manifest.input: (rank, manifest.width)}
    if manifest.mask_input:
        wanted[manifest.mask_input] = (rank - 1, -1)
    if signature.inputs.keys() != wanted.keys():
        raise RefusedError(f"the signature's inputs are {_named(signature.inputs)}, the manifest's {_named(wanted)}")
    for alias, (num_dims, width) in wanted.items():
        _check_tensor(f"input {alias!r}", signature.inputs[alias], num_dims, width)
    if manifest.output not in signature.outputs:
        raise RefusedError(f"the signature's outputs are {_named(signature.outputs)}, without the manifest's {manifest.output!r}")
    _check_tensor(f"output {manifest.output!r}", signature.outputs[manifest.output], 2, len(manifest.labels))


def _check_tensor(what: str, tensor: server_pb2.SignatureTensor, num_dims: int, width: int) -> None:
    if tensor.dtype != tensor_pb2.DT_FLOAT:
        raise RefusedError(f"{what} of the signature is not float32")
    sizes = [dim.size for dim in tensor.tensor_shape.dim]
    if tensor.tensor_shape.unknown_rank or len(sizes) != num_dims:
        raise RefusedError(f"{what} of the signature has not {num_dims} dimensions")
    if any(size >= 0 for size in sizes[:-1]):
        raise RefusedError(f"{what} of the signature does not take any number of rows")
    if sizes[-1] not in {width, -1}:
        raise RefusedError(f"{what} of the signature is {sizes[-1]} wide, the manifest says {width}")


@contextlib.contextmanager
def _private_copy(directory: Path) -> Iterator[Path]:
    """A copy nobody else writes to: what is checked is what is loaded, whatever happens to *directory* meanwhile."""
    _check_links(directory, directory)
    with contextlib.ExitStack() as stack:
        try:
            # In memory where that can be had: a full disk then does not keep a head from being loaded.
            place = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else None
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="head-", dir=place, ignore_cleanup_errors=True))
            copy = Path(scratch) / "version"
            shutil.copytree(directory, copy, symlinks=True)
        except OSError as error:
            reason = error.strerror or "some of its files went away, or may not be read"
            raise LoadError(f"the version cannot be copied to be checked: {reason}") from error
        yield copy


def _check_links(directory: Path, root: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
            raise RefusedError(f"{path.relative_to(directory).as_posix()} links to a place outside the version")


def _read_graph(directory: Path) -> server_pb2.SavedModel:
    try:
        return server_pb2.SavedModel.FromString((directory / GRAPH_PATH).read_bytes())
    except FileNotFoundError:
        raise LoadError(f"there is no {GRAPH_PATH} in it") from None
    except OSError as error:
        raise LoadError(f"{GRAPH_PATH} cannot be read: {error.strerror}") from None
    except DecodeError:
        raise LoadError(f"{GRAPH_PATH} is not a SavedModel, or only part of one") from None


def _tags(model: server_pb2.SavedModel) -> Iterator[set[str]]:
    return (set(graph.meta_info_def.tags) for graph in model.meta_graphs)


def _has_variables(graph: server_pb2.MetaGraph) -> bool:
    kinds = {"VarHandleOp", "VariableV2", "Variable"}
    return any(node.op in kinds for node in graph.graph_def.node)


def _initialisers(graph: server_pb2.MetaGraph) -> Iterator[str]:
    for name in INIT_COLLECTIONS:
        if name in graph.collection_def:
            yield from graph.collection_def[name].node_list.value
    if INIT_SIGNATURE in graph.signature_def:
        yield from (tensor.name for tensor in graph.signature_def[INIT_SIGNATURE].outputs.values())


def _computed(graph: server_pb2.MetaGraph) -> list[str]:
    """The tensors of all signatures that are run."""
    return [
        tensor.name
        for name, signature in graph.signature_def.items()
        if name != INIT_SIGNATURE
        for tensor in (*signature.inputs.values(), *signature.outputs.values())
    ]


def _node_of(name: str) -> str:
    """The node of a tensor or control name: "x:0", "^x"."""
    return name.removeprefix("^").partition(":")[0]


def _calls(node: server_pb2.Node, functions: Mapping[str, object]) -> set[str]:
    called = {node.op}
    for attribute in node.attr.values():
        called.add(attribute.func.name)
        called.update(function.name for function in attribute.list.func)
    return called & functions.keys()


def _refuse_circles(functions: Mapping[str, Iterable[server_pb2.Node]]) -> None:
    calls = {name: set().union(*(_calls(node, functions) for node in nodes)) for name, nodes in functions.items()}
    try:
        TopologicalSorter(calls).prepare()
    except CycleError:
        raise RefusedError("functions of the graph call each other in a circle") from None


def _refuse_others(found: set[str], allowed: frozenset[str], where: str) -> None:
    if others := sorted(found - allowed):
        raise RefusedError(f"operations that a head may not have{where}: {_named(others)}")


def _named(names: Iterable[str]) -> str:
    """A few of them, shortened: names come from files."""
    listed = [repr(name[:64]) for name in sorted(names)]
    return ", ".join(listed[:MAX_NAMED]) + (" and more" if len(listed) > MAX_NAMED else "")
