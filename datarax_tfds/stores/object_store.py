"""Reads, lists and writes objects through TensorStore, and says what is wrong if a store fails.

    content, generation = read_object(ObjectPath.parse("gs://bucket/mnist/3.0.1/features.json"))

TensorStore repeats requests that failed for a reason that may pass (status 408, 429 and 5xx, a lost
connection), waiting longer each time. It finds credentials by the conventions of each store, and
has no timeout: each call here ends within `PATIENCE.answer_s` seconds. How many requests may be
under way at once is its own setting, too: 32, or `TENSORSTORE_GCS_REQUEST_CONCURRENCY` and
`TENSORSTORE_S3_REQUEST_CONCURRENCY`.
"""

import functools
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from datarax_tfds.errors import RESTORE, DataLossError
from datarax_tfds.runtime.threads import native_call
from datarax_tfds.stores.object_path import ObjectPath
from sharding.checks import refused

_GCS_VARIABLE = "TENSORSTORE_GCS_HTTP_URL"
_opening = threading.Lock()
_POLL_S = 0.5
_SHORT_ANSWERS = 3  # how often a range is requested again if the answer is too short
# What TensorStore says of a range that it did not get whole.
_PARTIAL = re.compile(r"was not satisfied by response with byte range .* total size (\d+)")
# What TensorStore says before an answer that is no JSON, which it quotes.
_QUOTED = re.compile(r"(Failed to parse (?:response|object) metadata):.*", re.DOTALL)
_ADDRESS = re.compile(
    r"(https?://)?([^\s/@]+@)?([\w.-]+|\[[\da-fA-F:.]+\])(:\d+)?(/\S*)?", re.ASCII
)
_PASSWORD = re.compile(r"(?<=://)[^/]*@")
_TAIL_BYTES = 1 << 20
_NO_NAME = ".datarax_tfds"  # of no object
_BEYOND = "OUT_OF_RANGE"
_DENIED = "PERMISSION_DENIED"
# What TensorStore says of a database whose files are damaged, and not of a store that fails.
_DAMAGED = ("DATA_LOSS", "FAILED_PRECONDITION", "INVALID_ARGUMENT", "NOT_FOUND", _BEYOND)


class Patience(NamedTuple):
    """How long to go on with a store that fails.

    Args:
        retries: How often a request is repeated; the waits grow from 0.2 to 5 s.
        answer_s: The longest time for all requests of one call.
    """

    retries: int = 8
    answer_s: float = 120.0


PATIENCE = Patience()
BRIEF = Patience(retries=3, answer_s=8.0)  # for a store that may well be out of reach


class _Limit(NamedTuple):
    """How long a call may take, and when this time is over."""

    seconds: float
    end: float


def _limit(seconds: float) -> _Limit:
    return _Limit(seconds, time.monotonic() + seconds)


class Content(NamedTuple):
    """Bytes of an object, and its generation: another one when the object has been replaced."""

    content: bytes
    generation: bytes


def read_object(path: ObjectPath) -> Content | None:
    """The whole content of an object; None if there is none.

    Raises:
        PermissionError: The store does not let this process read it.
        ConnectionError: The store does not answer, or not as it should.
    """
    return read_objects([path])[0]


def read_objects(paths: Sequence[ObjectPath]) -> list[Content | None]:
    """The content of several objects of one bucket, requested at once; raises as `read_object`."""
    limit = _limit(PATIENCE.answer_s)
    futures = [_bucket(path).read(path.key) for path in paths]
    return [
        _found(_result(future, path, limit)) for path, future in zip(paths, futures, strict=True)
    ]


def generation(path: ObjectPath) -> bytes:
    """The generation of an object, which takes one small request; raises as `read_ranges`."""
    limit = _limit(PATIENCE.answer_s)
    future = _bucket(path).read(path.key, byte_range=slice(0, 0))
    return _existing(path, _result(future, path, limit)).generation


def object_bytes(path: ObjectPath) -> int:
    """The length of an object. A store does not say it, so its end is searched for, in a few round
    trips for each power of two above 1 MiB. Raises as `read_ranges`.
    """

    def has(count: int) -> bool:
        return bool(read_ranges(path, [(count - 1, count)])[0].content)

    least, step = 0, _TAIL_BYTES
    while has(least + step):
        least, step = least + step, 2 * step
    while step > _TAIL_BYTES:
        step //= 2
        if has(least + step):
            least += step
    return least + len(read_ranges(path, [(least, least + step)])[0].content)


def read_ranges(path: ObjectPath, ranges: Sequence[tuple[int, int]]) -> list[Content]:
    """The bytes `[start, stop)` of an object, or fewer where the object ends.

    All ranges are requested at once; those that are less than 4 KiB apart in one request.

    Raises:
        DataLossError: There is no such object.
        PermissionError: The store does not let this process read it.
        ConnectionError: The store does not answer, or not as it should.
    """
    return PendingRanges(path, ranges).result()


