#define QUARTERDECK_AVX_VNNI
#include "lanes_avx2.h"
#include "attend.h"
#include "dense.h"
#include "linear.h"
#include "quantize.h"

namespace quarterdeck {

const Level* level_avxvnni() {
    static const Level level = {"avxvnni", Lanes::kOffset, false, quantize_row, int8_product, group_product,
                                dense_product, attend_piece};
    return &level;
}

}  // namespace quarterdeck
