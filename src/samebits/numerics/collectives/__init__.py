"""How ranks of one model exchange tensors. Only bytes travel here; sums are clauses of the operators."""
