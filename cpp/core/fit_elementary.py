"""Fit the polynomials of elementary.h: prints them, or with --check compares them with the header.

Two functions are fitted, each for float and for double:

    expm1_reduced   (exp(r) - 1 - r) / r^2                    on |r| <= ln(2)/2
    mills_scaled    (a + K) exp(a^2/2) Phi(-a), a = K (1+t)/(1-t)   on 0 <= a <= A

Both are least-squares fits on Chebyshev nodes, weighted so that the error that counts is the
relative error of the final result; that is within a factor of about two of the minimax polynomial.
Coefficients are rounded one at a time, lowest degree first, and the rest is fitted again around
each rounded one, so that the rounding of one coefficient is taken up by the next.

Needs mpmath; takes a few seconds. The header is written by hand around the printed literals.
"""

from __future__ import annotations

import argparse
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mpmath as mp

mp.mp.dps = 60

Function = Callable[[mp.mpf], mp.mpf]


@dataclass(frozen=True)
class Scalar:
    """A floating-point type: how its literals look and how a number is rounded to it."""

    name: str
    bits: int
    digits: int
    suffix: str
    code: str

    def round(self, value: mp.mpf) -> mp.mpf:
        """Return `value` rounded to nearest in this type (twice, through double, for float)."""
        return mp.mpf(struct.unpack(self.code, struct.pack(self.code, float(value)))[0])

    def literal(self, value: mp.mpf) -> str:
        """Return a C++ literal that reads back as `value`."""
        return f"{float(value):.{self.digits}g}{self.suffix}"


FLOAT = Scalar("float", 24, 9, "f", "<f")
DOUBLE = Scalar("double", 53, 17, "", "<d")


@dataclass(frozen=True)
class Fit:
    """A polynomial of `degree` for `function` on [lo, hi], its error multiplied by `weight`."""

    name: str
    scalar: Scalar
    degree: int
    lo: mp.mpf
    hi: mp.mpf
    function: Function
    weight: Function

    def nodes(self, count: int) -> list[mp.mpf]:
        """Return `count` Chebyshev nodes of the interval."""
        middle, radius = (self.lo + self.hi) / 2, (self.hi - self.lo) / 2
        return [middle + radius * mp.cospi(mp.mpf(2 * i + 1) / (2 * count)) for i in range(count)]

    def coefficients(self) -> list[mp.mpf]:
        """Return the coefficients, constant term first, rounded to the scalar type."""
        nodes = self.nodes(4 * (self.degree + 1))
        weights = [self.weight(x) for x in nodes]
        rest = [self.function(x) for x in nodes]
        rounded: list[mp.mpf] = []
        for power in range(self.degree + 1):
            free = self.degree + 1 - power
            matrix = mp.matrix(len(nodes), free)
            right = mp.matrix(len(nodes), 1)
            for i, (x, w) in enumerate(zip(nodes, weights, strict=True)):
                right[i] = rest[i] * w
                for j in range(free):
                    matrix[i, j] = w * x ** (power + j)
            rounded.append(self.scalar.round(mp.lu_solve(matrix, right)[0]))
            rest = [y - rounded[-1] * x**power for x, y in zip(nodes, rest, strict=True)]
        return rounded

    def error(self, coefficients: list[mp.mpf]) -> float:
        """Return the largest weighted error in units of the scalar type's 2^-bits."""
        worst = max(
            abs((mp.polyval(coefficients[::-1], x) - self.function(x)) * self.weight(x))
            for x in self.nodes(401)
        )
        return float(worst * 2**self.scalar.bits)


def expm1_tail(r: mp.mpf) -> mp.mpf:
    """Return (exp(r) - 1 - r) / r^2."""
    return (mp.expm1(r) - r) / r**2 if r else mp.mpf(1) / 2


def mills_scaled(t: mp.mpf, k: mp.mpf) -> mp.mpf:
    """Return (a + k) exp(a^2/2) Phi(-a) with a = k (1+t)/(1-t)."""
    a = k * (1 + t) / (1 - t)
    return (a + k) * mp.exp(a * a / 2) * mp.erfc(a / mp.sqrt(2)) / 2


def exp_fit(scalar: Scalar, degree: int) -> Fit:
    """Return the fit of exp's tail; the weight makes its error relative to expm1(r)."""
    # x log2(e) is rounded before it is rounded to an integer, so |r| can pass ln(2)/2 by a little.
    bound = mp.ln2 / 2 * (1 + mp.mpf(2) ** -12)
    return Fit(
        "expm1_reduced",
        scalar,
        degree,
        -bound,
        bound,
        expm1_tail,
        lambda r: r**2 / abs(mp.expm1(r)) if r else mp.mpf(0),
    )


def mills_fit(scalar: Scalar, degree: int, k: mp.mpf, largest: mp.mpf) -> Fit:
    """Return the fit of the normal tail for 0 <= a <= largest; its error is relative."""
    return Fit(
        "mills_scaled",
        scalar,
        degree,
        mp.mpf(-1),
        (largest - k) / (largest + k),
        lambda t: mills_scaled(t, k),
        lambda t: 1 / mills_scaled(t, k),
    )


FITS = [
    exp_fit(FLOAT, 4),
    exp_fit(DOUBLE, 9),
    mills_fit(FLOAT, 9, mp.mpf(5), mp.mpf("14.5")),
    mills_fit(DOUBLE, 21, mp.mpf("5.5"), mp.mpf("38.75")),
]


def split_ln2(scalar: Scalar, bits: int) -> tuple[mp.mpf, mp.mpf]:
    """Return ln(2) as high + low, the high part short enough for n * high to be exact."""
    high = mp.nint(mp.ln2 * 2**bits) / 2**bits
    return high, scalar.round(mp.ln2 - high)


def main() -> int:
    """Print every list of literals, or check that the header holds each of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with elementary.h")
    check = parser.parse_args().check
    header = " ".join(Path(__file__).with_name("elementary.h").read_text().split()) if check else ""
    stale = 0
    for scalar, bits in ((FLOAT, 16), (DOUBLE, 42)):
        literals = [scalar.literal(part) for part in split_ln2(scalar, bits)]
        stale += report(f"ln2_hi <{scalar.name}>", literals[:1], header, check)
        stale += report(f"ln2_lo <{scalar.name}>", literals[1:], header, check)
    for fit in FITS:
        coefficients = fit.coefficients()
        literals = [fit.scalar.literal(c) for c in coefficients]
        title = f"{fit.name} <{fit.scalar.name}>, fit error {fit.error(coefficients):.3f} x 2^-p"
        stale += report(title, literals, header, check)
    return 1 if stale else 0


def report(title: str, literals: list[str], header: str, check: bool) -> int:
    """Print the literals, or return 1 when the header lacks their list."""
    text = ", ".join(literals)
    if not check:
        print(f"// {title}\n{text}\n")
        return 0
    print(f"{'ok' if text in header else 'stale':5}  {title}")
    return 0 if text in header else 1


if __name__ == "__main__":
    sys.exit(main())
