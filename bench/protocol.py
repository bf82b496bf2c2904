"""How a case is measured: right results first, then every competitor in turns, round by round."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter

from limits import Limits
from problem import TOLERANCE, Problem
from providers import Provider, Runner
from results import ALLOC, Measurement
from suites import Case

# Calls of less than this are repeated until they fill it: a clock's reading has its own cost.
SAMPLE_SECONDS = 3e-3
MOST_CALLS = 5000
# The threads of an OpenMP runtime look for work for some milliseconds before they go to sleep, and
# a library that comes next would have to share the cores with them.
SETTLE_SECONDS = 10e-3


@dataclass
class Competitor:
    """One line of the result: what is called, and how many calls make a sample."""

    name: str
    call: Callable[[int], object]
    error: float = 0.0
    calls: int = 1
    seconds: list[float] = field(default_factory=list)


class Rotation:
    """The sets of a problem in turns, so that each is cold when its turn comes."""

    def __init__(self, sets: int) -> None:
        self._sets, self._next = sets, 0

    def __call__(self) -> int:
        """The next set."""
        self._next = (self._next + 1) % self._sets
        return self._next


@dataclass(frozen=True)
class Outcome:
    """What measuring a case gave, and what was wrong with providers that were not timed."""

    measurements: list[Measurement]
    wrong: list[str]


def sample(competitor: Competitor, turn: Rotation) -> float:
    """Seconds a call. Untimed ones before let the threads of the one before go to sleep."""
    call, calls = competitor.call, competitor.calls
    settled = perf_counter() + SETTLE_SECONDS
    while True:
        call(turn())
        if perf_counter() >= settled:
            break
    start = perf_counter()
    for _ in range(calls):
        call(turn())
    return (perf_counter() - start) / calls


def _entrants(
    problem: Problem, runners: dict[str, Runner], fresh: bool, wrong: list[str]
) -> Iterator[Competitor]:
    for name, runner in runners.items():
        error = problem.error(runner)
        if not error <= TOLERANCE[problem.case.dtype]:
            wrong.append(f"{problem.case.name}: {name} is off by {error:.1e}, and not timed")
            continue
        yield Competitor(name, runner.call, error)
        if fresh and runner.fresh is not None:
            yield Competitor(name + ALLOC, runner.fresh, error)


def measure(
    case: Case,
    providers: dict[str, Provider],
    limits: Limits,
    *,
    rounds: int,
    cold_bytes: int,
    fresh: bool = True,
) -> Outcome:
    """Measure one case.

    Parameters
    ----------
    providers : dict
        By name, in the order of the table.
    cold_bytes : int
        The sets of a cold case have at least so many bytes in all.
    fresh : bool
        Whether to time calls without an output as well, as ``<name>+alloc``.
    """
    problem = Problem(case, cold_bytes)
    runners = {}
    for name, provider in providers.items():
        runner = provider.prepare(problem)
        if runner is not None:
            runners[name] = runner
    wrong: list[str] = []
    competitors = list(_entrants(problem, runners, fresh, wrong))
    copies = [Competitor(name, call) for name, call in limits.runners(problem).items()]
    everyone = copies + competitors

    turn = Rotation(len(problem.sets))
    for competitor in everyone:  # all memory is touched, and code and threads are warm
        for i in range(len(problem.sets)):
            competitor.call(i)
        once = sample(competitor, turn)
        competitor.calls = min(max(round(SAMPLE_SECONDS / max(once, 1e-9)), 1), MOST_CALLS)
    for r in range(rounds):
        # Nobody always follows the same neighbour's leftovers in the cache.
        shift = r * 7 % len(everyone)
        for competitor in everyone[shift:] + everyone[:shift]:
            competitor.seconds.append(sample(competitor, turn))

    limit = min(median(copy.seconds) for copy in copies) * limits.scale(problem)
    measurements = [
        Measurement(case, c.name, tuple(c.seconds), limit, c.error) for c in competitors
    ]
    return Outcome(measurements, wrong)
