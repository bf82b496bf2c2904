"""Every tier of a large GPU once, for a sanitizer: training, backward and inference."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

import fastnorm as fn

# Rows and columns, in a block and in a cluster; images likewise; element by element.
SHAPES = (
    (4, 8, 4, 8),
    (8, 4, 40, 40),
    (3, 8, 7, 7),
    (150, 8, 37, 37),
    (50, 64),
    (5000, 64),
    (3, 5, 7, 9),
)
# By a group of blocks, and in two passes: of one dtype and activation.
LARGE = ((2, 2, 1024, 1024), (2, 1, 2048, 2560))


def main() -> None:
    """Run them all."""
    rng = np.random.default_rng(0)
    for shape in (*SHAPES, *LARGE):
        large = shape in LARGE
        for dtype in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)[: 1 if large else 4]:
            for activation in ("relu", "silu")[: 1 if large else 2]:
                x, dy, residual = (
                    fn.cuda.asarray(rng.standard_normal(shape).astype(dtype)) for _ in range(3)
                )
                fwd = fn.batch_norm_train(x, activation=activation, residual=residual)
                grads = fn.batch_norm_backward(
                    *(dy, x, fwd.mean, fwd.rstd),
                    **{"activation": activation, "residual": residual, "mask": fwd.mask},
                )
                y = fn.batch_norm(x, fwd.mean, fwd.rstd, activation=activation)
                for array in (*fwd, *grads, y):
                    if array is not None:
                        assert np.isfinite(array.numpy().astype(np.float64)).all()
                if shape in SHAPES:
                    other_norms(x, dy, residual, activation)
    print("done")


def other_norms(x: Any, dy: Any, residual: Any, activation: str) -> None:
    """Those of the last axis, and of each sample."""
    y, total = fn.layer_norm(x, residual=residual, prenorm=True)
    rows = fn.layer_norm_train(x, activation=activation)
    of_rows = fn.layer_norm_backward(
        *(dy, x, rows.mean, rows.rstd), activation=activation, mask=rows.mask, dsum=residual
    )
    groups = x.shape[1] if x.shape[1] % 4 else 4
    samples = fn.group_norm_train(x, groups, activation=activation)
    of_samples = fn.group_norm_backward(
        *(dy, x, groups, samples.mean, samples.rstd), activation=activation, mask=samples.mask
    )
    for array in (y, total, *of_rows, *of_samples):
        if array is not None:
            assert np.isfinite(array.numpy().astype(np.float64)).all()


if __name__ == "__main__":
    main()
