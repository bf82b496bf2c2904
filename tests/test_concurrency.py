"""Calls from many threads, after fork, in new interpreters; the number of threads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fastnorm as fn
import norm_cases
from cases import Case, make
from checks import assert_same_bits
from test_norm_numerics import backward, train

Array = npt.NDArray[Any]
Results = dict[str, Array | None]

SCENARIOS = Path(__file__).parent / "process_scenarios.py"
LIMIT_S = 150
SETTINGS = ("FASTNORM_NUM_THREADS", "OMP_NUM_THREADS", "FASTNORM_ISA")


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    threads = fn.get_num_threads()
    yield
    fn.set_num_threads(threads)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python with no settings but those given; on time-out, end whatever it started."""
    inherited = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    command = [sys.executable, *arguments]
    with subprocess.Popen(
        command,
        env=inherited | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, error = process.communicate(timeout=LIMIT_S)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, process.returncode, out, error)


# --- many threads call at once --------------------------------------------------------------------

CALLS = (
    Case("shared_rows", (4, 31, 40, 41), activation="relu", residual=True),
    Case("shared_columns", (5, 41, 31, 37), -1, activation="leaky_relu"),
    Case("copied", (4, 17, 41, 39), 1, "strided_inner", activation="silu"),
    Case("small", (3, 5, 7), activation="clip"),
    Case("one_channel", (3, 1, 60_001), residual=True),
    Case("wide", (33, 3001), activation="tanh", residual=True),
)
CALLERS = 8
ROUNDS = 4


def call(case: Case, dtype: str) -> Results:
    """All ops on data of the call's own."""
    data = make(case, dtype)
    options: dict[str, Any] = {"channel_axis": case.channel_axis, "activation": case.activation}
    y = fn.batch_norm(
        data.x, data.mean, data.var, data.weight, data.bias, residual=data.residual, **options
    )
    forward = fn.batch_norm_train(
        data.x,
        data.weight,
        data.bias,
        running_mean=data.running_mean,
        running_var=data.running_var,
        residual=data.residual,
        **options,
    )
    grads = fn.batch_norm_backward(
        data.dy,
        data.x,
        forward.mean,
        forward.rstd,
        data.weight,
        data.bias,
        residual=data.residual,
        mask=forward.mask,
        **options,
    )
    running = {"running_mean": data.running_mean, "running_var": data.running_var}
    return {"inference": y, **forward._asdict(), **grads._asdict(), **running}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_many_callers_at_once(threads: int, dtype: str) -> None:
    fn.set_num_threads(threads)
    expected = [call(case, dtype) for case in CALLS]
    together = threading.Barrier(CALLERS)

    def caller(number: int) -> list[tuple[int, Results]]:
        together.wait(timeout=60)
        turns = [(number + turn) % len(CALLS) for turn in range(ROUNDS)]
        return [(index, call(CALLS[index], dtype)) for index in turns]

    with ThreadPoolExecutor(CALLERS) as pool:
        for results in pool.map(caller, range(CALLERS), timeout=120):
            for index, found in results:
                for name, value in found.items():
                    what = f"{name} of {CALLS[index].name}"
                    assert_same_bits(value, expected[index][name], what)


NORM_CALLS = (
    norm_cases.Case("shared_rows", "layer_norm", (301, 770), residual=True, activation="relu"),
    norm_cases.Case("a_row", "rms_norm", (1, 100_003)),
    norm_cases.Case("groups", "group_norm", (3, 24, 40, 41), 1, 3, activation="silu"),
    norm_cases.Case("instances_last", "instance_norm", (3, 40, 41, 24), -1),
)


def test_many_callers_of_other_norms() -> None:
    fn.set_num_threads(2)

    def call_norm(case: norm_cases.Case) -> list[Any]:
        data = norm_cases.make(case, "float32")
        fwd = train(case, data.x, data.weight, data.bias, residual=data.residual)
        grads = backward(case, data.dy, data.x, fwd, data.weight, data.bias, mask=fwd.mask)
        return [a for a in (*fwd, *grads) if a is not None]

    expected = [call_norm(case) for case in NORM_CALLS]
    together = threading.Barrier(CALLERS)

    def caller(number: int) -> list[tuple[int, list[Any]]]:
        together.wait(timeout=60)
        turns = [(number + turn) % len(NORM_CALLS) for turn in range(ROUNDS)]
        return [(index, call_norm(NORM_CALLS[index])) for index in turns]

    with ThreadPoolExecutor(CALLERS) as pool:
        for results in pool.map(caller, range(CALLERS), timeout=120):
            for index, found in results:
                for one, other in zip(found, expected[index], strict=True):
                    assert_same_bits(one, other, NORM_CALLS[index].name)


