"""Results in the JSON layout of Google Benchmark, which its tools and ours read."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

import fastnorm as fn
from suites import Case

# What follows a provider's name where it was timed without an output array.
ALLOC = "+alloc"


@dataclass(frozen=True)
class Measurement:
    """One provider on one case: seconds a call in every round.

    Attributes
    ----------
    limit : float
        Seconds that the case's fewest bytes take at the rate of the best copy in these rounds.
    error : float
        The largest difference to float64, in units of the largest exact value.
    """

    case: Case
    provider: str
    seconds: tuple[float, ...]
    limit: float
    error: float

    @property
    def typical(self) -> float:
        """The median time of a call."""
        return median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance of the quartiles, relative to the median."""
        times = sorted(self.seconds)
        n = len(times)
        return (times[(3 * n) // 4] - times[n // 4]) / 2 / self.typical

    @property
    def allocates(self) -> bool:
        """Whether the calls had no output array."""
        return self.provider.endswith(ALLOC)

    @property
    def efficiency(self) -> float:
        """The limit over the time: 1 is a copy's rate on the fewest bytes."""
        return self.limit / self.typical


def cpu_model() -> str:
    """As the kernel calls it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def caches() -> list[dict[str, Any]]:
    """The first core's caches, largest last."""
    found = []
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind = (index / "type").read_text().strip()
        size = (index / "size").read_text().strip()
        if kind != "Instruction":
            level = int((index / "level").read_text())
            found.append({"type": kind, "level": level, "size": int(size[:-1]) * 1024})
    return found


def last_level_cache() -> int:
    """Bytes; 32 MiB where the machine does not tell."""
    return max((int(cache["size"]) for cache in caches()), default=32 << 20)


def context(versions: dict[str, str], threads: int, rounds: int) -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "executable": "bench/run.py",
        "num_cpus": os.cpu_count(),
        "cpu": cpu_model(),
        "caches": caches(),
        "load_avg": list(os.getloadavg()),
        "library_build_type": "release",
        "system": platform.platform(),
        "python": platform.python_version(),
        "isa": fn.info()["isa"],
        "threads": threads,
        "rounds": rounds,
        "versions": versions,
    }


def save(path: Path, about: dict[str, Any], measurements: Sequence[Measurement]) -> None:
    """Write all measurements; a file that is there is replaced at once or not at all."""
    entries = [
        {
            "name": f"{m.case.name}/{m.provider}",
            "run_name": m.case.name,
            "run_type": "iteration",
            "repetitions": len(m.seconds),
            "iterations": 1,
            "real_time": 1e9 * m.typical,
            "cpu_time": 1e9 * m.typical,
            "time_unit": "ns",
            "min_time": 1e9 * min(m.seconds),
            "spread": m.spread,
            "bytes_per_second": m.case.least_bytes / m.typical,
            "efficiency": m.efficiency,
            "limit_time": 1e9 * m.limit,
            "error": m.error,
            "provider": m.provider,
            "case": asdict(m.case),
            "times": [1e9 * s for s in m.seconds],
        }
        for m in measurements
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    lines = ",\n".join(json.dumps(entry) for entry in entries)  # one each: small, and they diff
    new.write_text(f'{{"context": {json.dumps(about, indent=1)},\n"benchmarks": [\n{lines}\n]}}\n')
    new.replace(path)


def load(path: Path) -> tuple[dict[str, Any], list[Measurement]]:
    """What `save` wrote."""
    data = json.loads(path.read_text())
    measurements = []
    for entry in data["benchmarks"]:
        case = dict(entry["case"])
        case["shape"] = tuple(case["shape"])
        measurements.append(
            Measurement(
                Case(**case),
                entry["provider"],
                tuple(1e-9 * t for t in entry["times"]),
                1e-9 * entry["limit_time"],
                entry["error"],
            )
        )
    return data["context"], measurements
