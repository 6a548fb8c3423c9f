// Products of packed attention in tiles of bfloat16, with sums in float32.
//
// A left tile is 16 rows by 32 numbers; a right tile is 32 numbers by 16 columns, with pairs of numbers side by side:
// [16 pairs][16 columns][2]. A right tile of columns is a left tile of rows whose words are transposed.
#pragma once

#include "packed_lanes.h"
#include "tiles.h"

namespace quarterdeck {
namespace {

struct TileProducts {
    using Element = uint16_t;
    static constexpr int kDegree = 3;
    using State = Tiles;
    static constexpr int64_t kTile = 512;  // numbers

    // Two by two tiles of c, `c_row` floats from row to row, over `steps` left and right tiles.
    template <bool kAdd>
    static void multiply(const uint16_t* a0, const uint16_t* a1, int64_t a_step, const uint16_t* b0, const uint16_t* b1,
                         int64_t b_step, int64_t steps, float* c, int64_t c_row) {
        float* const below = c + 16 * c_row;
        if (kAdd) {
            _tile_loadd(0, c, c_row * 4);
            _tile_loadd(1, c + 16, c_row * 4);
            _tile_loadd(2, below, c_row * 4);
            _tile_loadd(3, below + 16, c_row * 4);
        } else {
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
        }
        for (int64_t i = 0; i < steps; ++i) {
            _tile_loadd(4, a0 + i * a_step, 64);
            _tile_loadd(6, b0 + i * b_step, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, b1 + i * b_step, 64);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, a1 + i * a_step, 64);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, c, c_row * 4);
        _tile_stored(1, c + 16, c_row * 4);
        _tile_stored(2, below, c_row * 4);
        _tile_stored(3, below + 16, c_row * 4);
    }

    static const uint16_t* row_of(const Taken& from, int64_t row) {
        static const uint16_t zeros[128] = {};
        return row < from.count ? static_cast<const uint16_t*>(from.data) + row * from.stride : zeros;
    }

    static __m512i interleave(__m512i halves) {
        alignas(64) static constexpr uint16_t kOrder[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                            8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
        return _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), halves);
    }

    static __m512i narrow(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

    // left tiles [rows / 16][width / 32]
    static void take_rows(const Taken& from, DType type, int64_t width, uint16_t* to) {
        for (int64_t row = 0; row < packed_padded(from.count); row += 16) {
            fetch(from, type, width, row + kAhead, 16);
            for (int64_t c = 0; c < width; c += 32, to += kTile) {
                for (int64_t r = 0; r < 16; ++r) {
                    _mm512_storeu_si512(to + r * 32, _mm512_loadu_si512(row_of(from, row + r) + c));
                }
            }
        }
    }
    // right tiles [rows / 16][width / 32]: rows as columns
    static void take_columns(const Taken& from, DType type, int64_t width, uint16_t* to) {
        for (int64_t row = 0; row < packed_padded(from.count); row += 16) {
            fetch(from, type, width, row + kAhead, 16);
            for (int64_t c = 0; c < width; c += 32, to += kTile) {
                __m512i rows[16];
                for (int64_t r = 0; r < 16; ++r) rows[r] = _mm512_loadu_si512(row_of(from, row + r) + c);
                transpose(rows);
                for (int64_t r = 0; r < 16; ++r) _mm512_storeu_si512(to + r * 32, rows[r]);
            }
        }
    }
    static void take_pairs(const Taken& from, int64_t row, int64_t c, __m512i pairs[16]) {
        for (int64_t r = 0; r < 16; ++r) {
            const __m256i first = _mm256_loadu_si256((const __m256i*)(row_of(from, row + 2 * r) + c));
            const __m256i second = _mm256_loadu_si256((const __m256i*)(row_of(from, row + 2 * r + 1) + c));
            pairs[r] = interleave(_mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1));
        }
    }
    // right tiles [rows / 32][width / 16]
    static void take_right(const Taken& from, DType type, int64_t width, uint16_t* to) {
        for (int64_t row = 0; row < packed_padded(from.count); row += 32) {
            fetch(from, type, width, row + kAhead, 32);
            for (int64_t c = 0; c < width; c += 16, to += kTile) {
                __m512i pairs[16];
                take_pairs(from, row, c, pairs);
                for (int64_t r = 0; r < 16; ++r) _mm512_storeu_si512(to + r * 32, pairs[r]);
            }
        }
    }
    // left tiles [rows / 32][width / 16]: 16 channels by 32 rows
    static void take_transposed(const Taken& from, DType type, int64_t width, uint16_t* to) {
        for (int64_t row = 0; row < packed_padded(from.count); row += 32) {
            fetch(from, type, width, row + kAhead, 32);
            for (int64_t c = 0; c < width; c += 16, to += kTile) {
                __m512i pairs[16];
                take_pairs(from, row, c, pairs);
                transpose(pairs);
                for (int64_t r = 0; r < 16; ++r) _mm512_storeu_si512(to + r * 32, pairs[r]);
            }
        }
    }

