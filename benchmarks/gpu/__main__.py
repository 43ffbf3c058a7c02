"""Starts the command, which is a module of its own: new processes do not import a package's `__main__`."""

from benchmarks.gpu.command import main

if __name__ == "__main__":
    main()
