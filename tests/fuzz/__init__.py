"""Fuzzing of the functions that read untrusted bytes: each accepts its input or refuses it as documented.

    cd tests && python -m fuzz TARGET [--seconds N] [--runs N] [--seed S] [--engine atheris|mutation]

An input is a crash if it raises an undocumented exception or takes more than `targets.SLOW` seconds of
processor time. For commands it is also a crash if the exit code is undocumented, or if the command writes
outside its folder, starts a program or opens a connection. With atheris (`pip install atheris`) new inputs
are guided by the code coverage of bliss_jax. Without it they are random mutations of the seeds.

The folder `corpus/TARGET` contains former crashes and inputs that reach lines which no seed reaches. Their
names begin with the expected outcome ("refused-" or "accepted-") and the SHA-256 of the content.
`test_fuzz_corpus.py` replays all of them.
"""
