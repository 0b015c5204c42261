"""`trunkline train`: from a CSV to a head that answers, against a running stack or with the embedding service alone."""
