"""A small convolutional network of sigmoid units in plain NumPy, with or without fastnorm.

    1x28x28 -> conv 5x5/2 -> 8x14x14 -> conv 3x3/2 -> 16x7x7 -> dense 100 -> dense 100 -> dense 10

Every hidden layer computes sigmoid(norm(W x)) with batch normalization and sigmoid(W x + bias)
without it. The layers have the interface of ``fn.BatchNorm`` (call, ``backward``, ``weight``,
``bias``, ``dweight``, ``dbias``), so that one is a layer of the network as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

import fastnorm as fn

Array = npt.NDArray[Any]


class Layer(Protocol):
    """What the network asks of a layer."""

    def __call__(self, x: Array) -> Array:
        """Return y and remember what ``backward`` needs."""

    def backward(self, dy: Array) -> Array:
        """Return dx; the gradients of the parameters are then in ``dweight`` and ``dbias``."""


def initial_weight(shape: tuple[int, ...], rng: np.random.Generator, gain: float) -> Array:
    """Return Gaussian weights of standard deviation gain * sqrt(2 / (fan_in + fan_out)).

    The first axis of ``shape`` is the outputs, the second the inputs, the rest (if any) the
    receptive field. Glorot & Bengio (2010), equation 12.
    """
    field = int(np.prod(shape[2:]))
    std = gain * np.sqrt(2.0 / ((shape[0] + shape[1]) * field))
    weight: Array = rng.normal(0.0, std, shape).astype(np.float32)
    return weight


class Dense:
    """A fully connected layer: y = x @ weight.T + bias, x of shape (N, inputs)."""

    def __init__(self, weight: Array, *, bias: bool) -> None:
        """Take ``weight`` of shape (outputs, inputs); ``bias`` says whether to have one."""
        self.weight = weight
        self.bias = np.zeros(len(weight), weight.dtype) if bias else None
        self.dweight: Array | None = None
        self.dbias: Array | None = None

    def __call__(self, x: Array) -> Array:
        """Return y of shape (N, outputs)."""
        self._x = x
        y: Array = x @ self.weight.T
        if self.bias is not None:
            y += self.bias
        return y

    def backward(self, dy: Array) -> Array:
        """Return dx, and leave ``dweight`` and ``dbias``."""
        self.dweight = dy.T @ self._x
        if self.bias is not None:
            self.dbias = dy.sum(axis=0)
        return dy @ self.weight


class Convolution:
    """A convolution of NCHW images as a matrix product: y[n] = weight @ columns(x[n]) + bias.

    Column p holds the patch of x under output pixel p ("im2col"), so each image's product is
    (outputs, inputs * k * k) @ (inputs * k * k, pixels) and comes out in NCHW order.
    """

    def __init__(self, weight: Array, *, stride: int, bias: bool) -> None:
        """Take ``weight`` of shape (outputs, inputs, k, k), k odd; x is padded by (k - 1) / 2."""
        self.weight = weight
        self.bias = np.zeros(len(weight), weight.dtype) if bias else None
        self.dweight: Array | None = None
        self.dbias: Array | None = None
        self.stride = stride

    def __call__(self, x: Array) -> Array:
        """Return y of shape (N, outputs, ceil(H / stride), ceil(W / stride))."""
        self._x_shape = x.shape
        self._columns = self._gather(x)
        y = self._weight_matrix() @ self._columns
        if self.bias is not None:
            y += self.bias[:, None]
        return y.reshape(len(x), -1, *self._output_size())

    def backward(self, dy: Array) -> Array:
        """Return dx, and leave ``dweight`` and ``dbias``."""
        self.backward_parameters(dy)
        return self._scatter_add(self._weight_matrix().T @ dy.reshape(*dy.shape[:2], -1))

    def backward_parameters(self, dy: Array) -> None:
        """Leave ``dweight`` and ``dbias`` only: nobody asks for the gradient by the images."""
        dy = dy.reshape(*dy.shape[:2], -1)
        per_image = dy @ self._columns.transpose(0, 2, 1)
        self.dweight = per_image.sum(axis=0).reshape(self.weight.shape)
        if self.bias is not None:
            self.dbias = dy.sum(axis=(0, 2))

    def _weight_matrix(self) -> Array:
        return self.weight.reshape(len(self.weight), -1)

    def _output_size(self) -> tuple[int, int]:
        height, width = self._x_shape[2:]
        return -(-height // self.stride), -(-width // self.stride)

    def _taps(self) -> Iterator[tuple[int, int, slice, slice]]:
        """Yield each kernel position with the rows and columns of padded x that it multiplies."""
        k, stride = self.weight.shape[-1], self.stride
        height, width = self._output_size()
        for i in range(k):
            for j in range(k):
                rows = slice(i, i + stride * (height - 1) + 1, stride)
                columns = slice(j, j + stride * (width - 1) + 1, stride)
                yield i, j, rows, columns

    def _padded_zeros(self, dtype: npt.DTypeLike) -> Array:
        n, c, height, width = self._x_shape
        k = self.weight.shape[-1]
        return np.zeros((n, c, height + k - 1, width + k - 1), dtype)

    def _without_padding(self, padded: Array) -> Array:
        _, _, height, width = self._x_shape
        pad = self.weight.shape[-1] // 2
        return padded[:, :, pad : pad + height, pad : pad + width]

    def _gather(self, x: Array) -> Array:
        """Return the columns of x, of shape (N, inputs * k * k, pixels)."""
        n, c = x.shape[:2]
        k = self.weight.shape[-1]
        padded = self._padded_zeros(x.dtype)
        self._without_padding(padded)[...] = x
        columns = np.empty((n, c, k, k, *self._output_size()), x.dtype)
        for i, j, rows, cols in self._taps():
            columns[:, :, i, j] = padded[:, :, rows, cols]
        return columns.reshape(n, c * k * k, -1)

    def _scatter_add(self, dcolumns: Array) -> Array:
        """Add up the columns' entries at the pixels that they come from: _gather's adjoint."""
        n, c = self._x_shape[:2]
        k = self.weight.shape[-1]
        dcolumns = dcolumns.reshape(n, c, k, k, *self._output_size())
        padded = self._padded_zeros(dcolumns.dtype)
        for i, j, rows, cols in self._taps():
            padded[:, :, rows, cols] += dcolumns[:, :, i, j]
        return self._without_padding(padded)


class Sigmoid:
    """y = 1 / (1 + exp(-x)), computed as (1 + tanh(x / 2)) / 2, which cannot overflow."""

    def __call__(self, x: Array) -> Array:
        """Return y."""
        y = np.multiply(x, 0.5)
        np.tanh(y, out=y)
        y += 1
        y *= 0.5
        self._y = y
        return y

    def backward(self, dy: Array) -> Array:
        """Return dx = dy * y * (1 - y)."""
        dx = 1 - self._y
        dx *= self._y
        dx *= dy
        return dx


class Flatten:
    """NCHW images to rows of shape (N, C * H * W)."""

    def __call__(self, x: Array) -> Array:
        """Return the rows."""
        self._shape = x.shape
        return x.reshape(len(x), -1)

    def backward(self, dy: Array) -> Array:
        """Return dy in the images' shape."""
        return dy.reshape(self._shape)


