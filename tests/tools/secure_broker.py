"""A Kafka broker with TLS, SCRAM and ACLs for the tests, and the certificates that it shows: made here, valid for hours."""

import ipaddress
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tools.agent_tools import PATIENCE
from tools.broker import Broker, free_ports

__all__ = ["PASSWORD", "SecureBroker"]

LISTENERS = ("TLS", "EXPIRED", "ELSEWHERE", "LOGIN", "RENEWED")
PASSWORD = "correct-horse-7731"  # of each user; no message may contain it
MECHANISMS = {"SCRAM-SHA-256": ScramMechanism.SCRAM_SHA_256, "SCRAM-SHA-512": ScramMechanism.SCRAM_SHA_512}
KINDS = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "cluster": ResourceType.BROKER,
    "transactional-id": ResourceType.TRANSACTIONAL_ID,
}


class Authority:
    """Signs certificates of servers; `pem` is its own."""

    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = self._builder(self._name, timedelta(hours=-1), timedelta(hours=6), self._key.public_key())
        made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.pem = made.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def _builder(
        self, subject: x509.Name, start: timedelta, end: timedelta, key: ec.EllipticCurvePublicKey
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        made = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(key)
        made = made.serial_number(x509.random_serial_number())
        return made.not_valid_before(now + start).not_valid_after(now + end)

    def server(self, *names: x509.GeneralName, hours: float = 6) -> bytes:
        """Key and certificate of a server with these names, valid until then; one of a negative time has expired."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kafka")])
        made = self._builder(subject, timedelta(hours=-2), timedelta(hours=hours), key.public_key())
        made = made.add_extension(x509.SubjectAlternativeName(names), critical=False)
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return secret + made.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM) + self.pem


class SecureBroker(Broker):
    """Beside the plain listener (`url`), whose users may do all, it has listeners with TLS.

    TLS shows a good certificate, EXPIRED and ELSEWHERE bad ones; LOGIN wants a SCRAM user, who may do what ACLs allow; RENEWED too,
    and wants the login again each second or so.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.at = dict(zip(LISTENERS, free_ports(len(LISTENERS)), strict=True))
        authority, here = Authority("our CA"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        servers = {
            "TLS": authority.server(here),
            "EXPIRED": authority.server(here, hours=-1),
            "ELSEWHERE": authority.server(x509.DNSName("kafka.example.org")),
            "LOGIN": authority.server(here),
            "RENEWED": authority.server(here),
        }
        self.ca, self.other_ca = folder / "ca.pem", folder / "other-ca.pem"
        self.ca.write_bytes(authority.pem)
        self.other_ca.write_bytes(Authority("another CA").pem)
        for name, pem in servers.items():
            (folder / f"{name}.pem").write_bytes(pem)
        (folder / "more.properties").write_text("\n".join(self._properties(folder)))
        self._admin: Any = None

    def stop(self) -> None:
        self._admin = None  # its client would complain of the broker that is gone
        super().stop()

    def _properties(self, folder: Path) -> Sequence[str]:
        plain, controller = self._ports
        listeners = [
            f"PLAINTEXT://127.0.0.1:{plain}",
            *(f"{name}://127.0.0.1:{port}" for name, port in self.at.items()),
        ]
        protocols = ["PLAINTEXT:PLAINTEXT", "CONTROLLER:PLAINTEXT", "TLS:SSL", "EXPIRED:SSL", "ELSEWHERE:SSL"]
        module = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        return [
            f"listeners={','.join(listeners)},CONTROLLER://127.0.0.1:{controller}",
            f"advertised.listeners={','.join(listeners)}",
            f"listener.security.protocol.map={','.join(protocols)},LOGIN:SASL_SSL,RENEWED:SASL_SSL",
            "inter.broker.listener.name=PLAINTEXT",
            "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users=User:ANONYMOUS",
            "allow.everyone.if.no.acl.found=false",
            *(f"listener.name.{name}.sasl.enabled.mechanisms={','.join(MECHANISMS)}" for name in ("login", "renewed")),
            *(
                f"listener.name.{name}.{mechanism.lower()}.sasl.jaas.config={module}"
                for name in ("login", "renewed")
                for mechanism in MECHANISMS
            ),
            *(f"listener.name.renewed.{name.lower()}.connections.max.reauth.ms=1500" for name in MECHANISMS),
            "listener.name.renewed.connections.max.reauth.ms=1500",
            *(f"listener.name.{name.lower()}.ssl.keystore.type=PEM" for name in LISTENERS),
            *(f"listener.name.{name.lower()}.ssl.keystore.location={folder}/{name}.pem" for name in LISTENERS),
        ]

    def url_of(self, listener: str) -> str:
        return f"kafka://127.0.0.1:{self.at[listener]}"

    def tls(self) -> dict[str, Any]:
        return {"security.protocol": "SSL", "ssl.ca.location": str(self.ca)}

    def login(self, user: str, password: str = PASSWORD, mechanism: str = "SCRAM-SHA-512") -> dict[str, Any]:
        own = {"security.protocol": "SASL_SSL", "sasl.mechanism": mechanism}
        return {**self.tls(), **own, "sasl.username": user, "sasl.password": password}

    @property
    def admin(self) -> Any:
        if self._admin is None:
            self._admin = AdminClient({"bootstrap.servers": self.url.removeprefix("kafka://")})
        return self._admin

    def add_user(self, name: str, password: str = PASSWORD) -> None:
        """Makes a user, or gives one another password."""
        for mechanism in MECHANISMS.values():  # one request for each: a user may stand only once in a request
            made = UserScramCredentialUpsertion(name, ScramCredentialInfo(mechanism, 4096), password.encode())
            self._done(self.admin.alter_user_scram_credentials([made]))

    def _acl(self, make: Callable[..., Any], user: str, kind: str, name: str, operation: str) -> Any:
        # librdkafka calls the cluster a broker
        pattern = ResourcePatternType.PREFIXED if name.endswith("*") and name != "*" else ResourcePatternType.LITERAL
        resource = "kafka-cluster" if kind == "cluster" else name.rstrip("*") if name != "*" else name
        permission = AclPermissionType.ALLOW
        return make(KINDS[kind], resource, pattern, f"User:{user}", "*", AclOperation[operation.upper()], permission)

    def allow(self, user: str, kind: str, name: str, *operations: str) -> None:
        """As `kafka-acls --add --allow-principal User:user`; a name that ends with `*` is a prefix."""
        self._done(self.admin.create_acls([self._acl(AclBinding, user, kind, name, each) for each in operations]))
        self._wait_for_acls(user, kind, name, operations, True)

    def forbid(self, user: str, kind: str, name: str, *operations: str) -> None:
        """Takes away what `allow` gave."""
        self._done(self.admin.delete_acls([self._acl(AclBindingFilter, user, kind, name, each) for each in operations]))
        self._wait_for_acls(user, kind, name, operations, False)

    def _wait_for_acls(self, user: str, kind: str, name: str, operations: Sequence[str], there: bool) -> None:
        """Until the broker goes by them, which is a moment after the controller has taken them."""
        limit = time.monotonic() + PATIENCE
        for each in operations:
            asked = self._acl(AclBindingFilter, user, kind, name, each)
            while bool(self.admin.describe_acls(asked).result(60)) is not there:
                assert time.monotonic() < limit, f"the rights of {user} for {kind} {name} do not change"
                time.sleep(0.02)

    def _done(self, outcome: dict[Any, Any]) -> None:
        try:
            for each in outcome.values():
                each.result(60)
        except KafkaException as error:
            raise RuntimeError(f"the secure broker refuses: {error}") from error
