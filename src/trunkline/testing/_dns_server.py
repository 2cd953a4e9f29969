"""A name server on loopback that answers as data says: addresses, refusals, late, or never.

This module knows the DNS on the wire (by dnspython) and runs in a thread of its own, so the code
under test may use any event loop, or none. It does not know resolvers or transports.
"""

from __future__ import annotations

import heapq
import math
import selectors
import socket
import threading
from dataclasses import dataclass, replace
from time import monotonic
from types import TracebackType
from typing import Any

import dns.exception
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

THREAD_NAME = "trunkline-dns-server"

_LARGEST_DATAGRAM = 4096
_START_OF_AUTHORITY = "ns.test. admin.test. 1 3600 600 86400 300"


@dataclass(frozen=True, slots=True)
class Answer:
    """What is said of a name.

    Attributes:
        addresses: IPv4 ones answer a question for A, IPv6 ones one for AAAA; a question for which
            there is none gets "no data".
        code: the response code, e.g. "NXDOMAIN".
        ttl: how long those who ask may keep it, in seconds.
        delay: seconds until it is sent; if infinite, it waits for `DNSServer.release`.
    """

    addresses: tuple[str, ...] = ()
    code: str = "NOERROR"
    ttl: int = 300
    delay: float = 0.0

    def held(self) -> Answer:
        """The same, sent when the server is told to."""
        return replace(self, delay=math.inf)


def addresses(*those: str, ttl: int = 300) -> Answer:
    return Answer(those, ttl=ttl)


NXDOMAIN = Answer(code="NXDOMAIN")
SERVFAIL = Answer(code="SERVFAIL")
SILENCE = SERVFAIL.held()


class DNSServer:
    """Answers over UDP from `names`, which may be changed at any time.

    ::

        with DNSServer({"api.test": addresses("127.0.0.1"), "mute.test": SILENCE}) as server:
            ...  # a resolver asks server.address
            assert server.asked("api.test") == 1

    Attributes:
        names: what to say of each name, in lower case and without a dot at the end; any other name
            does not exist.
        address: where it listens, "127.0.0.1:5353" or "[::1]:5353".
        questions: the name and type of each one that came, e.g. ("api.test", "A").
    """

    def __init__(self, names: dict[str, Answer] | None = None, *, host: str = "127.0.0.1") -> None:
        self.names = dict(names or {})
        self.questions: list[tuple[str, str]] = []
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._socket.bind((host, 0))
        port = self._socket.getsockname()[1]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._late: list[tuple[float, int, bytes, Any]] = []
        self._is_released = False
        self._lock = threading.Lock()
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)

    def __enter__(self) -> DNSServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._wake.close()
        self._thread.join()
        self._woken.close()
        self._socket.close()

    def asked(self, name: str, kind: str = "A") -> int:
        """How many questions of this type came for `name`.

        A resolver asks for A and AAAA at each look-up, and again when the answer is late or bad.
        """
        return self.questions.count((name, kind))

    def release(self) -> None:
        """Send every answer that is being delayed, and from now on delay none."""
        with self._lock:
            self._is_released = True
            late, self._late = self._late, []
        for _, _, data, client in sorted(late):
            self._socket.sendto(data, client)

    # -- in the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while True:
                ready = [key.fileobj for key, _ in selector.select(self._send_due())]
                if self._woken in ready:
                    return
                if ready:
                    self._receive()

    def _send_due(self) -> float | None:
        """Send what is due; return the seconds until more is."""
        with self._lock:
            now = monotonic()
            while self._late and self._late[0][0] <= now:
                _, _, data, client = heapq.heappop(self._late)
                self._socket.sendto(data, client)
            if not self._late or math.isinf(self._late[0][0]):
                return None
            return self._late[0][0] - now

    def _receive(self) -> None:
        data, client = self._socket.recvfrom(_LARGEST_DATAGRAM)
        try:
            query = dns.message.from_wire(data)
        except dns.exception.DNSException:
            return  # like a name server, it does not answer what is no question
        (question,) = query.question
        name = question.name.to_text(omit_final_dot=True).lower()
        answer = self.names.get(name, NXDOMAIN)
        reply = _reply(query, question, answer)
        with self._lock:
            due = monotonic() + (0.0 if self._is_released else answer.delay)
            heapq.heappush(self._late, (due, len(self.questions), reply, client))
            self.questions.append((name, dns.rdatatype.to_text(question.rdtype)))


def _reply(query: dns.message.Message, question: dns.rrset.RRset, answer: Answer) -> bytes:
    response = dns.message.make_response(query, recursion_available=True)
    response.set_rcode(dns.rcode.from_text(answer.code))
    wanted = {dns.rdatatype.A: False, dns.rdatatype.AAAA: True}.get(question.rdtype)
    found = [each for each in answer.addresses if (":" in each) == wanted]
    if found:
        kind = dns.rdatatype.to_text(question.rdtype)
        response.answer.append(dns.rrset.from_text(question.name, answer.ttl, "IN", kind, *found))
    elif answer.code in ("NOERROR", "NXDOMAIN"):
        # RFC 2308: with it resolvers keep the refusal, as they do in the field.
        root = dns.name.root
        authority = dns.rrset.from_text(root, answer.ttl, "IN", "SOA", _START_OF_AUTHORITY)
        response.authority.append(authority)
    return response.to_wire()
