// The C interface that Python calls, and the choice of a level.
#include <cmath>

#include "convert.h"
#include "quarterdeck.h"
#include "scratch.h"

#if defined(__x86_64__) || defined(_M_X64)
#define QUARTERDECK_X86
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace quarterdeck {
namespace {

enum LevelNumber : int { kPortable, kAvx2, kAvxVnni, kAvx512, kAmx, kLevels };

#ifdef QUARTERDECK_X86
struct Registers {
    uint32_t a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf) {
    Registers r;
    __get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d);
    return r;
}

bool bit(uint32_t word, int index) { return word >> index & 1; }

uint64_t enabled_state() {
    if (!bit(cpuid(1, 0).c, 27)) return 0;  // OSXSAVE
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return uint64_t(high) << 32 | low;
}

// Linux hands out the 8 KiB of tile registers on request only; once granted, every thread of the process has them.
bool request_tiles() {
#if defined(__linux__) && defined(SYS_arch_prctl)
    constexpr int kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}

bool processor_has(int level) {
    const uint64_t state = enabled_state();
    const Registers one = cpuid(1, 0), seven = cpuid(7, 0), seven_one = cpuid(7, 1);
    const bool avx2 = (state & 6) == 6 && bit(one.c, 12) && bit(one.c, 29) && bit(seven.b, 5);  // FMA, F16C, AVX2
    const bool avx512 = avx2 && (state & 0xe6) == 0xe6 && bit(seven.b, 16) && bit(seven.b, 17) && bit(seven.b, 30) &&
                        bit(seven.b, 31) && bit(seven.c, 11);  // F, DQ, BW, VL, VNNI
    switch (level) {
        case kPortable: return true;
        case kAvx2: return avx2;
        case kAvxVnni: return avx2 && bit(seven_one.a, 4);
        case kAvx512: return avx512;
        default:  // tiles, int8, bf16, and vectors of bf16
            return avx512 && (state >> 17 & 3) == 3 && bit(seven.d, 24) && bit(seven.d, 25) && bit(seven.d, 22) &&
                   bit(seven_one.a, 5) && request_tiles();
    }
}
#else
bool processor_has(int level) { return level == kPortable; }
#endif

const Level* built(int level) {
    switch (level) {
        case kPortable: return level_portable();
#ifdef QUARTERDECK_HAVE_AVX2
        case kAvx2: return level_avx2();
#endif
#ifdef QUARTERDECK_HAVE_AVXVNNI
        case kAvxVnni: return level_avxvnni();
#endif
#ifdef QUARTERDECK_HAVE_AVX512
        case kAvx512: return level_avx512();
#endif
#ifdef QUARTERDECK_HAVE_AMX
        case kAmx: return level_amx();
#endif
        default: return nullptr;
    }
}

struct Call {
    int chosen;
    const Level* level;
    Product product;
    const void* x;
    DType type;
    int64_t blocks_per_chunk;
};

const void* row_of(const Call& call, int64_t row) {
    return static_cast<const char*>(call.x) + row * call.product.k * (call.type == kFloat32 ? 4 : 2);
}

void quantize_chunk(void* context, int64_t chunk) {
    const Call& call = *static_cast<const Call*>(context);
    const Rows8& rows = call.product.x;
    for (int64_t row = chunk * kTileRows; row < (chunk + 1) * kTileRows && row < rows.rows; ++row) {
        call.level->quantize(row_of(call, row), call.type, rows, row);
    }
}

void product_chunk(void* context, int64_t chunk) {
    const Call& call = *static_cast<const Call*>(context);
    const int64_t blocks = (call.product.n + kBlockRows - 1) / kBlockRows;
    const int64_t first = chunk * call.blocks_per_chunk;
    const int64_t last = first + call.blocks_per_chunk < blocks ? first + call.blocks_per_chunk : blocks;
    (call.product.bits ? call.level->groups : call.level->int8)(call.product, first, last);
}

// The level that multiplies `rows` rows best: a tile half empty is worth less than vectors.
const Level* level_for(const Call& call, int64_t rows) {
    return call.chosen == kAmx && rows < kTileRows ? built(kAvx512) : built(call.chosen);
}

// Blocks of weights in a piece of work: pieces are taken by whoever is free, and neither too few nor too small.
int64_t blocks_at_a_time(int64_t blocks, int threads) {
    const int64_t share = blocks / (threads * 4) / 6 * 6;  // whole pairs and triples
    return share < 6 ? 6 : share > 24 ? 24 : share;
}

// Tiles of columns, of all rows, that are half a MiB: in a second-level cache of 1 MiB or more they stay.
int64_t slab_for(int64_t rows) {
    const int64_t tiles = (int64_t(1) << 19) / ((rows + kTileRows - 1) / kTileRows * 1024);
    return tiles < 8 ? 8 : tiles;
}

constexpr int64_t kMostRows = 512;  // rows of activations at a time: what is quantized stays in the cache

// `rows` rows of activations from `x` on; 0, or 1 where memory is short.
int multiply(Call& call, int64_t rows, int threads) {
    Product& p = call.product;
    Rows8& x = p.x;
    call.level = level_for(call, rows);
    x.rows = rows, x.columns = p.k, x.padded = p.padded;
    x.group = rows < kTileRows ? rows : kTileRows;
    x.slab = call.level->slabs ? slab_for(rows) : x.tiles();
    x.offset = !p.bits && call.level->offset_rows;
    const int64_t stored = (rows + x.group - 1) / x.group * x.group;
    const int64_t sums = p.bits ? rows * (p.padded / 32) : 0;
    Scratch scratch(aligned(stored * p.padded) + aligned(rows * 4) + aligned(sums * 4));
    if (!scratch) return 1;
    x.data = scratch.take<int8_t>(stored * p.padded);
    x.scale = scratch.take<float>(rows);
    x.group_sum = sums ? scratch.take<int32_t>(sums) : nullptr;
    parallel(threads, (rows + kTileRows - 1) / kTileRows, quantize_chunk, &call);
    const int64_t blocks = (p.n + kBlockRows - 1) / kBlockRows;
    call.blocks_per_chunk = blocks_at_a_time(blocks, threads);
    std::atomic<bool> short_of_memory{false};
    p.short_of_memory = &short_of_memory;
    parallel(threads, (blocks + call.blocks_per_chunk - 1) / call.blocks_per_chunk, product_chunk, &call);
    return short_of_memory.load() ? 1 : 0;
}

int multiply_all(Call& call, int64_t rows, int threads) {
    void* const out = call.product.out;
    const void* const x = call.x;
    for (int64_t row = 0; row < rows; row += kMostRows) {
        call.product.out = static_cast<char*>(out) + row * call.product.n * (call.type == kFloat32 ? 4 : 2);
        call.x = static_cast<const char*>(x) + row * call.product.k * (call.type == kFloat32 ? 4 : 2);
        const int failed = multiply(call, rows - row < kMostRows ? rows - row : kMostRows, threads);
        if (failed) return failed;
    }
    return 0;
}

int64_t pad_columns(int64_t columns) { return (columns + kBlockColumns - 1) / kBlockColumns * kBlockColumns; }

// Levels without a kernel of their own for something use the one below.
const Level* level_of_vectors(int level) { return built(level == kAmx ? kAvx512 : level); }

struct DenseCall {
    const Level* level;
    DenseProduct product;
    int64_t rows_per_chunk;
};

void dense_chunk(void* context, int64_t chunk) {
    const DenseCall& call = *static_cast<const DenseCall*>(context);
    const int64_t first = chunk * call.rows_per_chunk, last = first + call.rows_per_chunk;
    call.level->dense(call.product, first, last < call.product.n ? last : call.product.n);
}

struct AttentionCall {
    const Level* level;
    Attention attention;
    const Segment* segments;
    int64_t pieces;   // of all segments
    int64_t padded;   // width
    float* partials;  // [batch * heads][pieces][partial]
    std::atomic<bool> short_of_memory{false};

    int64_t partial() const { return attention.queries * (2 + padded); }
};

void attend_chunk(void* context, int64_t chunk) {
    AttentionCall& call = *static_cast<AttentionCall*>(context);
    const Attention& a = call.attention;
    int64_t piece = chunk % call.pieces;
    const int64_t pair = chunk / call.pieces;
    const Segment* segment = call.segments;
    for (;; ++segment) {
        const int64_t pieces = (segment->length + kPiece - 1) / kPiece;
        if (piece < pieces) break;
        piece -= pieces;
    }
    const int64_t first = piece * kPiece, last = first + kPiece < segment->length ? first + kPiece : segment->length;
    Scratch scratch((a.queries * (call.padded + kPiece) + 16 * call.padded) * sizeof(float));
    if (!scratch) return call.short_of_memory.store(true, std::memory_order_relaxed);
    float* const work = scratch.take<float>(1);
    float* const partial = call.partials + chunk * call.partial();
    call.level->attend(a, *segment, pair / a.heads, pair % a.heads, first, last, partial, work);
}

// Puts the pieces of one sequence's head together. What sees nothing is zero.
void combine_chunk(void* context, int64_t pair) {
    const AttentionCall& call = *static_cast<const AttentionCall*>(context);
    const Attention& a = call.attention;
    const float* const partials = call.partials + pair * call.pieces * call.partial();
    for (int64_t query = 0; query < a.queries; ++query) {
        float largest = -INFINITY, total = 0.0f;
        for (int64_t piece = 0; piece < call.pieces; ++piece) {
            largest = std::fmax(largest, partials[piece * call.partial() + query]);
        }
        float sums[kMostWidth] = {};
        for (int64_t piece = 0; piece < call.pieces; ++piece) {
            const float* partial = partials + piece * call.partial();
            const float weight = partial[a.queries + query];
            if (weight == 0.0f) continue;
            const float factor = std::exp(partial[query] - largest);
            total += factor * weight;
            const float* from = partial + a.queries * 2 + query * call.padded;
            for (int64_t c = 0; c < a.width; ++c) sums[c] += factor * from[c];
        }
        const int64_t row = pair * a.queries + query;
        for (int64_t c = 0; c < a.width; ++c) {
            store_float(a.out, a.type, row * a.width + c, total == 0.0f ? 0.0f : sums[c] / total);
        }
    }
}

}  // namespace
}  // namespace quarterdeck

