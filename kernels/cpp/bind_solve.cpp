#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "arrays.hpp"
#include "packed.hpp"
#include "pool.hpp"
#include "solvers.hpp"

namespace halfbyte {
namespace {

constexpr int64_t kGramRows = 8 * kGramDepth;  // packed at a time

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Memory for doubles.
class Doubles {
  public:
    explicit Doubles(int64_t count) : floats_(2 * count) {}
    double* get() const { return reinterpret_cast<double*>(floats_.get()); }

  private:
    Floats floats_;
};

void require_shape(const char* where, const char* name, const Array& array, int64_t rows,
                   int64_t columns) {
    if (array.dimensions() == 2 && array.shape(0) == rows && array.shape(1) == columns) return;
    reject(where, std::string(name) + " has shape " + array.describe() + ", required [" +
                      std::to_string(rows) + ", " + std::to_string(columns) + "]");
}

// x[depth, columns] in chunks of kGramDepth rows.
void pack_chunks(const float* x, int64_t depth, int64_t columns, int64_t width, float* out) {
    const int64_t blocks = ceil_div(columns, kSolveBlock), chunks = ceil_div(depth, kGramDepth);
    parallel(blocks * chunks, [&](int64_t task) {
        const int64_t k = task / blocks * kGramDepth, j = task % blocks * kSolveBlock;
        const int64_t held = std::min(kGramDepth, depth - k);
        solvers().pack(x + k * columns + j, columns, held, std::min(kSolveBlock, columns - j),
                       out + k * width + j * held);
    });
}

// total[K, L] += a^T b, or a^T a without b.
void add_products(nb::object total, nb::object a, nb::object b) {
    const char* where = "add_products";
    const Array sums(where, "total", total, "d", true), left(where, "a", a, "f");
    const Array right = optional_array(where, "b", b, "f");
    if (left.dimensions() != 2) reject(where, "a needs two dimensions");
    const int64_t depth = left.shape(0), rows = left.shape(1);
    GramJob job;
    job.symmetric = !right.present();
    job.rows = rows, job.columns = job.symmetric ? rows : right.shape(-1);
    if (right.present()) require_shape(where, "b", right, depth, job.columns);
    require_shape(where, "total", sums, rows, job.columns);
    if (rows == 0 || job.columns == 0) return;
    const nb::gil_scoped_release release;
    const int64_t panel = solvers().panel, held = std::min(depth, kGramRows);
    job.total = sums.data<double>();
    job.a_width = round_up(rows, panel), job.b_width = round_up(job.columns, panel);
    job.block_columns = job.columns > 16 * kSolveBlock ? 2 * kSolveBlock : kSolveBlock;
    const Floats packed_a(job.a_width * held);
    const Floats packed_b(job.symmetric ? 0 : job.b_width * held);
    job.a = packed_a.get(), job.b = job.symmetric ? job.a : packed_b.get();
    for (int64_t k = 0; k < depth; k += kGramRows) {
        job.depth = std::min(kGramRows, depth - k);
        job.mirror = job.symmetric && k + job.depth == depth;
        pack_chunks(left.data<const float>() + k * rows, job.depth, rows, job.a_width,
                    packed_a.get());
        if (!job.symmetric) {
            pack_chunks(right.data<const float>() + k * job.columns, job.depth, job.columns,
                        job.b_width, packed_b.get());
        }
        parallel(ceil_div(rows, kSolveBlock) * ceil_div(job.columns, job.block_columns),
                 [&](int64_t task) { solvers().gram_task(job, task); });
    }
}

// The elimination of a matrix whose size is a multiple of kSolveBlock.
bool eliminate(FactorJob& job) {
    const int64_t blocks = job.size / kSolveBlock, wide = ceil_div(blocks, 4);
    for (job.step = 0; job.step < job.size; job.step += kSolveBlock) {
        if (!solvers().factor_block(job)) return false;
        parallel(blocks, [&](int64_t task) { solvers().factor_panel_task(job, task); });
        const int64_t below = blocks - job.step / kSolveBlock - 1;
        parallel(below * wide, [&](int64_t task) { solvers().factor_update_task(job, task); });
    }
    return true;
}

// out: U with U^T U = H^-1. With the order of the columns reversed H = L L^T, and U is L^-1
// reversed. False where H is not positive definite.
bool factor(nb::object hessian, nb::object out) {
    const Array h("factor", "hessian", hessian, "d"), u("factor", "out", out, "d", true);
    const int64_t n = h.dimensions() == 2 ? h.shape(0) : 0;
    require_shape("factor", "hessian", h, n, n);
    require_shape("factor", "out", u, n, n);
    const nb::gil_scoped_release release;
    FactorJob job;
    job.size = round_up(n, kSolveBlock);
    const Doubles x(job.size * job.size), inverse(kSolveBlock * kSolveBlock);
    const Doubles packed(kSolveBlock * job.size);
    job.x = x.get(), job.inverse = inverse.get(), job.packed = packed.get();
    parallel(job.size, [&](int64_t i) {
        double* row = job.x + i * job.size;
        std::memset(row, 0, static_cast<size_t>(8 * job.size));
        if (i >= n) row[i] = 1.0;
        const double* from = h.data<const double>() + (n - 1 - i) * n;
        for (int64_t j = 0; i < n && j <= i; ++j) row[j] = from[n - 1 - j];
    });
    if (!eliminate(job)) return false;
    parallel(n, [&](int64_t i) {
        const double* from = job.x + (n - 1 - i) * job.size;
        double* row = u.data<double>() + i * n;
        for (int64_t j = 0; j < n; ++j) row[j] = j < i ? 0.0 : from[n - 1 - j];
    });
    return true;
}

// from[depth, n] (or its transpose) packed in parallel.
void pack_doubles(const double* from, int64_t ld, bool transposed, int64_t depth, int64_t n,
                  double* out) {
    parallel(ceil_div(n, kSolveBlock), [&](int64_t task) {
        const int64_t j = task * kSolveBlock;
        solvers().pack_double(from + (transposed ? j * ld : j), ld, transposed, depth,
                              std::min(kSolveBlock, n - j), out + j * depth);
    });
}

void multiply(const DoubleProductJob& job) {
    const int64_t rows = (job.row1 - job.row0) / kSolveBlock;
    parallel(rows * ((job.column1 - job.column0) / kSolveBlock),
             [&](int64_t task) { solvers().double_product_task(job, task); });
}

// out = (C U^T) U; strict: of the product in brackets only what lies above the diagonal.
void cross_factor(nb::object cross, nb::object upper, bool strict, nb::object out) {
    const char* where = "cross_factor";
    const Array c(where, "cross", cross, "d"), u(where, "factor", upper, "d");
    const Array target(where, "out", out, "d", true);
    const int64_t n = c.dimensions() == 2 ? c.shape(0) : 0, size = round_up(n, kSolveBlock);
    require_shape(where, "cross", c, n, n);
    require_shape(where, "factor", u, n, n);
    require_shape(where, "out", target, n, n);
    const nb::gil_scoped_release release;
    const Doubles middle(size * size), result(size * size);
    const Doubles a(kSolveBlock * size), b(kSolveBlock * size);
    for (const double* memory : {middle.get(), result.get()}) {
        std::memset(const_cast<double*>(memory), 0, static_cast<size_t>(8 * size * size));
    }
    for (double* memory : {a.get(), b.get()})
        std::memset(memory, 0, static_cast<size_t>(8 * kSolveBlock * size));
    DoubleProductJob job;
    job.a = a.get(), job.b = b.get(), job.stride = size, job.upper = strict;
    const auto* from = u.data<const double>();
    job.c = middle.get(), job.row1 = size;
    for (int64_t k = 0; k < n; k += kSolveBlock) {
        job.depth = std::min(kSolveBlock, n - k);
        job.column1 = k + kSolveBlock;
        pack_doubles(c.data<const double>() + k, n, true, job.depth, n, a.get());
        pack_doubles(from + k, n, true, job.depth, std::min(n, job.column1), b.get());
        multiply(job);
    }
    for (int64_t i = 0; strict && i < n; ++i) {
        const int64_t start = i / kSolveBlock * kSolveBlock;
        std::fill(middle.get() + i * size + start, middle.get() + i * size + i + 1, 0.0);
    }
    job.c = result.get(), job.column1 = size;
    for (int64_t k = 0; k < n; k += kSolveBlock) {
        job.depth = std::min(kSolveBlock, n - k);
        job.column0 = k, job.row1 = strict ? k + kSolveBlock : size;
        pack_doubles(middle.get() + k, size, true, job.depth, n, a.get());
        pack_doubles(from + k * n, n, false, job.depth, n, b.get());
        multiply(job);
    }
    parallel(n, [&](int64_t i) {
        std::memcpy(target.data<double>() + i * n, result.get() + i * size,
                    static_cast<size_t>(8 * n));
    });
}

// The codes of a matrix, see GridView; keeps the arrays.
class CodeGrid {
  public:
    CodeGrid(nb::object scale, nb::object group, nb::object zero, nb::object offset,
             nb::object levels, nb::object bounds, int low, int high, bool fractional)
        : scale_(where, "scale", scale, "f"),
          group_(where, "group_of_column", group, "i"),
          zero_(optional_array(where, "zero", zero, "f")),
          offset_(optional_array(where, "offset", offset, "f")),
          levels_(optional_array(where, "levels", levels, "f")),
          bounds_(optional_array(where, "bounds", bounds, "f")) {
        if (scale_.dimensions() != 2) reject(where, "scale needs two dimensions");
        const int64_t groups = scale_.shape(0);
        view.rows = scale_.shape(1);
        view.scale = scale_.data<const float>(), view.group = group_.data<const int32_t>();
        if (zero_.present()) require_shape(where, "zero", zero_, groups, view.rows);
        if (offset_.present()) require_shape(where, "offset", offset_, groups, view.rows);
        view.zero = zero_.present() ? zero_.data<const float>() : nullptr;
        view.offset = offset_.present() ? offset_.data<const float>() : nullptr;
        columns = group_.size();
        const bool known = std::all_of(view.group, view.group + columns,
                                       [&](int32_t g) { return g >= 0 && g < groups; });
        if (!known) reject(where, "group_of_column names a group that scale lacks");
        view.low = static_cast<float>(low), view.high = static_cast<float>(high);
        view.fractional = fractional;
        if (!levels_.present()) return;
        view.count = levels_.size();
        if (!bounds_.present() || view.count < 1 || bounds_.size() != view.count - 1)
            reject(where, "bounds must be one fewer than levels");
        view.levels = levels_.data<const float>(), view.bounds = bounds_.data<const float>();
    }
    GridView view;
    int64_t columns = 0;

