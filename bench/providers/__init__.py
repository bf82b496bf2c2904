"""The competitors: one file each. A provider turns a problem into a call without arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

import numpy.typing as npt

if TYPE_CHECKING:
    from problem import Problem

Array = npt.NDArray[Any]

# Module of each provider, and how to get what it needs.
PROVIDERS = {
    "fastnorm": ("providers.of_fastnorm", ""),
    "numpy": ("providers.of_numpy", ""),
    "torch": ("providers.of_torch", "pip install torch==2.13.0"),
    "bare": ("providers.of_bare", ""),
    "onednn": (
        "providers.of_onednn",
        "pip install onednn-cpu-gomp==2023.2.0 onednn-devel-cpu-gomp==2023.2.0",
    ),
    "onednn_blocked": (
        "providers.of_onednn_blocked",
        "pip install onednn-cpu-gomp==2023.2.0 onednn-devel-cpu-gomp==2023.2.0",
    ),
    "onnxruntime": ("providers.of_onnxruntime", "pip install onnxruntime onnx"),
    "jax": ("providers.of_jax", "pip install jax"),
}


class Unavailable(Exception):
    """The provider's library is not there; the message says what is missing."""


@dataclass(frozen=True)
class Runner:
    """A provider on a problem.

    Attributes
    ----------
    call : callable
        ``call(i)`` computes set i of the problem, into memory that is there where the library can
        (``Problem.sets[i].out``, or arrays of the provider's own), all its threads done on return.
    result : callable
        ``result(i)`` is y or dx of the last ``call(i)``, in the problem's layout.
    fresh : callable or None
        ``fresh(i)`` is what a user gets who passes no output: the library allocates it. The value
        is dropped by the caller.
    """

    call: Callable[[int], object]
    result: Callable[[int], Array]
    fresh: Callable[[int], object] | None = None


class Provider(Protocol):
    """A library, made once a run."""

    version: str

    def prepare(self, problem: Problem) -> Runner | None:
        """A runner; None for what the library does not have."""


def load(name: str, threads: int) -> Provider:
    """The provider of this name, its library set to so many threads.

    Raises
    ------
    Unavailable
        With the line that says how to install it.
    """
    module, install = PROVIDERS[name]
    try:
        provider: Provider = import_module(module).make(threads)
    except (ImportError, OSError, Unavailable) as error:
        raise Unavailable(f"{name}: {error} ({install})") from error
    return provider
