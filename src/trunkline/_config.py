"""What a transport is made of: frozen pydantic models, and loading them from file and environment.

This module knows every option, its unit, its default and its range. It does not know which backend
can honour which option: a backend refuses what it cannot when the transport is made.
"""

from __future__ import annotations

import os
import ssl
import tomllib
from difflib import get_close_matches
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PlainSerializer,
    PlainValidator,
    SecretStr,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError
from yarl import URL

_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_HIDDEN = "**********"
_PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")


class _Model(BaseModel):
    # hide_input_in_errors: a proxy URL or a key's password must not end up in a log.
    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=True
    )

    @model_validator(mode="wrap")
    @classmethod
    def _name_the_nearest_key(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as error:
            details, title = error.errors(), error.title
        # Outside the except block, or the error with the input in it would be shown as well.
        keys = _paths_of_keys(cls)
        raise ValidationError.from_exception_data(
            title, [_suggest(detail, keys) for detail in details], hide_input=True
        )


def _is_unknown_key(detail: ErrorDetails) -> bool:
    # Deeper ones were seen to by their own model.
    return detail["type"] == "extra_forbidden" and len(detail["loc"]) == 1


def _suggest(detail: ErrorDetails, keys: dict[str, str]) -> InitErrorDetails:
    message = detail["msg"]
    if _is_unknown_key(detail):
        for near in get_close_matches(str(detail["loc"][0]), keys, n=1, cutoff=0.7):
            message += f"; did you mean {keys[near]}?"
    # The texts are pydantic's and ours, not the input's, so they may stand for literals.
    kind = PydanticCustomError(detail["type"], message, detail.get("ctx"))  # pyright: ignore[reportArgumentType]
    # hide_input_in_errors holds for the outermost model only, which may be the user's own.
    return InitErrorDetails(type=kind, loc=detail["loc"], input=_HIDDEN)


def _paths_of_keys(model: type[_Model]) -> dict[str, str]:
    """The model's keys and those of its tables, e.g. max_waiting: "limits.max_waiting"."""
    tables = {
        name: field.annotation
        for name, field in model.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, _Model)
    }
    nested = {key: f"{name}.{key}" for name, table in tables.items() for key in table.model_fields}
    return nested | {name: name for name in model.model_fields}


class Limits(_Model):
    """How many connections, and for how long. `None` means no limit; durations are seconds.

    Attributes:
        max_connections: open sockets over all hosts, the idle ones included. An idle connection to
            another host is closed to make room.
        max_connections_per_host: open sockets to one origin (scheme, host and port).
        max_keepalive_connections: idle sockets over all hosts; beyond it the one that has been idle
            longest is closed.
        keepalive_expiry: how long a connection may sit idle and still be used again.
        max_connection_age: a connection older than this is not used again; each connection's own
            limit is up to 10 % more or less, so that a fleet does not reconnect in step.
        max_waiting: calls that may wait for a connection; one more is refused with `PoolFull`.
        min_idle_connections: kept open and idle in the background to each origin that has been
            used or warmed, as far as the other limits allow.
        ping_interval: an HTTP/2 connection from which nothing has come for this long is asked for a
            sign of life (PING), and ends if none comes for as long again; None for never. Some
            servers take frequent ones for abuse: stay above 10 s unless you run the server.
    """

    max_connections: Annotated[int, Field(ge=1)] | None = 100
    max_connections_per_host: Annotated[int, Field(ge=1)] | None = None
    max_keepalive_connections: Annotated[int, Field(ge=0)] | None = 20
    keepalive_expiry: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = 30.0
    max_connection_age: _Seconds | None = None
    min_idle_connections: Annotated[int, Field(ge=0)] = 0
    max_waiting: Annotated[int, Field(ge=0)] | None = None
    ping_interval: _Seconds | None = None