class PendingRanges:
    """Ranges of an object that have been requested, as by `read_ranges`."""

    def __init__(self, path: ObjectPath, ranges: Sequence[tuple[int, int]]):
        import tensorstore as ts

        self._path = path
        self._ranges = ranges
        self._bucket = _bucket(path)
        batch = ts.Batch()
        self._futures = [self._requested(start, stop, batch) for start, stop in ranges]
        batch.submit()

    def result(self) -> list[Content]:
        """The contents; raises as `read_ranges`."""
        limit = _limit(PATIENCE.answer_s)
        return [
            self._content(future, start, stop, limit)
            for future, (start, stop) in zip(self._futures, self._ranges, strict=True)
        ]

    def _requested(self, start: int, stop: int, batch: Any = None) -> Any:
        return self._bucket.read(self._path.key, byte_range=slice(start, stop), batch=batch)

    def _content(self, future: Any, start: int, stop: int, limit: _Limit) -> Content:
        for _ in range(_SHORT_ANSWERS):
            answer = _result(future, self._path, limit, start)
            if not isinstance(answer, str):
                break
            partial = _PARTIAL.search(answer)
            if partial is None or int(partial[1]) <= start:
                return Content(b"", b"")  # the range begins behind the end of the object
            # Either the object ends within the range, or the answer was too short.
            future = self._requested(start, min(stop, int(partial[1])))
        else:
            raise _unanswered(self._path, start, "its answers are shorter than what was requested")
        return _existing(self._path, answer)


def names(directory: ObjectPath, patience: Patience | None = None) -> list[str]:
    """The names of all objects below a directory, as `3.0.1/features.json`, in their order.

    The store is asked for a thousand names at a time. Raises as `read_object`.
    """
    patience = patience or PATIENCE
    folder = _bucket(directory, patience)
    if directory.key:
        folder /= directory.key + "/"
    limit = _limit(patience.answer_s)
    keys = _result(folder.list(), directory, limit)
    if not keys:
        # TensorStore takes the answers 400, 401, 403 and 404 of Google Cloud Storage to a listing
        # for a listing without names. To a read, it says what is wrong.
        _result(folder.read(_NO_NAME, byte_range=slice(0, 0)), directory, limit)
    return sorted(key.decode() for key in keys)


def write_object(path: ObjectPath, content: bytes) -> None:
    """Writes an object; nobody ever reads a part of it. Raises as `read_object`."""
    limit = _limit(PATIENCE.answer_s)
    _result(_bucket(path).write(path.key, content), path, limit)


def ocdbt_description(directory: ObjectPath, *node: str) -> Any:
    """What `tensorstore.ocdbt.dump` says of the database in a directory, or of a node of it.

    Raises:
        ValueError: The database is damaged.
        PermissionError: The store does not let this process read it.
        ConnectionError: The store does not answer, or not as it should.
    """
    import tensorstore as ts

    store = _bucket(directory) / f"{directory.key}/"
    return _result(ts.ocdbt.dump(store, *node), directory, _limit(PATIENCE.answer_s), damaged=True)


def _found(read: Any) -> Content | None:
    return None if read.state == "missing" else Content(read.value, read.stamp.generation)


def _existing(path: ObjectPath, read: Any) -> Content:
    found = _found(read)
    if found is None:
        raise refused(
            DataLossError,
            str(path),
            "there is no such object in the store.",
            bucket=path.bucket,
            fix=RESTORE,
        )
    return found


def _result(
    future: Any,
    path: ObjectPath,
    limit: _Limit,
    start: int | None = None,
    *,
    damaged: bool = False,
) -> Any:
    """The result of a request. If it asked for a range from `start` on, and the object does not
    have all of that, the error as a text. With `damaged`, a `ValueError` says so of what was read.
    """
    while True:
        with native_call():  # briefly, so that the interpreter can exit meanwhile
            try:
                return future.result(timeout=_POLL_S)
            except TimeoutError:
                if time.monotonic() < limit.end:
                    continue
                reason = f"no answer within {limit.seconds:.0f} s"
            except (ValueError, NotImplementedError) as error:  # the latter for status 501
                if start is not None and str(error).startswith(_BEYOND):
                    return str(error)
                if damaged and str(error).startswith(_DAMAGED):
                    raise
                reason = str(error)
        # Without the cause, because a store quotes keys and accounts in the body of its answer.
        raise _unanswered(path, start or 0, reason) from None


