"""`automl completion`: prints the script that completes automl's commands, options and names."""

import click
from click.shell_completion import get_completion_class

_VARIABLE = "_AUTOML_COMPLETE"
"""The environment variable through which a shell asks click for completions."""


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the script that completes automl in SHELL.

    \b
    bash: automl completion bash > ~/.automl-complete.bash, and in ~/.bashrc: . that file
    zsh:  the same with zsh, in ~/.zshrc
    fish: automl completion fish > ~/.config/fish/completions/automl.fish
    """
    made = get_completion_class(shell)
    if made is None:
        raise click.UsageError(f"click cannot complete in {shell}")
    click.echo(made(ctx.find_root().command, {}, "automl", _VARIABLE).source().strip())
