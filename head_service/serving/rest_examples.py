"""The body of a REST classify or regress call as examples. Source: util/json_tensor.cc (MakeExampleFromJsonObject)."""

from typing import Any, Final

from clients.wire.tfs import inference_pb2 as pb
from head_service.serving.errors import ServingError, echo, invalid
from head_service.serving.rest_json import printable
from head_service.serving.rest_tensors import bytes_of, is_base64, type_name

_KINDS: Final = {"bytes_list": "bytes", "float_list": "float", "int64_list": "int64"}


def input_of(body: dict[str, Any], document: str) -> pb.Input:
    """The examples of *body* and their context; *document* is the body as far as a message may show it.

    Raises:
        ServingError: INVALID_ARGUMENT: they are not as they should be.
    """
    context = _example(body["context"]).SerializeToString() if "context" in body else None
    if "examples" not in body:
        raise invalid(f"JSON Value: {document} When method is classify, key 'examples' is expected and was not found")
    listed = body["examples"]
    if not isinstance(listed, list):
        raise invalid(f"JSON Value: {document} Expecting 'examples' value to be an list/array")
    if not listed:
        raise invalid(f"JSON Value: {document} 'examples' value is an empty array")
    examples = [_example(item).SerializeToString() for item in listed]
    if context is None:
        return pb.Input(example_list=pb.ExampleList(examples=examples))
    return pb.Input(example_list_with_context=pb.ExampleListWithContext(examples=examples, context=context))


def _example(value: object) -> pb.Example:
    if not isinstance(value, dict):
        raise invalid(f"Example must be JSON object but got JSON {type_name(value)}")
    example = pb.Example()
    for name, content in value.items():
        try:
            feature = example.features.feature[name]
        except (UnicodeEncodeError, ValueError):
            raise invalid("a feature's name is not valid Unicode") from None
        feature.SetInParent()
        for item in content if isinstance(content, list) else [content]:
            _append(feature, printable(name), item)
    return example


def _append(feature: pb.Feature, name: str, value: object) -> None:
    """Booleans and whole numbers are int64, other numbers float, texts and base64 bytes; a feature holds one kind."""
    if isinstance(value, int):  # a boolean is one
        _of_kind(feature, name, "int64_list")
        if value >= 2**63:
            raise invalid(f"Feature: {echo(name)} has uint64_t element. Only int64_t is supported.")
        feature.int64_list.value.append(int(value))
    elif isinstance(value, float):
        _of_kind(feature, name, "float_list")
        feature.float_list.value.append(value)
    elif isinstance(value, str) or (isinstance(value, dict) and is_base64(value)):
        _of_kind(feature, name, "bytes_list")
        feature.bytes_list.value.append(bytes_of(value))
    else:
        raise invalid(f"Feature: {echo(name)} has element with unexpected JSON type: {type_name(value)}")


def _of_kind(feature: pb.Feature, name: str, kind: str) -> None:
    known = feature.WhichOneof("kind")
    if known is not None and known != kind:
        raise _other_kind(name, _KINDS[known])


def _other_kind(name: str, expected: str) -> ServingError:
    return invalid(f"Unexpected element type in feature: {echo(name)} expecting type: {expected}")
