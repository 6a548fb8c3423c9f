// AMX: products with many rows. All else goes to the level below: one stream of weights is all that memory gives.
#include "lanes_avx512.h"
#include "group_tiles.h"
#include "linear.h"
#include "quantize.h"
#include "scratch.h"
#include "tiles.h"

namespace quarterdeck {
namespace {

struct Walk {
    const Product& p;
    int64_t first, last;  // blocks of weights
    char* sums;           // [groups][blocks] tiles of int32

    size_t sums_bytes() const { return p.x.groups() * (last - first) * kTileBytes; }
};

// Two blocks (or one, where `B` is 1) of weights by all rows, over one slab of columns from `tile` on. Meanwhile `bytes`
// of the weights that come next are fetched from each of `ahead0` and `ahead1`.
template <int B>
void multiply_panel(const Walk& walk, int64_t block, int64_t tile, const int8_t* w0, const int8_t* w1,
                    const char* ahead0, const char* ahead1, int64_t bytes) {
    const Rows8& x = walk.p.x;
    const int64_t count = x.slab_width(tile), groups = x.groups();
    const int64_t sums_row = (walk.last - walk.first) * kTileBytes;
    const int64_t steps = (groups + 1) / 2 * count;
    const int64_t lines = ahead0 ? (bytes / 64 + steps - 1) / steps : 0;
    for (int64_t group = 0; group < groups; group += 2) {
        const int8_t* x0 = x.tile_of(group, tile);
        char* sums = walk.sums + group * sums_row + (block - walk.first) * kTileBytes;
        const int64_t skipped = group / 2 * count * lines * 64;
        if (group + 1 < groups) {
            Int8Tiles::step<2, B>(x0, x.tile_of(group + 1, tile), w0, w1, count, sums, sums_row, tile == 0,
                                  ahead0 + skipped, ahead1 + skipped, lines);
        } else {
            Int8Tiles::step<1, B>(x0, x0, w0, w1, count, sums, sums_row, tile == 0, ahead0 + skipped, ahead1 + skipped,
                                  lines);
        }
    }
}

// Results row by row, so that what is written is in one piece.
void finish_all(const Walk& walk) {
    const Product& p = walk.p;
    const int64_t blocks = walk.last - walk.first;
    const int64_t whole = p.n - walk.first * kBlockRows >= blocks * kBlockRows && !p.bias ? blocks : 0;
    for (int64_t row = 0; row < p.x.rows; ++row) {
        const char* sums = walk.sums + row / kTileRows * blocks * kTileBytes + row % kTileRows * 64;
        const float* scale = p.scale + walk.first * kBlockRows;
        const __m512 row_scale = _mm512_set1_ps(p.x.scale[row]);
        char* out = static_cast<char*>(advance(p.out, p.out_type, row * p.n + walk.first * kBlockRows));
        const int64_t size = p.out_type == kFloat32 ? 64 : 32;
        for (int64_t block = 0; block < whole; ++block) {
            const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums + block * kTileBytes));
            const __m512 value = _mm512_mul_ps(_mm512_mul_ps(sum, _mm512_loadu_ps(scale + block * kBlockRows)), row_scale);
            Lanes::store(out + block * size, p.out_type, value, kBlockRows);
        }
        for (int64_t block = whole; block < blocks; ++block) {
            finish_int8<false>(p, _mm512_load_si512(sums + block * kTileBytes), row, walk.first + block);
        }
    }
}

// Calls panel(block, tile, next_block, next_tile) for all pairs of blocks within all slabs; next_tile is -1 at the end.
template <class Panel>
void for_all_panels(const Walk& walk, Panel panel) {
    for (int64_t tile = 0; tile < walk.p.x.tiles(); tile += walk.p.x.slab) {
        for (int64_t block = walk.first; block < walk.last; block += 2) {
            const bool wraps = block + 2 >= walk.last;
            const int64_t next_tile = wraps ? tile + walk.p.x.slab : tile;
            panel(block, tile, wraps ? walk.first : block + 2, next_tile < walk.p.x.tiles() ? next_tile : -1);
        }
    }
}

void int8_tiles(const Product& p, int64_t first, int64_t last) {
    Walk walk{p, first, last, nullptr};
    Scratch scratch(walk.sums_bytes());
    if (!scratch) return out_of_memory(p);
    walk.sums = scratch.take<char>(walk.sums_bytes());
    const Tiles configured;
    const auto weights = [&](int64_t block, int64_t tile) {
        return static_cast<const int8_t*>(p.weights) + block * kBlockRows * p.padded + tile * kTileBytes;
    };
    for_all_panels(walk, [&](int64_t block, int64_t tile, int64_t next_block, int64_t next_tile) {
        const char *ahead0 = nullptr, *ahead1 = nullptr;
        if (next_tile >= 0) {
            ahead0 = reinterpret_cast<const char*>(weights(next_block, next_tile));
            ahead1 = reinterpret_cast<const char*>(weights(next_block + (next_block + 1 < last), next_tile));
        }
        const int64_t bytes = next_tile >= 0 ? p.x.slab_width(next_tile) * kTileBytes : 0;
        if (block + 1 < last) {
            multiply_panel<2>(walk, block, tile, weights(block, tile), weights(block + 1, tile), ahead0, ahead1, bytes);
        } else {
            multiply_panel<1>(walk, block, tile, weights(block, tile), nullptr, ahead0, ahead1, bytes);
        }
    });
    finish_all(walk);
}

