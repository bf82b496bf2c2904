// One register function per concern.
#pragma once

#include <pybind11/pybind11.h>

namespace fastnorm::python {

void register_channel_norms(pybind11::module_& module);
void register_feature_norms(pybind11::module_& module);
void register_explain(pybind11::module_& module);
void register_device_arrays(pybind11::module_& module);
void register_memory(pybind11::module_& module);
void register_process(pybind11::module_& module);

}  // namespace fastnorm::python