class Timeouts(_Model):
    """Deadlines in seconds; `None` means none. Each holds on every backend.

    Attributes:
        pool: waiting for a connection to become free.
        connect: name resolution, TCP and TLS handshakes together.
        write: the peer takes no byte of the request.
        headers: from the end of the request to the complete response head; absolute, so a server
            that drips one byte a second does not extend it.
        read: silence between two pieces of the response body.
        total: from `send` to the end of the body.
    """

    pool: _Seconds | None = 10.0
    connect: _Seconds | None = 5.0
    write: _Seconds | None = 10.0
    headers: _Seconds | None = None
    read: _Seconds | None = 60.0
    total: _Seconds | None = None

    def overridden_by(self, other: Timeouts | None) -> Timeouts:
        """These, with the fields that were set explicitly on `other` in their place."""
        if other is None:
            return self
        return self.model_copy(update={k: getattr(other, k) for k in other.model_fields_set})


def split_nameserver(text: str) -> tuple[str, int]:
    """The IP address and port of a name server; the port is 53 where none is given.

    Raises:
        ValueError: it is not of that form.
    """
    host, colon, port = text, "", ""
    if text.startswith("[") or text.count(":") == 1:
        host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
        host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        ip_address(host)
        number = int(port) if colon else 53
    except ValueError:
        number = 0
    if not 0 < number < 2**16:
        raise ValueError("not an IP address, nor one with a port: 127.0.0.1:5353 or [::1]:5353")
    return host, number


def _check_nameservers(value: tuple[str, ...]) -> tuple[str, ...]:
    if len({split_nameserver(each)[1] for each in value}) > 1:
        raise ValueError("they must all have the same port")
    return value


class Dns(_Model):
    """Name resolution, the same on every backend.

    Attributes:
        ttl: seconds an answer is kept; 0 asks anew for each connection. That a name does not exist
            is kept for a second at most.
        stale_on_error: while the resolver fails, the last good answer is used, up to an hour past
            its ttl.
        resolver: "aiodns" (c-ares: the hosts file and DNS, asyncio only), "system" (getaddrinfo in
            a thread: all that the system is set up for), or "auto": aiodns on asyncio, system
            elsewhere.
        nameservers: whom aiodns asks, in this order, instead of those of the system; each is an IP
            address, or one with a port: "10.0.0.2", "127.0.0.1:5353", "[::1]:5353". The port is
            the same for all.
    """

    ttl: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 300.0
    stale_on_error: bool = True
    resolver: Literal["auto", "aiodns", "system"] = "auto"
    nameservers: Annotated[tuple[str, ...], AfterValidator(_check_nameservers)] = ()


_ONLY_FROM_CODE = "it must be an ssl.SSLContext, which only code can give: Tls(context=...)"
_NOT_STORED = (
    "tls.context: an ssl.SSLContext cannot be pickled or written; name files (ca_file, client_cert)"
    ", or make the config where it is used"
)


def _check_context(value: Any) -> ssl.SSLContext | None:
    if value is not None and not isinstance(value, ssl.SSLContext):
        raise ValueError(f"{_ONLY_FROM_CODE}; elsewhere name files: ca_file, client_cert")
    if value is not None and value.protocol == ssl.PROTOCOL_TLS_SERVER:
        raise ValueError("it is made for a server; use ssl.PROTOCOL_TLS_CLIENT")
    return value


def _refuse_to_write(value: ssl.SSLContext) -> None:
    raise ValueError(_NOT_STORED)


_Context = Annotated[
    ssl.SSLContext | None,
    PlainValidator(_check_context),
    PlainSerializer(_refuse_to_write, when_used="json-unless-none"),
    WithJsonSchema({"type": "null"}),
]

# What says the same of a context that is given, which is the caller's to set up.
_OF_A_CONTEXT = {
    "verify": "set its check_hostname and verify_mode",
    "ca_file": "call its load_verify_locations",
    "client_cert": "call its load_cert_chain",
    "client_key": "call its load_cert_chain",
    "client_key_password": "call its load_cert_chain",
    "min_version": "set its minimum_version",
}


