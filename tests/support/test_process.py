"""State of the process: all of it is in one list, and a forked child finds it as it needs it."""

from __future__ import annotations

import ast
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import tvm_conv3d
from processes import run
from tvm_conv3d.support import process

ROOT = Path(str(tvm_conv3d.__file__)).parent
SOURCES = {str(path.relative_to(ROOT)): path.read_text() for path in ROOT.rglob("*.py")}

#: What makes something that changes, called at a module's top.
CONTAINERS = {"dict", "list", "set", "deque", "Counter", "OrderedDict", "defaultdict", "Recent", "Event", "local"}
CONTAINERS |= {"WeakSet", "WeakKeyDictionary", "WeakValueDictionary"}

#: Instances of a module's own classes that nothing changes.
CONSTANT = {"_DEAD", "FAMILY", "_FAMILY"}

#: Where the list itself is.
OWNER = "support/process.py"


def unlisted(text: str) -> list[str]:
    """What a module keeps for its callers without :func:`tvm_conv3d.support.process.keep`."""
    tree = ast.parse(text)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    listed = {ast.unparse(call.args[1]) for call in calls if ast.unparse(call.func) == "process.keep"}
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    found = [f"global {name}" for node in ast.walk(tree) if isinstance(node, ast.Global) for name in node.names]
    for node in ast.walk(tree):
        for target in node.targets if isinstance(node, ast.Assign) else ():
            if isinstance(target, ast.Attribute) and ast.unparse(target.value) in classes:
                found.append(ast.unparse(target))
    for name, value in assigned(tree):
        if changes(value, classes) and name not in listed | CONSTANT:
            found.append(name)
    return found


def assigned(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """Names and values of a module's top."""
    for node in tree.body:
        if isinstance(node, ast.Assign):
            yield ast.unparse(node.targets[0]), node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            yield ast.unparse(node.target), node.value


def changes(value: ast.expr, classes: dict[str, ast.ClassDef]) -> bool:
    """Whether a value of a module's top is made to be changed: an empty container, or an object that is not frozen."""
    if isinstance(value, (ast.Dict, ast.List)):
        return not (value.keys if isinstance(value, ast.Dict) else value.elts)
    if not isinstance(value, ast.Call):
        return False
    name = ast.unparse(value.func).rpartition(".")[2]
    if name in CONTAINERS:
        return True
    made = classes.get(name)
    frozen = made is not None and ("frozen=True" in ast.unparse(made) or "NamedTuple" in map(ast.unparse, made.bases))
    return made is not None and not frozen


def test_all_state_is_listed() -> None:
    found = {name: unlisted(text) for name, text in SOURCES.items() if name != OWNER}
    assert {name: names for name, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "text",
    [
        "_table: dict[str, int] = {}",
        "_seen = set()",
        "_recent: Recent[str, int] = lru.Recent(4)",
        "class Store:\n    pass\nSTORE = Store()",
        "@dataclass\nclass State:\n    count: int = 0\nstate = State()",
        "class State:\n    count = 0\ndef more():\n    State.count = 1",
        "count = 0\ndef more():\n    global count\n    count = 1",
    ],
)
def test_state_that_is_not_listed_is_found(text: str) -> None:
    assert len(unlisted(text)) == 1


def test_each_name_is_given_once() -> None:
    calls = [node for text in SOURCES.values() for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    names = Counter(ast.literal_eval(call.args[0]) for call in calls if ast.unparse(call.func) == "process.keep")
    assert len(names) > 15 and set(names.values()) == {1}
    assert set(process.kept()) <= set(names)


def test_there_is_one_hook_for_forks() -> None:
    assert [name for name, text in SOURCES.items() if "register_at_fork" in text] == [OWNER]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system can't fork")
def test_a_child_renews_what_its_parents_threads_were_in_the_midst_of() -> None:
    """Another thread is inside the memory for results and among the calls in flight; the pool of threads is alive."""
    code = """
import os, sys, threading, warnings
sys.modules["torch"] = None
import numpy as np, tvm_conv3d
from tvm_conv3d.runtime import exit_guard, output_pool, parallel
from tvm_conv3d.support import process
warnings.simplefilter("ignore")
tvm_conv3d.set_num_threads(2)
layer = tvm_conv3d.Conv3D(32, 3, padding="same")
x = np.ones((1, 8, 40, 40, 32), np.float32)
expected = layer(x)
assert expected.nbytes > output_pool.MIN_BYTES and parallel.workers() == 1
renewed = {name.partition(":")[0] for name, renews in process.kept().items() if renews}
assert renewed == {"exit_guard", "output_pool", "parallel", "threads", "watched_digest"}, renewed
held, done = threading.Event(), threading.Event()
def hold():
    with output_pool._store._lock, exit_guard._calls._lock:
        held.set()
        done.wait()
threading.Thread(target=hold, daemon=True).start()
held.wait()
child = os.fork()
if child == 0:
    for _ in range(2):
        assert (layer(x) == expected).all()
    assert parallel.workers() == 1
    exit_guard._calls.close()
    os._exit(0)
status = os.waitpid(child, 0)[1]
done.set()
raise SystemExit(os.waitstatus_to_exitcode(status))
"""
    run(code)


def test_the_exit_waits_for_calls_within_calls() -> None:
    """A call that has begun may begin another, to convert its input, say, while the process already ends."""
    code = """
import threading, time
from tvm_conv3d.runtime import exit_guard
begun = threading.Event()
def work():
    with exit_guard.in_flight():
        begun.set()
        time.sleep(0.5)
        with exit_guard.in_flight():
            pass
        print("done")
threading.Thread(target=work, daemon=True).start()
begun.wait()
"""
    assert run(code) == "done\n"
