// Causal attention over documents that follow each other in one stream, and its gradients: for training.
//
// A block is up to 64 queries by 32 or 64 keys, with keys in rows and queries in lanes: maxima, sums and what belongs
// to a query are then vectors, and no sum runs across lanes. Scores are made again for the gradients, from the logarithm
// of each query's sum.
#pragma once

#include "quarterdeck.h"

namespace quarterdeck {

// [tokens, heads, width] with strides in elements; channels follow each other.
struct PackedRows {
    const void* data;
    int64_t token, head;
};

// Query i of [begin, end) sees all keys of [prefix_begin, prefix_end) and those of [begin, i].
struct PackedDocument {
    int64_t begin, end, prefix_begin, prefix_end;

    int64_t prefix() const { return prefix_end - prefix_begin; }
    int64_t length() const { return end - begin; }
};

struct PackedAttention {
    PackedRows query, key, value;
    PackedRows grad;  // of the result; this and the pointers to gradients are for the backward pass only
    void* out;        // [tokens, heads, width]
    float* sums;      // [heads, tokens]: the logarithm to base 2 of each query's sum of weights
    void *grad_query, *grad_key, *grad_value;  // [tokens, heads or key_heads, width]
    const PackedDocument* documents;
    int64_t count, tokens, heads, key_heads, width;  // width: 32, 64 or 128
    float scaling;
    DType type;  // float32 or bfloat16
};

// A piece of work. Forward: queries [first, last) of one document. Backward: whole documents on one prefix.
struct PackedItem {
    const PackedDocument* const* documents;
    int64_t count;
    int64_t key_head;
    int64_t first, last;
    float* prefix_sums;  // where gradients of the prefix's keys, then values, are summed: [2][padded][width]
    float* own_sums;     // the same for a document that others see as their prefix; null: they are written at once
};

// Kernels return false where memory is short.
struct PackedKernels {
    bool (*forward)(const PackedAttention& attention, const PackedItem& item);
    bool (*backward)(const PackedAttention& attention, const PackedItem& item);
    // the sum of `count` parts, `stride` floats apart, as the gradients of a prefix
    void (*combine)(const PackedAttention& attention, const PackedDocument& document, int64_t key_head,
                    const float* parts, int64_t count, int64_t stride);
};

constexpr int64_t kPackedGroup = 32;  // keys and queries are padded to whole groups

inline int64_t packed_padded(int64_t rows) { return (rows + kPackedGroup - 1) / kPackedGroup * kPackedGroup; }

const PackedKernels* packed_avx512();  // products in float32, whatever the type
const PackedKernels* packed_amx();     // bfloat16 only: products in bfloat16, sums in float32

}  // namespace quarterdeck
