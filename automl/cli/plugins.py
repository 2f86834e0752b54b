"""`automl plugins`: what is installed, and whether a plugin keeps its promises."""

import click

from automl.cli.arguments import json_option


@click.group("plugins", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """List plugins, or check one of your own."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_plugins)


@command.command("list")
@click.option("--plugin", "plugins", multiple=True, metavar="FILE", help="Add a plugin file.")
@json_option
def list_plugins(plugins: tuple[str, ...] = (), as_json: bool = False) -> None:
    """List every plugin by kind, with its owner."""
    from automl.cli.text import json_line
    from automl.registry import Kind, Registry

    registry = Registry()
    for path in plugins:
        registry.add_file(path)
    for kind in Kind:
        for name, owners in sorted(registry.names(kind).items()):
            clash = "  offered twice: uninstall or rename one" if len(owners) > 1 else ""
            event = {"kind": kind.value, "name": name, "owners": owners}
            line = f"{kind.value:<9} {name:<16} {' and '.join(owners)}{clash}"
            click.echo(json_line(event) if as_json else line)


@command.command("options")
@click.argument("kind")
@click.argument("name")
@click.option("--plugin", "plugins", multiple=True, metavar="FILE", help="Add a plugin file.")
@json_option
def show_options(kind: str, name: str, plugins: tuple[str, ...], as_json: bool) -> None:
    """List the options of a plugin: automl plugins options trainer supervised."""
    from automl.cli.text import json_line
    from automl.errors import UnknownNameError
    from automl.options import jsonable, spell
    from automl.registry import FACTORY_KINDS, Kind, Registry

    kinds = {k.value: k for k in FACTORY_KINDS}
    if kind not in kinds:
        raise UnknownNameError("kind of plugin", kind, kinds)
    registry = Registry()
    for path in plugins:
        registry.add_file(path)
    options = registry.find(Kind(kind), name).options().values()
    for option in options:
        default = None if option.required else jsonable(option.default)
        event = {"option": option.name, "default": default, "expected": spell(option.annotation)}
        shown = "(required)" if option.required else _as_typed(default)
        line = f"{f'-o {kind}.{option.name}={shown}':<32}  {event['expected']}"
        click.echo(json_line({**event, "required": option.required}) if as_json else line)
    if not options and not as_json:
        click.echo(f"{kind} {name} has no options")


@command.command("check")
@click.argument("file")
@json_option
def check(file: str, as_json: bool) -> None:
    """Run the conformance suite on every plugin that FILE offers, or on FILE:NAME's space."""
    from automl.cli.checking import check_file

    if check_file(file, as_json):
        raise click.exceptions.Exit(1)


def _as_typed(default: object) -> str:
    """A default as a person would type it."""
    if isinstance(default, bool) or default is None:
        return str(default).lower()
    if isinstance(default, dict):
        return ",".join(f"{name}={value}" for name, value in default.items())
    return ",".join(map(str, default)) if isinstance(default, list) else str(default)
