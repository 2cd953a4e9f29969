"""One TLS context for every backend, made from `Tls`. Knows `ssl`; does not know who dials."""

from __future__ import annotations

import ssl

from trunkline._config import Tls
from trunkline._errors import UnsupportedOption

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class LazyContext:
    """The context for a transport, made when the first TLS connection needs it.

    Loading the system's authorities takes some 30 ms, which a transport that only speaks http is
    spared. Files that the config names are read at once, so that a bad one is refused at once.

    Raises:
        UnsupportedOption: as `make_ssl_context`.
    """

    def __init__(self, tls: Tls, *, http2: bool = False) -> None:
        self._tls = tls
        self._http2 = http2
        self._context: ssl.SSLContext | None = None
        if tls.ca_file is not None or tls.client_cert is not None:
            self.get()

    def get(self) -> ssl.SSLContext:
        if self._context is None:
            self._context = make_ssl_context(self._tls, http2=self._http2)
        return self._context


def make_ssl_context(tls: Tls, *, http2: bool = False) -> ssl.SSLContext:
    """A client context that offers "http/1.1" by ALPN, and "h2" before it if `http2`.

    Raises:
        UnsupportedOption: a file of `tls` holds no certificate or key, or the password is wrong;
            the message names the key.
    """
    # Not create_default_context: it writes secrets to SSLKEYLOGFILE, if the environment has it.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if tls.ca_file is not None:
            context.load_verify_locations(tls.ca_file)
        else:
            context.load_default_certs()
    except ssl.SSLError as error:
        raise UnsupportedOption("tls.ca_file: it holds no PEM certificate") from error
    context.minimum_version = _VERSIONS[tls.min_version]
    context.set_alpn_protocols(["h2", "http/1.1"] if http2 else ["http/1.1"])
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if tls.client_cert is not None:
        _load_client_certificate(context, tls)
    return context


def _load_client_certificate(context: ssl.SSLContext, tls: Tls) -> None:
    secret = tls.client_key_password
    # An empty password, not None: with None OpenSSL would ask for one on the terminal.
    password = secret.get_secret_value() if secret is not None else ""
    try:
        context.load_cert_chain(str(tls.client_cert), tls.client_key, password)
    except ssl.SSLError as error:
        raise UnsupportedOption(
            "tls.client_cert: certificate and key do not load; give PEM files that belong together"
            ", and tls.client_key_password if the key has one"
        ) from error
