"""Requests as state machines, and the scheduler that decides which tokens the next step holds."""
