"""Other servers of embeddings, each in an environment of its own, to be measured beside ours."""
