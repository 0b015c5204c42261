"""A page as a strict reader sees it: every element closed in order, every address and every word."""

import base64
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

VOID = frozenset({"meta", "img", "source", "br", "link", "input"})
ADDRESSES = frozenset({"src", "srcset", "href", "action", "data", "poster", "background"})


class Page(HTMLParser):
    """*elements* are (name, attributes) in order; *problems* is empty when the page is well formed."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.problems: list[str] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        self.problems += [f"{name} is not closed" for name in self._open]
        ids = [attributes["id"] for _, attributes in self.elements if "id" in attributes]
        self.problems += [f"two elements are {name}" for name in set(ids) if ids.count(name) > 1]
        named = [attributes["aria-labelledby"] for _, attributes in self.elements if "aria-labelledby" in attributes]
        self.problems += [f"nothing is {name}" for name in named if name not in ids]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        if len(set(names)) != len(names):
            self.problems.append(f"{tag} has an attribute twice")
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.problems.append(f"</{tag}> closes another element")

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.elements}

    @property
    def text(self) -> str:
        return "".join(self.words)

    def all(self, name: str) -> list[dict[str, str]]:
        return [attributes for found, attributes in self.elements if found == name]

    @property
    def addresses(self) -> list[str]:
        return [value for _, attributes in self.elements for name, value in attributes.items() if name in ADDRESSES]

    @property
    def pictures(self) -> list[str]:
        """The SVG of each picture, proven to be XML."""
        prefix = "data:image/svg+xml;base64,"
        found = [base64.b64decode(value.removeprefix(prefix)).decode() for value in self.addresses if value.startswith(prefix)]
        for svg in found:
            ET.fromstring(svg)
        return found
