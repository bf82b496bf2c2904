// NumPy arrays to tensor views, and new arrays for results. No mathematics and no shape rules: what
// is wrong with a view, validation says.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "fastnorm/fastnorm.hpp"

namespace fastnorm::python {

namespace py = pybind11;

// The view of an array, its ndim beyond max_dims included. Throws TypeError ("op: argument is of
// type list, expected a NumPy array") for anything else, and for elements that no DType stands for.
TensorView view_of(const char* op, const char* argument, py::handle array);

// The same, and a view that is not given for None.
TensorView optional_view_of(const char* op, const char* argument, py::handle array);

// A number, an integer, a bool. Throw TypeError for anything else, ValueError for a number that
// their types do not hold; an exception of the value's own (in __float__, __index__) passes.
double number_of(const char* op, const char* argument, py::handle value);
int integer_of(const char* op, const char* argument, py::handle value);
std::int64_t integer64_of(const char* op, const char* argument, py::handle value);
bool flag_of(const char* op, const char* argument, py::handle value);

// A new array of x's shape, dtype and order of dimensions (C order where x is broadcast), dense.
py::array empty_like(const py::array& x);

// A new contiguous array of one dimension.
py::array empty(DType dtype, std::int64_t size);

// (name, alpha, beta), as fastnorm.Activation has them, or None.
Activation activation_of(py::handle activation);

}  // namespace fastnorm::python
