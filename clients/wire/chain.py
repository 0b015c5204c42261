"""What is done to a text before the normaliser sees it: steps by name and version, each a pure function, one after the other.

A head's chain stands in its manifest and a trunk's is part of its fingerprint, so training and serving cannot differ: both call
what is here. A step never changes under its version; what is to behave otherwise gets the next number.

Every step of ours takes time in proportion to the text, whatever is in it: patterns never go back over what they have read.
"""

import html
import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final

from clients.wire.normal_form import normal_form

TextStep = Callable[[str], str]

ENTRY_POINTS: Final = "trunkline.text_steps"
"""The entry point group of steps that other packages bring; what an entry point "acme.footer" names is the step
"entrypoint:acme.footer/1", or of the version that the function's attribute `version` says."""

MAX_STEPS: Final = 32
MAX_CHARACTERS: Final = 1_000_000
"""What a step makes longer is cut here: one character can stand for eighteen."""

_OF_OTHERS: Final = "entrypoint:"
_MAX_SHOWN: Final = 100


class UnknownStepError(ValueError):
    """A chain names a step that is not here; the message says which, and what there is."""


class StepFailedError(Exception):
    """A step that another package brought raised, or did not answer with a text; the message names the step."""


class Chain:
    """Steps in their order. Calling it applies them all; without any it gives back what it is given."""

    __slots__ = ("_steps", "is_quick", "names")

    def __init__(self, names: tuple[str, ...] = (), steps: tuple[TextStep, ...] = ()) -> None:
        self.names: Final = names
        self.is_quick: Final = not any(name.startswith(_OF_OTHERS) for name in names)
        """Whether all steps are ours: what others do, and how long it takes, is not known."""
        self._steps = steps

    def __bool__(self) -> bool:
        return bool(self._steps)

    def __call__(self, text: str) -> str:
        """*text* after all steps, at most `MAX_CHARACTERS` of it.

        Raises:
            StepFailedError: a step of another package did.
        """
        for name, step in zip(self.names, self._steps, strict=True):
            text = (_guarded(name, step, text) if name.startswith(_OF_OTHERS) else step(text))[:MAX_CHARACTERS]
        return text


NO_STEPS: Final = Chain()


@lru_cache(maxsize=256)
def chain_of(names: tuple[str, ...]) -> Chain:
    """The chain of the steps called *names*, each with its version.

    Raises:
        UnknownStepError: one of them is not here.
    """
    if len(names) > MAX_STEPS:
        raise UnknownStepError(f"there are {len(names)} steps, and {MAX_STEPS} is the most")
    return Chain(names, tuple(map(_step, names))) if names else NO_STEPS


@lru_cache(maxsize=256)
def fault_of(names: tuple[str, ...]) -> str:
    """Why the chain of *names* cannot be had here, "" when it can: an answer to ask for often."""
    try:
        chain_of(names)
    except UnknownStepError as error:
        return str(error)
    return ""


def with_versions(names: Iterable[str]) -> tuple[str, ...]:
    """*names* as a manifest has them: a name without a version means the newest there is.

    Raises:
        UnknownStepError: one of them is not here.
    """
    said = tuple(name.strip() for name in names if name.strip())
    whole = tuple(name if "/" in name else f"{name}/{_newest(name)}" for name in said)
    return chain_of(whole).names


def _newest(name: str) -> int:
    if name.startswith(_OF_OTHERS):
        return _version_of(_loaded(name.removeprefix(_OF_OTHERS)))
    return max((version for known, version in map(_parted, STEPS) if known == name), default=1)


def _parted(name: str) -> tuple[str, int]:
    plain, _, version = name.rpartition("/")
    return plain, int(version)


def _step(name: str) -> TextStep:
    if not name.startswith(_OF_OTHERS):
        if name not in STEPS:
            raise UnknownStepError(f"there is no text step {_shown(name)}; there are {', '.join(STEPS)}")
        return STEPS[name]
    plain, _, version = name.removeprefix(_OF_OTHERS).rpartition("/")
    step = _loaded(plain)
    if version != str(_version_of(step)):
        raise UnknownStepError(f"the text step {_shown(name)} is installed in another version, {_version_of(step)}")
    return step


def _loaded(plain: str) -> TextStep:
    from importlib.metadata import entry_points  # noqa: PLC0415 (slow to import, and most chains need none)

    found = [point for point in entry_points(group=ENTRY_POINTS) if point.name == plain]
    if not found:
        raise UnknownStepError(f"the text step {_shown(_OF_OTHERS + plain)} is of a package that is not installed here")
    try:
        step: Any = found[0].load()
    # The package may raise anything.
    except Exception as error:
        raise UnknownStepError(f"the text step {_shown(_OF_OTHERS + plain)} cannot be loaded: {type(error).__name__}") from None
    if not callable(step):
        raise UnknownStepError(f"the text step {_shown(_OF_OTHERS + plain)} is not a function")
    return step  # type: ignore[no-any-return]


def _version_of(step: TextStep) -> int:
    version = getattr(step, "version", 1)
    return version if isinstance(version, int) else 1


def _guarded(name: str, step: TextStep, text: str) -> str:
    try:
        found = step(text)
    # The package may raise anything.
    except Exception as error:
        raise StepFailedError(f"the text step {_shown(name)} failed: {type(error).__name__}") from None
    if not isinstance(found, str):
        raise StepFailedError(f"the text step {_shown(name)} did not answer with a text")
    return found


