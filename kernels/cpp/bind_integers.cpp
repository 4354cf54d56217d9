#include <algorithm>
#include <limits>

#include "arrays.hpp"
#include "dispatch.hpp"
#include "integers.hpp"
#include "pool.hpp"

namespace halfbyte {
namespace {

constexpr int64_t kParallelBytes = 1 << 15;
// Kinds of output: saturated bytes, float32, the int32 sums.
constexpr int kFloat = 1, kInt = 2;

// How the sums of a call are finished; the arrays that it points into.
struct Finish {
    Array offset, weight_zero, scale, shift, out;
    Requantize plain;

    Finish(const char* where, nb::handle offsets, nb::handle weight_zeros, nb::handle scales,
           nb::handle shifts, float low, float high, int zero, bool is_signed, nb::handle result,
           int kind, int64_t channels)
        : offset(where, "offset", offsets, "i"),
          weight_zero(optional_array(where, "weight_zero", weight_zeros, "i")),
          scale(where, "scale", scales, "f"),
          shift(optional_array(where, "shift", shifts, "f")),
          out(where, "out", result,
              kind == kFloat ? "f"
              : kind == kInt ? "i"
                             : "B",
              true) {
        require_size(where, "offset", offset, channels);
        require_size(where, "scale", scale, channels);
        if (shift.present()) require_size(where, "shift", shift, channels);
        if (weight_zero.present()) require_size(where, "weight_zero", weight_zero, channels);
        plain.scale = scale.data<const float>();
        plain.shift = shift.present() ? shift.data<const float>() : nullptr;
        plain.low = low;
        plain.high = high;
        plain.zero = static_cast<float>(zero);
        plain.flip = is_signed ? 0x80 : 0;
        plain.to_float = kind == kFloat;
        plain.to_int = kind == kInt;
        plain.out = out.data<void>();
    }
    const int32_t* zeros() const {
        return weight_zero.present() ? weight_zero.data<const int32_t>() : nullptr;
    }
};

void pack_b(nb::object b, int64_t n, int64_t k, bool b_rows, nb::object out) {
    const char* where = "pack_bytes";
    const Array source(where, "b", b, "B"), target(where, "out", out, "B", true);
    const int64_t depth = round_up(k, 4);
    require_size(where, "b", source, n * k);
    require_size(where, "out", target, round_up(n, integers().panel) * depth);
    integers().pack_b(source.data<const int8_t>(), n, k, depth, b_rows, target.data<int8_t>());
}

// level: how many words of the weights are summed in 16 bits, and the rest: start, places, words.
void byte_product(nb::object a, nb::object b, int64_t n, nb::sequence level, nb::object offset,
                  nb::object weight_zero, nb::object scale, nb::object shift, float low, float high,
                  int zero, bool is_signed, int kind, nb::object out) {
    const char* where = "byte_product";
    const Array left(where, "a", a, "B"), right(where, "b", b, "B");
    if (left.dimensions() != 2 || left.shape(1) % 4 != 0)
        reject(where, "a has shape " + left.describe() + ", required [m, a multiple of 4]");
    const Finish finish(where, offset, weight_zero, scale, shift, low, high, zero, is_signed, out,
                        kind, n);
    ByteProductJob job;
    job.a = left.data<const uint8_t>();
    job.b = right.data<const int8_t>();
    job.m = left.shape(0);
    job.n = n;
    job.level = nb::cast<int>(level[0]);
    const Array start(optional_array(where, "rest_start", level[1], "i"));
    const Array places(optional_array(where, "rest_places", level[2], "i"));
    const Array words(optional_array(where, "rest_words", level[3], "B"));
    job.depth = left.shape(1);
    const int64_t panel = integers().panel;
    require_size(where, "b", right, round_up(n, panel) * job.depth);
    if (start.present()) {
        require_size(where, "rest_start", start, (n + panel - 1) / panel + 1);
        require_size(where, "rest_words", words, places.size() * 4 * panel);
        job.rest_start = start.data<const int32_t>();
        job.rest_places = places.data<const int32_t>();
        job.rest_words = words.data<const uint8_t>();
    }
    require_size(where, "out", finish.out, job.m * n);
    job.offset = finish.offset.data<const int32_t>();
    job.weight_zero = finish.zeros();
    job.finish = finish.plain;
    const int64_t panels = round_up(n, panel) / panel, threads = thread_count();
    const int64_t pieces = threads == 1 ? 1 : std::min(panels, 4 * threads);
    job.columns = (panels + pieces - 1) / pieces * panel;
    job.rows = threads == 1 || pieces >= 2 * threads ? job.m
                                                     : round_up((job.m + threads - 1) / threads, 8);
    job.rows = std::max<int64_t>(1, job.rows);
    if (job.m == 0 || n == 0) return;
    const nb::gil_scoped_release release;
    const int64_t tasks = (n + job.columns - 1) / job.columns * ((job.m + job.rows - 1) / job.rows);
    parallel(tasks, [&](int64_t task) { integers().product_task(job, task); });
}

// sizes: batch, in_channels, h, w, out_channels, oh, ow, groups, kh, kw, stride_h, stride_w,
// dilation_h, dilation_w, pad_top, pad_left.
ByteConvJob conv_job(const char* where, nb::sequence sizes) {
    if (nb::len(sizes) != 16) reject(where, "required 16 sizes");
    ByteConvJob job;
    int64_t* const fields[] = {&job.batch,        &job.in_channels, &job.h,        &job.w,
                               &job.out_channels, &job.oh,          &job.ow,       &job.groups,
                               &job.kh,           &job.kw,          &job.stride_h, &job.stride_w,
                               &job.dilation_h,   &job.dilation_w,  &job.pad_top,  &job.pad_left};
    int index = 0;
    for (int64_t* field : fields) {
        *field = nb::cast<int64_t>(sizes[index++]);
        if (*field < 0) reject(where, "a size is negative");
    }
    const bool divides =
        job.groups > 0 && job.in_channels % job.groups == 0 && job.out_channels % job.groups == 0;
    if (!divides || job.stride_h < 1 || job.stride_w < 1)
        reject(where, "groups do not divide the channels, or a stride is 0");
    return job;
}

// Pixels and channels per task. Weights are read once for each tile of pixels, pixels gathered
// once for each part of the channels.
void split_conv(ByteConvJob& job) {
    const int64_t panel = integers().panel, channels = job.out_channels / job.groups;
    const int64_t panels = (job.oh * job.ow + panel - 1) / panel, images = job.batch * job.groups;
    const int64_t threads = thread_count();
    const int64_t wanted = threads == 1 ? 1 : std::max<int64_t>(1, 4 * threads / images);
    const int64_t parts = panels >= 2 * wanted ? 1 : std::min(wanted, (channels + 31) / 32);
    const int64_t tiles = std::min(panels, std::max<int64_t>(1, wanted / parts));
    job.columns = (panels + tiles - 1) / tiles * panel;
    job.rows = round_up((channels + parts - 1) / parts, 8);
}

// Take the weights and, where they have any, what they leave to a second multiply-add.
struct Filters {
    Array weight, start, rest, ones;