def _unanswered(path: ObjectPath, start: int, reason: str) -> OSError:
    """The error for a request that the store refused, or did not answer as it should."""
    code = re.search(r"<Code>(\w+)</Code>", reason)
    status = re.search(r"\[http_response_code='(\d+)'\]", reason)
    said = [_QUOTED.sub(r"\1", reason.partition(" [http_response_")[0])]
    said += [f"status {status[1]}"] if status else []
    said += [code[1]] if code else []
    facts = {"offset": f"byte {start}", "error": ", ".join(said)}
    variable = _endpoint_variable(path)
    if reason.startswith(_DENIED):
        fix = (
            "allow the account of this process s3:GetObject and s3:ListBucket on the bucket, and"
            " s3:PutObject if it writes there, or choose another account with AWS_PROFILE"
        )
        if path.scheme == "gs":
            fix = (
                "give the account of this process the role Storage Object Viewer on the bucket, or"
                " Storage Object User if it writes there, or choose another account with"
                " GOOGLE_APPLICATION_CREDENTIALS"
            )
        return refused(
            PermissionError,
            str(path),
            "the store does not let this process read or write the object.",
            **facts,
            fix=fix,
        )
    return refused(
        ConnectionError,
        str(path),
        "the store does not answer as it should.",
        **facts,
        endpoint=_PASSWORD.sub("", _endpoint(path) or "the public one"),
        fix=f"check with another client whether this host can read the object, and whether"
        f" {variable} is right, if it is set; then start again, and the run goes on where it was"
        " saved",
    )


def _endpoint_variable(path: ObjectPath) -> str:
    usual, other = "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"
    if path.scheme == "gs":
        usual, other = "STORAGE_EMULATOR_HOST", _GCS_VARIABLE
    return other if other in os.environ else usual


def _endpoint(path: ObjectPath) -> str | None:
    """The server to ask in place of the public one."""
    variable = _endpoint_variable(path)
    endpoint = os.environ.get(variable)
    if not endpoint or variable != "STORAGE_EMULATOR_HOST":
        return endpoint or None
    endpoint = endpoint.rstrip("/")  # TensorStore asks for `//storage`, which servers do not know
    return endpoint if "://" in endpoint else f"http://{endpoint}"


def _bucket(path: ObjectPath, patience: Patience | None = None) -> Any:
    """The `tensorstore.KvStore` of a bucket."""
    endpoint = _endpoint(path)
    if path.scheme == "gs" and endpoint and not _is_address(endpoint):
        # TensorStore would take bytes of somewhere in memory for the answer, and may crash.
        raise _unanswered(path, 0, "the endpoint is not the address of a server")
    return _opened(path.scheme, path.bucket, endpoint, patience or PATIENCE)


def _is_address(endpoint: str) -> bool:
    try:
        urlsplit(f"//{endpoint.partition('://')[2] or endpoint}").port  # noqa: B018  # checks it
    except ValueError:
        return False
    return _ADDRESS.fullmatch(endpoint) is not None


@contextmanager
def _gcs_endpoint(endpoint: str | None) -> Iterator[None]:
    """Lets TensorStore open a bucket of GCS at another server, which it takes from a variable only.

    The variable is set until the bucket is open, so that other users of TensorStore see no change.
    """
    with _opening:
        if endpoint is None or _GCS_VARIABLE in os.environ:
            yield
            return
        os.environ[_GCS_VARIABLE] = endpoint
        try:
            yield
        finally:
            del os.environ[_GCS_VARIABLE]


@functools.cache
def _opened(scheme: str, bucket: str, endpoint: str | None, patience: Patience) -> Any:
    import tensorstore as ts

    retries = {"max_retries": patience.retries, "initial_delay": "200ms", "max_delay": "5s"}
    if scheme == "gs":
        spec: dict[str, Any] = {"driver": "gcs", "bucket": bucket}
        context: dict[str, Any] = {"gcs_request_retries": retries}
        # Who pays for the requests, by the same variables as in GDAL.
        if payer := os.environ.get("GS_USER_PROJECT"):
            context["gcs_user_project"] = {"project_id": payer}
    else:
        spec = {"driver": "s3", "bucket": bucket}
        context = {"s3_request_retries": retries}
        if endpoint:
            region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
            spec |= {"endpoint": endpoint, "aws_region": region or "us-east-1"}
        if os.environ.get("AWS_REQUEST_PAYER") == "requester":
            spec["requester_pays"] = True
    path = ObjectPath(f"{scheme}:", bucket)
    try:
        with _gcs_endpoint(endpoint if scheme == "gs" else None):
            future = ts.KvStore.open(spec, context=ts.Context(context))
            return _result(future, path, _limit(patience.answer_s))
    except ValueError as error:  # TensorStore refuses the name of the bucket
        raise refused(
            ValueError,
            "data_dir",
            "this is not the name of a bucket.",
            data_dir=str(path),
            error=error,
            fix="use the name of a bucket, as gs://bucket/datasets",
        ) from error
