"""The rule service: on which nodes guests run, and which of them run together or apart."""

from collections.abc import Iterator

from gugus.cluster.v1 import rule_pb2, rule_pb2_grpc
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.rule_pb2 import Rule, RuleSpec

from common import validate
from common.errors import GugusError, aborted, already_exists, invalid, precondition, several
from manager.controllers.context import Context
from manager.events import record
from manager.guests.rules.words import label_faults
from manager.scheduler.stored_rules import found_wrong, planned_rule
from manager.scheduler.views import guest_request
from manager.services.forward import actor
from manager.services.requests import upon_latest
from manager.store import Conflict, Txn
from manager.store.kinds import new

MAX_NOTES_BYTES = 1024
MAX_GUESTS = 1_000
MAX_PRIORITY = 1_000


class RuleService(rule_pb2_grpc.RuleServiceServicer):
    """Serves `gugus rule`."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.store

    async def CreateRule(self, request: rule_pb2.CreateRuleRequest, context: object) -> Rule:
        """Make a rule."""
        faults = [invalid("name", f"{message}.")] if (message := validate.name(request.name)) else []
        faults += self._faults(request.spec)
        if faults:
            raise several(faults)
        rule = new(Rule, request.name)
        rule.spec.CopyFrom(request.spec)
        key = f"{actor()} rule/{request.name} {request.request_id}" if request.request_id else ""
        txn = Txn(key, spare_reserve=True).put(rule, expect_absent=True)
        record(txn, f"rule/{request.name}", "RULE_CREATED", f"created by {actor()}")
        async with self._context.admission:
            stored = await self._store.get(Rule, request.name)
            if stored is None:
                self._refuse_wrong(rule, force=request.force)
            try:
                await self._store.txn(txn)
            except Conflict:
                raise already_exists("rule", request.name, remedy="Choose another name.") from None
        return self._seen(await self._store.require(Rule, request.name))

    async def GetRule(self, request: rule_pb2.GetRuleRequest, context: object) -> Rule:
        """Return one rule, with whom it covers and what is wrong with it."""
        return self._seen(await self._store.require(Rule, request.name))

    async def ListRules(self, request: rule_pb2.ListRulesRequest, context: object) -> rule_pb2.ListRulesResponse:
        """Return all rules."""
        return rule_pb2.ListRulesResponse(rules=[self._seen(rule) for rule in await self._store.list(Rule)])

    async def UpdateRule(self, request: rule_pb2.UpdateRuleRequest, context: object) -> Rule:
        """Change a rule."""
        if faults := list(self._faults(request.spec)):
            raise several(faults)

        def change(rule: Rule) -> Rule:
            if request.revision and request.revision != rule.meta.revision:
                raise aborted(
                    "CONFLICT",
                    f"rule {request.name} was changed meanwhile.",
                    remedy="Read it again and repeat the change.",
                )
            rule.spec.CopyFrom(request.spec)
            self._refuse_wrong(rule, force=request.force)
            return rule

        async with self._context.admission:
            return self._seen(await self._store.update(Rule, request.name, change))

    async def DeleteRule(self, request: rule_pb2.DeleteRuleRequest, context: object) -> rule_pb2.DeleteRuleResponse:
        """Delete a rule."""

        async def change() -> None:
            rule = await self._store.get(Rule, request.name)
            if rule is not None:
                txn = Txn().delete(Rule, request.name, expect_revision=rule.meta.revision)
                await self._store.txn(record(txn, f"rule/{request.name}", "RULE_DELETED", f"deleted by {actor()}"))

        await upon_latest(change)
        return rule_pb2.DeleteRuleResponse()

    def _refuse_wrong(self, rule: Rule, *, force: bool) -> None:
        """Raise RULES_CONFLICT when a rule cannot hold, alone or beside the others."""
        if force or rule.spec.disabled:
            return
        others = [other for other in self._store.peek_all(Rule) if other.meta.name != rule.meta.name]
        wrong = found_wrong([*others, rule], self._store.peek_all(Node), self._store.peek_all(Guest))
        mine = [conflict for conflict in wrong if rule.meta.name in conflict.rules]
        if mine:
            raise precondition(
                "RULES_CONFLICT",
                " ".join(conflict.message[:1].upper() + conflict.message[1:] for conflict in mine),
                remedy=f"{' '.join(dict.fromkeys(c.remedy for c in mine))} To save it as it is: --force.",
                subject=f"rule/{rule.meta.name}",
                metadata={"reasons": ",".join(sorted({conflict.reason for conflict in mine}))},
            )

    def _seen(self, rule: Rule) -> Rule:
        """Return a rule with what is not stored of it."""
        guests = self._store.peek_all(Guest)
        cover = planned_rule(rule).guests.cover
        rule.covers[:] = sorted(guest.meta.name for guest in guests if cover(guest_request(guest)))
        if not rule.spec.disabled:
            wrong = found_wrong(self._store.peek_all(Rule), self._store.peek_all(Node), guests)
            rule.problems[:] = [conflict.message for conflict in wrong if rule.meta.name in conflict.rules]
        return rule

    def _faults(self, spec: RuleSpec) -> Iterator[GugusError]:
        if not spec.WhichOneof("kind"):
            yield invalid("spec.kind", "is missing: say on which nodes, or together, or apart.")
        if len(spec.guests) > MAX_GUESTS:
            yield invalid(
                "spec.guests", f"names {len(spec.guests):,} guests; at most {MAX_GUESTS:,}. Select them by labels."
            )
        if not spec.guests and not spec.guest_labels:
            yield invalid("spec.guests", "is missing: name guests, or labels that they have.")
        for name, priority in sorted(spec.nodes.priorities.items()):
            if priority > MAX_PRIORITY:
                yield invalid(f"spec.nodes.priorities[{name}]", f"{priority} is out of range: 0 to {MAX_PRIORITY}.")
        if spec.WhichOneof("kind") == "nodes" and not spec.nodes.priorities:
            yield invalid("spec.nodes.priorities", "is missing: name at least one node.")
        size = len(spec.notes.encode())
        if size > MAX_NOTES_BYTES:
            yield invalid("spec.notes", f"has {size:,} bytes; at most {MAX_NOTES_BYTES:,}.")
        yield from label_faults(spec.guest_labels)
