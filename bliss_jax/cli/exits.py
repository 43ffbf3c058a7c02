"""Exit codes, and what leads to which.

0    done
1    the work could not be done; the message says what was expected
2    the command line is wrong
3    done, but some images could not be read; each is listed
130  interrupted
"""

import os
import sys
from typing import Any

import click

UNREADABLE = 3
_BROKEN_PIPE = 0


class Group(click.Group):
    """Turns the library's errors into one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # Whoever read the output has seen enough; what is buffered has nowhere to go.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(_BROKEN_PIPE)
        except KeyboardInterrupt:
            sys.exit(130)
        except (ValueError, OSError) as error:
            raise click.ClickException(str(error)) from error
