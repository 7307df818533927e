"""Starts Python scripts in copies of a process that has imported JAX and TensorFlow already.

    process = warmed.Popen([sys.executable, "worker.py", "1"], stdout=log, stderr=subprocess.STDOUT)

A new process imports them for 7 s of a core; a copy takes 0.1 s. A script finds what it would find
in a new process: its arguments, environment, directory, streams and module path, a session of its
own, and neither our packages nor a backend of JAX or a context of TensorFlow.
What differs is what the imports leave, such as the log handler of absl, and that all copies have
one seed for the hashes of strings.

A command that a copy cannot run is started as a new process: another program than this Python,
options of Python, or another value of a variable that is read at import. Tests of how a process
starts use `subprocess` itself.
"""

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

_ENVIRONMENT = dict(os.environ)  # not that of the first test that starts a process
_SERVER = Path(__file__).parent / "workers" / "warm.py"
# Read when Python, JAX, TensorFlow or a library of theirs is imported, or when it starts threads.
_READ_AT_IMPORT = (
    *("ABSL_", "CUDA_", "GRPC_", "HOME", "JAX_", "KMP_", "LANG", "LC_", "LD_", "MALLOC_", "OMP_"),
    *("OPENBLAS_", "PYTHON", "TENSORSTORE_", "TF2_", "TFDS_", "TF_", "TMP", "TPU_", "XLA_"),
)
_READ_LATER = {
    *("JAX_COORDINATOR_ADDRESS", "JAX_COORDINATOR_BIND_ADDRESS", "JAX_COORDINATOR_PORT"),
    *("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"),
    *("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"),  # set by scikit-learn, for its own OpenMP
    "PYTHONBREAKPOINT",  # set by Ray, for its own debugger
    "PYTHONUNBUFFERED",  # copies do not buffer
    "TENSORSTORE_GCS_HTTP_URL",
}


def Popen(  # noqa: N802, it stands for subprocess.Popen
    command: list[str], *, env: dict[str, str] | None = None, cwd: Any = None, **streams: Any
) -> Any:
    """A copy of the warm process or a new process, with the methods of `subprocess.Popen`.

    Both have a session of their own. `stdout` and `stderr` may be files, or PIPE for what
    `communicate` returns; there is no input.
    """
    environment = dict(os.environ) if env is None else env
    streams = {"stdin": subprocess.DEVNULL, "start_new_session": True} | streams
    if _runs(command) and _warm().has_read(environment):
        return _Copy(command, environment, cwd or os.getcwd(), **streams)
    return subprocess.Popen(command, env=environment, cwd=cwd, **streams)


def run(command: list[str], *, timeout: float, **how: Any) -> subprocess.CompletedProcess:
    """As `subprocess.run` with `capture_output=True` and `text=True`."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = Popen(command, **pipes, **how)
    try:
        out, errors = process.communicate(timeout=timeout)
    finally:
        process.kill()
        process.wait()
    return subprocess.CompletedProcess(command, process.returncode, out, errors)


def _runs(command: list[str]) -> bool:
    """Whether a copy can run it: Linux alone forks safely with all these libraries loaded."""
    program, first = command[0], command[1]
    is_ours = program == sys.executable and (first == "-c" or not first.startswith("-"))
    return is_ours and sys.platform == "linux"


class _Copy:
    def __init__(
        self,
        command: list[str],
        environment: dict[str, str],
        cwd: Any,
        *,
        stdin: int,
        stdout: int | BinaryIO | None = None,
        stderr: int | BinaryIO | None = None,
        text: bool = False,
        start_new_session: bool,
    ):
        assert stdin == subprocess.DEVNULL
        assert start_new_session
        self.args, self._text = command, text
        self.returncode: int | None = None
        self._piped = [
            _file() if stream == subprocess.PIPE else None for stream in (stdout, stderr)
        ]
        out, errors = (
            piped or stream for piped, stream in zip(self._piped, (stdout, stderr), strict=True)
        )
        request = {"command": command[1:], "environment": environment, "cwd": str(cwd)}
        self._channel, other = socket.socketpair()
        with other, open(os.devnull) as nothing, open(os.devnull, "w") as nowhere:
            files = [nothing.fileno(), _descriptor(out, 1, nowhere)]
            files.append(
                files[1] if errors == subprocess.STDOUT else _descriptor(errors, 2, nowhere)
            )
            _warm().start([*files, other.fileno()])
        self._channel.sendall(json.dumps(request).encode() + b"\n")
        self._answers = self._channel.makefile()
        self.pid: int = self._answer("pid")

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            # Not `select.select`, which knows no descriptor above 1023.
            poll = select.poll()
            poll.register(self._channel, select.POLLIN)
            if not poll.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = self._answer("status")
            self._answers.close()
            self._channel.close()  # until now, nobody else gets its process id
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[Any, Any]:
        self.wait(timeout)
        out, errors = map(self._content, self._piped)
        return out, errors

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _content(self, file: BinaryIO | None) -> Any:
        if file is None:
            return None
        with file:
            file.seek(0)
            content = file.read()
        return content.decode() if self._text else content

    def _answer(self, name: str) -> int:
        line = self._answers.readline()
        answer = json.loads(line) if line else _warm().failed()
        return answer[name]


def _file() -> Any:
    """In the place of a pipe, which somebody would have to read while the process runs."""
    return tempfile.TemporaryFile()


def _descriptor(stream: int | BinaryIO | None, own: int, nowhere: Any) -> int:
    if stream is None:
        return own
    if stream == subprocess.DEVNULL:
        return nowhere.fileno()
    return stream if isinstance(stream, int) else stream.fileno()


class _Warm:
    """The process that is copied. It ends, with all copies, when this process ends."""

    def __init__(self):
        self._before = _ENVIRONMENT
        self._errors = _file()
        self._socket, other = socket.socketpair()
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-u", str(_SERVER), str(other.fileno())],
                # Otherwise the import of NumPy starts threads, which are not copied.
                env=self._before | {"OPENBLAS_NUM_THREADS": "1"},
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                start_new_session=True,
            )
        with self._socket.makefile() as answers:
            line = answers.readline()
        self._after = json.loads(line) if line else self.failed()
        atexit.register(self.end)

    def end(self) -> None:
        self._socket.close()
        self._process.wait()
        self._errors.close()

    def has_read(self, environment: dict[str, str]) -> bool:
        """Whether this environment says what it has read at import, or has set itself there."""
        before, after = self._before, self._after
        return all(
            environment.get(name) in (before.get(name), after.get(name))
            for name in {*environment, *before}
            if name.startswith(_READ_AT_IMPORT) and name not in _READ_LATER
        )

    def start(self, descriptors: list[int]) -> None:
        socket.send_fds(self._socket, [b"+"], descriptors)

    def failed(self) -> Any:
        self._process.wait(60)
        self._errors.seek(0)
        raise RuntimeError(f"the warm process ended: {self._errors.read().decode()[-3000:]}")


_warms: list[_Warm] = []


def _warm() -> _Warm:
    if not _warms:
        _warms.append(_Warm())
    return _warms[0]
