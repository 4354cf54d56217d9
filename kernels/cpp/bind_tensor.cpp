#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "arrays.hpp"
#include "dispatch.hpp"
#include "pool.hpp"

namespace halfbyte {
namespace {

constexpr int64_t kPiece = 1 << 15;  // values per task: less is not worth a second thread

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// function(first, count) over pieces of `items` items of `width` values each.
template <class Function>
void in_pieces(int64_t items, int64_t width, const Function& function) {
    const nb::gil_scoped_release release;
    const int64_t chunk = std::max<int64_t>(1, kPiece / std::max<int64_t>(1, width));
    parallel(ceil_div(items, chunk),
             [&](int64_t task) { function(task * chunk, std::min(chunk, items - task * chunk)); });
}

void unary(int function, float alpha, float beta, nb::object x, nb::object out) {
    const Array source("unary", "x", x, "f"), target("unary", "out", out, "f", true);
    require_size("unary", "out", target, source.size());
    if (function < 0 || function >= static_cast<int>(Unary::count))
        reject("unary", "no such function");
    const Finish f{static_cast<Unary>(function), alpha, beta};
    in_pieces(source.size(), 1, [&](int64_t first, int64_t count) {
        nets().unary(f, source.data<const float>() + first, count, target.data<float>() + first);
    });
}

// Dimensions of a broadcast, outermost first; strides in elements, 0 where an operand repeats.
struct Walk {
    std::vector<int64_t> sizes, a, b;

