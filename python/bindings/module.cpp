#include "module.h"

#include "fastnorm/fastnorm.hpp"

PYBIND11_MODULE(_core, module) {
    module.doc() = "The compiled core of fastnorm; use the functions of the package.";
    pybind11::register_exception_translator([](std::exception_ptr error) {
        try {
            if (error) std::rethrow_exception(error);
        } catch (const fastnorm::dtype_error& wrong) {
            pybind11::set_error(PyExc_TypeError, wrong.what());
        }
    });
    fastnorm::python::register_channel_norms(module);
    fastnorm::python::register_feature_norms(module);
    fastnorm::python::register_explain(module);
    fastnorm::python::register_process(module);
    pybind11::register_exception<fastnorm::cuda_error>(module, "CudaError", PyExc_RuntimeError)
        .attr("__module__") = "fastnorm";
    fastnorm::python::register_device_arrays(module);
    fastnorm::python::register_memory(module);
}
