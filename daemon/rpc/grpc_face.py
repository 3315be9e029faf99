"""The gRPC face: adapts Calls to grpc.aio. The only file of the daemon that imports grpc.

Owns the server and the health service. A call that is cancelled on the wire closes its iterator in Calls at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import aclosing
from operator import attrgetter
from typing import Any

import grpc
import structlog
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from core.clock import now_ns
from core.errors import (
    CallerError,
    ConfigError,
    Draining,
    EngineFailed,
    NotAllowed,
    NotBuilt,
    NotFound,
    NotReady,
    NpcdError,
    Overloaded,
    Stale,
    StoreFailed,
    Unauthenticated,
)
from core.slices import Slicer
from daemon.config import ServeSettings, unix_path
from daemon.rpc.addresses import look
from daemon.rpc.callers import Caller, Token, caller_of, is_near
from daemon.rpc.calls import Calls
from daemon.rpc.credentials import Credentials
from daemon.rpc.status import starting
from daemon.starting import Start
from daemon.wire import is_large, parsing, writing
from npcd import __version__
from npcd.v1 import admin_pb2, dialogue_pb2, intents_pb2, npcs_pb2, story_pb2

log = structlog.get_logger("npcd.grpc")

SERVICES = tuple(
    file.services_by_name[name].full_name
    for file, name in (
        (npcs_pb2.DESCRIPTOR, "Npcs"),
        (intents_pb2.DESCRIPTOR, "Intents"),
        (dialogue_pb2.DESCRIPTOR, "Dialogue"),
        (story_pb2.DESCRIPTOR, "Story"),
        (admin_pb2.DESCRIPTOR, "Admin"),
    )
)
BUILT = SERVICES[:3] + SERVICES[4:]  # Story answers UNIMPLEMENTED and says so in its health

# The one table from our errors to gRPC status codes.
STATUS: tuple[tuple[type[NpcdError], grpc.StatusCode], ...] = (
    (NotFound, grpc.StatusCode.NOT_FOUND),
    (Stale, grpc.StatusCode.ABORTED),
    (CallerError, grpc.StatusCode.INVALID_ARGUMENT),
    (Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (Draining, grpc.StatusCode.UNAVAILABLE),
    (NotReady, grpc.StatusCode.UNAVAILABLE),
    (NotBuilt, grpc.StatusCode.UNIMPLEMENTED),
    (StoreFailed, grpc.StatusCode.UNAVAILABLE),
    (EngineFailed, grpc.StatusCode.INTERNAL),
    (Unauthenticated, grpc.StatusCode.UNAUTHENTICATED),
    (NotAllowed, grpc.StatusCode.PERMISSION_DENIED),
)
RETRY_KEY = "retry-after-ms"
RETRY_MAX_MS = 1_000  # a start may be over sooner than it expects
STATUS_CALL = "admin.status"
EPOCH_KEY = "daemon-epoch"  # with NOT_FOUND: it tells a daemon that deleted the name from one that lost its state
PING_MIN_MS = 1_000  # as docs/GUIDE.md promises
PING_STRIKES = 4  # pings that come sooner, before the connection is ended; data between them makes up for them

Unary = Callable[[Any, Any], Awaitable[Any]]
Stream = Callable[[Any, Any], AsyncGenerator[Any, None]]
Who = Callable[[grpc.aio.ServicerContext[Any, Any]], str | Caller]


class GrpcFace:
    """A server that answers UNAVAILABLE until `calls` is there, and Status with how far the start is."""

    def __init__(self, settings: ServeSettings, start: Start | None = None) -> None:
        self.calls: Calls | None = None
        self._start = start
        self._began_ns = now_ns()
        self._settings = settings
        self.credentials = Credentials(settings)
        self._tasks: set[asyncio.Task[None]] = set()
        self._health = health.aio.HealthServicer()
        self._server: grpc.aio.Server | None = None

    async def start(self) -> list[str]:
        """Starts to listen; the addresses with their real ports. Raises ConfigError when it cannot."""
        s = self._settings
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", s.message_bytes_max),
                ("grpc.max_send_message_length", s.message_bytes_max),
                ("grpc.so_reuseport", 0),
                # A game server that is gone is noticed within half a minute, also without FIN.
                ("grpc.keepalive_time_ms", 20_000),
                ("grpc.keepalive_timeout_ms", 10_000),
                # Clients may ping once a second, also without calls; half of that is for jitter. Without the next line
                # the interval would count for calls alone, and be two hours on an idle connection.
                ("grpc.http2.min_ping_interval_without_data_ms", PING_MIN_MS // 2),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.max_ping_strikes", PING_STRIKES),
            ]
        )
        self._add_services(server)
        await self.report(serving=False)
        credentials = self._credentials()
        addresses = []
        before = os.umask(0o177)  # a Unix socket is its owner's alone, from the moment it exists
        try:
            for address in s.listen:
                addresses.append(self._bind(server, address, credentials))
            await server.start()
        except ConfigError:
            await server.stop(None)
            raise
        finally:
            os.umask(before)
        self._server = server
        if s.tls_certificate or s.tokens_file:
            self._do(self.credentials.keep_up())
        return addresses

    def read_again(self) -> None:
        """Reads certificates, client CAs and tokens again: it was asked for by SIGHUP."""
        self._do(self.credentials.read_again())

    def _do(self, what: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def report(self, serving: bool) -> None:
        """Sets the answer of health checks."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", *BUILT):
            await self._health.set(service, status)
        await self._health.set(SERVICES[3], health_pb2.HealthCheckResponse.NOT_SERVING)

    async def stop(self, grace_s: float) -> None:
        """Takes no new calls, gives open ones `grace_s`, then ends them."""
        for task in self._tasks:
            task.cancel()
        if self._server is not None:
            await self._server.stop(grace_s)
        for path in filter(None, map(unix_path, self._settings.listen)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def _bind(self, server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> str:
        path = unix_path(address)
        target = f"unix:{path}" if path else address
        problem = look(address)
        if problem.says:  # also of a socket in use: gRPC would take the path away from its listener
            raise ConfigError(f"serve.listen: cannot listen on {address}: {problem.says}; {problem.fix}")
        try:
            if credentials is not None and not path:
                port = server.add_secure_port(target, credentials)
            else:
                port = server.add_insecure_port(target)
        except RuntimeError as error:
            raise ConfigError(f"serve.listen: cannot listen on {address} ({error}); choose another --listen") from error
        return target if path else f"{address.rpartition(':')[0]}:{port}"

    def _credentials(self) -> grpc.ServerCredentials | None:
        """The credentials of TLS ports; None without TLS."""
        if self.credentials.tls is None:
            return None
        wants_client = self.credentials.tls.client_ca is not None  # for good: a port cannot change its mind
        return grpc.dynamic_ssl_server_credentials(self._certificates(), self._certificates, wants_client)

    def _certificates(self) -> grpc.ServerCertificateConfiguration:
        """The certificates of now. gRPC asks on a thread of its own, before every handshake."""
        tls = self.credentials.tls
        assert tls is not None, "TLS does not end while the daemon serves"
        return grpc.ssl_server_certificate_configuration([(tls.key, tls.certificate)], tls.client_ca)

    def _add_services(self, server: grpc.aio.Server) -> None:
        calls: dict[str, dict[str, str]] = {
            "Npcs": {
                "DefineWorld": "define_world",
                "ListWorlds": "list_worlds",
                "DeleteWorld": "delete_world",
                "Register": "register",
                "Describe": "describe",
                "Watch": "watch_npcs",
                "Remove": "remove",
                "SetCards": "recalling.set_cards",
                "Recall": "recalling.recall",
                "Forget": "forgetting.forget",
                "Checkpoint": "save_games.checkpoint",
                "Restore": "save_games.restore",
                "ListCheckpoints": "save_games.list_checkpoints",
                "DeleteCheckpoint": "save_games.delete_checkpoint",
                "Export": "save_games.export",
                "Import": "save_games.import_",
            },
            "Intents": {"Live": "live", "Observe": "observe", "Watch": "watch_intents", "Get": "get_intents"},
            "Dialogue": {
                "Talk": "talk",
                "Converse": "converse",
                "Cancel": "cancel_turn",
                "EndSession": "end_session",
            },
            "Story": {},
            "Admin": {"Status": STATUS_CALL, "Watch": "admin.watch_status", "Drain": "admin.drain"},
        }
        files = (npcs_pb2, intents_pb2, dialogue_pb2, story_pb2, admin_pb2)
        described = {name: s for f in files for name, s in f.DESCRIPTOR.services_by_name.items()}
        for name, service in described.items():
            # Admin's calls are about the whole daemon, so they get the caller. All others get the tenant, for its
            # worlds.
            who = self._caller if name == "Admin" else self._tenant
            handlers = {m.name: self._handler(m, calls[name].get(m.name, ""), who) for m in service.methods}
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)

    def _handler(self, method: MethodDescriptor, name: str, who: Who) -> grpc.RpcMethodHandler[Any, Any]:
        """One rpc of the contract, answered by a method of Calls. Requests stay bytes until the caller is known."""
        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[method.client_streaming, method.server_streaming]
        kind = GetMessageClass(method.input_type)

        async def read(calls: Calls, request: Any) -> Any:
            if method.client_streaming:
                return _Requests(request, kind, calls.slicer)
            return await calls.slicer().run(parsing(kind, request))

        call: Any
        if method.server_streaming:
            call = self._stream(name or "not_built_stream", read, who)
        else:
            call = self._unary(name or "not_built", read, who)
        return make(call, None, None)

    def _unary(
        self, name: str, read: Callable[[Calls, Any], Awaitable[Any]], who: Who
    ) -> Callable[..., Awaitable[bytes]]:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
            try:
                if name == STATUS_CALL and self.calls is None and self._start is not None:
                    who(context)
                    now = now_ns()
                    status = starting(__version__, self._start.progress(now), now - self._began_ns)
                    return status.SerializeToString()
                calls = self._ready()
                method: Unary = attrgetter(name)(calls)
                caller = who(context)
                return await _written(calls, await method(caller, await read(calls, request)))
            except NpcdError as error:
                await self._abort(context, error, name)
                raise AssertionError("abort raises") from error

        return call

    def _stream(
        self, name: str, read: Callable[[Calls, Any], Awaitable[Any]], who: Who
    ) -> Callable[..., AsyncIterator[bytes]]:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[bytes]:
            try:
                calls = self._ready()
                method: Stream = attrgetter(name)(calls)
                caller = who(context)
                async with aclosing(method(caller, await read(calls, request))) as answers:
                    async for answer in answers:
                        yield await _written(calls, answer)
            except NpcdError as error:
                await self._abort(context, error, name)

        return call

    async def _abort(self, context: grpc.aio.ServicerContext[Any, Any], error: NpcdError, name: str) -> None:
        trailing: tuple[tuple[str, str], ...] = ()
        if isinstance(error, (Overloaded, NotReady)):
            trailing = ((RETRY_KEY, str(error.retry_ms)),)
        elif isinstance(error, NotFound) and self.calls is not None:
            trailing = ((EPOCH_KEY, str(self.calls.epoch)),)
        code = next((code for kind, code in STATUS if isinstance(error, kind)), grpc.StatusCode.INTERNAL)
        if code is grpc.StatusCode.INTERNAL:
            log.error("call failed", call=name, reason=str(error))
        await context.abort(code, str(error), trailing)

    def _ready(self) -> Calls:
        if self.calls is None:
            progress = self._start.progress(now_ns()) if self._start is not None else None
            retry_ms = RETRY_MAX_MS if progress is None else min(RETRY_MAX_MS, max(100, round(1000 * progress.left_s)))
            raise NotReady(
                f"the daemon is starting ({progress or 'no model is loaded yet'}); call again later", retry_ms
            )
        return self.calls

    def _tenant(self, context: grpc.aio.ServicerContext[Any, Any]) -> str:
        token = self._token(context.invocation_metadata() or ())
        return token.tenant if token is not None else ""

    def _caller(self, context: grpc.aio.ServicerContext[Any, Any]) -> Caller:
        """The caller, by its token and by the address of the peer itself. Raises Unauthenticated."""
        metadata = context.invocation_metadata() or ()
        return caller_of(self._token(metadata), is_near(context.peer(), (key for key, _ in metadata)))

    def _token(self, metadata: Iterable[tuple[str, str | bytes]]) -> Token | None:
        tokens = self.credentials.tokens
        if tokens is None:
            return None
        for key, value in metadata:
            if key == "authorization" and isinstance(value, str) and value.startswith("Bearer "):
                token = tokens.get(value.removeprefix("Bearer "))
                if token is not None:
                    return token
        raise Unauthenticated("give a known token as 'authorization: Bearer TOKEN' metadata")


class _Requests:
    """A client's stream as messages. An unreadable request raises CallerError; the next one can still be read."""

    def __init__(self, raw: AsyncIterator[bytes], kind: type[Message], slicer: Slicer) -> None:
        self._raw = raw
        self._kind = kind
        self._slicer = slicer

    def __aiter__(self) -> _Requests:
        return self

    async def __anext__(self) -> Message:
        data = await anext(self._raw)
        return await self._slicer().run(parsing(self._kind, data))


async def _written(calls: Calls, answer: Message) -> bytes:
    """An answer's bytes; a large one is written in slices."""
    return await calls.slicer().run(writing(answer)) if is_large(answer) else answer.SerializeToString()
