"""Figures and table of docs/architecture.md, made from the code: `python scripts/draw_architecture.py`.

The figure of the rooms is read from the imports, their table from the docstrings of their packages. The figure of the
calls is what a small convolution does under `sys.setprofile` on this machine; it needs Python 3.11. `--check` leaves
that one alone, as it depends on the CPU, writes nothing, and exits with 1 where the page is not what the code says.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "tvm_conv3d"

#: Labels in the docstring of a room's package: what follows each becomes a column of the table.
LABELS = ("Never holds:", "Entry points:")

#: Modules whose facts everything asks for: left out of the calls.
FACTS = ("spec", "support", "target", "compute.shared.argument")

#: Rooms of which calls between modules are shown, too, and those whose own calls are not.
SHOWN_INSIDE, HIDDEN_INSIDE = ("functional", "runtime", "engine"), ("compute", "schedules")


class Call(NamedTuple):
    """First entry of a public function: the calling room, the called room, and the function in it."""

    caller: str
    room: str
    function: str


def rooms() -> dict[str, Path]:
    """Name -> folder of each package below the top one."""
    found = {path.parent.name: path.parent for path in (ROOT / PACKAGE).glob("*/__init__.py")}
    return {**found, "schedules": ROOT / "schedules"}


def imports() -> dict[str, set[str]]:
    """Room -> the rooms that it imports at run time."""
    known = rooms()
    homes = _public_names()
    return {
        room: {name for path in folder.rglob("*.py") for name in _imported(path, homes) if name in known} - {room}
        for room, folder in known.items()
    }


def _public_names() -> dict[str, str]:
    """Name -> module of what the package imports at first use."""
    tree = ast.parse((ROOT / PACKAGE / "__init__.py").read_text())
    (homes,) = (n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "_HOMES")
    return dict(ast.literal_eval(homes))


def _imported(path: Path, homes: dict[str, str]) -> Iterator[str]:
    for node in _run_nodes(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        for name in names:
            parts = name.split(".")
            if parts[0] == PACKAGE and len(parts) > 1:
                yield homes.get(parts[1], name).split(".")[1]


def _run_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only type checkers read."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from _run_nodes(node)


def in_order(graph: dict[str, set[str]]) -> list[str]:
    """The rooms, those with the longest chain of imports below them first; by name where equal."""

    def depth(room: str) -> int:
        return 1 + max(map(depth, graph[room]), default=0)

    return sorted(graph, key=lambda room: (-depth(room), room))


def rooms_figure(graph: dict[str, set[str]]) -> str:
    """Mermaid's text of the imports, without those that a chain of others implies."""

    def below(room: str) -> set[str]:
        return graph[room].union(*map(below, graph[room]))

    lines = ["```mermaid", "flowchart TD"]
    for room in in_order(graph):
        implied = set().union(*map(below, graph[room]))
        lines += [f"    {room} --> {other}" for other in in_order(graph) if other in graph[room] - implied]
    return "\n".join([*lines, "```"])


def rooms_table(graph: dict[str, set[str]]) -> str:
    """Markdown's table of the rooms, the highest first.

    Raises:
        ValueError: a room's docstring lacks a column, or names an entry point that does not exist.
    """
    folders, order = rooms(), in_order(graph)
    lines = ["| room | holds | never holds | entry points | imports |", "|---|---|---|---|---|"]
    for room in order:
        holds, never, points = _described(room, folders[room])
        below = ", ".join(other for other in order if other in graph[room])
        place = folders[room].relative_to(ROOT).as_posix()
        lines.append(f"| `{place}/` | {holds} | {never} | {points} | {below} |")
    return "\n".join(lines)


def _described(room: str, folder: Path) -> tuple[str, str, str]:
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    lines = text.splitlines()
    found = [lines[0].rstrip(".") if lines else ""]
    for label in LABELS:
        starts = [number for number, line in enumerate(lines) if line.startswith(label)]
        if len(starts) != 1:
            raise ValueError(f"The docstring of the room {room} must have one line that begins with {label!r}.")
        value = [lines[starts[0]].removeprefix(label)]
        for line in lines[starts[0] + 1 :]:
            if not line or line.startswith(LABELS):
                break
            value.append(line)
        found.append(" ".join(part.strip() for part in value).rstrip("."))
    for point in found[-1].split(", "):
        _check_entry_point(room, folder, point.strip("`"))
    return found[0], found[1], found[2]


