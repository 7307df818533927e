"""What goes wrong between the processes of a job."""


class DisagreementError(RuntimeError):
    """The processes of a job were started, or went on, differently."""


class WaitTimeoutError(TimeoutError):
    """A wait came to its limit; the message names what did not arrive."""


class PeerFailedError(RuntimeError):
    """Another process of the job failed; the message quotes its error."""
