#include <nanobind/stl/vector.h>

#include <algorithm>
#include <string>
#include <vector>

#include "arrays.hpp"
#include "dispatch.hpp"
#include "packed.hpp"
#include "pool.hpp"

namespace halfbyte {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The right-hand matrix of products in panels; from [k, n], or [n, k] with b_rows.
class PackedMatrix {
  public:
    PackedMatrix(nb::object matrix, bool b_rows) {
        const Array b("product", "matrix", matrix, "f");
        if (b.dimensions() != 2 || b.size() == 0) {
            reject("product", "matrix has shape " + b.describe() + ", required two dimensions");
        }
        n = b.shape(b_rows ? 0 : 1), k = b.shape(b_rows ? 1 : 0);
        packed_ = Floats(nets().packed_b_size(n, k));
        nets().pack_b(b.data<const float>(), n, k, b_rows, packed_.get());
    }
    const float* packed() const { return packed_.get(); }
    int64_t n, k;

  private:
    Floats packed_;
};

// c = function(a b + bias + residual) for a batch of matrices given by element offsets.
class Product {
  public:
    Product(nb::object packed, nb::object bias, int64_t m, int64_t n, int64_t k, bool b_rows,
            std::vector<int64_t> a_offsets, std::vector<int64_t> b_offsets, int function,
            float alpha, float beta)
        : held_(packed), a_offsets_(std::move(a_offsets)), b_offsets_(std::move(b_offsets)) {
        job_.m = m, job_.n = n, job_.k = k, job_.b_rows = b_rows;
        job_.lda = k, job_.ldb = b_rows ? k : n;
        job_.finish = {static_cast<Unary>(function), alpha, beta};
        if (m < 1 || n < 1 || k < 1) reject("product", "sizes must be positive");
        for (const int64_t offset : a_offsets_) a_size_ = std::max(a_size_, offset + m * k);
        for (const int64_t offset : b_offsets_) b_size_ = std::max(b_size_, offset + n * k);
        const bool negative = std::any_of(a_offsets_.begin(), a_offsets_.end(), below_zero) ||
                              std::any_of(b_offsets_.begin(), b_offsets_.end(), below_zero);
        if (a_offsets_.size() != b_offsets_.size() || negative)
            reject("product", "offsets must not be negative and come in pairs");
        if (!packed.is_none()) {
            const auto& matrix = nb::cast<const PackedMatrix&>(packed);
            if (matrix.n != n || matrix.k != k || b_size_ != n * k)
                reject("product", "the packed matrix has other sizes");
            job_.b = matrix.packed(), job_.b_packed = true;
        }
        if (!bias.is_none()) {
            const Array b("product", "bias", bias, "f");
            require_size("product", "bias", b, n);
            bias_ = Floats(n);
            std::memcpy(bias_.get(), b.data<const float>(), static_cast<size_t>(4 * n));
            job_.bias = bias_.get();
        }
    }

    void run(nb::object a, nb::object b, nb::object residual, nb::object out) const {
        const Array left("product", "a", a, "f"), target("product", "out", out, "f", true);
        const Array right = optional_array("product", "b", b, "f");
        const Array added = optional_array("product", "residual", residual, "f");
        const auto count = static_cast<int64_t>(a_offsets_.size());
        require_size("product", "out", target, count * job_.m * job_.n);
        if (added.present()) require_size("product", "residual", added, target.size());
        if (left.size() < a_size_) reject("product", "a has too few elements");
        if (!job_.b_packed && (!right.present() || right.size() < b_size_))
            reject("product", "b has too few elements");
        if (count == 0) return;
        ProductJob job = job_;
        choose_tiles(job, count);
        const int64_t tiles = ceil_div(job.m, job.rows) * ceil_div(job.n, job.columns);
        const int64_t size = job.m * job.n;
        const nb::gil_scoped_release release;
        const int64_t work = 2 * count * size * job.k;
        parallel_if_worth(work, count * tiles, [&](int64_t task) {
            ProductJob one = job;
            const int64_t item = task / tiles;
            const auto at = static_cast<size_t>(item);
            one.a = left.data<const float>() + a_offsets_[at];
            if (!job.b_packed) one.b = right.data<const float>() + b_offsets_[at];
            one.c = target.data<float>() + item * size;
            if (added.present()) one.residual = added.data<const float>() + item * size;
            nets().product_task(one, task % tiles);
        });
    }

  private:
    static bool below_zero(int64_t value) { return value < 0; }

