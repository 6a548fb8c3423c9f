// Products of packed attention in float32 with multiply-adds, of rows as they are; bfloat16 is widened as it is taken.
#pragma once

#include "packed_lanes.h"

namespace quarterdeck {
namespace {

// c [rows][16 V] (+)= a [rows][steps] b [steps][16 V], R rows at a time; element (i, k) of a is a[i * a_row + k * a_step].
template <int R, int V, bool kAdd>
inline void multiply_strip(const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t b_row, float* c,
                           int64_t c_row, int64_t rows, int64_t steps) {
    for (int64_t row = 0; row < rows; row += R, a += R * a_row, c += R * c_row) {
        __m512 sums[R][V];
        for (int r = 0; r < R; ++r) {
            for (int v = 0; v < V; ++v) sums[r][v] = kAdd ? _mm512_loadu_ps(c + r * c_row + v * 16) : _mm512_setzero_ps();
        }
        for (int64_t k = 0; k < steps; ++k) {
            __m512 right[V];
            for (int v = 0; v < V; ++v) right[v] = _mm512_loadu_ps(b + k * b_row + v * 16);
            for (int r = 0; r < R; ++r) {
                const __m512 left = _mm512_set1_ps(a[r * a_row + k * a_step]);
                for (int v = 0; v < V; ++v) sums[r][v] = _mm512_fmadd_ps(left, right[v], sums[r][v]);
            }
        }
        for (int r = 0; r < R; ++r) {
            for (int v = 0; v < V; ++v) _mm512_storeu_ps(c + r * c_row + v * 16, sums[r][v]);
        }
    }
}

// As above for any even number of vectors and rows in multiples of 8.
template <bool kAdd>
inline void multiply(const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t b_row, float* c,
                     int64_t c_row, int64_t rows, int64_t vectors, int64_t steps) {
    int64_t v = 0;
    for (; v + 4 <= vectors; v += 4) {
        multiply_strip<4, 4, kAdd>(a, a_row, a_step, b + v * 16, b_row, c + v * 16, c_row, rows, steps);
    }
    if (v < vectors) multiply_strip<8, 2, kAdd>(a, a_row, a_step, b + v * 16, b_row, c + v * 16, c_row, rows, steps);
}

struct VectorProducts {
    using Element = float;
    static constexpr int kDegree = 5;
    struct State {};

    static void take_rows(const Taken& from, DType type, int64_t width, float* to) {
        for (int64_t row = 0; row < packed_padded(from.count); ++row) {
            for (int64_t c = 0; c < width; c += 16, to += 16) {
                const bool there = row < from.count;
                _mm512_storeu_ps(to, there ? Lanes::load(advance(from.data, type, row * from.stride + c), type, 16)
                                           : _mm512_setzero_ps());
            }
        }
    }
    static void take_right(const Taken& from, DType type, int64_t width, float* to) { take_rows(from, type, width, to); }
    static void take_transposed(const Taken& from, DType type, int64_t width, float* to) {
        take_rows(from, type, width, to);
    }
    // [width][kQueries]
    static void take_columns(const Taken& from, DType type, int64_t width, float* to) {
        for (int64_t row = 0; row < packed_padded(from.count); row += 16) {
            for (int64_t c = 0; c < width; c += 16) {
                __m512i rows[16];
                for (int64_t r = 0; r < 16; ++r) {
                    const bool there = row + r < from.count;
                    const void* at = advance(from.data, type, (row + r) * from.stride + c);
                    rows[r] = there ? _mm512_castps_si512(Lanes::load(at, type, 16)) : _mm512_setzero_si512();
                }
                transpose(rows);
                for (int64_t r = 0; r < 16; ++r) _mm512_storeu_si512(to + (c + r) * kQueries + row, rows[r]);
            }
        }
    }

    // out [keys][queries] = rows [keys][width] columns [width][queries], for queries [from, to)
    static void scores(const float* rows, const float* columns, float* out, int64_t keys, int64_t from, int64_t to,
                       int64_t width) {
        multiply<false>(rows, width, 1, columns + from, kQueries, out + from, kQueries, keys, (to - from) / 16, width);
    }
    // out [width][queries] += transposed [keys][width] weights [keys][queries]
    static void add_values(const float* transposed, const float* weights, float* out, int64_t keys, int64_t from,
                           int64_t to, int64_t width) {
        multiply<true>(transposed, 1, width, weights + from, kQueries, out + from, kQueries, width, (to - from) / 16, keys);
    }
    // out [keys][width] += weights [keys][queries] right [queries][width]
    static void add_gradient(const float* weights, const float* right, float* out, int64_t keys, int64_t from, int64_t to,
                             int64_t width) {
        multiply<true>(weights + from, kQueries, 1, right + from * width, width, out, width, keys, width / 16, to - from);
    }

    // keys j and j + 1 of one vector of queries, as add_values wants them
    static void put_values(float* weights, int64_t j, int64_t tile, __m512 first, __m512 second) {
        _mm512_storeu_ps(weights + j * kQueries + tile * 16, first);
        _mm512_storeu_ps(weights + (j + 1) * kQueries + tile * 16, second);
    }
    // key j of two vectors of queries, as add_gradient wants them
    static void put_gradient(float* weights, int64_t j, int64_t tile, __m512 first, __m512 second) {
        _mm512_storeu_ps(weights + j * kQueries + tile * 16, first);
        _mm512_storeu_ps(weights + j * kQueries + tile * 16 + 16, second);
    }
};

}  // namespace
}  // namespace quarterdeck
