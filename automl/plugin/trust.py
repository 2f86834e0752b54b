"""The user's approvals on this machine: a study in a shared database is data, not code."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from automl.errors import StorageError, UntrustedError
from automl.state_directory import STATE, make_folder, private, state_directory


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Code:
    """Digests of a user's file and of the files that it imports from its folder.

    Attributes:
        sha256: The file's SHA-256.
        beside: The SHA-256 of each imported file, by relative path.
    """

    sha256: str
    beside: Mapping[str, str] = field(default_factory=dict)

    def digest(self) -> str:
        """Return one digest of all files."""
        if not self.beside:
            return self.sha256
        return sha256(json.dumps([self.sha256, dict(self.beside)], sort_keys=True).encode())


@dataclass(frozen=True)
class Source:
    """Code outside installed plugins: a file, or the file of a module.

    Attributes:
        reference: The path or the dotted module name that the user typed.
        path: The file's path.
        code: The digests of its content.
    """

    reference: str
    path: str
    code: Code

    def claim(self, kind: str, name: str = "") -> str:
        """Return the claim that a user approves: this name in this exact content, for one use.

        Args:
            kind: The kind of part that uses it.
            name: The name in the file; empty for a whole plugin file.
        """
        return f"code {kind} {self.reference}{':' if name else ''}{name} {self.code.digest()}"


@dataclass(frozen=True)
class Trust:
    """Decides which code may be loaded and which paths may be opened.

    Attributes:
        everything: The user passed --trust-plugins.
        typed: The user named everything in this command, as in `automl search`.
        named: Paths and modules that the user named again on the command line.
        claims: Claims that the user approved in another way.
    """

    everything: bool = False
    typed: bool = False
    named: frozenset[str] = field(default_factory=frozenset)
    claims: frozenset[str] = field(default_factory=frozenset)

    def copy_of(self, digest: str | None) -> Path | None:
        """Return the file that the user named and whose content has this digest, at any path."""
        if digest is None:
            return None
        files = sorted(path for name in self.named if (path := Path(name)).is_file())
        same = (path.resolve() for path in files if sha256(path.read_bytes()) == digest)
        return next(same, None)

    def approving(self, claims: Iterable[str]) -> "Trust":
        """Return a copy that also approves these claims."""
        return replace(self, claims=self.claims | frozenset(claims))

    def require(self, claim: str, what: str, name: str) -> None:
        """Check that a claim is approved, and remember it if the user has just named it.

        Args:
            claim: The claim to check.
            what: Describes the code or path, for the error message.
            name: The path or module by which the user can approve it.

        Raises:
            UntrustedError: The user has not approved the claim.
        """
        named = name in self.named or _resolved(name) in self.named
        if self.typed or self.everything or named or claim in self.claims:
            _remember(claim)
        elif not _approval(claim).exists():
            raise UntrustedError(
                f"the study uses {what}, which you have not approved on this machine: review it, "
                f"then pass --plugin {name} or --trust-plugins"
            )


def trusting(everything: bool, named: Iterable[str]) -> Trust:
    """Return the trust of a command that runs a stored study.

    Args:
        everything: Whether the user passed --trust-plugins.
        named: Paths and modules from the command line.
    """
    names = {name for given in named for name in (given, _resolved(given))}
    return Trust(everything=everything, named=frozenset(names))


def _resolved(name: str) -> str:
    return str(Path(name).resolve())


def _approval(claim: str) -> Path:
    return state_directory() / "approved" / sha256(claim.encode())


def _remember(claim: str) -> None:
    approval = _approval(claim)
    if approval.exists():
        return
    try:
        make_folder(approval.parent)
        with open(approval, "w", opener=private) as file:
            file.write(json.dumps({"approved": claim}) + "\n")
    except OSError as error:
        raise StorageError(
            f"cannot store approvals in {approval.parent}: {error.strerror}; "
            f"set {STATE} to a directory you can write to"
        ) from error
