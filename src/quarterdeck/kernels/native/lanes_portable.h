// Sixteen lanes in plain C++: the definition of what the vector versions do.
#pragma once

#include <cmath>

#include "convert.h"

namespace quarterdeck {
namespace {

struct Lanes {
    static constexpr bool kOffset = false;
    static constexpr int kRaised = 0;
    static constexpr int kMostRows = 4, kMostBlocks = 1, kUnroll = 4, kStrip = 2;

    struct Sum { int32_t lane[16]; };
    struct Part { int32_t lane[16]; };
    struct Float { float lane[16]; };
    struct Weights { int8_t byte[64]; };
    struct Nibbles { uint8_t byte[64]; };
    using Bytes = Weights;
    struct Quad { int8_t byte[4]; };

    static Sum zero() { return Sum{}; }
    static Part zero_part() { return Part{}; }
    static Float zero_float() { return Float{}; }

    static Weights load(const int8_t* from) {
        Weights weights;
        std::memcpy(weights.byte, from, 64);
        return weights;
    }

    static Bytes load_raised(const int8_t* from) { return load(from); }

    static void load_nibbles(const uint8_t* from, Nibbles& low, Nibbles& high) {
        for (int i = 0; i < 64; ++i) low.byte[i] = from[i] & 15, high.byte[i] = from[i] >> 4;
    }

    static Quad quad(const int8_t* from) {
        Quad quad;
        std::memcpy(quad.byte, from, 4);
        return quad;
    }

    static Sum dot(Sum sum, const Weights& weights, Quad quad) {
        for (int i = 0; i < 64; ++i) sum.lane[i / 4] += int32_t(weights.byte[i]) * quad.byte[i % 4];
        return sum;
    }

    static Part dot(Part sum, const Nibbles& weights, Quad quad) {
        for (int i = 0; i < 64; ++i) sum.lane[i / 4] += int32_t(weights.byte[i]) * quad.byte[i % 4];
        return sum;
    }

    static Sum add(Sum a, const Sum& b) {
        for (int i = 0; i < 16; ++i) a.lane[i] += b.lane[i];
        return a;
    }

    static Sum add(Sum sum, Part part) {
        for (int i = 0; i < 16; ++i) sum.lane[i] += part.lane[i];
        return sum;
    }

    static Sum add(Sum sum, int32_t number) {
        for (int i = 0; i < 16; ++i) sum.lane[i] += number;
        return sum;
    }

    // sum - 128 * row_sum: unused where activations are signed
    static Sum without_offset(Sum sum, const int32_t*) { return sum; }

    static Float to_float(const Sum& sum) {
        Float result;
        for (int i = 0; i < 16; ++i) result.lane[i] = float(sum.lane[i]);
        return result;
    }

    static Float load(const void* from, DType type, int64_t count) {
        Float result{};
        for (int64_t i = 0; i < count && i < 16; ++i) result.lane[i] = quarterdeck::load_float(from, type, i);
        return result;
    }

    static Float all(float value) {
        Float result;
        for (int i = 0; i < 16; ++i) result.lane[i] = value;
        return result;
    }

    static Float all_half(uint16_t value) { return all(from_float16(value)); }

    static Float widen(const uint8_t* from) {
        Float result;
        for (int i = 0; i < 16; ++i) result.lane[i] = float(from[i]);
        return result;
    }

    static Float widen_low(const uint8_t* from) {
        Float result;
        for (int i = 0; i < 16; ++i) result.lane[i] = float(from[i] & 15);
        return result;
    }

    static Float widen_high(const uint8_t* from) {
        Float result;
        for (int i = 0; i < 16; ++i) result.lane[i] = float(from[i] >> 4);
        return result;
    }

    // lane i is the total of sums[i]
    static Float totals(const Float sums[16]) {
        Float result;
        for (int i = 0; i < 16; ++i) result.lane[i] = total(sums[i]);
        return result;
    }

    static float total(const Float& value) {
        float sum = 0;
        for (int i = 0; i < 16; ++i) sum += value.lane[i];
        return sum;
    }

    static Float load_float(const float* from) {
        Float result;
        std::memcpy(result.lane, from, 64);
        return result;
    }

    static Float load_half(const uint16_t* from) {
        Float result;
        for (int i = 0; i < 16; ++i) result.lane[i] = from_float16(from[i]);
        return result;
    }

    static Float multiply(Float a, const Float& b) {
        for (int i = 0; i < 16; ++i) a.lane[i] *= b.lane[i];
        return a;
    }

    static Float multiply(Float a, float b) {
        for (int i = 0; i < 16; ++i) a.lane[i] *= b;
        return a;
    }

    static Float add(Float a, const Float& b) {
        for (int i = 0; i < 16; ++i) a.lane[i] += b.lane[i];
        return a;
    }

    static Float multiply_add(const Float& a, const Float& b, Float c) {
        for (int i = 0; i < 16; ++i) c.lane[i] += a.lane[i] * b.lane[i];
        return c;
    }

    static Float multiply_add(const Float& a, float b, Float c) {
        for (int i = 0; i < 16; ++i) c.lane[i] += a.lane[i] * b;
        return c;
    }

    static void store(void* to, DType type, const Float& value, int64_t count) {
        for (int64_t i = 0; i < count; ++i) store_float(to, type, i, value.lane[i]);
    }

    static void store_all(float* to, const Float& value) { std::memcpy(to, value.lane, 64); }
};

}  // namespace
}  // namespace quarterdeck
