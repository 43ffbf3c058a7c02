"""Starts the command. The command is a module of its own because new processes do not import `__main__`."""

from benchmarks.gpu.command import main

if __name__ == "__main__":
    main()
