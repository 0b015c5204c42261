import json

import msgspec
import pytest

from clients.wire.catalogue import (
    Catalogue,
    CatalogueHead,
    GoldenExample,
    Manifest,
    Metrics,
    TrunkRef,
    decode_catalogue,
    decode_manifest,
    encode,
)

MANIFEST = Manifest(
    name="spam",
    version=3,
    labels=("ham", "spam"),
    width=384,
    trunk=TrunkRef("small", "sha256:0"),
    metrics=Metrics(0.9, 0.8, 100, 20, "sha256:1"),
    golden=(GoldenExample("a text", "ham", (0.75, 0.25)),),
    files={"saved_model.pb": "sha256:2"},
)


def test_a_manifest_comes_back_the_same():
    assert decode_manifest(encode(MANIFEST)) == MANIFEST


def test_a_catalogue_comes_back_the_same_with_versions_as_numbers():
    catalogue = Catalogue({"spam": CatalogueHead(stable=3, versions={3: MANIFEST}, default=False)})
    assert decode_catalogue(encode(catalogue)) == catalogue


def test_equal_values_are_equal_bytes():
    one = msgspec.structs.replace(MANIFEST, files={"a": "1", "b": "2"})
    other = msgspec.structs.replace(MANIFEST, files={"b": "2", "a": "1"})
    assert encode(one) == encode(other)


@pytest.mark.parametrize("change", [{"schema": "trunkline.head/2"}, {"unheard_of": 1}, {"task": "sing"}, {"width": "wide"}])
def test_a_manifest_of_another_make_is_refused(change):
    document = json.loads(encode(MANIFEST)) | change
    with pytest.raises(msgspec.ValidationError):
        decode_manifest(json.dumps(document).encode())
