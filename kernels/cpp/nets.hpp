// Plain types of the kernels for general graphs: convolution, matrix products of dense arrays,
// elementwise functions, pooling, recurrent layers. As types.hpp: nothing inlined per set.
#pragma once

#include <cstdint>

#include "types.hpp"

namespace halfbyte {

// Elementwise functions of one input; also what may follow a convolution or a product.
enum class Unary : int {
    none,
    relu,
    leaky_relu,  // alpha
    clip,        // alpha to beta
    sigmoid,
    hard_sigmoid,  // alpha x + beta
    hard_swish,
    swish,  // x sigmoid(alpha x)
    tanh,
    gelu_erf,
    gelu_tanh,
    elu,  // alpha
    softplus,
    mish,
    exp,
    log,
    sqrt,
    erf,
    abs,
    neg,
    reciprocal,
    floor,
    ceil,
    round,
    count
};

enum class Binary : int { add, sub, mul, div, max, min, count };

// out = function(x + bias + residual)
struct Finish {
    Unary function = Unary::none;
    float alpha = 0.0f, beta = 0.0f;
};

// Convolution of images, its transpose, and (through PoolJob) windows over planes.
struct ConvJob {
    const float* x = nullptr;         // [batch, in_channels, h, w]
    const float* weight = nullptr;    // packed, see conv/
    const float* bias = nullptr;      // [out_channels]
    const float* residual = nullptr;  // like out
    float* out = nullptr;             // [batch, out_channels, oh, ow]
    Finish finish;
    int64_t batch = 0, in_channels = 0, h = 0, w = 0;
    int64_t out_channels = 0, oh = 0, ow = 0, groups = 1;
    int64_t kh = 1, kw = 1, stride_h = 1, stride_w = 1, dilation_h = 1, dilation_w = 1;
    int64_t pad_top = 0, pad_left = 0;
    int64_t columns = 0;  // output pixels (winograd: tiles) per task
    int64_t rows = 0;     // output channels (lanes: blocks of them) per task
    bool lanes = false;   // depthwise: channels side by side in the lanes
};

// c = finish(a b): each task does `rows` rows by `columns` columns of c.
struct ProductJob {
    const float* a = nullptr;         // [m, k], row stride lda
    const float* b = nullptr;         // [k, n] with row stride ldb, or [n, k] if b_rows, or packed
    float* c = nullptr;               // [m, n]
    const float* bias = nullptr;      // [n]
    const float* residual = nullptr;  // like c
    Finish finish;
    int64_t m = 0, n = 0, k = 0, lda = 0, ldb = 0;
    bool b_rows = false, b_packed = false;
    int64_t rows = 0, columns = 0;  // per task
};

// Windows over planes: `window` has x, out, sizes, strides, pads, and the planes in `batch`.
struct PoolJob {
    ConvJob window;
    bool average = false;
    const float* row_counts = nullptr;     // [oh]: cells that count, average only
    const float* column_counts = nullptr;  // [ow]
};

// One direction of an LSTM or GRU over whole sequences.
struct RecurrentJob {
    float* gates = nullptr;         // [steps, batch, gates * hidden]: x W^T + biases; overwritten
    const float* weight = nullptr;  // packed R^T; GRU: of the gates z and r
    const float* weight_last = nullptr;  // GRU: of h
    const float* peepholes = nullptr;    // LSTM: [3 * hidden]: input, output, forget
    const float* h_bias = nullptr;       // GRU with linear_before_reset: [hidden]
    float* h = nullptr;                  // [batch, hidden]: first state in, last out
    float* c = nullptr;                  // LSTM only
    float* y = nullptr;                  // step s at y + s * y_step, batch b at + b * hidden
    int64_t steps = 0, batch = 0, hidden = 0, y_step = 0;
    bool reverse = false, linear_before_reset = false;
};

// Entry points of one instruction set, beside KernelTable.
struct NetTable {
    int64_t lanes, gemm_rows, gemm_columns;
    int64_t (*packed_a_size)(int64_t m, int64_t k);
    int64_t (*packed_b_size)(int64_t n, int64_t k);
    void (*pack_a)(const float* a, int64_t m, int64_t k, float* out);
    void (*pack_b)(const float* b, int64_t n, int64_t k, bool b_rows, float* out);
    void (*product_task)(const ProductJob&, int64_t task);
    void (*conv_gemm_task)(const ConvJob&, int64_t task);
    void (*conv_rows_task)(const ConvJob&, int64_t task);
    void (*depthwise_task)(const ConvJob&, int64_t task);
    void (*winograd_weights)(const float* w, int64_t out_channels, int64_t in_channels, float* out);
    void (*winograd_task)(const ConvJob&, int64_t task);
    void (*transposed_task)(const ConvJob&, int64_t task);
    void (*unary)(const Finish&, const float* x, int64_t n, float* out);
    // Strides of a and b along the row: 0 or 1.
    void (*binary)(Binary, const float* a, int64_t step_a, const float* b, int64_t step_b,
                   int64_t n, float* out);
    void (*finish)(const Finish&, const float* x, float bias, const float* residual, int64_t n,
                   float* out);
    void (*pool_task)(const PoolJob&, int64_t task);
    void (*lstm)(const RecurrentJob&);
    void (*gru)(const RecurrentJob&);
    // Sum (or maximum) over the middle axis of [outer, n, inner].
    void (*reduce)(bool maximum, const float* x, int64_t n, int64_t inner, float* out);
    void (*softmax_columns)(const float* x, int64_t n, int64_t inner, int64_t from, int64_t to,
                            float* out);
    void (*normalize)(const float* x, int64_t n, float scale, float shift, float epsilon,
                      const Finish&, float* out);
    void (*transpose)(const float* x, int64_t rows, int64_t columns, int64_t x_stride,
                      int64_t out_stride, float* out);
    void (*resample)(const float* x, int64_t inner, const int64_t* indices, const float* weights,
                     int64_t m, int64_t taps, float* out);
};

extern const NetTable kScalarNets;
#if defined(HB_HAS_X86)
extern const NetTable kAvx2Nets;
#endif
#if defined(HB_HAS_AVX512)
extern const NetTable kAvx512Nets;
#endif
#if defined(HB_HAS_NEON)
extern const NetTable kNeonNets;
#endif

}  // namespace halfbyte
