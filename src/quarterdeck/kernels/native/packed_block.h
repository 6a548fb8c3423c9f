// Packed attention, forward and backward, over products P: VectorProducts or TileProducts.
#pragma once

#include <cmath>

#include "packed_lanes.h"
#include "scratch.h"

namespace quarterdeck {
namespace {

constexpr float kLog2E = 1.44269504088896340736f;
constexpr float kLowest = -1e30f;

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// Keys and values of one part of what a document sees.
template <class P>
struct PackedKeys {
    typename P::Element *key_rows, *second, *third;  // forward: transposed values; backward: value rows, transposed keys
    float *grad_key, *grad_value;                    // backward
    int64_t count;
};

// The part of a block that is worked on: `keys` keys from `key` on, of which `there` exist, by the queries [from, to). Key
// j stands `offset` + j positions behind query 0, or is seen by all if the offset is low.
struct PackedRange {
    int64_t key, keys, there, from, to, offset;

    bool masked() const { return there < keys || offset + keys - 1 > from; }
};

constexpr int64_t kSeenByAll = -(int64_t(1) << 40);

// The range of up to `keys` keys from `key` on, for queries that begin `before` positions behind the first key, or for
// which all keys lie before them.
inline PackedRange packed_range(int64_t key, int64_t keys, int64_t count, int64_t queries, int64_t before, bool causal) {
    const int64_t offset = causal ? key - before : kSeenByAll;
    if (offset > -keys && causal) keys = kPackedGroup;  // on the diagonal, small steps waste less
    keys = least(keys, packed_padded(count - key));
    const int64_t from = offset > 0 ? offset / kPackedGroup * kPackedGroup : 0;
    return {key, keys, least(keys, count - key), from, queries, offset};
}

template <class P>
struct PackedForward {
    typename P::Element *columns, *weights;
    float *scores, *result;  // [keys][kQueries], [width][kQueries]
    alignas(64) float largest[kQueries], sum[kQueries];
    int64_t width;
    float factor;

    // Scores of one vector of queries become weights, relative to the largest score so far.
    template <bool kMasked>
    void soften(const PackedRange& range, int64_t tile) {
        const float* const column = scores + tile * 16;
        const int64_t offset = range.offset - tile * 16;
        const auto seen = [&](int64_t j) { return j < range.there ? seeing(offset + j) : __mmask16(0); };
        __m512 top = _mm512_set1_ps(kLowest), other = top;
        for (int64_t j = 0; j < range.keys; j += 2) {
            const __m512 a = _mm512_loadu_ps(column + j * kQueries), b = _mm512_loadu_ps(column + (j + 1) * kQueries);
            top = kMasked ? _mm512_mask_max_ps(top, seen(j), top, a) : _mm512_max_ps(top, a);
            other = kMasked ? _mm512_mask_max_ps(other, seen(j + 1), other, b) : _mm512_max_ps(other, b);
        }
        const __m512 scale = _mm512_set1_ps(factor), old = _mm512_load_ps(largest + tile * 16);
        const __m512 next = _mm512_max_ps(old, _mm512_mul_ps(_mm512_max_ps(top, other), scale));
        const __m512 shrink = power_of_two<5>(_mm512_sub_ps(old, next));
        __m512 even = _mm512_setzero_ps(), odd = even;
        for (int64_t j = 0; j < range.keys; j += 2) {
            __m512 a = _mm512_loadu_ps(column + j * kQueries), b = _mm512_loadu_ps(column + (j + 1) * kQueries);
            a = power_of_two<P::kDegree>(_mm512_fmsub_ps(a, scale, next));
            b = power_of_two<P::kDegree>(_mm512_fmsub_ps(b, scale, next));
            if (kMasked) a = _mm512_maskz_mov_ps(seen(j), a), b = _mm512_maskz_mov_ps(seen(j + 1), b);
            even = _mm512_add_ps(even, a), odd = _mm512_add_ps(odd, b);
            P::put_values(weights, j, tile, a, b);
        }
        const __m512 total = _mm512_fmadd_ps(_mm512_load_ps(sum + tile * 16), shrink, _mm512_add_ps(even, odd));
        _mm512_store_ps(sum + tile * 16, total);
        _mm512_store_ps(largest + tile * 16, next);
        if (_mm512_cmp_ps_mask(old, next, _CMP_NEQ_UQ) == 0) return;
        for (int64_t c = 0; c < width; ++c) {
            float* const at = result + c * kQueries + tile * 16;
            _mm512_storeu_ps(at, _mm512_mul_ps(_mm512_loadu_ps(at), shrink));
        }
    }

