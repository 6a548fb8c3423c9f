#include "lanes_avx2.h"
#include "linear.h"
#include "quantize.h"

namespace quarterdeck {

const Level* level_avx2() {
    static const Level level = {"avx2", Lanes::kOffset, false, quantize_row, int8_product, int4_product};
    return &level;
}

}  // namespace quarterdeck
