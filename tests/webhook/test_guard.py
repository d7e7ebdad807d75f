"""Which addresses are public: IANA's registry, and the IPv4 addresses inside IPv6 ones."""

from __future__ import annotations

import pytest

from handlers.contract.errors import InvalidSetting
from handlers.webhook.call import read_secrets
from handlers.webhook.destinations import is_public


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "2606:4700::1111",
        "64:ff9b::808:808",
        "64:ff9b:1::808:808",
        "2002:808:808::1",
        "::ffff:8.8.8.8",
    ],
)
def test_public_addresses_and_those_that_hold_one_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *(
            "192.0.0.192",
            "192.0.0.9",
            "3fff::1",
            "10.0.0.1",
            "169.254.169.254",
            "100.64.0.1",
            "168.63.129.16",
        ),
        *("64:ff9b::a00:1", "64:ff9b:1::a9fe:a9fe", "2002:a00:1::1", "::ffff:10.0.0.1", "::1", "fe80::1"),
        *(
            "2001::1",
            "2001:db8::1",
            "fd00::1",
            "224.0.0.1",
            "255.255.255.255",
            "198.18.0.1",
            "5f00::1",
            "ff02::1",
            "fec0::1",
            "fd00:ec2::254",
            "::127.0.0.1",
            "::ffff:0:127.0.0.1",
            "100::1",
            "2002:7f00:1::1",
            "64:ff9b:1:fffe::a9fe:a9fe",
            "0.1.2.3",
        ),
    ],
)
def test_private_and_special_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    ("secret", "message"),
    [
        ("whsec_" + "A" * 31, "padding"),
        ("whsec_" + "-_" * 16, "URL-safe"),
        ("whsec_" + "!" * 32, "outside base64"),
        ("whsec_" + "A" * 8, "6 bytes"),
    ],
)
def test_an_invalid_secret_is_explained_without_being_shown(secret: str, message: str) -> None:
    with pytest.raises(InvalidSetting) as refused:
        read_secrets(secret, "WEBHOOK_SECRET_FILE")
    assert message in str(refused.value)
    assert secret not in str(refused.value)
