"""Deterministic simulation: one seed makes a whole schedule, and every request must match its solo run."""
