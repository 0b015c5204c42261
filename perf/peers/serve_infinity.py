"""infinity-emb by its own command line, all defaults but these: no code from models, and mean pooling, which it cannot guess.

Run by the peer's own Python: `python serve_infinity.py --model DIRECTORY --port PORT [--engine optimum]`. The engine
optimum runs the ONNX file in the directory.
"""

import argparse
import os
import sys

from infinity_emb.cli import cli


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", required=True)
    parser.add_argument("--engine", default="torch")
    asked = parser.parse_args()
    # It hands the ONNX file's path on joined to the directory's, and optimum joins them once more: only "." bears that.
    os.chdir(asked.model)
    flags = ["--model-id", ".", "--engine", asked.engine, "--pooling-method", "mean", "--no-trust-remote-code"]
    sys.argv = ["infinity_emb", "v2", *flags, "--host", "127.0.0.1", "--port", asked.port]
    cli()


if __name__ == "__main__":
    main()
