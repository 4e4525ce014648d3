"""What numba compiles of patterns. Imported on first use."""
