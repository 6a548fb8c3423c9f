// Weights in groups of columns, by tiles, with the scales of all groups: the sums of each group leave the tiles, are
// scaled and added in float32, as vectors do it. A tile has the columns of one group, and weights are signed bytes.
// It takes about twice the time of weights with one scale for a row, and less than half of what vectors take.
#pragma once

#include "linear.h"
#include "scratch.h"
#include "tiles.h"

namespace quarterdeck {
namespace {

constexpr int64_t kTileSums = 256;  // 16 rows of activations by 16 of weights

// The products of one tile of activations with one of weights, group by group. Two sets of registers take turns: one is
// multiplied into while the other is stored.
template <int Group, int Set>
struct GroupTiles;

#define QUARTERDECK_SET(set, s0, s1, a, b)                           \
    template <>                                                      \
    struct GroupTiles<64, set> {                                     \
        static void multiply(const int8_t* x, const int8_t* w) {     \
            _tile_zero(s0);                                          \
            _tile_loadd(a, x, kBlockColumns);                        \
            _tile_loadd(b, w, kBlockColumns);                        \
            _tile_dpbssd(s0, a, b);                                  \
        }                                                            \
        static void store(int32_t* s) { _tile_stored(s0, s, 64); }   \
    };                                                               \
    template <>                                                      \
    struct GroupTiles<32, set> {                                     \
        static void multiply(const int8_t* x, const int8_t* w) {     \
            _tile_zero(s0);                                          \
            _tile_zero(s1);                                          \
            _tile_loadd(4, x, kBlockColumns);                        \
            _tile_loadd(6, w, kBlockColumns);                        \
            _tile_dpbssd(s0, 4, 6);                                  \
            _tile_loadd(5, x + 32, kBlockColumns);                   \
            _tile_loadd(7, w + kTileBytes / 2, kBlockColumns);       \
            _tile_dpbssd(s1, 5, 7);                                  \
        }                                                            \
        static void store(int32_t* sums) {                           \
            _tile_stored(s0, sums, 64);                              \
            _tile_stored(s1, sums + kTileSums, 64);                  \
        }                                                            \
    }
QUARTERDECK_SET(0, 0, 1, 4, 6);
QUARTERDECK_SET(1, 2, 3, 5, 7);
#undef QUARTERDECK_SET

// What a panel of one block of weights needs besides its bytes, from the first of its groups on.
struct GroupScales {
    const uint16_t* scales;  // [groups][16]
    const uint16_t* minima;  // the same; null where there are none
    const float* x_sums;     // [groups][16 rows]: sums of the activations, where there are minima
};

// Adds the scaled sums of a tile's groups; `g` advances.
template <class F>
inline void absorb(const int32_t* sums, GroupScales& g, __m512 (&totals)[kTileRows]) {
#pragma GCC unroll 2
    for (int part = 0; part < kBlockColumns / F::kGroup; ++part, sums += kTileSums) {
        const __m512 scale = Lanes::load_half(g.scales);
#pragma GCC unroll 16
        for (int r = 0; r < kTileRows; ++r) {
            totals[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(sums + r * 16)), scale, totals[r]);
        }
        g.scales += kBlockRows;
        if constexpr (F::kMinima) {
            const __m512 minimum = Lanes::load_half(g.minima);
#pragma GCC unroll 16
            for (int r = 0; r < kTileRows; ++r) {
                totals[r] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(g.x_sums[r]), totals[r]);
            }
            g.minima += kBlockRows, g.x_sums += kTileRows;
        }
    }
}

// One block by 16 rows, over `count` tiles of columns: scaled sums are added to `total`, unless this is the `first` part.
template <class F>
void group_panel(const int8_t* x, const int8_t* w, int64_t count, GroupScales g, float* total, bool first) {
    using Even = GroupTiles<F::kGroup, 0>;
    using Odd = GroupTiles<F::kGroup, 1>;
    alignas(64) int32_t sums[2][kBlockColumns / F::kGroup * kTileSums];
    __m512 totals[kTileRows];
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) totals[r] = first ? _mm512_setzero_ps() : _mm512_load_ps(total + r * 16);
    Even::multiply(x, w);
    for (int64_t tile = 0; tile < count; tile += 2) {
        const int8_t *x1 = x + (tile + 1) * kTileBytes, *w1 = w + (tile + 1) * kTileBytes;
        if (tile + 1 < count) Odd::multiply(x1, w1);
        Even::store(sums[0]);
        absorb<F>(sums[0], g, totals);
        if (tile + 1 == count) break;
        if (tile + 2 < count) Even::multiply(x1 + kTileBytes, w1 + kTileBytes);
        Odd::store(sums[1]);
        absorb<F>(sums[1], g, totals);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) _mm512_store_ps(total + r * 16, totals[r]);
}

