"""One of two processes that train until one of them ends, in one of many ways."""

import atexit
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time

HOW, WHO = sys.argv[1:]

import jax
import numpy as np

from datarax_tfds import (
    PeerFailedError,
    Preemption,
    batch_sharding,
    global_batch,
    initialize,
    make_mesh,
)
from sharding.hosts.agreement import agree

initialize(stall_warn_s=2, fail_fast="apart" not in HOW)
# No limit on a meeting may be tight; this one is on a call that needs a process which has ended.
SHORT_S = 10
concerned = jax.process_index() == int(WHO)
rows = batch_sharding(make_mesh({"data": -1}))
total = jax.jit(lambda batch: batch.sum())
work_s = 0.0


def work(numbers):
    time.sleep(work_s)
    return numbers


alone = jax.jit(lambda x: jax.pure_callback(work, jax.ShapeDtypeStruct((3,), np.float32), x))


def say(text):
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def collective():
    total(global_batch(lambda part: np.arange(16)[part], 16, rows)).block_until_ready()


def meet():
    agree("meeting", {}, [0, 1])


def fail_in_thread():
    def load():
        raise ValueError("what a thread met")

    thread = threading.Thread(target=load, name="loader")
    thread.start()
    thread.join()
    if HOW == "thread, then the end":
        return
    time.sleep(10_000)


def fail():
    raise ValueError("in a child")


def status_of_child(action):
    """How a forked child ends that does so."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(600)  # a guard against a hang only
        action()
        sys.exit(100)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def refused_in_child(action):
    try:
        action()
    except ConnectionError as error:
        sys.exit(6 if "a forked child cannot ask" in str(error) else 0)


def leave_by_hook():
    atexit.register(lambda: os._exit(7))
    sys.exit(0)


def end_children():
    """They inherit hooks and connections; this process and the others go on."""
    found = {
        name: status_of_child(action)
        for name, action in {
            "sys.exit": sys.exit,
            "sys.exit(3)": lambda: sys.exit(3),
            "sys.exit(text)": lambda: sys.exit("in a child"),
            "SystemExit": raise_exit,
            "exception": fail,
            "os._exit": lambda: os._exit(4),
            "meeting": lambda: refused_in_child(meet),
            "joining": lambda: refused_in_child(initialize),
            "hook of its own": leave_by_hook,
            "grandchild": lambda: sys.exit(status_of_child(lambda: sys.exit(5))),
        }.items()
    }
    assert found == {
        "sys.exit": 0,
        "sys.exit(3)": 3,
        "sys.exit(text)": 1,
        "SystemExit": 9 if sys.version_info >= (3, 12) else 1,  # not known before
        "exception": 1,
        "os._exit": 4,
        "meeting": 6,
        "joining": 6,
        "hook of its own": 7,
        "grandchild": 5,
    }, found
    context = multiprocessing.get_context("fork")
    for target, status in ((fail, 1), (lambda: sys.exit(8), 8)):
        process = context.Process(target=target)
        process.start()
        process.join()
        assert process.exitcode == status
    # With JAX's own handler of SIGTERM, and with ours.
    for keep in (contextlib.nullcontext(), Preemption()):
        with keep:
            process = context.Process(target=time.sleep, args=(10_000,))
            process.start()
            process.terminate()
            process.join(600)
            assert process.exitcode == -signal.SIGTERM


def raise_exit():
    raise SystemExit(9)


def fail_with_another_hook():
    sys.excepthook = lambda *_: say("another hook")
    raise ValueError("what the user met")


def fail_in_exit_hook():
    atexit.register(lambda: 1 / 0)


def exit_raised():
    raise SystemExit("bad flag")


def exit_raised_well():
    raise SystemExit(0)


ENDS = {
    "sys.exit text": lambda: sys.exit("bad flag"),
    "sys.exit 3": lambda: sys.exit(3),
    "SystemExit": exit_raised,
    "another hook": fail_with_another_hook,
    "another hook, apart": fail_with_another_hook,
    "os._exit": lambda: os._exit(3),
    "os.abort": os.abort,
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "SIGHUP": lambda: os.kill(os.getpid(), signal.SIGHUP),
    "thread": fail_in_thread,
    "thread, then the end": fail_in_thread,
    "end": lambda: None,
    "end apart": lambda: None,
    "end early": lambda: None,
    "exit hook": fail_in_exit_hook,
    "children": end_children,
    "SystemExit early": exit_raised_well,
}

for _ in range(3):
    collective()
    meet()
if "thread" in HOW:
    initialize(stall_warn_s=15, stall_timeout_s=20)
if HOW in ("end", "SystemExit") or "early" in HOW:
    initialize(timeout_s=SHORT_S, stall_warn_s=2)
if HOW == "exit hook" or "early" in HOW:
    if concerned:
        ENDS[HOW]()
    else:
        # One call on our own devices only, longer than the patience with one that is missed.
        work_s = 3 * SHORT_S if "early" in HOW else 0
        alone(np.ones(3, np.float32)).block_until_ready()
        say("finished")
        sys.exit()
elif HOW == "children":
    if concerned:
        ENDS[HOW]()
    collective()
    meet()
    say("finished")
elif concerned:
    say("about to end")
    ENDS[HOW]()
else:
    try:
        if HOW.startswith("sys.exit") or HOW in ("another hook, apart", "end apart"):
            meet()
        else:
            collective()
    except PeerFailedError as error:
        say(f"heard: {error}")
        raise
