#include "lanes_portable.h"
#include "attend.h"
#include "dense.h"
#include "linear.h"
#include "quantize.h"

namespace quarterdeck {

const Level* level_portable() {
    static const Level level = {"portable", Lanes::kOffset, false, quantize_row, int8_product, group_product,
                                dense_product, attend_piece};
    return &level;
}

}  // namespace quarterdeck
