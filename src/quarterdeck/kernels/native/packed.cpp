// Packed attention as Python calls it: which pieces of work there are, and in which order they are taken.
#include <algorithm>
#include <new>
#include <vector>

#include "packed.h"
#include "scratch.h"

namespace quarterdeck {
namespace {

constexpr int64_t kQueriesOfItem = 256;  // forward, where documents are few: keys are laid out anew for each
constexpr int64_t kShares = 32;          // backward: documents on one prefix go together up to this part of all work

struct Costed {
    PackedItem item;
    int64_t cost;
};

struct Summed {  // a prefix's gradients: parts of [key_heads][2][padded][width], the first its own
    const PackedDocument* document;
    std::vector<const PackedDocument*> users;
    int64_t parts = 1;
    float* sums = nullptr;
};

struct PackedCall {
    const PackedAttention& attention;
    const PackedKernels* kernels;
    std::vector<Costed> items;
    std::vector<Summed> prefixes;
    std::vector<const PackedDocument*> alone;
    std::atomic<bool> short_of_memory{false};

    int64_t head_floats(const Summed& prefix) const {
        return 2 * packed_padded(prefix.document->length()) * attention.width;
    }
    int64_t part_floats(const Summed& prefix) const { return head_floats(prefix) * attention.key_heads; }
    void order() {  // the largest first: what is left at the end is small
        std::stable_sort(items.begin(), items.end(), [](const Costed& a, const Costed& b) { return a.cost > b.cost; });
    }
};

const PackedKernels* kernels_of(int level, DType type) {
    constexpr int kAmx = 4;  // as in interface.cpp
#ifdef QUARTERDECK_HAVE_AMX
    if (level == kAmx && type == kBFloat16) return packed_amx();
#endif
#ifdef QUARTERDECK_HAVE_AVX512
    return level >= kAmx - 1 ? packed_avx512() : nullptr;
#else
    return nullptr;
#endif
}

// Query-key pairs of queries [first, last).
int64_t cost_of(const PackedDocument& d, int64_t first, int64_t last) {
    return (last - first) * (d.prefix() + (first + last + 64) / 2);
}

void forward_chunk(void* context, int64_t chunk) {
    PackedCall& call = *static_cast<PackedCall*>(context);
    if (!call.kernels->forward(call.attention, call.items[chunk].item)) call.short_of_memory.store(true);
}

void backward_chunk(void* context, int64_t chunk) {
    PackedCall& call = *static_cast<PackedCall*>(context);
    if (!call.kernels->backward(call.attention, call.items[chunk].item)) call.short_of_memory.store(true);
}

void combine_chunk(void* context, int64_t chunk) {
    PackedCall& call = *static_cast<PackedCall*>(context);
    const int64_t heads = call.attention.key_heads, head = chunk % heads;
    const Summed& prefix = call.prefixes[chunk / heads];
    const float* const parts = prefix.sums + head * call.head_floats(prefix);
    call.kernels->combine(call.attention, *prefix.document, head, parts, prefix.parts, call.part_floats(prefix));
}

// Documents that others see as a prefix, with those others, and all that have nothing to do with a prefix.
void sort_documents(PackedCall& call) {
    const PackedAttention& a = call.attention;
    for (const PackedDocument* d = a.documents; d != a.documents + a.count; ++d) {
        if (d->prefix() == 0) continue;
        const auto same = [&](const Summed& prefix) { return prefix.document->begin == d->prefix_begin; };
        auto found = std::find_if(call.prefixes.begin(), call.prefixes.end(), same);
        if (found == call.prefixes.end()) {
            const auto is_prefix = [&](const PackedDocument& other) { return other.begin == d->prefix_begin; };
            call.prefixes.push_back({std::find_if(a.documents, a.documents + a.count, is_prefix), {}});
            found = call.prefixes.end() - 1;
        }
        found->users.push_back(d);
    }
    for (const PackedDocument* d = a.documents; d != a.documents + a.count; ++d) {
        const auto same = [&](const Summed& prefix) { return prefix.document == d; };
        if (d->prefix() == 0 && std::none_of(call.prefixes.begin(), call.prefixes.end(), same)) call.alone.push_back(d);
    }
}

// Calls run(prefix, first, count) for users of a prefix that make one piece of work.
template <class Run>
void for_all_runs(Summed& prefix, int64_t most, Run run) {
    for (size_t first = 0, last; first < prefix.users.size(); first = last) {
        int64_t cost = 0;
        for (last = first; last < prefix.users.size(); ++last) {
            const int64_t more = cost_of(*prefix.users[last], 0, prefix.users[last]->length());
            if (last > first && cost + more > most) break;
            cost += more;
        }
        run(&prefix.users[first], int64_t(last - first), cost);
    }
}

int64_t largest_share(const PackedAttention& a) {
    int64_t all = 0;
    for (int64_t i = 0; i < a.count; ++i) all += cost_of(a.documents[i], 0, a.documents[i].length());
    return all / kShares;
}

void plan_backward(PackedCall& call, float* sums) {
    const int64_t heads = call.attention.key_heads, share = largest_share(call.attention);
    const auto add = [&](const PackedDocument* const* documents, int64_t count, int64_t cost, float* own, float* others,
                         int64_t step) {
        for (int64_t head = 0; head < heads; ++head) {
            float* const own_sums = own ? own + head * step : nullptr;
            float* const prefix_sums = others ? others + head * step : nullptr;
            call.items.push_back({{documents, count, head, 0, 0, prefix_sums, own_sums}, cost});
        }
    };
    for (const PackedDocument*& d : call.alone) add(&d, 1, cost_of(*d, 0, d->length()), nullptr, nullptr, 0);
    for (Summed& prefix : call.prefixes) {
        const int64_t step = call.head_floats(prefix), part = call.part_floats(prefix);
        prefix.sums = sums;
        add(&prefix.document, 1, cost_of(*prefix.document, 0, prefix.document->length()), sums, nullptr, step);
        for_all_runs(prefix, share, [&](const PackedDocument** documents, int64_t count, int64_t cost) {
            add(documents, count, cost, nullptr, sums += part, step);
        });
        sums += part;
    }
}

int forward(PackedCall& call, int threads) {
    const PackedAttention& a = call.attention;
    std::vector<const PackedDocument*> documents;
    for (int64_t i = 0; i < a.count; ++i) documents.push_back(a.documents + i);
    const bool enough = a.count * a.key_heads >= 16 * threads;
    for (const PackedDocument*& d : documents) {
        const int64_t cost = cost_of(*d, 0, d->length()), most = enough ? d->length() : kQueriesOfItem;
        for (int64_t first = 0; first < d->length(); first += most) {
            for (int64_t head = 0; head < a.key_heads; ++head) {  // of one document together: its tokens are near
                const int64_t last = std::min(first + most, d->length());
                call.items.push_back({{&d, 1, head, first, last, nullptr, nullptr}, cost});
            }
        }
    }
    call.order();
    parallel(threads, int64_t(call.items.size()), forward_chunk, &call);
    return call.short_of_memory.load() ? 1 : 0;
}

int backward(PackedCall& call, int threads) {
    sort_documents(call);
    const int64_t share = largest_share(call.attention);
    int64_t floats = 0;
    for (Summed& prefix : call.prefixes) {
        for_all_runs(prefix, share, [&](const PackedDocument**, int64_t, int64_t) { ++prefix.parts; });
        floats += prefix.parts * call.part_floats(prefix);
    }
    Scratch scratch((floats + 16) * sizeof(float));
    if (!scratch) return 1;
    plan_backward(call, scratch.take<float>(floats));
    call.order();
    parallel(threads, int64_t(call.items.size()), backward_chunk, &call);
    if (call.short_of_memory.load()) return 1;
    parallel(threads, int64_t(call.prefixes.size()) * call.attention.key_heads, combine_chunk, &call);
    return 0;
}

}  // namespace
}  // namespace quarterdeck

using namespace quarterdeck;

#define EXPORT __attribute__((visibility("default")))

extern "C" {

// These return 0, or 1 where memory is short. The caller has checked shapes, the documents and the level.

EXPORT int quarterdeck_packed_forward(int level, int threads, const PackedAttention* attention) {
    try {
        PackedCall call{*attention, kernels_of(level, attention->type), {}, {}, {}};
        return forward(call, threads);
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

EXPORT int quarterdeck_packed_backward(int level, int threads, const PackedAttention* attention) {
    try {
        PackedCall call{*attention, kernels_of(level, attention->type), {}, {}, {}};
        return backward(call, threads);
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

}  // extern "C"
