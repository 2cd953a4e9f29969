"""nginx on loopback, with a configuration of this run only.

Knows nginx: finds it, starts it on one core with free ports, and ends it. Does not know what is
measured on it. It answers `POST /small` with a small JSON text and `/v1/chat/completions` with a
chat completion, serves `/64k` and `/1m`, and reads whatever is sent to `/upload` to its end before
it answers.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

from benchmarks._cores import pin
from trunkline.testing._certificates import Certificates

SIZES = {"64k": 64 * 1024, "1m": 1024 * 1024}
BESIDE = ("/usr/sbin", "/usr/local/sbin")
"""Where it is looked for after PATH."""

HOW_TO_INSTALL = "the benchmarks need nginx: apt-get install nginx-light"

_CONFIG = """
daemon off;
master_process off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    keepalive_timeout 3600s;
    http2_max_concurrent_streams 1000;
    client_max_body_size 0;
    client_body_buffer_size 2m;
    default_type application/json;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    sendfile on;
    tcp_nopush on;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_certificate {cert};
    ssl_certificate_key {key};
    ssl_session_cache shared:tls:10m;
    upstream answerer {{ server unix:{folder}/answerer; keepalive 256; }}
    server {{ listen unix:{folder}/answerer; return 200 '{answer}'; }}
    server {{
        listen {host}:{plain} backlog=4096;
        listen {host}:{tls} ssl http2 backlog=4096;
        root {folder}/files;
        location = /small {{ return 200 '{answer}'; }}
        location = /v1/chat/completions {{ return 200 '{completion}'; }}
        location = /upload {{
            proxy_pass http://answerer;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Content-Length "";
            proxy_pass_request_body off;
        }}
    }}
}}
"""
_COMPLETION = (
    '{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"demo","choices":[{"index":0,'
    '"finish_reason":"stop","message":{"role":"assistant","content":"Light scatters."}}],'
    '"usage":{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12}}'
)
_ANSWER = '{"id":"chatcmpl-1","object":"chat.completion","choices":[]}'


@dataclass(frozen=True, slots=True)
class Nginx:
    """A running server. `plain` and `tls` are base URLs; `tls` offers HTTP/2."""

    plain: str
    tls: str
    ca_file: str
    version: str


def find() -> str:
    """The path of nginx. Raises SystemExit that says how to install it."""
    beside = os.pathsep.join((os.environ.get("PATH", ""), *BESIDE))
    found = shutil.which("nginx", path=beside)
    if found is None:
        raise SystemExit(HOW_TO_INSTALL)
    return found


@contextmanager
def serving(core: int, *, host: str = "127.0.0.1", inside: Sequence[str] = ()) -> Generator[Nginx]:
    """Run it on `core`, on free ports of `host`; by the command `inside`, where one is given."""
    program = find()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmarks-nginx-")))
        certificate = stack.enter_context(Certificates()).server(host)
        (folder / "files").mkdir()
        for name, size in SIZES.items():
            (folder / "files" / name).write_bytes(os.urandom(size))
        plain, tls = _free_ports(2)
        config = folder / "nginx.conf"
        config.write_text(
            _CONFIG.format(
                folder=folder,
                cert=certificate.cert_file,
                key=certificate.key_file,
                plain=plain,
                tls=tls,
                answer=_ANSWER,
                completion=_COMPLETION,
                host=host,
            )
        )
        command = [
            *inside,
            program,
            "-p",
            str(folder),
            "-e",
            str(folder / "error.log"),
            "-c",
            str(config),
        ]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        stack.callback(_end, process)
        pin(process.pid, core)
        _wait(process, folder / "nginx.pid", folder / "error.log")
        yield Nginx(
            plain=f"http://{host}:{plain}",
            tls=f"https://{host}:{tls}",
            ca_file=certificate.ca_file,
            version=_version(program),
        )


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _wait(process: subprocess.Popen[bytes], started: Path, log: Path) -> None:
    until = monotonic() + 10
    while process.poll() is None and monotonic() < until:
        if started.exists():  # written when it listens
            return
        sleep(0.02)
    raise SystemExit(f"nginx did not start: {log.read_text() if log.exists() else 'no log'}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(10)


def _version(program: str) -> str:
    told = subprocess.run([program, "-v"], capture_output=True, text=True, check=True).stderr
    return told.strip().rpartition("/")[2]