def _shown(name: str) -> str:
    """A name that a file brought, fit for any terminal."""
    return repr("".join(character if character.isprintable() else "\ufffd" for character in name[:_MAX_SHOWN]))


# --- the steps ---------------------------------------------------------------------------------------------------------------

_WHITE_SPACE: Final = re.compile(r"\s++")
_CONTROLS: Final = frozenset({"Cc", "Cs", "Co", "Cn"})

_LONG_REFERENCE: Final = re.compile(r"&#(?:[0-9]{9,}+|[xX][0-9a-fA-F]{9,}+);?")
_HIDDEN: Final = re.compile(r"<!--.*?(?:-->|\Z)|<(script|style)\b[^<>]*+>.*?(?:</\1\s*+>|\Z)", re.IGNORECASE | re.DOTALL)
_TAG: Final = re.compile(r"""</?([a-z][a-z0-9]*+)(?:[^<>"']++|"[^"<]*+"|'[^'<]*+'|["'])*+>|<[!?][^<>]*+>""", re.IGNORECASE)
_INLINE: Final = re.compile(
    "a|abbr|acronym|b|bdi|bdo|big|cite|code|data|del|dfn|em|font|i|ins|kbd|label|mark|q|s|samp|small|span|strike|strong|sub|sup"
    "|time|tt|u|var|wbr"
)

_URL: Final = re.compile(r"""(?<![a-z0-9])((?:https?|ftp)://|www\.)([^\s<>"]++)""", re.IGNORECASE)
_BEHIND_URL: Final = ".,;:!?'*)]}"
_WITH_AT: Final = re.compile(r"(?<![\w.+%@-])[\w.+%-]*+(?:@[\w.+%-]*+)++")
_HOST: Final = re.compile(r"[\w-]++(?:\.[\w-]++)++")
_NUMBER: Final = re.compile(r"(?<!\w)\d++(?:[.,]\d++)*+")


def _nfc(text: str) -> str:
    return normal_form("NFC", text)


def _nfkc(text: str) -> str:
    """Also full-width and half-width forms, ligatures, circled numbers and the like become what they stand for."""
    return normal_form("NFKC", text)


def _drop_control(text: str) -> str:
    """Control characters that are not white space, halves of surrogate pairs, and what Unicode has not given a meaning."""
    if text.isprintable():
        return text
    return "".join(c for c in text if c.isspace() or unicodedata.category(c) not in _CONTROLS)


def _drop_zero_width(text: str) -> str:
    """Format characters: zero-width spaces and joiners, soft hyphens, marks of direction, byte order marks."""
    if text.isascii():
        return text
    return "".join(c for c in text if unicodedata.category(c) != "Cf")


def _white_space(text: str) -> str:
    """Runs of white space become one space; none is left at either end."""
    return _WHITE_SPACE.sub(" ", text).strip()


def _lower(text: str) -> str:
    return text.lower()


def _html_unescape(text: str) -> str:
    """`&amp;`, `&#38;` and `&#x26;` become what they stand for, once: `&amp;lt;` becomes `&lt;`."""
    if "&" not in text:
        return text
    # No character has so long a number, and Python refuses to read very long ones.
    return html.unescape(_LONG_REFERENCE.sub("\ufffd", text))


def _html_strip(text: str) -> str:
    """Comments, scripts and styles are dropped; tags too, those that break a line become a space; references are unescaped.

    A comment, script or style that does not end takes the rest of the text with it, as it does in a browser. A `<` that begins
    no tag, as in `a < b`, stays, and so does a tag with a `<` in an attribute.
    """
    if "<" in text:
        text = _TAG.sub(_instead_of_tag, _HIDDEN.sub("", text))
    return _html_unescape(text)


def _instead_of_tag(tag: re.Match[str]) -> str:
    return "" if _INLINE.fullmatch((tag[1] or "").lower()) else " "


def _mask_urls(text: str) -> str:
    """What begins with http://, https://, ftp:// or www. becomes `url`; punctuation behind it stays."""
    return _URL.sub(_instead_of_url, text)


def _instead_of_url(found: re.Match[str]) -> str:
    address = found[2].rstrip(_BEHIND_URL)
    return f"url{found[2][len(address) :]}" if address else found[0]


def _mask_emails(text: str) -> str:
    """Addresses such as `a.b+c@example.org` become `email`; a dot behind one stays."""
    return _WITH_AT.sub(_instead_of_email, text) if "@" in text else text


def _instead_of_email(found: re.Match[str]) -> str:
    whole = found[0]
    parts = whole.split("@")
    if not any(before.strip(".") and _HOST.match(behind) for before, behind in pairwise(parts)):
        return whole
    return "email" + whole[len(whole.rstrip(".")) :]


def _mask_numbers(text: str) -> str:
    """Digits, also with `.` or `,` between, become `0` where no letter is before them: `1,299.50` and `5km`, not `covid19`."""
    return _NUMBER.sub("0", text)


STEPS: Final[dict[str, TextStep]] = {
    "nfc/1": _nfc,
    "nfkc/1": _nfkc,
    "html-unescape/1": _html_unescape,
    "html-strip/1": _html_strip,
    "drop-control/1": _drop_control,
    "drop-zero-width/1": _drop_zero_width,
    "white-space/1": _white_space,
    "lower/1": _lower,
    "mask-urls/1": _mask_urls,
    "mask-emails/1": _mask_emails,
    "mask-numbers/1": _mask_numbers,
}
"""By name and version."""
