// Attention of one position over stored keys and values, which are widened a few rows at a time and never as a whole.
//
// A piece of positions is done in three steps: scores of all queries; weights, relative to the piece's largest score;
// weighted sums of values. Pieces are put together by interface.cpp, as in "flash decoding".
#pragma once

#include "quarterdeck.h"

namespace quarterdeck {
namespace {

constexpr int64_t kRowsAtOnce = 16;

// A group row's numbers (scales or minima), one per channel.
void spread(const uint16_t* from, int64_t groups, int64_t channels, float* to) {
    float numbers[kMostWidth];
    float* const few = channels == 1 ? to : numbers;
    for (int64_t g = 0; g < groups; g += 16) {
        Lanes::store_all(few + g, Lanes::load(from + g, kFloat16, groups - g));
    }
    if (channels == 1) return;
    for (int64_t g = 0; g < groups; ++g, to += channels) {
        if (channels % 16 == 0) {
            for (int64_t c = 0; c < channels; c += 16) Lanes::store_all(to + c, Lanes::all(few[g]));
        } else {
            for (int64_t c = 0; c < channels; ++c) to[c] = few[g];
        }
    }
}

// Where a head's codes begin, and its numbers per group.
struct Codes {
    const uint8_t* codes;
    const uint16_t *scales, *minima;
    int64_t groups;  // in a row of groups

