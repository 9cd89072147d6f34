"""Which addresses a stranger may send us to, and which URLs are taken for one."""

import ipaddress

import pytest

from app.egress import is_allowed, parse, without_query

PUBLIC = ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
PRIVATE = ["127.0.0.1", "127.9.9.9", "10.0.0.1", "172.16.0.1", "192.168.1.1", "::1", "fd12::1", "::ffff:127.0.0.1"]
NEVER = [
    "0.0.0.0", "100.64.0.1", "100.100.100.200", "168.63.129.16", "169.254.169.254", "192.0.0.192", "192.0.2.1",
    "192.88.99.1", "198.18.0.1", "203.0.113.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::8.8.8.8",
    "fe80::1", "fe80::1%1", "fec0::1", "ff02::1", "fd00:ec2::254", "100::1", "2001::1", "2001:db8::1",
    "2002:808:808::", "2002:7f00:1::", "3fff::1", "5f00::1", "4000::1", "64:ff9b:1::808:808", "64:ff9b::a9fe:a9fe",
    "::ffff:169.254.169.254", "::127.0.0.1",
]  # fmt: skip


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_allowed(address):
    assert is_allowed(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PRIVATE + NEVER + ["64:ff9b::a00:1", "64:ff9b::7f00:1"])
def test_an_address_of_our_own_networks_is_not(address):
    assert not is_allowed(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PRIVATE)
def test_a_setting_opens_private_addresses(address):
    assert is_allowed(ipaddress.ip_address(address), allow_private=True)


@pytest.mark.parametrize("address", NEVER)
def test_no_setting_opens_what_is_neither_public_nor_private(address):
    assert not is_allowed(ipaddress.ip_address(address), allow_private=True)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://example.com/", "https"),
        ("ftp://example.com/", "https"),
        ("example.com", "https"),
        ("https://", "no host"),
        ("https:///path", "no host"),
        ("https://user:password@example.com/", "password"),
        ("https://example.com@127.0.0.1/", "password"),
        ("https://example.com/#part", "fragment"),
        ("https://example.com:0/", "port"),
        ("https://example.com:99999/", "no URL"),
        ("https://example.com\\@127.0.0.1/", "plain"),
        ("https://exa mple.com/", "plain"),
        ("https://example.com/\r\nX-Header: 1", "plain"),
        ("https://exämple.com/", "plain"),
        ("https://example.com/" + 2000 * "x", "2000"),
        ("https://[::1", "no URL"),
        ("https://127.0.0.1/", "not public"),
        ("https://[::1]/", "not public"),
        ("https://[v1.example]/", "names no host"),
        ("https://[::ffff:10.0.0.1]/", "not public"),
        ("https://[fe80::1%25eth0]/", "not public"),
        ("https://169.254.169.254/latest/meta-data", "not public"),
        ("https://2130706433/", "no host"),
        ("https://0x7f000001/", "no host"),
        ("https://0177.0.0.1/", "no host"),
        ("https://127.1/", "no host"),
        ("https://127.0.0.1./", "no host"),
        ("https://a..b/", "no host"),
        ("https://" + 64 * "a" + ".example/", "no host"),
    ],
)
def test_a_url_that_is_not_called_is_refused_with_its_reason(url, reason):
    with pytest.raises(ValueError, match=reason):
        parse(url)


def test_a_refusal_does_not_repeat_the_url():
    for url in ("https://user:sesame@example.com/", "https://127.0.0.1/sesame", "ftp://sesame"):
        with pytest.raises(ValueError) as refusal:
            parse(url)
        assert "sesame" not in str(refusal.value)


@pytest.mark.parametrize(
    ("url", "authority", "path"),
    [
        ("https://example.com", "example.com", "/"),
        ("https://example.com:443/a?b=c%20d", "example.com", "/a?b=c%20d"),
        ("https://EXAMPLE.com:8443/?x", "example.com:8443", "/?x"),
        ("https://[2606:4700:4700::1111]:8443/", "[2606:4700:4700::1111]:8443", "/"),
        ("https://xn--exmple-cua.com/", "xn--exmple-cua.com", "/"),
    ],
)
def test_a_url_is_taken_apart_once(url, authority, path):
    target = parse(url)
    assert (target.authority, target.path) == (authority, path)


def test_a_shown_url_has_no_query():
    assert without_query("https://example.com/hook?token=sesame") == "https://example.com/hook"
