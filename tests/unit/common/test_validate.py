from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import validate
from common.errors import GugusError


@pytest.mark.parametrize(
    ("check", "good"),
    [
        (validate.name, ["web", "web-1", "1", "a" * 63]),
        (validate.cidr, ["10.20.0.0/24", "0.0.0.0/0", "fd00::/64"]),
        (validate.ip, ["10.0.0.1", "fd00::1"]),
        (validate.mac, ["52:54:00:12:34:56", "52:54:00:AB:cd:ef"]),
        (validate.bridge_name, ["gugus0", "br_lan.100", "a" * 15]),
        (validate.endpoint, ["10.0.0.1:7443", "[fd00::1]:7443", "n1:1"]),
    ],
)
def test_good_values_pass(check: Callable[[str], str], good: list[str]) -> None:
    assert [check(value) for value in good] == [""] * len(good)


@pytest.mark.parametrize(
    ("check", "bad"),
    [
        (validate.name, ["", "Web", "-web", "web-", "a.b", "a" * 64, "web\n", "wéb", "a/b", ".."]),
        (validate.cidr, ["", "10.20.0.0", "10.20.0.5/24", "10.20.0.0/33", "x/24", "10.20.0.0/24\n"]),
        (validate.ip, ["", "10.0.0", "10.0.0.256", "10.0.0.1/24", "host"]),
        (validate.mac, ["", "52:54:00:12:34", "01:00:5e:00:00:01", "00:00:00:00:00:00", "525400123456"]),
        (validate.bridge_name, ["", "a" * 16, "a b", "a/b", "..", "-x", "lo", "all", "br;reboot"]),
        (validate.endpoint, ["", "n1", "n1:0", "fd00::1:7443x"]),
    ],
)
def test_bad_values_are_told_what_is_right(check: Callable[[str], str], bad: list[str]) -> None:
    for value in bad:
        message = check(value)
        assert message, value
        assert message.isprintable()


def test_network_with_host_bits_is_answered_by_the_network() -> None:
    assert validate.cidr("10.20.0.5/24") == '"10.20.0.5/24" has host bits set; the network is 10.20.0.0/24'


def test_require_names_the_field() -> None:
    validate.require("name", validate.name("web"))
    with pytest.raises(GugusError, match=r'^name: "Web" is not a name') as caught:
        validate.require("name", validate.name("Web"))
    assert caught.value.field == "name"


@given(st.text(max_size=200))
def test_no_text_breaks_a_check(text: str) -> None:
    for check in (validate.name, validate.cidr, validate.ip, validate.mac, validate.bridge_name, validate.endpoint):
        assert isinstance(check(text), str)
