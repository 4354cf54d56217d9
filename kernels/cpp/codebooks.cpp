#include "codebooks.hpp"

#include <atomic>
#include <mutex>

#include "arrays.hpp"

namespace halfbyte {

namespace {

constexpr int kFirst = static_cast<int>(Kind::IQ2_XXS);
constexpr int kCount = static_cast<int>(Kind::IQ1_S) - kFirst + 1;

struct Slot {
    Codebook book;
    std::atomic<bool> ready{false};
};

Slot& slot(Kind kind) {
    static Slot slots[kCount];
    return slots[static_cast<int>(kind == Kind::IQ1_M ? Kind::IQ1_S : kind) - kFirst];
}

// Sizes that the stored indices reach, so that no index can leave the list.
int64_t reachable_points(Kind kind) {
    switch (kind) {
        case Kind::IQ2_XXS:
        case Kind::IQ3_XXS:
            return 256;
        case Kind::IQ2_XS:
        case Kind::IQ3_S:
            return 512;
        case Kind::IQ2_S:
            return 1024;
        default:
            return 2048;
    }
}

// A second call for a kind changes nothing: readers may be at work with the first list.
void set_codebook(int kind_index, nb::object digits, nb::object levels) {
    const char* where = "set_codebook";
    const Kind kind = static_cast<Kind>(kind_index);
    if (!has_codebook(kind)) reject(where, "this kind has no codebook");
    const Array points(where, "digits", digits, "B"), meanings(where, "levels", levels, "b");
    const bool quads = kind == Kind::IQ3_XXS || kind == Kind::IQ3_S;
    const int group = quads ? 4 : 8;
    if (points.dimensions() != 2) reject(where, "digits must be [points, group]");
    require_size(where, "digits", points, reachable_points(kind) * group);
    static std::mutex mutex;
    const std::lock_guard<std::mutex> lock(mutex);
    Slot& target = slot(kind);
    if (target.ready) return;
    Codebook book;
    book.group = group;
    book.size = points.size() / group;
    book.digits.assign(points.data<uint8_t>(), points.data<uint8_t>() + points.size());
    book.levels.assign(meanings.data<int8_t>(), meanings.data<int8_t>() + meanings.size());
    for (const uint8_t digit : book.digits) {
        if (digit >= book.levels.size()) reject(where, "a digit has no level");
        book.values.push_back(book.levels[digit]);
    }
    target.book = std::move(book);
    target.ready = true;
}

}  // namespace

bool has_codebook(Kind kind) { return kind >= Kind::IQ2_XXS && kind <= Kind::IQ1_M; }

const Codebook& codebook(Kind kind) { return slot(kind).book; }

const int8_t* codebook_values(Kind kind) { return slot(kind).book.values.data(); }

void require_codebook(const char* where, Kind kind) {
    if (has_codebook(kind) && !slot(kind).ready) {
        reject(where, "the codebook of this kind is not set; call set_codebook first");
    }
}

void bind_codebooks(nb::module_& m) { m.def("set_codebook", &set_codebook); }

}  // namespace halfbyte
