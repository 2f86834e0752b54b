"""Study files: what `automl search` is told, in TOML, to be kept, changed and shared.

space = "tabular_mlp"
task = "csv:people.csv"
trials = 30

[options.task]
target = "income"
"""

import io
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from automl.cli.arguments import Location, part_options
from automl.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from automl.spec import Spec

SUFFIX = ".toml"
_NOT_IN_FILES = frozenset({"help", "json", "dry-run", "save", "trust-storage"})
"""Said anew each time: what to do now, and whom to trust."""
_ALWAYS = ("task", "trainer", "strategy", "pruner", "seed")
"""Written even where they have their defaults, which may change."""


class StudyFileCommand(click.Command):
    """A command whose first argument may be a study file in place of a space.

    The command line counts before the file, `-o` option by option. The command gets `options` by
    part, and `given`: all that was said, as a study file would say it.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if ctx.resilient_parsing:
            return super().parse_args(ctx, args)
        said, _, _ = self.make_parser(ctx).parse_args(list(args))
        space = str(said.get("space"))
        file = read(Path(space), self) if space.endswith(SUFFIX) else {}
        ctx.default_map = _defaults(file, space, self)
        rest = super().parse_args(ctx, args)
        ctx.params["space"] = file.get("space", ctx.params["space"])
        on_line = part_options(ctx.params["options"])
        ctx.params["options"] = _joined(file.get("options", {}), on_line)
        ctx.params["given"] = self._given(ctx)
        return rest

    def _given(self, ctx: click.Context) -> dict[str, Any]:
        """What was said, here or in the file; never what the environment says."""
        said = {ParameterSource.COMMANDLINE, ParameterSource.DEFAULT_MAP}
        found: dict[str, Any] = {"space": ctx.params["space"]}
        for key, option in _keys(self).items():
            name = str(option.name)
            if ctx.get_parameter_source(name) in said or key in _ALWAYS:
                found[key] = _plain(ctx.params[name])
        return {**found, "options": ctx.params["options"]}


def read(file: Path, command: click.Command) -> dict[str, Any]:
    """What a study file says, by the long names of the command's options.

    Raises:
        UsageError: it cannot be read, is no TOML, or says what the command does not know.
    """
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read study file {file}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"study file {file} is no TOML: {error}") from error
    known = ["space", "options", *_keys(command)]
    for key in found:
        if key not in known:
            raise UnknownNameError("key in study file", key, known, str(file))
    if not isinstance(found.get("space"), str):
        raise UsageError(f'study file {file} names no space: add a line such as space = "mlp"')
    parts = found.get("options", {})
    if not isinstance(parts, dict) or not all(isinstance(part, dict) for part in parts.values()):
        raise UsageError(f"study file {file}: expected tables such as [options.task]")
    return found


def write(file: Path, given: Mapping[str, Any], storage: Location, spec: "Spec") -> None:
    """Write a study file, which holds no password and, being for any study, no study's name.

    spec: what became of the options, so that numbers are written as such.

    Raises:
        UsageError: there is such a file, or it cannot be written.
    """
    import tomli_w

    from automl.databases import mask

    urls = {"storage": storage.storage, "ledger": storage.ledger}
    secret = [name for name, url in urls.items() if url is not None and mask(url) != url]
    left_out = {"study", *secret}
    kept = {k: value for k, value in given.items() if k not in left_out and value is not None}
    read = {kind.value: part.options for kind, part in spec.parts().items()}
    kept["options"] = {
        part: {name: _typed(value, read.get(part, {}).get(name)) for name, value in own.items()}
        for part, own in given["options"].items()
    }
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(tomli_w.dumps(kept))
    except FileExistsError:
        raise UsageError(f"--save: {file} exists: choose another") from None
    except OSError as error:
        raise UsageError(f"--save: cannot write {file}: {error.strerror}") from error
    click.echo(f"wrote {file}", err=True)
    for name in secret:
        click.echo(
            f"{file} does not hold --{name}, which has a password: set it elsewhere", err=True
        )


def _keys(command: click.Command) -> dict[str, click.Option]:
    """The options that a file may set, by their long names."""
    found = {}
    for option in command.params:
        if isinstance(option, click.Option):
            names = [name[2:] for name in option.opts if name.startswith("--")]
            found.update({name: option for name in names if name not in _NOT_IN_FILES})
    return found


def _defaults(file: Mapping[str, Any], name: str, command: click.Command) -> dict[str, Any]:
    """A file's values by parameter, as the command line would give them."""
    keys = _keys(command)
    return {
        str(keys[key].name): _as_typed(value, keys[key], f"study file {name}: {key}")
        for key, value in file.items()
        if key in keys
    }


def _as_typed(value: Any, option: click.Option, what: str) -> Any:
    if option.is_flag:
        if not isinstance(value, bool):
            raise UsageError(f"{what}: expected true or false, got {value!r}")
        return value
    values = value if isinstance(value, list) else [value]
    if any(isinstance(each, bool | list | dict) for each in values):
        raise UsageError(f"{what}: expected text or numbers, got {value!r}")
    if isinstance(value, list) and not option.multiple:
        raise UsageError(f"{what}: expected one value, got {value!r}")
    return [str(each) for each in values] if option.multiple else str(value)


def _joined(
    file: Mapping[str, Mapping[str, object]], line: Mapping[str, Mapping[str, object]]
) -> dict[str, dict[str, object]]:
    return {part: {**file.get(part, {}), **line.get(part, {})} for part in [*file, *line]}


def _typed(said: object, read: object) -> object:
    """An option as it was said, or the number that it was read as."""
    return read if isinstance(read, bool | int | float) else said


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, io.IOBase):
        return str(getattr(value, "name", value))
    return value if isinstance(value, bool | int | float | None) else str(value)
