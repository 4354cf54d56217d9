// Blocks of 256 values in groups with a scale each and points of a codebook.
#pragma once

#include "encode/grid_search.hpp"

namespace halfbyte {
namespace HB_ISA {

constexpr int kBlock = 256;

// What a block's search finds; each type has its own places for it.
template <class Cell, int Size>
struct Found {
    static constexpr int kGroups = kBlock / Size;

    int indices[kBlock / Cell::kValues];
    uint8_t signs[kBlock / 8];
    float scales[kGroups];
    bool skipped[kGroups];
    float largest = 0.0f;

    // A null group has index 0 everywhere, no signs and scale 0.
    HB_INLINE void take(const Grid& grid, int number, const Group<Cell, Size>* group) {
        constexpr int kCells = Size / Cell::kValues, kBytes = Size / 8;
        skipped[number] = !group;
        scales[number] = group ? group->scale : 0.0f;
        if (scales[number] > largest) largest = scales[number];
        for (int k = 0; k < kCells; ++k) {
            indices[number * kCells + k] = group ? grid.index(group->cells[k]) : 0;
        }
        for (int k = 0; k < kBytes; ++k) {
            signs[number * kBytes + k] = group ? group->signs[k] : uint8_t{0};
        }
    }

    // 4-bit codes of the scales in units of d.
    HB_INLINE void scale_codes(float d, int* codes) const {
        for (int i = 0; i < kGroups; ++i) codes[i] = scale_code(1.0f / d, scales[i], 15);
    }
};

// Weights of a block: importance * sqrt(variance + x^2), or the type's own without importance.
template <class Type>
HB_INLINE void block_weights(const float* x, const float* importance, float* w) {
    const float variance = Type::kVariance * block_squares(x) / static_cast<float>(kBlock);
    for (int i = 0; i < kBlock; i += 8) {
        const F8 v = load8(x + i);
        if (importance) {
            store8(w + i, load8(importance + i) * root8(all8(variance) + v * v));
        } else {
            store8(w + i, Type::plain_weight(variance, v));
        }
    }
}

// The search of the types whose first scale is the largest value over the top level.
template <class Type>
HB_INLINE void search_block(const Grid& grid, const float* x, const float* importance,
                            Found<typename Type::Cell, Type::kGroup>& found) {
    constexpr Tops<Type::kTrials> tops(Type::kTop, Type::kFirst, Type::kStep);
    float w[kBlock];
    block_weights<Type>(x, importance, w);
    Group<typename Type::Cell, Type::kGroup> group;
    constexpr uint32_t kAll = (1u << group.kCells) - 1u;
    for (int g = 0; g < found.kGroups; ++g) {
        group.template load<Type::kEven>(x + g * Type::kGroup, w + g * Type::kGroup);
        if (Type::vanishes(group.peak)) {
            found.take(grid, g, nullptr);
            continue;
        }
        group.reset(group.peak / Type::kTop);
        if (Type::kRefitAll) group.rounded = kAll;
        group.template scan<Type::kTrials>(grid, tops.values, group.peak);
        if (group.rounded && group.scale > 0.0f) {
            group.refit(grid, Type::kRefitAll ? kAll : group.rounded);
        }
        group.make_positive(Type::kEven ? 127 : 255);
        found.take(grid, g, &group);
    }
}

// Rows of any type with `encode_block(Type, grid, x, importance, out)`; importance: [columns].
template <class Type>
static void encode_grid_rows(Kind kind, const float* x, const float* importance, int64_t rows,
                             int64_t columns, uint8_t* out) {
    const Grid grid(neighbour_table(kind));
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t at = 0; at < columns; at += kBlock, out += Type::L::kBytes) {
            Type::encode(grid, x + r * columns + at, importance ? importance + at : nullptr, out);
        }
    }
}

}  // namespace HB_ISA
}  // namespace halfbyte
