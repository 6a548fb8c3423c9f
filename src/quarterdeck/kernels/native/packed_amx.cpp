#include "packed_block.h"
#include "packed_tiles.h"

namespace quarterdeck {

const PackedKernels* packed_amx() {
    static const PackedKernels kernels = {forward_item<TileProducts>, backward_item<TileProducts>, combine_parts};
    return &kernels;
}

}  // namespace quarterdeck
