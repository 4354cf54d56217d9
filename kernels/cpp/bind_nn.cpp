#include <algorithm>
#include <cstring>
#include <string>

#include "arrays.hpp"
#include "dispatch.hpp"
#include "pool.hpp"

namespace halfbyte {
namespace {

constexpr int64_t kParallelValues = 1 << 15;

// function(first, count) over pieces of `items` items that hold `width` values each.
template <class Function>
void in_pieces(int64_t items, int64_t width, const Function& function) {
    const nb::gil_scoped_release release;
    const int64_t chunk = std::max<int64_t>(1, kParallelValues / std::max<int64_t>(1, width));
    parallel((items + chunk - 1) / chunk,
             [&](int64_t task) { function(task * chunk, std::min(chunk, items - task * chunk)); });
}

using Unary = void (*)(const float*, int64_t, float*);
using Binary = void (*)(const float*, const float*, int64_t, float*);

void unary(const char* where, nb::handle x, nb::handle out, Unary function) {
    const Array source(where, "x", x, "f"), target(where, "out", out, "f", true);
    require_size(where, "out", target, source.size());
    in_pieces(source.size(), 1, [&](int64_t first, int64_t count) {
        function(source.data<const float>() + first, count, target.data<float>() + first);
    });
}

// b has the shape of a, or is one vector that every row of a meets.
void binary(const char* where, nb::handle a, nb::handle b, nb::handle out, Binary function) {
    const Array left(where, "a", a, "f"), right(where, "b", b, "f"),
        target(where, "out", out, "f", true);
    require_size(where, "out", target, left.size());
    if (left.size() == 0) return;
    const int64_t width = right.size();
    if (width == 0 ||
        (width != left.size() && (left.dimensions() < 1 || left.shape(-1) != width))) {
        reject(where, "b has shape " + right.describe() + ", a " + left.describe() +
                          "; required equal shapes or one vector as long as a row of a");
    }
    const auto* x = left.data<const float>();
    const auto* y = right.data<const float>();
    auto* z = target.data<float>();
    if (width == left.size()) {
        in_pieces(width, 1, [&](int64_t first, int64_t count) {
            function(x + first, y + first, count, z + first);
        });
        return;
    }
    in_pieces(left.size() / width, width, [&](int64_t first, int64_t count) {
        for (int64_t r = first; r < first + count; ++r)
            function(x + r * width, y, width, z + r * width);
    });
}

void require_row(const char* where, const Array& x) {
    if (x.dimensions() < 1 || x.shape(-1) < 1)
        reject(where, "x has no columns, required [..., columns]");
}

void rms_norm(nb::object x, nb::object weight, float epsilon, nb::object out) {
    const Array source("rms_norm", "x", x, "f"), w("rms_norm", "weight", weight, "f");
    const Array target("rms_norm", "out", out, "f", true);
    require_row("rms_norm", source);
    const int64_t n = source.shape(-1);
    require_size("rms_norm", "weight", w, n);
    require_size("rms_norm", "out", target, source.size());
    in_pieces(source.size() / n, n, [&](int64_t first, int64_t count) {
        kernels().rms_norm(source.data<const float>() + first * n, w.data<const float>(), epsilon,
                           count, n, target.data<float>() + first * n);
    });
}

// sum = x + residual; out = rms_norm(sum).
void add_rms_norm(nb::object x, nb::object residual, nb::object weight, float epsilon,
                  nb::object sum, nb::object out) {
    const char* where = "add_rms_norm";
    const Array a(where, "x", x, "f"), b(where, "residual", residual, "f"),
        w(where, "weight", weight, "f");
    const Array total(where, "sum", sum, "f", true), target(where, "out", out, "f", true);
    require_row(where, a);
    const int64_t n = a.shape(-1);
    require_size(where, "residual", b, a.size());
    require_size(where, "weight", w, n);
    require_size(where, "sum", total, a.size());
    require_size(where, "out", target, a.size());
    in_pieces(a.size() / n, n, [&](int64_t first, int64_t count) {
        const int64_t at = first * n;
        kernels().add(a.data<const float>() + at, b.data<const float>() + at, count * n,
                      total.data<float>() + at);
        kernels().rms_norm(total.data<const float>() + at, w.data<const float>(), epsilon, count, n,
                           target.data<float>() + at);
    });
}

void layer_norm(nb::object x, nb::object weight, nb::object bias, float epsilon, nb::object out) {
    const char* where = "layer_norm";
    const Array source(where, "x", x, "f"), w(where, "weight", weight, "f");
    const Array b = optional_array(where, "bias", bias, "f"), target(where, "out", out, "f", true);
    require_row(where, source);
    const int64_t n = source.shape(-1);
    require_size(where, "weight", w, n);
    if (b.present()) require_size(where, "bias", b, n);
    require_size(where, "out", target, source.size());
    const float* shift = b.present() ? b.data<const float>() : nullptr;
    in_pieces(source.size() / n, n, [&](int64_t first, int64_t count) {
        kernels().layer_norm(source.data<const float>() + first * n, w.data<const float>(), shift,
                             epsilon, count, n, target.data<float>() + first * n);
    });
}

void softmax(nb::object x, nb::object out) {
    const Array source("softmax", "x", x, "f"), target("softmax", "out", out, "f", true);
    require_row("softmax", source);
    const int64_t n = source.shape(-1);
    require_size("softmax", "out", target, source.size());
    in_pieces(source.size() / n, n, [&](int64_t first, int64_t count) {
        kernels().softmax(source.data<const float>() + first * n, count, n,
                          target.data<float>() + first * n);
    });
}

// x: tokens * heads * head_dim values; cos, sin: [tokens or a divisor of it, half].
void rope(nb::object x, nb::object cosine, nb::object sine, int64_t heads, int64_t head_dim,
          bool interleaved, nb::object out) {
    const Array source("rope", "x", x, "f"), target("rope", "out", out, "f", true);
    const Array c("rope", "cos", cosine, "f"), s("rope", "sin", sine, "f");
    const int64_t width = heads * head_dim;
    if (width < 1 || source.size() % width != 0) {
        reject("rope", "x has shape " + source.describe() + ", required tokens of " +
                           std::to_string(heads) + " heads by " + std::to_string(head_dim));
    }
    require_size("rope", "out", target, source.size());
    const int64_t tokens = source.size() / width;
    if (tokens == 0) return;
    if (c.dimensions() < 1 || c.size() == 0) reject("rope", "cos is empty, required [..., half]");
    const int64_t half = c.shape(-1), turns = c.size() / half;
    require_size("rope", "sin", s, c.size());
    if (2 * half > head_dim || tokens % turns != 0) {
        reject("rope", "cos has shape " + c.describe() +
                           ", required one row per token and at most " +
                           std::to_string(head_dim / 2) + " columns");
    }
    in_pieces(tokens, width, [&](int64_t first, int64_t count) {
        for (int64_t t = first; t < first + count; ++t) {
            const int64_t at = t % turns * half;
            kernels().rope(source.data<const float>() + t * width, c.data<const float>() + at,
                           s.data<const float>() + at, heads, head_dim, half, interleaved,
                           target.data<float>() + t * width);
        }
    });
}

void check_cache(const char* where, const Array& k, const Array& v) {
    if (k.dimensions() != 4 || v.dimensions() != 4) {
        reject(where, "caches must be [batch, kv_heads, capacity, head_dim]");
    }
    for (int i = 0; i < 4; ++i) {
        if (k.shape(i) != v.shape(i)) {
            reject(where, "key cache has shape " + k.describe() + ", value cache " + v.describe() +
                              "; they must agree");
        }
    }
}

void attention(nb::object q, nb::object key_cache, nb::object value_cache, int64_t length,
               float scale, bool causal, int64_t offset, int64_t window, float softcap,
               nb::object mask, nb::object out) {
    const char* where = "attention";
    const Array query(where, "q", q, "f"), k(where, "key_cache", key_cache, "f");
    const Array v(where, "value_cache", value_cache, "f"), target(where, "out", out, "f", true);
    const Array hidden = optional_array(where, "mask", mask, "B?");
    check_cache(where, k, v);
    AttentionJob job;
    job.batch = k.shape(0), job.kv_heads = k.shape(1), job.capacity = k.shape(2),
    job.head_dim = k.shape(3);
    if (query.dimensions() < 3 || query.shape(0) != job.batch) {
        reject(where,
               "q has shape " + query.describe() + ", required [batch, queries, heads, head_dim]");
    }
    job.queries = query.shape(1), job.length = length;
    const int64_t token = job.batch * job.queries * job.head_dim;
    require_size(where, "out", target, query.size());
    if (token == 0 || job.kv_heads == 0) return;
    job.heads = query.size() / token;
    if (query.size() != token * job.heads || job.heads % job.kv_heads != 0) {
        reject(where, "q has shape " + query.describe() + ", required a multiple of " +
                          std::to_string(job.kv_heads) + " heads of " +
                          std::to_string(job.head_dim));
    }
    if (length < 1 || length > job.capacity) {
        reject(where, "length " + std::to_string(length) + ", required 1 to the capacity " +
                          std::to_string(job.capacity));
    }
    if (hidden.present()) require_size(where, "mask", hidden, job.batch * length);
    job.q = query.data<const float>(), job.k = k.data<const float>(), job.v = v.data<const float>();
    job.mask = hidden.present() ? hidden.data<const uint8_t>() : nullptr;
    job.out = target.data<float>();
    job.offset = offset, job.window = window, job.causal = causal;
    job.scale = scale, job.softcap = softcap;
    const int64_t rows = job.queries * (job.heads / job.kv_heads), heads = job.batch * job.kv_heads;
    job.tile = heads * ((rows + 5) / 6) >= 2 * thread_count() ? std::min<int64_t>(rows, 6) : 1;
    const nb::gil_scoped_release release;
    parallel(heads * ((rows + job.tile - 1) / job.tile),
             [&](int64_t task) { kernels().attention_task(job, task); });
}

// Copy new rows [batch, tokens, kv_heads, head_dim] to positions position .. position + tokens - 1.
void append_rows(const char* name, nb::handle cache, nb::handle rows, int64_t position) {
    const Array target("append_kv", name, cache, "f", true), source("append_kv", "rows", rows, "f");
    if (target.dimensions() != 4)
        reject("append_kv", "caches must be [batch, kv_heads, capacity, head_dim]");
    const int64_t batch = target.shape(0), heads = target.shape(1), capacity = target.shape(2);
    const int64_t d = target.shape(3), token = batch * heads * d;
    if (token == 0 || source.size() % token != 0) {
        reject("append_kv", "rows have shape " + source.describe() + ", cache " +
                                target.describe() +
                                "; required [batch, tokens, kv_heads, head_dim]");
    }
    const int64_t tokens = source.size() / token;
    if (position < 0 || position + tokens > capacity) {
        reject("append_kv", "positions up to " + std::to_string(position + tokens) +
                                ", required at most the capacity " + std::to_string(capacity));
    }
    const auto* from = source.data<const float>();
    auto* to = target.data<float>() + position * d;
    for (int64_t b = 0; b < batch; ++b) {
        for (int64_t t = 0; t < tokens; ++t) {
            for (int64_t h = 0; h < heads; ++h, from += d) {
                std::memcpy(to + ((b * heads + h) * capacity + t) * d, from,
                            static_cast<size_t>(4 * d));
            }
        }
    }
}

void append_kv(nb::object key_cache, nb::object value_cache, nb::object k, nb::object v,
               int64_t position) {
    append_rows("key_cache", key_cache, k, position);
    append_rows("value_cache", value_cache, v, position);
}

}  // namespace

void bind_nn(nb::module_& m) {
    m.def("rms_norm", &rms_norm);
    m.def("add_rms_norm", &add_rms_norm);
    m.def("layer_norm", &layer_norm, nb::arg("x"), nb::arg("weight"), nb::arg("bias").none(),
          nb::arg("epsilon"), nb::arg("out"));
    m.def("softmax", &softmax);
    m.def("rope", &rope);
    m.def("attention", &attention, nb::arg("q"), nb::arg("key_cache"), nb::arg("value_cache"),
          nb::arg("length"), nb::arg("scale"), nb::arg("causal"), nb::arg("offset"),
          nb::arg("window"), nb::arg("softcap"), nb::arg("mask").none(), nb::arg("out"));
    m.def("append_kv", &append_kv);
    m.def("silu", [](nb::object x, nb::object out) { unary("silu", x, out, kernels().silu); });
    m.def("gelu", [](nb::object x, nb::object out, bool tanh) {
        unary("gelu", x, out, tanh ? kernels().gelu_tanh : kernels().gelu_erf);
    });
    m.def("swiglu", [](nb::object gate, nb::object up, nb::object out) {
        binary("swiglu", gate, up, out, kernels().swiglu);
    });
    m.def("add", [](nb::object a, nb::object b, nb::object out) {
        binary("add", a, b, out, kernels().add);
    });
    m.def("mul", [](nb::object a, nb::object b, nb::object out) {
        binary("mul", a, b, out, kernels().mul);
    });
}

}  // namespace halfbyte
