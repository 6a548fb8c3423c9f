// One row of activations to 8 bits. Plain loops over 64 columns, which the compiler turns into vectors of each level.
#pragma once

#include "convert.h"

namespace quarterdeck {
namespace {

constexpr float kLeast = 0x1p-100f;  // rows below this are rows of zeros; see rows.py

template <DType Type>
inline void load_columns(const void* from, int64_t count, float* to) {
    if (count < kBlockColumns) {
        for (int64_t i = 0; i < kBlockColumns; ++i) to[i] = 0.0f;
        for (int64_t i = 0; i < count; ++i) to[i] = load_float(from, Type, i);
        return;
    }
    for (int64_t i = 0; i < kBlockColumns; ++i) to[i] = load_float(from, Type, i);
}

#ifdef __AVX512BW__

inline __m512 load_lanes(const void* from, DType type, int64_t index, int64_t columns) {
    return Lanes::load(advance(from, type, index), type, columns - index);
}

template <DType Type>
uint32_t largest_magnitude(const void* x, int64_t columns) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    __m512i largest[4] = {};  // as bits: NaN is above infinity, infinity above all numbers
    int64_t column = 0;
    for (; column + 64 <= columns; column += 64) {
        for (int i = 0; i < 4; ++i) {
            const __m512i bits = _mm512_castps_si512(load_lanes(x, Type, column + 16 * i, columns));
            largest[i] = _mm512_max_epu32(largest[i], _mm512_and_si512(bits, magnitude));
        }
    }
    for (; column < columns; column += 16) {
        const __m512i bits = _mm512_castps_si512(load_lanes(x, Type, column, columns));
        largest[0] = _mm512_max_epu32(largest[0], _mm512_and_si512(bits, magnitude));
    }
    largest[0] = _mm512_max_epu32(_mm512_max_epu32(largest[0], largest[1]), _mm512_max_epu32(largest[2], largest[3]));
    return _mm512_reduce_max_epu32(largest[0]);
}

// 64 columns from `column` on, times `inverse`, rounded to nearest (even); sums of the two halves are written to `sums`.
template <DType Type>
void round_tile(const void* x, int64_t column, int64_t columns, float inverse, uint8_t flip, int8_t* to, int32_t* sums) {
    __m512i rounded[4];
    for (int i = 0; i < 4; ++i) {
        const int64_t at = column + 16 * i;
        const __m512 values = at < columns ? load_lanes(x, Type, at, columns) : _mm512_setzero_ps();
        rounded[i] = _mm512_cvtps_epi32(_mm512_mul_ps(values, _mm512_set1_ps(inverse)));
        const __m128i bytes = _mm_xor_si128(_mm512_cvtepi32_epi8(rounded[i]), _mm_set1_epi8(char(flip)));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 16 * i), bytes);
    }
    if (sums) {
        sums[0] = _mm512_reduce_add_epi32(_mm512_add_epi32(rounded[0], rounded[1]));
        sums[1] = _mm512_reduce_add_epi32(_mm512_add_epi32(rounded[2], rounded[3]));
    }
}

#else

template <DType Type>
uint32_t largest_magnitude(const void* x, int64_t columns) {
    uint32_t largest[16] = {};  // as bits: NaN is above infinity, infinity above all numbers
    float values[kBlockColumns];
    for (int64_t column = 0; column < columns; column += kBlockColumns) {
        load_columns<Type>(advance(x, Type, column), columns - column, values);
        for (int i = 0; i < kBlockColumns; i += 16) {
            for (int lane = 0; lane < 16; ++lane) {
                const uint32_t magnitude = bits_of(values[i + lane]) & 0x7fffffffu;
                largest[lane] = magnitude > largest[lane] ? magnitude : largest[lane];
            }
        }
    }
    for (int lane = 1; lane < 16; ++lane) largest[0] = largest[lane] > largest[0] ? largest[lane] : largest[0];
    return largest[0];
}

// 64 columns from `column` on, times `inverse`, rounded to nearest (even); sums of the two halves are written to `sums`.
template <DType Type>
void round_tile(const void* x, int64_t column, int64_t columns, float inverse, uint8_t flip, int8_t* to, int32_t* sums) {
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: the sum has no bits for fractions, and its last bits are the result
    float values[kBlockColumns];
    int32_t rounded[kBlockColumns];
    load_columns<Type>(advance(x, Type, column), columns - column, values);
    for (int i = 0; i < kBlockColumns; ++i) {
        rounded[i] = int32_t(bits_of(values[i] * inverse + kRound)) - int32_t(0x4b400000);
    }
    for (int i = 0; i < kBlockColumns; ++i) to[i] = int8_t(uint8_t(rounded[i]) ^ flip);
    for (int half = 0; sums && half < 2; ++half) {
        sums[half] = 0;
        for (int i = 0; i < 32; ++i) sums[half] += rounded[half * 32 + i];
    }
}

#endif

template <DType Type>
void quantize_typed(const void* x, const Rows8& rows, int64_t row) {
    const uint32_t bits = largest_magnitude<Type>(x, rows.columns);
    const bool finite = bits < 0x7f800000u;
    const float largest = float_of(bits);
    const bool some = finite && largest >= kLeast;
    const float inverse = some ? 127.0f / largest : 0.0f;
    rows.scale[row] = !finite ? float_of(0x7fc00000u) : some ? largest / 127.0f : 0.0f;
    const uint8_t flip = rows.offset ? 0x80 : 0;
    int32_t* sums = rows.group_sum ? rows.group_sum + row * (rows.padded / 32) : nullptr;
    for (int64_t column = 0; column < rows.padded; column += kBlockColumns) {
        int8_t* to = rows.tile_of(row / rows.group, column / kBlockColumns) + row % rows.group * kBlockColumns;
        // a row that is not finite becomes zeros, which its scale makes NaNs
        round_tile<Type>(x, column, some ? rows.columns : 0, inverse, flip, to, sums ? sums + column / 32 : nullptr);
    }
}

void quantize_row(const void* x, DType type, const Rows8& rows, int64_t row) {
    switch (type) {
        case kFloat32: return quantize_typed<kFloat32>(x, rows, row);
        case kBFloat16: return quantize_typed<kBFloat16>(x, rows, row);
        case kFloat16: return quantize_typed<kFloat16>(x, rows, row);
    }
}

}  // namespace
}  // namespace quarterdeck
