"""Throw-away certificates for tests: one authority, and what it signs, as PEM files.

This module knows trustme and the `ssl` module. It does not know servers, clients or sockets.
"""

from __future__ import annotations

import ssl
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

import trustme

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
"""What `Certificates.server` is valid for: each way of saying "this machine"."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate as PEM files. They last until the `Certificates` that made it is closed.

    Attributes:
        cert_file: the certificate.
        key_file: its private key, without a password.
        ca_file: what a peer has to trust for the certificate to be accepted.
    """

    cert_file: str
    key_file: str
    ca_file: str


class Certificates:
    """An authority made for one test run, with the certificates it signs.

    Keys are elliptic (P-256): each takes a millisecond or so. All the files are in one directory of
    this object's own, readable by this user only; `close` removes it, and so does leaving a `with`
    block. One that is never closed gives a ResourceWarning.

    Nothing here is fit for anything but tests.
    """

    def __init__(self) -> None:
        self._authority = trustme.CA()
        self._directory = tempfile.TemporaryDirectory(prefix="trunkline-certificates-")
        self._made = 0
        self.ca_file = self._write("ca", self._authority.cert_pem)

    def __enter__(self) -> Certificates:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the files. Safe to call more than once."""
        self._directory.cleanup()

    def server(self, *names: str) -> Certificate:
        """A good server certificate, for `names`; without any, for `LOOPBACK_NAMES`."""
        return self._issue("server", names or LOOPBACK_NAMES)

    def wrong_host(self) -> Certificate:
        """A good server certificate of another host (RFC 9110, section 4.3.4)."""
        return self._issue("wrong-host", ("elsewhere.invalid",))

    def expired(self) -> Certificate:
        """A certificate for `LOOPBACK_NAMES` whose validity ended in 2001 (RFC 5280, 4.1.2.5)."""
        return self._issue("expired", LOOPBACK_NAMES, not_after=datetime(2001, 1, 1, tzinfo=UTC))

    def self_signed(self) -> Certificate:
        """A certificate that signs itself, and that trusting `ca_file` does not vouch for."""
        loner = trustme.CA()
        return Certificate(
            cert_file=self._write("self-signed", loner.cert_pem),
            key_file=self._write("self-signed-key", loner.private_key_pem),
            ca_file=self.ca_file,
        )

    def client(self, name: str = "client@trunkline.invalid") -> Certificate:
        """A certificate with which a client can show that it is `name`."""
        return self._issue("client", (name,))

    def server_context(
        self,
        certificate: Certificate | None = None,
        *,
        alpn: Sequence[str] = ("http/1.1",),
        require_client_certificate: bool = False,
    ) -> ssl.SSLContext:
        """A context to serve with: `certificate`, or else a new `server()`.

        `alpn` is what is offered, the preferred one first. With `require_client_certificate` only
        clients whose certificate this authority signed are let in.
        """
        certificate = certificate or self.server()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.cert_file, certificate.key_file)
        context.set_alpn_protocols(list(alpn))
        if require_client_certificate:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.ca_file)
        return context

    def client_context(
        self, certificate: Certificate | None = None, *, alpn: Sequence[str] = ("http/1.1",)
    ) -> ssl.SSLContext:
        """A context to connect with: it trusts this authority alone, and shows `certificate`."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.ca_file)
        context.set_alpn_protocols(list(alpn))
        if certificate is not None:
            context.load_cert_chain(certificate.cert_file, certificate.key_file)
        return context

    def _issue(
        self, label: str, names: Sequence[str], not_after: datetime | None = None
    ) -> Certificate:
        leaf = self._authority.issue_cert(*names, not_after=not_after)
        return Certificate(
            cert_file=self._write(label, *leaf.cert_chain_pems),
            key_file=self._write(f"{label}-key", leaf.private_key_pem),
            ca_file=self.ca_file,
        )

    def _write(self, label: str, *blobs: trustme.Blob) -> str:
        self._made += 1
        path = Path(self._directory.name, f"{self._made:03}-{label}.pem")
        path.write_bytes(b"".join(blob.bytes() for blob in blobs))
        return str(path)
