"""The programs that test_concurrency.py runs, each in a process of its own: fork and spawn.

    python process_scenarios.py fork            a child and a grandchild, after parallel calls
    python process_scenarios.py fork_in_call    a child forked while another thread is in a call
    python process_scenarios.py spawn           a pool of new interpreters

Each exits with 0 if every process computed the same bits, and leaves no process behind.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable

import numpy as np

import fastnorm as fn

CHILD_LIMIT_S = 60.0
# A grandchild that hangs is ended by its parent, before that one's own time is up.
GRANDCHILD_LIMIT_S = 20.0


def digest() -> str:
    """A hash of what training forward and backward give for a case that is shared by threads."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((8, 32, 64, 64), dtype=np.float32)
    weight = np.linspace(0.5, 1.5, 32, dtype=np.float32)
    forward = fn.batch_norm_train(x, weight, weight, activation="relu")
    grads = fn.batch_norm_backward(
        x, x, forward.mean, forward.rstd, weight, weight, activation="relu", mask=forward.mask
    )
    y = fn.batch_norm(x, weight, weight, activation="gelu_tanh")
    result = hashlib.sha256()
    for a in (*forward, grads.dx, grads.dweight, grads.dbias, y):
        if a is not None:
            result.update(a.tobytes())
    return result.hexdigest()


def in_child(work: Callable[[], bool], limit_s: float = CHILD_LIMIT_S) -> bool:
    """Whether work, done in a forked child, is true within the time limit."""
    with warnings.catch_warnings():
        # Python warns of forking beside threads, which is what is tested.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if work() else 2
        except BaseException:
            traceback.print_exc()
        finally:
            # No clean-up that belongs to the parent.
            sys.stderr.flush()
            os._exit(status)
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.01)
    print("the child hangs", file=sys.stderr)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def fork() -> bool:
    """A child and a grandchild compute what the parent did, with threads set anew or not."""
    fn.set_num_threads(2)
    expected = digest()

    def grandchild() -> bool:
        fn.set_num_threads(2)
        return digest() == expected and fn.get_num_threads() >= 1

    def child() -> bool:
        if digest() != expected:
            return False
        return in_child(grandchild, GRANDCHILD_LIMIT_S) and digest() == expected

    # The parent's own threads are as good afterwards as before.
    return in_child(child) and digest() == expected


def fork_in_call() -> bool:
    """Children forked at any moment of another thread's calls."""
    fn.set_num_threads(2)
    expected = digest()
    stop = threading.Event()
    results: list[bool] = []

    def work() -> None:
        while not stop.is_set():
            results.append(digest() == expected)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        good = True
        for _ in range(5):
            time.sleep(0.02)
            good = good and in_child(lambda: digest() == expected)
    finally:
        stop.set()
        thread.join()
    return good and bool(results) and all(results)


def digest_with_threads(threads: int) -> str:
    """What a worker of the pool does."""
    fn.set_num_threads(threads)
    return digest()


def spawn() -> bool:
    """New interpreters, started after the parent's parallel calls."""
    fn.set_num_threads(2)
    expected = digest()
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        return pool.map(digest_with_threads, [1, 2, 2, 1], chunksize=1) == [expected] * 4


def main() -> int:
    """Run the scenario that the command line names."""
    scenario = {"fork": fork, "fork_in_call": fork_in_call, "spawn": spawn}[sys.argv[1]]
    good = scenario()
    print(f"{sys.argv[1]}: {'same bits everywhere' if good else 'FAILED'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
