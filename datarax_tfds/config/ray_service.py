"""Says where Ray decodes records, and how."""

import re
from dataclasses import dataclass
from typing import Any, final

from sharding.checks import is_integer, refused

_MIN_STORE_BYTES = 80 << 20
_ADDRESS = re.compile(r"auto|[^\s/:@]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5}")


@final
@dataclass(frozen=True)
class RayService:
    """Lets Ray decode records of a stream in other processes, or on other machines.

        TFDSStreamingConfig(name="imagenet2012", split="train", service="ray:10.0.0.5:6379")
        TFDSStreamingConfig(..., service=RayService(address="10.0.0.5:6379", late_s=0.5))

    Args:
        address: The cluster to join: `"HOST:PORT"`, or `"auto"` for the one that this machine
            belongs to. By default, that of the variable `RAY_ADDRESS`; without it, a cluster of
            this machine alone is started, and ended with the process.
        workers: How many workers to start, each on one core of the cluster. By default, one for
            each core, divided by the processes of the job; of a cluster that is started here, one
            for each thread that decodes.
        late_s: After so many seconds, a call is given to another worker, too, and decoded here. No
            batch waits longer for a worker.
        pickle_functions: Whether functions and objects that have no import path are sent to the
            workers by pickle: whoever can write to the connection could then run code there.
        object_store_bytes: The size of the object store of a cluster that is started here.
    """

    address: str | None = None
    workers: int | None = None
    late_s: float = 2.0
    pickle_functions: bool = False
    object_store_bytes: int = 1 << 30

    def __post_init__(self):
        checks: dict[str, tuple[bool, str, str]] = {
            "address": (
                self.address is None or _is_address(self.address),
                "'HOST:PORT', or 'auto'",
                "'10.0.0.5:6379'",
            ),
            "workers": (
                self.workers is None or is_integer(self.workers, 1),
                "an integer of at least 1",
                "2",
            ),
            "late_s": (
                isinstance(self.late_s, int | float) and 0 < self.late_s < 1e6,
                "a number of seconds above 0",
                "2.0",
            ),
            "pickle_functions": (
                isinstance(self.pickle_functions, bool),
                "True or False",
                "True",
            ),
            "object_store_bytes": (
                is_integer(self.object_store_bytes, _MIN_STORE_BYTES),
                f"at least {_MIN_STORE_BYTES} bytes, as Ray asks",
                f"{_MIN_STORE_BYTES}",
            ),
        }
        for name, (good, wanted, example) in checks.items():
            if not good:
                raise refused(
                    ValueError,
                    "RayService",
                    f"{name} must be {wanted}.",
                    **{name: repr(getattr(self, name))},
                    fix=f"use {name}={example}, or leave it out",
                )


def _is_address(value: Any) -> bool:
    return isinstance(value, str) and _ADDRESS.fullmatch(value) is not None


def service_of(value: Any) -> RayService | None:
    """What the field `service` of a config stands for; None if it is not valid."""
    if isinstance(value, RayService):
        return value
    name, separator, address = value.partition(":") if isinstance(value, str) else ("", "", "")
    if name == "ray" and not separator:
        return RayService()
    return RayService(address) if name == "ray" and _is_address(address) else None
