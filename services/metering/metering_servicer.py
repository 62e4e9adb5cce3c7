"""gRPC in, use case, gRPC out: MeteringService.

Owns nothing but the order decode, run, encode; refuses to know rules and stores.
"""

from collections.abc import Callable
from typing import Any

from mws.metering.v1 import metering_service_pb2 as pb
from mws.metering.v1.metering_service_pb2_grpc import MeteringServiceServicer

from services.metering import answers, metrics, translate, usage
from services.metering.ports import Footprint, LedgerStore
from services.metering.pricing import canonical_json
from services.metering.usage import Moment, OutcomeKind, RecordOutcome
from services.runtime.calls import call_of

REGISTER_TIMEOUT_S = 5.0
_POSTED = metrics.EVENTS.labels("posted")
_REPEATED = metrics.EVENTS.labels("repeated")
_OTHERS = {
    OutcomeKind.DEFERRED: metrics.EVENTS.labels("deferred"),
    OutcomeKind.REJECTED: metrics.EVENTS.labels("rejected"),
}


class MeteringServicer(MeteringServiceServicer):
    """See `MeteringService`."""

    def __init__(
        self,
        store: LedgerStore,
        now_us: Callable[[], int],
        new_id: Callable[[], str],
        low_balance: tuple[int, ...] = (),
    ) -> None:
        self._store = store
        self._now_us = now_us
        self._new_id = new_id
        self._low_balance = low_balance
        self._known_books: set[str] = set()

    async def RecordUsage(self, request: pb.RecordUsageRequest, context: Any) -> pb.RecordUsageResponse:
        translate.check_batch("events", len(request.events))
        events = [translate.event_from_pb(event) for event in request.events]
        kept = translate.answers_from_pb(request.events)
        moment = Moment(self._now_us(), self._new_id, self._low_balance)
        outcomes = await self._store.commit(
            lambda transaction: usage.record(transaction, events, moment, kept), footprint=usage.footprint_of(events)
        )
        _count(outcomes)
        call_of(context).note(events=len(events))
        return pb.RecordUsageResponse(outcomes=map(translate.outcome_to_pb, outcomes))

    async def ResolveOutcomes(self, request: pb.ResolveOutcomesRequest, context: Any) -> pb.ResolveOutcomesResponse:
        call_ids = translate.call_ids_from_pb(request.call_ids)
        now_us = self._now_us()
        outcomes = await self._store.commit(
            lambda transaction: usage.resolve(transaction, call_ids, now_us),
            footprint=Footprint(call_ids=call_ids, marks_void=True),
        )
        void = outcomes.count(None)
        call_of(context).note(calls=len(call_ids), void=void)
        return pb.ResolveOutcomesResponse(outcomes=map(translate.call_outcome_to_pb, call_ids, outcomes))

    async def ReadBalances(self, request: pb.ReadBalancesRequest, context: Any) -> pb.ReadBalancesResponse:
        translate.check_batch("account_ids", len(request.account_ids))
        customers = [await self._store.customer(account_id) for account_id in request.account_ids]
        call_of(context).note(accounts=len(customers))
        return pb.ReadBalancesResponse(balances=map(translate.balance_to_pb, customers))

    async def RegisterPriceBook(
        self, request: pb.RegisterPriceBookRequest, context: Any
    ) -> pb.RegisterPriceBookResponse:
        prices = translate.prices_from_pb(request)
        version, now_us = request.version, self._now_us()
        if version not in self._known_books:
            text = canonical_json(prices)
            await self._store.commit(
                lambda transaction: transaction.add_price_book(version, text, now_us),
                REGISTER_TIMEOUT_S,
                Footprint(),
            )
            self._known_books.add(version)
        call_of(context).note(price_book_version=version, profiles=len(prices))
        return pb.RegisterPriceBookResponse()

    async def GetKeptAnswer(self, request: pb.GetKeptAnswerRequest, context: Any) -> pb.GetKeptAnswerResponse:
        account_id = translate.account_id_of(request.account_id)
        key = translate.usable_key(request.idempotency_key)
        call_of(context).note(account_id=account_id)
        now_us = self._now_us()
        found = await self._store.commit(
            lambda transaction: answers.find(transaction, account_id, key, now_us), footprint=Footprint()
        )
        return translate.kept_answer_to_pb(found)


def _count(outcomes: list[RecordOutcome]) -> None:
    posted = charged = repeated = 0
    for outcome in outcomes:
        if outcome.kind is not OutcomeKind.POSTED:
            _OTHERS[outcome.kind].inc()
        elif outcome.is_repeated:
            repeated += 1
        else:
            posted += 1
            charged += outcome.charged_nano_usd
    _POSTED.inc(posted)
    _REPEATED.inc(repeated)
    metrics.CHARGED_NANO_USD.inc(charged)
