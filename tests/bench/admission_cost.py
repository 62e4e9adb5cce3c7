"""What a decision costs: CPU per admitted and finished call, journal included, at several degrees of concurrency.

Owns one number per degree; refuses sockets: the transport has its own yardstick. `python -m tests.bench.admission_cost`
"""

import argparse
import asyncio
import hashlib
import os
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


async def measure(folder: Path, in_flight: int, calls: int) -> tuple[float, float]:
    """(CPU µs per call, calls per second of wall time) for Admit + Finish + a share of BalanceChanged."""
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
                call_id, run_id = new_id(), new_id()
                admit = pb.AdmitRequest(
                    call_id=call_id,
                    run_id=run_id,
                    runner="inference-0/boot",
                    operation=pb.OPERATION_GENERATE,
                    profile="dragon",
                    amount_nano_usd=1_000_000,
                    rate_tokens=1_500,
                    price_book_version="0" * 64,
                )
                admit.credential.api_key_sha256 = digest
                answer = await direct.call("AdmissionService/Admit", admit)
                assert answer.HasField("admitted")  # type: ignore[attr-defined]
                ended = pb.FinishedHold(call_id=call_id, run_id=run_id, cost_nano_usd=500_000, used_tokens=900)
                await direct.call("AdmissionService/Finish", pb.FinishRequest(holds=[ended]))
                posted = pb.BalanceChange(account_id=account_id, seq=next(seq), balance_nano_usd=10**15)
                posted.closed_call_ids.append(call_id)
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
    print("in flight   CPU µs per call (Admit + Finish + BalanceChanged)   calls/s")
    for in_flight in options.in_flight:
        with tempfile.TemporaryDirectory(dir=os.getcwd() if not Path("/tmp").exists() else None) as folder:
            mint_secrets(Path(folder) / "secrets")
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                cpu_us, rate = runner.run(measure(Path(folder), in_flight, options.calls))
        print(f"{in_flight:9d}   {cpu_us:49.1f}   {rate:7.0f}")


if __name__ == "__main__":
    main()
