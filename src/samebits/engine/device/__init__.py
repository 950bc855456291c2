"""The engine's half on an accelerator: fixed buffers, captured graphs, and a loop that never waits for its own step."""
