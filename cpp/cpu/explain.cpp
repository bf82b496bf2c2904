#include "cpu/explain.h"

#include "cpu/scratch.h"

namespace fastnorm {

int count_given(std::initializer_list<const Operand*> operands) {
    int count = 0;
    for (const Operand* operand : operands) count += *operand ? 1 : 0;
    return count;
}

int tensors_of(const Tensors& t) {
    return count_given({&t.x, &t.residual, &t.y, &t.dy, &t.dx, &t.dresidual, &t.sum, &t.dsum});
}

bool explains(const Execution& execution, const Problem& problem, const Schedule& schedule,
              int coefficients_count) {
    if (problem.explanation == nullptr) return false;
    Explanation& e = *problem.explanation;
    const Tensors& tensors = problem.tensors;
    const View& view = tensors.view;
    const Plan& plan = schedule.reduces ? schedule.map : schedule.plan;
    e.isa = execution.kernels.name;
    e.traversal = name_of(view.traversal);
    e.batch = view.batch;
    e.outer = view.outer;
    e.stat = view.stat;
    e.inner = view.inner;
    e.group = view.group;
    e.units = plan.units();
    e.chunks = plan.chunks();
    e.tile_stat = plan.tile_stats;
    e.tile_outer = plan.chunk_outer;
    e.tile_inner = plan.chunk_inner;
    e.reduces = schedule.reduces;
    e.threads = schedule.threads;
    e.shared = schedule.shared;
    e.interleaved = schedule.interleaved;
    e.stream = schedule.stream;
    e.reads = schedule.reads;
    const std::int64_t mask = tensors.mask == nullptr ? 0 : view.runs() * view.mask_row_bytes();
    e.least_bytes = tensors_of(tensors) * view.elements() * size_of(problem.dtype) + mask;
    e.scratch_bytes = Scratch::bytes(problem, schedule, coefficients_count);
    return true;
}

}  // namespace fastnorm
