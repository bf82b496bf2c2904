// What a call would do, as a dict.
#include <pybind11/stl.h>

#include "module.h"
#include "norm_results.h"

namespace fastnorm::python {

namespace {

thread_local Explanation* explanation = nullptr;

// (what call() would do as a dict; call is of ops)
py::dict explain(const py::object& call) {
    Explanation e;
    struct Scope {
        explicit Scope(Explanation* given) { explanation = given; }
        ~Scope() { explanation = nullptr; }
    };
    {
        const Scope scope(&e);
        call();
    }
    py::dict result;
    result["isa"] = e.isa;
    result["traversal"] = e.traversal;
    result["view"] = py::make_tuple(e.batch, e.outer, e.stat, e.inner);
    result["group"] = e.group;
    result["tile"] = py::make_tuple(e.tile_stat, e.tile_outer, e.tile_inner);
    result["units"] = e.units;
    result["chunks"] = e.chunks;
    result["reduces"] = e.reduces;
    result["threads"] = e.threads;
    result["shared"] = e.shared;
    result["interleaved"] = e.interleaved;
    result["stream"] = e.stream;
    result["reads"] = e.reads;
    result["least_bytes"] = e.least_bytes;
    result["scratch_bytes"] = e.scratch_bytes;
    result["launches"] = py::tuple(py::cast(e.launches));
    result["copied"] = py::tuple(py::cast(e.copied));
    return result;
}

}  // namespace

Explanation* explanation_of_thread() { return explanation; }

void register_explain(py::module_& module) { module.def("explain", &explain, py::arg("call")); }

}  // namespace fastnorm::python
