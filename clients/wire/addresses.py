"""Addresses that settings give."""

from urllib.parse import urlsplit


def is_http_url(url: str) -> bool:
    """Whether *url* is http(s)://HOST, with or without a port and a path, and nothing else: no credentials, no query."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 (reading it is the check)
    except ValueError:
        return False
    is_bare = not (parts.username or parts.password or parts.query or parts.fragment)
    return parts.scheme in {"http", "https"} and bool(parts.hostname) and is_bare