def test_callers_share_their_inputs() -> None:
    case = CALLS[0]
    data = make(case, "float32")
    arguments = (data.x, data.mean, data.var, data.weight, data.bias)
    expected = fn.batch_norm(*arguments)
    with ThreadPoolExecutor(CALLERS) as pool:
        for y in pool.map(lambda _: fn.batch_norm(*arguments), range(4 * CALLERS), timeout=120):
            assert_same_bits(y, expected)


def ticks_during(work: Any) -> tuple[int, float]:
    """How often another thread gets to run Python while work() runs, and work's seconds."""
    ticks = 0
    stop = threading.Event()
    started = threading.Event()

    def count() -> None:
        nonlocal ticks
        while not stop.is_set():
            ticks += 1
            started.set()
            # Asleep, it does not ask for the interpreter: only a caller that gives it up for long
            # sees many ticks.
            time.sleep(0.001)

    counter = threading.Thread(target=count)
    counter.start()
    try:
        assert started.wait(timeout=60)
        before, start = ticks, time.perf_counter()
        work()
        return ticks - before, time.perf_counter() - start
    finally:
        stop.set()
        counter.join()


@pytest.mark.parametrize("op", ["batch_norm", "batch_norm_train", "batch_norm_backward"])
def test_the_interpreter_is_free_during_a_call(op: str) -> None:
    fn.set_num_threads(1)
    channel = np.ones(4)
    # A call that held the interpreter would let the counter in once before and once after it.
    least = 8
    samples = 1 << 14
    for _ in range(12):
        x = np.ones((samples, 4, 64))
        out = np.empty_like(x)
        calls: dict[str, Any] = {
            "batch_norm": lambda x=x, out=out: fn.batch_norm(
                x, channel, channel, activation="gelu", out=out
            ),
            "batch_norm_train": lambda x=x, out=out: fn.batch_norm_train(
                x, activation="gelu", out=out
            ),
            "batch_norm_backward": lambda x=x, out=out: fn.batch_norm_backward(
                x, x, channel, channel, activation="gelu", out=out
            ),
        }
        ticks, seconds = ticks_during(calls[op])
        if ticks >= least:
            return
        # Too short a call proves nothing; on a busy machine it may take another try.
        samples = min(2 * samples, 1 << 16)
    pytest.fail(f"{ticks} ticks in {seconds:.3f} s, expected at least {least}")


# --- processes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ["fork", "fork_in_call", "spawn"])
def test_processes(scenario: str) -> None:
    process = run(str(SCENARIOS), scenario)
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stdout.strip() == f"{scenario}: same bits everywhere"


# --- the number of threads ------------------------------------------------------------------------

THREADS = "import fastnorm as fn; print(fn.get_num_threads(), fn.info()['threads'])"


def threads_in(code: str = THREADS, **environment: str) -> int:
    """What the process says of its number of threads."""
    process = run("-c", code, **environment)
    assert process.returncode == 0, process.stderr
    number, info = process.stdout.split()
    assert number == info
    return int(number)


def test_set_num_threads() -> None:
    for threads in (1, 2, 3, 64):
        fn.set_num_threads(threads)
        assert fn.get_num_threads() == threads
        assert fn.info()["threads"] == threads


@pytest.mark.parametrize("threads", [0, -1, 2**40, -(2**40)])
def test_set_num_threads_out_of_range(threads: int) -> None:
    fn.set_num_threads(3)
    with pytest.raises(ValueError, match="set_num_threads: n is "):
        fn.set_num_threads(threads)
    assert fn.get_num_threads() == 3


@pytest.mark.parametrize("threads", [None, "2", 1.5, [2]])
def test_set_num_threads_of_another_type(threads: Any) -> None:
    fn.set_num_threads(3)
    with pytest.raises(TypeError):
        fn.set_num_threads(threads)
    assert fn.get_num_threads() == 3


