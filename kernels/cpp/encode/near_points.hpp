// The nearest points of a codebook to a cell of values, as ggml weighs them.
#pragma once

#include "encode/lanes8.hpp"
#include "encode/neighbours.hpp"

namespace halfbyte {
namespace HB_ISA {

// Points of 8 values on levels 1, 3, 5.
struct Octet {
    static constexpr int kValues = 8;
    static constexpr int kBits = 2;
    static constexpr int kTop = 2;
    static HB_INLINE F8 look(F8 row, I8 index) { return look4(row, index); }
    static HB_INLINE F8 levels() {
        alignas(32) static const float rows[8] = {1, 3, 5, 5, 1, 3, 5, 5};
        return load8(rows);
    }
};

// Points of 4 values on levels 1, 3, .. 15.
struct Quad {
    static constexpr int kValues = 4;
    static constexpr int kBits = 3;
    static constexpr int kTop = 7;
    static HB_INLINE F8 look(F8 row, I8 index) { return look8(row, index); }
    static HB_INLINE F8 levels() {
        alignas(32) static const float rows[8] = {1, 3, 5, 7, 9, 11, 13, 15};
        return load8(rows);
    }
};

// The grid that a kind's points are searched in.
struct Grid {
    const int32_t* entries;
    const uint16_t* points;
    const uint16_t* codebook;

    explicit Grid(const NeighbourTable& table)
        : entries(table.entries.data()),
          points(table.points.data()),
          codebook(table.codebook.data()) {}
    HB_INLINE bool has(uint32_t point) const { return entries[point] < 0; }
    HB_INLINE int index(uint32_t point) const { return -1 - entries[point]; }
    HB_INLINE uint32_t point(int index) const { return codebook[index]; }
};

constexpr int kLongestList = 48;  // in units of 8 points

// What each level costs each value of a cell at one scale: w * (scaled level - x)^2.
template <class Cell>
struct LevelCosts {
    F8 rows[Cell::kValues];

    HB_INLINE LevelCosts(const float* x, const float* w, F8 scaled_levels) {
        for (int i = 0; i < Cell::kValues; ++i) {
            const F8 difference = scaled_levels - all8(x[i]);
            rows[i] = all8(w[i]) * difference * difference;
        }
    }
    // The costs of 8 packed points, summed in the order of the values.
    HB_INLINE F8 of(I8 packed) const {
        F8 sum = Cell::look(rows[0], packed);
        for (int i = 1; i < Cell::kValues; ++i) {
            sum = sum + Cell::look(rows[i], shift_right(packed, Cell::kBits * i));
        }
        return sum;
    }
};

// Place of the least cost in a list of 8 * length points, the first of equals; all costs are kept
// where `kept` is given.
template <class Cell>
HB_INLINE int least_place(const LevelCosts<Cell>& costs, const uint16_t* list, int length,
                          float* kept = nullptr) {
    F8 best = costs.of(load_words8(list));
    if (kept) store8(kept, best);
    if (length == 1) {
        const uint32_t equal = bits8(best == least8(best));
        return equal ? lowest_bit(equal) : 0;
    }
    best = smaller(best, all8(FLT_MAX));
    I8 unit = iall8(0);
    for (int c = 1; c < length; ++c) {
        const F8 sum = costs.of(load_words8(list + 8 * c));
        if (kept) store8(kept + 8 * c, sum);
        const M8 nearer = sum < best;
        best = choose(nearer, sum, best);
        unit = choose(nearer, iall8(c), unit);
    }
    uint32_t equal = bits8(best == least8(best));
    int lane = equal ? lowest_bit(equal) : 0;
    int32_t units[8];
    istore8(units, unit);
    int place = 8 * units[lane] + lane;
    for (equal &= equal - 1; equal; equal &= equal - 1) {
        lane = lowest_bit(equal);
        if (8 * units[lane] + lane < place) place = 8 * units[lane] + lane;
    }
    return place;
}

// The packed point of a list that costs least.
template <class Cell>
HB_INLINE uint32_t nearest_point(const Grid& grid, int32_t entry, const float* x, const float* w,
                                 F8 scaled_levels) {
    const uint16_t* list = grid.points + (entry >> 8) * 8;
    return list[least_place(LevelCosts<Cell>(x, w, scaled_levels), list, entry & 255)];
}

// The points of a list that may cost least at a scale between two: `first` and `last` are the costs
// at these, `a` and `b` the places of the least ones. The difference of two points' costs is the
// scale times a linear function of the scale, so a point that is dearer than another at both ends
// is so in between; the margin is far above what rounding adds to costs whose levels' part is at
// most `size`. Returns how many points went to `out`, in the order of the list.
HB_INLINE int between_two(const uint16_t* list, int length, const float* first, const float* last,
                          int a, int b, float size, uint16_t* out) {
    constexpr float kMargin = 1.0f / 65536.0f;
    const float margin_a = kMargin * (2.0f * (first[a] > last[a] ? first[a] : last[a]) + size);
    const float margin_b = kMargin * (2.0f * (first[b] > last[b] ? first[b] : last[b]) + size);
    const F8 first_a = all8(first[a] + margin_a), last_a = all8(last[a] + margin_a);
    const F8 first_b = all8(first[b] + margin_b), last_b = all8(last[b] + margin_b);
    int found = 0;
    for (int c = 0; c < length; ++c) {
        const F8 one = load8(first + 8 * c), other = load8(last + 8 * c);
        const M8 dearer =
            ((one > first_a) & (other > last_a)) | ((one > first_b) & (other > last_b));
        for (uint32_t near = bits8(dearer) ^ 255u; near; near &= near - 1) {
            const uint16_t point = list[8 * c + lowest_bit(near)];
            if (found == 0 || out[found - 1] != point) out[found++] = point;
        }
    }
    return found;
}

// The nearest points of one list at `count` falling scales, as if each were searched by itself.
template <class Cell>
HB_INLINE void nearest_of_run(const Grid& grid, int32_t entry, const float* x, const float* w,
                              const float* scales, int count, int32_t* points) {
    const uint16_t* list = grid.points + (entry >> 8) * 8;
    int length = entry & 255, from = 0, to = count;
    uint16_t near[8 * kLongestList];
    if (count > 2 && length <= kLongestList) {
        float first[8 * kLongestList], last[8 * kLongestList];
        const F8 levels = Cell::levels();
        const LevelCosts<Cell> begin(x, w, all8(scales[0]) * levels);
        const LevelCosts<Cell> end(x, w, all8(scales[count - 1]) * levels);
        const int a = least_place(begin, list, length, first);
        const int b = least_place(end, list, length, last);
        float size = 0.0f;
        for (int i = 0; i < Cell::kValues; ++i) size += w[i];
        const float top = scales[0] * static_cast<float>(2 * Cell::kTop + 1);
        size *= top * top;
        // Outside these bounds costs may be subnormal or infinite.
        if (size > 1e-20f && size < 1e20f) {
            points[0] = list[a];
            points[count - 1] = list[b];
            int found = between_two(list, length, first, last, a, b, size, near);
            if (found == 1) {
                for (int t = 1; t < count - 1; ++t) points[t] = near[0];
                return;
            }
            while (found % 8) near[found] = near[found - 1], ++found;
            list = near;
            length = found / 8;
            from = 1;
            to = count - 1;
        }
    }
    for (int t = from; t < to; ++t) {
        const LevelCosts<Cell> costs(x, w, all8(scales[t]) * Cell::levels());
        points[t] = list[least_place(costs, list, length)];
    }
}

}  // namespace HB_ISA
}  // namespace halfbyte
