"""The operators, their written reduction orders (`contract.md`), and their implementations behind one interface."""
