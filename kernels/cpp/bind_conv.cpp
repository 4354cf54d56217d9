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

enum class Form : int { gemm, depthwise, winograd, transposed, rows };

// 3x3 depthwise: from this width on, whole rows beat channels in the lanes.
constexpr int64_t kWideRow = 32, kWideRowOfStride2 = 48;
constexpr int64_t kPanelFloats = 48 << 10;  // columns of one pass, in the second cache
constexpr int64_t kDepth = 256;
constexpr int64_t kTaskValues = 1 << 14;

bool has_wide_rows(const ConvJob& job) {
    const bool square = job.kh == 3 && job.kw == 3 && job.stride_h == job.stride_w;
    if (!square || job.dilation_h != 1 || job.dilation_w != 1 || job.stride_h > 2) return false;
    return job.ow >= (job.stride_h == 1 ? kWideRow : kWideRowOfStride2);
}

// Weights in the form that one algorithm reads; shared by all convolutions over them.
class ConvWeight {
  public:
    ConvWeight(int form, nb::object weight, int64_t groups) : form_(static_cast<Form>(form)) {
        const Array w("conv", "weight", weight, "f");
        if (w.dimensions() != 4 || groups < 1 || w.shape(0) % groups != 0 || w.size() == 0) {
            reject("conv", "weight has shape " + w.describe() + ", " + std::to_string(groups) +
                               " groups; required [channels, channels of a group, kh, kw]");
        }
        rows = w.shape(0), inner = w.shape(1), kh = w.shape(2), kw = w.shape(3);
        const auto* data = w.data<const float>();
        const NetTable& table = nets();
        const int64_t cells = kh * kw, group_rows = rows / groups;
        if (form_ == Form::gemm) {
            const int64_t size = table.packed_a_size(group_rows, inner * cells);
            packed_ = Floats(groups * size);
            for (int64_t g = 0; g < groups; ++g) {
                table.pack_a(data + g * group_rows * inner * cells, group_rows, inner * cells,
                             packed_.get() + g * size);
            }
        } else if (form_ == Form::rows) {
            const int64_t size = table.packed_b_size(group_rows, inner * cells);
            packed_ = Floats(groups * size);
            for (int64_t g = 0; g < groups; ++g) {
                table.pack_b(data + g * group_rows * inner * cells, group_rows, inner * cells, true,
                             packed_.get() + g * size);
            }
        } else if (form_ == Form::winograd) {
            packed_ = Floats(36 * table.packed_b_size(rows, inner));
            table.winograd_weights(data, rows, inner, packed_.get());
        } else if (form_ == Form::transposed) {
            pack_transposed(data, groups, group_rows);
        } else {
            packed_ = Floats(w.size());
            std::memcpy(packed_.get(), data, static_cast<size_t>(w.bytes()));
        }
    }

    Form form() const { return form_; }
    const float* packed() const { return packed_.get(); }
    int64_t rows, inner, kh, kw;

  private:
    // [in_channels, out of a group, kh, kw]: for each group [out * kh * kw, in] packed.
    void pack_transposed(const float* data, int64_t groups, int64_t group_rows) {
        const NetTable& table = nets();
        const int64_t columns = inner * kh * kw, size = table.packed_a_size(columns, group_rows);
        packed_ = Floats(groups * size);
        const Floats turned(columns * group_rows);
        for (int64_t g = 0; g < groups; ++g) {
            table.transpose(data + g * group_rows * columns, group_rows, columns, columns,
                            group_rows, turned.get());
            table.pack_a(turned.get(), columns, group_rows, packed_.get() + g * size);
        }
    }

    Form form_;
    Floats packed_;
};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A convolution of images of one size. geometry: batch, in_channels, h, w, out_channels, oh, ow,
// groups, stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left.
class Convolution {
  public:
    Convolution(nb::object weight, nb::object bias, std::vector<int64_t> geometry, int function,
                float alpha, float beta)
        : held_(weight), weight_(nb::cast<const ConvWeight*>(weight)) {
        if (geometry.size() != 14) reject("conv", "geometry needs 14 numbers");
        const auto& g = geometry;
        job_.batch = g[0], job_.in_channels = g[1], job_.h = g[2], job_.w = g[3];
        job_.out_channels = g[4], job_.oh = g[5], job_.ow = g[6], job_.groups = g[7];
        job_.stride_h = g[8], job_.stride_w = g[9], job_.dilation_h = g[10];
        job_.dilation_w = g[11], job_.pad_top = g[12], job_.pad_left = g[13];
        job_.kh = weight_->kh, job_.kw = weight_->kw, job_.weight = weight_->packed();
        job_.finish = {static_cast<Unary>(function), alpha, beta};
        check();
        if (!bias.is_none()) {
            const Array b("conv", "bias", bias, "f");
            require_size("conv", "bias", b, job_.out_channels);
            bias_ = Floats(job_.out_channels);
            std::memcpy(bias_.get(), b.data<const float>(), static_cast<size_t>(b.bytes()));
            job_.bias = bias_.get();
        }
    }