class Tls(_Model):
    """Transport Layer Security.

    Attributes:
        context: an `ssl.SSLContext` to connect with, which then says everything: none of the other
            keys may be set beside it. It is used as it is and shared, not copied; only with `http2`
            is what it offers by ALPN set, to "h2" and "http/1.1", as httpx does. Without, a server
            that chooses "h2" from what it offers is spoken to in HTTP/2. It is also used for a
            proxy of scheme https.
        verify: check the server's certificate chain and host name.
        ca_file: PEM file of the authorities to trust, instead of the system's, which OpenSSL finds
            (SSL_CERT_FILE and SSL_CERT_DIR tell it where).
        client_cert: PEM file of the certificate to present, with its chain.
        client_key: PEM file of its private key; None when `client_cert` holds it too.
        client_key_password: password of the private key.
        min_version: lowest protocol version to accept.
    """

    context: _Context = None
    verify: bool = True
    ca_file: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None
    client_key_password: SecretStr | None = None
    min_version: Literal["1.2", "1.3"] = "1.2"

    @model_validator(mode="after")
    def _a_context_says_everything(self) -> Self:
        for key, remedy in _OF_A_CONTEXT.items():
            if self.context is not None and key in self.model_fields_set:
                raise ValueError(f"{key} cannot go with context: leave it out and {remedy}")
        return self

    @model_validator(mode="after")
    def _files_fit_together(self) -> Self:
        for key in ("ca_file", "client_cert", "client_key"):
            path: Path | None = getattr(self, key)
            if path is not None and not path.is_file():
                raise ValueError(f"{key}: there is no such file; give the path of a PEM file")
        if self.client_cert is None:
            for key in ("client_key", "client_key_password"):
                if getattr(self, key) is not None:
                    raise ValueError(f"{key} needs client_cert: set both")
        if self.ca_file is not None and not self.verify:
            raise ValueError("ca_file is of no use with verify=False: remove one of them")
        return self

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.__copy__()  # no field can be changed, and a context not be copied

    def __getstate__(self) -> dict[Any, Any]:
        if self.context is not None:
            raise TypeError(_NOT_STORED)
        return super().__getstate__()


H2_TO_A_PROXY = (
    "cannot go with http2 and a proxy of scheme https: the proxy would be offered HTTP/2 too; "
    "leave http2 out, or name files (ca_file, client_cert) instead of the context"
)


def _check_proxy(value: str) -> str:
    remedy = "write it as http://[user:password@]host:port"
    try:
        url = URL(value)
        port = url.port
    except ValueError:
        raise ValueError(f"not a URL; {remedy}") from None  # the cause would show userinfo
    if url.scheme not in _PROXY_SCHEMES:
        raise ValueError(f"the scheme must be one of {', '.join(_PROXY_SCHEMES)}; {remedy}")
    if not url.host or not port:
        raise ValueError(f"host and port are needed; {remedy}")
    if url.raw_path not in ("", "/") or url.raw_query_string:
        raise ValueError(f"a proxy has no path or query; {remedy}")
    return value


Http2: TypeAlias = bool | Literal["prior_knowledge"]
_BOOL = TypeAdapter(bool)


def _check_http2(value: Any) -> Http2:
    if value == "prior_knowledge":
        return "prior_knowledge"
    try:
        return _BOOL.validate_python(value)
    except ValidationError as error:
        raise ValueError("it must be true, false or 'prior_knowledge'") from error


