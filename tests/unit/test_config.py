"""The config: what is accepted, what is refused and by which name, and where it is read from.

Knows the models and `load_config`. Does not know what a backend makes of an option.
"""

from __future__ import annotations

import copy
import math
import os
import pickle
import ssl
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st
from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from trunkline import Dns, Limits, Timeouts, Tls, TransportConfig, load_config

SECRET = "hunter2"
Key = tuple[str | int, ...]


def errors_of(caught: pytest.ExceptionInfo[ValidationError]) -> dict[Key, str]:
    """Each wrong key, as a path, with what is said of it."""
    return {error["loc"]: error["msg"] for error in caught.value.errors()}


def everything_shown_by(error: BaseException) -> str:
    """What a log may come to hold of an exception: texts, notes, and the same of its causes."""
    shown = [str(error), repr(error), *getattr(error, "__notes__", [])]
    for inner in (error.__cause__, error.__context__):
        if inner is not None:
            shown.append(everything_shown_by(inner))
    return "\n".join(shown)


@pytest.fixture
def pem(tmp_path: Path) -> Path:
    path = tmp_path / "some.pem"
    path.touch()
    return path


# --- values


def test_the_defaults_are_the_documented_ones() -> None:
    config = TransportConfig()

    assert (config.backend, config.http2, config.proxy, config.uds, config.trust_env) == (
        "auto",
        False,
        None,
        None,
        False,
    )
    limits = config.limits
    assert (limits.max_connections, limits.max_connections_per_host) == (100, None)
    assert (limits.max_keepalive_connections, limits.keepalive_expiry) == (20, 30.0)
    assert (limits.max_connection_age, limits.max_waiting) == (None, None)
    timeouts = config.timeouts
    assert (timeouts.pool, timeouts.connect, timeouts.write) == (10.0, 5.0, 10.0)
    assert (timeouts.headers, timeouts.read, timeouts.total) == (None, 60.0, None)
    assert config.dns == Dns(ttl=300.0, stale_on_error=True, resolver="auto")
    assert config.tls == Tls(verify=True, ca_file=None, client_cert=None, min_version="1.2")


BAD_VALUES: list[tuple[str, Any]] = [
    ("backend", ""),
    ("backend", None),
    ("http2", "maybe"),
    ("limits", None),
    ("limits", 5),
    ("limits.max_connections", 0),
    ("limits.max_connections", -1),
    ("limits.max_connections", 1.5),
    ("limits.max_connections_per_host", 0),
    ("limits.max_keepalive_connections", -1),
    ("limits.keepalive_expiry", -0.1),
    ("limits.keepalive_expiry", math.inf),
    ("limits.max_connection_age", 0),
    ("limits.max_connection_age", math.nan),
    ("limits.min_idle_connections", -1),
    ("limits.min_idle_connections", None),
    ("limits.max_waiting", -1),
    *((f"timeouts.{name}", bad) for name in Timeouts.model_fields for bad in (0, -1, math.nan)),
    ("timeouts.total", math.inf),
    ("timeouts.total", "soon"),
    ("dns.ttl", -1),
    ("dns.ttl", math.inf),
    ("dns.ttl", None),
    ("dns.resolver", "bind"),
    ("dns.stale_on_error", "perhaps"),
    ("dns.nameservers", "10.0.0.2"),
    ("dns.nameservers", ["ns.example"]),
    ("dns.nameservers", ["10.0.0.2:0"]),
    ("dns.nameservers", ["10.0.0.2:65536"]),
    ("dns.nameservers", ["[::1]:x"]),
    ("dns.nameservers", ["10.0.0.2", "10.0.0.3:54"]),
    ("tls.verify", "perhaps"),
    ("tls.min_version", "1.1"),
    ("proxy", 8080),
    ("uds", 5),
    ("trust_env", "perhaps"),
    ("warn_utilization", 0),
    ("warn_utilization", 1.1),
    ("leak_after", 0),
    ("leak_stack", "perhaps"),
]


@pytest.mark.parametrize(("key", "value"), BAD_VALUES)
def test_a_bad_value_is_refused_by_its_key(key: str, value: Any) -> None:
    nested: Any = value
    for part in reversed(key.split(".")):
        nested = {part: nested}

    with pytest.raises(ValidationError) as caught:
        TransportConfig.model_validate(nested)

    found = [".".join(map(str, loc)) for loc in errors_of(caught)]
    assert found
    assert all(name.startswith(key) for name in found), found
    assert key in str(caught.value)


