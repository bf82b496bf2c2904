#include "cuda/driver.h"

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "core/activations.h"
#include "core/dtypes.h"
#include "cuda/addends.h"
#include "cuda/features.h"
#include "cuda/layout.h"
#include "cuda/means.h"
#include "cuda/plan.h"
#include "cuda/table.h"

namespace fastnorm::cuda {

namespace {

const KernelTable& table_of(DType dtype) {
    switch (dtype) {
        case DType::float64: return table_float64;
        case DType::float16: return table_float16;
        case DType::bfloat16: return table_bfloat16;
        default: return table_float32;
    }
}

// One call under way.
class Call {
  public:
    Call(const Execution& execution, const Problem& problem, Direction direction)
        : execution_(execution),
          on_device_(execution.op, execution.device),
          table_(table_of(problem.dtype)),
          direction_(static_cast<int>(direction)),
          dtype_(problem.dtype),
          features_(problem.tensors.view.traversal == Traversal::features),
          scratch_(problem.scratch),
          explanation_(problem.explanation) {
        const Tensors& t = problem.tensors;
        args.rows = rows_of(t.view, problem.dtype);
        if (features_) args.row_parts = row_parts_of(args.rows);
        args.x = t.x;
        args.residual = t.residual;
        args.y = t.y;
        args.dy = t.dy;
        args.dx = t.dx;
        args.dresidual = t.dresidual;
        args.mask = reinterpret_cast<std::uint32_t*>(t.mask);
        args.signature = t.mask_signature;
        args.kind = problem.activation;
        args.alpha = t.alpha;
        args.beta = t.beta;
        args.dsum = t.dsum;
        args.centred = t.centred;
        args.cast_before_weight = t.cast_before_weight;
        const auto operands = {&t.x,  &t.residual,  &t.y,   &t.dy,
                               &t.dx, &t.dresidual, &t.sum, &t.dsum};
        columns_ = args.rows.width > 1;
        whole_ = packs_are_whole(t.view, problem.dtype, args.rows.width, operands);
        granule_ = features_ ? 0 : granule_of(t.view, problem.dtype, operands);
        bytes_of_run_ = t.view.inner * size_of(problem.dtype);
        smooth_ = is_smooth(problem.activation);
        if (explanation_ != nullptr) explain(problem);
        if (features_) {
            parameters_ = FeatureParameters(problem, direction, args);
        } else {
            args.weight = problem.weight;
            args.bias = problem.bias;
        }
    }

    Arguments args;

    void map() {
        const Plan plan = plan_pass(args.rows, args.rows.chunks, table_, on_device_.limits());
        launch("map", kernels().map[whole_][smooth_], plan);
    }

    // What is normalized is the sum of x and the residual, of which there is nothing else.
    void normalize_sum(const Operand& sum) {
        args.addends_of_x[0] = std::exchange(args.x, sum);
        args.addends_of_x[1] = std::exchange(args.residual, Operand());
    }

    // adds_up: statistics, or rows, leave what after() adds up.
    template <class After>
    void reduce_and_map(Arrays arrays, bool adds_up, After&& after) {
        const Work work{arrays, whole_, granule_, bytes_of_run_};
        if (explanation_ != nullptr) explanation_->reduces = true;
        // dweight and dbias of features: beside the map, or in a kernel that reads all once more.
        const bool sums_rows = features_ && adds_up;
        Plan plan;
        plan.tier = Tier::two_passes;
        if (sums_rows && may_add_beside_map()) {
            plan =
                plan_with_parameters(args.rows, args.row_parts, table_, work, on_device_.limits());
        }
        const bool beside_map = plan.tier != Tier::two_passes;
        if (!beside_map) plan = plan_reduction(args.rows, table_, work, on_device_.limits());
        Addends addends = addends_of_call();
        const auto memory = meeting_place(plan, adds_up ? addends.count() : 0);
        addends.values = args.addends;
        if (plan.tier == Tier::two_passes && args.addends_of_x[0]) {
            const Operand a = std::exchange(args.addends_of_x[0], Operand());
            const Operand b = std::exchange(args.addends_of_x[1], Operand());
            step("add: a thread for each pack",
                 [&] { add_rows(execution_, dtype_, args.rows, whole_, a, b, args.x); });
            arrays = arrays_of_forward(args);
        }
        if (features_) {
            parameters_.convert(
                execution_, place_of_parameters_, args,
                [this](const char* what, const auto& launch) { step(what, launch); });
        }
        if (sums_rows && !beside_map) {  // before the map, which may write dx over dy
            const Plan of_sums = plan_parameter_sums(
                args.rows, args.row_parts, table_,
                arrays.of_reduction * args.rows.stats * bytes_of_run_, on_device_.limits());
            launch("parameter_sums", table_.parameter_sums[whole_][smooth_], of_sums);
        }
        if (beside_map) {
            launch("on_chip_with_parameters", table_.on_chip_with_parameters, plan);
        } else if (plan.tier == Tier::two_passes) {
            reduce(arrays, plan);
            map();
        } else if (whole_) {
            launch("on_chip", kernels().on_chip[smooth_], plan);
        } else {
            launch("staged", table_.staged[direction_][smooth_], plan);
        }
        if (explanation_ != nullptr) {
            explanation_->reads =
                (plan.tier == Tier::two_passes ? 2 : 1) + (sums_rows && !beside_map);
        }
        if (!adds_up) return;
        step(features_ ? "parts: a thread for each feature" : "samples: a thread for each channel",
             [&] { after(addends); });
    }

