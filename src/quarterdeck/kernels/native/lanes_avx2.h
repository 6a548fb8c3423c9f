// Sixteen lanes in two AVX2 registers; with QUARTERDECK_AVX_VNNI, by the 256-bit VNNI instructions.
#pragma once

#include <immintrin.h>

#include "convert.h"

namespace quarterdeck {
namespace {

struct Lanes {
#ifdef QUARTERDECK_AVX_VNNI
    static constexpr bool kOffset = true;
    static constexpr int kRaised = 128;
#else
    static constexpr bool kOffset = false;
    static constexpr int kRaised = 0;
#endif
    static constexpr int kMostRows = 4, kMostBlocks = 1, kUnroll = 16, kStrip = 1;

    struct Sum { __m256i low, high; };
    struct Part { __m256i low, high; };  // 16-bit sums of pairs; 32 columns do not overflow: 16 * 15 * 127 < 2^15
    struct Float { __m256 low, high; };
    struct Weights { __m256i low, high; };
    struct Nibbles { __m256i low, high; };
    struct Bytes { __m256i low, high; };  // raised by kRaised
    struct Quad { __m256i bytes; };

    static Sum zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
    static Part zero_part() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
    static Float zero_float() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }

    static __m256i load_bytes(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
    static Weights load(const int8_t* from) { return {load_bytes(from), load_bytes(from + 32)}; }
    static Bytes load_raised(const int8_t* from) {
        const __m256i flip = _mm256_set1_epi8(kRaised ? char(0x80) : 0);
        return {_mm256_xor_si256(load_bytes(from), flip), _mm256_xor_si256(load_bytes(from + 32), flip)};
    }

    static void load_nibbles(const uint8_t* from, Nibbles& low, Nibbles& high) {
        const __m256i mask = _mm256_set1_epi8(15);
        const __m256i first = load_bytes(from), second = load_bytes(from + 32);
        low = {_mm256_and_si256(first, mask), _mm256_and_si256(second, mask)};
        high = {_mm256_and_si256(_mm256_srli_epi16(first, 4), mask), _mm256_and_si256(_mm256_srli_epi16(second, 4), mask)};
    }

    static Quad quad(const int8_t* from) {
        int32_t bytes;
        std::memcpy(&bytes, from, 4);
        return {_mm256_set1_epi32(bytes)};
    }

#ifdef QUARTERDECK_AVX_VNNI
    static Sum dot(Sum sum, Weights w, Quad quad) {
        return {_mm256_dpbusd_avx_epi32(sum.low, quad.bytes, w.low), _mm256_dpbusd_avx_epi32(sum.high, quad.bytes, w.high)};
    }
    static Sum dot(Sum sum, Bytes w, Quad quad) {
        return {_mm256_dpbusd_avx_epi32(sum.low, w.low, quad.bytes), _mm256_dpbusd_avx_epi32(sum.high, w.high, quad.bytes)};
    }
    static Part dot(Part sum, Nibbles w, Quad quad) {
        return {_mm256_dpbusd_avx_epi32(sum.low, w.low, quad.bytes), _mm256_dpbusd_avx_epi32(sum.high, w.high, quad.bytes)};
    }
    static __m256i widen(__m256i part) { return part; }
#else
    // vpmaddubsw wants one side unsigned and saturates at 16 bits: magnitudes of the weights times activations that
    // took over their signs are at most 2 * 127 * 127, so that nothing is lost
    static __m256i signed_dot(__m256i sum, __m256i weights, __m256i quad) {
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(quad, weights));
        return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    static Sum dot(Sum sum, Weights w, Quad quad) {
        return {signed_dot(sum.low, w.low, quad.bytes), signed_dot(sum.high, w.high, quad.bytes)};
    }
    static Sum dot(Sum sum, Bytes w, Quad quad) { return dot(sum, Weights{w.low, w.high}, quad); }
    static Part dot(Part sum, Nibbles w, Quad quad) {
        return {_mm256_add_epi16(sum.low, _mm256_maddubs_epi16(w.low, quad.bytes)),
                _mm256_add_epi16(sum.high, _mm256_maddubs_epi16(w.high, quad.bytes))};
    }
    static __m256i widen(__m256i part) { return _mm256_madd_epi16(part, _mm256_set1_epi16(1)); }
#endif

    static Sum add(Sum a, Sum b) { return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)}; }
    static Sum add(Sum sum, Part part) { return add(sum, Sum{widen(part.low), widen(part.high)}); }
    static Sum add(Sum sum, int32_t number) {
        const __m256i all = _mm256_set1_epi32(number);
        return add(sum, Sum{all, all});
    }
    static Sum without_offset(Sum sum, const int32_t* row_sum) {
        return {_mm256_sub_epi32(sum.low, _mm256_slli_epi32(load_bytes(row_sum), 7)),
                _mm256_sub_epi32(sum.high, _mm256_slli_epi32(load_bytes(row_sum + 8), 7))};
    }

