"""REST paths to what they ask for. Source: model_servers/http_rest_api_util.cc.

The reference matches the path as it was sent, percent signs and all, and decodes the name and the label afterwards. It
compares the verb and `metadata` with regard to case although its expressions do not; here their case is no matter.
"""

import re
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import unquote

from clients.wire.tfs import serving_pb2 as pb
from head_service.serving.errors import echo, invalid

Method = Literal["classify", "regress", "predict", "status", "metadata"]

_WHICH: Final = r"(?:(?:/versions/(?P<version>[0-9]+))|(?:/labels/(?P<label>[^/:]+)))?"
_POST: Final = re.compile(rf"(?i)/v1/models/(?P<name>[^/:]+){_WHICH}:(?P<method>classify|regress|predict)")
_GET: Final = re.compile(rf"(?i)/v1/models(?:/(?P<name>[^/:]+))?{_WHICH}(?:/(?P<method>metadata))?")
_PREFIX: Final = "/v1/"
_MAX_VERSION: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Route:
    """What a path asks, and of which model; *name* is empty where the path has none."""

    method: Method
    name: str
    version: int | None
    label: str | None

    def spec(self, signature: str = "") -> pb.ModelSpec:
        """The model as gRPC names it."""
        spec = pb.ModelSpec(name=self.name, signature_name=signature)
        if self.version is not None:
            spec.version.value = self.version
        elif self.label is not None:
            spec.version_label = self.label
        return spec


def is_ours(path: str) -> bool:
    """Whether *path* is this API's to answer, be it well formed or not; all others are unknown to the server."""
    return path.lower().startswith(_PREFIX)


def route(http_method: str, path: str) -> Route:
    """What *path*, as it was sent, asks for.

    Raises:
        ServingError: INVALID_ARGUMENT: nothing, or a version beyond 64 bits.
    """
    expression = {"POST": _POST, "GET": _GET}.get(http_method)
    match = expression.fullmatch(path) if expression else None
    if match is None:
        raise invalid(f"Malformed request: {http_method} {echo(path)}")
    return Route(
        method=_method(match["method"]),
        name=unquote(match["name"] or "", errors="replace"),
        version=None if match["version"] is None else _version(match["version"]),
        label=None if match["label"] is None else unquote(match["label"], errors="replace"),
    )


def _method(word: str | None) -> Method:
    match (word or "status").lower():
        case "classify":
            return "classify"
        case "regress":
            return "regress"
        case "predict":
            return "predict"
        case "metadata":
            return "metadata"
        case _:
            return "status"


def _version(digits: str) -> int:
    significant = digits.lstrip("0") or "0"
    if len(significant) > 19 or int(significant) > _MAX_VERSION:
        raise invalid(f"Failed to convert version: {echo(digits)} to numeric.")
    return int(significant)