  private:
    // Whether there is a kernel, and dx leaves alone what may have to be read again.
    bool may_add_beside_map() const {
        return table_.on_chip_with_parameters != nullptr && whole_ &&
               args.kind == ActivationKind::identity && args.dx.data != args.x.data &&
               args.dx.data != args.dy.data;
    }

    // The map goes backwards and finds what was read last in the cache, if that was to stay.
    void reduce(const Arrays& arrays, Plan& plan) {
        const std::int64_t bytes_of_task =
            arrays.of_reduction * args.rows.slot_bytes() * args.rows.chunks_of_part;
        plan.share.soon_from = plan.share.tasks - on_device_.limits().cache / 2 / bytes_of_task;
        launch("reduce", kernels().reduce[whole_][smooth_], plan);
        if (args.rows.stats_of_mean == 1) return;
        step("means: a warp for each mean",
             [&] { merge_totals(execution_, args, static_cast<Direction>(direction_)); });
    }

    // A place for what blocks leave for others: partial results of parts, in two passes those of
    // statistics, too, and the groups' counters, which have to be 0; and what is added up over
    // samples. In the caller's scratch, or in memory that lives as long as what is returned.
    std::unique_ptr<Memory> meeting_place(const Plan& plan, std::int64_t addends) {
        const bool two_passes = plan.tier == Tier::two_passes;
        const bool in_global = two_passes || plan.tier == Tier::grid;
        const std::int64_t counter_bytes = two_passes ? divide_up(args.rows.groups, 4) * 16 : 0;
        const auto partial = static_cast<std::int64_t>(sizeof(Partial));
        const std::int64_t partials = in_global ? args.rows.stats * args.rows.parts : 0;
        const std::int64_t totals = two_passes ? args.rows.stats : 0;
        const Rows& rows = args.rows;
        const bool apart = two_passes && rows.stats_of_mean > 1;
        const std::int64_t means = apart ? rows.stats / rows.stats_of_mean : 0;
        const std::int64_t bytes = counter_bytes + partial * (partials + totals + addends) +
                                   means * static_cast<std::int64_t>(sizeof(OfMean)) +
                                   parameters_.bytes();
        if (bytes == 0) return nullptr;
        if (explanation_ != nullptr) {
            explanation_->scratch_bytes = bytes;
            return nullptr;
        }
        std::unique_ptr<Memory> own;
        if (!scratch_) {
            own = std::make_unique<Memory>(static_cast<std::size_t>(bytes), execution_.stream);
        }
        char* const place = scratch_ ? scratch_(bytes) : own->data();
        args.partials = reinterpret_cast<Partial*>(place + counter_bytes);
        if (addends > 0) args.addends = args.partials + partials + totals;
        // Of features, and of statistics that share means: none has both.
        place_of_parameters_ = reinterpret_cast<char*>(args.partials + partials + totals + addends);
        if (means > 0) args.of_means = reinterpret_cast<OfMean*>(place_of_parameters_);
        if (!two_passes) return own;
        clear(place, static_cast<std::size_t>(counter_bytes), execution_.stream);
        args.counters = reinterpret_cast<std::uint32_t*>(place);
        args.totals = args.partials + partials;
        return own;
    }

    // Of samples, or of the parts of rows: not their place yet.
    Addends addends_of_call() const {
        const Rows& rows = args.rows;
        if (features_) return {nullptr, args.row_parts.count, rows.inner};
        return {nullptr, rows.stats / rows.stat, rows.stat};
    }

    const KernelTable::OfTraversal& kernels() const {
        return table_.of[direction_][features_ ? 2 : columns_];
    }

    // Does something, or only says that it would.
    template <class Do>
    void step(const char* text, Do&& what) {
        if (explanation_ == nullptr) return what();
        explanation_->launches.emplace_back(text);
    }

