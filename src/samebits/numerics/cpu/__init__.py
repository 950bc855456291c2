"""The exact profile on CPU: numba kernels with explicit vectors and explicit fused multiply-adds."""
