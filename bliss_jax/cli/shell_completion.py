"""The command `completion`."""

import click
from click.shell_completion import get_completion_class

_PROGRAM, _VARIABLE = "bliss-jax", "_BLISS_JAX_COMPLETE"


@click.command(
    epilog="""\b
Examples:
  bliss-jax completion bash >> ~/.bashrc
  bliss-jax completion zsh >> ~/.zshrc
  bliss-jax completion fish > ~/.config/fish/completions/bliss-jax.fish"""
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a completion script to add to the start file of a shell."""
    of_shell = get_completion_class(shell)
    assert of_shell is not None  # noqa: S101 (click supports all choices above)
    click.echo(of_shell(ctx.find_root().command, {}, _PROGRAM, _VARIABLE).source())
