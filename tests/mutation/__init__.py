"""Mutation testing: small defects put into the ops, the cache and the inputs one at a time, and tests that must notice.

``python -m tests.mutation`` runs it (CONTRIBUTING.md says how). mutmut makes the mutants, but its own runner cannot be
used here: it renames every function and calls it through a dispatcher, which changes the schemas of
``torch.library.custom_op`` and what ``torch.compile`` and Triton read. So ``server.py`` forks a process that has
imported torch already, swaps one module's source there, and runs the tests that reach the mutated line.

These mutants are syntactic and many. ``tests/mutants.py`` holds the few that are wrong readings of the architecture.
"""
