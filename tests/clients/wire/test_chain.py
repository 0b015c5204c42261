"""Steps are kept by what they do to texts; a step whose answers must change gets the next version, not other answers here."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.wire import chain
from clients.wire.chain import (
    MAX_CHARACTERS,
    MAX_STEPS,
    NO_STEPS,
    STEPS,
    StepFailedError,
    UnknownStepError,
    chain_of,
    fault_of,
    with_versions,
)

ONCE_ONLY = {"html-unescape/1", "html-strip/1"}
"""`&amp;lt;` is `&lt;` the first time and `<` the second."""

PIECES = [*"<>&;\"'/!-#x@._+ ,1aA\n\u00a0\u200b\u0301\u0130\u03a3\u00b2", "<b>", "</p>", "<!--", "-->", "<script>"]
PIECES += ["</script>", "&lt;", "http://", "www.", "a@b.c", "@d.e", "1,299.50", "&#", "99999999999", "&#x26;", "\ud800", "\ufb01"]
BUSY = [
    "<",
    "<!--",
    "<script>",
    "</style",
    '<a "',
    "<a '>'",
    "&",
    "&#9",
    "@",
    "a@b.",
    "a",
    "http://",
    "www.",
    "1,",
    "a\u0316\u0301",
]
HOSTILE = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=30).map("".join)


@pytest.mark.parametrize("name", STEPS)
@given(text=HOSTILE)
def test_any_text_can_be_given_to_any_step(name: str, text: str) -> None:
    once = STEPS[name](text)

    assert name in ONCE_ONLY or STEPS[name](once) == once


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("nfc/1", "e\u0301 \ufb01", "\u00e9 \ufb01"),
        ("nfkc/1", "e\u0301 \ufb01 \uff21\u2460", "\u00e9 fi A1"),
        ("drop-control/1", "a\x00\x1bb\tc\n\ud800\ue000", "ab\tc\n"),
        ("drop-zero-width/1", "pass\u200bword\u00ad \u202eabc\u200d\ufeff", "password abc"),
        ("white-space/1", " a\t\n\u00a0 b\u3000", "a b"),
        ("lower/1", "HELLO \u00c4\u0130", "hello \u00e4i\u0307"),
        (
            "html-unescape/1",
            "a &amp; b &lt;i&gt; &#65;&#x42; &amp;lt; &nosuch; &#99999999999999;",
            "a & b <i> AB &lt; &nosuch; \ufffd",
        ),
        ("html-strip/1", "<p>One <b>bo</b>ld</p><p>two<br/>three</p>", " One bold  two three "),
        ("html-strip/1", "a<!-- b -->b c <script>d('</p>')</script>e<STYLE>f</style >g", "ab c eg"),
        ("html-strip/1", "1 < 2 and 3 > 2, I <3 it, a<b", "1 < 2 and 3 > 2, I <3 it, a<b"),
        ("html-strip/1", """<a title="<">link</a> &lt;tag&gt;""", """<a title="<">link <tag>"""),
        ("html-strip/1", """<a href="x>y">link</a><img alt='a>b'>""", "link "),
        ("html-strip/1", "kept <!-- never closed", "kept "),
        ("mask-urls/1", "see https://a.b/c?d=e#f, or (www.x.org).", "see url, or (url)."),
        (
            "mask-urls/1",
            "http://... www. xhttp://a \u8bf7\u770bhttps://x.y \u597d",
            "http://... www. xhttp://a \u8bf7\u770burl \u597d",
        ),
        ("mask-emails/1", "to a.b+c@x-y.org. or mailto:d@e.f, not @you or a@b", "to email. or mailto:email, not @you or a@b"),
        ("mask-numbers/1", "1,299.50 EUR, 5km, 10:30, \u0661\u0662, covid19 and v2", "0 EUR, 0km, 0:0, 0, covid19 and v2"),
    ],
)
def test_a_step_does_what_its_version_says(name: str, text: str, expected: str) -> None:
    assert expected == STEPS[name](text)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_ends_on_texts_made_to_keep_it_busy(name: str) -> None:
    """A step that goes back over what it has read takes hours for some of these."""
    size = 200_000
    for part in BUSY:
        STEPS[name](part * (size // len(part)))
        STEPS[name]("<style>&#x" + part * (size // len(part)))


def test_steps_are_applied_in_their_order() -> None:
    assert "0 url" == chain_of(("lower/1", "mask-urls/1", "mask-numbers/1"))("7 HTTP://A.B/7")
    assert "0 http://a.b/0" == chain_of(("mask-numbers/1", "lower/1"))("7 HTTP://A.B/7")
    assert chain_of(()) is NO_STEPS
    assert "As It Is" == NO_STEPS("As It Is")


def test_what_a_step_makes_longer_is_cut() -> None:
    assert MAX_CHARACTERS == len(chain_of(("nfkc/1",))("\ufdfa" * (MAX_CHARACTERS // 10)))


def test_a_name_without_a_version_is_the_newest() -> None:
    assert ("nfkc/1", "lower/1") == with_versions([" nfkc", "", "lower/1"])
    assert () == with_versions([""])


@pytest.mark.parametrize(
    "names", [("lower",), ("lower/2",), ("upper/1",), ("entrypoint:nobody.here/1",), ("lower/1",) * (MAX_STEPS + 1)]
)
def test_an_unknown_step_is_told_in_a_sentence(names: tuple[str, ...]) -> None:
    with pytest.raises(UnknownStepError):
        chain_of(names)
    assert fault_of(names)


def test_what_a_file_calls_a_step_cannot_harm_a_terminal() -> None:
    assert "\x1b" not in fault_of(("\x1b[2J/1",))
    assert 1_000 > len(fault_of(("x" * 100_000,)))


PACKAGE = """
def shout(text):
    return text.upper()

