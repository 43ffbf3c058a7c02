"""Speed and memory of the library, measured beside its alternatives; see README.md."""
