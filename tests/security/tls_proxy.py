"""A proxy with TLS in front of a server, as nginx or Caddy would be, which also serves empty pages of other sites."""

from __future__ import annotations

import asyncio
import datetime as dt
import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_EMPTY_PAGE = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@contextmanager
def tls_proxy(port: int, name: str, folder: Path) -> Iterator[int]:
    """Pass requests to `name` on to `port` of this machine, one a connection; answer others with an empty page.

    Yields the port of the proxy.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_make_certificate(folder))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            await _answer(reader, writer, port, name)
        writer.close()

    server = asyncio.run_coroutine_threadsafe(asyncio.start_server(answer, "127.0.0.1", 0, ssl=context), loop).result()
    yield server.sockets[0].getsockname()[1]
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)


def _make_certificate(folder: Path) -> Path:
    """Write a key and a certificate that it signs itself into one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now).not_valid_after(now + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    file = folder / "key-and-certificate.pem"
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file.write_bytes(private + certificate.public_bytes(pem))
    return file


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int, name: str) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).removesuffix(b"\r\n\r\n")
    if not re.search(rb"\r\nhost: " + name.encode() + rb":", head, re.IGNORECASE):
        writer.write(_EMPTY_PAGE)
        await writer.drain()
        return
    head = re.sub(rb"\r\nconnection: [^\r]*", b"", head, flags=re.IGNORECASE)
    from_server, to_server = await asyncio.open_connection("127.0.0.1", port)
    to_server.write(head + b"\r\nConnection: close\r\nX-Forwarded-Proto: https\r\n\r\n")
    copies = [asyncio.create_task(_copy(reader, to_server)), asyncio.create_task(_copy(from_server, writer))]
    await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
    to_server.close()
    for copy in copies:
        copy.cancel()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
