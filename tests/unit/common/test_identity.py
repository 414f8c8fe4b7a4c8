import base64
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from common.errors import GugusError
from common.identity.ca import CertificateAuthority, fingerprint, identity_of, key_to_pem, make_csr, new_key
from common.identity.credentials import Credentials
from common.identity.names import Identity, Role, any_of
from common.identity.store import Pki
from common.identity.tokens import JoinToken, hash_secret, secret_matches

CLUSTER_ID = "0123456789abcdef"
N1 = Identity(CLUSTER_ID, Role.NODE, "n1")


def test_identity_round_trips_through_its_uri() -> None:
    assert Identity.parse(N1.uri) == N1
    assert N1.uri == f"gugus://{CLUSTER_ID}/node/n1"


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "gugus://c/node/",
        "gugus://c/node/N1",
        "gugus://c/root/n1",
        "gugus://c/node/n1/",
        "gugus://c/node/n1\n",
        "gugus://c/node/n1/../n2",
        "gugus:///node/n1",
        "spiffe://c/node/n1",
        "gugus://c/node/-n1",
        "gugus://c/node/" + "a" * 64,
        "gugus://c/node/n１",
    ],
)
def test_identity_of_another_form_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="is not of the form"):
        Identity.parse(uri)


def test_host_certificate_carries_identity_names_and_addresses(ca: CertificateAuthority) -> None:
    credentials = ca.issue(N1, addresses=["10.0.0.1", "n1.example.org"])
    certificate = x509.load_pem_x509_certificate(credentials.cert_pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert credentials.identity == N1
    assert names.get_values_for_type(x509.DNSName) == [
        f"n1.node.{CLUSTER_ID}.gugus", any_of(Role.NODE, CLUSTER_ID), "n1", "n1.example.org",
    ]  # fmt: skip
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.1"]
    assert certificate.not_valid_before_utc < datetime.now(UTC) - timedelta(minutes=55)
    assert timedelta(days=364) < credentials.not_after - datetime.now(UTC) <= timedelta(days=365)
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(ca.cert_pem))
    assert credentials.key_pem.decode() not in repr(credentials)


def test_signing_request_cannot_choose_its_identity(ca: CertificateAuthority) -> None:
    wish = Identity(CLUSTER_ID, Role.OPERATOR, "root")
    assert identity_of(ca.sign_csr(make_csr(wish, new_key()), N1)) == N1


def test_bad_signing_requests_are_refused(ca: CertificateAuthority) -> None:
    good = make_csr(N1, new_key())
    der = bytearray(base64.b64decode(b"".join(good.splitlines()[1:-1])))
    der[-1] ^= 1
    forged = b"-----BEGIN CERTIFICATE REQUEST-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE REQUEST-----\n"
    for csr in (b"", b"nonsense", good[:100], forged):
        with pytest.raises(GugusError) as caught:
            ca.sign_csr(csr, N1)
        assert caught.value.field == "csr_pem"


def test_ca_signs_for_its_own_cluster_only(ca: CertificateAuthority) -> None:
    with pytest.raises(ValueError, match="does not sign for"):
        ca.issue(Identity("other", Role.NODE, "n1"))


def test_longest_names_fit_a_certificate(ca: CertificateAuthority) -> None:
    longest = Identity(CLUSTER_ID, Role.OPERATOR, "a" * 63)
    assert ca.issue(longest).identity == longest


def test_ca_reads_back_and_refuses_a_key_that_is_not_its_own(ca: CertificateAuthority) -> None:
    again = CertificateAuthority.load(ca.cert_pem, ca.key_pem)
    assert again.fingerprint == ca.fingerprint == fingerprint(ca.cert_pem)
    with pytest.raises(ValueError, match="does not belong"):
        CertificateAuthority.load(ca.cert_pem, key_to_pem(new_key()))


# Tokens


def token(**changes: Any) -> JoinToken:
    made = JoinToken.new(["10.0.0.1:7446"], "lab", CLUSTER_ID, "ab" * 32, valid_for_s=600, now_s=1_000_000)
    return JoinToken(**{**{f: getattr(made, f) for f in made.__slots__}, **changes})


def encode(content: Any) -> str:
    payload = content if isinstance(content, bytes) else json.dumps(content).encode()
    return "gugus1." + base64.urlsafe_b64encode(hashlib.sha256(payload).digest()[:4] + payload).decode()


def refusal(text: str) -> GugusError:
    with pytest.raises(GugusError) as caught:
        JoinToken.parse(text)
    assert caught.value.reason == "TOKEN_INVALID"
    return caught.value


