#include "cuda/layout.h"

#include <algorithm>
#include <numeric>

#include "core/dtypes.h"
#include "cuda/pack.h"

namespace fastnorm::cuda {

namespace {

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
// that reads them for a part is what work there is. (Of a norm of each sample, or row, by itself:
// whatever the number of those.)
std::int64_t most_parts(std::int64_t groups) {
    return std::max<std::int64_t>(256, 2048 / std::max<std::int64_t>(groups, 1));
}

// As many as a lane adds up in the time in which lanes' sums meet: fewer lanes for a statistic, and
// more statistics at a time.
constexpr std::int64_t parts_of_lane = 8;

}  // namespace

Rows rows_of(const View& view, DType dtype) {
    const std::int64_t pack = 16 / size_of(dtype);
    const bool features = view.traversal == Traversal::features;
    const bool columns = view.inner == 1 && !features;
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
    const std::int64_t most_packs = columns ? lane_elements : lane_elements / pack;  // of a lane
    const std::int64_t packs_of_chunk = rows.lanes * most_packs;
    rows.packs_of_lane =
        static_cast<int>(std::min(most_packs, divide_up(rows.runs * rows.packs, rows.lanes)));
    if (columns || view.inner % pack == 0) {
        rows.chunks = divide_up(rows.runs * rows.packs, packs_of_chunk);
    } else {
        rows.runs_of_chunk = std::max<std::int64_t>(packs_of_chunk / rows.packs, 1);
        rows.chunks_of_run = divide_up(rows.packs, packs_of_chunk);
        rows.packs_of_piece = divide_up(rows.packs, rows.chunks_of_run);
        rows.chunks = divide_up(rows.runs * rows.chunks_of_run, rows.runs_of_chunk);
    }
    // Parts are of whole runs, too.
    rows.chunks_of_part = divide_up(rows.chunks, most_parts(features ? 1 : rows.groups_of_batch));
    if (rows.chunks_of_part > 1 && rows.chunks_of_run > 1) {
        rows.chunks_of_part =
            divide_up(rows.chunks_of_part, rows.chunks_of_run) * rows.chunks_of_run;
    }
    rows.parts = divide_up(rows.chunks, rows.chunks_of_part);
    while (rows.lanes_of_merge < warp_size && rows.lanes_of_merge * parts_of_lane < rows.parts) {
        rows.lanes_of_merge *= 2;
    }
    rows.run_step = rows.lanes / rows.packs;
    rows.pack_step = rows.lanes % rows.packs;
    rows.outer_dims = view.outer_dims;
    for (int d = 0; d < view.outer_dims; ++d) rows.outer_extent[d] = view.outer_extent[d];
    return rows;
}

RowParts row_parts_of(const Rows& rows) {
    constexpr std::int64_t most_parts = 256, least_rows = 16;
    RowParts parts;
    parts.sets = static_cast<int>(std::max<std::int64_t>(warps_of_features / rows.chunks, 1));
    const std::int64_t blocks = divide_up(rows.chunks, warps_of_features);
    const std::int64_t wanted = std::max<std::int64_t>(most_parts / blocks, 1);
    parts.rows = std::max(divide_up(rows.stats, wanted), least_rows);
    parts.count = divide_up(rows.stats, parts.rows);
    return parts;
}

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

std::int64_t granule_of(const View& view, DType dtype,
                        std::initializer_list<const Operand*> operands) {
    constexpr std::int64_t bytes = 16;
    const std::int64_t run = view.inner * size_of(dtype);
    const std::int64_t granule = bytes / std::gcd(run, bytes);
    if (view.outer_dims != 1 || view.stats() % granule != 0) return 0;
    for (const Operand* operand : operands) {
        if (!*operand) continue;
        if (reinterpret_cast<std::uintptr_t>(operand->data) % bytes != 0) return 0;
        if (operand->stat_stride != run) return 0;
        if (view.batch > 1 && operand->batch_stride != view.stat * run) return 0;
        if (operand->outer_stride[0] % bytes != 0 && view.outer > 1) return 0;
    }
    return granule;
}

}  // namespace fastnorm::cuda
