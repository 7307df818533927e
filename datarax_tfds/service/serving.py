"""Gives a reader the workers that its config, or the user, asks for."""

import importlib.util
import sys
from typing import Any

from datarax_tfds.config.config import TFDSStreamingConfig
from datarax_tfds.config.ray_service import RayService
from datarax_tfds.decoding.reader import RecordReader
from datarax_tfds.service.description import Description
from datarax_tfds.service.dispatcher import Dispatcher
from datarax_tfds.service.executor import Executor
from datarax_tfds.service.ray_engine import Described, engine_of
from datarax_tfds.service.served_reader import ServedReader
from sharding.checks import refused

_NAME = "executor"  # of that of the user, in messages


def served(
    reader: RecordReader, config: TFDSStreamingConfig, executor: Executor | None = None
) -> RecordReader | ServedReader:
    """The reader with workers; the reader itself if neither `service` nor an executor is set.

    Raises:
        ValueError: A function has no import path, and must not be pickled.
        ModuleNotFoundError: Ray is not installed.
        TypeError: `executor` is not an `Executor`.
    """
    service = config.service
    assert not isinstance(service, str)  # the config has replaced it
    if executor is not None:
        _require_executor(executor, reader.subject)
        late_s = (service or RayService()).late_s
        with_workers = ServedReader(reader, late_s=late_s)
        with_workers.dispatcher.start_with(lambda it: it.consider(_NAME, executor))
        return with_workers
    if service is None:
        return reader
    description = Description.of(reader, config, pickle_functions=service.pickle_functions)
    with_workers = ServedReader(reader, late_s=service.late_s)
    start_with_ray(with_workers.dispatcher, service, description, reader)
    return with_workers


def start_with_ray(
    dispatcher: Dispatcher, service: RayService, description: Described, reader: RecordReader
) -> None:
    """Lets a dispatcher use workers of Ray from its first call on.

    Args:
        dispatcher: Gives calls to them.
        service: Says where Ray is.
        description: What workers open.
        reader: Reads the records here.

    Raises:
        ModuleNotFoundError: Ray is not installed.
    """
    _require_ray(reader.subject)
    kept = reader.split.kept
    stored = None if kept is None else kept.stored_numbers
    dispatcher.start_with(
        lambda it: engine_of(service).join(it, description, stored_numbers=stored)
    )


def _require_executor(executor: Any, subject: str) -> None:
    capacity = getattr(executor, "capacity", None)
    if isinstance(capacity, int) and capacity > 0 and callable(getattr(executor, "submit", None)):
        return
    raise refused(
        TypeError,
        subject,
        "executor must have a capacity of at least 1, and a method submit.",
        got=type(executor).__name__,
        capacity=repr(capacity),
        fix="pass an object like the example of datarax_tfds.Executor, or leave executor out",
    )


def _require_ray(subject: str) -> None:
    if importlib.util.find_spec("ray") is not None and sys.platform == "linux":
        return
    raise refused(
        ModuleNotFoundError,
        subject,
        "service needs Ray, and Linux.",
        platform=sys.platform,
        fix="install it, with pip install 'datarax-tfds[service]', or leave service out",
    )
