"""Activations that an op applies to its normalized output: y = activation(z).

An activation is a name and two parameters, plain values that travel to the kernels as they are. The
compiled core has the one list of them; what each computes is defined in `fastnorm.reference`.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastnorm import _core
from fastnorm.arguments import number

# Every activation's parameters by name, with the values that its bare name stands for.
PARAMETERS = _core.activations()


def _unknown(op: str, argument: str, name: str) -> ValueError:
    known = ", ".join(PARAMETERS)
    either = "None or " if argument == "activation" else ""
    return ValueError(f"{op}: {argument} is {name!r}, expected {either}one of {known}")


@dataclass(frozen=True)
class Activation:
    """An activation with its parameters.

    Made by `leaky_relu` and `clip`; the activations without parameters are best given by name.

    Parameters
    ----------
    name : str
        One of the names in `fastnorm.activation.PARAMETERS`.
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
        name: object = self.name  # whatever the caller gave
        if not isinstance(name, str):
            raise TypeError(f"Activation: name is of type {type(name).__name__}, expected str")
        if name not in PARAMETERS:
            raise _unknown("Activation", "name", name)
        own = [parameter for parameter, _ in PARAMETERS[name]]
        for i, field in enumerate(("alpha", "beta")):
            value = number(name, own[i] if i < len(own) else field, getattr(self, field))
            if i >= len(own) and value != 0.0:
                parameters = " and ".join(own) or "no parameters"
                raise ValueError(f"{name}: {field} is {value}, expected 0: it has {parameters}")
            object.__setattr__(self, field, value)
        _core.check_activation(name, self.alpha, self.beta)


# The activations that bare names stand for, made once.
_BY_NAME = {
    name: Activation(name, *(*(default for _, default in parameters), 0.0, 0.0)[:2])
    for name, parameters in PARAMETERS.items()
}


def leaky_relu(negative_slope: float = 0.01) -> Activation:
    """Leaky ReLU: z where z > 0, else negative_slope * z.

    Parameters
    ----------
    negative_slope : float
        The slope where z <= 0; any finite number. 0.01 is PyTorch's and ONNX's.

    Returns
    -------
    Activation
        A value for the `activation` argument of any op.

    Raises
    ------
    ValueError
        If negative_slope is not finite.
    TypeError
        If it is no number.
    """
    return Activation("leaky_relu", negative_slope, 0.0)


def clip(min: float = 0.0, max: float = 6.0) -> Activation:
    """Limit z to [min, max]; the default bounds are those of ReLU6.

    Parameters
    ----------
    min, max : float
        The bounds, 0 and 6 if not given; infinities are allowed.

    Returns
    -------
    Activation
        A value for the `activation` argument of any op.

    Raises
    ------
    ValueError
        If min > max or either is NaN.
    TypeError
        If either is no number.
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
    given: object = value  # whatever the caller gave
    if given is None or isinstance(given, Activation):
        return given
    if not isinstance(given, str):
        found = type(given).__name__
        raise TypeError(
            f"{op}: activation is of type {found}, expected None, a name or fastnorm.Activation"
        )
    if given not in _BY_NAME:
        raise _unknown(op, "activation", given)
    return _BY_NAME[given]
