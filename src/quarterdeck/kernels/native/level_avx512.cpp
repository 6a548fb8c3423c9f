#include "lanes_avx512.h"
#include "attend.h"
#include "dense.h"
#include "linear.h"
#include "quantize.h"

namespace quarterdeck {

const Level* level_avx512() {
    static const Level level = {"avx512", Lanes::kOffset, false, quantize_row, int8_product, group_product,
                                dense_product, attend_piece};
    return &level;
}

}  // namespace quarterdeck
