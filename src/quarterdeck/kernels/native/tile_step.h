// Sums of up to two by two tiles over `steps` tiles of columns, added to what `sums` holds unless this is the `first`
// part. Included into a struct, once per type of product: tile registers are named by constants in the instructions.
//
// Both operands advance by one tile of 1 KiB per step; `a1`, `b1` are the second group of 16 rows of activations and
// the second block of weights. `sums` are four tiles: (a0 b0), (a0 b1), (a1 b0), (a1 b1), `sums_row` apart in rows.
// `ahead0`, `ahead1` are what the next call wants; `lines` of each are fetched per step.
template <int A, int B>
static void step(const void* a0, const void* a1, const void* b0, const void* b1, int64_t steps, void* sums,
                 int64_t sums_row, bool first, const char* ahead0, const char* ahead1, int64_t lines) {
    const char* x0 = static_cast<const char*>(a0);
    const char* x1 = static_cast<const char*>(a1);
    const char* w0 = static_cast<const char*>(b0);
    const char* w1 = static_cast<const char*>(b1);
    char* s0 = static_cast<char*>(sums);
    char* s1 = s0 + sums_row;
    if (first) {
        _tile_zero(0);
        if (B > 1) _tile_zero(1);
        if (A > 1) _tile_zero(2);
        if (A > 1 && B > 1) _tile_zero(3);
    } else {
        _tile_loadd(0, s0, 64);
        if (B > 1) _tile_loadd(1, s0 + kTileBytes, 64);
        if (A > 1) _tile_loadd(2, s1, 64);
        if (A > 1 && B > 1) _tile_loadd(3, s1 + kTileBytes, 64);
    }
    for (int64_t i = 0; i < steps; ++i) {
        _tile_loadd(4, x0, 64);
        _tile_loadd(6, w0, 64);
        QUARTERDECK_DOT(0, 4, 6);
        if (B > 1) {
            _tile_loadd(7, w1, 64);
            QUARTERDECK_DOT(1, 4, 7);
        }
        if (A > 1) {
            _tile_loadd(5, x1, 64);
            QUARTERDECK_DOT(2, 5, 6);
        }
        if (A > 1 && B > 1) QUARTERDECK_DOT(3, 5, 7);
        for (int64_t line = 0; line < lines; ++line) {
            _mm_prefetch(ahead0, _MM_HINT_T1);
            _mm_prefetch(ahead1, _MM_HINT_T1);
            ahead0 += 64, ahead1 += 64;
        }
        x0 += kTileBytes, x1 += kTileBytes, w0 += kTileBytes, w1 += kTileBytes;
    }
    _tile_stored(0, s0, 64);
    if (B > 1) _tile_stored(1, s0 + kTileBytes, 64);
    if (A > 1) _tile_stored(2, s1, 64);
    if (A > 1 && B > 1) _tile_stored(3, s1 + kTileBytes, 64);
}
