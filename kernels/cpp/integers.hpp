// Plain types of the integer kernels: products of 8-bit activations and weights with 32-bit sums.
// As types.hpp: nothing here is inlined per instruction set.
#pragma once

#include <cstdint>

#include "types.hpp"

namespace halfbyte {

// What becomes of sum[channel]: value = sum * scale[channel] + shift[channel], clipped to
// [low, high]; stored as float, or as byte: nearest(value) + zero. Scales hold 1 / output scale.
struct Requantize {
    const float* scale = nullptr;  // [channels]
    const float* shift = nullptr;  // [channels] or null: 0
    float low = 0.0f, high = 0.0f;
    float zero = 0.0f;                      // of the output, already unsigned
    uint8_t flip = 0;                       // 0x80 where the output bytes are signed
    bool to_float = false, to_int = false;  // to_int: the sums themselves, as int32
    void* out = nullptr;                    // float or uint8
};

// Convolution of unsigned bytes [batch, channels, h, w] with signed weights. The sums are corrected
// by `offset`: -x_zero * (sum of the channel's weights) + bias.
struct ByteConvJob {
    const uint8_t* x = nullptr;
    uint8_t x_flip = 0;                   // 0x80 where x holds signed bytes
    uint8_t x_zero = 0;                   // after the flip: what padding holds
    const int8_t* weight = nullptr;       // [out_channels, depth], see `by_taps`
    const int32_t* rest_start = nullptr;  // [out_channels + 1], see Rest of int8/product.hpp
    const int32_t* rest = nullptr;
    bool doubled = false;                  // two words of the weights may be summed in 16 bits
    const uint8_t* ones = nullptr;         // [depth]: 1 where a weight is, for weight_zero
    const int32_t* offset = nullptr;       // [out_channels]
    const int32_t* weight_zero = nullptr;  // [out_channels] or null: 0
    Requantize finish;
    int64_t batch = 0, in_channels = 0, h = 0, w = 0;
    int64_t out_channels = 0, oh = 0, ow = 0, groups = 1;
    int64_t kh = 1, kw = 1, stride_h = 1, stride_w = 1, dilation_h = 1, dilation_w = 1;
    int64_t pad_top = 0, pad_left = 0;
    int64_t depth = 0;
    // Fours of the depth: channels of one tap [in / 4][kh][kw][4], or neighbouring taps of one
    // channel [in][kh][kw / 4][4]. `spread` holds the padded input [batch, groups, planes, rows,
    // across] with 4 bytes a pixel (channels) or 1 (taps).
    bool by_taps = false;
    uint8_t* spread = nullptr;
    int64_t planes = 0, down = 0, across = 0;
    int64_t columns = 0;  // output pixels per task
    int64_t rows = 0;     // output channels per task
};

// y[m, n] = a[m, k] b[k, n] with b packed in panels.
struct ByteProductJob {
    const uint8_t* a = nullptr;            // [m, depth], unsigned, depth a multiple of 4
    const int8_t* b = nullptr;             // packed, see int8/product.hpp
    const int32_t* offset = nullptr;       // [n]
    const int32_t* weight_zero = nullptr;  // [n] or null: 0
    Requantize finish;
    // Per panel what the weights leave to a second multiply-add, see Rest of int8/product.hpp.
    const int32_t *rest_start = nullptr, *rest_places = nullptr;
    const uint8_t* rest_words = nullptr;
    int level = 1;  // how many words of the weights may be summed in 16 bits: 0, 1 or 2
    int64_t m = 0, n = 0, depth = 0;
    int64_t rows = 0, columns = 0;  // per task
};

// One direction of an LSTM; `product` holds the packed recurrent weights.
struct ByteLstmJob {
    ByteProductJob product;
    const float* gates = nullptr;  // [steps, batch, 4 * hidden]: the inputs' share, biases included
    const float* scale = nullptr;  // [4 * hidden]: of the weights
    const int32_t* sums = nullptr;  // [4 * hidden]: of the weights
    float* h = nullptr;             // [batch, hidden]: the first state, then the last
    float* c = nullptr;
    float* y = nullptr;  // [steps, batch, hidden]
    int64_t steps = 0, batch = 0, hidden = 0;
    bool reverse = false;
};

// Sum of two quantized arrays: clip((a - zero_a) * scale_a + (b - zero_b) * scale_b) / unit, each
// step rounded to float as the operators one by one would. finish: limits and the output's zero.
struct ByteAdd {
    float scale_a = 1.0f, scale_b = 1.0f, zero_a = 0.0f, zero_b = 0.0f, unit = 1.0f;
    uint8_t flip_a = 0, flip_b = 0;
    Requantize finish;
};

// Entry points of one instruction set, beside KernelTable.
struct IntegerTable {
    int64_t panel;   // columns of a packed panel of b
    int64_t shift;   // taken off unsigned bytes: offsets carry shift * (sum of weights)
    bool saturates;  // whether sums of two products of 255 and large weights do
    void (*pack_b)(const int8_t* b, int64_t n, int64_t k, int64_t depth, bool b_rows, int8_t* out);
    void (*product_task)(const ByteProductJob&, int64_t task);
    void (*conv_input_task)(const ByteConvJob&, int64_t task);
    void (*conv_task)(const ByteConvJob&, int64_t task);
    void (*depthwise_task)(const ByteConvJob&, int64_t task);
    // x / scale + zero to bytes, rounded half to even and saturated.
    void (*quantize)(const float* x, int64_t n, float scale, float zero, uint8_t flip,
                     uint8_t* out);
    void (*dequantize)(const uint8_t* x, int64_t n, float scale, float zero, uint8_t flip,
                       float* out);
    void (*range)(const float* x, int64_t n, float* low, float* high);
    void (*add)(const ByteAdd&, const uint8_t* a, const uint8_t* b, int64_t n, uint8_t* out);
    // Bytes through a table of 256.
    void (*look_up)(const uint8_t* table, const uint8_t* x, int64_t n, uint8_t* out);
    void (*lstm)(const ByteLstmJob&);
};

const IntegerTable& integers();

extern const IntegerTable kScalarIntegers;
#if defined(HB_HAS_X86)
extern const IntegerTable kAvx2Integers;
#endif
#if defined(HB_HAS_AVX512)
extern const IntegerTable kAvx512Integers;
#endif
#if defined(HB_HAS_NEON)
extern const IntegerTable kNeonIntegers;
#endif

}  // namespace halfbyte
