// Products with packed weights, written once over sixteen lanes. Include after a lanes_*.h.
//
// A block is 16 rows of weights: lane i is row i. Four neighbouring columns (a "quad") of an activation row are
// broadcast to all lanes, and each lane adds its four products to its sum.
#pragma once

#include "quarterdeck.h"

namespace quarterdeck {
namespace {

// Writes one activation row's 16 results of one block.
inline void finish(const Product& p, Lanes::Float value, int64_t row, int64_t block) {
    const int64_t column = block * kBlockRows;
    const int64_t count = p.n - column < kBlockRows ? p.n - column : kBlockRows;
    if (p.bias) {
        if (count == kBlockRows) {
            value = Lanes::add(value, Lanes::load_float(p.bias + column));
        } else {
            float bias[kBlockRows] = {};
            for (int64_t i = 0; i < count; ++i) bias[i] = p.bias[column + i];
            value = Lanes::add(value, Lanes::load_float(bias));
        }
    }
    Lanes::store(advance(p.out, p.out_type, row * p.n + column), p.out_type, value, count);
}

template <bool Offset>
void finish_int8(const Product& p, Lanes::Sum sum, int64_t row, int64_t block) {
    const int64_t column = block * kBlockRows;
    float scale[kBlockRows] = {};
    int32_t row_sum[kBlockRows] = {};
    const float* scales = p.scale + column;
    const int32_t* row_sums = Offset ? p.row_sum + column : nullptr;
    if (p.n - column < kBlockRows) {
        for (int64_t i = 0; i < p.n - column; ++i) scale[i] = scales[i];
        for (int64_t i = 0; Offset && i < p.n - column; ++i) row_sum[i] = row_sums[i];
        scales = scale, row_sums = row_sum;
    }
    if (Offset) sum = Lanes::without_offset(sum, row_sums);
    const Lanes::Float value = Lanes::multiply(Lanes::to_float(sum), Lanes::load_float(scales));
    finish(p, Lanes::multiply(value, p.x.scale[row]), row, block);
}

// A row's first columns; its tiles follow each other, since there is one slab.
inline const int8_t* first_of(const Rows8& x, int64_t row) {
    return x.tile_of(row / x.group, 0) + row % x.group * kBlockColumns;
}

// R activation rows by B blocks; U sums per result, so that additions need not wait for each other.
template <int R, int B, int U>
void int8_tile(const Product& p, int64_t row, int64_t block) {
    Lanes::Sum sum[U][R][B];
    for (int u = 0; u < U; ++u)
        for (int r = 0; r < R; ++r)
            for (int b = 0; b < B; ++b) sum[u][r][b] = Lanes::zero();
    const int8_t* weights = static_cast<const int8_t*>(p.weights) + block * kBlockRows * p.padded;
    const int64_t block_bytes = kBlockRows * p.padded;
    const int8_t* x = first_of(p.x, row);
    for (int64_t column = 0; column < p.padded; column += kBlockColumns) {
#pragma GCC unroll Lanes::kUnroll
        for (int q = 0; q < 16; ++q) {
            Lanes::Weights w[B];
#pragma GCC unroll 8
            for (int b = 0; b < B; ++b) w[b] = Lanes::load(weights + b * block_bytes + q * 64);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const Lanes::Quad quad = Lanes::quad(x + r * kBlockColumns + q * 4);
#pragma GCC unroll 8
                for (int b = 0; b < B; ++b) sum[q % U][r][b] = Lanes::dot(sum[q % U][r][b], w[b], quad);
            }
        }
        weights += kBlockRows * kBlockColumns;
        x += kBlockColumns * p.x.group;
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
        for (int b = 0; b < B; ++b) {
            Lanes::Sum total = sum[0][r][b];
            for (int u = 1; u < U; ++u) total = Lanes::add(total, sum[u][r][b]);
            finish_int8<Lanes::kOffset>(p, total, row + r, block + b);
        }
    }
}

// A weight whose columns are in groups with a scale each, and a minimum where it has minima.
template <int Bits, int Group, bool Minima>
struct Form {
    static constexpr int kBits = Bits, kGroup = Group;
    static constexpr bool kMinima = Minima;
    // what is added to each value to make it unsigned, where it needs be
    static constexpr int kRaised = Minima ? 0 : Bits == 4 ? 8 : Lanes::kRaised;
};

template <class Visit>
void with_form(const Product& p, Visit visit) {
    if (p.bits == 8) return visit(Form<8, 32, false>());
    if (!p.minima) return visit(Form<4, 32, false>());
    if (p.group == 32) return visit(Form<4, 32, true>());
    visit(Form<4, 64, true>());
}

// R rows by 32 columns of a block; `weights` advances.
template <int Bits, int R>
inline void add_columns(const uint8_t*& weights, const int8_t* x, Lanes::Sum (&sum)[R]) {
    if constexpr (Bits == 4) {
        Lanes::Part part[R];
        for (int r = 0; r < R; ++r) part[r] = Lanes::zero_part();
#pragma GCC unroll 4
        for (int pair = 0; pair < 4; ++pair, weights += 64) {
            Lanes::Nibbles low, high;
            Lanes::load_nibbles(weights, low, high);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const int8_t* quads = x + r * kBlockColumns + pair * 8;
                part[r] = Lanes::dot(part[r], low, Lanes::quad(quads));
                part[r] = Lanes::dot(part[r], high, Lanes::quad(quads + 4));
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) sum[r] = Lanes::add(sum[r], part[r]);
    } else {
#pragma GCC unroll 8
        for (int q = 0; q < 8; ++q, weights += 64) {
            const Lanes::Bytes bytes = Lanes::load_raised(reinterpret_cast<const int8_t*>(weights));
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) sum[r] = Lanes::dot(sum[r], bytes, Lanes::quad(x + r * kBlockColumns + q * 4));
        }
    }
}

