// Sixteen lanes in one AVX-512 register, with VNNI.
#pragma once

#include <immintrin.h>

#include "convert.h"

namespace quarterdeck {
namespace {

struct Lanes {
    static constexpr bool kOffset = true;  // vpdpbusd: unsigned activations times signed weights
    static constexpr int kRaised = 128;    // or signed activations times weights that were made unsigned
    static constexpr int kMostRows = 8, kMostBlocks = 3, kUnroll = 16, kStrip = 4;

    using Sum = __m512i;
    struct Part { __m512i sum; };
    using Float = __m512;
    struct Weights { __m512i bytes; };
    struct Nibbles { __m512i bytes; };
    struct Bytes { __m512i bytes; };
    struct Quad { __m512i bytes; };

    static Sum zero() { return _mm512_setzero_si512(); }
    static Part zero_part() { return {_mm512_setzero_si512()}; }
    static Float zero_float() { return _mm512_setzero_ps(); }

    static Weights load(const int8_t* from) { return {_mm512_loadu_si512(from)}; }

    static Bytes load_raised(const int8_t* from) {
        return {_mm512_xor_si512(_mm512_loadu_si512(from), _mm512_set1_epi8(char(0x80)))};
    }

    static void load_nibbles(const uint8_t* from, Nibbles& low, Nibbles& high) {
        const __m512i mask = _mm512_set1_epi8(15);
        const __m512i both = _mm512_loadu_si512(from);
        low.bytes = _mm512_and_si512(both, mask);
        high.bytes = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
    }

    static Quad quad(const int8_t* from) {
        int32_t bytes;
        std::memcpy(&bytes, from, 4);
        return {_mm512_set1_epi32(bytes)};
    }

    static Sum dot(Sum sum, Weights weights, Quad quad) { return _mm512_dpbusd_epi32(sum, quad.bytes, weights.bytes); }
    static Sum dot(Sum sum, Bytes weights, Quad quad) { return _mm512_dpbusd_epi32(sum, weights.bytes, quad.bytes); }
    static Part dot(Part part, Nibbles weights, Quad quad) {
        return {_mm512_dpbusd_epi32(part.sum, weights.bytes, quad.bytes)};
    }

    static Sum add(Sum a, Sum b) { return _mm512_add_epi32(a, b); }
    static Sum add(Sum sum, Part part) { return _mm512_add_epi32(sum, part.sum); }
    static Sum add(Sum sum, int32_t number) { return _mm512_add_epi32(sum, _mm512_set1_epi32(number)); }
    static Sum without_offset(Sum sum, const int32_t* row_sum) {
        return _mm512_sub_epi32(sum, _mm512_slli_epi32(_mm512_loadu_si512(row_sum), 7));
    }

    static Float to_float(Sum sum) { return _mm512_cvtepi32_ps(sum); }
    static Float load_float(const float* from) { return _mm512_loadu_ps(from); }
    static Float load_half(const uint16_t* from) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    }

    static Float multiply(Float a, Float b) { return _mm512_mul_ps(a, b); }
    static Float multiply(Float a, float b) { return _mm512_mul_ps(a, _mm512_set1_ps(b)); }
    static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
    static Float multiply_add(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
    static Float multiply_add(Float a, float b, Float c) { return _mm512_fmadd_ps(a, _mm512_set1_ps(b), c); }

    static __m256i to_bfloat16(Float value) {
        const __m512i bits = _mm512_castps_si512(value);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
        const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
        return _mm512_cvtepi32_epi16(
            _mm512_mask_mov_epi32(_mm512_srli_epi32(rounded, 16), nan, _mm512_set1_epi32(0x7fc0)));
    }

    static void store(void* to, DType type, Float value, int64_t count) {
        const __mmask16 mask = count >= 16 ? 0xffff : __mmask16((1u << count) - 1);
        if (type == kFloat32) {
            _mm512_mask_storeu_ps(to, mask, value);
        } else {
            const __m256i half = type == kBFloat16 ? to_bfloat16(value) : _mm512_cvtps_ph(value, 0);
            _mm256_mask_storeu_epi16(to, mask, half);
        }
    }

    static Float load(const void* from, DType type, int64_t count) {
        const __mmask16 mask = count >= 16 ? 0xffff : __mmask16((1u << count) - 1);
        if (type == kFloat32) return _mm512_maskz_loadu_ps(mask, from);
        const __m256i half = _mm256_maskz_loadu_epi16(mask, from);
        if (type == kFloat16) return _mm512_cvtph_ps(half);
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    }

    static Float all(float value) { return _mm512_set1_ps(value); }
    static Float all_half(uint16_t value) { return _mm512_cvtph_ps(_mm256_set1_epi16(short(value))); }
    static __m512i widen_bytes(const uint8_t* from) {
        return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    }
    static Float widen(const uint8_t* from) { return _mm512_cvtepi32_ps(widen_bytes(from)); }
    static Float widen_low(const uint8_t* from) {
        return _mm512_cvtepi32_ps(_mm512_and_si512(widen_bytes(from), _mm512_set1_epi32(15)));
    }
    static Float widen_high(const uint8_t* from) { return _mm512_cvtepi32_ps(_mm512_srli_epi32(widen_bytes(from), 4)); }

    // lane i is the total of sums[i]: pairs of vectors are interleaved and added, four times
    static Float totals(const Float sums[16]) {
        __m512 eight[8], four[4];
        for (int i = 0; i < 8; ++i) {  // [i, i + 8] alternate in units of one lane
            eight[i] = _mm512_add_ps(_mm512_unpacklo_ps(sums[i], sums[i + 8]), _mm512_unpackhi_ps(sums[i], sums[i + 8]));
        }
        for (int i = 0; i < 4; ++i) {  // within each 128 bits: i, i + 8, i + 4, i + 12 after both halves are added
            const __m512d a = _mm512_castps_pd(eight[i]), b = _mm512_castps_pd(eight[i + 4]);
            four[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
        }
        const auto fold = [](__m512 a, __m512 b) {  // 128-bit parts: a's even and odd ones added, then b's
            return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
        };
        const __m512 all = fold(fold(four[0], four[1]), fold(four[2], four[3]));
        const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 1, 5, 9, 13, 3, 7, 11, 15);
        return _mm512_permutexvar_ps(order, all);
    }

    static float total(Float value) { return _mm512_reduce_add_ps(value); }
    static void store_all(float* to, Float value) { _mm512_storeu_ps(to, value); }
};

}  // namespace
}  // namespace quarterdeck
