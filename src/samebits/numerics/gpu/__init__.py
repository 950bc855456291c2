"""The clauses on a GPU: Triton kernels and library algorithms, each proven before it serves. Needs Triton."""