class Network:
    """The layers in order; with ``batch_norm`` one ``fn.BatchNorm`` before each nonlinearity.

    A layer that is followed by a normalization has no bias of its own: subtracting the batch's
    mean would cancel it (Ioffe & Szegedy 2015, section 3.2).
    """

    def __init__(self, seed: int, *, batch_norm: bool, gain: float) -> None:
        """Draw the weights from ``seed``: the same ones but for ``gain``."""
        rng = np.random.default_rng(seed)
        bias = not batch_norm
        self.norms: list[fn.BatchNorm] = []

        def nonlinearity(channels: int) -> list[Layer]:
            if not batch_norm:
                return [Sigmoid()]
            self.norms.append(fn.BatchNorm(channels))
            return [self.norms[-1], Sigmoid()]

        self.first = Convolution(initial_weight((8, 1, 5, 5), rng, gain), stride=2, bias=bias)
        self.rest: list[Layer] = [
            *nonlinearity(8),
            Convolution(initial_weight((16, 8, 3, 3), rng, gain), stride=2, bias=bias),
            *nonlinearity(16),
            Flatten(),
            Dense(initial_weight((100, 16 * 7 * 7), rng, gain), bias=bias),
            *nonlinearity(100),
            Dense(initial_weight((100, 100), rng, gain), bias=bias),
            *nonlinearity(100),
            Dense(initial_weight((10, 100), rng, gain), bias=True),
        ]

    def __call__(self, x: Array) -> Array:
        """Return the logits, of shape (N, 10)."""
        x = self.first(x)
        for layer in self.rest:
            x = layer(x)
        return x

    def backward(self, dy: Array) -> None:
        """Leave each layer's gradients in it."""
        for layer in reversed(self.rest):
            dy = layer.backward(dy)
        self.first.backward_parameters(dy)

    def train(self, mode: bool = True) -> None:
        """Normalize with the batch's statistics, or (mode False) with the running ones."""
        for norm in self.norms:
            norm.train(mode)

    def parameters(self) -> Iterator[tuple[Array, Array]]:
        """Yield each parameter with its gradient; call it after ``backward``."""
        for layer in [self.first, *self.rest]:
            for name in ("weight", "bias"):
                gradient = getattr(layer, "d" + name, None)
                if gradient is not None:
                    yield getattr(layer, name), gradient


def softmax_cross_entropy(logits: Array, labels: Array) -> tuple[float, Array]:
    """Return the mean cross-entropy of softmax(logits) in nats, and its gradient by logits."""
    rows = np.arange(len(labels))
    shifted = logits - logits.max(axis=1, keepdims=True)
    probabilities = np.exp(shifted)
    total = probabilities.sum(axis=1, keepdims=True)
    loss = float(np.mean(np.log(total[:, 0]) - shifted[rows, labels]))
    dlogits = probabilities / total
    dlogits[rows, labels] -= 1
    dlogits /= len(labels)
    return loss, dlogits


class SGD:
    """Stochastic gradient descent with momentum: v <- momentum v - rate dw; w <- w + v."""

    def __init__(self, learning_rate: float, momentum: float) -> None:
        """Take the step's size, constant throughout, and the share of it that carries over."""
        self.learning_rate = learning_rate
        self.momentum = momentum
        self._velocities: list[Array] = []

    def step(self, network: Network) -> None:
        """Update the network's parameters in place from its gradients."""
        parameters = list(network.parameters())
        if not self._velocities:
            self._velocities = [np.zeros_like(value) for value, _ in parameters]
        for (value, gradient), velocity in zip(parameters, self._velocities, strict=True):
            velocity *= self.momentum
            velocity -= self.learning_rate * gradient
            value += velocity