// `count` tiles of nibbles to bytes in the order of blocks: the values, less 8 where they are `centred`.
inline void to_bytes(const uint8_t* from, int64_t count, bool centred, int8_t* out) {
    const __m512i nibble = _mm512_set1_epi8(15), middle = _mm512_set1_epi8(centred ? 8 : 0);
    for (int64_t pair = 0; pair < count * 8; ++pair, from += 64, out += 128) {
        const __m512i both = _mm512_loadu_si512(from);
        const __m512i high = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
        _mm512_store_si512(out, _mm512_sub_epi8(_mm512_and_si512(both, nibble), middle));
        _mm512_store_si512(out + 64, _mm512_sub_epi8(high, middle));
    }
}

// Sums of the activations in groups, as [rows / 16][groups][16].
template <class F>
void float_sums(const Product& p, float* out) {
    const int64_t groups = p.padded / F::kGroup;
    for (int64_t row = 0; row < p.x.groups() * kTileRows; ++row) {
        const int32_t* sums = p.x.group_sum + row * (p.padded / 32);
        float* to = out + row / kTileRows * groups * kTileRows + row % kTileRows;
        for (int64_t g = 0; g < groups; ++g) {
            const int32_t sum = row >= p.x.rows ? 0 : F::kGroup == 32 ? sums[g] : sums[2 * g] + sums[2 * g + 1];
            to[g * kTileRows] = float(sum);
        }
    }
}

// All rows of x times blocks [first, last).
template <class F>
void group_tiles(const Product& p, int64_t first, int64_t last) {
    constexpr int64_t kStored = kTileBytes * F::kBits / 8, kParts = kBlockColumns / F::kGroup;
    const int64_t groups = p.x.tiles() * kParts, rows = p.x.groups(), blocks = last - first;
    const int64_t panel_size = F::kBits == 4 ? p.x.slab_width(0) * kTileBytes : 0;
    const int64_t sums_size = F::kMinima ? rows * groups * kTileRows : 0;
    Scratch scratch(rows * blocks * kTileSums * sizeof(float) + panel_size + sums_size * sizeof(float));
    if (!scratch) return out_of_memory(p);
    float* const totals = scratch.take<float>(rows * blocks * kTileSums);
    int8_t* const panel = scratch.take<int8_t>(panel_size);
    float* const x_sums = scratch.take<float>(sums_size);
    if (F::kMinima) float_sums<F>(p, x_sums);
    const Tiles configured(F::kGroup);
    const auto stored = [&](int64_t block, int64_t tile) {
        return static_cast<const uint8_t*>(p.weights) + (block * p.x.tiles() + tile) * kStored;
    };
    for (int64_t tile = 0; tile < p.x.tiles(); tile += p.x.slab) {
        const int64_t count = p.x.slab_width(tile);
        for (int64_t block = first; block < last; ++block) {
            const int8_t* weights = reinterpret_cast<const int8_t*>(stored(block, tile));
            if (F::kBits == 4) {
                to_bytes(stored(block, tile), count, !F::kMinima, panel);
                weights = panel;
            }
            const bool wraps = block + 1 == last;
            const int64_t next = wraps ? tile + p.x.slab : tile, at = (block * groups + tile * kParts) * kBlockRows;
            const bool more = next < p.x.tiles();
            const uint8_t* ahead = more ? stored(wraps ? first : block + 1, next) : nullptr;
            const int64_t lines = more ? (p.x.slab_width(next) * kStored / 64 + rows - 1) / rows : 0;
            for (int64_t row = 0; row < rows; ++row) {
                for (int64_t line = 0; line < lines; ++line, ahead += 64) _mm_prefetch(ahead, _MM_HINT_T1);
                const float* row_sums = F::kMinima ? x_sums + (row * groups + tile * kParts) * kTileRows : nullptr;
                group_panel<F>(p.x.tile_of(row, tile), weights, count,
                               {p.scales + at, F::kMinima ? p.minima + at : nullptr, row_sums},
                               totals + (row * blocks + block - first) * kTileSums, tile == 0);
            }
        }
    }
    for (int64_t row = 0; row < p.x.rows; ++row) {
        const float* from = totals + row / kTileRows * blocks * kTileSums + row % kTileRows * kBlockRows;
        for (int64_t block = first; block < last; ++block, from += kTileSums) {
            finish(p, Lanes::multiply(Lanes::load_float(from), p.x.scale[row]), row, block);
        }
    }
}

}  // namespace
}  // namespace quarterdeck
