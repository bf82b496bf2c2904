// Threads, instruction sets and the activations.
#include <pybind11/stl.h>

#include "api/validate.h"
#include "arrays.h"
#include "buffers.h"
#include "core/activations.h"
#include "module.h"

namespace fastnorm::python {

namespace py = pybind11;

void register_process(py::module_& module) {
    module.def("version", &version);
    module.def(
        "set_num_threads",
        [](const py::object& n) { set_num_threads(integer_of("set_num_threads", "n", n)); },
        py::arg("n"));
    module.def("get_num_threads", &get_num_threads);
    module.def("openmp_runtime", &openmp_runtime);
    module.def(
        "set_buffer_cache",
        [](const py::object& limit) {
            const std::int64_t bytes = integer64_of("set_buffer_cache", "limit", limit);
            if (bytes < 0) {
                throw py::value_error("set_buffer_cache: limit is " + std::to_string(bytes) +
                                      ", expected a number of bytes >= 0");
            }
            Buffers::instance().set_limit(static_cast<std::size_t>(bytes));
        },
        py::arg("limit"));
    module.def("clear_buffer_cache", [] { Buffers::instance().clear(); });
    // (bytes kept at most, bytes kept)
    module.def("buffer_cache", [] {
        return py::make_tuple(Buffers::instance().limit(), Buffers::instance().kept());
    });
    module.def("isa", &isa);
    module.def("isas", &isas);
    module.def("set_isa", &set_isa, py::arg("name"));
    // {name: ((parameter, its default), ...)}
    module.def("activations", [] {
        py::dict result;
        for (const ActivationInfo& info : kActivations) {
            if (info.kind == ActivationKind::identity) continue;
            const ActivationParameter both[] = {info.alpha, info.beta};
            py::tuple parameters(info.parameters);
            for (int i = 0; i < info.parameters; ++i) {
                parameters[static_cast<std::size_t>(i)] =
                    py::make_tuple(both[i].name, both[i].fallback);
            }
            result[info.name] = parameters;
        }
        return result;
    });
    module.def(
        "check_activation",
        [](const std::string& name, double alpha, double beta) {
            const std::string objection = objection_to({Activation::named(name).kind, alpha, beta});
            if (!objection.empty()) throw py::value_error("Activation: " + objection);
        },
        py::arg("name"), py::arg("alpha"), py::arg("beta"));
}

}  // namespace fastnorm::python
