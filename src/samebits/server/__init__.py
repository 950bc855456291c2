"""The HTTP server. `samebits.server.lifecycle.serve` runs one."""
