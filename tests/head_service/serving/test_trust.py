from pathlib import Path

import msgspec
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from clients.wire.catalogue import MANIFEST_PATH, Manifest, View, encode
from clients.wire.tfs import server_pb2, tensor_pb2
from head_service.manifest import hash_files
from head_service.serving.allowed_ops import ALL_OPS, COMPUTING_OPS, LOADING_OPS
from head_service.serving.trust import LoadError, RefusedError, check_ops, checked, is_steady, reachable_ops
from tests.head_service.versions_on_disk import manifest

WIDTH = manifest().width
FORBIDDEN = ("PrintV2", "WriteFile", "ReadFile", "WholeFileReaderV2", "PyFunc", "EagerPyFunc", "HashTableV2", "Send", "SaveV2")


def node(name: str, op: str, *inputs: str, calls: str = "") -> server_pb2.Node:
    made = server_pb2.Node(name=name, op=op, input=inputs)
    if calls:
        made.attr["f"].func.name = calls
    return made


def tensor(name: str, *sizes: int, dtype: int = tensor_pb2.DT_FLOAT) -> server_pb2.SignatureTensor:
    made = server_pb2.SignatureTensor(name=name, dtype=dtype)  # type: ignore[arg-type]
    made.tensor_shape.dim.extend(tensor_pb2.TensorShape.Dim(size=size) for size in sizes)
    return made


def graph(*extra: server_pb2.Node, body: tuple[server_pb2.Node, ...] = ()) -> server_pb2.MetaGraph:
    """One signature that calls one function, a loading and a saving part, as TensorFlow exports them."""
    made = server_pb2.MetaGraph()
    made.meta_info_def.tags.append("serve")
    made.saver_def.restore_op_name = "restore"
    made.graph_def.node.extend(
        [
            node("in", "Placeholder"),
            node("w", "VarHandleOp"),
            node("call", "StatefulPartitionedCall", "in", "w", calls="__inference_f"),
            node("prefix", "Placeholder"),
            node("restore", "StatefulPartitionedCall", "prefix", "w", calls="__inference_restore"),
            node("save", "StatefulPartitionedCall", "prefix", "w", calls="__inference_save"),
            *extra,
        ]
    )
    for name, nodes in {
        "__inference_f": [node("r", "ReadVariableOp", "w"), node("m", "MatMul", "in", "r"), *body],
        "__inference_restore": [node("r", "RestoreV2", "prefix"), node("a", "AssignVariableOp", "w", "r")],
        "__inference_save": [node("s", "SaveV2", "prefix", "w")],
    }.items():
        function = made.graph_def.library.function.add()
        function.signature.name = name
        function.node_def.extend(nodes)
    signature = made.signature_def["serving_default"]
    signature.inputs["embedding"].CopyFrom(tensor("in:0", -1, WIDTH))
    signature.outputs["scores"].CopyFrom(tensor("call:0", -1, 2))
    made.signature_def["__saved_model_init_op"].outputs["__saved_model_init_op"].name = "init"
    made.graph_def.node.append(node("init", "NoOp"))
    return made


def write(directory: Path, made: server_pb2.MetaGraph, described: Manifest | None = None) -> None:
    directory.mkdir(exist_ok=True)
    (directory / "saved_model.pb").write_bytes(server_pb2.SavedModel(meta_graphs=[made]).SerializeToString())
    (directory / MANIFEST_PATH).parent.mkdir(exist_ok=True)
    whole = msgspec.structs.replace(described or manifest(), files=hash_files(directory))
    (directory / MANIFEST_PATH).write_bytes(encode(whole))


def why_refused(directory: Path) -> str:
    with pytest.raises(RefusedError) as refused, checked(directory, allow_foreign=False):
        pass
    return str(refused.value)


def test_a_head_is_loaded_from_a_copy_that_nobody_else_writes_to(tmp_path: Path) -> None:
    write(tmp_path / "1", graph())
    with checked(tmp_path / "1", allow_foreign=False) as (path, found):
        assert found is not None
        assert found.labels == manifest().labels
        (tmp_path / "1" / "saved_model.pb").write_bytes(b"something else")
        assert hash_files(path) == found.files
    assert not path.exists()


