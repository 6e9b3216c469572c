"""What a reader has to learn has a budget: public names per package, members per contract, modules per room.

A budget may fall with every change. To raise one, write a record in `docs/decisions/` that says why the new name pays for what a reader has
to learn, and name the record beside the number here.
"""

import ast
import re
from collections import Counter
from functools import cache

import pytest

from tools.source_tree import PROJECT, ROOT, nodes_of, sources, tree_of

NAMES = {  # what `from sabot.X import …` offers, by the stub of the package, without the names of the wing
    "": 139,  # docs/decisions/078, 079, 066, 084, 088
    "agents": 104,  # docs/decisions/043, 120, 129, 144
    "connectors": 7,  # docs/decisions/113, 126
    "journal": 8,
    "llm": 68,
    "mcp": 23,
    "process": 55,  # docs/decisions/068
    "testing": 19,
    "web": 3,  # docs/decisions/131
}
WING = {"agents": 37, "mcp": 24, "process": 46}  # names of the documents, which stand in `sabot.specified`; 105, 160
FIRST = 480  # the most names in all faces that a user meets first

MEMBERS = {  # of a contract that more than one class fulfils: methods, properties and attributes
    "api/nodes/node.py:Node": 27,  # 058
    "engine/checkpoint/places/base.py:Place": 28,
    "codecs/base.py:Codec": 4,
    "codecs/base.py:Format": 13,
    "connectors/base.py:Delivers": 10,  # 051, 109, 128, 153
    "connectors/base.py:Sink": 17,  # 113
    "connectors/base.py:Source": 26,  # 113, 122, 134, 143
    "connectors/files/formats/base.py:FileFormat": 46,  # 114, 116
    "jobs/guard.py:EffectGuard": 12,  # 044, 115, 187: two go when a worker takes trees one by one
    "jobs/owner.py:JobOwner": 15,
    "journal/base.py:Journal": 20,  # 060, 125, 129, 130, 133, 156
    "journal/base.py:JournalReader": 29,  # 060, 121, 129, 130, 133, 140, 155, 156, 183
    "llm/provider.py:Provider": 7,
    "engine/operators/base.py:FilledFromTable": 3,
    "engine/operators/base.py:HoldsMarks": 2,
    "engine/operators/base.py:Operator": 8,
    "engine/operators/base.py:Restorable": 2,
    "engine/operators/base.py:Stateful": 7,
    "engine/operators/base.py:WaitsForCalls": 4,
}
ABILITIES = {"Bounded", "TakesBound", "Scans", "Delivers", "KeepsToken", "TakesChanges", "Stages"}  # of connectors; 113
LINES = {
    "kafka/source.py:KafkaSource": 100,
    "agents/replay/fork.py": 400,
    "engine/runtime/watch/bottleneck.py": 350,
}  # of a class or a module that is a thin face: fewer
PRIVATE_READS, PATCHES = 187, 128  # lines of tests that read a private attribute of another object, or replace one
SHAPES = {"JobRecord", "JobState", "EndedJob", "FoldedJob", "InboxQuestion"}  # of a job; 118
TOTALS = {"protocols": 90, "functions that return dict[str, Any]": 229}  # of all rooms; 099, 160
CLASSES = {  # of a folder at the root with those in it; "" has the modules beside them; 170
    "": 41,
    "_cython": 0,
    "agents": 221,
    "api": 135,
    "app": 4,
    "base": 77,
    "cli": 17,
    "codecs": 65,
    "connectors": 193,
    "demos": 18,
    "engine": 686,
    "jobs": 66,
    "journal": 85,
    "kafka": 25,
    "llm": 69,
    "mcp": 40,
    "process": 74,
    "specified": 116,
    "sql": 116,
    "testing": 51,
    "web": 64,
}
OF_A_FOLDER = 20  # modules, in these rooms and their folders
FOLDERS = ("engine/runtime", "sql", "agents", "process", "connectors", "specified")
FOLD = (
    "the result of one function is a tuple, a class with one method a function, and one with the fields of another that one; else raise"
    " the line of its folder in CLASSES, and say in the commit which class that is there carries it less well, and why"
)
HINT = "say in docs/decisions/ why it pays for what a reader has to learn, and name the record beside its budget in tests/test_budgets.py"


def stubs(*, wing: bool = False) -> dict[str, int]:
    """The number of names in the stub of each package: those that stand in the wing of the documents, or all others."""
    found = {}
    for path in [ROOT / "__init__.pyi", *sorted(ROOT.glob("*/__init__.pyi"))]:
        name = "" if path.parent == ROOT else path.parent.name
        nodes = (node for node in tree_of(path).body if isinstance(node, ast.ImportFrom))
        found[name] = sum(
            len(node.names) for node in nodes if (node.module or "").startswith("sabot.specified.") == wing
        )
    return found


