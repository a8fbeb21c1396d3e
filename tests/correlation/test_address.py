from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import pytest
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection

from celery_defer.correlation import Registry
from celery_defer.correlation.address import Address
from celery_defer.errors import ConfigError
from tests.correlation.waiting import NAMESPACE

if TYPE_CHECKING:
    from redis import Redis

    from celery_defer.testing import EmbeddedServer


@pytest.mark.parametrize(
    ("url", "kind", "options"),
    [
        ("redis://", Connection, {}),
        ("redis://localhost:6380/3", Connection, {"host": "localhost", "port": 6380, "db": 3}),
        ("redis://me:p%40ss@box//", Connection, {"host": "box", "username": "me", "password": "p@ss"}),
        ("redis://box?db=2&socket_timeout=2", Connection, {"db": 2, "socket_timeout": 2.0}),
        ("redis://[::1]:6379/1", Connection, {"host": "::1", "db": 1}),
        ("rediss://box/1?ssl_cert_reqs=CERT_NONE", SSLConnection, {"db": 1, "ssl_cert_reqs": "none"}),
        ("rediss://box?ssl_check_hostname=false", SSLConnection, {"ssl_check_hostname": False}),
        ("unix:///run/redis.sock?db=4", UnixDomainSocketConnection, {"path": "/run/redis.sock", "db": 4}),
        ("redis+socket:///run/redis.sock", UnixDomainSocketConnection, {"path": "/run/redis.sock"}),
        ("redis+socket:///run/r.sock?virtual_host=5", UnixDomainSocketConnection, {"path": "/run/r.sock", "db": 5}),
        ("redis+socket:///run/r.sock?virtual_host=/", UnixDomainSocketConnection, {"path": "/run/r.sock", "db": 0}),
        ("redis+socket://:p%40ss@/run/r.sock", UnixDomainSocketConnection, {"path": "/run/r.sock", "password": "p@ss"}),
    ],
)
def test_urls_of_celery_and_redis_py(url, kind, options):
    """What Celery takes for a broker and redis-py for a client is understood, with short timeouts unless given."""
    address = Address.of(url)
    assert address.kind is kind
    assert options.items() <= address.options.items()
    assert address.options["socket_connect_timeout"] == 0.25
    assert address.options["socket_timeout"] == options.get("socket_timeout", 0.5)
    assert "p@ss" not in str(address)


def test_certificates_are_checked_unless_told_otherwise():
    """`rediss` without options asks for a certificate."""
    assert Address.of("rediss://box").connection().cert_reqs == ssl.CERT_REQUIRED
    assert Address.of("rediss://box?ssl_cert_reqs=CERT_NONE").connection().cert_reqs == ssl.CERT_NONE


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("sentinel://a:26379;sentinel://b:26379", "Sentinels"),
        ("sentinel://:secret@a:26379/0", "the address of the primary"),
        ("redis://a:6379/0;redis://b:6379/0", "several servers"),
        ("amqp://guest:secret@localhost", "'amqp': give one such as redis://"),
        ("", "give one such as redis://"),
        ("redis+socket://", "names no socket"),
        ("redis://localhost/broker", "number of a database"),
        ("redis://:se/secret@localhost/0", "percent-encoded"),
        ("redis://:secret@localhost:port/0", "percent-encoded"),
        ("redis://localhost?db=first", "db"),
        ("redis://localhost?visibility=7", "visibility"),
        ("rediss://localhost?ssl_cert_reqs=maybe", "maybe"),
        ("redis+socket:///run/r.sock?virtual_host=a", "db"),
        (f"redis://{'a' * 70}.example", "label"),
    ],
)
def test_urls_that_cannot_be_used(url, told):
    """The error names the setting and what would do, and no password."""
    with pytest.raises(ConfigError, match="defer_redis_url") as caught:
        Registry(url, NAMESPACE)
    assert told in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_password_and_a_database_are_used(private: EmbeddedServer, client: Redis):
    """A server that asks for a password is used with it, and reported without it."""
    client.config_set("requirepass", "sec/ret")
    try:
        url = f"redis+socket://:sec%2Fret@{private.path}?virtual_host=9"
        registry, stranger = Registry(url, NAMESPACE), Registry(private.url(), NAMESPACE)
        assert registry.begin(1)
        assert registry.report() is None
        assert client.info("keyspace")["db9"]["keys"] == 256
        assert "can't be reached (Authentication required" in (stranger.report() or "")
        assert not stranger.begin(2)
        registry.close()
    finally:
        client.config_set("requirepass", "")
