// Attention of one position over stored keys and values, which are widened a few rows at a time and never as a whole.
//
// A piece of positions is done in three steps: scores of all queries; weights, relative to the piece's largest score;
// weighted sums of values. Pieces are put together by interface.cpp, as in "flash decoding".
#pragma once

#include "quarterdeck.h"

namespace quarterdeck {
namespace {

constexpr int64_t kRowsAtOnce = 16;

// Rows [first, first + count) of one head as float32, [count][padded]. Where nothing has to be converted it is the
// stored rows themselves.
void widen_codes(const Stored& s, int64_t sequence, int64_t head, int64_t first, int64_t count, int64_t width,
                 int64_t padded, float* to) {
    const uint8_t* codes = static_cast<const uint8_t*>(s.data) + sequence * s.sequence + head * s.head;
    const uint16_t* scales = s.scales + sequence * s.scale_sequence + head * s.scale_head;
    const uint16_t* minima = s.minima + sequence * s.scale_sequence + head * s.scale_head;
    const int64_t groups = width / s.channels, row_bytes = s.bits == 8 ? width : width / 2;
    float scale[kMostWidth], minimum[kMostWidth];
    int64_t known = -1;
    for (int64_t i = 0; i < count; ++i, to += padded) {
        const int64_t row = first + i, group_row = row / s.tokens;
        if (group_row != known) {
            known = group_row;
            float few_scales[kMostWidth], few_minima[kMostWidth];
            for (int64_t g = 0; g < groups; g += 16) {
                const int64_t some = groups - g < 16 ? groups - g : 16;
                Lanes::store_all(few_scales + g, Lanes::load(scales + group_row * groups + g, kFloat16, some));
                Lanes::store_all(few_minima + g, Lanes::load(minima + group_row * groups + g, kFloat16, some));
            }
            for (int64_t g = 0; g < groups; ++g) {
                for (int64_t c = g * s.channels; c < (g + 1) * s.channels; ++c) {
                    scale[c] = few_scales[g];
                    minimum[c] = few_minima[g];
                }
            }
        }
        const uint8_t* from = codes + row * row_bytes;
        if (s.bits == 8) {
            for (int64_t c = 0; c < width; ++c) to[c] = float(from[c]) * scale[c] + minimum[c];
        } else {
            const int64_t half = width / 2;
            for (int64_t c = 0; c < half; ++c) to[c] = float(from[c] & 15) * scale[c] + minimum[c];
            for (int64_t c = 0; c < half; ++c) to[half + c] = float(from[c] >> 4) * scale[half + c] + minimum[half + c];
        }
        for (int64_t c = width; c < padded; ++c) to[c] = 0.0f;
    }
}

const float* widen(const Stored& s, int64_t sequence, int64_t head, int64_t first, int64_t count, int64_t width,
                   int64_t padded, float* to) {
    if (s.bits) {
        widen_codes(s, sequence, head, first, count, width, padded, to);
        return to;
    }
    const void* from = advance(s.data, s.type, sequence * s.sequence + head * s.head + first * width);
    if (s.type == kFloat32 && width == padded) return static_cast<const float*>(from);
    for (int64_t i = 0; i < count; ++i) {
        for (int64_t c = 0; c < width; c += 16) {
            Lanes::store_all(to + i * padded + c, Lanes::load(advance(from, s.type, i * width + c), s.type, width - c));
        }
    }
    return to;
}

// Scores of `count` keys, `R` queries at a time.
template <int R>
void score(const float* query, const float* keys, int64_t count, int64_t padded, float* scores) {
    for (int64_t i = 0; i < count; ++i) {
        Lanes::Float sum[R];
        for (int r = 0; r < R; ++r) sum[r] = Lanes::zero_float();
        for (int64_t c = 0; c < padded; c += 16) {
            const Lanes::Float key = Lanes::load_float(keys + i * padded + c);
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) {
                sum[r] = Lanes::multiply_add(Lanes::load_float(query + r * padded + c), key, sum[r]);
            }
        }
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) scores[r * kPiece + i] = Lanes::total(sum[r]);
    }
}

// Adds `count` values, weighted, to the sums of `R` queries, 32 channels at a time.
template <int R>
void weigh(const float* weights, const float* values, int64_t count, int64_t padded, float* sums) {
    for (int64_t c = 0; c < padded; c += 32) {
        const bool pair = c + 16 < padded;
        Lanes::Float low[R], high[R];
        for (int r = 0; r < R; ++r) {
            low[r] = Lanes::load_float(sums + r * padded + c);
            high[r] = pair ? Lanes::load_float(sums + r * padded + c + 16) : Lanes::zero_float();
        }
        for (int64_t i = 0; i < count; ++i) {
            const Lanes::Float first = Lanes::load_float(values + i * padded + c);
            const Lanes::Float second = pair ? Lanes::load_float(values + i * padded + c + 16) : Lanes::zero_float();
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) {
                low[r] = Lanes::multiply_add(first, weights[r * kPiece + i], low[r]);
                high[r] = Lanes::multiply_add(second, weights[r * kPiece + i], high[r]);
            }
        }
        for (int r = 0; r < R; ++r) {
            Lanes::store_all(sums + r * padded + c, low[r]);
            if (pair) Lanes::store_all(sums + r * padded + c + 16, high[r]);
        }
    }
}