    static void choose_tiles(ProductJob& job, int64_t count) {
        const int64_t unit = nets().gemm_columns,
                      wanted = thread_count() > 1 ? 4 * thread_count() : 1;
        job.rows = job.m;
        job.columns = std::min(round_up(job.n, unit), 16 * unit);
        if (job.b_packed) job.rows = std::min<int64_t>(job.m, 192);
        const auto tasks = [&] {
            return count * ceil_div(job.m, job.rows) * ceil_div(job.n, job.columns);
        };
        if (tasks() >= wanted) return;
        const int64_t pieces = ceil_div(wanted, count * ceil_div(job.m, job.rows));
        job.columns = std::clamp(round_up(ceil_div(job.n, pieces), unit), 4 * unit, job.columns);
        if (tasks() >= wanted || job.m * job.n < 1 << 12) return;
        const int64_t cuts = ceil_div(wanted, count * ceil_div(job.n, job.columns));
        job.rows = std::max<int64_t>(12, round_up(ceil_div(job.m, cuts), 12));
    }

    nb::object held_;
    std::vector<int64_t> a_offsets_, b_offsets_;
    int64_t a_size_ = 0, b_size_ = 0;
    Floats bias_;
    ProductJob job_;
};

// One direction of an LSTM or GRU; arrays as RecurrentJob says.
void recurrent(bool gru, nb::object gates, const PackedMatrix& first, nb::object second,
               nb::object peepholes, nb::object h_bias, nb::object h, nb::object c, nb::object y,
               int64_t y_offset, int64_t y_step, bool reverse, bool linear_before_reset) {
    const char* where = gru ? "gru" : "lstm";
    const Array g(where, "gates", gates, "f", true), state(where, "h", h, "f", true);
    const Array cell = c.is_none() ? Array() : Array(where, "c", c, "f", true);
    const Array target = y.is_none() ? Array() : Array(where, "y", y, "f", true);
    const Array holes = optional_array(where, "peepholes", peepholes, "f");
    const Array bias = optional_array(where, "h_bias", h_bias, "f");
    RecurrentJob job;
    job.hidden = first.k;
    if (job.hidden < 1 || state.size() % job.hidden != 0) reject(where, "h has a wrong size");
    job.batch = state.size() / job.hidden;
    const int64_t row = (gru ? 3 : 4) * state.size();
    if (row == 0 || g.size() % row != 0) reject(where, "gates have a wrong size");
    job.steps = g.size() / row;
    if (first.n != (gru ? 2 : 4) * job.hidden) reject(where, "the packed matrix has a wrong size");
    if (gru == second.is_none()) reject(where, "wrong number of packed matrices");
    if (!gru) require_size(where, "c", cell, state.size());
    if (holes.present()) require_size(where, "peepholes", holes, 3 * job.hidden);
    if (bias.present()) require_size(where, "h_bias", bias, job.hidden);
    if (target.present() && job.steps > 0 &&
        (y_offset < 0 || y_step < 0 ||
         y_offset + (job.steps - 1) * y_step + state.size() > target.size())) {
        reject(where, "y is too small");
    }
    job.gates = g.data<float>(), job.weight = first.packed(), job.h = state.data<float>();
    job.c = gru ? nullptr : cell.data<float>();
    job.y = target.present() ? target.data<float>() + y_offset : nullptr;
    job.peepholes = holes.present() ? holes.data<const float>() : nullptr;
    job.h_bias = bias.present() ? bias.data<const float>() : nullptr;
    job.y_step = y_step, job.reverse = reverse, job.linear_before_reset = linear_before_reset;
    if (gru) {
        const auto& last = nb::cast<const PackedMatrix&>(second);
        if (last.n != job.hidden || last.k != job.hidden)
            reject(where, "the second packed matrix has a wrong size");
        job.weight_last = last.packed();
    }
    const nb::gil_scoped_release release;
    (gru ? nets().gru : nets().lstm)(job);
}

}  // namespace

void bind_product(nb::module_& m) {
    nb::class_<PackedMatrix>(m, "PackedMatrix").def(nb::init<nb::object, bool>());
    nb::class_<Product>(m, "Product")
        .def(nb::init<nb::object, nb::object, int64_t, int64_t, int64_t, bool, std::vector<int64_t>,
                      std::vector<int64_t>, int, float, float>(),
             nb::arg("packed").none(), nb::arg("bias").none(), nb::arg("m"), nb::arg("n"),
             nb::arg("k"), nb::arg("b_rows"), nb::arg("a_offsets"), nb::arg("b_offsets"),
             nb::arg("function"), nb::arg("alpha"), nb::arg("beta"))
        .def("run", &Product::run, nb::arg("a"), nb::arg("b").none(), nb::arg("residual").none(),
             nb::arg("out"));
    m.def("recurrent", &recurrent, nb::arg("gru"), nb::arg("gates"), nb::arg("first"),
          nb::arg("second").none(), nb::arg("peepholes").none(), nb::arg("h_bias").none(),
          nb::arg("h"), nb::arg("c").none(), nb::arg("y").none(), nb::arg("y_offset"),
          nb::arg("y_step"), nb::arg("reverse"), nb::arg("linear_before_reset"));
}

}  // namespace halfbyte