    void run(nb::object x, nb::object residual, nb::object out) const {
        const Array source("conv", "x", x, "f"), target("conv", "out", out, "f", true);
        const Array added = optional_array("conv", "residual", residual, "f");
        ConvJob job = job_;
        require_size("conv", "x", source, job.batch * job.in_channels * job.h * job.w);
        const int64_t size = job.batch * job.out_channels * job.oh * job.ow;
        require_size("conv", "out", target, size);
        if (added.present()) {
            require_size("conv", "residual", added, size);
            job.residual = added.data<const float>();
        }
        job.x = source.data<const float>(), job.out = target.data<float>();
        if (size == 0) return;
        const nb::gil_scoped_release release;
        dispatch(job);
    }

  private:
    void check() const {
        const bool transposed = weight_->form() == Form::transposed;
        const int64_t first = transposed ? job_.in_channels : job_.out_channels;
        const int64_t second = transposed ? job_.out_channels : job_.in_channels;
        const bool positive = job_.groups > 0 && job_.stride_h > 0 && job_.stride_w > 0 &&
                              job_.dilation_h > 0 && job_.dilation_w > 0 && job_.h > 0 &&
                              job_.w > 0 && job_.oh >= 0 && job_.ow >= 0 && job_.batch >= 0 &&
                              job_.pad_top >= 0 && job_.pad_left >= 0;
        const bool fits = positive && weight_->rows == first &&
                          second == weight_->inner * job_.groups && first % job_.groups == 0;
        const bool one = weight_->form() != Form::depthwise || weight_->inner == 1;
        const bool simple =
            weight_->form() != Form::winograd ||
            (job_.groups == 1 && job_.kh == 3 && job_.kw == 3 && job_.stride_h == 1 &&
             job_.stride_w == 1 && job_.dilation_h == 1 && job_.dilation_w == 1);
        if (!fits || !one || !simple) {
            reject("conv", "weight and geometry disagree; check channels, groups and form");
        }
    }

    void dispatch(ConvJob& job) const {
        const NetTable& table = nets();
        const int64_t places =
            job.batch * (weight_->form() == Form::transposed ? job.h * job.w * job.out_channels
                                                             : job.oh * job.ow * job.in_channels);
        const int64_t other =
            weight_->form() == Form::transposed ? job.in_channels : job.out_channels;
        const int64_t work = 2 * places * other / job.groups * job.kh * job.kw;
        const int64_t threads = work >= kParallelOperations ? thread_count() : 1;
        if (weight_->form() == Form::gemm) {
            parallel_if_worth(work, gemm_tasks(job, threads),
                              [&](int64_t task) { table.conv_gemm_task(job, task); });
        } else if (weight_->form() == Form::rows) {
            const int64_t rows = job.out_channels / job.groups, unit = table.gemm_columns;
            const int64_t pieces = threads > 1 ? ceil_div(2 * threads, job.batch * job.groups) : 1;
            job.rows = std::max(2 * unit, round_up(ceil_div(rows, pieces), unit));
            job.columns = job.oh * job.ow;
            parallel_if_worth(work, job.batch * job.groups * ceil_div(rows, job.rows),
                              [&](int64_t task) { table.conv_rows_task(job, task); });
        } else if (weight_->form() == Form::winograd) {
            const int64_t tiles = ceil_div(job.oh, 4) * ceil_div(job.ow, 4);
            // Inputs and products of the 36 planes: most of the second cache.
            const int64_t fitting = (448 << 10) / (144 * (job.in_channels + job.out_channels));
            const int64_t most = std::clamp<int64_t>(fitting, 24, 96);
            int64_t parts = ceil_div(tiles, most);
            while (job.batch * parts % threads != 0 && tiles / (parts + 1) >= 6) ++parts;
            job.columns = std::min(tiles, round_up(ceil_div(tiles, parts), 6));
            parallel_if_worth(work, job.batch * ceil_div(tiles, job.columns),
                              [&](int64_t task) { table.winograd_task(job, task); });
        } else if (weight_->form() == Form::depthwise) {
            job.lanes = job.out_channels == job.in_channels && !has_wide_rows(job);
            const int64_t width = job.lanes ? table.lanes : 1;
            const int64_t units = job.batch * ceil_div(job.out_channels, width);
            job.rows = std::max<int64_t>(1, kTaskValues / (job.oh * job.ow * width));
            parallel_if_worth(work, ceil_div(units, job.rows),
                              [&](int64_t task) { table.depthwise_task(job, task); });
        } else {
            const int64_t rows = job.out_channels / job.groups;
            const int64_t pieces = ceil_div(4 * threads, job.batch * job.groups);
            job.rows = round_up(std::max<int64_t>(1, rows / pieces), table.gemm_rows);
            parallel_if_worth(work, job.batch * job.groups * ceil_div(rows, job.rows),
                              [&](int64_t task) { table.transposed_task(job, task); });
        }
    }

