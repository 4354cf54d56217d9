// Rounding a column of W rows to its grid, as ColumnGrid of column_grid.py does.
#pragma once

#include "solvers.hpp"

namespace halfbyte {
namespace HB_ISA {

struct Rounded {
    F code, value;
};

HB_INLINE F some_lanes(const float* p, int64_t n) { return n >= W ? load(p) : load_n(p, n); }

constexpr int64_t kFewLevels = 32;  // compared one by one with all lanes

// Code and level of each lane: how many bounds lie below it.
HB_INLINE Rounded among_levels(const GridView& grid, F steps) {
    Rounded r{zero(), set1(grid.levels[0])};
    const int64_t bounds = grid.count - 1;
    if (grid.count <= kFewLevels) {
        for (int64_t i = 0; i < bounds; ++i) {
            const Mask above = less(set1(grid.bounds[i]), steps);
            r.code = select(above, set1(static_cast<float>(i + 1)), r.code);
            r.value = select(above, set1(grid.levels[i + 1]), r.value);
        }
        return r;
    }
    int64_t longest = 1;
    while (2 * longest <= bounds) longest *= 2;
    float lanes[W], codes[W], levels[W];
    store(lanes, steps);
    for (int i = 0; i < W; ++i) {
        int64_t below = 0;
        for (int64_t step = longest; step > 0; step /= 2) {
            const int64_t next = below + step;
            if (next <= bounds && grid.bounds[next - 1] < lanes[i]) below = next;
        }
        codes[i] = static_cast<float>(below);
        levels[i] = grid.levels[below];
    }
    return {load(codes), load(levels)};
}

// Codes and values of `count` lanes of column k, from row `row`.
HB_INLINE Rounded round_lanes(const GridView& grid, int64_t k, int64_t row, int64_t count, F w) {
    if (grid.chosen) {
        const float* values = grid.chosen + (k - grid.first_chosen) * grid.rows + row;
        return {zero(), some_lanes(values, count)};
    }
    const int64_t at = grid.group[k] * grid.rows + row;
    const F scale = some_lanes(grid.scale + at, count);
    const F shift = grid.zero ? some_lanes(grid.zero + at, count) : zero();
    if (grid.offset) w = sub(w, some_lanes(grid.offset + at, count));
    F steps = select(equal_to(scale, zero()), zero(), div(w, scale));
    Rounded r;
    F unit;
    if (grid.levels) {
        if (grid.zero) steps = add(steps, shift);
        r = among_levels(grid, steps);
        unit = r.value;
    } else {
        if (grid.zero && grid.fractional) steps = add(steps, shift);
        steps = nearest(steps);
        if (grid.zero && !grid.fractional) steps = add(steps, shift);
        r.code = unit = min(set1(grid.high), max(set1(grid.low), steps));
    }
    if (grid.zero) unit = sub(unit, shift);
    r.value = mul(unit, scale);
    if (grid.offset) r.value = add(r.value, some_lanes(grid.offset + at, count));
    return r;
}

HB_INLINE void store_codes(F code, int64_t count, int16_t* out) {
    float lanes[W];
    store(lanes, code);
    for (int i = 0; i < W && i < count; ++i) out[i] = static_cast<int16_t>(lanes[i]);
}

}  // namespace HB_ISA
}  // namespace halfbyte
