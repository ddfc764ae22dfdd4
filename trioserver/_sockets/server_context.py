"""`server_context`: a TLS context as servers should have it today, and errors that name files."""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TypeAlias

_File: TypeAlias = "str | os.PathLike[str]"


def server_context(
    certificate: str | os.PathLike[str],
    key: str | os.PathLike[str],
    *,
    client_ca: str | os.PathLike[str] | None = None,
    alpn: Sequence[str] = (),
) -> ssl.SSLContext:
    """Make a TLS context for a server.

    It speaks TLS 1.2 and 1.3, with the ciphers that Python recommends
    (`ssl.create_default_context`), and lets no client renegotiate.

    Args:
      certificate: a PEM file with the server's certificate, and after it those of the chain
        that leads to a root which clients have.
      key: a PEM file with the private key, without a password.
      client_ca: a PEM file with the authorities of client certificates. With it, each client
        has to give one, and it is verified; None asks for none.
      alpn: protocols to agree on by ALPN, the preferred first, each of 1 to 255 ASCII characters.

    Raises:
      OSError: a file cannot be read; it is named.
      ValueError: a file, or ``alpn``, is not what it should be. The message names it.
      TypeError: an argument is of the wrong type; it is named.
    """
    for name, file in (("certificate", certificate), ("key", key), ("client_ca", client_ca)):
        if file is not None or name != "client_ca":
            _check_readable(name, file)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    _load_chain(context, certificate, key)
    if client_ca is not None:
        _load_authorities(context, client_ca)
    if protocols := _checked(alpn):
        context.set_alpn_protocols(protocols)
    return context


def _check_readable(name: str, file: object) -> None:
    message = f"{name} must be the path of a PEM file, not {file!r}"
    if not isinstance(file, (str, os.PathLike)):
        raise TypeError(message)
    try:
        if not os.fspath(file):
            raise ValueError(message)
        with Path(file).open("rb"):
            pass  # OSError says which file, and why; ssl would only say that there is none
    except ValueError:
        raise ValueError(message) from None


def _load_chain(context: ssl.SSLContext, certificate: _File, key: _File) -> None:
    try:
        # Without a function, OpenSSL would ask for a password at the terminal.
        context.load_cert_chain(certificate, key, password=_refuse_password)
    except _HasPassword:
        expected = "a private key without a password"
        raise ValueError(f"key: {os.fspath(key)} must have {expected}; it has one") from None
    except ssl.SSLError as error:
        _explain(certificate, key, error)


def _explain(certificate: _File, key: _File, error: ssl.SSLError) -> NoReturn:
    """Raise an error that says which of the two files is wrong, and what was expected."""
    certificate, key = os.fspath(certificate), os.fspath(key)
    if error.reason in {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"}:
        message = f"key: {key} is not the key of the first certificate in {certificate}"
    elif "-----BEGIN CERTIFICATE-----" not in _text(certificate):
        message = f"certificate: {certificate} must have a certificate in PEM, and has none"
    elif "PRIVATE KEY-----" not in _text(key):
        message = f"key: {key} must have a private key in PEM, and has none"
    elif not _has_whole_certificates(certificate):
        message = f"certificate: {certificate} must have whole certificates in PEM; it is damaged"
    else:
        message = f"key: {key} must have a whole private key in PEM; it is damaged"
    raise ValueError(message) from error


def _has_whole_certificates(file: str) -> bool:
    """Whether all that the file has can be read."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(file)
    except ssl.SSLError:
        return False
    text = _text(file)
    return text.count("-----BEGIN CERTIFICATE-----") == text.count("-----END CERTIFICATE-----")


def _text(file: str) -> str:
    return Path(file).read_bytes().decode("ascii", "replace")


def _load_authorities(context: ssl.SSLContext, client_ca: _File) -> None:
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(client_ca)
    except ssl.SSLError as error:
        file = os.fspath(client_ca)
        raise ValueError(
            f"client_ca: {file} must have certificates of authorities in PEM, and has none that can"
            " be used"
        ) from error


def _checked(alpn: object) -> list[str]:
    expected = "alpn must be a sequence of protocol names of 1 to 255 ASCII characters each"
    is_text = isinstance(alpn, (str, bytes))
    if is_text or not isinstance(alpn, Sequence) or not all(isinstance(it, str) for it in alpn):
        raise TypeError(f"{expected}, not {alpn!r}")
    if not all(name.isascii() and 0 < len(name) <= 255 for name in alpn):
        raise ValueError(f"{expected}, not {alpn!r}")
    return list(alpn)


class _HasPassword(Exception):
    """OpenSSL has asked for a password."""


def _refuse_password() -> NoReturn:
    raise _HasPassword
