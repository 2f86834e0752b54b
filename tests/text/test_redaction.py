"""Secrets are masked wherever they appear, in time linear in the length of the text."""

import time

import pytest

from automl.errors import first_line
from automl.storage.databases import has_password, mask
from automl.text.redaction import redact_urls

SECRET = "hunter2"


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://me:{}@db/x",
        "redis://:{}@db/0",
        "mysql://me:{}@db:3306/x and more",
        "mysql://me@server:{}@db/x",
        "mysql://me:a@b:c/{}@db/x",
        "mysql://me:a {}@db/x",
        "mysql://me:12/{}@db/x",
        "mysql://m%65:%20{}%40@db/x",
        "'postgresql://me:{}@db/x', 'http://you:other@db'",
        "postgresql://db/x?user=me&password={}",
        *(
            f"mysql://db/x?a=1&{key}={{}}&b=2"
            for key in (
                *("password", "PASSWORD", "passwd", "pwd", "pass", "sslpassword", "ssl_password"),
                *("sslkey", "ssl_key", "ssl-key-password", "token", "access_token", "authToken"),
                *("secret", "client_secret", "passfile", "api_key", "apikey", "key", "auth"),
                *("p%61ssword", "%50WD", "ssl%5Fkey", "credentials", "X-Api-Key", "passphrase"),
            )
        ),
        "http://x/?url=postgresql%3A%2F%2Fme%3A{}%40db%2Fx",
        "mssql://?odbc_connect=DRIVER%3Dx%3BPWD%3D{}",
        "host=db user=me password={} dbname=x",
        "host=db password='a {}' dbname=x",
        "host=db password = {}",
        "connect(host='db', password=\"{}\")",
        "{{'host': 'db', 'password': '{}'}}",
        '{{"sslkey": "{}"}}',
    ],
)
def test_a_secret_is_masked(text):
    redacted = redact_urls(text.format(SECRET))
    assert SECRET not in redacted
    assert "***" in redacted
    assert SECRET not in first_line(RuntimeError(text.format(SECRET)))


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:///automl.db",
        "postgresql://me@db.example/automl",
        "http://db.example:8080/x, mail me@db.example",
        "grpc://db:13000 --ledger postgresql://me@db/x",
        "journal:///a.log?prefix=x",
        "wrong password: expected one",
        "max_tokens=5, key=value, keys=3, monkey=1",
        "a://b c:d@e",
        "",
        "\n\n",
    ],
)
def test_text_without_secrets_stays_unchanged(text):
    assert redact_urls(text) == text


def test_a_url_with_any_kind_of_secret_is_not_repeated():
    url = "postgresql://me@db/x?sslmode=require&sslpassword=hunter2"
    assert has_password(url)
    assert mask(url).endswith("sslmode=require&sslpassword=***")
    assert not has_password("postgresql://me@db/x?sslmode=require")


HOSTILE = (
    *("a://", "a://u:", "a://u:1/", "a://u:1,", "a://u:x ", "a://b@", "://:", ":", "@", "a"),
    *("password=", "password='", "password=\"'", "'a': \"", "a=%41&", "x=", "%61=", "%", "\n", " "),
    *("'", '"', "key", "?", "=%3A%2F%2Fu%3A1%2F"),
)


@pytest.mark.parametrize("end", ["", "@", " x@"])
@pytest.mark.parametrize("part", HOSTILE)
def test_redaction_takes_linear_time(part, end):
    def seconds(length: int) -> float:
        text = (part * (length // len(part) + 1))[:length] + end
        began = time.process_time()
        redact_urls(text)
        return time.process_time() - began

    # In quadratic time, this would take 256 times as long: seconds to hours.
    assert seconds(1 << 19) < 64 * max(seconds(1 << 15), 0.01)
