// The best split of sorted values into three runs for the levels -1, 0, 1 with a shift: every pair
// of cuts and every shift in ggml's order, of which the first of equals wins.
#pragma once

#include "encode/grid_search.hpp"

namespace halfbyte {
namespace HB_ISA {

constexpr float kShift = 0.125f;

// Levels -1, 0, 1 moved up or down by kShift, as a row for look4.
HB_INLINE const float* shifted_levels(bool up) {
    alignas(32) static const float rows[2][8] = {
        {-1 - kShift, -kShift, 1 - kShift, 1 - kShift, -1 - kShift, -kShift, 1 - kShift,
         1 - kShift},
        {-1 + kShift, kShift, 1 + kShift, 1 + kShift, -1 + kShift, kShift, 1 + kShift, 1 + kShift}};
    return rows[up];
}

HB_INLINE M8 lanes_above(int lane) {
    alignas(32) static const float numbers[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    return load8(numbers) > all8(static_cast<float>(lane));
}

// order[r] = place of the r-th least value; equal values keep their order.
template <int N>
HB_INLINE void ascending(const float* x, int* order) {
    for (int i = 0; i < N; ++i) order[i] = 0;
    for (int at = 0; at < N; at += 8) {
        const F8 v = load8(x + at);
        I8 rank = iall8(0);
        for (int j = 0; j < N; ++j) {
            const F8 other = all8(x[j]);
            if (j < at) {
                rank = count(rank, other <= v);
            } else if (j >= at + 8) {
                rank = count(rank, other < v);
            } else {
                rank = count(rank, (other < v) | ((other == v) & lanes_above(j - at)));
            }
        }
        int32_t ranks[8];
        istore8(ranks, rank);
        for (int lane = 0; lane < 8; ++lane) order[ranks[lane]] = at + lane;
    }
}

struct Split {
    float score, scale;
    int first, second, choice;  // cuts and the number of the shift; choice < 0: none yet
};

// Group of N with one shift for all: choice 0 is up, 1 down.
template <int N>
struct CommonShift {
    static constexpr int kChoices = 2;
    static constexpr int kSize = N;

    float sum_x[N + 9] = {}, sum_w[N + 9] = {};
    float tail_x[2][N + 9], tail_w[2][N + 9];
    float head_x[2], head_w[2];
    int cut;

    HB_INLINE CommonShift(const float* x, const float* w, const int* order) {
        float product[N], total_x = 0.0f, total_w = 0.0f;
        for (int i = 0; i < N; i += 8) store8(product + i, load8(w + i) * load8(x + i));
        for (int j = 0; j < N; ++j) {
            sum_x[j + 1] = total_x += product[order[j]];
            sum_w[j + 1] = total_w += w[order[j]];
        }
        for (int c = 0; c < 2; ++c) {
            const F8 level = all8(shifted_levels(c == 0)[2]);
            for (int j = 0; j <= N; j += 8) {
                const F8 rest_x = all8(sum_x[N]) - load8(sum_x + j);
                const F8 rest_w = all8(sum_w[N]) - load8(sum_w + j);
                store8(tail_x[c] + j, rest_x * level);
                store8(tail_w[c] + j, rest_w * level * level);
            }
        }
    }
    HB_INLINE void first_cut(int i) {
        cut = i;
        for (int c = 0; c < 2; ++c) {
            const float level = shifted_levels(c == 0)[0];
            head_x[c] = sum_x[i] * level;
            head_w[c] = sum_w[i] * level * level;
        }
    }
    // The sums of 8 second cuts from i on.
    HB_INLINE void sums(int i, F8* qx, F8* qq) const {
        const F8 run_x = load8(sum_x + i) - all8(sum_x[cut]);
        const F8 run_w = load8(sum_w + i) - all8(sum_w[cut]);
        for (int c = 0; c < 2; ++c) {
            const F8 level = all8(shifted_levels(c == 0)[1]);
            qx[c] = all8(head_x[c]) + run_x * level + load8(tail_x[c] + i);
            qq[c] = all8(head_w[c]) + run_w * level * level + load8(tail_w[c] + i);
        }
    }
};

// Group of two halves of N / 2, a shift for each: choices up-up, up-down, down-up, down-down.
template <int N>
struct HalfShifts {
    static constexpr int kChoices = 4;
    static constexpr int kSize = N;

    // By half; `second` has the part of the squares that the second cut adds, by shift and half.
    float sum_x[2][N + 9] = {}, sum_w[2][N + 9] = {};
    float second[2][2][N + 9];
    float total_x[2][2], head_w[2][2];
    int cut;

    HB_INLINE HalfShifts(const float* x, const float* w, const int* order) {
        // The other half's values count as 0: a sum that starts at +0 stays as it is.
        float product[2][N] = {}, weight[2][N] = {};
        for (int i = 0; i < N; i += 8) {
            const int half = i < N / 2 ? 0 : 1;
            store8(product[half] + i, load8(w + i) * load8(x + i));
            store8(weight[half] + i, load8(w + i));
        }
        float x0 = 0.0f, x1 = 0.0f, w0 = 0.0f, w1 = 0.0f;
        for (int j = 0; j < N; ++j) {
            sum_x[0][j + 1] = x0 += product[0][order[j]];
            sum_x[1][j + 1] = x1 += product[1][order[j]];
            sum_w[0][j + 1] = w0 += weight[0][order[j]];
            sum_w[1][j + 1] = w1 += weight[1][order[j]];
        }
        for (int c = 0; c < 2; ++c) {
            const float* level = shifted_levels(c == 0);
            const F8 step = all8(level[1] * level[1] - level[2] * level[2]);
            for (int half = 0; half < 2; ++half) {
                total_x[c][half] = sum_x[half][N] * level[2];
                for (int j = 0; j <= N; j += 8) {
                    store8(second[c][half] + j, load8(sum_w[half] + j) * step);
                }
            }
        }
    }
    HB_INLINE void first_cut(int i) {
        cut = i;
        for (int c = 0; c < 2; ++c) {
            const float* level = shifted_levels(c == 0);
            const float step = level[0] * level[0] - level[1] * level[1];
            for (int half = 0; half < 2; ++half) {
                head_w[c][half] = sum_w[half][N] * level[2] * level[2] + sum_w[half][i] * step;
            }
        }
    }
    HB_INLINE void sums(int i, F8* qx, F8* qq) const {
        F8 half_x[2][2], half_w[2][2];
        for (int half = 0; half < 2; ++half) {
            const F8 cuts = all8(sum_x[half][cut]) + load8(sum_x[half] + i);
            for (int c = 0; c < 2; ++c) {
                half_x[c][half] = all8(total_x[c][half]) - cuts;
                half_w[c][half] = all8(head_w[c][half]) + load8(second[c][half] + i);
            }
        }
        for (int c = 0; c < 4; ++c) {
            qx[c] = half_x[c >> 1][0] + half_x[c & 1][1];
            qq[c] = half_w[c >> 1][0] + half_w[c & 1][1];
        }
    }
};

// Takes 8 pairs of cuts one by one. Returns false where the first one taken lies at or below
// `certain`.
template <int Choices>
static bool take_pairs(const F8* sum_qx, const F8* sum_qq, uint32_t open, int first, int second,
                       float certain, Split& best) {
    float qx[Choices][8], qq[Choices][8];
    for (int c = 0; c < Choices; ++c) store8(qx[c], sum_qx[c]), store8(qq[c], sum_qq[c]);
    for (int lane = lowest_bit(open); open >> lane; ++lane) {
        for (int c = 0; c < Choices; ++c) {
            const float x = qx[c][lane], q = qq[c][lane];
            if (!(q > 0.0f && x * x > best.score * q)) continue;
            if (best.choice < 0 && !(x * x > certain * q)) return false;
            best.scale = x / q;
            best.score = best.scale * x;
            best.first = first;
            best.second = second + lane;
            best.choice = c;
        }
    }
    return true;
}

// All pairs in order from the score in `best` on.
template <class Splits>
HB_INLINE bool search_pairs(Splits& splits, float certain, Split& best) {
    constexpr int N = Splits::kSize, kChoices = Splits::kChoices;
    for (int i = 0; i <= N; ++i) {
        splits.first_cut(i);
        for (int j = i; j <= N; j += 8) {
            const uint32_t lanes = N - j >= 7 ? 255u : (2u << (N - j)) - 1u;
            F8 qx[kChoices], qq[kChoices];
            splits.sums(j, qx, qq);
            const F8 score = all8(best.score);
            M8 better = qx[0] * qx[0] > score * qq[0];
            for (int c = 1; c < kChoices; ++c) better = better | (qx[c] * qx[c] > score * qq[c]);
            const uint32_t open = bits8(better) & lanes;
            if (!open) continue;
            const uint32_t onward = lanes & ~((1u << lowest_bit(open)) - 1u);
            if (!take_pairs<kChoices>(qx, qq, onward, i, j, certain, best)) return false;
        }
    }
    return best.choice >= 0;
}

// Score of some good pair, 0 where none is in the range that comparisons are certain in.
template <class Splits>
HB_INLINE float good_score(Splits& splits) {
    constexpr int N = Splits::kSize, kChoices = Splits::kChoices;
    F8 best = all8(0.0f);
    const F8 low = all8(1e-15f), high = all8(1e18f);
    for (int i : {N / 4, N * 5 / 16}) {
        splits.first_cut(i);
        for (int j = N / 2; j + 7 <= N; j += 8) {
            F8 qx[kChoices], qq[kChoices];
            splits.sums(j, qx, qq);
            for (int c = 0; c < kChoices; ++c) {
                const M8 sound = (qq[c] > low) & (qq[c] < high);
                best = larger(best, choose(sound, qx[c] * qx[c] / qq[c], all8(0.0f)));
            }
        }
    }
    const float score = largest8(best);
    return score > 1e-20f && score < 1e18f ? score : 0.0f;
}

// Pairs that score clearly below a known pair cannot matter once a pair near that one is taken, and
// no rounding keeps that one from being taken. In doubt every pair is tried.
template <class Splits>
HB_INLINE Split best_split(Splits& splits) {
    const float known = good_score(splits);
    if (known > 0.0f) {
        Split best{known * (1.0f - 2e-5f), 0.0f, 0, 0, -1};
        if (search_pairs(splits, known * (1.0f - 1e-5f), best)) return best;
    }
    Split best{-FLT_MAX, 0.0f, 0, 0, -1};
    search_pairs(splits, -INFINITY, best);
    return best;
}

}  // namespace HB_ISA
}  // namespace halfbyte
