#include "encode/neighbours.hpp"

#include <algorithm>
#include <mutex>

#include "codebooks.hpp"

namespace halfbyte {

namespace {

constexpr int kUnit = 8;

// How many distinct distances a list reaches to.
int wanted_distances(Kind kind) {
    switch (kind) {
        case Kind::IQ2_S:
            return 1;
        case Kind::IQ3_S:
        case Kind::IQ1_S:
            return 3;
        default:
            return 2;
    }
}

// The codebook by digit place, so that distances to all points are sums of whole columns.
struct Columns {
    int group, bits, levels;
    int64_t size;
    std::vector<int16_t> digits;  // [group, size]
    std::vector<uint16_t> packed;

    explicit Columns(const Codebook& book)
        : group(book.group),
          bits(book.group == 8 ? 2 : 3),
          levels(book.group == 8 ? 3 : 8),
          size(book.size),
          digits(static_cast<size_t>(book.group * book.size)),
          packed(static_cast<size_t>(book.size)) {
        for (int64_t p = 0; p < size; ++p) {
            uint32_t word = 0;
            for (int i = 0; i < group; ++i) {
                const int digit = std::min<int>(book.digits[p * group + i], levels - 1);
                digits[i * size + p] = static_cast<int16_t>(digit);
                word |= static_cast<uint32_t>(digit) << (bits * i);
            }
            packed[p] = static_cast<uint16_t>(word);
        }
    }

    void distances(uint32_t point, int16_t* out) const {
        std::fill(out, out + size, int16_t{0});
        for (int i = 0; i < group; ++i) {
            const auto own = static_cast<int16_t>(point >> (bits * i) & ((1u << bits) - 1u));
            const int16_t* column = digits.data() + i * size;
            for (int64_t p = 0; p < size; ++p) {
                const auto difference = static_cast<int16_t>(column[p] - own);
                out[p] = static_cast<int16_t>(out[p] + difference * difference);
            }
        }
    }

    bool reachable(uint32_t point) const {
        for (int i = 0; i < group; ++i) {
            if (static_cast<int>(point >> (bits * i) & ((1u << bits) - 1u)) >= levels) return false;
        }
        return true;
    }
};

// Largest squared distance of the first `wanted` distinct ones.
int reach(const std::vector<int16_t>& distances, int wanted) {
    constexpr int kFarthest = 4 * 7 * 7;
    bool seen[kFarthest + 1] = {};
    for (const int16_t d : distances) seen[d] = true;
    int last = 0;
    for (int d = 0; d <= kFarthest && wanted > 0; ++d) {
        if (seen[d]) last = d, --wanted;
    }
    return last;
}

NeighbourTable build(Kind kind) {
    const Columns book(codebook(kind));
    const int wanted = wanted_distances(kind);
    NeighbourTable table;
    table.codebook = book.packed;
    table.entries.assign(size_t{1} << (book.bits * book.group), -1);
    for (int64_t p = book.size - 1; p >= 0; --p) {
        table.entries[book.packed[p]] = static_cast<int32_t>(-1 - p);
    }
    std::vector<int16_t> distances(static_cast<size_t>(book.size));
    std::vector<uint32_t> near;
    for (uint32_t point = 0; point < table.entries.size(); ++point) {
        const int32_t own = -1 - table.entries[point];
        if (book.packed[own] == point || !book.reachable(point)) continue;
        book.distances(point, distances.data());
        const int last = reach(distances, wanted);
        near.clear();
        for (int64_t p = 0; p < book.size; ++p) {
            if (distances[p] > last) continue;
            near.push_back(static_cast<uint32_t>(distances[p]) << 16 | static_cast<uint32_t>(p));
        }
        std::sort(near.begin(), near.end());
        const size_t start = table.points.size() / kUnit;
        for (const uint32_t key : near) table.points.push_back(book.packed[key & 0xFFFFu]);
        while (table.points.size() % kUnit) table.points.push_back(table.points.back());
        const size_t length = table.points.size() / kUnit - start;
        table.entries[point] = static_cast<int32_t>(start << 8 | length);
    }
    return table;
}

}  // namespace

const NeighbourTable& neighbour_table(Kind kind) {
    constexpr int kFirst = static_cast<int>(Kind::IQ2_XXS);
    constexpr int kCount = static_cast<int>(Kind::IQ1_S) - kFirst + 1;
    static NeighbourTable tables[kCount];
    static std::once_flag built[kCount];
    if (kind == Kind::IQ1_M) kind = Kind::IQ1_S;
    const int slot = static_cast<int>(kind) - kFirst;
    std::call_once(built[slot], [&] { tables[slot] = build(kind); });
    return tables[slot];
}

}  // namespace halfbyte
