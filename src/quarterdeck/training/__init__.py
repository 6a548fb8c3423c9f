"""Training: packed token files, a learning-rate schedule by steps or by the clock, exact resumption."""
