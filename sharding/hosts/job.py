"""What this process knows of the job that it belongs to, in one object: `job`."""

import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from sharding.hosts.coordination import Coordinator


@dataclass
class Limits:
    """How long this process waits: the arguments of `initialize`, which describes them."""

    timeout_s: float = 300.0
    stall_warn_s: float = 30.0
    stall_timeout_s: float | None = None


@dataclass
class Progress:
    """The progress and the present work of this process, which the others are told."""

    steps: int = 0  # batches handed out
    pieces: int = 0  # finished pieces of other work: files indexed, records loaded
    activity: str | None = None  # of the thread that this process waits for: "decoding records"
    at_rendezvous: bool = False  # whether it waits at a rendezvous, which logs who is late


@dataclass
class Attendance:
    """The last verdict that this process took in the rendezvous of one group of processes."""

    number: int = 0  # the number of that verdict
    unanswered: str | None = None  # what it has said since then, if there is no verdict on it yet
    leads: bool = False  # whether this process publishes the verdicts


@dataclass
class Job:
    """What this process knows of its job."""

    coordinator: Coordinator = field(default_factory=Coordinator)
    limits: Limits = field(default_factory=Limits)
    progress: Progress = field(default_factory=Progress)
    attendances: dict[str, Attendance] = field(default_factory=dict)  # by group of processes
    # Two threads at a rendezvous at once would take each other's verdict.
    rendezvous_turn: AbstractContextManager[Any] = field(default_factory=threading.RLock)
    failure: Mapping[str, Any] | None = None  # of the first process that failed: see `endings`
    processes_here: int = 1  # on this machine, as far as they have been found
    is_complete: bool = False  # whether `initialize` has found all processes of the job
    is_watched: bool = False  # whether a thread monitors the other processes
    handles_preemption: bool = False  # whether the program has built a `Preemption`


job = Job()
