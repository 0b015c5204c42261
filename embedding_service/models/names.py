"""What the graph and the engines call the same."""

from collections.abc import Sequence


def output_names(layers: Sequence[int], num_layers: int) -> dict[int, str]:
    """The graph's output for each of the negative *layers*: `hidden_<n>`, n counting from 0, the embedding layer."""
    return {layer: f"hidden_{layer + num_layers + 1}" for layer in layers}