def test_token_round_trips_even_when_a_terminal_wrapped_it() -> None:
    made = token()
    text = made.text()
    assert JoinToken.parse(text) == made
    assert JoinToken.parse(f"  {text[:40]}\n{text[40:]}\n") == made


def test_token_hides_its_secret_and_the_manager_needs_only_the_hash() -> None:
    made = token()
    assert repr(made.secret) not in repr(made)
    assert secret_matches(made.secret, hash_secret(made.secret))
    assert not secret_matches(b"x" * 32, hash_secret(made.secret))


def test_expired_token_says_when_and_what_to_do() -> None:
    made = token()
    assert not made.expired(1_000_599)
    assert made.expired(1_000_600)
    with pytest.raises(GugusError, match="expired at 1970-01-12") as caught:
        made.check_expiry(1_000_700)
    assert caught.value.reason == "TOKEN_EXPIRED"


def hostile_tokens() -> Iterator[str]:
    good = token().text()
    yield from ("", "gugus1.", "gugus2." + good[7:], good[:-5], good + "A", good.replace("gugus1.", "gugus1.A"))
    yield from ("gugus1." + "A" * 10_000, "gugus1.%00", "gugus1.é", "gugus1.../../etc/passwd")
    yield encode(b"\xff\xfe")
    yield encode(b"[" * 3000)
    contents: list[Any] = [None, 1, [], "x", {}, {"endpoints": []}]
    for content in contents:
        yield encode(content)
    parts = json.loads(base64.urlsafe_b64decode(good[7:] + "=" * (-len(good[7:]) % 4))[4:])
    for key, value in [
        ("endpoints", []), ("endpoints", "10.0.0.1:7446"), ("endpoints", ["nowhere"]), ("endpoints", [7]),
        ("cluster", 7), ("cluster_id", "../x"), ("id", ""), ("secret", "AA=="), ("secret", None), ("ca", "00"),
        ("expires", "soon"), ("expires", 1e99), ("expires", True), ("expires", 10**30),
    ]:  # fmt: skip
        yield encode({**parts, key: value})


@pytest.mark.parametrize("text", list(hostile_tokens()))
def test_hostile_token_is_refused_without_repeating_it(text: str) -> None:
    message = str(refusal(text))
    assert "gugus cluster token create" in message
    assert len(text) < 12 or text[8:] not in message


@given(st.integers(7, 200), st.sampled_from("ABab01-_"))
def test_no_single_mangled_character_goes_unnoticed(position: int, char: str) -> None:
    text = TEXT
    mangled = text[:position] + char + text[position + 1 :]
    if mangled != text:
        refusal(mangled)


TEXT = token().text()


@given(st.text(max_size=200))
def test_no_text_breaks_the_parser(text: str) -> None:
    refusal(text)
    refusal("gugus1." + text)


# The folder


def test_keys_are_private_and_reading_gives_back_what_was_written(
    tmp_path: Path, ca: CertificateAuthority, node: Credentials
) -> None:
    pki = Pki(tmp_path / "pki")
    pki.save_ca(ca)
    pki.save(Role.NODE, node)
    pki.save(Role.NODE, node)
    assert pki.has(Role.NODE)
    assert not pki.has(Role.MANAGER)
    assert pki.credentials(Role.NODE) == node
    assert pki.load_ca().fingerprint == ca.fingerprint
    for path in (pki.ca_key, pki.key(Role.NODE)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_identity_of_a_host_is_never_overwritten_silently(
    tmp_path: Path, ca: CertificateAuthority, foreign_ca: CertificateAuthority, node: Credentials
) -> None:
    pki = Pki(tmp_path)
    pki.save(Role.NODE, node)
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    with pytest.raises(GugusError, match="already exists") as caught:
        pki.save_ca(foreign_ca)
    assert caught.value.reason == "PKI_EXISTS"
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before
    pki.save(Role.NODE, ca.issue(N1), replace=True)
    assert pki.credentials(Role.NODE).identity == N1


def test_missing_or_wrong_files_are_named(tmp_path: Path, ca: CertificateAuthority, node: Credentials) -> None:
    pki = Pki(tmp_path)
    with pytest.raises(GugusError, match=r"ca\.crt does not exist"):
        pki.credentials(Role.NODE)
    pki.save(Role.MANAGER, node)
    with pytest.raises(GugusError, match="speaks for node n2, not for a manager"):
        pki.credentials(Role.MANAGER)
    pki.crt(Role.MANAGER).write_bytes(b"rubbish")
    with pytest.raises(GugusError, match=r"manager\.crt cannot be used"):
        pki.credentials(Role.MANAGER)
    pki.ca_key.write_bytes(b"rubbish")
    with pytest.raises(GugusError, match=r"ca\.key cannot be used"):
        pki.load_ca()
