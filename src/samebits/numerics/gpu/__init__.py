"""The operators on GPUs, in Triton. Nothing outside this package imports Triton."""
