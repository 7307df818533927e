"""Leads TensorFlow's client of Google Cloud Storage to a server on loopback.

TensorFlow knows only https://www.googleapis.com. So it is told of a proxy, which answers for that
host with a certificate of its own, and passes requests on to fake-gcs-server.
"""

import asyncio
import datetime
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import object_servers
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from object_servers import environment

_HOSTS = ("www.googleapis.com", "storage.googleapis.com")


@contextmanager
def served(directory: Path) -> Iterator[None]:
    """Serves an empty bucket to TensorFlow and to TensorStore."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_certificate(directory))
    with object_servers.gcs(directory / "gcs") as gcs:
        port = int(gcs["STORAGE_EMULATOR_HOST"].rpartition(":")[2])

        async def answer(reader, writer):
            await reader.readuntil(b"\r\n\r\n")  # CONNECT www.googleapis.com:443
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            await writer.start_tls(context)
            server = await asyncio.open_connection("127.0.0.1", port)
            # fake-gcs-server does not know this encoding, and answers as if it spoke http.
            await asyncio.gather(
                _pass(reader, server[1], b"Transfer-Encoding: identity\r\n", b""),
                _pass(server[0], writer, b"Location: http://www", b"Location: https://www"),
            )

        loop = asyncio.new_event_loop()
        proxy = loop.run_until_complete(asyncio.start_server(answer, "127.0.0.1", 0))
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        try:
            with environment(
                https_proxy=f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}",
                CURL_CA_BUNDLE=str(directory / "certificate.pem"),
                GOOGLE_AUTH_TOKEN_FOR_TESTING="no token",
                NO_GCE_CHECK="true",
                **gcs,
            ):
                yield
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            proxy.close()
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            if tasks:
                loop.run_until_complete(asyncio.wait(tasks))
            loop.close()


async def _pass(reader, writer, replace: bytes, by: bytes) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data.replace(replace, by))
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


def _certificate(directory: Path) -> Path:
    """A file with a certificate for Google's hosts, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    certificate = (
        builder.not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName(list(map(x509.DNSName, _HOSTS))), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    path = directory / "certificate.pem"
    pem, no_password = serialization.Encoding.PEM, serialization.NoEncryption()
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, no_password)
    path.write_bytes(certificate.public_bytes(pem) + private)
    return path
