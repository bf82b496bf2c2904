#include "cuda/driver.h"

#include <algorithm>
#include <functional>
#include <initializer_list>
#include <memory>
#include <numeric>
#include <string>
#include <utility>

#include "core/activations.h"
#include "core/dtypes.h"
#include "cuda/features.h"
#include "cuda/means.h"
#include "cuda/plan.h"
#include "cuda/samples.h"
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

// How many packs of a run, of all that it has, a warp takes side by side: 64 bytes make good use of
// the memory, unless too many lanes were left without one.
int packs_across(std::int64_t packs) {
    for (int across = 4; across > 1; across /= 2) {
        const std::int64_t idle = divide_up(packs, across) * across - packs;
        if (4 * idle <= packs) return across;
    }
    return 1;
}

// Few, as each statistic waits for their merge at the end; of few statistics more, since a warp
// that reads them for a part is what work there is.
std::int64_t most_parts(std::int64_t groups) {
    return std::max<std::int64_t>(256, 2048 / std::max<std::int64_t>(groups, 1));
}

// From the view and the dtype alone: by them the chunks, and so the bits of a result, are known.
Rows rows_of(const View& view, DType dtype) {
    const std::int64_t pack = 16 / size_of(dtype);
    const bool columns = view.inner == 1 && view.traversal != Traversal::features;
    Rows rows;
    rows.inner = view.inner;
    rows.runs = view.outer;
    rows.elements = view.outer * view.inner;
    rows.packs = divide_up(view.inner, pack);
    rows.stat = view.stat;
    rows.stats = view.stats();
    rows.stats_of_mean = view.group;
    if (columns) {
        rows.width = static_cast<int>(pack);
        rows.across = packs_across(divide_up(rows.stat, pack));
        rows.lanes = warp_size / rows.across;
    }
    rows.groups_of_batch = divide_up(rows.stat, rows.across * rows.width);
    rows.groups = view.batch * rows.groups_of_batch;
    const std::int64_t packs_of_chunk =
        rows.lanes * (columns ? lane_elements : lane_elements / pack);
    if (columns || view.inner % pack == 0) {
        rows.chunks = divide_up(rows.runs * rows.packs, packs_of_chunk);
    } else {
        rows.runs_of_chunk = std::max<std::int64_t>(packs_of_chunk / rows.packs, 1);
        rows.chunks_of_run = divide_up(rows.packs, packs_of_chunk);
        rows.packs_of_piece = divide_up(rows.packs, rows.chunks_of_run);
        rows.chunks = divide_up(rows.runs * rows.chunks_of_run, rows.runs_of_chunk);
    }
    // Parts are of whole runs, too.
    rows.chunks_of_part = divide_up(rows.chunks, most_parts(rows.groups));
    if (rows.chunks_of_part > 1 && rows.chunks_of_run > 1) {
        rows.chunks_of_part =
            divide_up(rows.chunks_of_part, rows.chunks_of_run) * rows.chunks_of_run;
    }
    rows.parts = divide_up(rows.chunks, rows.chunks_of_part);
    rows.run_step = rows.lanes / rows.packs;
    rows.pack_step = rows.lanes % rows.packs;
    rows.outer_dims = view.outer_dims;
    for (int d = 0; d < view.outer_dims; ++d) rows.outer_extent[d] = view.outer_extent[d];
    return rows;
}

// Whether every pack of every run is 16 aligned bytes.
bool packs_are_whole(const View& view, DType dtype, int width,
                     std::initializer_list<const Operand*> operands) {
    constexpr std::int64_t bytes = 16;
    const std::int64_t element = size_of(dtype);
    const std::int64_t run = (width > 1 ? view.stat : view.inner) * element;
    if (view.outer_dims != 1 || run % bytes != 0) return false;
    for (const Operand* operand : operands) {
        if (!*operand) continue;
        if (reinterpret_cast<std::uintptr_t>(operand->data) % bytes != 0) return false;
        if (width > 1 && operand->stat_stride != element) return false;
        if (width == 1 && operand->stat_stride % bytes != 0 && view.stat > 1) return false;
        if (operand->batch_stride % bytes != 0 && view.batch > 1) return false;
        if (operand->outer_stride[0] % bytes != 0 && view.outer > 1) return false;
    }
    return true;
}

