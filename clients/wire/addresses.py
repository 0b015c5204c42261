"""Addresses that settings give."""

from urllib.parse import urlsplit


def host_port(host: str, port: int) -> str:
    """HOST:PORT as addresses and URLs are written: what is of IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_http_url(url: str) -> bool:
    """Whether *url* is http(s)://HOST, with or without a port and a path, and nothing else: no credentials, no query."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 (reading it is the check)
    except ValueError:
        return False
    is_bare = not (parts.username or parts.password or parts.query or parts.fragment)
    return parts.scheme in {"http", "https"} and bool(parts.hostname) and is_bare