def test_more_threads_than_work() -> None:
    case = Case("few_rows", (2, 3, 16_001), activation="relu")
    expected = call(case, "float32")
    fn.set_num_threads(64)
    for name, value in call(case, "float32").items():
        assert_same_bits(value, expected[name], name)


@pytest.mark.parametrize("where", ["call", "environment"])
def test_a_million_threads(where: str) -> None:
    set_them = "fn.set_num_threads(10**6)" if where == "call" else "pass"
    code = (
        "import numpy as np, fastnorm as fn\n"
        # So many channels that there would be work for more threads than a process can have.
        "channels = np.linspace(1.0, 2.0, 3_000_000, dtype=np.float32)\n"
        "x = np.ones((1, channels.size, 4), np.float32)\n"
        f"{set_them}\n"
        "assert fn.get_num_threads() == 10**6\n"
        "many = fn.batch_norm(x, channels, channels)\n"
        "fn.set_num_threads(1)\n"
        "print((many == fn.batch_norm(x, channels, channels)).all())\n"
    )
    settings = {} if where == "call" else {"FASTNORM_NUM_THREADS": str(10**6)}
    process = run("-c", code, **settings)
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == "True"


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({"FASTNORM_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "5"}, 5),
        ({"FASTNORM_NUM_THREADS": "3", "OMP_NUM_THREADS": "5"}, 3),
        # OpenMP's own form, a number for each level of nesting.
        ({"OMP_NUM_THREADS": "5,2"}, 5),
        ({"OMP_NUM_THREADS": " 5 , 2"}, 5),
        # More than any call uses, and more than an int.
        ({"FASTNORM_NUM_THREADS": "2000000"}, 2000000),
        ({"FASTNORM_NUM_THREADS": str(10**30)}, 2**31 - 1),
        # Not a number of threads: as if it were not there.
        ({"FASTNORM_NUM_THREADS": "", "OMP_NUM_THREADS": "5"}, 5),
        ({"FASTNORM_NUM_THREADS": "0", "OMP_NUM_THREADS": "5"}, 5),
        ({"FASTNORM_NUM_THREADS": "-2", "OMP_NUM_THREADS": "5"}, 5),
        ({"FASTNORM_NUM_THREADS": "many", "OMP_NUM_THREADS": "5"}, 5),
        ({"FASTNORM_NUM_THREADS": "4abc", "OMP_NUM_THREADS": "5"}, 5),
    ],
    ids=str,
)
def test_environment(environment: dict[str, str], threads: int) -> None:
    assert threads_in(**environment) == threads


def test_what_is_set_goes_before_the_environment() -> None:
    code = THREADS.replace("print", "fn.set_num_threads(4); print")
    assert threads_in(code, FASTNORM_NUM_THREADS="3", OMP_NUM_THREADS="5") == 4


def test_the_default_is_what_the_process_may_use() -> None:
    assert 1 <= threads_in() <= len(os.sched_getaffinity(0))


def test_affinity_is_respected() -> None:
    core = min(os.sched_getaffinity(0))
    assert threads_in(f"import os; os.sched_setaffinity(0, {{{core}}}); {THREADS}") == 1


# --- the instruction set --------------------------------------------------------------------------


def test_a_wrong_isa_is_a_value_error_each_time() -> None:
    code = (
        "import numpy as np\n"
        "for _ in range(2):\n"
        "    try:\n"
        "        import fastnorm as fn\n"
        "        fn.batch_norm_train(np.ones((4, 4), np.float32))\n"
        "    except ValueError as error:\n"
        "        print(error)\n"
    )
    process = run("-c", code, FASTNORM_ISA="abacus")
    assert process.returncode == 0, process.stderr
    messages = process.stdout.splitlines()
    assert len(messages) == 2
    for message in messages:
        assert "FASTNORM_ISA is 'abacus'" in message
        for isa in fn._core.isas():
            assert isa in message


def test_an_empty_isa_is_none() -> None:
    process = run("-c", "import fastnorm as fn; print(fn.info()['isa'])", FASTNORM_ISA="")
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == fn._core.isas()[0]