@pytest.mark.parametrize("op", FORBIDDEN)
def test_an_operation_that_does_more_than_compute_is_refused_wherever_a_signature_reaches_it(op: str) -> None:
    for made in (
        graph(body=(node("x", op),)),
        graph(body=(node("x", "PartitionedCall", calls="__inference_save"),)),
    ):
        with pytest.raises(RefusedError, match="operations that a head may not have"):
            check_ops(made)


@pytest.mark.parametrize("op", [op for op in FORBIDDEN if op != "SaveV2"])
def test_such_an_operation_is_refused_also_where_nothing_reaches_it(op: str) -> None:
    with pytest.raises(RefusedError, match=op):
        check_ops(graph(node("alone", op)))


def test_what_saves_is_refused_where_the_version_is_loaded() -> None:
    made = graph()
    made.collection_def["saved_model_main_op"].node_list.value.append("save")
    with pytest.raises(RefusedError, match="where the version is loaded: 'SaveV2'"):
        check_ops(made)


def test_what_loads_weights_is_refused_in_a_signature() -> None:
    with pytest.raises(RefusedError, match="in a signature: 'RestoreV2'"):
        check_ops(graph(body=(node("x", "RestoreV2"),)))


def test_functions_that_pass_for_something_else_are_refused() -> None:
    circle = graph(body=(node("x", "PartitionedCall", calls="__inference_f"),))
    with pytest.raises(RefusedError, match="circle"):
        check_ops(circle)
    disguised = graph()
    disguised.graph_def.library.function.add().signature.name = "MatMul"
    with pytest.raises(RefusedError, match="could be an operation's: 'MatMul'"):
        check_ops(disguised)
    twin = graph()
    twin.graph_def.library.function[0].attr["api_implements"].func.name = "x"
    with pytest.raises(RefusedError, match="stands in"):
        check_ops(twin)


def test_control_inputs_and_lists_of_functions_are_followed() -> None:
    branches = node("b", "PartitionedCall")
    branches.attr["branches"].list.func.add().name = "inner"
    nodes = {made.name: made for made in (node("out", "Identity", "^b", "c:1"), branches, node("c", "Const"))}
    assert reachable_ops(nodes, {"inner": [node("x", "Tanh")]}, ["out:0"]) == {"Identity", "PartitionedCall", "Const", "Tanh"}


def test_the_lists_do_not_overlap() -> None:
    assert COMPUTING_OPS < LOADING_OPS < ALL_OPS
    assert not {"SaveV2", "RestoreV2", "AssignVariableOp"} & COMPUTING_OPS


def renamed(made: server_pb2.MetaGraph) -> None:
    made.signature_def["serving_default"].inputs["other"].CopyFrom(made.signature_def["serving_default"].inputs["embedding"])
    del made.signature_def["serving_default"].inputs["embedding"]


def wider(made: server_pb2.MetaGraph) -> None:
    made.signature_def["serving_default"].inputs["embedding"].tensor_shape.dim[1].size = WIDTH + 1


def of_integers(made: server_pb2.MetaGraph) -> None:
    made.signature_def["serving_default"].inputs["embedding"].dtype = tensor_pb2.DT_INT32


def of_one_row(made: server_pb2.MetaGraph) -> None:
    made.signature_def["serving_default"].inputs["embedding"].tensor_shape.dim[0].size = 1


def of_more_labels(made: server_pb2.MetaGraph) -> None:
    made.signature_def["serving_default"].outputs["scores"].tensor_shape.dim[1].size = 3


def of_another_name(made: server_pb2.MetaGraph) -> None:
    made.signature_def["other"].CopyFrom(made.signature_def["serving_default"])
    del made.signature_def["serving_default"]


def without_scores(made: server_pb2.MetaGraph) -> None:
    del made.signature_def["serving_default"].outputs["scores"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (renamed, "inputs are 'other', the manifest's 'embedding'"),
        (wider, "5 wide, the manifest says 4"),
        (of_integers, "not float32"),
        (of_one_row, "any number of rows"),
        (of_more_labels, "3 wide, the manifest says 2"),
        (of_another_name, "no signature 'serving_default'"),
        (without_scores, "without the manifest's 'scores'"),
    ],
)
def test_a_signature_that_is_not_the_manifests_is_refused(change: object, reason: str, tmp_path: Path) -> None:
    made = graph()
    assert callable(change)
    change(made)
    write(tmp_path / "1", made)
    assert reason in why_refused(tmp_path / "1")


