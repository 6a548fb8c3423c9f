#include "lanes_portable.h"
#include "linear.h"
#include "quantize.h"

namespace quarterdeck {

const Level* level_portable() {
    static const Level level = {"portable", Lanes::kOffset, false, quantize_row, int8_product, int4_product};
    return &level;
}

}  // namespace quarterdeck
