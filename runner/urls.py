"""Which places are URLs, and which URLs are safe to write down."""

from urllib.parse import urlsplit

from runner.errors import ConfigError


def is_url(place: str) -> bool:
    """Whether a place is a URL, not a local path."""
    return "://" in place


def check_url(url: str) -> None:
    """Raises ConfigError where a URL is none, or carries a secret, which would end up in config.yaml and the logs."""
    parts = urlsplit(url)
    if not parts.scheme or not is_url(url):
        raise ConfigError(f"upload_to is {url!r}: type a URL, for example s3://bucket/folder or file:///mnt/folder.")
    if parts.password or parts.query:
        raise ConfigError(
            f"upload_to has a secret in it ({parts.scheme}://...): leave it out, and give it as the provider's own "
            "variables\n(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, "
            "AZURE_STORAGE_CONNECTION_STRING)."
        )
