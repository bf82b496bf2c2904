// Threads, instruction sets and the list of activations.
#include <pybind11/stl.h>

#include "core/activations.h"
#include "module.h"

namespace fastnorm::python {

namespace py = pybind11;

void register_process(py::module_& module) {
    module.def("version", &version);
    module.def("set_num_threads", &set_num_threads, py::arg("n"));
    module.def("get_num_threads", &get_num_threads);
    module.def("openmp_runtime", &openmp_runtime);
    module.def("isa", &isa);
    module.def("isas", &isas);
    module.def("set_isa", &set_isa, py::arg("name"));
    module.def("activations", [] {
        py::dict result;
        for (const ActivationInfo& info : kActivations) {
            if (info.kind == ActivationKind::identity) continue;
            result[info.name] = py::make_tuple(info.alpha.fallback, info.beta.fallback);
        }
        return result;
    });
}

}  // namespace fastnorm::python
