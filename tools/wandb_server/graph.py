"""Executing GraphQL: the schema, the registry of resolvers, and one request's context.

``schema.graphql`` says what may be asked; graphql-core parses, checks and walks each request. A
resolver is registered for a type and a field; a field without one is read from its object: the
key of that name, or the attribute of that name in snake case.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphql import (
    DocumentNode,
    GraphQLError,
    GraphQLResolveInfo,
    GraphQLSchema,
    OperationDefinitionNode,
    build_schema,
    execute_sync,
    parse,
    validate,
)

from .faults import Fault, FaultBoard
from .links import Links
from .store import Store

Resolver = Callable[..., Any]
RESOLVERS: dict[tuple[str, str], Resolver] = {}


@dataclass
class Context:
    """What a resolver may use: the store, the links of this request, the default entity."""

    store: Store
    links: Links
    default_entity: str
    board: FaultBoard
    kind: str

    @functools.cached_property
    def stale(self) -> Fault | None:
        """The fault that makes this request's counts stale; looked for by the first who counts."""
        return self.board.stale(self.kind)

    def shown_count(self, count: int) -> int:
        """The history line count to tell, given the true one."""
        fault = self.stale
        late = fault is not None and fault.part in ("count", "both")
        return max(0, count - fault.lines) if fault is not None and late else count

    def shown_tail(self, count: int) -> int:
        """The line count that the last row and the last step are told of."""
        fault = self.stale
        late = fault is not None and fault.part in ("tail", "both")
        return max(0, count - fault.lines) if fault is not None and late else count


def resolver(type_name: str, *names: str) -> Callable[[Resolver], Resolver]:
    """Register a function ``(source, context, **arguments)`` for fields of a type.

    The arguments come in snake case; ``input`` comes as ``given``, ``id`` as ``wanted``.
    """

    def register(function: Resolver) -> Resolver:
        for name in names:
            RESOLVERS[type_name, name] = function
        return function

    return register


def _snake(name: str) -> str:
    """``minStep`` is ``min_step``, ``clientID`` is ``client_id``."""
    return re.sub(r"(?<=[a-z0-9])([A-Z]+)", lambda found: f"_{found[1].lower()}", name)


@functools.cache
def _argument(name: str) -> str:
    """An argument's name in Python, where ``input`` and ``id`` are names of something else."""
    return {"input": "given", "id": "wanted"}.get(name) or _snake(name)


def _resolve(source: Any, info: GraphQLResolveInfo, **arguments: Any) -> Any:
    function = RESOLVERS.get((info.parent_type.name, info.field_name))
    if function is not None:
        named = {_argument(name): value for name, value in arguments.items()}
        return function(source, info.context, **named)
    if isinstance(source, Mapping):
        return source.get(info.field_name)
    return getattr(source, _snake(info.field_name), None)


@functools.cache
def schema() -> GraphQLSchema:
    """The schema, read from the file beside this module."""
    return build_schema(Path(__file__).with_name("schema.graphql").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Operation:
    """One request, parsed. ``errors`` are not empty where it cannot be executed."""

    name: str
    document: DocumentNode | None
    errors: tuple[GraphQLError, ...]


@functools.lru_cache(maxsize=256)
def _prepared(query: str) -> Operation:
    try:
        document = parse(query)
    except GraphQLError as error:
        return Operation("?", None, (error,))
    names = [
        node.name.value if node.name else "?"
        for node in document.definitions
        if isinstance(node, OperationDefinitionNode)
    ]
    return Operation(names[0] if names else "?", document, tuple(validate(schema(), document)))


def prepare(query: object) -> Operation:
    """Parse and check a request's query; never raises for what a client sent."""
    if not isinstance(query, str):
        return Operation("?", None, (GraphQLError("query is not a string"),))
    return _prepared(query)


def execute(operation: Operation, variables: object, context: Context) -> dict[str, Any]:
    """Run a request; returns ``{"data": …}`` or ``{"errors": […]}`` or both, ready for JSON."""
    if operation.errors or operation.document is None:
        return {"errors": [error.formatted for error in operation.errors]}
    result = execute_sync(
        schema(),
        operation.document,
        context_value=context,
        variable_values=variables if isinstance(variables, dict) else {},
        field_resolver=_resolve,
    )
    answer: dict[str, Any] = {"data": result.data}
    if result.errors:
        answer["errors"] = [error.formatted for error in result.errors]
    return answer