    Codes(const Stored& s, int64_t sequence, int64_t head, int64_t width)
        : codes(static_cast<const uint8_t*>(s.data) + sequence * s.sequence + head * s.head),
          scales(s.scales + sequence * s.scale_sequence + head * s.scale_head),
          minima(s.minima + sequence * s.scale_sequence + head * s.scale_head),
          groups(width / s.channels) {}
};

// One row of codes; least(c) and step(c) are the minima and scales of 16 channels.
template <class Least, class Step>
void widen_row(const uint8_t* from, int bits, int64_t width, float* to, Least least, Step step) {
    const auto put = [&](int64_t c, Lanes::Float code) {
        Lanes::store_all(to + c, Lanes::multiply_add(code, step(c), least(c)));
    };
    if (bits == 8) {
        for (int64_t c = 0; c < width; c += 16) put(c, Lanes::widen(from + c));
        return;
    }
    const int64_t half = width / 2;
    for (int64_t c = 0; c < half; c += 16) {
        put(c, Lanes::widen_low(from + c));
        put(half + c, Lanes::widen_high(from + c));
    }
}

// Rows [first, first + count) of one head as float32, [count][padded].
void widen_codes(const Stored& s, const Codes& codes, int64_t first, int64_t count, int64_t width, int64_t padded,
                 float* to) {
    const int64_t row_bytes = s.bits == 8 ? width : width / 2, half = width / 2;
    const bool whole = s.bits == 8 ? width % 16 == 0 : half % 16 == 0;
    float scale[kMostWidth + 16], minimum[kMostWidth + 16];
    int64_t known = -1;
    int32_t group_of[kMostWidth / 16];  // divisions take longer than all else that is done to 16 channels
    const bool per_row = whole && s.tokens == 1 && s.channels % 16 == 0;
    for (int64_t c = 0; per_row && c < width; c += 16) group_of[c / 16] = int32_t(c / s.channels);
    for (int64_t i = 0; i < count; ++i, to += padded) {
        const int64_t row = first + i, at = (s.tokens == 1 ? row : row / s.tokens) * codes.groups;
        const uint8_t* from = codes.codes + row * row_bytes;
        if (per_row) {
            const auto group = [&](int64_t c) { return at + group_of[c / 16]; };
            widen_row(from, s.bits, width, to, [&](int64_t c) { return Lanes::all_half(codes.minima[group(c)]); },
                      [&](int64_t c) { return Lanes::all_half(codes.scales[group(c)]); });
            continue;
        }
        if (at != known) {
            known = at;
            spread(codes.scales + at, codes.groups, s.channels, scale);
            spread(codes.minima + at, codes.groups, s.channels, minimum);
        }
        if (whole) {
            widen_row(from, s.bits, width, to, [&](int64_t c) { return Lanes::load_float(minimum + c); },
                      [&](int64_t c) { return Lanes::load_float(scale + c); });
            continue;
        }
        for (int64_t c = 0; c < width; ++c) {
            const int code = s.bits == 8 ? from[c] : c < half ? from[c] & 15 : from[c - half] >> 4;
            to[c] = float(code) * scale[c] + minimum[c];
        }
        for (int64_t c = width; c < padded; ++c) to[c] = 0.0f;
    }
}

template <DType Type>
void widen_floats(const void* from, int64_t count, int64_t width, int64_t padded, float* to) {
    if (width == padded) {
        for (int64_t c = 0; c < count * width; c += 16) Lanes::store_all(to + c, Lanes::load(advance(from, Type, c), Type, 16));
        return;
    }
    for (int64_t i = 0; i < count; ++i) {
        for (int64_t c = 0; c < width; c += 16) {
            Lanes::store_all(to + i * padded + c, Lanes::load(advance(from, Type, i * width + c), Type, width - c));
        }
    }
}

// The same of whatever is stored; where nothing has to be converted, the stored rows themselves.
const float* widen(const Stored& s, int64_t sequence, int64_t head, int64_t first, int64_t count, int64_t width,
                   int64_t padded, float* to) {
    if (s.bits) {
        widen_codes(s, Codes(s, sequence, head, width), first, count, width, padded, to);
        return to;
    }
    const void* from = advance(s.data, s.type, sequence * s.sequence + head * s.head + first * width);
    switch (s.type) {
        case kFloat32:
            if (width == padded) return static_cast<const float*>(from);
            widen_floats<kFloat32>(from, count, width, padded, to);
            break;
        case kBFloat16: widen_floats<kBFloat16>(from, count, width, padded, to); break;
        case kFloat16: widen_floats<kFloat16>(from, count, width, padded, to); break;
    }
    return to;
}

// Scores of `Keys` keys and `R` queries, 16 in all: sums are added up across lanes all at once.
template <int Keys, int R>
void score_sixteen(const float* query, const float* keys, int64_t padded, float* scores) {
    static_assert(Keys * R == 16);
    Lanes::Float sum[16];
    for (int i = 0; i < 16; ++i) sum[i] = Lanes::zero_float();
    for (int64_t c = 0; c < padded; c += 16) {
        Lanes::Float asked[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) asked[r] = Lanes::load_float(query + r * padded + c);
#pragma GCC unroll 16
        for (int k = 0; k < Keys; ++k) {
            const Lanes::Float key = Lanes::load_float(keys + k * padded + c);
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) sum[r * Keys + k] = Lanes::multiply_add(key, asked[r], sum[r * Keys + k]);
        }
    }
    float totals[16];
    Lanes::store_all(totals, Lanes::totals(sum));
    for (int r = 0; r < R; ++r) std::memcpy(scores + r * kPiece, totals + r * Keys, Keys * sizeof(float));
}

// Scores of up to 16 keys, whose rows are there even where they are not wanted, and all queries.
void score(const float* query, int64_t queries, const float* keys, int64_t padded, float* scores) {
    int64_t r = 0;
    for (; r + 4 <= queries; r += 4) {
        for (int k = 0; k < 16; k += 4) {
            score_sixteen<4, 4>(query + r * padded, keys + k * padded, padded, scores + r * kPiece + k);
        }
    }
    for (; r + 2 <= queries; r += 2) {
        for (int k = 0; k < 16; k += 8) {
            score_sixteen<8, 2>(query + r * padded, keys + k * padded, padded, scores + r * kPiece + k);
        }
    }
    for (; r < queries; ++r) score_sixteen<16, 1>(query + r * padded, keys, padded, scores + r * kPiece);
}

// Adds `count` values, weighted, to the sums of `R` queries, 16 * `C` channels.
template <int R, int C>
void weigh_strip(const float* weights, const float* values, int64_t count, int64_t padded, float* sums) {
    Lanes::Float sum[R][C];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) sum[r][c] = Lanes::load_float(sums + r * padded + 16 * c);
    for (int64_t i = 0; i < count; ++i) {
        Lanes::Float value[C];
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) value[c] = Lanes::load_float(values + i * padded + 16 * c);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int c = 0; c < C; ++c) sum[r][c] = Lanes::multiply_add(value[c], weights[r * kPiece + i], sum[r][c]);
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) Lanes::store_all(sums + r * padded + 16 * c, sum[r][c]);
}

template <int R>
void weigh(const float* weights, const float* values, int64_t count, int64_t padded, float* sums) {
    constexpr int kStrip = Lanes::kStrip;
    int64_t c = 0;
    for (; c + 16 * kStrip <= padded; c += 16 * kStrip) weigh_strip<R, kStrip>(weights, values + c, count, padded, sums + c);
    for (; c < padded; c += 16) weigh_strip<R, 1>(weights, values + c, count, padded, sums + c);
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
    static_assert(kRowsAtOnce == 16 && kPiece % 16 == 0);
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
        if (some < kRowsAtOnce && keys != rows) {  // the stored rows end here
            std::memcpy(rows, keys, some * padded * sizeof(float));
            keys = rows;
        }
        score(query, a.queries, keys, padded, scores + i);
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
