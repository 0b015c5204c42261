"""sentence-transformers in LitServe, batching on: it gathers single texts for a moment and encodes them together.

Run by the peer's own Python: `python serve_litserve.py --model DIRECTORY --port PORT`.
"""

import argparse
from typing import Any

import litserve
from sentence_transformers import SentenceTransformer

MAX_BATCH_SIZE = 32
BATCH_SECONDS = 0.01


class EmbeddingAPI(litserve.LitAPI):  # type: ignore[misc] # its types are not installed beside ours
    """`POST /predict` answers a text's vector as a list of numbers."""

    def __init__(self, directory: str) -> None:
        super().__init__(max_batch_size=MAX_BATCH_SIZE, batch_timeout=BATCH_SECONDS)
        self._directory = directory

    def setup(self, device: str) -> None:
        """See LitServe: called once in the process that computes."""
        self._model = SentenceTransformer(self._directory, device=device)

    def decode_request(self, request: dict[str, str]) -> str:
        """See LitServe."""
        return request["text"]

    def predict(self, texts: list[str]) -> Any:
        """See LitServe: float32 [texts, width]."""
        return self._model.encode(texts, batch_size=MAX_BATCH_SIZE, normalize_embeddings=True)

    def encode_response(self, vector: Any) -> dict[str, list[float]]:
        """See LitServe."""
        return {"embedding": vector.tolist()}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    asked = parser.parse_args()
    server = litserve.LitServer(EmbeddingAPI(asked.model), accelerator="cpu")
    server.run(host="127.0.0.1", port=asked.port, generate_client_file=False)


if __name__ == "__main__":
    main()
