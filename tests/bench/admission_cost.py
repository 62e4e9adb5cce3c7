"""What a decision costs: CPU per admitted and finished call, journal included, at several degrees of concurrency.

Owns one number per degree; refuses sockets: the transport has its own yardstick. `python -m tests.bench.admission_cost`
"""

import argparse
import asyncio
import hashlib
import tempfile
import time
from pathlib import Path

import uvloop
from mws.admission.v1 import account_service_pb2, key_service_pb2
from mws.admission.v1 import admission_service_pb2 as pb

from services.auth_and_limits.app import open_service
from services.auth_and_limits.settings import Settings
from services.runtime.callers import mint_secrets
from services.runtime.calls import Call, Caller, CallerClass, MethodTable
from services.runtime.ids import new_id

_SERVICE = "/mws.admission.v1."
_HUGE = 150_000_000


class Direct:
    """Calls the handlers as a transport would, messages serialized both ways."""

    def __init__(self, table: MethodTable) -> None:
        self._methods = table.methods
        self._caller = Caller(CallerClass.ADMIN, "bench")

    async def call(self, path: str, request: object) -> object:
        method = self._methods[_SERVICE + path]
        call = Call(method.path, self._caller, (), 0.0, None)
        data = request.SerializeToString()  # type: ignore[attr-defined]
        answer = await method.behavior(method.read_request(data), call)
        method.write_response(answer)
        return answer


def admit_request(digest: bytes) -> pb.AdmitRequest:
    """One call of a client."""
    request = pb.AdmitRequest(
        call_id=new_id(),
        run_id=new_id(),
        runner="inference-0/boot",
        operation=pb.OPERATION_GENERATE,
        profile="dragon",
        amount_nano_usd=1_000_000,
        rate_tokens=1_500,
        price_book_version="0" * 64,
    )
    request.credential.api_key_sha256 = digest
    return request


async def measure(folder: Path, in_flight: int, calls: int, *, whole_life: bool) -> tuple[float, float]:
    """(CPU µs per call, calls per second of wall time), the caller's own work of some 15 µs per message included.

    Of Admit alone, or of a whole life: Admit, Finish and BalanceChanged one by one, though real callers batch the two.
    """
    settings = Settings(name="bench", port=0, data_dir=folder, metering_endpoints=("127.0.0.1:1",))
    async with open_service(settings) as service:
        direct = Direct(service.table)
        ceilings = account_service_pb2.CeilingOverrides(
            requests_per_minute=_HUGE, tokens_per_minute=_HUGE, concurrent_calls=100_000
        )
        created = await direct.call(
            "AccountService/CreateAccount",
            account_service_pb2.CreateAccountRequest(request_id=new_id(), name="bench", overrides=ceilings),
        )
        account_id = created.account.account_id  # type: ignore[attr-defined]
        key = await direct.call("KeyService/CreateKey", key_service_pb2.CreateKeyRequest(account_id=account_id))
        digest = hashlib.sha256(key.api_key.encode()).digest()  # type: ignore[attr-defined]
        change = pb.BalanceChange(account_id=account_id, seq=1, balance_nano_usd=10**15)
        await direct.call("AdmissionService/BalanceChanged", pb.BalanceChangedRequest(changes=[change]))
        left = iter(range(calls))
        seq = iter(range(2, calls + 2))

        async def one_caller() -> None:
            for _ in left:
                admit = admit_request(digest)
                answer = await direct.call("AdmissionService/Admit", admit)
                assert answer.HasField("admitted")  # type: ignore[attr-defined]
                if whole_life:
                    ids = {"call_id": admit.call_id, "run_id": admit.run_id}
                    ended = pb.FinishedHold(**ids, cost_nano_usd=500_000, used_tokens=900)
                    await direct.call("AdmissionService/Finish", pb.FinishRequest(holds=[ended]))
                    posted = pb.BalanceChange(account_id=account_id, seq=next(seq), balance_nano_usd=10**15)
                    posted.closed_call_ids.append(admit.call_id)
                    await direct.call("AdmissionService/BalanceChanged", pb.BalanceChangedRequest(changes=[posted]))

        wall, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(one_caller() for _ in range(in_flight)))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return cpu / calls * 1e6, calls / wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=5_000)
    parser.add_argument("--in-flight", type=int, nargs="*", default=[1, 8, 32, 128])
    options = parser.parse_args()
    print("in flight   what         CPU µs per call   calls/s")
    for in_flight in options.in_flight:
        for name, whole_life in (("Admit", False), ("whole life", True)):
            with tempfile.TemporaryDirectory() as folder:
                mint_secrets(Path(folder) / "secrets")
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    measured = measure(Path(folder), in_flight, options.calls, whole_life=whole_life)
                    cpu_us, rate = runner.run(measured)
            print(f"{in_flight:9d}   {name:10s}   {cpu_us:15.1f}   {rate:7.0f}")


if __name__ == "__main__":
    main()
