"""One command for a machine with a GPU: first whether the kernels are right there, then how fast they are."""
