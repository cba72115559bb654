"""configs/neox_arguments.md, made of the field declarations by reading their source: `python -m
megatron.neox_arguments.reference` writes it anew."""

import ast
from dataclasses import dataclass
from pathlib import Path

from megatron.common.files import atomic_write_text

FIELDS = Path(__file__).parent / "fields"
TARGET = Path(__file__).parents[2] / "configs" / "neox_arguments.md"
_HEAD = """# Configuration keys

Made from the declarations in `megatron/neox_arguments/fields` by `python -m megatron.neox_arguments.reference`; do not
edit. Keys may be written with `-` or `_`.
"""
# What a marker (megatron/neox_arguments/markers.py) says about a key.
_REMARKS = {
    "later": "Not supported yet: only {values} is accepted.",
    "partly": "Of the choices {values} are supported so far.",
    "retired": "Without effect; refused unless {default}: {reason}.",
    "derived": "Derived from {reason}.",
    "runtime": "Filled in by the program.",
}


@dataclass(frozen=True)
class Key:
    """One documented key; type, default and remark as text."""

    name: str
    type: str
    default: str
    text: str
    remark: str

    def markdown(self) -> str:
        """Its entry in the reference."""
        head = f"- **{self.name}**: {self.type}"
        default = f", default `{self.default}`" if self.default != "None" else ""
        remark = f" {self.remark}" if self.remark else ""
        return f"{head}{default}\n\n  {self.text}{remark}\n"


@dataclass(frozen=True)
class Group:
    """The keys that one class declares itself."""

    name: str
    text: str
    keys: tuple[Key, ...]


def groups() -> list[Group]:
    """All declared groups, by file and order of declaration."""
    found = []
    for path in sorted(FIELDS.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        aliases = {
            node.targets[0].id: ast.unparse(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and (keys := _keys(node, aliases)):
                found.append(Group(node.name, ast.get_docstring(node) or "", keys))
    return found


def reference() -> str:
    """The whole document."""
    parts = [_HEAD]
    for group in groups():
        parts.append(f"## {group.name.removeprefix('NeoXArgs')}\n\n{group.text}\n")
        parts += [key.markdown() for key in group.keys]
    return "\n".join(parts)


def main() -> None:
    """Write the document."""
    atomic_write_text(TARGET, reference())


def _keys(node: ast.ClassDef, aliases: dict[str, str]) -> tuple[Key, ...]:
    keys = []
    for statement, following in zip(node.body, node.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            assert isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant), (
                f"{statement.target.id} has no docstring"
            )
            keys.append(_key(statement, following.value.value, aliases))
    return tuple(keys)


def _key(statement: ast.AnnAssign, docstring: object, aliases: dict[str, str]) -> Key:
    assert isinstance(statement.target, ast.Name) and statement.value is not None
    annotation = ast.unparse(statement.annotation)
    default, remark = _default_and_remark(statement.value, aliases)
    text = " ".join(str(docstring).split())
    return Key(statement.target.id, _type(aliases.get(annotation, annotation)), default, text, remark)


def _default_and_remark(value: ast.expr, aliases: dict[str, str]) -> tuple[str, str]:
    if not isinstance(value, ast.Call) or not isinstance(value.func, ast.Name):
        return ast.unparse(value), ""
    arguments = [ast.unparse(argument) for argument in value.args]
    kind = value.func.id
    default = arguments[0] if arguments else "None"
    reason = _text(value.args[1], aliases) if kind in ("retired", "derived") else ""
    values = ", ".join(f"`{argument}`" for argument in arguments if argument != "None") or "unset"
    return default, _REMARKS[kind].format(values=values, default=f"`{default}`", reason=reason)


def _text(node: ast.expr, aliases: dict[str, str]) -> str:
    """A text literal, or one of the module's own constants."""
    if isinstance(node, ast.Name):
        return str(ast.literal_eval(aliases[node.id]))
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part, aliases) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return _text(node.value, aliases)
    return str(ast.literal_eval(node))


def _type(annotation: str) -> str:
    """`Literal['a', 'b'] | None -> one of `a`, `b``, anything else as code."""
    tree = ast.parse(annotation, mode="eval").body
    if isinstance(tree, ast.BinOp) and isinstance(tree.right, ast.Constant) and tree.right.value is None:
        tree = tree.left
    if isinstance(tree, ast.Subscript) and ast.unparse(tree.value) == "Literal":
        choices = tree.slice.elts if isinstance(tree.slice, ast.Tuple) else [tree.slice]
        words = ", ".join(f"`{ast.literal_eval(choice)}`" for choice in choices)
        return f"one of {words}" if len(choices) > 1 else words
    return f"`{ast.unparse(tree)}`"


if __name__ == "__main__":
    main()
