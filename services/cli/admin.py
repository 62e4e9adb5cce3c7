"""The services as an administrator sees them: plain gRPC, one token, rich errors.

Owns connecting and the options that every command shares; refuses to format anything.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from google.rpc import status_pb2
from mws.admission.v1 import account_service_pb2 as account_pb
from mws.admission.v1.account_service_pb2_grpc import AccountServiceStub
from mws.admission.v1.audit_service_pb2_grpc import AuditServiceStub
from mws.admission.v1.key_service_pb2_grpc import KeyServiceStub
from mws.admission.v1.plan_service_pb2_grpc import PlanServiceStub
from mws.inference.v1.routing_service_pb2_grpc import RoutingServiceStub
from mws.metering.v1.ledger_service_pb2_grpc import LedgerServiceStub
from mws.metering.v1.usage_service_pb2_grpc import UsageServiceStub

from services.cli import running
from services.cli.deployment import GRPC_OFFSETS
from services.cli.report import Report
from services.cli.settings import CliSettings
from services.runtime.errors import GatewayError, NotFoundError, ServiceUnavailableError, from_status

DEFAULT_GRPC_HOST = "127.0.0.1"
DEFAULT_DATA_DIR = Path(".mws")
DEFAULT_GRPC_BASE_PORT = 50051
TIMEOUT_S = 30.0
STREAM_TIMEOUT_S = 3_600.0
LARGEST_PAGE = 1000


class Admin:
    """Typed stubs of every service that the command line speaks to."""

    def __init__(self, host: str, base_port: int, data_dir: Path, report: Report) -> None:
        self._host, self._base_port, self._token = host, base_port, _token(data_dir)
        self.report = report
        self.data_dir = data_dir
        self._channels = [self._channel(service) for service in ("auth", "inference", "metering")]
        auth, inference, metering = self._channels
        self.accounts = AccountServiceStub(auth)
        self.keys = KeyServiceStub(auth)
        self.plans = PlanServiceStub(auth)
        self.audit = AuditServiceStub(auth)
        self.routing = RoutingServiceStub(inference)
        self.ledger = LedgerServiceStub(metering)
        self.usage = UsageServiceStub(metering)

    def close(self) -> None:
        """Closes the connections."""
        for channel in self._channels:
            channel.close()

    def _channel(self, service: str) -> grpc.Channel:
        target = f"{self._host}:{self._base_port + GRPC_OFFSETS[service]}"
        return grpc.intercept_channel(grpc.insecure_channel(target), _Bearer(self._token))

    def account_id(self, account: str) -> str:
        """An account's id, given its id or its name. Raises NotFoundError unless exactly one has the name."""
        if len(account) == 36 and account.count("-") == 4:
            return account
        found = call(self.accounts.ListAccounts, account_pb.ListAccountsRequest(name=account, page_size=2)).accounts
        if len(found) != 1:
            raise NotFoundError(f"{len(found) or 'no'} accounts are named {account!r}; use the account id")
        return str(found[0].account_id)


class _Bearer(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):  # type: ignore[type-arg]  # generic in the stubs alone
    def __init__(self, token: str) -> None:
        self._metadata = (("authorization", f"Bearer {token}"),)

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return self._proven(continuation, client_call_details, request)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return self._proven(continuation, client_call_details, request)

    def _proven(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        details = client_call_details
        return continuation(
            _Details(details.method, details.timeout, [*(details.metadata or ()), *self._metadata]), request
        )


class _Details(grpc.ClientCallDetails):
    def __init__(self, method: str, timeout: float, metadata: list[tuple[str, str]]) -> None:
        self.method, self.timeout, self.metadata = method, timeout, tuple(metadata)
        self.credentials, self.wait_for_ready, self.compression = None, None, None


def call(method: Any, request: Any) -> Any:
    """One unary call. Raises GatewayError, whatever went wrong."""
    try:
        return method(request, timeout=TIMEOUT_S)
    except grpc.RpcError as error:
        raise _decoded(error) from None


def every(method: Any, request: Any, field: str, most: int | None = None) -> list[Any]:
    """The items of all pages of a list, or the first ones. Raises GatewayError."""
    request.page_size, found = min(most or LARGEST_PAGE, LARGEST_PAGE), []
    while True:
        answer = call(method, request)
        found += getattr(answer, field)
        if not answer.next_page_token or (most is not None and len(found) >= most):
            return found[:most]
        request.page_token = answer.next_page_token


def stream(method: Any, request: Any) -> Iterator[Any]:
    """The answers of one server-streaming call. Raises GatewayError, whatever went wrong."""
    try:
        yield from method(request, timeout=STREAM_TIMEOUT_S)
    except grpc.RpcError as error:
        raise _decoded(error) from None


def _decoded(error: Any) -> GatewayError:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            return from_status(status_pb2.Status.FromString(value))
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return ServiceUnavailableError("no service answers there; is the gateway running (`mws up`)?")
    return from_status(status_pb2.Status(code=error.code().value[0], message=error.details() or ""))


AccountOption = Annotated[str, typer.Option("--account", help="Account id, or a name that only one account has.")]

GrpcHost = Annotated[
    str | None, typer.Option(help="Host of the services. Default: of what runs on the data directory.")
]
GrpcBasePort = Annotated[int | None, typer.Option(help="gRPC port of auth; inference and metering follow.")]
DataDir = Annotated[Path, typer.Option(help="Data directory of the running gateway (holds the admin token).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document, for scripts.")]

_SHARED = [
    inspect.Parameter("grpc_host", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=GrpcHost),
    inspect.Parameter("grpc_base_port", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=GrpcBasePort),
    inspect.Parameter("data_dir", inspect.Parameter.KEYWORD_ONLY, default=DEFAULT_DATA_DIR, annotation=DataDir),
    inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=AsJson),
]


def admin_command(app: typer.Typer, name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers `function(admin, …its own options…)` with the options that every command shares added."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(
            *args: Any,
            grpc_host: str | None,
            grpc_base_port: int | None,
            data_dir: Path,
            as_json: bool,
            **options: Any,
        ) -> None:
            report = Report(as_json=as_json)
            there = running.find(data_dir)
            host = grpc_host or (there.host if there else DEFAULT_GRPC_HOST)
            base_port = grpc_base_port or (there.grpc_base_port if there else DEFAULT_GRPC_BASE_PORT)
            try:
                with contextlib.closing(Admin(host, base_port, data_dir, report)) as admin:
                    function(admin, *args, **options)
            except (GatewayError, ValueError) as error:
                report.fail(error)
                raise typer.Exit(1) from None

        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        ]
        command.__signature__ = inspect.Signature([*own, *_SHARED])  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *_SHARED]}
        return app.command(name)(command)

    return register


def _token(data_dir: Path) -> str:
    configured = CliSettings().admin_token
    if configured is not None:
        return configured.get_secret_value()
    path = data_dir / "secrets" / "admin.token"
    try:
        return path.read_text().strip()
    except OSError:
        raise ValueError(
            f"no admin token: set MWS_ADMIN_TOKEN, or point --data-dir at the gateway's (no {path})"
        ) from None