constexpr float kNothing = -__builtin_inff();

// e^x for x <= 0 within 2e-7 of the result: 2^n times a polynomial (Cephes' coefficients). In plain arithmetic, so that
// loops over it become vectors. NaN stays NaN; below -87 it is 0.
inline float exponential(float x) {
    const float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
    const float f = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = (p * f) * f + f + 1.0f;
    const float whole = n < -126.0f ? -126.0f : n;
    const float power = float_of(uint32_t(int32_t(whole) + 127) << 23);
    return x < -87.0f ? 0.0f : p * power;
}

// A piece's scores to weights exp(score - largest); what is not allowed has none. A query that sees nothing of the piece
// has the largest score -infinity, and no weights.
void to_weights(const Attention& a, const uint8_t* allowed, int64_t count, float* scores, float* largest, float* total) {
    for (int64_t i = 0; i < count; ++i) scores[i] *= a.scale;
    for (int64_t i = 0; allowed && i < count; ++i) scores[i] = allowed[i] ? scores[i] : kNothing;
    for (int64_t i = count; i % 16; ++i) scores[i] = kNothing;
    float most[16], sum[16] = {};
    for (int lane = 0; lane < 16; ++lane) most[lane] = kNothing;
    for (int64_t i = 0; i < count; i += 16) {
        for (int lane = 0; lane < 16; ++lane) most[lane] = scores[i + lane] > most[lane] ? scores[i + lane] : most[lane];
    }
    for (int lane = 1; lane < 16; ++lane) most[0] = most[lane] > most[0] ? most[lane] : most[0];
    for (int64_t i = 0; i < count; i += 16) {
        for (int lane = 0; lane < 16; ++lane) {
            const float weight = exponential(scores[i + lane] - most[0]);
            scores[i + lane] = scores[i + lane] == kNothing ? 0.0f : weight;
            sum[lane] += scores[i + lane];
        }
    }
    for (int lane = 1; lane < 16; ++lane) sum[0] += sum[lane];
    *largest = most[0];
    *total = sum[0];
}

void attend_piece(const Attention& a, const Segment& segment, int64_t sequence, int64_t head, int64_t first,
                  int64_t last, float* partial, float* work) {
    const int64_t padded = (a.width + 15) / 16 * 16, count = last - first;
    float* const query = work;                       // [queries][padded]
    float* const scores = query + a.queries * padded;  // [queries][kPiece]
    float* const rows = scores + a.queries * kPiece;   // [kRowsAtOnce][padded]
    float* const sums = partial + 2 * a.queries;
    const void* from = advance(a.query, a.type, (sequence * a.heads + head) * a.queries * a.width);
    for (int64_t r = 0; r < a.queries; ++r) {
        for (int64_t c = 0; c < padded; c += 16) {
            const int64_t some = a.width - c;
            Lanes::store_all(query + r * padded + c, Lanes::load(advance(from, a.type, r * a.width + c), a.type, some));
            Lanes::store_all(sums + r * padded + c, Lanes::zero_float());
        }
    }
    for (int64_t i = 0; i < count; i += kRowsAtOnce) {
        const int64_t some = count - i < kRowsAtOnce ? count - i : kRowsAtOnce;
        const float* keys = widen(segment.key, sequence, head, first + i, some, a.width, padded, rows);
        int64_t r = 0;
        for (; r + 4 <= a.queries; r += 4) score<4>(query + r * padded, keys, some, padded, scores + r * kPiece + i);
        for (; r < a.queries; ++r) score<1>(query + r * padded, keys, some, padded, scores + r * kPiece + i);
    }
    const uint8_t* allowed = a.allowed ? a.allowed + sequence * a.positions + segment.start + first : nullptr;
    for (int64_t r = 0; r < a.queries; ++r) {
        to_weights(a, allowed, count, scores + r * kPiece, partial + r, partial + a.queries + r);
    }
    for (int64_t i = 0; i < count; i += kRowsAtOnce) {
        const int64_t some = count - i < kRowsAtOnce ? count - i : kRowsAtOnce;
        const float* values = widen(segment.value, sequence, head, first + i, some, a.width, padded, rows);
        int64_t r = 0;
        for (; r + 4 <= a.queries; r += 4) weigh<4>(scores + r * kPiece + i, values, some, padded, sums + r * padded);
        for (; r < a.queries; ++r) weigh<1>(scores + r * kPiece + i, values, some, padded, sums + r * padded);
    }
}

}  // namespace
}  // namespace quarterdeck
