// How integer products cut their outputs into tiles.
#pragma once

#include <type_traits>

#include "matmul/codes.hpp"

namespace halfbyte {
namespace HB_ISA {

constexpr int kBlockWords = kStep / 4;
#if defined(HB_AVX512)
constexpr int kIntRows = 6, kIntVectors = 2;
#else
constexpr int kIntRows = 4, kIntVectors = 1;
#endif

// tile(rows of x as a constant, weight row, row of x) for every tile of `rows` by m0..m1.
template <class Tile>
HB_INLINE void sweep_tiles(int64_t rows, int64_t m0, int64_t m1, Tile&& tile) {
    for (int64_t r = 0; r < rows; r += W * kIntVectors) {
        int64_t m = m0;
        for (; m + kIntRows <= m1; m += kIntRows) {
            tile(std::integral_constant<int, kIntRows>(), r, m);
        }
        for (; m + 2 <= m1; m += 2) tile(std::integral_constant<int, 2>(), r, m);
        for (; m < m1; ++m) tile(std::integral_constant<int, 1>(), r, m);
    }
}

}  // namespace HB_ISA
}  // namespace halfbyte
