"""The examples of Classify, Regress and MultiInference: from the wire to the one tensor of serialised tf.Examples they feed.

Source: servables/tensorflow/util.cc (InputToSerializedExampleTensor).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients.wire.tfs import inference_pb2 as pb
from head_service.serving.errors import invalid


def serialised_examples(given: pb.Input) -> NDArray[Any]:
    """The examples, each with the context's features before its own, as bytes in an object array [examples].

    Raises:
        ServingError: INVALID_ARGUMENT: there is none.
    """
    if given.WhichOneof("kind") == "example_list_with_context":
        listed = given.example_list_with_context
        # Serialised messages that lie one behind the other are one message with the fields of both.
        found = [listed.context + example for example in listed.examples]
    else:
        found = list(given.example_list.examples)
    if not found:
        raise invalid("Input is empty.")
    examples = np.empty(len(found), dtype=object)
    examples[:] = found
    return examples
