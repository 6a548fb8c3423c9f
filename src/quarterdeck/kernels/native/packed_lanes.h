// What both kinds of packed attention do with vectors of 16 numbers.
#pragma once

#include "lanes_avx512.h"
#include "packed.h"

namespace quarterdeck {
namespace {

constexpr int64_t kQueries = 64;  // of a block

// Rows of 16 words become columns.
inline void transpose(__m512i rows[16]) {
    __m512i pairs[16], fours[16], eights[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
        pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {  // fours[4 i + c]: column c of each 128 bits, rows 4 i to 4 i + 3
        fours[4 * i] = _mm512_unpacklo_epi64(pairs[4 * i], pairs[4 * i + 2]);
        fours[4 * i + 1] = _mm512_unpackhi_epi64(pairs[4 * i], pairs[4 * i + 2]);
        fours[4 * i + 2] = _mm512_unpacklo_epi64(pairs[4 * i + 1], pairs[4 * i + 3]);
        fours[4 * i + 3] = _mm512_unpackhi_epi64(pairs[4 * i + 1], pairs[4 * i + 3]);
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
        eights[c] = _mm512_shuffle_i32x4(fours[c], fours[4 + c], 0x88);
        eights[4 + c] = _mm512_shuffle_i32x4(fours[c], fours[4 + c], 0xdd);
        eights[8 + c] = _mm512_shuffle_i32x4(fours[8 + c], fours[12 + c], 0x88);
        eights[12 + c] = _mm512_shuffle_i32x4(fours[8 + c], fours[12 + c], 0xdd);
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
        rows[c] = _mm512_shuffle_i32x4(eights[c], eights[8 + c], 0x88);
        rows[8 + c] = _mm512_shuffle_i32x4(eights[c], eights[8 + c], 0xdd);
        rows[4 + c] = _mm512_shuffle_i32x4(eights[4 + c], eights[12 + c], 0x88);
        rows[12 + c] = _mm512_shuffle_i32x4(eights[4 + c], eights[12 + c], 0xdd);
    }
}

// Rows of a head, of which the ones from `count` on are zero.
struct Taken {
    const void* data;
    int64_t stride, count;  // stride in elements

    Taken(const PackedRows& rows, DType type, int64_t token, int64_t head, int64_t rows_taken)
        : data(static_cast<const char*>(rows.data) + (token * rows.token + head * rows.head) * (type == kFloat32 ? 4 : 2)),
          stride(rows.token), count(rows_taken) {}
};

// Rows of heads lie apart, which no processor foresees: `count` rows from `row` on are fetched ahead, where they exist.
inline void fetch(const Taken& rows, DType type, int64_t width, int64_t row, int64_t count) {
    const int64_t size = type == kFloat32 ? 4 : 2, last = row + count < rows.count ? row + count : rows.count;
    for (; row < last; ++row) {
        const char* at = static_cast<const char*>(rows.data) + row * rows.stride * size;
        for (int64_t byte = 0; byte < width * size; byte += 64) _mm_prefetch(at + byte, _MM_HINT_T0);
    }
}
constexpr int64_t kAhead = 48;  // rows

// 2 to the power of x; 2^-100 where x is less. The polynomial on [-1/2, 1/2] has a relative error below 1e-4 (degree 3)
// or 2e-7 (degree 5, the nearest that float32 needs): least largest relative error, found by reweighted least squares.
template <int kDegree>
inline __m512 power_of_two(__m512 x) {
    static_assert(kDegree == 3 || kDegree == 5);
    x = _mm512_max_ps(_mm512_set1_ps(-100.0f), x);
    const __m512 shift = _mm512_set1_ps(12582912.0f);  // 1.5 * 2^23: the sum's last bits are x to the nearest integer
    const __m512 whole = _mm512_add_ps(x, shift);
    const __m512 rest = _mm512_sub_ps(x, _mm512_sub_ps(whole, shift));
    constexpr float kThree[] = {0.9999280571937561f, 0.6932609677314758f, 0.2426111251115799f, 0.055171623826026917f};
    constexpr float kFive[] = {1.0000001192092896f, 0.693146944046020508f, 0.240221202373504639f,
                               0.0555071346461772919f, 0.009675540961325169f, 0.0013276466634124517f};
    const float* const factors = kDegree == 3 ? kThree : kFive;
    __m512 power = _mm512_set1_ps(factors[kDegree]);
    for (int i = kDegree - 1; i >= 0; --i) power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(factors[i]));
    return _mm512_castsi512_ps(
        _mm512_add_epi32(_mm512_castps_si512(power), _mm512_slli_epi32(_mm512_castps_si512(whole), 23)));
}

// The lanes (queries) that see a key `offset` positions behind the first lane's query.
inline __mmask16 seeing(int64_t offset) {
    return offset <= 0 ? 0xffff : offset >= 16 ? 0 : __mmask16(0xffffu << offset);
}

}  // namespace
}  // namespace quarterdeck
