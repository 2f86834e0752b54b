"""`automl plugins`: what is installed, and whether a plugin keeps its promises."""

import click


@click.group("plugins", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """List plugins, or check one of your own."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_plugins)


@command.command("list")
@click.option("--plugin", "plugins", multiple=True, metavar="FILE", help="Add a plugin file.")
def list_plugins(plugins: tuple[str, ...] = ()) -> None:
    """List every plugin by kind, with its owner."""
    from automl.registry import Kind, Registry

    registry = Registry()
    for path in plugins:
        registry.add_file(path)
    for kind in Kind:
        for name, owners in sorted(registry.names(kind).items()):
            clash = "  offered twice: uninstall or rename one" if len(owners) > 1 else ""
            click.echo(f"{kind.value:<9} {name:<16} {' and '.join(owners)}{clash}")


@command.command("options")
@click.argument("kind")
@click.argument("name")
def show_options(kind: str, name: str) -> None:
    """List the options of a plugin: automl plugins options trainer supervised."""
    from automl.errors import UnknownNameError
    from automl.options import jsonable
    from automl.registry import FACTORY_KINDS, Kind, Registry

    kinds = {k.value: k for k in FACTORY_KINDS}
    if kind not in kinds:
        raise UnknownNameError("kind of plugin", kind, kinds)
    offer = Registry().find(Kind(kind), name)
    for option in offer.options().values():
        default = "required" if option.required else jsonable(option.default)
        click.echo(f"-o {kind}.{option.name}={default}")


@command.command("check")
@click.argument("file")
def check(file: str) -> None:
    """Run the conformance suite on every plugin that FILE offers, or on FILE:NAME's space."""
    from automl.cli.checking import check_file

    problems = check_file(file)
    if problems:
        raise click.exceptions.Exit(1)