def test_all_that_is_wrong_is_said_at_once() -> None:
    wrong = {"http2": "maybe", "limits": {"max_connections": 0}, "dns": {"ttl": -1}, "nonsense": 1}

    with pytest.raises(ValidationError) as caught:
        TransportConfig.model_validate(wrong)

    assert set(errors_of(caught)) == {
        ("http2",),
        ("limits", "max_connections"),
        ("dns", "ttl"),
        ("nonsense",),
    }


@pytest.mark.parametrize("key", ["max_connections", "max_connections_per_host", "max_waiting"])
def test_none_lifts_a_limit(key: str) -> None:
    assert getattr(Limits.model_validate({key: None}), key) is None


@pytest.mark.parametrize("key", list(Timeouts.model_fields))
def test_none_lifts_a_deadline(key: str) -> None:
    assert getattr(Timeouts.model_validate({key: None}), key) is None


# --- proxies and files


@pytest.mark.parametrize(
    "url",
    [
        "http://proxy.example:3128",
        "http://proxy.example:3128/",
        "https://10.0.0.1:8443",
        "http://[::1]:3128",
        "socks5://localhost:1080",
        "socks5h://user:pass%40word@localhost:1080",
    ],
)
def test_a_proxy_url_is_kept_as_it_is(url: str) -> None:
    assert TransportConfig(proxy=url).proxy == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "proxy.example:3128",
        "ftp://proxy.example:3128",
        "socks4://proxy.example:1080",
        "http://",
        "http://:3128",
        "socks5://proxy.example",
        "http://proxy.example:99999",
        "http://proxy.example:port",
        "http://proxy.example:3128/path",
        "http://proxy.example:3128/?query",
    ],
)
def test_what_is_no_proxy_url_is_refused_with_the_remedy(url: str) -> None:
    with pytest.raises(ValidationError, match=r"http://\[user:password@\]host:port") as caught:
        TransportConfig(proxy=url)

    assert list(errors_of(caught)) == [("proxy",)]


@pytest.mark.parametrize("options", [{"proxy": "http://p.example:1"}, {"trust_env": True}])
def test_a_unix_socket_goes_with_no_proxy(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="uds"):
        TransportConfig(uds=Path("/run/api.sock"), **options)


@pytest.mark.parametrize("key", ["ca_file", "client_cert"])
def test_a_missing_file_is_refused_by_its_key(key: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=f"{key}: there is no such file"):
        Tls.model_validate({key: tmp_path / "missing.pem"})


def test_a_key_or_its_password_needs_the_certificate(pem: Path) -> None:
    for key, value in (("client_key", pem), ("client_key_password", SECRET)):
        with pytest.raises(ValidationError, match=f"{key} needs client_cert"):
            Tls.model_validate({key: value})
        assert Tls.model_validate({key: value, "client_cert": pem}).client_cert == pem


def test_authorities_without_verification_contradict_each_other(pem: Path) -> None:
    with pytest.raises(ValidationError, match="verify=False"):
        Tls(ca_file=pem, verify=False)


# --- unknown keys


