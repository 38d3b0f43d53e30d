"""TLS: the certificate that connections are shown, and what its own node's commands know it by."""

from __future__ import annotations

import hashlib
import re
import ssl
from pathlib import Path

from llm_node import files

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


class TlsError(ValueError):
    """A file is of no use. The message names it."""


class Tls:
    """What new connections get; another certificate may take its place."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Files in PEM, the certificate with those between it and its authority. Raises `TlsError`."""
        self._files = certificate, key
        self._loaded = _load(certificate, key)

    @property
    def context(self) -> ssl.SSLContext:
        """For a connection that begins."""
        return self._loaded[0]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate, in hexadecimal digits."""
        return self._loaded[1]

    def read(self) -> Tls:
        """The same files as they are now. Raises `TlsError`."""
        return Tls(*self._files)

    def become(self, other: Tls) -> list[str]:
        """Be another from now on. Gives what has changed, in words."""
        before, self._loaded = self.fingerprint, other._loaded
        return [] if before == self.fingerprint else ["certificate: another"]


def _load(certificate: Path, key: Path) -> tuple[ssl.SSLContext, str]:
    for file in (certificate, key):
        try:
            files.read_bytes(file)
        except OSError as error:
            raise TlsError(f"{file} cannot be read: {error.strerror}") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # Nobody is there to be asked for a password.
        context.load_cert_chain(certificate, key, password=lambda: "")
        (first, *_) = _CERTIFICATE.findall(files.read_text(certificate))
        fingerprint = hashlib.sha256(ssl.PEM_cert_to_DER_cert(first)).hexdigest()
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error)
        raise TlsError(
            f"{certificate} and {key} are no certificate and its key, in PEM and without a password: {reason}"
        ) from None
    return context, fingerprint
