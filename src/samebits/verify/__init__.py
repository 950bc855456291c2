"""The invariance checks, in process or against any server by URL."""
