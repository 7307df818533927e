"""The errors of processes that belong to one job."""


class DisagreementError(RuntimeError):
    """The processes of a job were given different arguments, data or positions."""


class WaitTimeoutError(TimeoutError):
    """A wait took longer than its limit; the message says for what or for whom."""


class PeerFailedError(RuntimeError):
    """Another process of the job failed; the message quotes its error."""