// Weights in 4 bits become 8 bits with one step per row, for the time of one slab: the row's largest magnitude is 127
// steps, so that rounding to a step is a small part of what rounding to 4 bits was. Fixed point with 7 bits of fraction:
// (value * scale + minimum + 1/2) >> 7 fits 16 bits.
constexpr float kFraction = 128.0f;

// Rounding a group to steps adds (step / scale)^2 of the variance that rounding to 4 bits has left. Where the mean over
// a block's groups is above this, as where some columns are far larger than the others, all scales are kept.
constexpr float kMostAdded = 0.1f;

// The step of each of a block's 16 rows, and its inverse times kFraction; whether such steps are fine enough.
bool row_steps(const Product& p, int64_t block, float* step, float* inverse) {
    const int64_t groups = p.padded / p.group;
    const uint16_t* scales = p.scales + block * groups * kBlockRows;
    __m512 largest = _mm512_setzero_ps(), fineness = _mm512_setzero_ps();  // the latter: the sum of 1 / scale^2
    for (int64_t g = 0; g < groups; ++g) {
        const __m512 scale = Lanes::load_half(scales + g * kBlockRows);
        const __mmask16 any = _mm512_cmp_ps_mask(scale, _mm512_setzero_ps(), _CMP_NEQ_OQ);
        const __m512 per_step = _mm512_maskz_rcp14_ps(any, scale);
        fineness = _mm512_fmadd_ps(per_step, per_step, fineness);
        if (p.minima) {
            const __m512 least = Lanes::load_half(p.minima + (block * groups + g) * kBlockRows);
            const __m512 most = _mm512_fmadd_ps(scale, _mm512_set1_ps(15.0f), least);
            largest = _mm512_max_ps(largest, _mm512_max_ps(_mm512_abs_ps(least), _mm512_abs_ps(most)));
        } else {
            largest = _mm512_max_ps(largest, _mm512_abs_ps(_mm512_mul_ps(scale, _mm512_set1_ps(8.0f))));
        }
    }
    _mm512_store_ps(step, _mm512_div_ps(largest, _mm512_set1_ps(127.0f)));
    const __mmask16 some = _mm512_cmp_ps_mask(largest, _mm512_set1_ps(kLeast), _CMP_GT_OQ);
    _mm512_store_ps(inverse, _mm512_maskz_div_ps(some, _mm512_set1_ps(127.0f * kFraction), largest));
    const __m512 steps = _mm512_div_ps(largest, _mm512_set1_ps(127.0f));
    const __m512 added = _mm512_mul_ps(_mm512_mul_ps(steps, steps), fineness);
    return _mm512_reduce_add_ps(added) <= kMostAdded * float(groups * kBlockRows);
}

// Both 16-bit halves of each lane.
inline __m512i twice(__m512i lanes) {
    return _mm512_or_si512(_mm512_slli_epi32(lanes, 16), _mm512_and_si512(lanes, _mm512_set1_epi32(0xffff)));
}

inline __m512i round_bytes(__m512i even, __m512i odd, __m512i scale, __m512i minimum) {
    const __m512i low = _mm512_srai_epi16(_mm512_add_epi16(_mm512_mullo_epi16(even, scale), minimum), 7);
    const __m512i high = _mm512_slli_epi16(_mm512_add_epi16(_mm512_mullo_epi16(odd, scale), minimum), 1);
    return _mm512_mask_blend_epi8(0xaaaaaaaaaaaaaaaaull, low, high);
}

