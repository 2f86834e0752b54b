"""Redaction of secrets in text: passwords in URLs and the values of secret keys.

Each step reads the text once from start to end, so that no crafted text makes it slow.
"""

import re
from urllib.parse import unquote

_MASK = "***"
_USER = re.compile(r"://[^:/\s]*:")
"""The user of a URL before its password, or a host before its port."""
_PORT = re.compile(r"\d{1,5}(?![^\s/?#\"',;:)\]}>])")
_SPACE = re.compile(r"\s")
_PAIR = re.compile(
    # With the lookbehind, each word is tried from its start only.
    r"(?<![\w%.+-])(?P<key>[\w%.+-]+)(?P<is>\s?=\s?|[\"']\s?[:=]\s?(?=[\"']))"
    r"(?P<value>'[^'\n]*+'|\"[^\"\n]*+\"|[^&\s]++)"
)
_SECRET = ("password", "passwd", "passphrase", "passfile", "secret", "credential")
"""A key that contains one of these names a secret."""
_SECRET_END = (
    *("pwd", "token", "apikey", "accesskey", "privatekey", "clientkey", "serverkey", "sslkey"),
    *("signature", "odbcconnect"),
)
_SECRET_KEYS = ("pass", "pw", "auth", "authorization", "key", "sig")
"""Names of secrets in the query of a URL only: elsewhere they are common words."""


def redact_urls(text: str) -> str:
    """Replace the passwords of all URLs in a text and the values of all secret keys."""
    return _without_pairs("\n".join(map(_without_passwords, text.split("\n"))))


def _without_passwords(line: str) -> str:
    """A line without the text between a URL's user and its last `@`."""
    parts, done, last = [], 0, line.rfind("@")
    end = at_end = -1  # the end of the current word and the last @ in it
    for user in _USER.finditer(line):
        start = user.end()
        if start < done or start >= last:
            continue
        if start > end:
            space = _SPACE.search(line, start)
            end = space.start() if space else len(line)
            at_end = line.rfind("@", start, end)
        at = at_end
        if at < start and not _PORT.match(line, start):
            at = last  # the password contains a space
        if at > start:
            parts += [line[done:start], _MASK]
            done = at
    return "".join([*parts, line[done:]])


def _without_pairs(text: str, deep: bool = True) -> str:
    return _PAIR.sub(lambda pair: _masked(pair, deep), text)


def _masked(pair: re.Match[str], deep: bool) -> str:
    key, value = pair["key"], pair["value"]
    in_url = pair.start() > 0 and pair.string[pair.start() - 1] in "?&"
    if is_secret(unquote(key), in_url):
        quote = value[0] if value[0] in "'\"" else ""
        return f"{key}{pair['is']}{quote}{_MASK}{quote}"
    if deep and "%" in value:
        # The value may be a percent-encoded URL.
        plain = unquote(value)
        inner = _without_pairs(_without_passwords(plain), deep=False)
        value = _MASK if inner != plain else value
    return f"{key}{pair['is']}{value}"


def is_secret(key: str, in_url: bool = True) -> bool:
    """Whether a key names a secret, such as `sslpassword` or `API-Key`.

    Args:
        key: The name of the key.
        in_url: Whether the key appears in a URL, where short names such as `key` count too.
    """
    plain = re.sub(r"[^a-z0-9]", "", key.lower())
    if any(word in plain for word in _SECRET) or plain.endswith(_SECRET_END):
        return True
    return in_url and plain in _SECRET_KEYS
