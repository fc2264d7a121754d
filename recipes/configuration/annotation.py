"""Ranges of numbers in an annotation that is read from source (see ``kernels.ranges``)."""

from __future__ import annotations

import ast
import copy

from kernels.ranges import Range


def range_of(annotation: ast.expr) -> Range | None:
    """The range of ``Annotated[float, "x > 0"]``; None where an annotation is no number with a text beside it.

    Raises:
        ValueError: the text states no range.
    """
    match annotation:
        case ast.Subscript(
            value=ast.Name(id="Annotated"),
            slice=ast.Tuple(elts=[ast.Name(id="int" | "float" as kind), ast.Constant(value=str() as text), *_]),
        ):
            return Range.parse(kind, text)
    return None


def allowed(annotation: ast.expr, name: str) -> str:
    """What a key may be, in words: ``0 <= momentum < 1 or null``."""
    match annotation:
        case ast.Constant(value=None):
            return "null"
        case ast.BinOp(left=left, right=right, op=ast.BitOr()):
            return f"{allowed(left, name)} or {allowed(right, name)}"
        case ast.Subscript(value=ast.Name(id="list"), slice=item):
            return f"a list, each {allowed(item, 'x')}"
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[_, item])):
            return f"a dict, each value {allowed(item, 'x')}"
    stated = range_of(annotation)
    return ast.unparse(without_ranges(annotation)) if stated is None else stated.said_of(name)


def without_ranges(annotation: ast.expr) -> ast.expr:
    """The type alone: ``float`` for ``Annotated[float, "x > 0"]``, anywhere in it."""
    return _WithoutRanges().visit(copy.deepcopy(annotation))


class _WithoutRanges(ast.NodeTransformer):
    """``Annotated[float, ...]`` becomes ``float``."""

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        self.generic_visit(node)
        match node:
            case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[inner, *_])):
                return inner
        return node
