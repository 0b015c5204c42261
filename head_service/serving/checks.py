"""A Predict request against its signature: TensorFlow Serving's checks in its order and its words, whatever the transport.

Source: servables/tensorflow/predict_util.cc.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from clients.wire.tensors import TensorError
from clients.wire.tfs import tensor_pb2
from head_service.serving.errors import ServingError, echo, invalid
from head_service.serving.rpc_tensors import decode_tensor
from head_service.serving.signature import Signature


def decode_request(
    signatures: Mapping[str, Signature], name: str, given: Mapping[str, tensor_pb2.Tensor]
) -> dict[str, NDArray[Any]]:
    """The inputs of the signature *name* by alias: those *given*, and the signature's defaults for what is absent.

    Raises:
        ServingError: FAILED_PRECONDITION: no such signature; INVALID_ARGUMENT: *given* are not its inputs.
    """
    if name not in signatures:
        raise ServingError(grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{echo(name)}" not found.')
    wanted, defaults = signatures[name].inputs, signatures[name].defaults
    check_size(wanted, defaults, given)
    arrays = {}
    for alias, info in wanted.items():
        if alias in given:
            arrays[alias] = _decoded(alias, given[alias], info.dtype)
        elif alias in defaults:
            arrays[alias] = defaults[alias]
        else:
            raise invalid(
                f"Signature input alias: {alias}(feed name: {info.name}) not found in request and no default value provided. "
                f"Inputs expected to be in the request {_set(given)}, or default input alias set: {_listed(defaults)}"
            )
    if given.keys() - wanted.keys():
        used = given.keys() & wanted.keys()
        raise invalid(f"Inputs contains invalid name. Used request inputs: {_listed(used)}, request input: {_listed(given)}")
    return arrays


def check_size(wanted: Mapping[str, object], defaults: Mapping[str, object], given: Mapping[str, object]) -> None:
    """Whether as many inputs are *given* as *wanted*; fewer will do where some have *defaults*."""
    if len(given) > len(wanted) or (len(given) < len(wanted) and not defaults):
        raise invalid(
            f"input size does not match signature: {len(given)}!={len(wanted)} len({_set(given)}) != len({_set(wanted)}). "
            f"Sent extra: {_set(given.keys() - wanted.keys())}. "
            f"Missing but required: {_set(wanted.keys() - given.keys())}."
        )


def check_outputs(signature: Signature, output_filter: tuple[str, ...]) -> None:
    """Whether the outputs asked for are the signature's, each once."""
    wanted = signature.outputs
    seen: set[str] = set()
    for alias in output_filter:
        if alias not in wanted:
            raise invalid(
                f"output tensor alias not found in signature: {echo(alias)} Outputs expected to be in the set {_set(wanted)}."
            )
        if alias in seen:
            raise invalid(f"duplicate output tensor alias: {alias}")
        seen.add(alias)


def _decoded(alias: str, tensor: tensor_pb2.Tensor, dtype: np.dtype[Any]) -> NDArray[Any]:
    try:
        return decode_tensor(tensor, dtype)
    except TensorError:
        raise invalid(f"tensor parsing error: {alias}") from None


def _set(names: Iterable[str]) -> str:
    return f"{{{_listed(names)}}}"


def _listed(names: Iterable[str]) -> str:
    return ",".join(echo(name) for name in sorted(names))