    void add(const PackedKeys<P>& keys, const PackedRange& range) {
        P::scores(keys.key_rows + range.key * width, columns, scores, range.keys, range.from, range.to, width);
        for (int64_t tile = range.from / 16; tile < range.to / 16; ++tile) {
            range.masked() ? soften<true>(range, tile) : soften<false>(range, tile);
        }
        P::add_values(keys.second + range.key * width, weights, result, range.keys, range.from, range.to, width);
    }
};

// Columns [width][kQueries] times a factor per column, as rows of a result [tokens, heads, width].
inline void write_columns(const float* columns, const float* factors, void* out, DType type, int64_t row, int64_t stride,
                          int64_t count, int64_t width) {
    for (int64_t tile = 0; tile * 16 < count; ++tile) {
        const __m512 factor = _mm512_loadu_ps(factors + tile * 16);
        for (int64_t c = 0; c < width; c += 16) {
            __m512i rows[16];
            for (int64_t r = 0; r < 16; ++r) {
                const __m512 values = _mm512_loadu_ps(columns + (c + r) * kQueries + tile * 16);
                rows[r] = _mm512_castps_si512(_mm512_mul_ps(values, factor));
            }
            transpose(rows);
            for (int64_t r = 0; r < 16 && tile * 16 + r < count; ++r) {
                void* at = advance(out, type, row + (tile * 16 + r) * stride + c);
                Lanes::store(at, type, _mm512_castsi512_ps(rows[r]), 16);
            }
        }
    }
}

// Rows of a contiguous [tokens, heads, width].
inline Taken out_rows(const PackedAttention& a, const void* data, int64_t token, int64_t head, int64_t count) {
    return Taken({data, a.heads * a.width, a.width}, a.type, token, head, count);
}

template <class P>
void forward_queries(const PackedAttention& a, const PackedDocument& document, int64_t head, int64_t query,
                     int64_t item_last, PackedForward<P>& work, const PackedKeys<P>& prefix, const PackedKeys<P>& own) {
    const int64_t count = least(kQueries, item_last - query);
    const int64_t queries = packed_padded(count), token = document.begin + query;
    P::take_columns(Taken(a.query, a.type, token, head, count), a.type, a.width, work.columns);
    fetch(Taken(a.query, a.type, token, head, item_last - query), a.type, a.width, kQueries, kQueries);
    fetch(out_rows(a, a.out, token, head, count), a.type, a.width, 0, kQueries);
    std::memset(work.result, 0, a.width * kQueries * sizeof(float));
    for (int64_t i = 0; i < kQueries; ++i) work.largest[i] = kLowest, work.sum[i] = 0.0f;
    for (int64_t key = 0; key < prefix.count;) {
        const PackedRange range = packed_range(key, 64, prefix.count, queries, 0, false);
        work.add(prefix, range);
        key += range.keys;
    }
    for (int64_t key = 0; key < query + count;) {
        const PackedRange range = packed_range(key, 64, query + count, queries, query, true);
        work.add(own, range);
        key += range.keys;
    }
    float* const sums = a.sums + head * a.tokens + token;
    for (int64_t i = 0; i < count; ++i) {
        sums[i] = work.largest[i] + std::log2(work.sum[i]);
        work.sum[i] = 1.0f / work.sum[i];
    }
    write_columns(work.result, work.sum, a.out, a.type, (token * a.heads + head) * a.width, a.heads * a.width, count,
                  a.width);
}

template <class P>
bool forward_item(const PackedAttention& a, const PackedItem& item) {
    using Element = typename P::Element;
    const PackedDocument& document = **item.documents;
    const int64_t width = a.width, sizes[2] = {document.prefix(), item.last};
    const size_t numbers = 2 * (packed_padded(sizes[0]) + packed_padded(sizes[1])) * width + (width + 64) * kQueries;
    Scratch scratch(aligned(numbers * sizeof(Element)) + (width + 64) * kQueries * sizeof(float) + 1024);
    if (!scratch) return false;
    [[maybe_unused]] const typename P::State state;
    PackedKeys<P> parts[2] = {};
    for (int part = 0; part < 2; ++part) {
        PackedKeys<P>& keys = parts[part];
        const int64_t token = part ? document.begin : document.prefix_begin;
        keys.count = sizes[part];
        keys.key_rows = scratch.take<Element>(packed_padded(keys.count) * width);
        keys.second = scratch.take<Element>(packed_padded(keys.count) * width);
        P::take_rows(Taken(a.key, a.type, token, item.key_head, keys.count), a.type, width, keys.key_rows);
        P::take_transposed(Taken(a.value, a.type, token, item.key_head, keys.count), a.type, width, keys.second);
    }
    PackedForward<P> work;
    work.columns = scratch.take<Element>(width * kQueries), work.weights = scratch.take<Element>(64 * kQueries);
    work.scores = scratch.take<float>(64 * kQueries), work.result = scratch.take<float>(width * kQueries);
    work.width = width, work.factor = a.scaling * kLog2E;
    const int64_t sharing = a.heads / a.key_heads;
    for (int64_t head = item.key_head * sharing; head < (item.key_head + 1) * sharing; ++head) {
        for (int64_t query = item.first; query < item.last; query += kQueries) {
            forward_queries(a, document, head, query, item.last, work, parts[0], parts[1]);
        }
    }
    return true;
}

template <class P>
struct PackedBackward {
    typename P::Element *query_columns, *grad_columns, *query_right, *grad_right;
    typename P::Element *weights, *score_grads, *score_grads_right;
    float *scores, *weight_grads;  // [keys][kQueries]
    float* grad_query;             // [width][kQueries]
    alignas(64) float sum[kQueries], product[kQueries];
    int64_t width;
    float factor;

