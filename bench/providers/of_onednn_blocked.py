"""oneDNN in its blocked layout: what it takes inside a network whose tensors never leave it."""

from __future__ import annotations

from problem import Problem
from providers import Runner
from providers.of_onednn import OneDNN


class OneDNNBlocked(OneDNN):
    """Arrays of its own, of 16 (AVX-512) or 8 channels a block: reorders are not timed."""

    blocked = True

    def prepare(self, problem: Problem) -> Runner | None:
        """Once for a shape, as NCHW: the layout of the case is not the one computed in."""
        return super().prepare(problem) if problem.case.layout == "NCHW" else None


make = OneDNNBlocked
