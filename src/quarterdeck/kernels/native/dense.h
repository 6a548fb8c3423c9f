// Products of few rows with weights as they are: each weight is read once, widened to float32 and multiplied.
#pragma once

#include "quarterdeck.h"

namespace quarterdeck {
namespace {

// `W` rows of weights by `R` rows of activations.
template <int W, int R>
void dense_tile(const DenseProduct& p, int64_t row, int64_t x_row) {
    Lanes::Float sum[W][R];
    for (int w = 0; w < W; ++w)
        for (int r = 0; r < R; ++r) sum[w][r] = Lanes::zero_float();
    const char* weights = static_cast<const char*>(advance(p.weights, p.type, row * p.k));
    const int64_t bytes = p.type == kFloat32 ? 4 : 2;
    const float* x = p.x + x_row * p.padded;
    const auto add = [&](int64_t column, int64_t count, DType type) {
        Lanes::Float values[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) values[r] = Lanes::load_float(x + r * p.padded + column);
#pragma GCC unroll 4
        for (int w = 0; w < W; ++w) {
            const Lanes::Float weight = Lanes::load(weights + (w * p.k + column) * bytes, type, count);
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) sum[w][r] = Lanes::multiply_add(weight, values[r], sum[w][r]);
        }
    };
    const int64_t whole = p.k / 16 * 16;
    switch (p.type) {
        case kFloat32: for (int64_t c = 0; c < whole; c += 16) add(c, 16, kFloat32); break;
        case kBFloat16: for (int64_t c = 0; c < whole; c += 16) add(c, 16, kBFloat16); break;
        case kFloat16: for (int64_t c = 0; c < whole; c += 16) add(c, 16, kFloat16); break;
    }
    if (whole < p.k) add(whole, p.k - whole, p.type);
    for (int w = 0; w < W; ++w) {
        const float bias = p.bias ? p.bias[row + w] : 0.0f;
        for (int r = 0; r < R; ++r) store_float(p.out, p.type, (x_row + r) * p.n + row + w, Lanes::total(sum[w][r]) + bias);
    }
}

template <int W>
void dense_rows(const DenseProduct& p, int64_t row) {
    for (int64_t x_row = 0; x_row < p.m; x_row += 4) {
        switch (p.m - x_row) {
            case 1: dense_tile<W, 1>(p, row, x_row); break;
            case 2: dense_tile<W, 2>(p, row, x_row); break;
            case 3: dense_tile<W, 3>(p, row, x_row); break;
            default: dense_tile<W, 4>(p, row, x_row); break;
        }
    }
}

void dense_product(const DenseProduct& p, int64_t first, int64_t last) {
    int64_t row = first;
    for (; row + 4 <= last; row += 4) dense_rows<4>(p, row);
    for (; row < last; ++row) dense_rows<1>(p, row);
}

}  // namespace
}  // namespace quarterdeck
