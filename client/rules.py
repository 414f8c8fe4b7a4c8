"""The rules of a cluster: on which nodes guests run, and which of them run together or apart."""

from collections.abc import Sequence

from gugus.cluster.v1 import rule_pb2, rule_pb2_grpc

from client.caller import Caller, new_request_id


class Rules:
    """Rules about where guests run."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._stub = rule_pb2_grpc.RuleServiceStub

    async def create(
        self, name: str, spec: rule_pb2.RuleSpec, *, force: bool = False, request_id: str = ""
    ) -> rule_pb2.Rule:
        """Make a rule. force: although something is wrong with it. Raises INVALID_ARGUMENT, ALREADY_EXISTS, RULES_CONFLICT."""
        request = rule_pb2.CreateRuleRequest(
            name=name, spec=spec, force=force, request_id=request_id or new_request_id()
        )
        return await self._caller.call(self._stub, "CreateRule", request, rule_pb2.Rule)

    async def get(self, name: str) -> rule_pb2.Rule:
        """Return a rule, with whom it covers and what is wrong with it. Raises NOT_FOUND."""
        return await self._caller.call(self._stub, "GetRule", rule_pb2.GetRuleRequest(name=name), rule_pb2.Rule)

    async def list(self) -> Sequence[rule_pb2.Rule]:
        """Return all rules by name."""
        request = rule_pb2.ListRulesRequest()
        return (await self._caller.call(self._stub, "ListRules", request, rule_pb2.ListRulesResponse)).rules

    async def update(
        self, name: str, spec: rule_pb2.RuleSpec, *, force: bool = False, revision: int = 0
    ) -> rule_pb2.Rule:
        """Give a rule another spec, as a whole; only if it is at `revision` still (0: any). Raises as `create`, NOT_FOUND, ABORTED."""
        request = rule_pb2.UpdateRuleRequest(name=name, spec=spec, force=force, revision=revision)
        return await self._caller.call(self._stub, "UpdateRule", request, rule_pb2.Rule)

    async def delete(self, name: str) -> None:
        """Delete a rule. Idempotent."""
        request = rule_pb2.DeleteRuleRequest(name=name)
        await self._caller.call(self._stub, "DeleteRule", request, rule_pb2.DeleteRuleResponse)
