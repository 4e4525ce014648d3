"""What numba compiles of rounding. Imported on first use."""
