"""Mutants that no test can notice, by target and name, each with the reason."""

EQUIVALENT: dict[str, dict[str, str]] = {}
