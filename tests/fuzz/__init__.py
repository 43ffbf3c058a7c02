"""Readers of untrusted bytes under fuzzing: each either accepts its input or refuses it as documented.

    cd tests && python -m fuzz TARGET [--seconds N] [--runs N] [--seed S] [--engine atheris|mutation]

An input is a crash if anything but the documented exception comes out, if it takes more of the processor
than `targets.SLOW` seconds, or (commands) if it ends with another exit code, writes outside its folder,
starts a program or opens a connection. With atheris (`pip install atheris`) new inputs are led by the
coverage of bliss_jax; without it they are random mutations of the seeds. `corpus/TARGET` holds what once was
a crash, and inputs that reached lines no seed reaches, named "refused-" by their SHA-256 ("accepted-" for
those that are no fault); `test_fuzz_corpus.py` replays all of them.
"""
