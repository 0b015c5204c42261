"""sentence-transformers in FastAPI as its users write it: a sync endpoint, which FastAPI runs in its pool of threads.

Run by the peer's own Python: `python serve_sentence_transformers.py --model DIRECTORY --port PORT`.
"""

import argparse

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer


class Body(BaseModel):
    """One text."""

    text: str


def app_of(model: SentenceTransformer) -> FastAPI:
    """The application: `POST /embed` answers a text's vector as a list of numbers."""
    app = FastAPI()

    @app.post("/embed")
    def embed(body: Body) -> list[float]:
        vector: list[float] = model.encode(body.text, normalize_embeddings=True).tolist()
        return vector

    return app


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    asked = parser.parse_args()
    app = app_of(SentenceTransformer(asked.model, device="cpu"))
    uvicorn.run(app, host="127.0.0.1", port=asked.port)


if __name__ == "__main__":
    main()
