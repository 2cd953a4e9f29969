"""One TLS context for every backend, made from `Tls`. Knows `ssl`; does not know who dials."""

from __future__ import annotations

import ssl

from trunkline._config import H2_TO_A_PROXY, Tls
from trunkline._errors import ProxyError, UnsupportedOption

_ALPN = {False: ["http/1.1"], True: ["h2", "http/1.1"]}
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class LazyContext:
    """The contexts of a transport: the one that was given, or those made when they are needed.

    Loading the system's authorities takes some 30 ms, which a transport that only speaks http is
    spared. Files that the config names are read at once, so that a bad one is refused at once.

    Raises:
        UnsupportedOption: as `make_ssl_context`.
    """

    def __init__(self, tls: Tls, *, http2: bool = False) -> None:
        self._tls = tls
        self._http2 = http2
        self._context: ssl.SSLContext | None = None
        self._proxy_context: ssl.SSLContext | None = None
        if tls.ca_file is not None or tls.client_cert is not None:
            self.get()

    def get(self) -> ssl.SSLContext:
        """The context for an origin. To be asked for anew by each connection."""
        given = self._tls.context
        if given is not None:
            if self._http2:  # each time: others that it is shared with set it too
                given.set_alpn_protocols(_ALPN[True])
            return given
        if self._context is None:
            self._context = make_ssl_context(self._tls, http2=self._http2)
        return self._context

    def for_proxy(self) -> ssl.SSLContext:
        """The context for a proxy, which is not offered HTTP/2.

        Raises:
            ProxyError: the context that was given offers it.
        """
        if self._tls.context is None or not self._http2:
            if self._proxy_context is None:
                self._proxy_context = self._tls.context or make_ssl_context(self._tls)
            return self._proxy_context
        raise ProxyError(f"tls.context {H2_TO_A_PROXY}")


def make_ssl_context(tls: Tls, *, http2: bool = False) -> ssl.SSLContext:
    """A client context that offers "http/1.1" by ALPN, and "h2" before it if `http2`.

    `tls.context` is not looked at.

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
    context.set_alpn_protocols(_ALPN[http2])
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