    // out [keys][queries] = rows columns, for queries [from, to)
    static void scores(const uint16_t* rows, const uint16_t* columns, float* out, int64_t keys, int64_t from, int64_t to,
                       int64_t width) {
        const int64_t steps = width / 32, tile = steps * kTile;
        for (int64_t key = 0; key < keys; key += 32) {
            const uint16_t* a = rows + key / 16 * tile;
            for (int64_t query = from; query < to; query += 32) {
                const uint16_t* b = columns + query / 16 * tile;
                multiply<false>(a, a + tile, kTile, b, b + tile, kTile, steps, out + key * kQueries + query, kQueries);
            }
        }
    }
    // out [width][queries] += transposed weights; weights are right tiles [keys / 32][kQueries / 16]
    static void add_values(const uint16_t* transposed, const uint16_t* weights, float* out, int64_t keys, int64_t from,
                           int64_t to, int64_t width) {
        const int64_t a_step = width / 16 * kTile, b_step = kQueries / 16 * kTile;
        for (int64_t c = 0; c < width; c += 32) {
            const uint16_t* a = transposed + c / 16 * kTile;
            for (int64_t query = from; query < to; query += 32) {
                const uint16_t* b = weights + query / 16 * kTile;
                multiply<true>(a, a + kTile, a_step, b, b + kTile, b_step, keys / 32, out + c * kQueries + query, kQueries);
            }
        }
    }
    // out [keys][width] += weights right; weights are left tiles [keys / 16][kQueries / 32]
    static void add_gradient(const uint16_t* weights, const uint16_t* right, float* out, int64_t keys, int64_t from,
                             int64_t to, int64_t width) {
        const int64_t a_tile = kQueries / 32 * kTile, b_step = width / 16 * kTile;
        for (int64_t key = 0; key < keys; key += 32) {
            const uint16_t* a = weights + key / 16 * a_tile + from / 32 * kTile;
            for (int64_t c = 0; c < width; c += 32) {
                const uint16_t* b = right + from / 32 * b_step + c / 16 * kTile;
                multiply<true>(a, a + a_tile, kTile, b, b + kTile, b_step, (to - from) / 32, out + key * width + c, width);
            }
        }
    }

    // keys j and j + 1 of one vector of queries, as add_values wants them
    static void put_values(uint16_t* weights, int64_t j, int64_t tile, __m512 first, __m512 second) {
        uint16_t* to = weights + (j / 32 * (kQueries / 16) + tile) * kTile + j % 32 * 16;
        _mm512_store_si512(to, interleave(narrow(first, second)));
    }
    // key j of two vectors of queries, as add_gradient wants them
    static void put_gradient(uint16_t* weights, int64_t j, int64_t tile, __m512 first, __m512 second) {
        uint16_t* to = weights + (j / 16 * (kQueries / 32) + tile / 2) * kTile + j % 16 * 32;
        _mm512_store_si512(to, narrow(first, second));
    }
};

}  // namespace
}  // namespace quarterdeck
