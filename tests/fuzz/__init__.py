"""Readers of untrusted bytes under fuzzing: each either accepts its input or refuses it as documented.

    cd tests && python -m fuzz TARGET [--seconds N] [--runs N] [--seed S] [--engine atheris|mutation]

An input is a crash if anything but the documented exception comes out, if it takes more of the processor
than `targets.SLOW` seconds, or (commands) if it ends with another exit code, writes outside its folder,
starts a program or opens a connection. With atheris (`pip install atheris`) new inputs are led by the
coverage of bliss_jax; without it they are random mutations of the seeds. What once was a crash lies in
`corpus/TARGET` and is replayed by `test_fuzz_corpus.py`.
"""
