"""What a head that cannot be trained, published or served ends with."""


class HeadServiceError(Exception):
    """The root of the tree; the message is for a person and says what to do."""


class DataError(HeadServiceError):
    """The training data cannot be used; one line a problem, with line numbers."""


class ManifestError(HeadServiceError):
    """A version directory is not what its manifest says."""


class TrunkMismatchError(HeadServiceError):
    """A head was trained on another trunk than the one it would be fed from."""


class RepositoryError(HeadServiceError):
    """A version cannot be published."""