    // Weights, and gradients of the scores: weight * (its gradient - the query's product of result and gradient).
    template <bool kMasked>
    void differentiate(const PackedRange& range, int64_t tile) {
        const int64_t offset = range.offset - tile * 16;
        const __m512 scale = _mm512_set1_ps(factor);
        const __m512 sums[2] = {_mm512_load_ps(sum + tile * 16), _mm512_load_ps(sum + tile * 16 + 16)};
        const __m512 products[2] = {_mm512_load_ps(product + tile * 16), _mm512_load_ps(product + tile * 16 + 16)};
        for (int64_t j = 0; j < range.keys; j += 2) {
            __m512 weight[2][2], grad[2][2];
#pragma GCC unroll 2
            for (int64_t r = 0; r < 2; ++r) {
#pragma GCC unroll 2
                for (int64_t t = 0; t < 2; ++t) {
                    const int64_t at = (j + r) * kQueries + (tile + t) * 16;
                    __m512 p = power_of_two<P::kDegree>(_mm512_fmsub_ps(_mm512_loadu_ps(scores + at), scale, sums[t]));
                    if (kMasked) {
                        p = _mm512_maskz_mov_ps(j + r < range.there ? seeing(offset + j + r - t * 16) : __mmask16(0), p);
                    }
                    weight[r][t] = p;
                    grad[r][t] = _mm512_mul_ps(p, _mm512_sub_ps(_mm512_loadu_ps(weight_grads + at), products[t]));
                }
                P::put_gradient(weights, j + r, tile, weight[r][0], weight[r][1]);
                P::put_gradient(score_grads, j + r, tile, grad[r][0], grad[r][1]);
            }
            P::put_values(score_grads_right, j, tile, grad[0][0], grad[1][0]);
            P::put_values(score_grads_right, j, tile + 1, grad[0][1], grad[1][1]);
        }
    }