@pytest.mark.parametrize(
    ("wrong", "loc", "nearest"),
    [
        ({"limts": {}}, ("limts",), "limits"),
        ({"timeout": 5}, ("timeout",), "timeouts"),
        ({"limits": {"max_conections": 5}}, ("limits", "max_conections"), "max_connections"),
        ({"tls": {"verify_": False}}, ("tls", "verify_"), "verify"),
        # A key of a table, given one floor too high:
        ({"max_connections": 5}, ("max_connections",), "limits.max_connections"),
        ({"verify": False}, ("verify",), "tls.verify"),
        ({"keep_alive_expiry": 5}, ("keep_alive_expiry",), "limits.keepalive_expiry"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(
    wrong: dict[str, Any], loc: Key, nearest: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        TransportConfig.model_validate(wrong)

    assert errors_of(caught) == {loc: f"Extra inputs are not permitted; did you mean {nearest}?"}
    assert caught.value.errors()[0]["type"] == "extra_forbidden"
    assert caught.value.title == "TransportConfig"


def test_nothing_is_suggested_where_nothing_is_near() -> None:
    with pytest.raises(ValidationError) as caught:
        TransportConfig.model_validate({"cookies": {}, "limits": {"colour": 1}})

    assert set(errors_of(caught).values()) == {"Extra inputs are not permitted"}


def test_a_suggestion_leaves_the_other_errors_as_they_are() -> None:
    wrong: dict[str, Any] = {"http2": "maybe", "dns": {"resolver": "bind"}, "proxy": "x"}

    with pytest.raises(ValidationError) as without:
        TransportConfig.model_validate(wrong)
    with pytest.raises(ValidationError) as caught:
        TransportConfig.model_validate(wrong | {"timeout": 5})

    expected = {error["loc"]: (error["type"], error["msg"]) for error in without.value.errors()}
    found = {error["loc"]: (error["type"], error["msg"]) for error in caught.value.errors()}
    assert found.pop(("timeout",))[1].endswith("did you mean timeouts?")
    assert found == expected


def test_only_one_error_is_shown_for_an_unknown_key() -> None:
    with pytest.raises(ValidationError) as caught:
        TransportConfig.model_validate({"timeout": 5})

    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


@given(key=st.text(min_size=1, max_size=30), value=st.none() | st.integers() | st.text(max_size=9))
def test_any_unknown_key_is_named(key: str, value: Any) -> None:
    if key in Limits.model_fields:
        return
    with pytest.raises(ValidationError) as caught:
        Limits.model_validate({key: value})

    ((loc, message),) = errors_of(caught).items()
    assert loc == (key,)
    assert message.startswith("Extra inputs are not permitted")


# --- frozen, hashable, copied


@pytest.mark.parametrize("model", [TransportConfig(), Limits(), Timeouts(), Dns(), Tls()])
def test_a_config_cannot_be_changed(model: BaseModel) -> None:
    for name in type(model).model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(model, name, getattr(model, name))


def test_equal_configs_are_one_key_of_a_dict() -> None:
    limits = {"max_connections": 7}
    configs = [
        TransportConfig.model_validate({"limits": limits, "http2": http2})
        for http2 in (False, False, True)
    ]

    assert len(dict.fromkeys(configs)) == 2


def test_a_changed_copy_leaves_the_original() -> None:
    config = TransportConfig()

    copy = config.model_copy(update={"http2": True})

    assert (config.http2, copy.http2) == (False, True)


def test_tables_may_be_wrongas_dicts() -> None:
    config = TransportConfig.model_validate({"limits": {"max_connections": "7"}})

    assert config.limits == Limits(max_connections=7)


# --- a context of the caller's


@pytest.fixture
def context() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("verify", False),
        ("verify", True),
        ("ca_file", "pem"),
        ("client_cert", "pem"),
        ("client_key_password", SECRET),
        ("min_version", "1.2"),
    ],
)
def test_a_context_goes_with_no_other_key(
    context: ssl.SSLContext, pem: Path, key: str, value: Any
) -> None:
    tls = {"context": context, key: pem if value == "pem" else value}
    with pytest.raises(ValidationError, match=f"{key} cannot go with context.*(set|call) its"):
        Tls.model_validate(tls)


@pytest.mark.parametrize("wrong", [True, "ca.pem", ssl.SSLContext])
def test_what_is_no_context_is_refused_with_a_remedy(wrong: object) -> None:
    with pytest.raises(ValidationError, match=r"ssl\.SSLContext.*name files: ca_file") as caught:
        TransportConfig.model_validate({"tls": {"context": wrong}})

    assert list(errors_of(caught)) == [("tls", "context")]


def test_a_context_for_servers_is_refused() -> None:
    with pytest.raises(ValidationError, match="made for a server"):
        Tls(context=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))


def test_neither_a_file_nor_the_environment_can_give_a_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValidationError, match="only code can give"):
        load_config(write(tmp_path / "trunkline.toml", '[tls]\ncontext = "ca.pem"\n'))
    monkeypatch.setenv("TRUNKLINE_TLS__CONTEXT", "ca.pem")
    with pytest.raises(ValidationError, match="only code can give"):
        load_config()


def test_copies_of_a_config_share_its_context(context: ssl.SSLContext) -> None:
    config = TransportConfig(tls=Tls(context=context))

    copies = [config.model_copy(deep=True), copy.deepcopy(config), config.model_copy()]

    assert all(one == config and one.tls.context is context for one in copies)
    assert len(dict.fromkeys([config, *copies])) == 1
    assert TransportConfig(tls=Tls()) != config


