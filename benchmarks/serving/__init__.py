"""Models served by vLLM: a server on loopback, and the load that vLLM's own benchmark puts on it."""
