"""The doctor: what may be wrong with a data set or a checkpoint, found by looking at it."""