def _check_entry_point(room: str, folder: Path, point: str) -> None:
    *module, name = point.split(".")
    path = folder.joinpath(*module)
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    defined = ast.parse(path.read_text()).body if path.exists() else []
    if not any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name for node in defined):
        raise ValueError(f"The docstring of the room {room} names an entry point that does not exist: {point}")


def calls_of(work: Callable[[], Any]) -> list[Call]:
    """What `work` enters of this package, in order, each function once."""
    found: dict[tuple[str, str], Call] = {}

    def on_event(frame: FrameType, event: str, _: Any) -> None:
        module, name = _module_of(frame), frame.f_code.co_qualname
        if event != "call" or not module or any(part.startswith(("_", "<")) for part in name.split(".")):
            return
        outside = frame.f_back
        while outside is not None and not _module_of(outside):
            outside = outside.f_back
        caller = _module_of(outside) if outside else ""
        room, from_room = module.split(".")[0], caller.split(".")[0]
        crosses = room != from_room or (room in SHOWN_INSIDE and module != caller)
        hidden = from_room in HIDDEN_INSIDE or _is_fact(module) or _is_fact(caller) or _is_property(frame, name)
        if crosses and not hidden:
            inside = module.removeprefix(room).removeprefix(".")
            call = Call(from_room or "caller", room, f"{inside}.{name}" if inside else name)
            found.setdefault(call[1:], call)

    sys.setprofile(on_event)
    try:
        work()
    finally:
        sys.setprofile(None)
    return list(found.values())


def _module_of(frame: FrameType) -> str:
    """Module of a frame, without the package's name; empty for those of others."""
    name = str(frame.f_globals.get("__name__", ""))
    return name.removeprefix(f"{PACKAGE}.") if name.startswith(f"{PACKAGE}.") else ""


def _is_fact(module: str) -> bool:
    return f"{module}.".startswith(tuple(f"{fact}." for fact in FACTS))


def _is_property(frame: FrameType, name: str) -> bool:
    owner = frame.f_locals.get("self")
    return owner is not None and not callable(getattr(type(owner), name.split(".")[-1], None))


def calls_figure(calls: list[Call], order: list[str]) -> str:
    """Mermaid's text of calls between rooms, which stand in this order."""
    entered = {call.room for call in calls}
    lines = ["```mermaid", "sequenceDiagram"]
    lines += [f"    participant {room}" for room in ("caller", *order) if room in entered or room == "caller"]
    lines += [f"    {call.caller}->>{call.room}: {call.function}" for call in calls]
    return "\n".join([*lines, "```"])


def traced(order: list[str]) -> dict[str, str]:
    """The figures of a first call and of a second one, with nothing kept on disk."""
    import numpy as np

    from tvm_conv3d.layer.conv3d import Conv3D
    from tvm_conv3d.support.folders import empty_root

    layer, x = Conv3D(16, 3, activation="relu"), np.ones((1, 8, 16, 16, 16), "float32")
    layer.build(x.shape)
    with empty_root():
        return {name: calls_figure(calls_of(lambda: layer.call(x)), order) for name in ("first call", "second call")}


def filled(page: str, parts: dict[str, str]) -> str:
    """`page` with each part between its markers.

    Raises:
        ValueError: it lacks the markers.
    """
    for name, text in parts.items():
        begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise ValueError(f"The page must have one {begin} and one {end}.")
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}"
    return page


def main() -> int:
    """Draws or checks; returns the process's exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where the page is stale")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "architecture.md")
    options = parser.parse_args()
    graph = imports()
    parts = {"figure of the rooms": rooms_figure(graph), "table of the rooms": rooms_table(graph)}
    page = options.page.read_text()
    if not options.check:
        options.page.write_text(filled(page, {**parts, **traced(in_order(graph))}))
        return 0
    expected = filled(page, parts)
    sys.stdout.writelines(difflib.unified_diff(page.splitlines(True), expected.splitlines(True), "page", "code"))
    if page != expected:
        print(f"{options.page} is not what the code says. Run: python scripts/draw_architecture.py")
    return int(page != expected)


if __name__ == "__main__":
    sys.exit(main())
