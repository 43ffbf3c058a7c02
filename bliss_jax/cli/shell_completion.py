"""`completion`: what a shell needs to complete the command's words."""

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
    """Print the completion script of a shell, for its start file."""
    of_shell = get_completion_class(shell)
    assert of_shell is not None  # noqa: S101 (the choices above are click's own)
    click.echo(of_shell(ctx.find_root().command, {}, _PROGRAM, _VARIABLE).source())
