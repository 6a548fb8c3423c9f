"""Training: packed rows of supervised examples, a schedule by steps or by the clock, exact resumption."""
