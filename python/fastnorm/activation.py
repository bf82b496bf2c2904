"""Activations that an op applies to its normalized output: y = activation(z).

An activation is a name and two parameters, plain values that travel to the kernels as they are.
`DEFAULTS` is the one list of names; what each name computes is defined in `fastnorm.reference`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# Every activation, with the parameters (alpha, beta) that its bare name stands for.
DEFAULTS: dict[str, tuple[float, float]] = {
    "relu": (0.0, 0.0),
    "leaky_relu": (0.01, 0.0),
    "clip": (0.0, 6.0),
    "sigmoid": (0.0, 0.0),
    "tanh": (0.0, 0.0),
    "silu": (0.0, 0.0),
    "gelu": (0.0, 0.0),
    "gelu_tanh": (0.0, 0.0),
    "hardswish": (0.0, 0.0),
}


def _unknown(op: str, argument: str, name: str) -> ValueError:
    known = ", ".join(DEFAULTS)
    return ValueError(f"{op}: {argument} is {name!r}, expected one of {known}")


def _number(op: str, argument: str, value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        found = type(value).__name__
        raise TypeError(f"{op}: {argument} is of type {found}, expected a number") from None


@dataclass(frozen=True)
class Activation:
    """An activation with its parameters.

    Made by `leaky_relu` and `clip`; the activations without parameters are best given by name.

    Parameters
    ----------
    name : str
        One of the names in `fastnorm.activation.DEFAULTS`.
    alpha : float
        leaky_relu: the slope below zero. clip: the lower bound. Else 0.
    beta : float
        clip: the upper bound. Else 0.

    Raises
    ------
    ValueError
        For an unknown name, or parameters that the activation does not have or allow.
    TypeError
        For a name that is no string, or a parameter that is no number.
    """

    name: str
    alpha: float
    beta: float

    def __post_init__(self) -> None:
        """Check the values and store both parameters as Python floats."""
        if not isinstance(self.name, str):
            found = type(self.name).__name__
            raise TypeError(f"Activation: name is of type {found}, expected str")
        if self.name not in DEFAULTS:
            raise _unknown("Activation", "name", self.name)
        if self.name == "clip":
            alpha = _number("clip", "min", self.alpha)
            beta = _number("clip", "max", self.beta)
            if math.isnan(alpha) or math.isnan(beta) or alpha > beta:
                raise ValueError(f"clip: min is {alpha} and max is {beta}, expected min <= max")
        elif self.name == "leaky_relu":
            alpha = _number("leaky_relu", "negative_slope", self.alpha)
            beta = _number("leaky_relu", "beta", self.beta)
            if not math.isfinite(alpha):
                raise ValueError(f"leaky_relu: negative_slope is {alpha}, expected a finite number")
            if beta != 0.0:
                raise ValueError(f"leaky_relu: beta is {beta}, expected 0")
        else:
            alpha = _number(self.name, "alpha", self.alpha)
            beta = _number(self.name, "beta", self.beta)
            if alpha != 0.0 or beta != 0.0:
                raise ValueError(
                    f"{self.name}: alpha is {alpha} and beta is {beta}, expected 0 and 0: "
                    f"{self.name} has no parameters"
                )
        object.__setattr__(self, "alpha", alpha)
        object.__setattr__(self, "beta", beta)


def leaky_relu(negative_slope: float = 0.01) -> Activation:
    """Leaky ReLU: z where z > 0, else negative_slope * z.

    Parameters
    ----------
    negative_slope : float
        The slope where z <= 0; any finite number.

    Returns
    -------
    Activation
        A value for the `activation` argument of any op.

    Raises
    ------
    ValueError
        If negative_slope is not finite.
    """
    return Activation("leaky_relu", negative_slope, 0.0)


def clip(min: float = 0.0, max: float = 6.0) -> Activation:
    """Limit z to [min, max]; the default bounds are those of ReLU6.

    Parameters
    ----------
    min, max : float
        The bounds; infinities are allowed.

    Returns
    -------
    Activation
        A value for the `activation` argument of any op.

    Raises
    ------
    ValueError
        If min > max or either is NaN.
    """
    return Activation("clip", min, max)


def as_activation(value: str | Activation | None, op: str) -> Activation | None:
    """Turn what a user gives as `activation` into an Activation, or None for none.

    Parameters
    ----------
    value : None, str or Activation
        A name stands for the activation with its default parameters.
    op : str
        The name of the op that asks, for the error message.

    Returns
    -------
    Activation or None
        The activation with all its parameters.

    Raises
    ------
    ValueError
        For an unknown name.
    TypeError
        For a value of any other type.
    """
    if value is None or isinstance(value, Activation):
        return value
    if not isinstance(value, str):
        found = type(value).__name__
        raise TypeError(
            f"{op}: activation is of type {found}, expected None, a name or fastnorm.Activation"
        )
    if value not in DEFAULTS:
        raise _unknown(op, "activation", value)
    return Activation(value, *DEFAULTS[value])
