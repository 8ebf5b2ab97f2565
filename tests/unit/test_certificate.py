"""When certificates are good, read from their bytes."""

from __future__ import annotations

import time
from base64 import b64encode
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvatlas.common.certificate import Validity, read_validity
from tests.fakes.authority import LOCALHOST, Authority, openssl

DAY_S = 86_400.0


def pem(der: bytes) -> bytes:
    """Wrap bytes as a certificate."""
    text = b64encode(der)
    return b"-----BEGIN CERTIFICATE-----\n" + text + b"\n-----END CERTIFICATE-----\n"


def value(tag: int, *content: bytes) -> bytes:
    """Write a value in DER, with a long length where it needs one."""
    whole = b"".join(content)
    size = len(whole)
    length = bytes([size]) if size < 0x80 else bytes([0x82]) + size.to_bytes(2, "big")
    return bytes([tag]) + length + whole


def certificate(first: bytes, last: bytes, *, version: bool = True, padding: int = 0) -> bytes:
    """Write as much of a certificate as is read."""
    fields = [value(0x02, b"1"), value(0x30), value(0x30, bytes(padding))]
    start = [value(0xA0, value(0x02, b"\2"))] if version else []
    return pem(value(0x30, value(0x30, *start, *fields, value(0x30, first, last))))


def test_what_openssl_made_is_read(tmp_path: Path) -> None:
    """Of a chain the first one counts, behind whatever text stands before it."""
    authority = Authority(tmp_path, "ours")
    cert, _ = authority.issue("server", LOCALHOST, days=5)
    chain = b"Subject: server\n" + cert.read_bytes() + authority.ca.read_bytes()
    found = read_validity(chain)
    assert abs(found.not_before_s - time.time()) < 60
    assert found.not_after_s - found.not_before_s == 5 * DAY_S


def test_a_long_life_is_read(tmp_path: Path) -> None:
    """From 2050 on years have four digits."""
    key, cert = tmp_path / "key", tmp_path / "cert"
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=a")
    openssl("req", "-x509", *new, "-days", "36500", "-keyout", key, "-out", cert)
    found = read_validity(cert.read_bytes())
    assert found.not_after_s - found.not_before_s == 36_500 * DAY_S


@pytest.mark.parametrize("version", [True, False])
@pytest.mark.parametrize("padding", [0, 300])
def test_both_ways_to_write_a_time(version: bool, padding: int) -> None:  # noqa: FBT001
    """Two digits of the year mean 1950 to 2049."""
    first, last = value(0x17, b"700101000001Z"), value(0x18, b"20491231235959Z")
    found = read_validity(certificate(first, last, version=version, padding=padding))
    assert found == Validity(1.0, 2_524_607_999.0)
    first, last = value(0x18, b"19500101000000Z"), value(0x17, b"491231235959Z")
    assert read_validity(certificate(first, last)) == Validity(-631_152_000.0, 2_524_607_999.0)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"-----BEGIN CERTIFICATE-----\nMA==\n",
        b"-----BEGIN CERTIFICATE-----\n?\n-----END CERTIFICATE-----\n",
        pem(b""),
        pem(b"\x02\x01\x00"),
        pem(b"\x30\x80\x00\x00"),
        pem(b"\x30\x89" + bytes(9)),
        pem(b"\x30\x05\x30"),
        certificate(value(0x04, b"700101000001Z"), value(0x17, b"700101000001Z")),
        certificate(value(0x17, b"701301000001Z"), value(0x17, b"700101000001Z")),
        certificate(value(0x17, b"\xff"), value(0x17, b"700101000001Z")),
    ],
)
def test_what_is_none_is_an_error(content: bytes) -> None:
    """The operator's; the setting and the file are named by the caller."""
    with pytest.raises(ValueError, match=r".*"):
        read_validity(content)


@given(st.binary(max_size=200))
def test_any_bytes_end_in_an_error_or_an_answer(der: bytes) -> None:
    """Nothing but ValueError comes out."""
    try:
        read_validity(pem(der))
    except ValueError:
        return
