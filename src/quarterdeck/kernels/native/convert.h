// Conversions of single numbers between float32 and the 16-bit types, for tails and the portable level.
#pragma once

#include <cstring>

#include "quarterdeck.h"

namespace quarterdeck {
namespace {

inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

inline float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline float from_bfloat16(uint16_t bits) { return float_of(uint32_t(bits) << 16); }

// Round to nearest, ties to even; every NaN becomes the quiet NaN that PyTorch writes.
inline uint16_t to_bfloat16(float value) {
    const uint32_t bits = bits_of(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
    return uint16_t((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

inline float from_float16(uint16_t bits) {
    const uint32_t sign = uint32_t(bits & 0x8000u) << 16;
    const uint32_t magnitude = bits & 0x7fffu;
    if (magnitude >= 0x7c00u) return float_of(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    // exponents differ by 112; a product in float32 makes subnormal numbers right too
    const float scaled = float_of(magnitude << 13) * float_of((254u - 15u) << 23);
    return float_of(bits_of(scaled) | sign);
}

inline uint16_t to_float16(float value) {
    const uint32_t bits = bits_of(value);
    const uint16_t sign = uint16_t(bits >> 16 & 0x8000u);
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return uint16_t(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) return uint16_t(sign | 0x7c00u);  // rounds to 65536 or more
    if (magnitude < 0x38800000u) {
        // subnormal: the sum with 0.5 has the wanted bits, rounded, at its end
        const float rounded = float_of(magnitude) + 0.5f;
        return uint16_t(sign | (bits_of(rounded) - 0x3f000000u));
    }
    const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1);
    return uint16_t(sign | ((rounded - (112u << 23)) >> 13));
}

inline float load_float(const void* from, DType type, int64_t index) {
    if (type == kFloat32) return static_cast<const float*>(from)[index];
    const uint16_t bits = static_cast<const uint16_t*>(from)[index];
    return type == kBFloat16 ? from_bfloat16(bits) : from_float16(bits);
}

inline void store_float(void* to, DType type, int64_t index, float value) {
    if (type == kFloat32) {
        static_cast<float*>(to)[index] = value;
    } else {
        static_cast<uint16_t*>(to)[index] = type == kBFloat16 ? to_bfloat16(value) : to_float16(value);
    }
}

inline const void* advance(const void* pointer, DType type, int64_t count) {
    return static_cast<const char*>(pointer) + count * (type == kFloat32 ? 4 : 2);
}

inline void* advance(void* pointer, DType type, int64_t count) {
    return static_cast<char*>(pointer) + count * (type == kFloat32 ? 4 : 2);
}

}  // namespace
}  // namespace quarterdeck
