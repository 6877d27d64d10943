"""Griffe: what `equinox.field` wraps around a default is noise, and modules have constructors as dataclasses do."""

import ast
from typing import Any

import griffe


class Modules(griffe.Extension):
    """Fields of equinox modules as parameters of the class, with their defaults as they are."""

    def on_class_members(self, *, node: Any, cls: griffe.Class, agent: Any, **kwargs: Any) -> None:
        """Called when a class was read."""
        if not isinstance(node, ast.ClassDef) or "__init__" in cls.members or _is_dataclass(node):
            return
        # Fields stand in one class: its abstract parents have none.
        bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
        bundle = any(ast.unparse(d) == "bundle" for d in node.decorator_list)
        if not bundle and not any(base in ("Module", "Described") or base.startswith("Abstract") for base in bases):
            return
        parameters = [griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)]
        for statement in node.body:
            if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
                continue
            name, annotation = statement.target.id, ast.unparse(statement.annotation)
            if annotation.startswith(("ClassVar", "AbstractVar", "AbstractClassVar")) or name.startswith("_"):
                continue
            default = _default(statement.value)
            attribute = cls.members[name]
            attribute.value = default
            parameters.append(
                griffe.Parameter(
                    name,
                    annotation=attribute.annotation,
                    kind=griffe.ParameterKind.positional_or_keyword,
                    default=default,
                ),
            )
        if len(parameters) > 1:
            cls.set_member("__init__", griffe.Function("__init__", parameters=griffe.Parameters(*parameters)))


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(d) for d in node.decorator_list)


def _default(value: ast.expr | None) -> str | None:
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "eqx.field":
        return next((ast.unparse(k.value) for k in value.keywords if k.arg == "default"), None)
    return None if value is None else ast.unparse(value)
