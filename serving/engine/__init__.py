"""What runs inside vLLM: the model in its layers, states in its pages, and the checks at its start.

These modules subclass vLLM's classes, so that each of them needs it to be imported; vLLM is who imports them.
"""