def members(contract: str) -> set[str]:
    """The public names that the body of a class defines."""
    place, _, name = contract.partition(":")
    (body,) = (node.body for node in nodes_of(ROOT / place, ast.ClassDef) if node.name == name)
    found: set[str] = set()
    for node in body:
        match node:
            case ast.FunctionDef(name=each) | ast.AsyncFunctionDef(name=each) | ast.AnnAssign(target=ast.Name(id=each)):
                found.add(each)
            case ast.Assign(targets=targets):
                found |= {each.id for each in targets if isinstance(each, ast.Name)}
    return {each for each in found if not each.startswith("_")}


def totals() -> dict[str, int]:
    """The number of protocols, and of functions whose result only its author can read."""
    trees = sources(".py").values()
    classes = (node for path in trees for node in nodes_of(path, ast.ClassDef))
    functions = (
        node for path in trees for kind in (ast.FunctionDef, ast.AsyncFunctionDef) for node in nodes_of(path, kind)
    )
    are_protocols = ("Protocol" in {ast.unparse(base).split("[")[0] for base in node.bases} for node in classes)
    returned = (ast.unparse(node.returns) for node in functions if node.returns is not None)
    return dict(
        zip(TOTALS, (sum(are_protocols), sum(each.startswith("dict[str, Any]") for each in returned)), strict=True)
    )


def classes() -> dict[str, int]:
    """The number of classes in each folder of the package, with those within functions and classes."""
    found: Counter[str] = Counter()
    for place, path in sources(".py").items():
        found[place.partition("/")[0] if "/" in place else ""] += len(nodes_of(path, ast.ClassDef))
    return found


def abilities() -> set[str]:
    """The abstract classes of the page of connectors, without the source and the sink."""
    found: set[str] = set()
    for node in nodes_of(ROOT / "connectors/base.py", ast.ClassDef):
        if {ast.unparse(base) for base in node.bases} & {"ABC", *found}:
            found.add(node.name)
    return found - {"Source", "Sink"}


def lines(place: str) -> int:
    path, _, name = place.partition(":")
    if not name:
        return len((ROOT / path).read_text().splitlines())
    (node,) = (node for node in nodes_of(ROOT / path, ast.ClassDef) if node.name == name)
    return (node.end_lineno or 0) - node.lineno + 1


PUBLIC = {
    "_exit",
    "_replace",
    "_asdict",
    "_fields",
    "_current_frames",
    "_getframe",
    "_cython",
}  # in spite of their first letter
READ = re.compile(
    r"(?<!\bself)(?<!\bcls)(?<!\bsuper\(\))(?<!\bKafkaError)(?<!\bplatform)(?<=[\w)\]])\.(_[A-Za-z]\w*)\b(?<!_)"
)
PATCH = re.compile(
    r"""\b(?:set|del)attr\(.*["'](?:[\w.]*\.)?_[A-Za-z]\w*["']|^\s+["']sabot\.[\w.]*\._[A-Za-z]\w*["'],$"""
)
TEXT = re.compile(r"""(["']).*?\1""")
OWN = re.compile(r"\b(?:def|class) (_\w+)|^\s+(?:self\.)?(_\w+)\s*[:=]", re.MULTILINE)


@cache
def private_names() -> tuple[list[str], list[str]]:
    """The lines of all tests that read a private attribute which their file does not define, and those that replace one."""
    reads, patches = [], []
    for path in sorted((PROJECT / "tests").rglob("*.py")):
        text = path.read_text()
        lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if "._" in line or '"_' in line]
        own = {name for pair in OWN.findall(text) for name in pair} | PUBLIC if lines else PUBLIC
        for number, line in lines:
            place = f"{path.relative_to(PROJECT)}:{number}"
            if PATCH.search(line):
                patches.append(place)
            elif not own.issuperset(READ.findall(TEXT.sub("", line))):
                reads.append(place)
    return reads, patches


def shapes() -> set[str]:
    """The classes that have an agent's job with its status, or hold the record of one job."""
    found = set()
    for node in (node for path in sources(".py").values() for node in nodes_of(path, ast.ClassDef)):
        fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
        has = {ast.unparse(each.target): ast.unparse(each.annotation) for each in fields}
        began = has.keys() >= {"agent", "status"} and has.keys() & {"created_at", "created_ms"}
        if began or {"JobRecord", "JobRecord | None"} & {*has.values()}:
            found.add(node.name)
    return found


