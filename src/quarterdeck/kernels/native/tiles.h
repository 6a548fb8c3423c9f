// AMX: eight registers of 16 rows by 64 bytes. Four hold sums, two activations, two weights: 32 x 32 results at a time.
#pragma once

#include <immintrin.h>

#include "quarterdeck.h"

namespace quarterdeck {
namespace {

constexpr int64_t kTileBytes = 1024;

// Tiles are part of a thread's state: configured at the start of a piece of work, released at its end.
class Tiles {
  public:
    // Registers 4 and 5, for activations, have `columns` columns, and 6 and 7, for weights, rows of four of them each.
    explicit Tiles(int columns = kBlockColumns) {
        struct alignas(64) {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
        } config;
        config.row_bytes[4] = config.row_bytes[5] = uint16_t(columns);
        config.rows[6] = config.rows[7] = uint8_t(columns / 4);
        _tile_loadconfig(&config);
    }
    ~Tiles() { _tile_release(); }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;
};

struct Int8Tiles {
#define QUARTERDECK_DOT(c, a, b) _tile_dpbssd(c, a, b)
#include "tile_step.h"
#undef QUARTERDECK_DOT
};

}  // namespace
}  // namespace quarterdeck
