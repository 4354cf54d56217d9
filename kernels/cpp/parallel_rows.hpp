// Work over ranges of rows, spread over the threads of the pool.
#pragma once

#include <algorithm>
#include <cstdint>

#include "pool.hpp"

namespace halfbyte {

// Runs `piece(from, to)` over ranges of rows that hold about `values` values each.
template <class Piece>
void parallel_rows(int64_t rows, int64_t columns, int64_t values, const Piece& piece) {
    const int64_t chunk = std::max<int64_t>(1, values / columns);
    parallel((rows + chunk - 1) / chunk,
             [&](int64_t task) { piece(task * chunk, std::min(rows, (task + 1) * chunk)); });
}

}  // namespace halfbyte