class TransportConfig(_Model):
    """Everything `open_transport` needs. Frozen; `model_copy(update=...)` makes a changed one.

    Attributes:
        backend: "auto", or the name of an entry point in the group `trunkline.backends`.
        http2: offer HTTP/2 by ALPN; an origin that does not speak it gets HTTP/1.1.
            "prior_knowledge" also speaks HTTP/2 at once to an http origin, which must then know it;
            through a proxy that forwards, such an origin gets HTTP/1.1.
        limits, timeouts, dns, tls: see `Limits`, `Timeouts`, `Dns`, `Tls`.
        proxy: URL of a proxy for every request, with credentials if it needs them. Schemes: http,
            https, and with a backend that can, socks5 and socks5h.
        uds: path of a Unix socket to connect to, whatever the host of the URL.
        trust_env: read HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY from the environment.
        warn_utilization: log a warning when this share of `max_connections` is in use, and when it
            no longer is; None for never.
        leak_after: a response that is open and has not been read from for this many seconds is
            reported, and its connection taken back; None for never.
        leak_stack: remember where each response was opened, for that report. Costs some
            microseconds a request.

    Raises:
        pydantic.ValidationError: (a ValueError) naming each wrong or unknown key.
    """

    backend: Annotated[str, Field(min_length=1)] = "auto"
    http2: Annotated[Http2, PlainValidator(_check_http2)] = False
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    dns: Dns = Dns()
    tls: Tls = Tls()
    proxy: Annotated[str, AfterValidator(_check_proxy)] | None = Field(default=None, repr=False)
    uds: Path | None = None
    trust_env: bool = False
    warn_utilization: Annotated[float, Field(gt=0, le=1)] | None = 0.8
    leak_after: _Seconds | None = None
    leak_stack: bool = False

    @model_validator(mode="after")
    def _one_way_out(self) -> Self:
        if self.uds is not None and (self.proxy is not None or self.trust_env):
            raise ValueError("uds cannot go with proxy or trust_env: a Unix socket has no proxy")
        if self.http2 and self.tls.context is not None and (self.proxy or "").startswith("https:"):
            raise ValueError(f"tls.context {H2_TO_A_PROXY}")
        return self


def load_config(path: str | os.PathLike[str] | None = None) -> TransportConfig:
    """Read a TOML file, then `TRUNKLINE_*` environment variables over it.

    A `pyproject.toml` is read at `[tool.trunkline]`, any other file at its top level. Nested keys
    use two underscores: `TRUNKLINE_LIMITS__MAX_CONNECTIONS=50`; the value `none` means None.

    Raises:
        FileNotFoundError: there is no such file.
        tomllib.TOMLDecodeError: the file is not TOML.
        pydantic.ValidationError: a key is unknown or its value wrong; the message names it.
        ValueError: an environment variable named TRUNKLINE_* is no option.
    """
    values: dict[str, Any] = _read_file(Path(path)) if path is not None else {}
    try:
        return TransportConfig.model_validate(_merge(values, _read_environment()))
    except ValueError as error:
        source = f"{Path(path).name} and the" if path is not None else "the"
        error.add_note(f"read from {source} environment variables TRUNKLINE_*")
        raise


def _read_file(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        data = tomllib.load(file)
    if path.name != "pyproject.toml":
        return data
    try:
        table: dict[str, Any] = data["tool"]["trunkline"]
    except KeyError as error:
        raise ValueError(f"{path.name} has no table [tool.trunkline]: add one") from error
    return table


def _read_environment() -> dict[str, Any]:
    from pydantic_settings import BaseSettings, EnvSettingsSource

    class Environment(BaseSettings, TransportConfig):  # type: ignore[misc]
        """The same fields, as pydantic-settings needs them."""

    prefix = "TRUNKLINE_"
    for name in os.environ:
        option = name.upper().removeprefix(prefix).split("__")[0].lower()
        if name.upper().startswith(prefix) and option not in TransportConfig.model_fields:
            known = ", ".join(prefix + field.upper() for field in TransportConfig.model_fields)
            raise ValueError(f"environment variable {name} is no option; there are {known}")
    source = EnvSettingsSource(
        Environment, env_prefix=prefix, env_nested_delimiter="__", env_parse_none_str="none"
    )
    values: dict[str, Any] = source()
    return values


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        below: Any = merged.get(key)
        both_tables = isinstance(below, dict) and isinstance(value, dict)
        merged[key] = (
            _merge(cast("dict[str, Any]", below), cast("dict[str, Any]", value))
            if both_tables
            else value
        )
    return merged
