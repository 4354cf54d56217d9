// Shared plain types: no code here may be inlined differently per instruction set.
#pragma once

#include <cstdint>

#include "layouts.hpp"

namespace halfbyte {

enum class Kind : int {
    float32,
    float16,
    bfloat16,
    float8_e4m3fn,
    float8_e5m2,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q1_0,
    Q2_0,
    TQ1_0,
    TQ2_0,
    MXFP4,
    NVFP4,
    IQ4_NL,
    IQ4_XS,
    IQ2_XXS,
    IQ2_XS,
    IQ2_S,
    IQ3_XXS,
    IQ3_S,
    IQ1_S,
    IQ1_M,
    affine,
};

enum class Number : int { none, float32, float16, bfloat16, uint8 };

// Values per step of every reader, and values per block of the legacy block kinds.
constexpr int kStep = 32;
constexpr int64_t kAlign = 64;

// One encoded weight [rows, columns]; pointers stay valid while the owner keeps its arrays.
struct WeightView {
    Kind kind = Kind::float32;
    const uint8_t* data = nullptr;
    int64_t rows = 0;
    int64_t columns = 0;
    int64_t row_bytes = 0;
    // Affine only: scales and zero points are [rows, groups].
    int bits = 0;
    int64_t group_size = 0;
    int64_t groups = 0;
    Number scale_type = Number::none;
    const void* scales = nullptr;
    Number zero_type = Number::none;
    const void* zero_points = nullptr;
    float implied_zero = 0.0f;
    const int32_t* group_index = nullptr;  // [columns], or null for column / group_size
};

inline int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// One output of a linear call: y[m, rows of weight] with row stride `stride`.
struct LinearOutput {
    WeightView weight;
    const float* bias = nullptr;
    float* y = nullptr;
    int64_t stride = 0;
};

// Everything that the tasks of one linear call read. Scratch is owned by the caller.
struct LinearJob {
    const LinearOutput* outputs = nullptr;
    int64_t output_count = 0;
    bool swiglu = false;  // two outputs: y of the first becomes silu(first) * second
    bool int8 = false;
    int64_t m = 0;
    int64_t columns = 0;
    int64_t padded = 0;  // columns rounded up to kStep
    const float* x = nullptr;
    float* packed = nullptr;        // [m, padded] float compute
    int8_t* codes = nullptr;        // [m, padded] int8 compute
    float* code_scales = nullptr;   // [m, padded / 32]
    int32_t* code_sums = nullptr;   // [m, padded / 32]: sums of codes
    float* code_offsets = nullptr;  // [m, padded / 32]: scale * sum
    int32_t* code_pairs = nullptr;  // the same, sums of the first and the last 16 codes as int16
    int64_t row_tile = 0;           // rows of a weight per task
    int64_t m_tile = 0;             // rows of x per task
};

// Whether 32 columns that start at a multiple of 32 share one scale.
static inline bool groups_are_regular(const WeightView& w) {
    return w.group_index == nullptr && (w.groups == 1 || w.group_size % kStep == 0);
}

// Whether an int8 call meets this weight with integer dot products, else in float32.
static inline bool meets_int8(const WeightView& w) {
    if (w.columns % kStep != 0) return false;
    if (w.kind == Kind::affine) return groups_are_regular(w);
    return w.kind >= Kind::Q4_0 && w.kind <= Kind::IQ4_XS && w.kind != Kind::NVFP4;
}

struct AttentionJob {
    const float* q = nullptr;  // [batch, queries, heads, head_dim]
    const float* k = nullptr;  // [batch, kv_heads, capacity, head_dim]
    const float* v = nullptr;
    const uint8_t* mask = nullptr;  // [batch, length], 0 hides a position
    float* out = nullptr;           // like q
    int64_t batch = 0, queries = 0, heads = 0, kv_heads = 0, head_dim = 0;
    int64_t capacity = 0, length = 0, offset = 0, window = 0;
    bool causal = true;
    float scale = 1.0f, softcap = 0.0f;
    int64_t tile = 1;  // query rows per task; a row is one (query, head of the group)
};

// The entry points of one instruction set.
struct KernelTable {
    const char* name;
    int64_t linear_rows;  // preferred multiple of weight rows per task
    void (*decode)(const WeightView&, int64_t row0, int64_t row1, float* out);
    void (*pack_rows)(const LinearJob&, int64_t m0, int64_t m1);
    void (*linear_task)(const LinearJob&, int64_t task);
    void (*rms_norm)(const float* x, const float* weight, float epsilon, int64_t rows, int64_t n,
                     float* out);
    void (*add)(const float* a, const float* b, int64_t n, float* out);
    void (*mul)(const float* a, const float* b, int64_t n, float* out);
    void (*layer_norm)(const float* x, const float* weight, const float* bias, float epsilon,
                       int64_t rows, int64_t n, float* out);
    void (*rope)(const float* x, const float* cos, const float* sin, int64_t heads, int64_t d,
                 int64_t half, bool interleaved, float* out);
    void (*attention_task)(const AttentionJob&, int64_t task);
    void (*silu)(const float* x, int64_t n, float* out);
    void (*swiglu)(const float* gate, const float* up, int64_t n, float* out);
    void (*gelu_erf)(const float* x, int64_t n, float* out);
    void (*gelu_tanh)(const float* x, int64_t n, float* out);
    void (*softmax)(const float* x, int64_t rows, int64_t n, float* out);
    double (*fma_loop)(int64_t rounds);  // for benchmarks: operations done at full speed
};

// Aligned memory owned by the calling thread; slot contents last until the next call per slot.
enum class Scratch : int { panel, scores, tile, packed, codes, count };
void* thread_scratch(Scratch slot, int64_t bytes);

// Points of a kind with a codebook, [points, values of a point]; set before its first use.
const int8_t* codebook_values(Kind kind);

extern const KernelTable kScalarTable;
#if defined(HB_HAS_X86)
extern const KernelTable kAvx2Table;
#endif
#if defined(HB_HAS_AVX512)
extern const KernelTable kAvx512Table;
#endif
#if defined(HB_HAS_NEON)
extern const KernelTable kNeonTable;
#endif

}  // namespace halfbyte
