"""What a preparation that cannot succeed ends with."""

import errno


class PreparationError(Exception):
    """A trunk cannot be prepared. The message is one sentence that says what to do."""


def from_os_error(error: OSError, doing: str) -> PreparationError:
    """*error*, met while *doing* something, in words."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return PreparationError(
            f"the disk is full: {doing} needs more room; free some or set TRUNKLINE_CACHE_DIR to another disk"
        )
    return PreparationError(f"{doing} failed: {error.strerror or error}")