def test_a_changed_deep_copy_leaves_the_original(context: ssl.SSLContext) -> None:
    tls = Tls(context=context)

    assert tls.model_copy(update={"context": None}, deep=True).context is None
    assert tls.context is context


def test_a_config_with_a_context_says_why_it_is_not_pickled(context: ssl.SSLContext) -> None:
    config = TransportConfig(tls=Tls(context=context))

    with pytest.raises(TypeError, match=r"tls\.context.*name files"):
        pickle.dumps(config)
    with pytest.raises(ValueError, match=r"tls\.context.*name files"):
        config.model_dump_json()
    assert config.model_dump()["tls"]["context"] is context
    plain = TransportConfig(tls=Tls(min_version="1.3"))
    assert pickle.loads(pickle.dumps(plain)) == plain
    written = TransportConfig(http2=True).model_dump_json(exclude_unset=True)
    assert TransportConfig.model_validate_json(written) == TransportConfig(http2=True)


def test_a_context_in_it_leaves_a_config_with_a_json_schema() -> None:
    schema = Settings.model_json_schema()

    assert "context" in schema["$defs"]["Tls"]["properties"]


def test_http2_and_an_https_proxy_cannot_share_a_context(context: ssl.SSLContext) -> None:
    proxy = f"https://user:{SECRET}@proxy.example:3128"
    assert TransportConfig(tls=Tls(context=context), proxy=proxy).tls.context is context

    with pytest.raises(ValidationError, match=r"tls\.context.*http2.*leave http2 out") as caught:
        TransportConfig(tls=Tls(context=context), proxy=proxy, http2=True)

    assert SECRET not in everything_shown_by(caught.value)


# --- overriding timeouts


def test_only_what_was_set_overrides() -> None:
    base = Timeouts(pool=1, connect=2, read=3)

    merged = base.overridden_by(Timeouts(read=None, total=9))

    assert merged.model_dump() == {
        "pool": 1,
        "connect": 2,
        "write": 10,
        "headers": None,
        "read": None,
        "total": 9,
    }
    assert base.read == 3


def test_setting_a_field_to_its_default_overrides_too() -> None:
    assert Timeouts(read=3).overridden_by(Timeouts(read=60.0)).read == 60.0


def test_nothing_wrongoverrides_nothing() -> None:
    base = Timeouts(read=3)

    assert base.overridden_by(None) == base
    assert base.overridden_by(Timeouts()) == base


seconds = st.none() | st.floats(min_value=0.001, max_value=1e6)
some_timeouts = st.dictionaries(st.sampled_from(list(Timeouts.model_fields)), seconds).map(
    Timeouts.model_validate
)


@given(base=some_timeouts, first=some_timeouts, second=some_timeouts)
def test_the_last_word_wins_field_by_field(
    base: Timeouts, first: Timeouts, second: Timeouts
) -> None:
    merged = base.overridden_by(first).overridden_by(second)

    for name in Timeouts.model_fields:
        speakers = [t for t in (base, first, second) if name in t.model_fields_set]
        expected = getattr(speakers[-1] if speakers else base, name)
        assert getattr(merged, name) == expected


# --- nested in somebody's own settings


class Settings(BaseSettings):
    """What a user's program has."""

    model_config = SettingsConfigDict(env_prefix="MYAPP_", env_nested_delimiter="__")

    name: str = "app"
    transport: TransportConfig = TransportConfig()


def test_a_config_nests_in_the_users_own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYAPP_TRANSPORT__LIMITS__MAX_CONNECTIONS", "5")
    monkeypatch.setenv("MYAPP_TRANSPORT__BACKEND", "httpx")

    settings = Settings()

    assert settings.transport == TransportConfig(backend="httpx", limits=Limits(max_connections=5))


def test_wrong_keys_are_named_from_the_users_own_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYAPP_TRANSPORT__LIMITS__MAX_CONECTIONS", "5")
    monkeypatch.setenv("MYAPP_TRANSPORT__HTTP2", "maybe")

    with pytest.raises(ValidationError) as caught:
        Settings()

    found = errors_of(caught)
    assert set(found) == {("transport", "limits", "max_conections"), ("transport", "http2")}
    assert found["transport", "limits", "max_conections"].endswith("did you mean max_connections?")


# --- secrets


