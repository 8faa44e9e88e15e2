"""Which places are URLs, which URLs are safe to write down, and how a text is shown without the secrets in it."""

import os
import re
from collections.abc import Iterable
from typing import TextIO
from urllib.parse import unquote, urlsplit

from runner.errors import ConfigError

SECRET_NAME = (
    r"[\w.-]*(?:token|secret|passw|pwd|signature|credential|api_?-?key|access_?-?key|account_?-?key)[\w.-]*"
    r"|sig|sas|key|pass|auth|authorization"
)
WITH_USER = ("abfs", "abfss", "wasb", "wasbs", "adl", "ssh", "sftp", "scp", "git+ssh")
"""Schemes whose URLs have a container or a user in front of the @, which is no secret."""
URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://[^\s'\"<>]+")
PAIR = re.compile(rf"(?<![\w.-])({SECRET_NAME})=([^\s&;#'\",]+)", re.IGNORECASE)
"""A secret in the query, the parameters or the fragment of a URL."""
TOKEN = re.compile(
    r"(?<![A-Za-z0-9])(?:(?:AccountKey|SharedAccessSignature)=[^\s;'\"]+|hf_[A-Za-z0-9]{16,}|AKIA[0-9A-Z]{12,}|ASIA[0-9A-Z]{12,}|sk-[A-Za-z0-9_-]{16,}"
    r"|gh[pousr]_[A-Za-z0-9]{16,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*)"
)
SECRET_VARIABLE = re.compile(r"(KEY|KEY_ID|SECRET|TOKEN|PASSWORD|PASSWD|SAS|CONNECTION_STRING|CREDENTIALS?)$")
MASK = "***"


def is_url(place: str) -> bool:
    """Whether a place is a URL, not a local path."""
    return "://" in place


def check_url(url: str, setting: str = "upload_to") -> None:
    """Raises ConfigError where a URL is none, or carries a secret, which would end up in config.yaml and the logs."""
    parts = urlsplit(url)
    check_no_secret(url, setting)
    if not parts.scheme or not is_url(url):
        raise ConfigError(
            f"{setting} is {shown(url)}: type a URL, for example s3://bucket/folder or file:///mnt/folder."
        )
    if parts.query or parts.fragment or ";" in url:
        raise _secret(url, setting)


def check_no_secret(text: str, setting: str) -> None:
    """Raises ConfigError where the text of a setting has a password, a key or a token in it."""
    # %40 is an @ to the libraries that open a URL.
    for written in (text, unquote(text)):
        if (
            TOKEN.search(written)
            or secrets_in(written)
            or any(_has_user(match) or PAIR.search(match[0]) for match in URL.finditer(written))
        ):
            raise _secret(text, setting)


def without_secrets(text: str) -> str:
    """The text with *** in place of what looks like a secret, and of the secrets in this process's environment."""
    for value in secrets_in(text):
        text = text.replace(value, MASK)
    return TOKEN.sub(MASK, URL.sub(_masked, text))


class MaskedStream:
    """An output stream that writes *** in place of secrets, whichever library or traceback they come from."""

    def __init__(self, stream: TextIO) -> None:
        # Masked once is enough.
        self._stream = stream._stream if isinstance(stream, MaskedStream) else stream

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write without secrets; returns the length of the text that was given."""
        self._stream.write(without_secrets(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each of the lines."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush what was written."""
        self._stream.flush()


def secrets_in(text: str) -> list[str]:
    """The secrets of this process's environment that a text repeats: not those of a few letters, nor paths."""
    values = [value for name, value in os.environ.items() if len(value) >= 8 and SECRET_VARIABLE.search(name)]
    return [value for value in values if value in text and not os.path.exists(value)]


def shown(value: str) -> str:
    """A value as messages show it: quoted, short, and without secrets."""
    text = without_secrets(value)
    return repr(text if len(text) <= 100 else f"{text[:97]}...")


def _secret(text: str, setting: str) -> ConfigError:
    scheme = URL.search(text)
    kind = f" ({scheme[1]}://...)" if scheme else ""
    return ConfigError(
        f"{setting} has a secret in it{kind}, or a part that may hold one: leave it out, because settings are written "
        "to files.\nGive it as the provider's own variable: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
        "GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_CONNECTION_STRING, HF_TOKEN."
    )


def _has_user(match: re.Match[str]) -> bool:
    """Whether a URL has a password, or a key in front of the @."""
    rest = match[0].partition("://")[2]
    place = re.split(r"[/?#;]", rest, maxsplit=1)[0]
    user, at, _ = place.rpartition("@")
    if at:
        return ":" in user or match[1].lower() not in WITH_USER
    # A secret with a slash in it ends what counts as the host too early: KEY:SEC/RET@bucket.
    port = place.rpartition("]")[2].partition(":")[2]
    return bool(port) and not port.isdigit()


def _masked(match: re.Match[str]) -> str:
    url = match[0]
    if _has_user(match):
        scheme, _, rest = url.partition("://")
        url = f"{scheme}://{MASK}@{rest.rpartition('@')[2]}" if "@" in rest else f"{scheme}://{MASK}"
    return PAIR.sub(rf"\1={MASK}", url)