def test_a_head_over_tokens_has_a_mask(tmp_path: Path) -> None:
    described = msgspec.structs.replace(manifest(), view=View(pooling="tokens"), mask_input="mask")
    made = graph()
    signature = made.signature_def["serving_default"]
    signature.inputs["embedding"].CopyFrom(tensor("in:0", -1, -1, WIDTH))
    signature.inputs["mask"].CopyFrom(tensor("in:0", -1, -1))
    write(tmp_path / "1", made, described)
    with checked(tmp_path / "1", allow_foreign=False) as (_, found):
        assert found is not None


def test_files_that_are_not_the_manifests_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "1", graph())
    (tmp_path / "1" / "extra").write_bytes(b"")
    assert "unknown extra" in why_refused(tmp_path / "1")
    (tmp_path / "1" / "extra").unlink()
    (tmp_path / "1" / MANIFEST_PATH).write_bytes(b'{"schema":')
    assert "is not a manifest" in why_refused(tmp_path / "1")


@pytest.mark.parametrize("allow_foreign", [True, False])
def test_a_link_out_of_the_version_is_refused(tmp_path: Path, allow_foreign: bool) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    for name, version in (("head", True), ("foreign", False)):
        directory = tmp_path / name
        write(directory, graph())
        if not version:
            (directory / MANIFEST_PATH).unlink()
        (directory / "assets.extra" / "link").symlink_to(tmp_path / "secret")
        with pytest.raises(RefusedError, match=r"a place outside|no assets"), checked(directory, allow_foreign=allow_foreign):
            pass


def test_without_a_manifest_it_is_loaded_only_where_that_is_allowed(tmp_path: Path) -> None:
    write(tmp_path / "1", graph(node("x", "PyFunc")))
    (tmp_path / "1" / MANIFEST_PATH).unlink()
    assert "--allow_foreign_models=false" in why_refused(tmp_path / "1")
    (tmp_path / "1" / "variables").mkdir()
    (tmp_path / "1" / "variables" / "variables.index").write_bytes(b"x")
    (tmp_path / "1" / "variables" / "variables.data-00000-of-00001").write_bytes(b"x")
    with checked(tmp_path / "1", allow_foreign=True) as (path, found):
        assert found is None
        assert path == tmp_path / "1"


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "no saved_model.pb"),
        ({"saved_model.pb": b"\x12\x7f"}, "only part of one"),
        ({"saved_model.pb": ...}, "no variables/variables.index"),
        ({"saved_model.pb": ..., "variables/variables.index": b""}, "not all of variables"),
        (
            {"saved_model.pb": ..., "variables/variables.index": b"", "variables/variables.data-00000-of-00002": b""},
            "not all of variables",
        ),
    ],
)
def test_a_foreign_version_of_which_not_all_is_there_is_not_loaded_yet(
    tmp_path: Path, files: dict[str, object], reason: str
) -> None:
    whole = server_pb2.SavedModel(meta_graphs=[graph()]).SerializeToString()
    (tmp_path / "variables").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else whole)
    with pytest.raises(LoadError, match=reason) as refused, checked(tmp_path, allow_foreign=True):
        pass
    assert not isinstance(refused.value, RefusedError)


@given(st.binary(max_size=200), st.integers(0, 2_000))
def test_a_damaged_graph_is_refused_and_nothing_else_happens(noise: bytes, place: int) -> None:
    data = server_pb2.SavedModel(meta_graphs=[graph()]).SerializeToString()
    place = min(place, len(data))
    try:
        model = server_pb2.SavedModel.FromString(data[:place] + noise + data[place + len(noise) :])
    except DecodeError:
        return
    for made in model.meta_graphs:
        try:
            check_ops(made)
        except RefusedError:
            continue


@pytest.mark.parametrize(
    ("op", "steady"), [("Tanh", True), ("ParseExampleV2", True), ("StatelessWhile", False), ("PyFunc", False)]
)
def test_a_graph_is_steady_when_nothing_that_a_signature_runs_can_loop(op: str, steady: bool) -> None:
    assert is_steady(graph(body=(node("m2", op, "m"),))) is steady
    assert is_steady(graph(node("beside", op)))
