import json

import msgspec
import pytest

from clients.wire.catalogue import (
    BundleMember,
    Catalogue,
    CatalogueHead,
    GoldenExample,
    Manifest,
    Metrics,
    TrunkRef,
    bundles_of,
    decode_catalogue,
    decode_manifest,
    encode,
    members_of,
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


def test_bundles_come_back_the_same_and_are_not_spoken_of_where_there_are_none():
    members = (BundleMember("spam", 3, 0, 2, "sha256:3"), BundleMember("topic", 1, 2, 1, "sha256:4"))
    bundle = msgspec.structs.replace(MANIFEST, name="bundle-1", members=members)
    heads = {"spam": CatalogueHead(stable=3, versions={3: MANIFEST})}
    whole, without = Catalogue(heads, bundles={"bundle-1": bundle}), Catalogue(heads)

    assert whole == decode_catalogue(encode(whole))
    assert members == members_of(bundles_of(whole)["bundle-1"])
    assert {} == bundles_of(decode_catalogue(encode(without)))
    assert () == members_of(decode_manifest(encode(MANIFEST)))
    # Readers of before know neither word, and refuse words that they do not know.
    assert b"bundles" not in encode(without)
    assert b"members" not in encode(without)


def test_a_bundle_of_nothing_is_refused():
    document = json.loads(encode(Catalogue())) | {"bundles": {"bundle-1": json.loads(encode(MANIFEST))}}
    with pytest.raises(msgspec.ValidationError, match="no members"):
        decode_catalogue(json.dumps(document).encode())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": []}, "one label at least"),
        ({"thresholds": [0.5]}, "one a label"),
        ({"name": "ham"}, "another name"),
        ({"version": 4}, "not the one of its manifest"),
    ],
)
def test_a_catalogue_that_cannot_be_served_is_refused(change, said):
    document = json.loads(encode(Catalogue({"spam": CatalogueHead(stable=3, versions={3: MANIFEST})})))
    document["heads"]["spam"]["versions"]["3"] |= change
    with pytest.raises(msgspec.ValidationError, match=said):
        decode_catalogue(json.dumps(document).encode())


def test_equal_values_are_equal_bytes():
    one = msgspec.structs.replace(MANIFEST, files={"a": "1", "b": "2"})
    other = msgspec.structs.replace(MANIFEST, files={"b": "2", "a": "1"})
    assert encode(one) == encode(other)


@pytest.mark.parametrize("change", [{"schema": "trunkline.head/2"}, {"unheard_of": 1}, {"task": "sing"}, {"width": "wide"}])
def test_a_manifest_of_another_make_is_refused(change):
    document = json.loads(encode(MANIFEST)) | change
    with pytest.raises(msgspec.ValidationError):
        decode_manifest(json.dumps(document).encode())
