"""KV pages: who holds which, and (with the prefix cache) which tokens they hold."""
