// One register function per concern.
#pragma once

#include <pybind11/pybind11.h>

namespace fastnorm::python {

void register_norms(pybind11::module_& module);
void register_device_arrays(pybind11::module_& module);
void register_process(pybind11::module_& module);

}  // namespace fastnorm::python
