"""Each file of sql/queries is accepted by the migrated schema, with the types that are written down.

A changed type is a changed seam: PGHOOKD_TEST_WRITE_TYPES=1 rewrites the list, for a reader of the diff.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pghookd.event_log.reading.reader import read_new_events
from pghookd.postgres.client import queries

WRITTEN = Path(__file__).with_name("query_types.json")
FILES = queries()
NAMES = sorted(FILES)


@pytest.fixture
def written():
    return json.loads(WRITTEN.read_text(encoding="utf-8")) if WRITTEN.exists() else {}


def statement(name):
    """Return the text of a query; one that names its bounds is filled by the reader, one that names a table here."""
    if name == "read_new_events":
        return read_new_events(0, 2**62)
    return FILES[name].replace("{table}", "events").replace("{day}", "1")


async def types_of(connection, sql):
    """PREPARE a statement: two of them at once would be refused here."""
    statement = await connection.prepare(sql)
    return {
        "parameters": [kind.name for kind in statement.get_parameters()],
        "result": {column.name: column.type.name for column in statement.get_attributes()},
    }


async def test_types_are_those_written_down(database, connect, written):
    connection = await connect(database)
    found = {name: await types_of(connection, statement(name)) for name in NAMES}
    if os.environ.get("PGHOOKD_TEST_WRITE_TYPES"):
        lines = [f'  "{name}": {json.dumps(found[name])}' for name in NAMES]
        WRITTEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        return
    assert found == written


@pytest.mark.parametrize("name", NAMES)
def test_a_header_says_what_each_parameter_is(name, written):
    header = " ".join(line for line in FILES[name].splitlines() if line.startswith("--"))
    assert header.startswith("-- ")
    assert len(header) > 30
    if written[name]["parameters"]:
        assert "$1" in header
    for number in range(len(written[name]["parameters"]) + 1, 12):
        assert f"${number} " not in header, "the header speaks of a parameter that there is not"
    assert FILES[name].endswith("\n")
