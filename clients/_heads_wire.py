"""The words of TensorFlow Serving, to bytes and back. Pure: nothing here waits or remembers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from clients._channel import error_for_status
from clients._errors import InvalidRequest, InvalidResponse
from clients.wire.tensors import TensorError, fill_tensor, from_tensor
from clients.wire.tfs import serving_pb2 as pb

Array = NDArray[Any]

_STATUS_CODES: Final[Mapping[int, grpc.StatusCode]] = {code.value[0]: code for code in grpc.StatusCode}
_SIGNATURES: Final = "signature_def"


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What a head answered: arrays by output name, read-only where they lie in the answer's bytes, and who answered."""

    outputs: dict[str, Array]
    version: int


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """One version of a head. *state* is START, LOADING, AVAILABLE, UNLOADING, END or UNKNOWN; *error_code* 0 is fine."""

    version: int
    state: str
    error_code: int
    error_message: str


def _fill_spec(spec: pb.ModelSpec, head: str, version: int | None, label: str | None, signature_name: str) -> None:
    if version is not None and label is not None:
        raise InvalidRequest("a head is called by version or by label, not both")
    try:
        spec.name = head
        spec.signature_name = signature_name
        if version is not None:
            spec.version.value = version
        elif label is not None:
            spec.version_label = label
    except (TypeError, ValueError):
        raise InvalidRequest("a head is named by a text, and its version by a 64-bit integer") from None


def build_predict(
    head: str,
    inputs: Mapping[str, Array],
    *,
    version: int | None,
    label: str | None,
    signature_name: str,
    output_filter: Sequence[str],
) -> bytes:
    """A serialised PredictRequest, or InvalidRequest where the arguments cannot be one."""
    if isinstance(output_filter, str):
        raise InvalidRequest("output_filter is a list: give one name as [name]")
    try:
        request = pb.PredictRequest(output_filter=output_filter)
    except (TypeError, ValueError):
        raise InvalidRequest("output_filter is a list of names") from None
    _fill_spec(request.model_spec, head, version, label, signature_name)
    for name, array in inputs.items():
        try:
            fill_tensor(request.inputs[name], np.asarray(array))
        except TensorError as error:
            raise InvalidRequest(f"input {name!r}: {error}") from None
        except (TypeError, UnicodeEncodeError):
            raise InvalidRequest(f"{name!r} cannot be the name of an input") from None
    return request.SerializeToString()


def parse_predict(data: bytes, version: int | None, output_filter: Sequence[str]) -> Prediction:
    """The answer to a PredictRequest, or InvalidResponse where it is not one."""
    try:
        response = pb.PredictResponse.FromString(data)
    except DecodeError:
        raise InvalidResponse("the head's answer is not a PredictResponse") from None
    answered = response.model_spec.version.value
    if version not in {None, answered}:
        raise InvalidResponse(f"asked version {version}, version {answered} answered")
    outputs = {name: _output(name, response) for name in response.outputs}
    missing = [name for name in output_filter if name not in outputs]
    if missing:
        raise InvalidResponse(f"the head's answer lacks the outputs {missing}")
    return Prediction(outputs, answered)


def _output(name: str, response: pb.PredictResponse) -> Array:
    try:
        return from_tensor(response.outputs[name])
    except TensorError as error:
        raise InvalidResponse(f"output {name!r}: {error}") from None


def build_status(head: str, version: int | None) -> bytes:
    """A serialised GetModelStatusRequest."""
    request = pb.GetModelStatusRequest()
    _fill_spec(request.model_spec, head, version, None, "")
    return request.SerializeToString()


def parse_status(data: bytes) -> tuple[VersionStatus, ...]:
    """The answer to a GetModelStatusRequest, in the server's order, or InvalidResponse where it is not one."""
    try:
        response = pb.GetModelStatusResponse.FromString(data)
    except DecodeError:
        raise InvalidResponse("the answer is not a GetModelStatusResponse") from None
    return tuple(
        VersionStatus(one.version, _state_name(one.state), one.status.error_code, one.status.error_message)
        for one in response.model_version_status
    )


def _state_name(state: "pb.ModelVersionStatus.State.ValueType") -> str:
    known = pb.ModelVersionStatus.State
    return known.Name(state) if state in known.values() else "UNKNOWN"


def build_metadata(head: str, version: int | None, label: str | None) -> bytes:
    """A serialised GetModelMetadataRequest for the signatures."""
    request = pb.GetModelMetadataRequest(metadata_field=[_SIGNATURES])
    _fill_spec(request.model_spec, head, version, label, "")
    return request.SerializeToString()


def parse_metadata(data: bytes) -> dict[str, bytes]:
    """Serialised tensorflow.SignatureDefs by signature name, or InvalidResponse where the answer holds none."""
    try:
        response = pb.GetModelMetadataResponse.FromString(data)
        if _SIGNATURES not in response.metadata:
            raise InvalidResponse("the head's metadata holds no signatures")
        signatures = pb.SignatureDefMap.FromString(response.metadata[_SIGNATURES].value)
    except DecodeError:
        raise InvalidResponse("the answer is not a GetModelMetadataResponse") from None
    return dict(signatures.signature_def)


def build_reload(config: pb.ModelServerConfig) -> bytes:
    """A serialised ReloadConfigRequest."""
    return pb.ReloadConfigRequest(config=config).SerializeToString()


def check_reload(data: bytes) -> None:
    """Raise what the answer to a ReloadConfigRequest says went wrong: it has a status of its own beside gRPC's."""
    try:
        status = pb.ReloadConfigResponse.FromString(data).status
    except DecodeError:
        raise InvalidResponse("the answer is not a ReloadConfigResponse") from None
    if status.error_code:
        code = _STATUS_CODES.get(status.error_code, grpc.StatusCode.UNKNOWN)
        raise error_for_status(code, status.error_message)
