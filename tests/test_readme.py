"""The README's examples run."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMPILER = shutil.which("c++")


def block(language: str, number: int = 0) -> str:
    """A code block of that language."""
    found = re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return str(found[number])


def test_python_example() -> None:
    names: dict[str, object] = {}
    exec(compile(block("python"), "README.md", "exec"), names)
    assert {"fwd", "grads", "bn"} <= names.keys()


def test_example_of_the_family() -> None:
    names: dict[str, object] = {}
    exec(compile(block("python", 1), "README.md", "exec"), names)
    assert {"fwd", "grads", "residual", "image"} <= names.keys()


@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
def test_cpp_example_compiles() -> None:
    options = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-x", "c++"]
    includes = ["-I", str(ROOT / "cpp" / "include")]
    subprocess.run(
        [str(COMPILER), *options, *includes, "-"], input=block("cpp"), text=True, check=True
    )


def test_every_link_leads_somewhere() -> None:
    text = (ROOT / "README.md").read_text()
    targets = [t for t in re.findall(r"\]\(([^)]+)\)", text) if "://" not in t]
    missing = [t for t in targets if not t.startswith("#") and not (ROOT / t).exists()]
    anchors = {
        re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-")
        for h in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    assert not missing
    assert {t[1:] for t in targets if t.startswith("#")} <= anchors
