#include "packed_block.h"
#include "packed_vectors.h"

namespace quarterdeck {

const PackedKernels* packed_avx512() {
    static const PackedKernels kernels = {forward_item<VectorProducts>, backward_item<VectorProducts>, combine_parts};
    return &kernels;
}

}  // namespace quarterdeck