  private:
    static constexpr const char* where = "code_grid";
    Array scale_, group_, zero_, offset_, levels_, bounds_;
};

// Rows first..last of a matrix, columns from..n, as panels of depth last - first for each source.
void pack_feedback(const SweepJob& job, int64_t from, int64_t to, float* out) {
    const int64_t panel = solvers().panel, held = job.last - job.first, n = job.columns;
    const int64_t depth = job.cross ? 2 * held : held;
    parallel(ceil_div(to - from, panel), [&](int64_t task) {
        const int64_t j = from + task * panel, width = std::min(panel, to - j);
        float* target = out + task * panel * depth;
        solvers().pack(job.factor + job.first * n + j, n, held, width, target);
        if (!job.cross) return;
        solvers().pack(job.cross + job.first * n + j, n, held, width, target + held * panel);
    });
}

// What both kinds of sweeps take.
struct SweepArrays {
    SweepArrays(const char* where, nb::handle weights, nb::handle upper, nb::handle cross,
                nb::handle errors)
        : w(where, "weights", weights, "f", true),
          u(where, "factor", upper, "f"),
          p(optional_array(where, "cross", cross, "f")),
          e(where, "errors", errors, "d", true) {
        if (w.dimensions() != 2) reject(where, "weights needs two dimensions");
        job.columns = w.shape(0), job.rows = w.shape(1);
        require_shape(where, "factor", u, job.columns, job.columns);
        if (p.present()) require_shape(where, "cross", p, job.columns, job.columns);
        require_size(where, "errors", e, job.rows);
        job.weights = w.data<float>(), job.errors = e.data<double>();
        job.factor = u.data<const float>();
        job.cross = p.present() ? p.data<const float>() : nullptr;
    }
    Array w, u, p, e;
    SweepJob job;
};

void run_sweep(const char* where, SweepJob& job, int64_t start, int64_t stop) {
    if (start < 0 || stop > job.columns || start > stop) reject(where, "columns do not exist");
    if (job.rows == 0) return;
    const nb::gil_scoped_release release;
    const int64_t panel = solvers().panel, deepest = (job.cross ? 2 : 1) * kSweepBlock;
    while (job.tile > panel && ceil_div(job.rows, job.tile) < 4 * thread_count()) job.tile /= 2;
    const Floats within(deepest * round_up(kSweepBlock, panel));
    const Floats later(deepest * round_up(job.columns, panel));
    job.within = within.get(), job.later = later.get();
    for (job.first = start; job.first < stop; job.first = job.last) {
        job.last = std::min(job.first + kSweepBlock, stop);
        pack_feedback(job, job.first, job.last, within.get());
        pack_feedback(job, job.last, job.columns, later.get());
        parallel(ceil_div(job.rows, job.tile),
                 [&](int64_t task) { solvers().sweep_task(job, task); });
    }
}

void sweep(nb::object weights, nb::object upper, nb::object cross, int64_t start, int64_t stop,
           const CodeGrid& grid, nb::object codes, nb::object errors) {
    const char* where = "sweep";
    SweepArrays arrays(where, weights, upper, cross, errors);
    const Array c(where, "codes", codes, "h", true);
    require_shape(where, "weights", arrays.w, grid.columns, grid.view.rows);
    require_shape(where, "codes", c, grid.columns, grid.view.rows);
    arrays.job.grid = grid.view, arrays.job.codes = c.data<int16_t>();
    run_sweep(where, arrays.job, start, stop);
}

// The same with values [columns, rows] that are already chosen.
void feed_back(nb::object weights, nb::object upper, nb::object cross, int64_t start, int64_t stop,
               nb::object chosen, nb::object errors) {
    const char* where = "feed_back";
    SweepArrays arrays(where, weights, upper, cross, errors);
    const Array values(where, "chosen", chosen, "f");
    require_shape(where, "chosen", values, stop - start, arrays.job.rows);
    arrays.job.grid.rows = arrays.job.rows;
    arrays.job.grid.chosen = values.data<const float>(), arrays.job.grid.first_chosen = start;
    run_sweep(where, arrays.job, start, stop);
}

int64_t descend(nb::object hessian, nb::object values, nb::object gradient, nb::object codes,
                const CodeGrid& grid, int64_t passes) {
    const char* where = "descend";
    const Array h(where, "hessian", hessian, "f"), v(where, "values", values, "f", true);
    const Array g(where, "gradient", gradient, "f", true), c(where, "codes", codes, "h", true);
    DescendJob job;
    job.grid = grid.view;
    job.columns = grid.columns, job.rows = grid.view.rows, job.passes = passes;
    require_shape(where, "hessian", h, job.columns, job.columns);
    require_shape(where, "values", v, job.rows, job.columns);
    require_shape(where, "gradient", g, job.rows, job.columns);
    require_shape(where, "codes", c, job.rows, job.columns);
    job.hessian = h.data<const float>(), job.values = v.data<float>();
    job.gradient = g.data<float>(), job.codes = c.data<int16_t>();
    const int64_t tasks = ceil_div(job.rows, solvers().descend_rows);
    std::vector<int64_t> changes(static_cast<size_t>(tasks));
    job.changes = changes.data();
    const nb::gil_scoped_release release;
    parallel(tasks, [&](int64_t task) { solvers().descend_task(job, task); });
    return std::accumulate(changes.begin(), changes.end(), int64_t{0});
}

}  // namespace

void bind_solve(nb::module_& m) {
    m.def("add_products", &add_products, nb::arg("total"), nb::arg("a"), nb::arg("b").none());
    m.def("factor", &factor, nb::arg("hessian"), nb::arg("out"));
    m.def("cross_factor", &cross_factor, nb::arg("cross"), nb::arg("factor"), nb::arg("strict"),
          nb::arg("out"));
    nb::class_<CodeGrid>(m, "CodeGrid")
        .def(nb::init<nb::object, nb::object, nb::object, nb::object, nb::object, nb::object, int,
                      int, bool>(),
             nb::arg("scale"), nb::arg("group_of_column"), nb::arg("zero").none(),
             nb::arg("offset").none(), nb::arg("levels").none(), nb::arg("bounds").none(),
             nb::arg("low"), nb::arg("high"), nb::arg("fractional"));
    m.def("sweep", &sweep, nb::arg("weights"), nb::arg("factor"), nb::arg("cross").none(),
          nb::arg("start"), nb::arg("stop"), nb::arg("grid"), nb::arg("codes"), nb::arg("errors"));
    m.def("feed_back", &feed_back, nb::arg("weights"), nb::arg("factor"), nb::arg("cross").none(),
          nb::arg("start"), nb::arg("stop"), nb::arg("chosen"), nb::arg("errors"));
    m.def("descend", &descend, nb::arg("hessian"), nb::arg("values"), nb::arg("gradient"),
          nb::arg("codes"), nb::arg("grid"), nb::arg("passes"));
}

}  // namespace halfbyte
