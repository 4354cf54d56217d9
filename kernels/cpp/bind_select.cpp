#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "arrays.hpp"
#include "pool.hpp"

namespace halfbyte {
namespace {

constexpr int64_t kPiece = 1 << 14;  // values per task

// function(first, count) over pieces of `items` items of `width` values each.
template <class Function>
void in_pieces(int64_t items, int64_t width, const Function& function) {
    const nb::gil_scoped_release release;
    const int64_t chunk = std::max<int64_t>(1, kPiece / std::max<int64_t>(1, width));
    parallel((items + chunk - 1) / chunk,
             [&](int64_t task) { function(task * chunk, std::min(chunk, items - task * chunk)); });
}

struct Entry {
    float value;
    int64_t place;
};

// Ascending, NaN above all numbers.
bool below(float a, float b) { return a < b || (std::isnan(b) && !std::isnan(a)); }

void select(std::vector<Entry>& entries, int64_t k, bool largest) {
    const auto end = entries.begin() + static_cast<std::ptrdiff_t>(k);
    if (largest) {
        std::partial_sort(entries.begin(), end, entries.end(), [](const Entry& a, const Entry& b) {
            return below(b.value, a.value) || (!below(a.value, b.value) && a.place < b.place);
        });
    } else {
        std::partial_sort(entries.begin(), end, entries.end(), [](const Entry& a, const Entry& b) {
            return below(a.value, b.value) || (!below(b.value, a.value) && a.place < b.place);
        });
    }
}

// x as [outer, n, inner]: the k largest or smallest over n in order, of equals the first.
void top_k(nb::object x, int64_t n, int64_t inner, int64_t k, bool largest, nb::object values,
           nb::object places) {
    const Array source("top_k", "x", x, "f"), target("top_k", "values", values, "f", true);
    const Array where("top_k", "places", places, "ql", true);
    if (n < 1 || inner < 1 || k < 0 || k > n || source.size() % (n * inner) != 0)
        reject("top_k", "sizes disagree");
    const int64_t rows = source.size() / n;
    require_size("top_k", "values", target, rows * k);
    require_size("top_k", "places", where, rows * k);
    in_pieces(rows, n, [&](int64_t first, int64_t count) {
        std::vector<Entry> entries(static_cast<size_t>(n));
        for (int64_t row = first; row < first + count; ++row) {
            const int64_t outer = row / inner, column = row % inner;
            const float* from = source.data<const float>() + outer * n * inner + column;
            for (int64_t i = 0; i < n; ++i) entries[static_cast<size_t>(i)] = {from[i * inner], i};
            select(entries, k, largest);
            const int64_t to = outer * k * inner + column;
            for (int64_t i = 0; i < k; ++i) {
                target.data<float>()[to + i * inner] = entries[static_cast<size_t>(i)].value;
                where.data<int64_t>()[to + i * inner] = entries[static_cast<size_t>(i)].place;
            }
        }
    });
}

template <class T>
void pick(const Array& source, const Array& indices, int64_t n, int64_t m, int64_t inner,
          const Array& target) {
    const T* from = source.data<const T>();
    const auto* index = indices.data<const int64_t>();
    T* to = target.data<T>();
    for (int64_t at = 0; at < indices.size(); at += inner) {
        const int64_t base = at / (m * inner) * n * inner;
        for (int64_t c = 0; c < inner; ++c) {
            const int64_t given = index[at + c], place = given < 0 ? given + n : given;
            if (place < 0 || place >= n) {
                throw std::out_of_range("an index is outside -" + std::to_string(n) + ".." +
                                        std::to_string(n - 1));
            }
            to[at + c] = from[base + place * inner + c];
        }
    }
}

// x as [outer, n, inner], indices as [outer, m, inner]: out[o, i, c] = x[o, indices[o, i, c], c].
void gather_elements(nb::object x, int64_t n, int64_t inner, nb::object places, nb::object out) {
    const char* where = "gather_elements";
    const Array source(where, "x", x, "fiqldI"), indices(where, "indices", places, "ql");
    const Array target(where, "out", out, "fiqldI", true);
    if (n < 1 || inner < 1 || source.size() < 1 || source.size() % (n * inner) != 0)
        reject(where, "sizes disagree");
    const int64_t outer = source.size() / (n * inner);
    if (indices.size() % (outer * inner) != 0) reject(where, "sizes disagree");
    require_size(where, "out", target, indices.size());
    if (target.bytes() * source.size() != source.bytes() * target.size())
        reject(where, "x and out have different types");
    if (indices.size() == 0) return;
    const int64_t m = indices.size() / (outer * inner);
    if (source.bytes() == 4 * source.size()) {
        pick<int32_t>(source, indices, n, m, inner, target);
    } else {
        pick<int64_t>(source, indices, n, m, inner, target);
    }
}

}  // namespace

void bind_select(nb::module_& m) {
    m.def("top_k", &top_k);
    m.def("gather_elements", &gather_elements);
}

}  // namespace halfbyte