// `count` tiles of one block, from `tile` on, to int8 in the order of blocks.
void to_int8(const Product& p, int64_t block, int64_t tile, int64_t count, const float* inverse, int8_t* out) {
    const int64_t columns = p.group, groups = p.padded / columns;
    const uint8_t* from = static_cast<const uint8_t*>(p.weights) + block * kBlockRows * p.padded / 2 + tile * 512;
    const int64_t first = tile * kBlockColumns / columns, last = (tile + count) * kBlockColumns / columns;
    const __m512 factor = _mm512_load_ps(inverse);
    const __m512i nibble = _mm512_set1_epi16(15), half = _mm512_set1_epi16(64);
    for (int64_t g = first; g < last; ++g) {
        const int64_t at = (block * groups + g) * kBlockRows;
        const __m512i scale = twice(_mm512_cvtps_epi32(_mm512_mul_ps(Lanes::load_half(p.scales + at), factor)));
        __m512i minimum;
        if (p.minima) {
            minimum = twice(_mm512_cvtps_epi32(_mm512_mul_ps(Lanes::load_half(p.minima + at), factor)));
        } else {
            minimum = _mm512_sub_epi16(_mm512_setzero_si512(), _mm512_slli_epi16(scale, 3));
        }
        minimum = _mm512_add_epi16(minimum, half);
        for (int64_t pair = 0; pair < columns / 8; ++pair, from += 64, out += 128) {
            const __m512i both = _mm512_loadu_si512(from);
            const __m512i low_even = _mm512_and_si512(both, nibble);
            const __m512i low_odd = _mm512_and_si512(_mm512_srli_epi16(both, 8), nibble);
            const __m512i high_even = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
            const __m512i high_odd = _mm512_srli_epi16(both, 12);
            _mm512_store_si512(out, round_bytes(low_even, low_odd, scale, minimum));
            _mm512_store_si512(out + 64, round_bytes(high_even, high_odd, scale, minimum));
        }
    }
}

// Blocks [first, last) with the steps of their rows, and those inverse.
void rounded_tiles(const Product& p, int64_t first, int64_t last, const float* step, const float* inverse) {
    Product rounded = p;  // the same product with weights in 8 bits
    Walk walk{rounded, first, last, nullptr};
    const int64_t panel = p.x.slab_width(0) * kTileBytes;
    Scratch scratch(walk.sums_bytes() + 2 * panel);
    if (!scratch) return out_of_memory(p);
    walk.sums = scratch.take<char>(walk.sums_bytes());
    int8_t* const weights = scratch.take<int8_t>(2 * panel);
    rounded.scale = step - first * kBlockRows;
    rounded.row_sum = nullptr;
    const Tiles configured;
    for_all_panels(walk, [&](int64_t block, int64_t tile, int64_t next_block, int64_t next_tile) {
        const int64_t count = p.x.slab_width(tile), blocks = block + 1 < last ? 2 : 1;
        for (int64_t b = 0; b < blocks; ++b) {
            to_int8(p, block + b, tile, count, inverse + (block + b - first) * kBlockRows, weights + b * panel);
        }
        const auto packed = [&](int64_t b) {
            return static_cast<const char*>(p.weights) + b * kBlockRows * p.padded / 2 + next_tile * kTileBytes / 2;
        };
        const char* ahead0 = next_tile >= 0 ? packed(next_block) : nullptr;
        const char* ahead1 = next_tile >= 0 ? packed(next_block + (next_block + 1 < last)) : nullptr;
        const int64_t bytes = next_tile >= 0 ? p.x.slab_width(next_tile) * kTileBytes / 2 : 0;
        if (blocks == 2) {
            multiply_panel<2>(walk, block, tile, weights, weights + panel, ahead0, ahead1, bytes);
        } else {
            multiply_panel<1>(walk, block, tile, weights, nullptr, ahead0, ahead1, bytes);
        }
    });
    finish_all(walk);
}

// Whether a block is rounded depends on its scales alone, so that results do not vary with the number of threads.
void int4_tiles(const Product& p, int64_t first, int64_t last) {
    const int64_t rows = (last - first) * kBlockRows;
    Scratch scratch(2 * aligned(rows * sizeof(float)) + aligned(last - first));
    if (!scratch) return out_of_memory(p);
    float* const step = scratch.take<float>(rows);
    float* const inverse = scratch.take<float>(rows);
    bool* const fine = scratch.take<bool>(last - first);
    for (int64_t i = 0; i < last - first; ++i) {
        fine[i] = row_steps(p, first + i, step + i * kBlockRows, inverse + i * kBlockRows);
    }
    for (int64_t i = 0, end; i < last - first; i = end) {
        for (end = i + 1; end < last - first && fine[end] == fine[i];) ++end;
        if (fine[i]) {
            rounded_tiles(p, first + i, first + end, step + i * kBlockRows, inverse + i * kBlockRows);
        } else {
            with_form(p, [&](auto form) { group_tiles<decltype(form)>(p, first + i, first + end); });
        }
    }
}

// Weights in 8 bits are so fine that another rounding would add as much error again.
void tiles_of_groups(const Product& p, int64_t first, int64_t last) {
    if (p.bits == 4) return int4_tiles(p, first, last);
    with_form(p, [&](auto form) { group_tiles<decltype(form)>(p, first, last); });
}

}  // namespace

const Level* level_amx() {
    static const Level level = {"amx", false, true, quantize_row, int8_tiles, tiles_of_groups, nullptr, nullptr};
    return &level;
}

}  // namespace quarterdeck
