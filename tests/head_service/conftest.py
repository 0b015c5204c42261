"""S3 on this machine: moto's server on loopback."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from head_service.object_store import ObjectStore

REGION = "us-east-1"


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Callable[..., ObjectStore]:
    """Makes stores in a bucket of the test's own, each with connections of its own."""
    import s3fs

    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = f"heads-{abs(hash(request.node.nodeid)):x}"
    filesystem = s3fs.S3FileSystem(use_listings_cache=False)
    filesystem.call_s3("create_bucket", Bucket=bucket)

    def make(prefix: str = "models/live", **options: Any) -> ObjectStore:
        return ObjectStore(filesystem, f"{bucket}/{prefix}", **options)

    return make
