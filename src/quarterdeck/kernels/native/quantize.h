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

template <DType Type>
void quantize_typed(const void* x, const Rows8& rows, int64_t row) {
    const uint32_t bits = largest_magnitude<Type>(x, rows.columns);
    const bool finite = bits < 0x7f800000u;
    const float largest = float_of(bits);
    const float inverse = finite && largest >= kLeast ? 127.0f / largest : 0.0f;
    rows.scale[row] = !finite ? float_of(0x7fc00000u) : largest >= kLeast ? largest / 127.0f : 0.0f;
    const uint8_t flip = rows.offset ? 0x80 : 0;
    int8_t* to = const_cast<int8_t*>(rows.quad(row, 0));
    int32_t* sums = rows.group_sum ? rows.group_sum + row * (rows.padded / 32) : nullptr;
    float values[kBlockColumns];
    int32_t rounded[kBlockColumns];
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: the sum has no fraction bits, rounded to even
    for (int64_t column = 0; column < rows.padded; column += kBlockColumns, to += kBlockColumns * rows.group) {
        load_columns<Type>(advance(x, Type, column), rows.columns - column, values);
        if (!finite) std::memset(values, 0, sizeof values);
        for (int i = 0; i < kBlockColumns; ++i) {
            rounded[i] = int32_t(bits_of(values[i] * inverse + kRound)) - int32_t(0x4b400000);
        }
        for (int i = 0; i < kBlockColumns; ++i) to[i] = int8_t(uint8_t(rounded[i]) ^ flip);
        if (sums) {
            for (int half = 0; half < 2; ++half) {
                int32_t sum = 0;
                for (int i = 0; i < 32; ++i) sum += rounded[half * 32 + i];
                *sums++ = sum;
            }
        }
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
