"""Secrets out of texts: passwords in URLs, and the values of keys that hold secrets.

Each step reads a text once from its start to its end, so that a long text that was written to be
slow to read is not.
"""

import re
from urllib.parse import unquote

_MASK = "***"
_USER = re.compile(r"://[^:/\s]*:")
"""The user of a URL up to its password, or a host up to its port."""
_PORT = re.compile(r"\d{1,5}(?![^\s/?#\"',;:)\]}>])")
_SPACE = re.compile(r"\s")
_PAIR = re.compile(
    # The lookbehind lets each word be tried from its start alone.
    r"(?<![\w%.+-])(?P<key>[\w%.+-]+)(?P<is>\s?=\s?|[\"']\s?[:=]\s?(?=[\"']))"
    r"(?P<value>'[^'\n]*+'|\"[^\"\n]*+\"|[^&\s]++)"
)
_SECRET = ("password", "passwd", "passphrase", "passfile", "secret", "credential")
"""A key with one of these anywhere holds a secret."""
_SECRET_END = (
    *("pwd", "token", "apikey", "accesskey", "privatekey", "clientkey", "serverkey", "sslkey"),
    *("signature", "odbcconnect"),
)
_SECRET_KEYS = ("pass", "pw", "auth", "authorization", "key", "sig")
"""These hold a secret as they are, where a URL says them."""


def redact_urls(text: str) -> str:
    """Text with the passwords of all URLs in it, and all values of secret keys, replaced."""
    return _without_pairs("\n".join(map(_without_passwords, text.split("\n"))))


def _without_passwords(line: str) -> str:
    """A line without what stands between a URL's user and its last `@`."""
    parts, done, last = [], 0, line.rfind("@")
    end = at_end = -1  # of the word that was looked at, and the last @ in it
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
            at = last  # a password with a blank in it
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
        # A URL within a URL, encoded.
        plain = unquote(value)
        inner = _without_pairs(_without_passwords(plain), deep=False)
        value = _MASK if inner != plain else value
    return f"{key}{pair['is']}{value}"


def is_secret(key: str, in_url: bool = True) -> bool:
    """Whether what a key holds must not be shown, as in `sslpassword` or `API-Key`."""
    plain = re.sub(r"[^a-z0-9]", "", key.lower())
    if any(word in plain for word in _SECRET) or plain.endswith(_SECRET_END):
        return True
    return in_url and plain in _SECRET_KEYS