    void push(int64_t size, int64_t a_stride, int64_t b_stride) {
        if (size == 1) return;
        if (!sizes.empty() && a.back() == a_stride * size && b.back() == b_stride * size) {
            sizes.back() *= size, a.back() = a_stride, b.back() = b_stride;
            return;
        }
        sizes.push_back(size), a.push_back(a_stride), b.push_back(b_stride);
    }
};

std::vector<int64_t> broadcast_strides(const Array& array, const Array& out, const char* name) {
    const int rank = out.dimensions(), missing = rank - array.dimensions();
    std::vector<int64_t> strides(static_cast<size_t>(rank), 0);
    int64_t stride = 1;
    for (int i = array.dimensions() - 1; i >= 0; --i) {
        const int at = i + missing;
        if (at < 0 || (array.shape(i) != 1 && array.shape(i) != out.shape(at))) {
            reject("binary", std::string(name) + " has shape " + array.describe() + ", out " +
                                 out.describe() + "; they must broadcast");
        }
        strides[static_cast<size_t>(at)] = array.shape(i) == 1 ? 0 : stride;
        stride *= array.shape(i);
    }
    return strides;
}

void binary(int op, nb::object left, nb::object right, nb::object out) {
    const Array a("binary", "a", left, "f"), b("binary", "b", right, "f");
    const Array target("binary", "out", out, "f", true);
    if (op < 0 || op >= static_cast<int>(Binary::count)) reject("binary", "no such operator");
    const auto a_strides = broadcast_strides(a, target, "a");
    const auto b_strides = broadcast_strides(b, target, "b");
    if (target.size() == 0) return;
    Walk walk;
    for (int i = 0; i < target.dimensions(); ++i) {
        const auto at = static_cast<size_t>(i);
        walk.push(target.shape(i), a_strides[at], b_strides[at]);
    }
    if (walk.sizes.empty()) walk.sizes = {1}, walk.a = {1}, walk.b = {1};
    const int64_t n = walk.sizes.back(), step_a = walk.a.back(), step_b = walk.b.back();
    const auto* x = a.data<const float>();
    const auto* y = b.data<const float>();
    auto* z = target.data<float>();
    const auto kind = static_cast<Binary>(op);
    if (walk.sizes.size() == 1) {
        in_pieces(n, 1, [&](int64_t first, int64_t count) {
            nets().binary(kind, x + first * step_a, step_a, y + first * step_b, step_b, count,
                          z + first);
        });
        return;
    }
    const auto outer = static_cast<int>(walk.sizes.size()) - 1;
    in_pieces(target.size() / n, n, [&](int64_t first, int64_t count) {
        for (int64_t row = first; row < first + count; ++row) {
            int64_t rest = row, at_a = 0, at_b = 0;
            for (int d = outer - 1; d >= 0; --d) {
                const auto i = static_cast<size_t>(d);
                const int64_t index = rest % walk.sizes[i];
                rest /= walk.sizes[i];
                at_a += index * walk.a[i], at_b += index * walk.b[i];
            }
            nets().binary(kind, x + at_a, step_a, y + at_b, step_b, n, z + row * n);
        }
    });
}

// x as [outer, n, inner]: sums (divided by `divisor`) or maxima over n.
void reduce(bool maximum, nb::object x, int64_t n, int64_t inner, float divisor, nb::object out) {
    const Array source("reduce", "x", x, "f"), target("reduce", "out", out, "f", true);
    if (n < 1 || inner < 1 || source.size() % (n * inner) != 0) reject("reduce", "sizes disagree");
    require_size("reduce", "out", target, source.size() / n);
    in_pieces(source.size() / (n * inner), n * inner, [&](int64_t first, int64_t count) {
        for (int64_t i = first; i < first + count; ++i) {
            float* to = target.data<float>() + i * inner;
            nets().reduce(maximum, source.data<const float>() + i * n * inner, n, inner, to);
            for (int64_t c = 0; divisor != 1.0f && c < inner; ++c) to[c] /= divisor;
        }
    });
}

// x as [outer, n, inner]: softmax over n.
void softmax_axis(nb::object x, int64_t n, int64_t inner, nb::object out) {
    const Array source("softmax", "x", x, "f"), target("softmax", "out", out, "f", true);
    if (n < 1 || inner < 1 || source.size() % (n * inner) != 0) reject("softmax", "sizes disagree");
    require_size("softmax", "out", target, source.size());
    const int64_t piece = std::max<int64_t>(64, kPiece / n / 64 * 64),
                  cuts = ceil_div(inner, piece);
    const int64_t outer = source.size() / (n * inner);
    const nb::gil_scoped_release release;
    parallel(outer * cuts, [&](int64_t task) {
        const int64_t at = task / cuts * n * inner, from = task % cuts * piece;
        nets().softmax_columns(source.data<const float>() + at, n, inner, from,
                               std::min(inner, from + piece), target.data<float>() + at);
    });
}

// x as rows of n values; scale and shift by row modulo their length.
void normalize(nb::object x, int64_t n, nb::object scale, nb::object shift, float epsilon,
               int function, float alpha, float beta, nb::object out) {
    const char* where = "normalize";
    const Array source(where, "x", x, "f"), target(where, "out", out, "f", true);
    const Array s(where, "scale", scale, "f"), b(where, "shift", shift, "f");
    require_size(where, "out", target, source.size());
    require_size(where, "shift", b, s.size());
    if (n < 1 || s.size() < 1 || source.size() % n != 0) reject(where, "sizes disagree");
    const Finish f{static_cast<Unary>(function), alpha, beta};
    in_pieces(source.size() / n, n, [&](int64_t first, int64_t count) {
        for (int64_t r = first; r < first + count; ++r) {
            const int64_t c = r % s.size();
            nets().normalize(source.data<const float>() + r * n, n, s.data<const float>()[c],
                             b.data<const float>()[c], epsilon, f, target.data<float>() + r * n);
        }
    });
}

// One axis of x as [outer, n, inner] by weighted picks: indices and weights are [m, taps].
void resample(nb::object x, int64_t n, int64_t inner, nb::object indices, nb::object weights,
              nb::object out) {
    const char* where = "resample";
    const Array source(where, "x", x, "f"), target(where, "out", out, "f", true);
    const Array picks(where, "indices", indices, "ql"), factors(where, "weights", weights, "f");
    require_size(where, "weights", factors, picks.size());
    const bool table = picks.dimensions() == 2 && picks.size() > 0;
    if (!table || n < 1 || inner < 1 || source.size() % (n * inner) != 0)
        reject(where, "sizes disagree");
    const int64_t m = picks.shape(0), taps = picks.shape(1), outer = source.size() / (n * inner);
    require_size(where, "out", target, outer * m * inner);
    const auto* at = picks.data<const int64_t>();
    for (int64_t i = 0; i < picks.size(); ++i) {
        if (at[i] < 0 || at[i] >= n) reject(where, "an index is outside the axis");
    }
    in_pieces(outer, m * inner * taps, [&](int64_t first, int64_t count) {
        for (int64_t o = first; o < first + count; ++o) {
            nets().resample(source.data<const float>() + o * n * inner, inner, at,
                            factors.data<const float>(), m, taps,
                            target.data<float>() + o * m * inner);
        }
    });
}

struct Axis {
    int64_t size, x_stride, out_stride;
};

// Axes in output order; those that stay neighbours become one.
std::vector<Axis> permuted_axes(const Array& x, const std::vector<int64_t>& order) {
    const auto rank = static_cast<size_t>(x.dimensions());
    std::vector<int64_t> strides(rank, 1);
    for (size_t i = rank; i-- > 1;) strides[i - 1] = strides[i] * x.shape(static_cast<int>(i));
    std::vector<bool> seen(rank, false);
    std::vector<Axis> axes;
    for (const int64_t axis : order) {
        if (axis < 0 || axis >= x.dimensions() || seen[static_cast<size_t>(axis)])
            reject("transpose", "order is no permutation of the axes");
        seen[static_cast<size_t>(axis)] = true;
        const int64_t size = x.shape(static_cast<int>(axis));
        const int64_t stride = strides[static_cast<size_t>(axis)];
        if (size == 1) continue;
        if (!axes.empty() && axes.back().x_stride == stride * size) {
            axes.back() = {axes.back().size * size, stride, 0};
        } else {
            axes.push_back({size, stride, 0});
        }
    }
    int64_t stride = 1;
    for (size_t i = axes.size(); i-- > 0; stride *= axes[i].size) axes[i].out_stride = stride;
    return axes;
}

void transpose(nb::object x, std::vector<int64_t> order, nb::object out) {
    const Array source("transpose", "x", x, "f"), target("transpose", "out", out, "f", true);
    require_size("transpose", "out", target, source.size());
    if (static_cast<int>(order.size()) != source.dimensions())
        reject("transpose", "order has another rank than x");
    std::vector<Axis> axes = permuted_axes(source, order);
    if (source.size() == 0) return;
    const auto* from = source.data<const float>();
    auto* to = target.data<float>();
    if (axes.size() < 2) {
        std::memcpy(to, from, static_cast<size_t>(source.bytes()));
        return;
    }
    const Axis last = axes.back();
    axes.pop_back();
    Axis rows = {1, 0, 0};
    if (last.x_stride != 1) {
        const auto lane = std::find_if(axes.begin(), axes.end(),
                                       [](const Axis& axis) { return axis.x_stride == 1; });
        rows = *lane;
        axes.erase(lane);
    }
    const int64_t width = last.size * rows.size;
    in_pieces(source.size() / width, width, [&](int64_t first, int64_t count) {
        for (int64_t item = first; item < first + count; ++item) {
            int64_t rest = item, at = 0, put = 0;
            for (size_t d = axes.size(); d-- > 0;) {
                at += rest % axes[d].size * axes[d].x_stride;
                put += rest % axes[d].size * axes[d].out_stride;
                rest /= axes[d].size;
            }
            if (last.x_stride == 1) {
                std::memcpy(to + put, from + at, static_cast<size_t>(4 * width));
            } else {
                nets().transpose(from + at, last.size, rows.size, last.x_stride, rows.out_stride,
                                 to + put);
            }
        }
    });
}

}  // namespace

void bind_tensor(nb::module_& m) {
    m.def("unary", &unary);
    m.def("binary", &binary);
    m.def("reduce", &reduce);
    m.def("softmax_axis", &softmax_axis);
    m.def("normalize", &normalize);
    m.def("resample", &resample);
    m.def("transpose", &transpose);
}

}  // namespace halfbyte
