"""What numba compiles of masks. Imported on first use."""