    static Float to_float(Sum sum) { return {_mm256_cvtepi32_ps(sum.low), _mm256_cvtepi32_ps(sum.high)}; }
    static Float load_float(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
    static Float load_half(const uint16_t* from) {
        const __m128i* halves = reinterpret_cast<const __m128i*>(from);
        return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
    }

    static Float multiply(Float a, Float b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
    static Float multiply(Float a, float b) { return multiply(a, Float{_mm256_set1_ps(b), _mm256_set1_ps(b)}); }
    static Float add(Float a, Float b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
    static Float multiply_add(Float a, Float b, Float c) {
        return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
    }
    static Float multiply_add(Float a, float b, Float c) {
        return multiply_add(a, Float{_mm256_set1_ps(b), _mm256_set1_ps(b)}, c);
    }

    static void store(void* to, DType type, Float value, int64_t count) {
        if (type == kFloat32 && count >= 16) {
            _mm256_storeu_ps(static_cast<float*>(to), value.low);
            _mm256_storeu_ps(static_cast<float*>(to) + 8, value.high);
            return;
        }
        float lanes[16];
        _mm256_storeu_ps(lanes, value.low);
        _mm256_storeu_ps(lanes + 8, value.high);
        for (int64_t i = 0; i < count && i < 16; ++i) store_float(to, type, i, lanes[i]);
    }

    static __m256 load_eight(const void* from, DType type) {
        if (type == kFloat32) return _mm256_loadu_ps(static_cast<const float*>(from));
        const __m128i bits = _mm_loadu_si128(static_cast<const __m128i*>(from));
        if (type == kFloat16) return _mm256_cvtph_ps(bits);
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
    }

    static Float load(const void* from, DType type, int64_t count) {
        if (count >= 16) return {load_eight(from, type), load_eight(advance(from, type, 8), type)};
        float lanes[16] = {};
        for (int64_t i = 0; i < count; ++i) lanes[i] = quarterdeck::load_float(from, type, i);
        return load_float(lanes);
    }

    static Float all(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
    static Float all_half(uint16_t value) {
        const __m256 eight = _mm256_cvtph_ps(_mm_set1_epi16(short(value)));
        return {eight, eight};
    }
    static Sum widen_bytes(const uint8_t* from) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
        return {_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))};
    }
    static Float widen(const uint8_t* from) { return to_float(widen_bytes(from)); }
    static Float widen_low(const uint8_t* from) {
        const Sum bytes = widen_bytes(from);
        const __m256i mask = _mm256_set1_epi32(15);
        return to_float({_mm256_and_si256(bytes.low, mask), _mm256_and_si256(bytes.high, mask)});
    }
    static Float widen_high(const uint8_t* from) {
        const Sum bytes = widen_bytes(from);
        return to_float({_mm256_srli_epi32(bytes.low, 4), _mm256_srli_epi32(bytes.high, 4)});
    }

    // lane i is the total of sums[i]
    static Float totals(const Float sums[16]) {
        __m256 eight[2];
        for (int half = 0; half < 2; ++half) {
            __m256 four[4];
            for (int i = 0; i < 4; ++i) {
                const Float &a = sums[half * 8 + 2 * i], &b = sums[half * 8 + 2 * i + 1];
                four[i] = _mm256_hadd_ps(_mm256_add_ps(a.low, a.high), _mm256_add_ps(b.low, b.high));
            }
            const __m256 first = _mm256_hadd_ps(four[0], four[1]), second = _mm256_hadd_ps(four[2], four[3]);
            const __m256 low = _mm256_permute2f128_ps(first, second, 0x20);
            eight[half] = _mm256_add_ps(low, _mm256_permute2f128_ps(first, second, 0x31));
        }
        return {eight[0], eight[1]};
    }

    static float total(Float value) {
        const __m256 eight = _mm256_add_ps(value.low, value.high);
        __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        four = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
    }

    static void store_all(float* to, Float value) {
        _mm256_storeu_ps(to, value.low);
        _mm256_storeu_ps(to + 8, value.high);
    }
};

}  // namespace
}  // namespace quarterdeck
