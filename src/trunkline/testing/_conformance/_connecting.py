"""Connections that cannot be opened: each way to fail has its error, and nothing was sent."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import ClassVar

import pytest

from trunkline._config import Limits, Timeouts, Tls
from trunkline._errors import (
    CertificateError,
    ConnectError,
    ConnectionFailed,
    ConnectTimeout,
    DNSError,
    TLSError,
    TransportError,
)
from trunkline.testing._certificates import Certificate, Certificates
from trunkline.testing._conformance._base import Conformance, Rig, needs
from trunkline.testing._conformance._helpers import closed_port, counts, unanswering_port
from trunkline.testing._promises import keeps
from trunkline.testing._script import close, hold, response, rst, send, serve

PAGE = response(200, b"page")
SOON = Timeouts(connect=0.2)


def _expect_unsent(error: TransportError, rig: Rig) -> None:
    facts = (error.request_sent, error.bytes_sent, error.response_started, error.replay)
    assert facts == (False, 0, False, "safe")
    assert not error.connection_reused
    assert counts(rig.transport.snapshot()) == (0, 0, 0, 0, 0)
    assert rig.server.requests == []


class Connecting(Conformance):
    promise = 7

    async def test_a_refused_connection_is_a_connect_error(self) -> None:
        async with self.rig(serve()) as rig:
            port = closed_port()
            with pytest.raises(ConnectError) as caught:
                await rig.fetch_url(f"http://127.0.0.1:{port}/")

            assert caught.value.phase == "connect"
            assert (caught.value.host, caught.value.port) == ("127.0.0.1", port)
            cause = caught.value.__cause__
            assert isinstance(cause, OSError) or (cause and not self.capabilities().pooled)
            _expect_unsent(caught.value, rig)

    async def test_a_name_that_does_not_exist_is_a_dns_error(self) -> None:
        async with self.rig(serve()) as rig:
            try:
                with pytest.raises(DNSError) as caught:
                    await rig.fetch_url("http://nonexistent.invalid/")
            except ConnectTimeout:
                pytest.skip("the name server of this machine does not answer")

            assert (caught.value.phase, caught.value.host) == ("dns", "nonexistent.invalid")
            _expect_unsent(caught.value, rig)

    @keeps(8)
    async def test_an_address_that_does_not_answer_is_a_connect_timeout(self) -> None:
        async with self.rig(serve(), timeouts=SOON) as rig:
            with unanswering_port() as port, pytest.raises(ConnectTimeout) as caught:
                await rig.fetch_url(f"http://127.0.0.1:{port}/")

            assert caught.value.phase == "connect"
            _expect_in_time(caught.value)
            _expect_unsent(caught.value, rig)

    @keeps(8)
    async def test_a_handshake_that_stalls_is_a_connect_timeout(self) -> None:
        async with self.rig([hold()], timeouts=SOON) as rig:
            with pytest.raises(ConnectTimeout) as caught:
                await rig.fetch_url(f"https://127.0.0.1:{rig.server.port}/")

            error: TransportError = caught.value
            assert error.phase == "tls"
            _expect_in_time(error)
            _expect_unsent(error, rig)
            await rig.until_client_closed()

    @keeps(8)
    async def test_a_connection_attempt_that_fails_gives_its_slot_back(self) -> None:
        limits = Limits(max_connections=1)
        async with self.rig([hold()], [close()], serve(PAGE), limits=limits, timeouts=SOON) as rig:
            for _ in range(2):
                with pytest.raises(TransportError):
                    await rig.fetch_url(f"https://127.0.0.1:{rig.server.port}/")

            assert (await rig.fetch()).content == b"page"

    # -- TLS ---------------------------------------------------------------------------------------

    async def test_a_server_without_tls_is_a_tls_error(self) -> None:
        async with self.rig([send(b"HTTP/1.1 400 Bad Request\r\n\r\n")]) as rig:
            with pytest.raises(TLSError) as caught:
                await rig.fetch_url(f"https://127.0.0.1:{rig.server.port}/")

            assert not isinstance(caught.value, CertificateError)
            assert caught.value.phase == "tls"
            _expect_unsent(caught.value, rig)

    @pytest.mark.parametrize("ending", ["fin", "rst"])
    async def test_a_handshake_that_is_cut_off_is_a_failed_connection(self, ending: str) -> None:
        async with self.rig([close() if ending == "fin" else rst()]) as rig:
            with pytest.raises(ConnectionFailed) as caught:
                await rig.fetch_url(f"https://127.0.0.1:{rig.server.port}/")

            assert caught.value.phase in ("connect", "tls")
            _expect_unsent(caught.value, rig)

    wrong_certificates: ClassVar = ("wrong_host", "expired", "self_signed")

    @pytest.mark.parametrize("which", wrong_certificates)
    async def test_a_certificate_that_is_not_good_is_a_certificate_error(self, which: str) -> None:
        with Certificates() as certificates:
            certificate: Certificate = getattr(certificates, which)()
            async with self.rig(
                serve(PAGE),
                context=certificates.server_context(certificate),
                tls=Tls(ca_file=Path(certificates.ca_file)),
            ) as rig:
                with pytest.raises(CertificateError) as caught:
                    await rig.fetch()

                assert caught.value.phase == "tls"
                _expect_unsent(caught.value, rig)
                await rig.until_client_closed()

    async def test_an_authority_that_is_not_trusted_is_a_certificate_error(self) -> None:
        async with self.secure_rig(serve(PAGE), tls=Tls()) as rig:
            with pytest.raises(CertificateError) as caught:
                await rig.fetch()

            _expect_unsent(caught.value, rig)

    @keeps(10)
    async def test_ca_file_names_whom_to_trust(self) -> None:
        async with self.secure_rig(serve(PAGE)) as rig:
            assert (await rig.fetch()).content == b"page"

    @keeps(10)
    async def test_verify_false_trusts_everybody(self) -> None:
        with Certificates() as certificates:
            context = certificates.server_context(certificates.wrong_host())
            async with self.rig(serve(PAGE), context=context, tls=Tls(verify=False)) as rig:
                assert (await rig.fetch()).content == b"page"

    @keeps(10)
    async def test_a_client_certificate_is_shown(self) -> None:
        with Certificates() as certificates:
            client = certificates.client()
            context = certificates.server_context(require_client_certificate=True)
            tls = Tls(
                ca_file=Path(certificates.ca_file),
                client_cert=Path(client.cert_file),
                client_key=Path(client.key_file),
            )
            async with self.rig(serve(PAGE), context=context, tls=tls) as rig:
                assert (await rig.fetch()).content == b"page"
                assert rig.server.conversations[0].client_certificate

    @keeps(10)
    @needs("tls_context")
    async def test_a_context_says_whom_to_trust_and_what_to_show(self) -> None:
        with Certificates() as certificates:
            context = certificates.server_context(require_client_certificate=True)
            given = certificates.client_context(certificates.client())
            async with self.rig(serve(PAGE), context=context, tls=Tls(context=given)) as rig:
                for _ in range(3):
                    assert (await rig.fetch()).content == b"page"

                assert rig.server.connections == 1
                assert rig.server.conversations[0].client_certificate

    @needs("tls_context")
    async def test_a_context_that_does_not_trust_the_server_is_a_certificate_error(self) -> None:
        given = ssl.create_default_context()
        async with self.secure_rig(serve(PAGE), tls=Tls(context=given)) as rig:
            with pytest.raises(CertificateError) as caught:
                await rig.fetch()

            assert caught.value.phase == "tls"
            _expect_unsent(caught.value, rig)

    @keeps(10)
    @needs("tls_context")
    @pytest.mark.parametrize("offered", [(), ("http/1.1",)], ids=["nothing", "http1"])
    async def test_what_a_context_offers_by_alpn_is_not_changed(
        self, offered: tuple[str, ...]
    ) -> None:
        with Certificates() as certificates:
            given = certificates.client_context(alpn=offered)
            context = certificates.server_context(alpn=("h2", "http/1.1"))
            async with self.rig(serve(PAGE), context=context, tls=Tls(context=given)) as rig:
                assert (await rig.fetch()).content == b"page"

                assert rig.server.conversations[0].alpn == (offered[0] if offered else None)

    async def test_a_missing_client_certificate_is_an_error(self) -> None:
        with Certificates() as certificates:
            context = certificates.server_context(require_client_certificate=True)
            tls = Tls(ca_file=Path(certificates.ca_file))
            async with self.rig(serve(PAGE), context=context, tls=tls) as rig:
                # With TLS 1.3 the client learns of it after the handshake (RFC 8446, section 4.6).
                with pytest.raises(TransportError):
                    await rig.fetch()

                assert rig.server.requests == []

    @keeps(10)
    async def test_min_version_is_the_lowest_that_is_accepted(self) -> None:
        with Certificates() as certificates:
            context = certificates.server_context()
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            tls = Tls(ca_file=Path(certificates.ca_file), min_version="1.3")
            async with self.rig(serve(PAGE), context=context, tls=tls) as rig:
                with pytest.raises(TLSError) as caught:
                    await rig.fetch()

                _expect_unsent(caught.value, rig)

    async def test_http_1_1_is_offered_by_alpn(self) -> None:
        async with self.secure_rig(serve(PAGE)) as rig:
            await rig.fetch()

            assert rig.server.conversations[0].alpn == "http/1.1"

    async def test_the_host_is_named_to_the_server(self) -> None:
        names: list[str | None] = []
        with Certificates() as certificates:
            context = certificates.server_context()
            context.sni_callback = lambda tls, name, _: names.append(name)
            async with self.rig(
                serve(PAGE), context=context, tls=Tls(ca_file=Path(certificates.ca_file))
            ) as rig:
                await rig.fetch_url(f"https://localhost:{rig.server.port}/")

            assert names == ["localhost"]

    @keeps(12)
    async def test_large_bodies_pass_through_tls_whole(self) -> None:
        body = bytes(range(256)) * 16 * 1024  # 4 MiB
        async with self.secure_rig(
            serve(lambda request: response(200, bytes(request.body)))
        ) as rig:
            assert (await rig.fetch("POST", content=body)).content == body

    @keeps(13)
    async def test_connections_over_tls_are_used_again(self) -> None:
        async with self.secure_rig(serve(PAGE)) as rig:
            for _ in range(5):
                await rig.fetch()

            assert rig.server.connections == 1


def _expect_in_time(error: TransportError) -> None:
    assert isinstance(error, TimeoutError)
    assert error.elapsed is not None
    assert 0.19 <= error.elapsed < 5.0