    Filters(const char* where, nb::sequence given)
        : weight(where, "weight", given[0], "B"),
          start(optional_array(where, "rest_start", given[1], "i")),
          rest(optional_array(where, "rest", given[2], "i")),
          ones(optional_array(where, "ones", given[3], "B")) {}

    void put(const char* where, ByteConvJob& job) const {
        require_size(where, "weight", weight, job.out_channels * job.depth);
        job.weight = weight.data<const int8_t>();
        if (start.present()) {
            require_size(where, "rest_start", start, job.out_channels + 1);
            job.rest_start = start.data<const int32_t>();
            job.rest = rest.data<const int32_t>();
        }
        if (job.weight_zero) {
            require_size(where, "ones", ones, job.depth);
            job.ones = ones.data<const uint8_t>();
        }
    }
};

// The input as the kernels gather it, four bytes a word.
void spread_input(ByteConvJob& job) {
    constexpr int64_t kSlack = 64;
    job.down = (job.oh - 1) * job.stride_h + (job.kh - 1) * job.dilation_h + 1;
    job.across = (job.ow - 1) * job.stride_w + (job.kw - 1) * job.dilation_w + 1;
    const int64_t tasks = job.batch * job.groups * job.planes;
    const int64_t bytes = tasks * job.down * job.across * (job.by_taps ? 1 : 4);
    job.spread = static_cast<uint8_t*>(thread_scratch(Scratch::packed, bytes + kSlack));
    parallel_if_worth(bytes * 16, tasks,
                      [&](int64_t task) { integers().conv_input_task(job, task); });
}

void run_conv(ByteConvJob& job, bool depthwise) {
    const nb::gil_scoped_release release;
    const int64_t operations = 2 * job.batch * job.out_channels * job.oh * job.ow * job.depth;
    if (depthwise) {
        return parallel_if_worth(operations, job.batch * job.out_channels,
                                 [&](int64_t task) { integers().depthwise_task(job, task); });
    }
    spread_input(job);
    split_conv(job);
    const int64_t channels = job.out_channels / job.groups, pixels = job.oh * job.ow;
    const int64_t tasks = (channels + job.rows - 1) / job.rows *
                          ((pixels + job.columns - 1) / job.columns) * job.batch * job.groups;
    parallel_if_worth(operations / 4, tasks,
                      [&](int64_t task) { integers().conv_task(job, task); });
}

// filters: weight, rest_start, rest, ones, whether they lie by taps, are depthwise, are doubled.
void byte_conv(nb::object x, bool x_signed, int x_zero, nb::sequence filters, nb::object offset,
               nb::object weight_zero, nb::object scale, nb::object shift, float low, float high,
               int zero, bool is_signed, int kind, nb::sequence sizes, nb::object out) {
    const char* where = "byte_conv";
    ByteConvJob job = conv_job(where, sizes);
    const Array source(where, "x", x, "B");
    const Finish finish(where, offset, weight_zero, scale, shift, low, high, zero, is_signed, out,
                        kind, job.out_channels);
    const int64_t in_group = job.in_channels / job.groups;
    job.by_taps = nb::cast<bool>(filters[4]);
    const bool depthwise = nb::cast<bool>(filters[5]);
    job.doubled = nb::cast<bool>(filters[6]);
    if ((depthwise && in_group != 1) || (job.by_taps && job.dilation_w != 1))
        reject(where, "the filters do not lie as their kind requires");
    job.planes = job.by_taps ? in_group : (in_group + 3) / 4;
    job.depth = depthwise     ? job.kh * job.kw
                : job.by_taps ? in_group * job.kh * round_up(job.kw, 4)
                              : job.planes * 4 * job.kh * job.kw;
    require_size(where, "x", source, job.batch * job.in_channels * job.h * job.w);
    require_size(where, "out", finish.out, job.batch * job.out_channels * job.oh * job.ow);
    job.x = source.data<const uint8_t>();
    job.x_flip = x_signed ? 0x80 : 0;
    job.x_zero = static_cast<uint8_t>(x_zero);
    job.offset = finish.offset.data<const int32_t>();
    job.weight_zero = finish.zeros();
    job.finish = finish.plain;
    const Filters held(where, filters);
    if (depthwise) job.weight_zero = nullptr;
    held.put(where, job);
    job.weight_zero = finish.zeros();
    if (finish.out.size()) run_conv(job, depthwise);
}

template <class Function>
void in_pieces(int64_t size, const Function& function) {
    const nb::gil_scoped_release release;
    parallel((size + kParallelBytes - 1) / kParallelBytes, [&](int64_t task) {
        const int64_t first = task * kParallelBytes;
        function(first, std::min(kParallelBytes, size - first));
    });
}

void quantize(nb::object x, float scale, int zero, bool is_signed, nb::object out) {
    const Array source("quantize", "x", x, "f"), target("quantize", "out", out, "B", true);
    require_size("quantize", "out", target, source.size());
    in_pieces(source.size(), [&](int64_t first, int64_t count) {
        integers().quantize(source.data<const float>() + first, count, scale,
                            static_cast<float>(zero), is_signed ? 0x80 : 0,
                            target.data<uint8_t>() + first);
    });
}

void dequantize(nb::object x, float scale, int zero, bool is_signed, nb::object out) {
    const Array source("dequantize", "x", x, "B"), target("dequantize", "out", out, "f", true);
    require_size("dequantize", "out", target, source.size());
    in_pieces(source.size(), [&](int64_t first, int64_t count) {
        integers().dequantize(source.data<const uint8_t>() + first, count, scale,
                              static_cast<float>(zero), is_signed ? 0x80 : 0,
                              target.data<float>() + first);
    });
}

nb::tuple range(nb::object x) {
    const Array source("range", "x", x, "f");
    float low = 0.0f, high = 0.0f;
    integers().range(source.data<const float>(), source.size(), &low, &high);
    return nb::make_tuple(low, high);
}

// scales and zeros: of a, b and the result; zero points of unsigned bytes.
void add_bytes(nb::object a, nb::object b, bool a_signed, bool b_signed, nb::sequence scales,
               nb::sequence zeros, float low, float high, bool is_signed, nb::object out) {
    const char* where = "add_bytes";
    const Array left(where, "a", a, "B"), right(where, "b", b, "B");
    const Array target(where, "out", out, "B", true);
    // b may be one row that is added to all rows of a.
    const int64_t row = right.size();
    if (row < 1 || left.size() % row) reject(where, "b is neither as large as a nor one row of it");
    require_size(where, "out", target, left.size());
    ByteAdd job;
    job.scale_a = nb::cast<float>(scales[0]);
    job.scale_b = nb::cast<float>(scales[1]);
    job.unit = nb::cast<float>(scales[2]);
    job.zero_a = nb::cast<float>(zeros[0]);
    job.zero_b = nb::cast<float>(zeros[1]);
    job.flip_a = a_signed ? 0x80 : 0;
    job.flip_b = b_signed ? 0x80 : 0;
    job.finish.low = low;
    job.finish.high = high;
    job.finish.zero = nb::cast<float>(zeros[2]);
    job.finish.flip = is_signed ? 0x80 : 0;
    if (row < left.size()) {
        const nb::gil_scoped_release release;
        const int64_t rows = left.size() / row;
        const int64_t each = std::max<int64_t>(1, kParallelBytes / row);
        parallel((rows + each - 1) / each, [&](int64_t task) {
            for (int64_t r = task * each; r < std::min(rows, (task + 1) * each); ++r)
                integers().add(job, left.data<const uint8_t>() + r * row,
                               right.data<const uint8_t>(), row, target.data<uint8_t>() + r * row);
        });
        return;
    }
    in_pieces(left.size(), [&](int64_t first, int64_t count) {
        integers().add(job, left.data<const uint8_t>() + first, right.data<const uint8_t>() + first,
                       count, target.data<uint8_t>() + first);
    });
}

// out[i] = table[i % channels][x[i]]
template <class T>
void look_up_channels(const T* table, const uint8_t* x, int64_t rows, int64_t channels, T* out) {
    for (int64_t row = 0; row < rows; ++row, x += channels, out += channels) {
        for (int64_t c = 0; c < channels; ++c) out[c] = table[256 * c + x[c]];
    }
}

// Tables of 256 bytes or floats, one or one for each channel (the last axis).
void look_up(nb::object table, nb::object x, bool floats, nb::object out) {
    const char* where = "look_up_bytes";
    const Array held(where, "table", table, floats ? "f" : "B"), source(where, "x", x, "B");
    const Array target(where, "out", out, floats ? "f" : "B", true);
    const int64_t channels = held.size() / 256, size = source.size();
    if (channels < 1 || held.size() % 256 || size % channels)
        reject(where, "the tables are not of 256 entries for each channel");
    require_size(where, "out", target, size);
    const int64_t step = std::max<int64_t>(1, kParallelBytes / channels) * channels;
    const nb::gil_scoped_release release;
    parallel((size + step - 1) / step, [&](int64_t task) {
        const int64_t first = task * step, count = std::min(step, size - first);
        const uint8_t* from = source.data<const uint8_t>() + first;
        if (floats) {
            look_up_channels(held.data<const float>(), from, count / channels, channels,
                             target.data<float>() + first);
        } else if (channels == 1) {
            integers().look_up(held.data<const uint8_t>(), from, count,
                               target.data<uint8_t>() + first);
        } else {
            look_up_channels(held.data<const uint8_t>(), from, count / channels, channels,
                             target.data<uint8_t>() + first);
        }
    });
}

// weights: packed, level, sums, zero points or None, scales. h and c are overwritten.
void byte_lstm(nb::object gates, nb::sequence weights, nb::object h, nb::object c, bool reverse,
               nb::object y) {
    const char* where = "byte_lstm";
    const Array share(where, "gates", gates, "f"), packed(where, "weights", weights[0], "B");
    const Array sums(where, "sums", weights[2], "i"), scale(where, "scale", weights[4], "f");
    const Array zero = optional_array(where, "weight_zero", weights[3], "i");
    const Array hidden(where, "h", h, "f", true), cell(where, "c", c, "f", true);
    const Array out(where, "y", y, "f", true);
    if (share.dimensions() != 3 || share.shape(2) % 4)
        reject(where, "gates has shape " + share.describe() + ", required [steps, batch, 4 n]");
    ByteLstmJob job;
    job.steps = share.shape(0);
    job.batch = share.shape(1);
    job.hidden = share.shape(2) / 4;
    const int64_t size = job.batch * job.hidden, wide = 4 * job.hidden;
    ByteProductJob& product = job.product;
    product.b = packed.data<const int8_t>();
    product.level = nb::cast<int>(weights[1]);
    product.n = product.columns = wide;
    product.depth = round_up(job.hidden, 4);
    product.finish.to_float = true;
    product.finish.low = -std::numeric_limits<float>::infinity();
    product.finish.high = std::numeric_limits<float>::infinity();
    require_size(where, "weights", packed, round_up(wide, integers().panel) * product.depth);
    require_size(where, "sums", sums, wide);
    require_size(where, "scale", scale, wide);
    if (zero.present()) {
        require_size(where, "weight_zero", zero, wide);
        product.weight_zero = zero.data<const int32_t>();
    }
    require_size(where, "h", hidden, size);
    require_size(where, "c", cell, size);
    require_size(where, "y", out, job.steps * size);
    job.gates = share.data<const float>();
    job.scale = scale.data<const float>();
    job.sums = sums.data<const int32_t>();
    job.h = hidden.data<float>();
    job.c = cell.data<float>();
    job.y = out.data<float>();
    job.reverse = reverse;
    if (!size) return;
    const nb::gil_scoped_release release;
    integers().lstm(job);
}

}  // namespace

void bind_integers(nb::module_& m) {
    m.def("integer_panel", [] { return integers().panel; });
    m.def("integer_shift", [] { return integers().shift; });
    m.def("integers_saturate", [] { return integers().saturates; });
    m.def("pack_bytes", &pack_b);
    m.def("byte_product", &byte_product, nb::arg("a"), nb::arg("b"), nb::arg("n"), nb::arg("level"),
          nb::arg("offset"), nb::arg("weight_zero").none(), nb::arg("scale"),
          nb::arg("shift").none(), nb::arg("low"), nb::arg("high"), nb::arg("zero"),
          nb::arg("is_signed"), nb::arg("kind"), nb::arg("out"));
    m.def("byte_conv", &byte_conv, nb::arg("x"), nb::arg("x_signed"), nb::arg("x_zero"),
          nb::arg("filters"), nb::arg("offset"), nb::arg("weight_zero").none(), nb::arg("scale"),
          nb::arg("shift").none(), nb::arg("low"), nb::arg("high"), nb::arg("zero"),
          nb::arg("is_signed"), nb::arg("kind"), nb::arg("sizes"), nb::arg("out"));
    m.def("quantize_bytes", &quantize);
    m.def("dequantize_bytes", &dequantize);
    m.def("value_range", &range);
    m.def("add_bytes", &add_bytes);
    m.def("look_up_bytes", &look_up);
    m.def("byte_lstm", &byte_lstm);
}

}  // namespace halfbyte
