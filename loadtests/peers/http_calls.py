"""HTTP/1.1 over loopback with as little as possible between the caller and the socket.

A pool of at most `connections_max` kept-open connections; a further caller waits for a free one. It owns the
connections, and a call that is cancelled closes its own.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class HttpError(Exception):
    """The server gave a status other than 200, or hung up."""


class HttpCalls:
    """JSON in, JSON or server-sent events out."""

    def __init__(self, host: str, port: int, connections_max: int) -> None:
        self._host = host
        self._port = port
        self._free: list[Connection] = []
        self._room = asyncio.Semaphore(connections_max)

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """One answer. Raises HttpError."""
        async with self._room:
            connection, keep, length = await self._begin(path, body)
            complete = False
            try:
                text = await connection[0].readexactly(length) if length >= 0 else await _chunks(connection[0])
                complete = True
            finally:
                self._end(connection, keep and complete)
        return dict(json.loads(text))

    async def stream(self, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The events of a stream as they arrive. Raises HttpError."""
        async with self._room:
            connection, keep, length = await self._begin(path, body)
            complete = False
            try:
                if length >= 0:
                    raise HttpError("not a stream")
                rest = b""
                while chunk := await _chunk(connection[0]):
                    rest += chunk
                    while (end := rest.find(b"\n\n")) >= 0:
                        line, rest = rest[:end], rest[end + 2 :]
                        if line.startswith(b"data: ") and line != b"data: [DONE]":
                            yield json.loads(line[6:])
                complete = True
            finally:
                self._end(connection, keep and complete)

    async def get(self, path: str) -> bool:
        """Returns True when the server answers 200; False for another status and when no server listens."""
        try:
            reader, writer = await asyncio.open_connection(self._host, self._port)
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nHost: {self._host}\r\nConnection: close\r\n\r\n".encode())
                return b" 200 " in await reader.readline()
            finally:
                writer.close()
        except OSError:
            return False

    async def close(self) -> None:
        """Closes every connection."""
        while self._free:
            self._free.pop()[1].close()

    async def _begin(self, path: str, body: dict[str, Any]) -> tuple[Connection, bool, int]:
        """Sends a request. Returns (connection, stays open, length of the body or -1 for chunks)."""
        payload = json.dumps(body, separators=(",", ":")).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(payload)}\r\n\r\n"
        ).encode()
        while True:
            kept = bool(self._free)
            connection = self._free.pop() if kept else await asyncio.open_connection(self._host, self._port)
            try:
                connection[1].write(head + payload)
                status = await connection[0].readline()
                if status:
                    break
            except OSError:
                status = b""
            except BaseException:
                connection[1].close()
                raise
            connection[1].close()
            # The server may have closed a kept connection meanwhile. Then the next kept one is tried; a new one is not
            # retried.
            if not kept:
                raise HttpError("the server hung up")
        try:
            keep, length = await _headers(connection[0])
            if b" 200 " not in status:
                text = await connection[0].readexactly(length) if length >= 0 else b""
                raise HttpError(f"{status.decode().strip()}: {text[:400].decode('utf-8', 'replace')}")
        except BaseException:
            connection[1].close()
            raise
        return connection, keep, length

    def _end(self, connection: Connection, keep: bool) -> None:
        if keep:
            self._free.append(connection)
        else:
            connection[1].close()


async def _headers(reader: asyncio.StreamReader) -> tuple[bool, int]:
    """Returns (connection stays open, length of the body or -1)."""
    keep, length = True, -1
    while line := (await reader.readline()).strip():
        name, _, value = line.lower().partition(b":")
        if name == b"content-length":
            length = int(value)
        elif name == b"connection" and value.strip() == b"close":
            keep = False
    return keep, length


async def _chunk(reader: asyncio.StreamReader) -> bytes:
    """One chunk of a chunked body; empty at its end."""
    size = int((await reader.readline()).strip() or b"0", 16)
    text = await reader.readexactly(size + 2)
    return text[:size]


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    """A whole chunked body."""
    parts = []
    while part := await _chunk(reader):
        parts.append(part)
    return b"".join(parts)
