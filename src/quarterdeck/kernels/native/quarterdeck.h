// What the native kernels share. No torch, no Python: pointers, sizes, and the number of threads to use.
//
// Every instruction set ("level") has one file per kind of kernel, compiled with that set's flags and nothing else;
// the functions stand in a Level, and cpu.cpp chooses among those that were built and that the processor has.
// All code in headers is in unnamed namespaces: two levels must never share a compiled inline function.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace quarterdeck {

enum DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

constexpr int64_t kBlockRows = 16;     // rows of weights side by side
constexpr int64_t kBlockColumns = 64;  // columns are padded to whole multiples
constexpr int64_t kTileRows = 16;      // rows of activations in a tile

// Activations in 8 bits. Rows are in groups of `group` (16, or all where there are fewer), columns in tiles of 64, tiles
// in slabs: [slab][rows / group][tiles of the slab][group][64]. A tile of 16 rows by 64 columns is contiguous, and so is
// all that is multiplied while it stays in the second-level cache, which rows a power of two apart would not.
struct Rows8 {
    int8_t* data;
    float* scale;        // per row
    int32_t* group_sum;  // sums of 32 columns, [rows][columns / 32]; null where nobody needs them
    int64_t rows, columns, padded;
    int64_t group;
    int64_t slab;  // tiles of columns
    bool offset;   // stored as unsigned bytes, 128 higher

    int64_t groups() const { return (rows + group - 1) / group; }
    int64_t tiles() const { return padded / kBlockColumns; }
    int64_t slab_width(int64_t tile) const { return tiles() - tile < slab ? tiles() - tile : slab; }
    // the first of a group's rows at tile `tile` of columns
    int8_t* tile_of(int64_t group_index, int64_t tile) const {
        const int64_t start = tile / slab * slab;
        return data + (start * groups() + group_index * slab_width(start) + (tile - start)) * group * kBlockColumns;
    }
};

// One product y = x W^T + bias.
struct Product {
    const void* weights;
    const float* scale;        // one scale for a row: per row
    const int32_t* row_sum;    // the same
    int32_t bits;              // of a weight in groups: 4 or 8; 0 where a row has one scale
    int32_t group;             // columns that share a scale: 32, or 64 (4 bits with minima)
    const uint16_t* scales;    // groups: float16 [N / 16][columns / group][16]
    const uint16_t* minima;    // 4 bits, asymmetric: as scales; otherwise null
    const float* bias;         // may be null
    int64_t n, k, padded;      // rows and columns of the weight, columns with padding
    void* out;                 // [m, n]
    DType out_type;
    Rows8 x;
    std::atomic<bool>* short_of_memory;  // set by whoever finds none for its sums; the call then fails
};

inline void out_of_memory(const Product& p) { p.short_of_memory->store(true, std::memory_order_relaxed); }

// y = x W^T + bias with weights as they are, for few rows.
struct DenseProduct {
    const void* weights;  // [n, k] of `type`
    const float* x;       // [m, padded], float32, zero behind k
    const float* bias;    // may be null
    void* out;            // [m, n] of `type`
    DType type;
    int64_t m, n, k, padded;
};

// Keys or values as a cache stores them: floating, or codes of 8 or 4 bits in groups with a scale and a minimum.
// Positions of one head follow each other; strides between heads and sequences are in elements of each array.
struct Stored {
    const void* data;
    const uint16_t* scales;  // float16; null where floating
    const uint16_t* minima;
    int64_t sequence, head;              // strides of data
    int64_t scale_sequence, scale_head;  // strides of scales and minima
    int32_t bits;                        // 0 where floating
    DType type;                          // of floating data
    int32_t tokens, channels;            // of a group
};

// Attention of one position's queries: for every sequence and key-value head, `queries` heads share keys and values.
struct Attention {
    const void* query;      // [batch, heads, queries, width]
    void* out;              // the same
    const uint8_t* allowed; // [batch, all positions]; null: all
    DType type;             // of query and out
    int64_t batch, heads, queries, width;
    int64_t positions;      // of all segments
    float scale;
};

struct Segment {
    Stored key, value;
    int64_t start, length;  // where it begins among all positions
};

// What a piece of positions adds to a query: the largest score, and sums with weights relative to it. The layout is
// [queries] maxima, [queries] sums of weights, [queries][width] weighted values.
constexpr int64_t kPiece = 256;      // positions at a time
constexpr int64_t kMostWidth = 512;  // of a head

struct Level {
    const char* name;
    bool offset_rows;  // the int8 product wants activations as unsigned bytes
    bool slabs;        // wants columns in slabs
    // row `row` of `rows` from x, [columns] of `type`
    void (*quantize)(const void* x, DType type, const Rows8& rows, int64_t row);
    // all rows of x times blocks [first, last) of 16 rows of weights
    void (*int8)(const Product& product, int64_t first, int64_t last);
    void (*groups)(const Product& product, int64_t first, int64_t last);
    // rows [first, last) of the weights
    void (*dense)(const DenseProduct& product, int64_t first, int64_t last);
    // positions [first, last) of a segment, counted within it; `work` has room for attend_floats(...)
    void (*attend)(const Attention& attention, const Segment& segment, int64_t sequence, int64_t head, int64_t first,
                   int64_t last, float* partial, float* work);
};

const Level* level_portable();
const Level* level_avx2();
const Level* level_avxvnni();
const Level* level_avx512();
const Level* level_amx();

// Calls work(context, chunk) for every chunk in [0, chunks), from up to `threads` threads.
void parallel(int threads, int64_t chunks, void (*work)(void*, int64_t), void* context);
const char* thread_pool_name();

}  // namespace quarterdeck
