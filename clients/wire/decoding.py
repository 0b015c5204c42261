"""What msgspec raises of bytes that are not what they should be: its own error is but one of three."""

from typing import Final

import msgspec

NOT_DECODED: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""Not JSON, or JSON of another shape; strings that are not UTF-8; lists within lists without end."""
