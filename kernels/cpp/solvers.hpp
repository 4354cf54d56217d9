// Plain types of the kernels for calibrated quantization. As types.hpp: nothing inlined per set.
// Matrices of products lie packed: panels of `panel` columns, each [depth, panel], zeros beyond.
#pragma once

#include <cstdint>

#include "types.hpp"

namespace halfbyte {

// Rows of float32 inputs whose products are summed before they go to float64.
constexpr int64_t kGramDepth = 128;
// Sides of the blocks of a product, multiples of every panel; also the step of a factorisation.
constexpr int64_t kSolveBlock = 96;
// Columns rounded between two updates of all later columns.
constexpr int64_t kSweepBlock = 128;
constexpr int64_t kSweepRows = 96;  // rows of a weight per task, at most

// total[rows, columns] += a^T b over packed chunks of kGramDepth (the last may be less).
struct GramJob {
    const float* a = nullptr;
    const float* b = nullptr;
    double* total = nullptr;
    int64_t rows = 0, columns = 0, depth = 0;
    int64_t a_width = 0, b_width = 0;     // rows and columns rounded up to panels
    int64_t block_columns = kSolveBlock;  // per task, with kSolveBlock rows
    bool mirror = false;                  // copy what is above the diagonal below it
    bool symmetric = false;               // a is b: nothing below the diagonal
};

// One step of the elimination of [A | I] in place: A = L L^T becomes L^-1. Sizes are multiples of
// kSolveBlock; x holds the lower triangle of A right of the columns done, L^-1 left of them.
struct FactorJob {
    double* x = nullptr;        // [size, size]
    double* inverse = nullptr;  // [block, block] of the diagonal block, then transposed and packed
    double* packed = nullptr;   // [block, size]: rows of L^-1, then L^T
    int64_t size = 0, step = 0;
};

// c[row0..row1, column0..column1] += a b; a, b packed from row 0 and column 0 over one block of k.
struct DoubleProductJob {
    const double* a = nullptr;
    const double* b = nullptr;
    double* c = nullptr;
    int64_t stride = 0, depth = 0;
    int64_t row0 = 0, row1 = 0, column0 = 0, column1 = 0;  // multiples of kSolveBlock
    bool upper = false;                                    // only blocks that touch the diagonal or
                                                           // lie above it
};

// What a column of codes is rounded to: ColumnGrid of column_grid.py.
struct GridView {
    const float* scale = nullptr;    // [groups, rows]
    const float* zero = nullptr;     // or null
    const float* offset = nullptr;   // or null
    const int32_t* group = nullptr;  // [columns]
    const float* levels = nullptr;   // [count] or null
    const float* bounds = nullptr;   // [count - 1]
    int64_t count = 0, rows = 0;
    float low = 0.0f, high = 0.0f;
    bool fractional = false;
    // Values that are given, [columns from first_chosen, rows]; then only `rows` is read beside.
    const float* chosen = nullptr;
    int64_t first_chosen = 0;
};

// GPTQ over columns first..last, at most kSweepBlock of them.
struct SweepJob {
    GridView grid;
    float* weights = nullptr;       // [columns, rows]
    int16_t* codes = nullptr;       // [columns, rows], or null with chosen values
    double* errors = nullptr;       // [rows], added to
    const float* factor = nullptr;  // [columns, columns]
    const float* cross = nullptr;   // the same or null
    const float* within = nullptr;  // packed: factor (then cross) over first..last
    const float* later = nullptr;   // packed: over last..columns
    int64_t columns = 0, rows = 0, first = 0, last = 0;
    int64_t tile = kSweepRows;  // rows per task
};

// Coordinate descent on codes.
struct DescendJob {
    GridView grid;
    const float* hessian = nullptr;  // [columns, columns]
    float* values = nullptr;         // [rows, columns] of the codes
    float* gradient = nullptr;       // [rows, columns]: (w - values) H
    int16_t* codes = nullptr;        // [rows, columns]
    int64_t* changes = nullptr;      // one per task
    int64_t columns = 0, rows = 0, passes = 0;
};

// Entry points of one instruction set, beside KernelTable.
struct SolverTable {
    int64_t panel;         // columns of a float panel; half as many of double
    int64_t descend_rows;  // per task
    // Rows [depth, columns] with stride `ld` to panels; transposed: columns are rows of `from`.
    void (*pack)(const float* from, int64_t ld, int64_t depth, int64_t columns, float* out);
    void (*pack_double)(const double* from, int64_t ld, bool transposed, int64_t depth,
                        int64_t columns, double* out);
    void (*gram_task)(const GramJob&, int64_t task);
    bool (*factor_block)(const FactorJob&);
    void (*factor_panel_task)(const FactorJob&, int64_t task);
    void (*factor_update_task)(const FactorJob&, int64_t task);
    void (*double_product_task)(const DoubleProductJob&, int64_t task);
    void (*sweep_task)(const SweepJob&, int64_t task);
    void (*descend_task)(const DescendJob&, int64_t task);
};

const SolverTable& solvers();

extern const SolverTable kScalarSolvers;
#if defined(HB_HAS_X86)
extern const SolverTable kAvx2Solvers;
#endif
#if defined(HB_HAS_AVX512)
extern const SolverTable kAvx512Solvers;
#endif
#if defined(HB_HAS_NEON)
extern const SolverTable kNeonSolvers;
#endif

}  // namespace halfbyte