def test_a_repr_shows_no_secret(pem: Path) -> None:
    config = TransportConfig(
        proxy=f"http://user:{SECRET}@proxy.example:3128",
        tls=Tls.model_validate({"client_cert": pem, "client_key_password": SECRET}),
    )

    for shown in (repr(config), str(config), repr(config.tls), f"{[config]}"):
        assert SECRET not in shown
        assert "user" not in shown


SECRETS_IN_THE_WRONG_PLACE: list[dict[str, Any]] = [
    {"proxy": f"ftp://user:{SECRET}@proxy.example:1"},
    {"proxy": f"http://user:{SECRET}@proxy.example:99999"},
    {"proxy": f"http://user:pass/{SECRET}@proxy.example:1"},
    {"proxy": f"http://user:{SECRET}@[::1"},
    {"proxy": f"http://user:{SECRET}@proxy.example:1/path"},
    {"proxies": f"http://user:{SECRET}@proxy.example:1"},
    {"proxy": f"http://user:{SECRET}@proxy.example:1", "uds": "/run/api.sock"},
    {"proxy": f"http://user:{SECRET}@proxy.example:1", "timeout": 5},
    {"tls": {"client_key_password": SECRET}},
    {"tls": {"client_key_pasword": SECRET}},
    {"tls": {"client_key_password": [SECRET]}},
]


@pytest.mark.parametrize("wrong", SECRETS_IN_THE_WRONG_PLACE)
def test_an_error_shows_no_secret(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        TransportConfig.model_validate(wrong)

    assert SECRET not in everything_shown_by(caught.value)


@pytest.mark.parametrize("wrong", SECRETS_IN_THE_WRONG_PLACE)
def test_an_error_of_the_users_own_settings_shows_no_secret(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"transport": wrong})

    assert SECRET not in everything_shown_by(caught.value)


def test_an_error_of_the_environment_shows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_PROXY", f"ftp://user:{SECRET}@proxy.example:1")
    with pytest.raises(ValidationError) as caught:
        load_config()

    assert SECRET not in everything_shown_by(caught.value)


# --- loading


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_without_file_and_environment_there_are_the_defaults() -> None:
    assert load_config() == TransportConfig()


@pytest.mark.parametrize("as_text", [False, True])
def test_a_file_is_read_at_its_top_level(tmp_path: Path, as_text: bool) -> None:
    path = write(
        tmp_path / "trunkline.toml",
        'backend = "httpx"\nhttp2 = true\n[limits]\nmax_connections = 5\n[timeouts]\nread = 2.5\n',
    )

    config = load_config(str(path) if as_text else path)

    assert config == TransportConfig(
        backend="httpx", http2=True, limits=Limits(max_connections=5), timeouts=Timeouts(read=2.5)
    )


def test_a_pyproject_is_read_at_its_table(tmp_path: Path) -> None:
    path = write(
        tmp_path / "pyproject.toml",
        '[project]\nname = "app"\n[tool.trunkline]\nhttp2 = true\n[tool.trunkline.dns]\nttl = 5\n',
    )

    assert load_config(path) == TransportConfig(http2=True, dns=Dns(ttl=5))


@pytest.mark.parametrize("text", ["", "[project]\nname = 'app'\n", "[tool.ruff]\n"])
def test_a_pyproject_without_the_table_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"\[tool\.trunkline\]"):
        load_config(write(tmp_path / "pyproject.toml", text))


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.toml"):
        load_config(tmp_path / "missing.toml")


def test_a_file_that_is_no_toml_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line 1"):
        load_config(write(tmp_path / "trunkline.toml", "backend: httpx\n"))


