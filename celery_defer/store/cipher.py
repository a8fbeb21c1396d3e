"""Payload columns encrypted at rest with Fernet keys, newest first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery_defer.errors import ConfigError, PayloadError

if TYPE_CHECKING:
    from collections.abc import Sequence

# JSON text never starts like this, so rows that were written before a key was set are still read.
_PREFIX = "fernet:"


class Cipher:
    """Encrypts with the first key and decrypts with any of them.

    Args:
        keys: Fernet keys, newest first.

    Raises:
        ConfigError: A key isn't one, or the extra ``encryption`` isn't installed.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        try:
            from cryptography.fernet import Fernet, InvalidToken, MultiFernet  # noqa: PLC0415 - an extra
        except ImportError as error:
            reason = (
                "defer_encryption_keys is set, but the package 'cryptography' isn't installed:"
                " pip install celery_defer[encryption]"
            )
            raise ConfigError(reason) from error
        try:
            self._fernet = MultiFernet([Fernet(key) for key in keys])
        except (ValueError, TypeError) as error:
            reason = (
                f"defer_encryption_keys can't be used: {error}: make keys with Fernet.generate_key() of cryptography"
            )
            raise ConfigError(reason) from error
        self._invalid = InvalidToken

    def encrypt(self, text: str) -> str:
        """Return the token of a text."""
        return _PREFIX + self._fernet.encrypt(text.encode()).decode()

    def decrypt(self, text: str) -> str:
        """Return the text of a token; a text that isn't one, and a token that no key opens, is returned as it is.

        One row that can't be read must not keep a batch from being read: `opened` refuses it where it is used.
        """
        if not text.startswith(_PREFIX):
            return text
        try:
            return self._fernet.decrypt(text.removeprefix(_PREFIX).encode()).decode()
        except self._invalid:
            return text


def opened(text: str) -> str:
    """Return the text of a payload column.

    Args:
        text: As it was read.

    Raises:
        PayloadError: It is encrypted and no key of ``defer_encryption_keys`` fits.
    """
    if text.startswith(_PREFIX):
        reason = (
            "can't read an encrypted payload: none of the keys in defer_encryption_keys opens it:"
            " put the key that it was written with back at the end of the list"
        )
        raise PayloadError(reason)
    return text