def repeated_docstrings() -> list[str]:
    """The methods that override one of ours, and whose docstrings have its words alone."""
    classes = {node.name: node for path in sources(".py").values() for node in nodes_of(path, ast.ClassDef)}

    def words(node: ast.ClassDef) -> dict[str, str]:
        methods = (each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef))
        return {each.name: " ".join(re.findall(r"\w+", ast.get_docstring(each) or "")) for each in methods}

    def above(node: ast.ClassDef) -> dict[str, str]:
        """Of all classes from which this one inherits: the words of each method."""
        names = (ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in node.bases)
        found: dict[str, str] = {}
        for base in (classes[name] for name in names if name != node.name and name in classes):
            found = {**above(base), **words(base), **found}
        return found

    return [
        f"{node.name}.{name}"
        for node in classes.values()
        for inherited in [above(node)]
        for name, said in words(node).items()
        if said and not name.startswith("__") and inherited.get(name, "").startswith(said)
    ]


def test_a_package_offers_no_more_names_than_its_budget() -> None:
    found = stubs()
    assert found.keys() == NAMES.keys(), (
        "a package with an __init__.pyi has a line in NAMES of tests/test_budgets.py, a package that is gone has none"
    )
    assert {name: count for name, count in found.items() if count > NAMES[name]} == {}, HINT
    assert sum(found.values()) <= FIRST, HINT
    assert {name: count for name, count in stubs(wing=True).items() if count > WING.get(name, 0)} == {}, HINT


@pytest.mark.parametrize("contract", MEMBERS)
def test_a_contract_has_no_more_members_than_its_budget(contract: str) -> None:
    found = members(contract)
    assert found, "the walk sees nothing"
    assert len(found) <= MEMBERS[contract], f"{HINT}: {sorted(found)}"


@pytest.mark.parametrize("room", FOLDERS)
def test_a_folder_has_no_more_modules_than_a_reader_looks_through(room: str) -> None:
    folders = [path for path in [ROOT / room, *(ROOT / room).rglob("*")] if path.is_dir()]
    counts = {path.relative_to(ROOT).as_posix(): len(list(path.glob("*.py"))) for path in folders}
    assert counts[room]
    wide = {name: count for name, count in counts.items() if count > OF_A_FOLDER}
    assert wide == {}, "cut it by what its modules are about, or move one to the room that uses it"


def test_protocols_and_results_without_types_do_not_become_more() -> None:
    """A protocol with one implementer, or one that lists the methods of two classes below it, is a class or a union."""
    found = totals()
    assert all(found.values()), "the walk sees nothing"
    assert {name: count for name, count in found.items() if count > TOTALS[name]} == {}, HINT


def test_no_folder_has_more_classes_than_its_budget() -> None:
    found = classes()
    assert found.keys() == CLASSES.keys(), (
        "a folder has a line in CLASSES of tests/test_budgets.py, one that is gone none"
    )
    assert {name: count for name, count in found.items() if count > CLASSES[name]} == {}, FOLD


def test_connectors_have_no_more_abilities_than_their_budget() -> None:
    assert abilities() == ABILITIES, HINT


@pytest.mark.parametrize("place", LINES)
def test_a_face_has_fewer_lines_than_its_budget(place: str) -> None:
    assert 0 < lines(place) < LINES[place], "move what belongs to the room behind it there"


def test_tests_name_no_more_privates_than_their_budget() -> None:
    """A test that reads what a user cannot see fails when the code inside changes, and passes when the behaviour does."""
    reads, patches = private_names()
    assert len(reads) <= PRIVATE_READS, f"read a public name, or look at what a user sees: {reads}"
    assert len(patches) <= PATCHES, f"plant the fault at a public name, or outside the program: {patches}"


def test_no_docstring_repeats_that_of_the_method_that_is_overridden() -> None:
    assert repeated_docstrings() == [], "delete it: help() shows that of the method above"


def test_a_job_has_no_more_shapes_than_its_budget() -> None:
    assert shapes() == SHAPES, HINT


def test_a_budget_with_room_is_lowered() -> None:
    """What a change has saved, the next one does not spend unseen."""
    wide = {name: count for name, count in stubs().items() if count < NAMES[name]}
    wide |= {f"{name} (wing)": count for name, count in stubs(wing=True).items() if count < WING.get(name, 0)}
    wide |= {name: len(members(name)) for name, most in MEMBERS.items() if len(members(name)) < most}
    wide |= {name: count for name, count in totals().items() if count < TOTALS[name]}
    wide |= {f"{name} (classes)": count for name, count in classes().items() if count < CLASSES.get(name, 0)}
    reads, patches = private_names()
    wide |= {
        name: now
        for name, now, most in [("READS", len(reads), PRIVATE_READS), ("PATCHES", len(patches), PATCHES)]
        if now < most
    }
    assert wide == {}, "lower these budgets in tests/test_budgets.py to the numbers shown"
