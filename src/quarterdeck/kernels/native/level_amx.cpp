#include "lanes_avx512.h"
#include "linear.h"
#include "quantize.h"

namespace quarterdeck {

const Level* level_amx() {
    static const Level level = {"amx", Lanes::kOffset, quantize_row, int8_product, int4_product};
    return &level;
}

}  // namespace quarterdeck