// How many neighbouring statistics make a row of whole packs; 0 where they do not lie so.
std::int64_t granule_of(const View& view, DType dtype,
                        std::initializer_list<const Operand*> operands) {
    constexpr std::int64_t bytes = 16;
    const std::int64_t run = view.inner * size_of(dtype);
    const std::int64_t granule = bytes / std::gcd(run, bytes);
    if (view.outer_dims != 1 || view.batch != 1 || view.stat % granule != 0) return 0;
    for (const Operand* operand : operands) {
        if (!*operand) continue;
        if (reinterpret_cast<std::uintptr_t>(operand->data) % bytes != 0) return 0;
        if (operand->stat_stride != run) return 0;
        if (operand->outer_stride[0] % bytes != 0 && view.outer > 1) return 0;
    }
    return granule;
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
            set_parameters(problem);
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
    void add_residual(const Operand& sum) {
        step("add: a thread for each pack",
             [&] { add_rows(execution_, dtype_, args.rows, whole_, args.x, args.residual, sum); });
        args.x = sum;
        args.residual = {};
    }

    // over_samples: statistics, or rows, leave what channels, or features, add up, for after().
    template <class After>
    void reduce_and_map(const Arrays& arrays, bool over_samples, After&& after) {
        const Work work{arrays, whole_, granule_, bytes_of_run_};
        if (explanation_ != nullptr) explanation_->reduces = true;
        Plan plan = plan_reduction(args.rows, table_, work, on_device_.limits());
        const auto on_chip = [&] {
            if (whole_) return launch("on_chip", kernels().on_chip[smooth_], plan);
            launch("staged", table_.staged[direction_][smooth_], plan);
        };
        const Plan of_parameters = plan_parameter_sums(args.rows, table_);
        OfStats of{nullptr, args.rows.stats / args.rows.stat, args.rows.stat};
        if (features_) {
            const Share& share = of_parameters.share;
            of = {nullptr, divide_up(share.tasks, share.tasks_of_block), args.rows.inner};
        }
        const auto memory = meeting_place(plan, over_samples ? of.samples * of.channels : 0);
        if (features_) {
            widen_parameters();
            // Before the map, which may write dx over dy.
            if (over_samples) {
                launch("parameter_sums", table_.parameter_sums[whole_][smooth_], of_parameters);
            }
        }
        if (plan.tier == Tier::two_passes) {
            reduce(arrays, plan);
            map();
        } else {
            on_chip();
        }
        if (!over_samples) return;
        of.values = args.of_stats;
        step(features_ ? "parts: a thread for each feature" : "samples: a thread for each channel",
             [&] { after(of); });
    }

  private:
    // The map goes backwards and finds what was read last in the cache, if that was to stay.
    void reduce(const Arrays& arrays, Plan& plan) {
        const std::int64_t bytes_of_task =
            arrays.of_reduction * table_.slot_bytes[columns_] * args.rows.chunks_of_part;
        plan.share.soon_from = plan.share.tasks - on_device_.limits().cache / 2 / bytes_of_task;
        launch("reduce", kernels().reduce[whole_][smooth_], plan);
        if (explanation_ != nullptr) explanation_->reads = 2;
        if (args.rows.stats_of_mean == 1) return;
        step("means: a warp for each mean",
             [&] { merge_totals(execution_, args, static_cast<Direction>(direction_)); });
    }

    // Weights and biases of features as the kernels take them: as they are, if they can be.
    void set_parameters(const Problem& problem) {
        const bool forward = direction_ == static_cast<int>(Direction::forward);
        const DType wide = dtype_ == DType::float64 ? DType::float64 : DType::float32;
        const auto are = [](const PerStatistic& values, DType dtype) {
            return !values || (values.dtype == dtype && values.stride == size_of(dtype) &&
                               reinterpret_cast<std::uintptr_t>(values.data) % 16 == 0);
        };
        weights_ = problem.weight;
        if (forward || recomputes_z(args)) biases_ = problem.bias;
        args.weights = weights_.data;
        args.biases = biases_.data;
        args.weight_offset = problem.weight_offset;
        args.wide_parameters = !forward || !are(weights_, dtype_) || !are(biases_, dtype_);
        // Backward's are scaled.
        widens_weights_ = weights_ && (!forward || (args.wide_parameters && !are(weights_, wide)));
        widens_biases_ = biases_ && args.wide_parameters && !are(biases_, wide);
    }
    std::int64_t bytes_of_parameters() const {
        const std::int64_t element = dtype_ == DType::float64 ? 8 : 4;
        return divide_up(args.rows.inner * element, 16) * 16;
    }
    void widen_parameters() {
        const std::int64_t count = args.rows.inner;
        if (widens_weights_) {
            char* const to = std::exchange(parameters_, parameters_ + bytes_of_parameters());
            const double offset = std::exchange(args.weight_offset, 0.0);
            args.weights = to;
            if (direction_ == static_cast<int>(Direction::backward)) {
                auto* const scale = reinterpret_cast<double*>(parameters_);
                parameters_ += 16;
                args.weights_scale = scale;
                step("widen_and_scale: a block", [&] {
                    widen_and_scale(execution_, dtype_, weights_, count, offset, to, scale);
                });
            } else {
                step("widen: a thread for each weight",
                     [&] { widen(execution_, dtype_, weights_, count, offset, to); });
            }
        }
        if (widens_biases_) {
            args.biases = parameters_;
            step("widen: a thread for each bias",
                 [&] { widen(execution_, dtype_, biases_, count, 0.0, parameters_); });
        }
    }

    // A place for what blocks leave for others: partial results of parts, in two passes those of
    // statistics, too, and the groups' counters, which have to be 0; and what is added up over
    // samples. In the caller's scratch, or in memory that lives as long as what is returned.
    std::unique_ptr<Memory> meeting_place(const Plan& plan, std::int64_t of_stats) {
        const bool two_passes = plan.tier == Tier::two_passes;
        const bool in_global = two_passes || plan.tier == Tier::grid;
        const std::int64_t counter_bytes = two_passes ? divide_up(args.rows.groups, 4) * 16 : 0;
        const auto partial = static_cast<std::int64_t>(sizeof(Partial));
        const std::int64_t partials = in_global ? args.rows.stats * args.rows.parts : 0;
        const std::int64_t totals = two_passes ? args.rows.stats : 0;
        const Rows& rows = args.rows;
        const std::int64_t means = rows.stats_of_mean > 1 ? rows.stats / rows.stats_of_mean : 0;
        const std::int64_t bytes = counter_bytes + partial * (partials + totals + of_stats) +
                                   means * static_cast<std::int64_t>(sizeof(OfMean)) +
                                   (widens_weights_ + widens_biases_) * bytes_of_parameters() +
                                   16 * widens_weights_;
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
        if (of_stats > 0) args.of_stats = args.partials + partials + totals;
        parameters_ = reinterpret_cast<char*>(args.partials + partials + totals + of_stats);
        if (means > 0) args.of_means = reinterpret_cast<OfMean*>(parameters_);  // not of features
        if (!two_passes) return own;
        clear(place, static_cast<std::size_t>(counter_bytes), execution_.stream);
        args.counters = reinterpret_cast<std::uint32_t*>(place);
        args.totals = args.partials + partials;
        return own;
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
    // Of features: those given, which of them are to be converted, and a place for that.
    PerStatistic weights_, biases_;
    bool widens_weights_ = false, widens_biases_ = false;
    char* parameters_ = nullptr;
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
    if (problem.tensors.sum) call.add_residual(problem.tensors.sum);
    const bool over_samples = args.rows.stats > args.rows.stat && (running.mean || running.var);
    call.reduce_and_map(arrays_of_forward(args), over_samples, [&](const OfStats& of) {
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
    const bool over_samples = (features || args.rows.stats > args.rows.stat) && (dweight || dbias);
    if (!over_samples) {
        args.dweight = dweight;
        args.dbias = dbias;
    }
    call.reduce_and_map(arrays_of_backward(args), over_samples, [&](const OfStats& of) {
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
