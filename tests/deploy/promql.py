"""PromQL, as far as our rules and panels go: what this accepts Prometheus accepts, and the selectors in it are listed.

Grammar: https://prometheus.io/docs/prometheus/latest/querying/basics/ and .../operators/.
"""

import re
from dataclasses import dataclass, field

AGGREGATIONS = frozenset({"sum", "min", "max", "avg", "count"})
FUNCTIONS = {"rate": 1, "increase": 1, "abs": 1, "histogram_quantile": 2, "vector": 1, "time": 0, "clamp_min": 2}
_OPERATORS = ({"or"}, {"and", "unless"}, {"==", "!=", ">", "<", ">=", "<="}, {"+", "-"}, {"*", "/", "%"})
_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d+)?)|(?P<string>\"(?:[^\"\\]|\\.)*\")|(?P<range>\[(?:\d+[smhd]|\$__rate_interval)\])"
    r"|(?P<name>[a-zA-Z_:][\w:]*)|(?P<sign>=~|!~|!=|>=|<=|==|[-+*/%(){},=<>]))"
)


@dataclass
class Selector:
    """A metric in an expression: its matchers' labels, and what it is grouped by around it."""

    metric: str
    labels: set[str]
    grouped: set[str] = field(default_factory=set)
    has_range: bool = False


class Query:
    """*text*, parsed; ValueError says where it cannot be."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._place = 0
        self.selectors: list[Selector] = []
        self._expression(0)
        if self._place != len(self._tokens):
            raise ValueError(f"unexpected {self._tokens[self._place][1]!r} in {text}")

    def _peek(self) -> str:
        return self._tokens[self._place][1] if self._place < len(self._tokens) else ""

    def _kind(self) -> str:
        return self._tokens[self._place][0] if self._place < len(self._tokens) else ""

    def _take(self, *wanted: str) -> str:
        found = self._peek()
        if not found or (wanted and found not in wanted):
            raise ValueError(f"{found!r} where {wanted} is wanted")
        self._place += 1
        return found

    def _expression(self, level: int) -> None:
        if level == len(_OPERATORS):
            self._primary()
            return
        self._expression(level + 1)
        while self._peek() in _OPERATORS[level]:
            self._take()
            self._expression(level + 1)

    def _primary(self) -> None:
        if self._peek() == "-":
            self._take()
        if self._peek() == "(":
            self._take()
            self._expression(0)
            self._take(")")
        elif self._kind() == "number":
            self._take()
        elif self._peek() in AGGREGATIONS:
            self._aggregation()
        elif self._peek() in FUNCTIONS and self._tokens[self._place + 1][1] == "(":
            self._call(FUNCTIONS[self._take()])
        elif self._kind() == "name":
            self._selector()
        else:
            raise ValueError(f"{self._peek()!r} where a value is wanted")

    def _aggregation(self) -> None:
        self._take()
        first, grouped = len(self.selectors), set()
        if self._peek() == "by":
            self._take()
            grouped = self._names()
        self._call(1)
        for selector in self.selectors[first:]:
            selector.grouped |= grouped

    def _call(self, num_arguments: int) -> None:
        self._take("(")
        for number in range(num_arguments):
            if number:
                self._take(",")
            self._expression(0)
        self._take(")")

    def _names(self) -> set[str]:
        self._take("(")
        names = {self._take()}
        while self._peek() == ",":
            self._take()
            names.add(self._take())
        self._take(")")
        return names

    def _selector(self) -> None:
        found = Selector(self._take(), set())
        if self._peek() == "{":
            self._take()
            while self._peek() != "}":
                if self._kind() != "name":
                    raise ValueError(f"{self._peek()!r} where a label is wanted")
                found.labels.add(self._take())
                self._take("=", "!=", "=~", "!~")
                if self._kind() != "string":
                    raise ValueError(f"{self._peek()!r} where a string is wanted")
                self._take()
                if self._peek() != "}":
                    self._take(",")
            self._take("}")
        if self._kind() == "range":
            self._take()
            found.has_range = True
        self.selectors.append(found)


def _tokens(text: str) -> list[tuple[str, str]]:
    found, place = [], 0
    while place < len(text.rstrip()):
        matched = _TOKEN.match(text, place)
        if matched is None:
            raise ValueError(f"cannot read {text[place:]!r}")
        assert matched.lastgroup is not None
        found.append((matched.lastgroup, matched[matched.lastgroup]))
        place = matched.end()
    return found