    void add(const PackedKeys<P>& keys, const PackedRange& range) {
        const int64_t at = range.key * width;
        P::scores(keys.key_rows + at, query_columns, scores, range.keys, range.from, range.to, width);
        P::scores(keys.second + at, grad_columns, weight_grads, range.keys, range.from, range.to, width);
        for (int64_t tile = range.from / 16; tile < range.to / 16; tile += 2) {
            range.masked() ? differentiate<true>(range, tile) : differentiate<false>(range, tile);
        }
        P::add_gradient(weights, grad_right, keys.grad_value + at, range.keys, range.from, range.to, width);
        P::add_gradient(score_grads, query_right, keys.grad_key + at, range.keys, range.from, range.to, width);
        P::add_values(keys.third + at, score_grads_right, grad_query, range.keys, range.from, range.to, width);
    }
};

// For each query the sum of its result times the result's gradient.
inline void products_of_rows(const PackedAttention& a, int64_t token, int64_t head, int64_t count, float* products) {
    for (int64_t row = 0; row < count; row += 16) {
        __m512 sums[16];
        for (int64_t r = 0; r < 16; ++r) {
            sums[r] = _mm512_setzero_ps();
            const int64_t at = token + row + r;
            if (row + r >= count) continue;
            for (int64_t c = 0; c < a.width; c += 16) {
                const void* grad = advance(a.grad.data, a.type, at * a.grad.token + head * a.grad.head + c);
                const void* out = advance(static_cast<const void*>(a.out), a.type, (at * a.heads + head) * a.width + c);
                sums[r] = _mm512_fmadd_ps(Lanes::load(grad, a.type, 16), Lanes::load(out, a.type, 16), sums[r]);
            }
        }
        _mm512_storeu_ps(products + row, Lanes::totals(sums));
    }
}

template <class P>
void backward_queries(const PackedAttention& a, const PackedDocument& document, int64_t head, int64_t query,
                      int64_t count, PackedBackward<P>& work, const PackedKeys<P>& prefix, const PackedKeys<P>& own) {
    const int64_t queries = packed_padded(count), token = document.begin + query;
    const Taken rows(a.query, a.type, token, head, count), grads(a.grad, a.type, token, head, count);
    P::take_columns(rows, a.type, a.width, work.query_columns);
    P::take_right(rows, a.type, a.width, work.query_right);
    P::take_columns(grads, a.type, a.width, work.grad_columns);
    P::take_right(grads, a.type, a.width, work.grad_right);
    std::memset(work.grad_query, 0, a.width * kQueries * sizeof(float));
    const int64_t left = document.length() - query;
    fetch(Taken(a.query, a.type, token, head, left), a.type, a.width, kQueries, kQueries);
    fetch(Taken(a.grad, a.type, token, head, left), a.type, a.width, kQueries, kQueries);
    fetch(out_rows(a, a.out, token, head, left), a.type, a.width, kQueries, kQueries);
    fetch(out_rows(a, a.grad_query, token, head, count), a.type, a.width, 0, kQueries);
    for (int64_t i = 0; i < kQueries; ++i) {  // queries that are not there have weights of almost zero
        work.sum[i] = i < count ? a.sums[head * a.tokens + token + i] : -kLowest;
        work.product[i] = 0.0f;
    }
    products_of_rows(a, token, head, count, work.product);
    for (int64_t key = 0; key < prefix.count; key += kPackedGroup) {
        work.add(prefix, packed_range(key, kPackedGroup, prefix.count, queries, 0, false));
    }
    for (int64_t key = 0; key < query + count; key += kPackedGroup) {
        work.add(own, packed_range(key, kPackedGroup, query + count, queries, query, true));
    }
    alignas(64) float factors[kQueries];
    for (float& factor : factors) factor = a.scaling;
    write_columns(work.grad_query, factors, a.grad_query, a.type, (token * a.heads + head) * a.width, a.heads * a.width,
                  count, a.width);
}

// The sum of parts [2][padded][width], `stride` floats apart, as gradients of keys and values.
inline void combine_parts(const PackedAttention& a, const PackedDocument& document, int64_t key_head, const float* parts,
                          int64_t count, int64_t stride) {
    const int64_t values = packed_padded(document.length()) * a.width;
    for (int64_t row = 0; row < document.length(); ++row) {
        for (int64_t c = 0; c < a.width; c += 16) {
            const float* from = parts + row * a.width + c;
            __m512 key = _mm512_setzero_ps(), value = key;
            for (int64_t part = 0; part < count; ++part, from += stride) {
                key = _mm512_add_ps(key, _mm512_loadu_ps(from));
                value = _mm512_add_ps(value, _mm512_loadu_ps(from + values));
            }
            const int64_t at = ((document.begin + row) * a.key_heads + key_head) * a.width + c;
            Lanes::store(advance(a.grad_key, a.type, at), a.type, _mm512_mul_ps(key, _mm512_set1_ps(a.scaling)), 16);
            Lanes::store(advance(a.grad_value, a.type, at), a.type, value, 16);
        }
    }
}

template <class P>
void take_keys(const PackedAttention& a, int64_t token, int64_t key_head, float* grads, PackedKeys<P>& keys) {
    const Taken rows(a.key, a.type, token, key_head, keys.count), values(a.value, a.type, token, key_head, keys.count);
    P::take_rows(rows, a.type, a.width, keys.key_rows);
    P::take_rows(values, a.type, a.width, keys.second);
    P::take_transposed(rows, a.type, a.width, keys.third);
    const int64_t numbers = packed_padded(keys.count) * a.width;
    keys.grad_key = grads, keys.grad_value = grads + numbers;
    if (numbers) std::memset(grads, 0, 2 * numbers * sizeof(float));
}

template <class P>
bool backward_item(const PackedAttention& a, const PackedItem& item) {
    using Element = typename P::Element;
    int64_t longest = 0;
    for (int64_t i = 0; i < item.count; ++i) longest = most(longest, item.documents[i]->length());
    const int64_t width = a.width, prefix = item.documents[0]->prefix(), sizes[2] = {prefix, longest};
    const int64_t padded[2] = {packed_padded(prefix) * width, packed_padded(longest) * width};
    const size_t numbers = 3 * (padded[0] + padded[1]) + (4 * width + 96) * kQueries;
    const size_t floats = 2 * padded[1] + (width + 64) * kQueries;
    Scratch scratch(numbers * sizeof(Element) + floats * sizeof(float) + 2048);
    if (!scratch) return false;
    [[maybe_unused]] const typename P::State state;
    PackedKeys<P> parts[2] = {};
    for (int part = 0; part < 2; ++part) {
        parts[part].count = sizes[part];
        parts[part].key_rows = scratch.take<Element>(padded[part]);
        parts[part].second = scratch.take<Element>(padded[part]);
        parts[part].third = scratch.take<Element>(padded[part]);
    }
    float* const grads = item.own_sums ? item.own_sums : scratch.take<float>(2 * padded[1]);
    PackedBackward<P> work;
    work.query_columns = scratch.take<Element>(width * kQueries), work.grad_columns = scratch.take<Element>(width * kQueries);
    work.query_right = scratch.take<Element>(width * kQueries), work.grad_right = scratch.take<Element>(width * kQueries);
    work.weights = scratch.take<Element>(32 * kQueries), work.score_grads = scratch.take<Element>(32 * kQueries);
    work.score_grads_right = scratch.take<Element>(32 * kQueries);
    work.scores = scratch.take<float>(32 * kQueries), work.weight_grads = scratch.take<float>(32 * kQueries);
    work.grad_query = scratch.take<float>(width * kQueries);
    work.width = width, work.factor = a.scaling * kLog2E;
    take_keys(a, item.documents[0]->prefix_begin, item.key_head, item.prefix_sums, parts[0]);
    const int64_t sharing = a.heads / a.key_heads;
    for (int64_t i = 0; i < item.count; ++i) {
        const PackedDocument& document = *item.documents[i];
        parts[1].count = document.length();
        take_keys(a, document.begin, item.key_head, grads, parts[1]);
        for (int64_t head = item.key_head * sharing; head < (item.key_head + 1) * sharing; ++head) {
            for (int64_t query = 0; query < document.length(); query += kQueries) {
                const int64_t count = least(kQueries, document.length() - query);
                backward_queries(a, document, head, query, count, work, parts[0], parts[1]);
            }
        }
        if (!item.own_sums) combine_parts(a, document, item.key_head, grads, 1, 0);
    }
    return true;
}

}  // namespace
}  // namespace quarterdeck
