#define QUARTERDECK_AVX_VNNI
#include "lanes_avx2.h"
#include "linear.h"
#include "quantize.h"

namespace quarterdeck {

const Level* level_avxvnni() {
    static const Level level = {"avxvnni", Lanes::kOffset, false, quantize_row, int8_product, int4_product};
    return &level;
}

}  // namespace quarterdeck