using namespace quarterdeck;

#define EXPORT __attribute__((visibility("default")))

extern "C" {

// The level's name where it is built and the processor has it; null otherwise.
EXPORT const char* quarterdeck_level(int level) {
    const Level* found = level >= 0 && level < kLevels ? built(level) : nullptr;
    return found && processor_has(level) ? found->name : nullptr;
}

// Rises with every change of what these functions take; _ABI in native.py is the same number.
EXPORT int quarterdeck_abi() { return 2; }

EXPORT const char* quarterdeck_threads() { return thread_pool_name(); }

// All functions below return 0, or 1 where memory is short. The caller has checked shapes and the level.

EXPORT int quarterdeck_int8_linear(int level, int threads, const void* x, int type, int64_t m, int64_t n, int64_t k,
                            const int8_t* weights, const float* scale, const int32_t* row_sum, const float* bias,
                            void* out) {
    Call call{};
    call.chosen = level;
    call.x = x, call.type = DType(type);
    Product& p = call.product;
    p.weights = weights, p.scale = scale, p.row_sum = row_sum, p.bias = bias;
    p.n = n, p.k = k, p.padded = pad_columns(k), p.out = out, p.out_type = DType(type);
    return multiply_all(call, m, threads);
}

// Weights in groups of `group` columns, of 4 or 8 `bits`; minima may be null.
EXPORT int quarterdeck_group_linear(int level, int threads, const void* x, int type, int64_t m, int64_t n, int64_t k,
                            const void* weights, const uint16_t* scales, const uint16_t* minima, const float* bias,
                            void* out, int bits, int group) {
    Call call{};
    call.chosen = level;
    call.x = x, call.type = DType(type);
    Product& p = call.product;
    p.weights = weights, p.scales = scales, p.minima = minima, p.bias = bias, p.bits = bits, p.group = group;
    p.n = n, p.k = k, p.padded = pad_columns(k), p.out = out, p.out_type = DType(type);
    return multiply_all(call, m, threads);
}

EXPORT int quarterdeck_dense_linear(int level, int threads, const void* x, int type, int64_t m, int64_t n, int64_t k,
                                    const void* weights, const float* bias, void* out) {
    const int64_t padded = (k + 15) / 16 * 16;
    Scratch scratch(m * padded * sizeof(float));
    if (!scratch) return 1;
    float* const rows = scratch.take<float>(m * padded);
    for (int64_t row = 0; row < m; ++row) {
        for (int64_t c = 0; c < padded; ++c) {
            rows[row * padded + c] = c < k ? load_float(x, DType(type), row * k + c) : 0.0f;
        }
    }
    const int64_t share = n / (threads * 8) / 4 * 4;
    DenseCall call{level_of_vectors(level), {weights, rows, bias, out, DType(type), m, n, k, padded},
                   share < 16 ? 16 : share > 256 ? 256 : share};
    parallel(threads, (n + call.rows_per_chunk - 1) / call.rows_per_chunk, dense_chunk, &call);
    return 0;
}

EXPORT int quarterdeck_attend(int level, int threads, const Attention* attention, const Segment* segments, int count) {
    AttentionCall call{level_of_vectors(level), *attention, segments, 0, (attention->width + 15) / 16 * 16, nullptr};
    for (int i = 0; i < count; ++i) call.pieces += (segments[i].length + kPiece - 1) / kPiece;
    const int64_t pairs = attention->batch * attention->heads;
    Scratch scratch(pairs * call.pieces * call.partial() * sizeof(float));
    if (!scratch) return 1;
    call.partials = scratch.take<float>(1);
    parallel(threads, pairs * call.pieces, attend_chunk, &call);
    if (call.short_of_memory.load()) return 1;
    parallel(threads, pairs, combine_chunk, &call);
    return 0;
}

}  // extern "C"