// R activation rows by one block of weights in groups; sums of a group are scaled into float32.
template <int R, class F>
void group_tile(const Product& p, int64_t row, int64_t block) {
    Lanes::Float total[R];
    for (int r = 0; r < R; ++r) total[r] = Lanes::zero_float();
    const int64_t groups = p.padded / F::kGroup, halves = p.padded / 32;
    const uint8_t* weights = static_cast<const uint8_t*>(p.weights) + block * kBlockRows * p.padded * F::kBits / 8;
    const uint16_t* scales = p.scales + block * groups * kBlockRows;
    const uint16_t* minima = F::kMinima ? p.minima + block * groups * kBlockRows : nullptr;
    const int8_t* rows = first_of(p.x, row);
    const int32_t* group_sum = p.x.group_sum + row * halves;
    for (int64_t g = 0; g < groups; ++g) {
        Lanes::Sum sum[R];
        for (int r = 0; r < R; ++r) sum[r] = Lanes::zero();
        const int64_t column = g * F::kGroup;
        const int8_t* x = rows + column / kBlockColumns * kBlockColumns * p.x.group + column % kBlockColumns;
#pragma GCC unroll 2
        for (int half = 0; half < F::kGroup / 32; ++half) add_columns<F::kBits>(weights, x + half * 32, sum);
        const Lanes::Float scale = Lanes::load_half(scales + g * kBlockRows);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const int32_t* sums = group_sum + r * halves + g * (F::kGroup / 32);
            if constexpr (F::kRaised != 0) sum[r] = Lanes::add(sum[r], -F::kRaised * sums[0]);
            total[r] = Lanes::multiply_add(Lanes::to_float(sum[r]), scale, total[r]);
            if constexpr (F::kMinima) {
                const Lanes::Float minimum = Lanes::load_half(minima + g * kBlockRows);
                const int32_t all = F::kGroup == 32 ? sums[0] : sums[0] + sums[1];
                total[r] = Lanes::multiply_add(minimum, float(all), total[r]);
            }
        }
    }
    for (int r = 0; r < R; ++r) finish(p, Lanes::multiply(total[r], p.x.scale[row + r]), row + r, block);
}

template <int R, int B>
void int8_rows(const Product& p, int64_t row, int64_t block) {
    constexpr int kSums = R * B == 1 ? 4 : R * B <= 4 ? 2 : 1;
    if constexpr (R <= Lanes::kMostRows) int8_tile<R, B, kSums>(p, row, block);
}

// Rows of x are taken kMostRows at a time; a group of 16 rows is never split otherwise.
template <int B>
void int8_blocks(const Product& p, int64_t block) {
    for (int64_t row = 0; row < p.x.rows; row += Lanes::kMostRows) {
        const int64_t rows = p.x.rows - row < Lanes::kMostRows ? p.x.rows - row : Lanes::kMostRows;
        switch (rows) {
            case 1: int8_rows<1, B>(p, row, block); break;
            case 2: int8_rows<2, B>(p, row, block); break;
            case 3: int8_rows<3, B>(p, row, block); break;
            case 4: int8_rows<4, B>(p, row, block); break;
            case 5: int8_rows<5, B>(p, row, block); break;
            case 6: int8_rows<6, B>(p, row, block); break;
            case 7: int8_rows<7, B>(p, row, block); break;
            default: int8_rows<8, B>(p, row, block); break;
        }
    }
}

[[maybe_unused]] void int8_product(const Product& p, int64_t first, int64_t last) {
    int64_t block = first;
    if constexpr (Lanes::kMostBlocks == 3) {
        // more blocks at a time only where rows are many: a single stream of weights is what memory likes best
        for (; p.x.rows > Lanes::kMostRows && block + 3 <= last; block += 3) int8_blocks<3>(p, block);
    }
    for (; block < last; ++block) int8_blocks<1>(p, block);
}

template <int R, class F>
void group_rows(const Product& p, int64_t row, int64_t block) {
    if constexpr (R <= Lanes::kMostRows) group_tile<R, F>(p, row, block);
}

template <class F>
void group_blocks(const Product& p, int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
        for (int64_t row = 0; row < p.x.rows; row += Lanes::kMostRows) {
            const int64_t rows = p.x.rows - row < Lanes::kMostRows ? p.x.rows - row : Lanes::kMostRows;
            switch (rows) {
                case 1: group_rows<1, F>(p, row, block); break;
                case 2: group_rows<2, F>(p, row, block); break;
                case 3: group_rows<3, F>(p, row, block); break;
                case 4: group_rows<4, F>(p, row, block); break;
                case 5: group_rows<5, F>(p, row, block); break;
                case 6: group_rows<6, F>(p, row, block); break;
                case 7: group_rows<7, F>(p, row, block); break;
                default: group_rows<8, F>(p, row, block); break;
            }
        }
    }
}

[[maybe_unused]] void group_product(const Product& p, int64_t first, int64_t last) {
    with_form(p, [&](auto form) { group_blocks<decltype(form)>(p, first, last); });
}

}  // namespace
}  // namespace quarterdeck
