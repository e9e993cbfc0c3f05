"""The order of functions, and which of them a schema needs; fragments in their texts."""

from __future__ import annotations

import pytest

from pghookd.postgres import function_plan
from pghookd.postgres.function_plan import AppliedFunction
from pghookd.postgres.includes import expand


def text(name, needs="", body="1"):
    head = f"-- needs: {needs}\n" if needs else ""
    return f"{head}create or replace function webhooks.{name}() returns int language sql as $$ select {body} $$;\n"


def trigger(name, needs="a", table="endpoints"):
    return (
        f"-- needs: {needs}\ncreate or replace trigger {name} after insert\n  on webhooks.{table}"
        " execute function webhooks.a();\n"
    )


def parse(**needs):
    return function_plan.parse({name: text(name, of) for name, of in needs.items()}, {})


def applied(functions, **changes):
    return [AppliedFunction(each.name, *changes.get(each.name, (each.sha256, "1.0"))) for each in functions]


def test_functions_come_after_those_they_need():
    names = [each.name for each in parse(a="c, b", b="d", c="", d="")]
    assert sorted(names) == ["a", "b", "c", "d"]
    assert names.index("a") > max(names.index("b"), names.index("c"))
    assert names.index("b") > names.index("d")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"a": text("a", "b")}, "functions/a.sql needs b, which has no file"),
        ({"a": text("a", "b"), "b": text("b", "a")}, "in a circle: "),
        ({"a": text("b")}, "functions/a.sql does not create or replace webhooks.a"),
        (
            {"a": text("a").replace("create or replace", "create")},
            "functions/a.sql does not create or replace webhooks.a",
        ),
        ({"a": text("ab")}, "functions/a.sql does not create or replace webhooks.a"),
    ],
)
def test_files_that_cannot_be_applied_are_refused(texts, message):
    with pytest.raises(ValueError, match=message):
        function_plan.parse(texts, {})


@pytest.mark.parametrize(
    ("triggers", "message"),
    [
        ({"a": trigger("a")}, "both sql/functions and sql/triggers have a file a.sql"),
        ({"t": trigger("t", "b")}, "triggers/t.sql needs b, which has no file"),
        ({"t": trigger("s")}, "triggers/t.sql does not create or replace a trigger t"),
        ({"t": text("t")}, "triggers/t.sql does not create or replace a trigger t"),
    ],
)
def test_triggers_that_cannot_be_applied_are_refused(triggers, message):
    with pytest.raises(ValueError, match=message):
        function_plan.parse({"a": text("a")}, triggers)


def test_triggers_come_last_and_those_of_events_last_of_all():
    triggers = {"b": trigger("b", "a", table="events"), "c": trigger("c", "z")}
    found = function_plan.parse({"a": text("a"), "z": text("z", "a")}, triggers)
    assert [each.file for each in found] == [
        "functions/a.sql", "functions/z.sql", "triggers/c.sql", "triggers/b.sql"
    ]  # fmt: skip


def test_signatures_are_counted():
    (function,) = function_plan.parse({"a": text("a") + text("a").replace("()", "(n int)")}, {})
    (view,) = function_plan.parse({"v": "create or replace view webhooks.v as select 1;\n"}, {})
    assert (function.signatures, view.signatures) == (2, 0)


def test_missing_and_changed_functions_are_pending_in_order():
    functions = parse(a="b", b="", c="")
    plan = function_plan.plan(functions, applied(functions[:2], b=("other", "1.0")), "1.0")
    assert [each.name for each in plan.pending] == [
        each.name for each in functions if each.name in {"b", *(each.name for each in functions[2:])}
    ]
    assert plan.newer == ()


def test_an_upgrade_replaces_and_a_downgrade_leaves_alone():
    functions = parse(a="", b="")
    rows = applied(functions, a=("other", "1.1"))
    assert [each.name for each in function_plan.plan(functions, rows, "1.2").pending] == ["a"]
    assert [each.name for each in function_plan.plan(functions, rows, "1.1.0").pending] == ["a"]
    older = function_plan.plan(functions, rows, "1.0")
    assert (older.pending, older.newer) == ((), ("a",))


def test_a_function_without_a_file_is_neither_pending_nor_newer():
    functions = parse(a="", b="")
    plan = function_plan.plan(functions[:1], applied(functions), "1.0")
    assert (plan.pending, plan.newer) == ((), ())


def test_a_newer_schema_needs_no_function():
    functions = parse(a="", b="")
    plan = function_plan.plan(
        functions, applied(functions[:1], a=("other", "1.0")), "1.0", schema_is_newer=True
    )
    assert (plan.pending, plan.newer) == ((), ("a",))


# Fragments ----------------------------------------------------------------------------------------------------------

FRAGMENTS = {"one": "-- What it is.\n-- More of it.\n1 +\n  2\n", "two": "(\n  --include one\n)\n"}


def test_a_fragment_is_included_without_its_head_and_indented():
    assert (
        expand("select\n    --include one\n    as n\n", FRAGMENTS) == "select\n    1 +\n      2\n    as n\n"
    )


def test_fragments_include_others():
    assert expand("--include two\n", FRAGMENTS) == "(\n  1 +\n    2\n)\n"


def test_other_comments_stay():
    kept = "select 1 --include one\n-- include one\n"
    assert expand(kept, FRAGMENTS) == kept


def test_an_unknown_fragment_is_refused():
    with pytest.raises(ValueError, match=r"sql/fragments/three\.sql"):
        expand("--include three\n", FRAGMENTS)