def test_a_wrong_key_of_a_file_is_named_with_where_it_was_read(tmp_path: Path) -> None:
    path = write(tmp_path / "trunkline.toml", "[limits]\nmax_conections = 5\n")

    with pytest.raises(ValidationError, match=r"limits\.max_conections") as caught:
        load_config(path)

    assert any("trunkline.toml" in note for note in caught.value.__notes__)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("TRUNKLINE_BACKEND", "httpx", TransportConfig(backend="httpx")),
        ("trunkline_backend", "httpx", TransportConfig(backend="httpx")),
        ("TRUNKLINE_HTTP2", "true", TransportConfig(http2=True)),
        ("TRUNKLINE_HTTP2", "1", TransportConfig(http2=True)),
        ("TRUNKLINE_UDS", "/run/api.sock", TransportConfig(uds=Path("/run/api.sock"))),
        ("TRUNKLINE_PROXY", "http://p.example:1", TransportConfig(proxy="http://p.example:1")),
        ("TRUNKLINE_PROXY", "none", TransportConfig(proxy=None)),
        (
            "TRUNKLINE_LIMITS__MAX_CONNECTIONS",
            "5",
            TransportConfig(limits=Limits(max_connections=5)),
        ),
        (
            "TRUNKLINE_LIMITS__MAX_CONNECTIONS",
            "none",
            TransportConfig(limits=Limits(max_connections=None)),
        ),
        ("TRUNKLINE_TIMEOUTS__TOTAL", "2.5", TransportConfig(timeouts=Timeouts(total=2.5))),
        ("TRUNKLINE_TIMEOUTS__READ", "none", TransportConfig(timeouts=Timeouts(read=None))),
        ("TRUNKLINE_DNS__RESOLVER", "system", TransportConfig(dns=Dns(resolver="system"))),
        (
            "TRUNKLINE_DNS__NAMESERVERS",
            '["10.0.0.2", "10.0.0.3"]',
            TransportConfig(dns=Dns(nameservers=("10.0.0.2", "10.0.0.3"))),
        ),
        ("TRUNKLINE_TLS__VERIFY", "false", TransportConfig(tls=Tls(verify=False))),
        (
            "TRUNKLINE_LIMITS",
            '{"max_connections": 5, "max_waiting": null}',
            TransportConfig(limits=Limits(max_connections=5)),
        ),
    ],
)
def test_the_environment_sets_an_option(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: TransportConfig
) -> None:
    monkeypatch.setenv(name, value)

    assert load_config() == expected


def test_a_password_of_digits_stays_text(monkeypatch: pytest.MonkeyPatch, pem: Path) -> None:
    monkeypatch.setenv("TRUNKLINE_TLS__CLIENT_CERT", str(pem))
    monkeypatch.setenv("TRUNKLINE_TLS__CLIENT_KEY_PASSWORD", "0123")

    password = load_config().tls.client_key_password

    assert password is not None
    assert password.get_secret_value() == "0123"


def test_the_environment_goes_over_the_file_key_by_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(
        tmp_path / "trunkline.toml",
        'backend = "httpx"\n[limits]\nmax_connections = 5\nmax_waiting = 6\n',
    )
    monkeypatch.setenv("TRUNKLINE_BACKEND", "aiohttp")
    monkeypatch.setenv("TRUNKLINE_LIMITS__MAX_CONNECTIONS", "7")
    monkeypatch.setenv("TRUNKLINE_DNS__TTL", "8")

    config = load_config(path)

    assert config == TransportConfig(
        backend="aiohttp", limits=Limits(max_connections=7, max_waiting=6), dns=Dns(ttl=8)
    )


def test_none_in_the_environment_lifts_a_limit_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "trunkline.toml", "[limits]\nmax_connections = 5\n")
    monkeypatch.setenv("TRUNKLINE_LIMITS__MAX_CONNECTIONS", "none")

    assert load_config(path).limits.max_connections is None


@pytest.mark.parametrize(
    "name", ["TRUNKLINE_MAX_CONNECTIONS", "TRUNKLINE_LIMITS_MAX_CONNECTIONS", "TRUNKLINE_"]
)
def test_an_unknown_option_in_the_environment_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "5")

    with pytest.raises(ValueError, match=rf"{name} is no option.*TRUNKLINE_LIMITS"):
        load_config()


def test_an_unknown_nested_key_in_the_environment_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRUNKLINE_LIMITS__MAX_CONECTIONS", "5")

    with pytest.raises(ValidationError, match=r"limits\.max_conections") as caught:
        load_config()

    assert any("TRUNKLINE_*" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("value", ["{", "[1", "5 6", "limits"])
def test_a_table_in_the_environment_that_is_no_json_is_named(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("TRUNKLINE_LIMITS", value)

    with pytest.raises(ValueError, match="limits"):
        load_config()


def test_making_a_config_reads_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_BACKEND", "httpx")
    monkeypatch.setenv("BACKEND", "httpx")
    monkeypatch.setenv("HTTP2", "true")

    assert TransportConfig().backend == "auto"
    assert not TransportConfig().http2


def test_loading_leaves_the_environment_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_LIMITS__MAX_CONNECTIONS", "5")
    before = dict(os.environ)

    load_config()

    assert dict(os.environ) == before
