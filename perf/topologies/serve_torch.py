"""Plan one as a user writes it: N whole models, transformers and torch, in FastAPI with a sync endpoint.

Run by the Python of the environment sentence_transformers, which has all of it: `python serve_torch.py --model DIRECTORY
--weights FILE.npz --num-heads N`. `POST /classify` takes {"text": "…"} and answers {"labels": {head: label}}.
"""

import argparse
from typing import Any

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import AutoModel, AutoTokenizer


class Body(BaseModel):
    """One text."""

    text: str


class Classifier(torch.nn.Module):  # type: ignore[misc] # its types are not installed beside ours
    """An encoder of its own, the mean of its last layer made length 1, and a linear layer."""

    def __init__(self, directory: str, kernel: Any, bias: Any) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(directory)
        self.head = torch.nn.Linear(*kernel.shape)
        self.head.load_state_dict({"weight": torch.from_numpy(kernel.T.copy()), "bias": torch.from_numpy(bias)})

    def forward(self, inputs: Any) -> Any:
        """Logits, float32 [texts, labels]."""
        hidden = self.encoder(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        vectors = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        return self.head(torch.nn.functional.normalize(vectors, dim=-1))


def app_of(tokenizer: Any, models: dict[str, tuple[Classifier, list[str]]], max_tokens: int) -> FastAPI:
    """The application; *models* are a classifier and its labels by name."""
    app = FastAPI()

    @app.post("/classify")
    def classify(body: Body) -> dict[str, dict[str, str]]:
        inputs = tokenizer(body.text, truncation=True, max_length=max_tokens, return_tensors="pt")
        labels = {}
        with torch.inference_mode():
            for name, (model, known) in models.items():
                labels[name] = known[model(inputs).argmax(dim=-1).item()]
        return {"labels": labels}

    return app


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--weights", required=True, help="npz: kernel_NAME [width, labels], bias_NAME and labels_NAME")
    parser.add_argument("--num-heads", type=int, required=True)
    parser.add_argument("--max-tokens", type=int, required=True)
    parser.add_argument("--port", type=int, default=0)
    asked = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(asked.model)
    models = {}
    with np.load(asked.weights, allow_pickle=False) as weights:
        names = [key.removeprefix("kernel_") for key in weights.files if key.startswith("kernel_")]
        for name in names[: asked.num_heads]:
            classifier = Classifier(asked.model, weights[f"kernel_{name}"], weights[f"bias_{name}"]).eval()
            models[name] = (classifier, weights[f"labels_{name}"].tolist())
    uvicorn.run(app_of(tokenizer, models, asked.max_tokens), host="127.0.0.1", port=asked.port)


if __name__ == "__main__":
    main()