def second(text):
    return text + "!"
second.version = 2

def fails(text):
    raise ValueError(text)

def answers_bytes(text):
    return b""
"""
POINTS = """[trunkline.text_steps]
acme.shout = acme_steps:shout
acme.second = acme_steps:second
acme.fails = acme_steps:fails
acme.bytes = acme_steps:answers_bytes
acme.gone = acme_steps:gone
acme.number = acme_steps:__name__
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """A package with steps of its own lies on the path; gives what a chain of them makes of a text."""
    (tmp_path / "acme_steps.py").write_text(PACKAGE)
    info = tmp_path / "acme_steps-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-steps\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for kept in (chain.chain_of, chain.fault_of):
        kept.cache_clear()
    return lambda text, *names: chain_of(tuple(f"entrypoint:acme.{name}" for name in names))(text)


def test_a_package_brings_steps_of_its_own(installed: Callable[..., str]) -> None:
    assert "A B!" == installed("a b", "shout/1", "second/2")
    assert ("entrypoint:acme.shout/1", "entrypoint:acme.second/2") == with_versions(
        ["entrypoint:acme.shout", "entrypoint:acme.second"]
    )
    assert not chain_of(("entrypoint:acme.shout/1",)).is_quick


@pytest.mark.parametrize("name", ["second/1", "shout/2", "gone/1", "number/1", "unheard/1", "shout/one"])
def test_a_step_that_is_not_there_as_asked_for_is_refused(installed: Callable[..., str], name: str) -> None:
    with pytest.raises(UnknownStepError, match="acme"):
        installed("a", name)


@pytest.mark.parametrize("name", ["fails/1", "bytes/1"])
def test_a_step_that_fails_is_named_and_the_text_is_not(installed: Callable[..., str], name: str) -> None:
    with pytest.raises(StepFailedError) as raised:
        installed("secret", name)
    assert "acme" in str(raised.value)
    assert "secret" not in str(raised.value)