    // The kernel, or only what would be launched.
    void launch(const char* kernel, KernelTable::Launcher launcher, const Plan& plan) {
        if (explanation_ == nullptr) {
            launcher(execution_.op, args, plan.share, plan.shape, execution_.stream);
            return;
        }
        const Shape& shape = plan.shape;
        std::string text = std::string(kernel) + ": " + std::to_string(shape.blocks) +
                           " blocks of " + std::to_string(shape.threads) + " threads";
        if (shape.cluster > 1) text += ", clusters of " + std::to_string(shape.cluster);
        if (plan.tier == Tier::grid) text += ", teams of " + std::to_string(plan.share.team);
        text += ", " + std::to_string(shape.shared_bytes) + " bytes of shared memory";
        explanation_->launches.push_back(text);
    }

    void explain(const Problem& problem) const {
        const View& view = problem.tensors.view;
        const Tensors& t = problem.tensors;
        Explanation& e = *explanation_;
        e.isa = "cuda";
        e.traversal = features_ ? "features" : columns_ ? "columns" : "rows";
        e.batch = view.batch;
        e.outer = view.outer;
        e.stat = view.stat;
        e.inner = view.inner;
        e.group = view.group;
        e.units = args.rows.groups;
        e.chunks = args.rows.chunks;
        e.reads = 1;
        for (const Operand* operand :
             {&t.x, &t.residual, &t.y, &t.dy, &t.dx, &t.dresidual, &t.sum, &t.dsum}) {
            if (*operand) e.least_bytes += view.elements() * size_of(problem.dtype);
        }
        if (t.mask != nullptr) e.least_bytes += mask_bytes(view, problem.dtype);
    }

    const Execution& execution_;
    OnDevice on_device_;
    const KernelTable& table_;
    int direction_;
    DType dtype_;
    bool features_;
    const std::function<char*(std::int64_t)>& scratch_;
    Explanation* explanation_;  // or null: then something is to be done
    bool columns_ = false, whole_ = false, smooth_ = false;
    std::int64_t granule_ = 0, bytes_of_run_ = 0;
    FeatureParameters parameters_;
    char* place_of_parameters_ = nullptr;
};

}  // namespace

void normalize(const Execution& execution, const Problem& problem, const PerStatistic& mean,
               const PerStatistic& var, double eps) {
    Call call(execution, problem, Direction::forward);
    call.args.mean = mean;
    call.args.rstd_or_var = var;
    call.args.eps = eps;
    call.map();
}

void normalize_by_own_statistics(const Execution& execution, const Problem& problem, double eps,
                                 const PerStatistic& mean, const PerStatistic& rstd,
                                 const RunningStatistics& running) {
    Call call(execution, problem, Direction::forward);
    Arguments& args = call.args;
    args.mean = mean;
    args.rstd_or_var = rstd;
    args.eps = eps;
    args.running_mean = running.mean;
    args.running_var = running.var;
    args.momentum = running.momentum;
    args.unbiased = running.unbiased;
    if (problem.tensors.sum) call.normalize_sum(problem.tensors.sum);
    const bool adds_up = args.rows.stats > args.rows.stat && (running.mean || running.var);
    call.reduce_and_map(arrays_of_forward(args), adds_up, [&](const Addends& of) {
        update_running(execution, of, args.rows.elements, running);
    });
}

void normalize_backward(const Execution& execution, const Problem& problem,
                        const PerStatistic& mean, const PerStatistic& rstd, bool frozen,
                        const PerStatistic& dweight, const PerStatistic& dbias) {
    Call call(execution, problem, Direction::backward);
    Arguments& args = call.args;
    args.mean = mean;
    args.rstd_or_var = rstd;
    args.frozen = frozen;
    if (frozen && !dweight && !dbias) {
        call.map();
        return;
    }
    const bool features = problem.tensors.view.traversal == Traversal::features;
    const bool adds_up = (features || args.rows.stats > args.rows.stat) && (dweight || dbias);
    if (!adds_up) {
        args.dweight = dweight;
        args.dbias = dbias;
    }
    call.reduce_and_map(arrays_of_backward(args), adds_up, [&](const Addends& of) {
        add_up_gradients(execution, of, dweight, dbias);
    });
}

std::int64_t mask_bytes(const View& view, DType dtype) {
    if (view.elements() == 0) return 0;
    const Rows rows = rows_of(view, dtype);
    return rows.groups * rows.chunks * rows.width * warp_size * 4;
}

std::shared_ptr<char> allocate(const Execution& execution, std::size_t bytes) {
    const OnDevice on_device(execution.op, execution.device);
    const auto memory = std::make_shared<Memory>(bytes, execution.stream);
    return {memory, memory->data()};
}

}  // namespace fastnorm::cuda
