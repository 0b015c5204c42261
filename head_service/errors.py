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


class ConflictError(RepositoryError):
    """Somebody else changed the same thing first; nothing of ours was written."""


class SupersededError(ConflictError):
    """A newer version went live while this one was weighed; it stays published."""


class BusyError(RepositoryError):
    """Somebody else held the repository's lock for as long as we were ready to wait."""


class StorageError(RepositoryError):
    """The directory or object store below the repository does not take or give what it ought to."""


class StorageFullError(StorageError):
    """There is no room left; nothing half-written is visible."""


class RefusedError(RepositoryError):
    """The gate keeps a version from answering."""