    static int64_t gemm_tasks(ConvJob& job, int64_t threads) {
        const NetTable& table = nets();
        const int64_t pixels = job.oh * job.ow, rows = job.out_channels / job.groups;
        const int64_t k = job.in_channels / job.groups * job.kh * job.kw;
        const int64_t unit = table.gemm_columns,
                      depth = std::min(k, std::max(kDepth, job.kh * job.kw));
        const int64_t fitting =
            std::clamp<int64_t>(kPanelFloats / depth / unit * unit, 4 * unit, 48 * unit);
        const int64_t units = job.batch * job.groups;
        int64_t tiles = ceil_div(pixels, fitting);
        // Every thread gets as many tiles as the others.
        if (pixels >= 8 * unit * threads || tiles > 1) {
            while (units * tiles % threads != 0 && pixels / (tiles + 1) >= 4 * unit) ++tiles;
        }
        job.columns = round_up(ceil_div(pixels, tiles), unit);
        tiles = ceil_div(pixels, job.columns);
        const int64_t pieces = std::max<int64_t>(1, ceil_div(2 * threads, units * tiles));
        const bool few = threads > 1 && units * tiles < 2 * threads;
        job.rows =
            few ? std::max(round_up(ceil_div(rows, pieces), table.gemm_rows), 2 * table.gemm_rows)
                : rows;
        return units * tiles * ceil_div(rows, job.rows);
    }

    nb::object held_;
    const ConvWeight* weight_;
    Floats bias_;
    ConvJob job_;
};

// window: planes, h, w, oh, ow, kh, kw, stride_h, stride_w, dilation_h, dilation_w, pad_top,
// pad_left. The counts, one per output row and column, make it an average.
void pool(nb::object x, std::vector<int64_t> g, nb::object row_counts, nb::object column_counts,
          nb::object out) {
    const Array source("pool", "x", x, "f"), target("pool", "out", out, "f", true);
    const Array rows = optional_array("pool", "row_counts", row_counts, "f");
    const Array columns = optional_array("pool", "column_counts", column_counts, "f");
    if (g.size() != 13) reject("pool", "window needs 13 numbers");
    PoolJob job;
    ConvJob& w = job.window;
    w.batch = g[0], w.h = g[1], w.w = g[2], w.oh = g[3], w.ow = g[4], w.kh = g[5], w.kw = g[6];
    w.stride_h = g[7], w.stride_w = g[8], w.dilation_h = g[9], w.dilation_w = g[10];
    w.pad_top = g[11], w.pad_left = g[12];
    require_size("pool", "x", source, w.batch * w.h * w.w);
    require_size("pool", "out", target, w.batch * w.oh * w.ow);
    if (*std::min_element(g.begin(), g.end()) < 0 || w.kh * w.kw < 1 || w.stride_h * w.stride_w < 1)
        reject("pool", "sizes must not be negative, kernel and strides must be positive");
    if (target.size() == 0) return;
    std::vector<float> counts;
    job.average = rows.present();
    if (job.average) {
        require_size("pool", "row_counts", rows, w.oh);
        require_size("pool", "column_counts", columns, w.ow);
        counts.assign(static_cast<size_t>(w.ow + kStep), 1.0f);
        std::memcpy(counts.data(), columns.data<const float>(), static_cast<size_t>(4 * w.ow));
        job.row_counts = rows.data<const float>(), job.column_counts = counts.data();
    }
    w.x = source.data<const float>(), w.out = target.data<float>();
    const int64_t blocks = ceil_div(w.batch, nets().lanes);
    w.rows = std::max<int64_t>(1, kTaskValues / (w.oh * w.ow * nets().lanes));
    const nb::gil_scoped_release release;
    parallel(ceil_div(blocks, w.rows), [&](int64_t task) { nets().pool_task(job, task); });
}

}  // namespace

void bind_conv(nb::module_& m) {
    nb::class_<ConvWeight>(m, "ConvWeight").def(nb::init<int, nb::object, int64_t>());
    nb::class_<Convolution>(m, "Convolution")
        .def(nb::init<nb::object, nb::object, std::vector<int64_t>, int, float, float>(),
             nb::arg("weight"), nb::arg("bias").none(), nb::arg("geometry"), nb::arg("function"),
             nb::arg("alpha"), nb::arg("beta"))
        .def("run", &Convolution::run, nb::arg("x"), nb::arg("residual").none(), nb::arg("out"));
    m.def("pool", &pool, nb::arg("x"), nb::arg("window"), nb::arg("row_counts").none(),
          nb::arg("column_counts").none(), nb::arg("out"));
}

}  // namespace halfbyte
