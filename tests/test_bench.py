"""The benchmark measures what it says: right results first, and files that can be read again."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastnorm as fn

pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("typer")

BENCH = Path(__file__).parents[1] / "bench"
sys.path.append(str(BENCH))

import results  # noqa: E402
from limits import Limits  # noqa: E402
from problem import Problem  # noqa: E402
from protocol import measure  # noqa: E402
from providers import PROVIDERS, Runner, Unavailable, load  # noqa: E402
from suites import (  # noqa: E402
    EPILOGUES,
    LAYOUTS,
    OPS,
    OPS_OF_OTHERS,
    Case,
    cases_of,
    network,
    quick_cases,
)

SMALL = Case("edges", "training", "relu", "float32", "NCHW", (2, 3, 8, 8))


def script(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCH / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "result.json"
    options = ("--suite", "tiny", "--provider", "fastnorm,numpy", "--rounds", 3, "--threads", 1)
    process = script("run.py", *options, "--layout", "NCHW", "--out", path)
    assert process.returncode == 0, process.stderr
    assert "geometric mean" in process.stdout
    return path


def test_result_is_in_google_benchmarks_layout(result: Path) -> None:
    data = json.loads(result.read_text())
    assert data["context"]["num_cpus"] >= 1
    assert data["context"]["caches"]
    assert {"numpy", "fastnorm"} == set(data["context"]["versions"])
    for entry in data["benchmarks"]:
        assert entry["time_unit"] == "ns"
        assert 0 < entry["min_time"] <= entry["real_time"]
        assert entry["bytes_per_second"] > 0
        assert 0 < entry["efficiency"] < 2
        assert entry["error"] < 1e-5
    assert {e["case"]["op"] for e in data["benchmarks"]} == set(OPS)
    providers = {e["provider"] for e in data["benchmarks"]}
    assert providers == {"fastnorm", "fastnorm+alloc", "numpy", "numpy+alloc"}


def test_a_name_that_no_case_has(tmp_path: Path) -> None:
    process = script("run.py", "--only", "nosuch", "--out", tmp_path / "none.json")
    assert process.returncode != 0
    assert "'nosuch'" in process.stderr
    assert not (tmp_path / "none.json").exists()


def test_results_are_read_as_they_were_written(result: Path, tmp_path: Path) -> None:
    about, measurements = results.load(result)
    results.save(tmp_path / "again.json", about, measurements)
    same_about, same = results.load(tmp_path / "again.json")
    assert same_about == about
    for a, b in zip(measurements, same, strict=True):
        assert (a.case, a.provider, a.error) == (b.case, b.provider, b.error)
        np.testing.assert_allclose(a.seconds, b.seconds)
        np.testing.assert_allclose(a.limit, b.limit)


def test_comparison_shows_what_became_slower(result: Path, tmp_path: Path) -> None:
    assert script("compare.py", result, result).returncode == 0
    data = json.loads(result.read_text())
    for entry in data["benchmarks"]:  # no noise: a busy machine's would hide what is slower
        entry["times"] = [1e-3] * len(entry["times"])
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    before.write_text(json.dumps(data))
    entry = next(e for e in data["benchmarks"] if e["provider"] == "fastnorm")
    entry["times"] = [4 * t for t in entry["times"]]
    after.write_text(json.dumps(data))
    process = script("compare.py", before, after)
    assert process.returncode == 1
    assert "1 slower" in process.stdout
    assert "4.00" in process.stdout


def test_plots(result: Path, tmp_path: Path) -> None:
    process = script("plot.py", result, result, "--out", tmp_path)
    assert process.returncode == 0, process.stderr
    found = sorted(path.name for path in tmp_path.glob("*.png"))
    kinds = ("bandwidth", "efficiency", "speedup", "threads")
    assert found == [f"result-{kind}.png" for kind in kinds]


def test_plots_of_rows(tmp_path: Path) -> None:
    options = ("--suite", "decode", "--provider", "fastnorm,numpy", "--rounds", 3, "--no-alloc")
    process = script("run.py", *options, "--threads", 1, "--out", tmp_path / "rows.json")
    assert process.returncode == 0, process.stderr
    process = script("plot.py", tmp_path / "rows.json")
    assert process.returncode == 0, process.stderr
    kinds = ("bandwidth", "efficiency", "speedup")
    assert sorted(tmp_path.glob("*.png")) == [tmp_path / f"rows-{kind}.png" for kind in kinds]


class Fake:
    """A provider whose result is what it is told to be."""

    version = "0"

    def __init__(self, compute: Callable[[Problem], Any]) -> None:
        self._compute = compute

    def prepare(self, problem: Problem) -> Runner:
        found = self._compute(problem)
        return Runner(lambda i: None, lambda i: found)


def right(problem: Problem) -> Any:
    return problem.exact.astype(np.float32)


@pytest.mark.parametrize(
    ("compute", "is_right"),
    [
        (right, True),
        (lambda p: right(p) * 1.01, False),
        (lambda p: np.zeros_like(right(p)), False),
        (lambda p: np.full_like(right(p), np.nan), False),
    ],
)
def test_a_wrong_provider_is_reported_and_not_timed(
    compute: Callable[[Problem], Any], is_right: bool
) -> None:
    outcome = measure(SMALL, {"fake": Fake(compute)}, Limits(1), rounds=3, cold_bytes=1 << 16)
    assert [m.provider for m in outcome.measurements] == (["fake"] if is_right else [])
    assert len(outcome.wrong) == (0 if is_right else 1)


def test_a_provider_that_writes_nothing_is_wrong() -> None:
    """What another has left in the output is no result of its own."""
    problem = Problem(SMALL, 1 << 16)
    problem.sets[0].out[...] = problem.exact
    assert problem.error(Runner(lambda i: None, lambda i: problem.sets[i].out)) > 0.5


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("epilogue", ["plain", "residual_relu"])
def test_providers_are_right(provider: str, op: str, epilogue: str) -> None:
    try:
        library = load(provider, 2)
    except Unavailable as missing:
        pytest.skip(str(missing).splitlines()[0])
    for layout in ("NCHW", "NHWC"):
        for dtype in ("float32", "bfloat16"):
            case = Case("edges", op, epilogue, dtype, layout, (3, 20, 9, 7))
            problem = Problem(case, 1 << 18)
            runner = library.prepare(problem)
            if runner is not None:
                assert problem.error(runner) < (1e-4 if dtype == "float32" else 4e-2), case.name


IMAGES = (2, 12, 9, 7)
OTHERS = (
    Case("bert", "inference", "plain", "float32", "rows", (50, 70), norm="layer_norm"),
    Case("llama", "inference", "prenorm", "float32", "rows", (50, 70), norm="rms_norm"),
    Case(
        "sd_unet",
        "inference",
        "silu",
        "float32",
        "NCHW",
        (2, 12, 9, 7),
        norm="group_norm",
        groups=3,
    ),
    Case(
        "sd_unet",
        "inference",
        "plain",
        "float32",
        "NHWC",
        (2, 12, 9, 7),
        norm="group_norm",
        groups=3,
    ),
    Case("style", "inference", "relu", "float32", "NCHW", IMAGES, norm="instance_norm"),
)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("op", OPS_OF_OTHERS)
@pytest.mark.parametrize("case", OTHERS, ids=lambda case: case.name.replace("/", "-"))
def test_providers_of_the_other_norms_are_right(provider: str, op: str, case: Case) -> None:
    try:
        library = load(provider, 2)
    except Unavailable as missing:
        pytest.skip(str(missing).splitlines()[0])
    for dtype in ("float32", "bfloat16"):
        problem = Problem(dataclasses.replace(case, op=op, dtype=dtype), 1 << 18)
        runner = library.prepare(problem)
        if runner is None:
            assert provider != "fastnorm"
        else:
            assert problem.error(runner) < (1e-4 if dtype == "float32" else 4e-2)


BARE = (
    Case("bert", "", "plain", "", "rows", (50, 128), norm="layer_norm"),
    Case("llama", "", "plain", "", "rows", (50, 128), norm="rms_norm"),
    *(
        Case("sd_unet", "", epilogue, "", layout, (2, 64, 7, 16), norm="group_norm", groups=4)
        for epilogue in ("plain", "silu")
        for layout in LAYOUTS
    ),
    Case("style", "", "plain", "", "NCHW", (2, 64, 7, 16), norm="instance_norm"),
)


@pytest.mark.skipif("avx2" not in fn._core.isas(), reason="for x86 with AVX2 alone")
@pytest.mark.parametrize("past_the_cache", [False, True])
@pytest.mark.parametrize("op", OPS_OF_OTHERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", BARE, ids=lambda c: f"{c.norm}-{c.epilogue}-{c.layout}")
def test_bare_loops_are_right(
    op: str, dtype: str, case: Case, past_the_cache: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = load("bare", 3)
    module = sys.modules[type(library).__module__]
    monkeypatch.setattr(module, "LEAST_SHARED", 0)
    if past_the_cache:
        monkeypatch.setattr(module, "CACHED", 0)
    case = dataclasses.replace(case, op=op, dtype=dtype)
    problem = Problem(case, 1 << 18)
    runner = library.prepare(problem)
    assert runner is not None
    assert problem.error(runner) < (1e-4 if dtype == "float32" else 4e-2)
    if op != "backward":
        return
    own = load("fastnorm", 1).prepare(problem)
    assert own is not None
    expected: Any = own.call(0)
    found = library.arrays[0]  # type: ignore[attr-defined]
    for name in ("dweight",) if case.norm == "rms_norm" else ("dweight", "dbias"):
        np.testing.assert_allclose(
            found[name], getattr(expected, name).astype(np.float32), rtol=1e-2, atol=2e-2
        )


def test_a_missing_provider_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROVIDERS, "absent", ("providers.of_absent", "pip install absent"))
    with pytest.raises(Unavailable, match=r"^absent: .*of_absent.*\(pip install absent\)$"):
        load("absent", 1)


def test_fewest_bytes() -> None:
    def least(op: str, epilogue: str) -> int:
        return Case("edges", op, epilogue, "float32", "NCHW", (2, 3, 8, 8)).least_bytes

    x = 2 * 3 * 8 * 8 * 4
    assert least("inference", "plain") == least("training", "plain") == 2 * x
    assert least("inference", "residual_relu") == 3 * x
    assert least("backward", "plain") == 3 * x
    assert least("backward", "residual_relu") == 4 * x + x // 32


def test_fewest_bytes_of_rows() -> None:
    def least(op: str, epilogue: str) -> int:
        case = Case("llama", op, epilogue, "bfloat16", "rows", (32, 64), norm="rms_norm")
        return case.least_bytes // (32 * 64 * 2)

    assert (least("inference", "plain"), least("backward", "plain")) == (2, 3)
    assert (least("inference", "prenorm"), least("backward", "prenorm")) == (4, 4)


def test_suites_of_the_other_norms() -> None:
    rows = cases_of("llama", 32, OPS, EPILOGUES, ["float32"], LAYOUTS)
    assert {(case.norm, case.layout) for case in rows} == {("rms_norm", "rows")}
    assert len(rows) == 3 * 2 * 2  # shapes, ops, with a residual and without
    images = cases_of("sd_vae", 32, ["inference"], ["silu"], ["float32"], LAYOUTS)
    assert len(images) == 2 * 6
    assert all(case.norm == "group_norm" and case.groups == 32 for case in images)
    for suite in ("bert", "gpt2", "decode", "sd_unet", "style"):
        assert cases_of(suite, 1, OPS, ["plain"], ["float32"], ["NCHW"])


def test_suites() -> None:
    shapes = network("resnet50", 8)
    assert sum(count for _, count in shapes) == 53
    assert ((8, 64, 112, 112), 1) in shapes
    chosen = cases_of("resnet50", 8, OPS, ["plain"], ["float32"], ["NCHW"])
    assert len(chosen) == 3 * len(shapes)
    names = [case.name for case in quick_cases()]
    assert len(names) == len(set(names))
