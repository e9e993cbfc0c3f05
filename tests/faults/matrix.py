"""The fault matrix: each fault, what happens, how long until all is normal again, and the tests that prove it.

It is data; tests/faults/test_fault_matrix.py holds it against the tests that exist and against README.md, which is made
of it: `python tests/faults/matrix.py > tests/faults/README.md`. A fault that cannot be provoked on one machine says
why. To add a fault, add a Row. Never here: the faults themselves.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Row:
    """One fault.

    Attributes:
        name: the part in trouble (P process, D database, R receivers, U data, M mail) and a number.
        fault: the fault provoked.
        happens: what the daemon makes of it.
        normal: how long until all is normal once the fault is over, or until it is noticed.
        tests: `module::test` of each proof.
        why: the part of it not provoked here, and why.
    """

    name: str
    fault: str
    happens: str
    normal: str
    tests: tuple[str, ...] = ()
    why: str = ""


MATRIX = (
    Row(
        "P1",
        "SIGKILL at a hundred random moments; with a thousand in flight; while it waits for the bell",
        "nothing lost; requests in flight or unrecorded come again, with the same id and bytes",
        "a start, about a second; with a second instance within 3 s",
        (
            "test_kill::test_ten_kills_and_two_crashes_of_postgres_lose_nothing",
            "test_fault_process::test_a_hundred_kills_at_any_moment",
            "test_fault_process::test_a_thousand_in_flight",
            "test_fault_process::test_killed_while_it_waits_for_the_bell",
            "test_doorbell::test_a_killed_waiter_is_gone_within_seconds",
            "test_fault_memory::test_killed_for_want_of_memory",
            "test_fault_crowd::test_of_four_instances_the_owner_is_killed_until_one_is_left",
        ),
    ),
    Row(
        "P2",
        "SIGTERM with many in flight",
        "nothing new starts, requests in flight end and are recorded, exit 0, no repeat",
        "within the grace",
        (
            "test_fault_process::test_a_thousand_in_flight",
            "test_drain::test_many_in_flight_and_a_busy_log_drain_without_a_repeat",
            "test_drain::test_the_grace_is_bounded_and_what_hangs_is_sent_again",
        ),
    ),
    Row(
        "P3",
        "a second signal; SIGTERM while starting, while Postgres is away, while cut off",
        "the end within the grace, without a traceback",
        "within the grace",
        (
            "test_drain::test_a_second_signal_changes_nothing",
            "test_drain::test_sigterm_before_the_database_answers_ends_at_once",
            "test_drain::test_sigterm_while_the_database_is_away_ends_at_once",
            "test_watch::test_sigterm_while_cut_off_ends_within_the_grace",
        ),
    ),
    Row(
        "P4",
        "SIGSTOP for longer than the lease, and for a minute, then SIGCONT",
        "another instance takes over; the frozen one sends and records nothing on its old lease",
        "the lease and 3 s",
        (
            "test_takeover::test_a_frozen_owner_loses_its_lease_and_never_acts_as_an_owner_again",
            "test_takeover::test_an_idle_owner_that_is_frozen_hands_over_too",
            "test_fault_process::test_frozen_for_longer_than_its_lease",
        ),
    ),
    Row(
        "P5",
        "the event loop stalls for a moment",
        "below the lease nothing is lost or repeated, and a log line reports long stalls; the watchdog ends "
        "a daemon that hangs",
        "at once",
        (
            "test_fault_process::test_frozen_for_moments",
            "test_database_copies::test_a_stalled_loop_is_logged",
            "test_drain::test_the_watchdog_is_fed_while_the_loops_move",
        ),
    ),
    Row(
        "P6",
        "no descriptor is left",
        "attempts fail as our own fault and are retried, no endpoint is blamed; just after a start the "
        "process may end",
        "the next retry",
        ("test_fault_process::test_no_descriptor_is_left",),
    ),
    Row(
        "P7",
        "the largest payloads times the concurrency; hostile answers that would fill memory; memory runs out",
        "six payloads of 10 MB at once and a bounded queue, answers are read to a bound: below 300 MB in all; "
        "a kill for want of memory is P1",
        "at once; a start",
        (
            "test_egress::test_the_memory_of_one_answer_is_bounded",
            "test_sender::test_an_endless_body_is_cut",
            "test_fault_memory::test_the_largest_payloads_times_the_concurrency_stay_below_a_cap",
            "test_fault_memory::test_many_payloads_just_small_enough_to_travel_with_their_page",
            "test_fault_memory::test_killed_for_want_of_memory",
        ),
    ),
    Row(
        "P8",
        "a resolver that is silent, for a hundred names at once",
        "names are resolved without threads; each lookup ends with its budget, other names are as quick as before",
        "at once",
        (
            "test_resolver::test_silence_ends_with_the_budget",
            "test_fault_receivers::test_dead_zones_keep_no_other_name_waiting",
        ),
    ),
    Row(
        "P9",
        "four instances on one database, without a fault, and with kills of the owner until one is left",
        "one owner at any time, no repeat without a fault",
        "at once; within 3 s of a kill",
        (
            "test_takeover::test_two_that_start_together_agree_on_one_owner",
            "test_fault_crowd::test_four_instances_without_a_fault",
            "test_fault_crowd::test_of_four_instances_the_owner_is_killed_until_one_is_left",
        ),
        why="old and new version together: there is one version so far",
    ),
    Row(
        "P10",
        "a second copy by mistake; a reload with faulty settings",
        "the copy stands by; the old settings stay",
        "at once",
        (
            "test_takeover::test_two_that_start_together_agree_on_one_owner",
            "test_away::test_a_reload_takes_new_settings_and_keeps_the_old_if_they_are_faulty",
            "test_fault_crowd::test_a_second_copy_is_started_by_mistake_again_and_again",
        ),
    ),
    Row(
        "P11",
        "standard output is full or closed",
        "lines are dropped and counted, delivery goes on",
        "at once",
        (
            "test_logs::test_a_reader_that_stopped_costs_lines_and_no_time",
            "test_logs::test_a_full_disk_and_a_closed_pipe_cost_lines_and_nothing_else",
        ),
    ),
    Row(
        "P12",
        "an event or an answer takes the process down, again and again",
        "the suspects are held, quarantined, and the log moves on; kills for no such reason hold nothing",
        "a few starts",
        (
            "test_quarantine::test_a_delivery_that_crashes_the_daemon_is_held_and_the_log_moves_on",
            "test_quarantine::test_kills_for_no_reason_hold_nothing",
        ),
    ),
    Row(
        "P13",
        "the unit under systemd, whole: it hangs, is killed, has wrong settings, wants to write, is stopped",
        "started again by watchdog and restart, not with wrong settings; all works inside its sandbox",
        "a start",
        (
            "test_fault_unit::test_it_delivers_from_inside_its_sandbox",
            "test_fault_unit::test_all_that_needs_more_than_a_socket_works_in_there",
            "test_fault_unit::test_it_is_not_ready_while_the_database_is_away",
            "test_fault_unit::test_the_password_is_in_a_credential_and_nowhere_else",
            "test_fault_unit::test_nothing_can_be_written",
            "test_fault_unit::test_it_reads_its_settings_again",
            "test_fault_unit::test_one_that_hangs_is_killed_and_started_again",
            "test_fault_unit::test_one_that_is_killed_is_started_again",
            "test_fault_unit::test_wrong_settings_are_not_tried_again",
            "test_fault_unit::test_it_ends_in_order",
        ),
    ),
    Row(
        "P14",
        "the wall before metadata services is opened by the operator",
        "the unit's own wall holds",
        "at once",
        (
            "test_fault_unit::test_no_metadata_service_can_be_reached",
            "test_fault_unit::test_the_second_wall_holds_where_the_first_was_opened",
        ),
    ),
    Row(
        "P15",
        "an operator follows the guide as it is written: Install, and later Uninstall",
        "the daemon is active and delivers, `pghookd check` finds no fault; afterwards nothing is left",
        "a start",
        (
            "test_fault_install::test_the_guide_installs_a_daemon_that_delivers",
            "test_fault_install::test_the_guide_leaves_nothing_behind",
        ),
    ),
    Row(
        "D1",
        "Postgres crashes, or is restarted",
        "memory is dropped, all sessions are opened again, nothing lost",
        "within 5 s of its return",
        (
            "test_away::test_away_for_a_while",
            "test_kill::test_ten_kills_and_two_crashes_of_postgres_lose_nothing",
            "test_fault_mail::test_owners_get_reports_of_failures_despite_other_faults",
        ),
    ),
    Row(
        "D2",
        "one session is ended",
        "as D1",
        "within a second",
        (
            "test_away::test_one_session_ended",
            "test_fault_network::test_connections_are_reset_again_and_again",
        ),
    ),
    Row(
        "D3",
        "read-only, for a while or at the start; a standby",
        "outcomes wait, then nothing is sent; a server that cannot be written to is not begun with",
        "within 5 s",
        (
            "test_fault_postgres::test_read_only_for_a_while",
            "test_fault_postgres::test_read_only_at_the_start",
            "test_reading::test_a_standby_is_not_read",
        ),
    ),
    Row(
        "D4",
        "a standby is promoted, by way of a string of several hosts; one that missed commits",
        "what its log has is delivered; what receivers saw since the fork may come again",
        "within 5 s of its promotion",
        (
            "test_recovery::test_a_promoted_standby_that_missed_commits",
            "test_fault_failover::test_failover_through_a_string_of_several_hosts",
        ),
    ),
    Row(
        "D5",
        "the result of a COMMIT is unknown",
        "committed rows are found, nothing is recorded twice",
        "within a second",
        ("test_fault_network::test_the_result_of_a_commit_is_never_known",),
    ),
    Row(
        "D6",
        "one connection goes silent, or its backend hangs",
        "it is pinged every heartbeat and lost without an answer; in mid-statement the statement's time counts. "
        "Silence while it requests the doorbell's lock is not noticed: the daemon stays half awake and reads on",
        "noticed within the heartbeat and 5 s; 10 s recording, 35 s caring, 62 s reading, all at most",
        (
            "test_fault_network::test_one_connection_goes_silent",
            "test_fault_network::test_the_bell_goes_silent_while_it_is_asked_for",
            "test_watch::test_one_backend_that_hangs_is_noticed",
            "test_watch::test_every_session_is_pinged_even_while_all_sleeps",
        ),
    ),
    Row(
        "D7",
        "a pooler in transaction mode on the path",
        "the daemon says so and ends with 78; producers are fine",
        "a start",
        (
            "test_fault_pooler::test_the_daemon_refuses_a_transaction_pooler",
            "test_fault_pooler::test_the_daemon_refuses_a_pooler_as_it_is_installed",
            "test_fault_pooler::test_check_names_a_transaction_pooler",
            "test_fault_pooler::test_check_names_a_pooler_as_it_is_installed",
            "test_fault_pooler::test_producers_go_through_a_transaction_pooler",
        ),
    ),
    Row(
        "D8",
        "a partition of a minute, both ways or one way",
        "nothing is sent once the lease cannot be proven; nothing lost",
        "noticed within 10 s; normal within 10 s of the end",
        (
            "test_fault_network::test_a_partition_of_many_leases_is_survived",
            "test_fault_network::test_only_one_way_is_open",
            "test_watch::test_a_partition_while_busy_is_noticed_and_healed",
            "test_watch::test_a_partition_while_asleep_is_noticed_and_healed",
            "test_watch::test_while_cut_off_nothing_is_sent_and_another_instance_takes_over",
        ),
    ),
    Row(
        "D9",
        "each statement takes half a second more",
        "throughput falls; nothing is lost, repeated or given up",
        "at once",
        ("test_fault_network::test_a_slow_database_costs_time_and_nothing_else",),
    ),
    Row(
        "D10",
        "too many connections, at the start or while running",
        "it waits and tries again",
        "within 5 s",
        (
            "test_away::test_too_many_connections_are_waited_for",
            "test_fault_postgres::test_too_many_connections_while_running",
        ),
    ),
    Row(
        "D11",
        "a migration holds a lock, while running or at the start; statements are cancelled, by hand or by a "
        "timeout (57014); locks that cross those of a batch (55P03, 40P01)",
        "statements are tried again, nothing lost; a lock on incidents at the start has events sent at each try",
        "within 5 s of the release",
        (
            "test_fault_postgres::test_a_migration_holds_a_lock_while_running",
            "test_fault_postgres::test_a_migration_holds_a_lock_at_the_start",
            "test_fault_postgres::test_statements_are_cancelled",
            "test_fault_changes::test_locks_that_cross_those_of_a_batch",
        ),
        why="serialization failures (40001): the daemon's transactions are READ COMMITTED, which has none",
    ),
    Row(
        "D12",
        "the server's disk is full",
        "outcomes wait and are tried again; nothing is sent that cannot be recorded",
        "within 5 s of room",
        (
            "test_fault_postgres::test_the_servers_disk_is_full",
            "test_recovery::test_no_request_starts_while_outcomes_cannot_be_recorded",
        ),
    ),
    Row(
        "D13",
        "a storm of 400,000 notifications in some seconds; hostile producers",
        "one read for many rings, memory stays as it was; deliveries go on, later by less than a second "
        "meanwhile; nothing is slept through",
        "at once",
        (
            "test_doorbell::test_hostile_producers_are_never_slept_through",
            "test_fault_changes::test_a_storm_of_notifications",
        ),
    ),
    Row(
        "D14",
        "columns, types, indexes, functions and views change during load; what it needs is renamed "
        "for a while; a newer schema",
        "plans are made again, loops that cannot go on recover; unknown columns are ignored; a newer "
        "schema is accepted unless it says no",
        "at once",
        (
            "test_migrate::test_a_newer_schema_is_accepted_unless_it_says_no",
            "test_fault_changes::test_the_schema_is_changed_during_load",
            "test_fault_changes::test_a_view_and_a_function_are_replaced_during_load",
            "test_fault_changes::test_what_it_needs_is_renamed_for_a_while",
        ),
    ),
    Row(
        "D15",
        "the daemon's clock steps by an hour, either way; the server's or the daemon's time zone changes, "
        "some of them with odd daylight saving",
        "waits go on as before, nothing comes twice, instants stay instants; a clock that differs "
        "from the server's is logged; signatures and attempted_at are "
        "as wrong as the clock is",
        "at once",
        (
            "test_database_copies::test_a_wrong_clock_is_logged",
            "test_fault_process::test_the_clock_steps",
            "test_fault_process::test_daylight_saving_begins_or_ends",
            "test_fault_changes::test_the_servers_time_zone_changes",
            "test_fault_changes::test_the_daemons_own_time_zone",
        ),
    ),
    Row(
        "D16",
        "long transactions, gaps, ids handed out again",
        "nothing is hidden by an id",
        "at once",
        (
            "test_sequence::test_no_key_is_seen_out_of_order",
            "test_recovery::test_xids_handed_out_again_after_a_crash_hide_nothing",
        ),
    ),
    Row(
        "D17",
        "a transaction that stays open",
        "reading stays bounded",
        "at once",
        (
            "test_reading::test_hundreds_of_open_transactions_do_no_harm",
            "test_plans::test_a_page_walks_the_primary_key_and_stops",
        ),
    ),
    Row(
        "D18",
        "a copy of production comes up on another machine and server",
        "it holds still until it is adopted, the original goes on",
        "`pghookd adopt`",
        (
            "test_database_copies::test_a_copy_of_production_holds_still_until_it_is_adopted",
            "test_database_copies::test_the_original_goes_on_meanwhile",
        ),
    ),
    Row(
        "R1",
        "reset while connecting, at any byte",
        "an attempt that failed, with a name; a complete head counts",
        "the next retry",
        (
            "test_egress::test_a_connection_that_drops_at_any_byte",
            "test_sender::test_a_connection_that_ends_before_the_head_is_complete",
            "test_fault_zoo::test_receivers_that_misbehave_in_every_way",
        ),
    ),
    Row(
        "R2",
        "no answer, or a byte a second",
        "a timeout; others do not wait",
        "the endpoint's timeout",
        (
            "test_sender::test_a_receiver_that_never_answers",
            "test_sender::test_one_that_trickles_its_head_is_timed_out",
            "test_verdicts::test_a_hanging_endpoint_keeps_no_other_waiting",
            "test_fault_zoo::test_receivers_that_misbehave_in_every_way",
        ),
    ),
    Row(
        "R3",
        "a good head, then silence or a reset",
        "delivered: the head decides",
        "at once",
        (
            "test_sender::test_a_body_that_stalls_leaves_the_answer",
            "test_sender::test_a_body_that_breaks_off_leaves_the_answer",
            "test_fault_zoo::test_receivers_that_misbehave_in_every_way",
        ),
    ),
    Row(
        "R4",
        "endless bodies, bombs, tiny chunks, broken framing",
        "cut at a bound",
        "at once",
        (
            "test_sender::test_an_endless_body_is_cut",
            "test_sender::test_tiny_chunks_are_bounded_too",
            "test_sender::test_broken_framing_after_the_head_leaves_the_answer",
            "test_egress::test_the_memory_of_one_answer_is_bounded",
            "test_fault_zoo::test_receivers_that_misbehave_in_every_way",
        ),
    ),
    Row(
        "R5",
        "bytes that are not HTTP, floods of 1xx, mutilated answers",
        "unreachable, with a name; recorded whatever it says",
        "the next retry",
        (
            "test_sender::test_a_flood_of_informational_responses_is_stopped",
            "test_sender::test_mutilated_responses_never_surprise",
            "test_bad_rows::test_whatever_a_receiver_says_can_be_recorded",
            "test_fault_zoo::test_receivers_that_misbehave_in_every_way",
        ),
    ),
    Row(
        "R6",
        "each kind of status; redirects",
        "one table of verdicts; no redirect is followed",
        "the next retry",
        (
            "test_verdicts::test_what_never_succeeds_is_dead_and_says_why",
            "test_verdicts::test_a_redirect_is_not_followed",
            "test_verdicts::test_gone_holds_everything_until_enabled",
            "test_fault_zoo::test_receivers_that_misbehave_in_every_way",
        ),
    ),
    Row(
        "R7",
        "hostile Retry-After",
        "read within bounds, never raises",
        "the bound",
        (
            "test_retry_schedule::test_retry_after",
            "test_retry_schedule::test_no_text_raises",
            "test_fault_zoo::test_receivers_that_misbehave_in_every_way",
        ),
    ),
    Row(
        "R8",
        "a kept connection ends in the race",
        "stale_connection, an attempt of its own",
        "the next retry",
        (
            "test_sender::test_a_kept_connection_that_dies_at_the_next_request_is_stale",
            "test_sender::test_a_connection_closed_while_idle_is_not_used",
            "test_fault_zoo::test_receivers_that_misbehave_in_every_way",
        ),
    ),
    Row(
        "R9",
        "TLS: expired, wrong name, self-signed, old, stalling",
        "refused with a name, verification stays on",
        "the next retry",
        (
            "test_egress::test_what_is_wrong_with_a_certificate_is_told_apart",
            "test_egress::test_tls_before_1_2_is_not_spoken",
            "test_sender::test_a_handshake_that_stalls",
            "test_fault_zoo::test_receivers_that_misbehave_in_every_way",
        ),
    ),
    Row(
        "R10",
        "names: unknown, silent, turning",
        "unreachable or blocked, retried",
        "the next retry",
        (
            "test_resolver::test_no_such_name_or_no_address",
            "test_resolver::test_silence_ends_with_the_budget",
            "test_egress::test_a_name_that_turns_from_public_to_private_is_never_connected_to",
        ),
    ),
    Row(
        "R11",
        "one family of addresses is broken, silent or refusing, IPv4 or IPv6",
        "the other is tried beside it",
        "within a second",
        (
            "test_egress::test_each_address_that_is_tried_is_judged_at_the_socket",
            "test_fault_receivers::test_one_family_of_addresses_is_broken",
        ),
    ),
    Row(
        "R12",
        "cookies and challenges",
        "nothing stays on a connection",
        "at once",
        (
            "test_egress::test_connections_are_shared_by_scheme_host_and_port_without_state",
            "test_fault_zoo::test_receivers_that_misbehave_in_every_way",
        ),
    ),
    Row(
        "R13",
        "the way out is cut for all",
        "a storm: first mails and clocks are held, the operator is notified; all arrives once it is back, and no "
        "owner gets a mail",
        "the next retry",
        (
            "test_monitor::test_a_storm_holds_first_mails_and_clocks_and_notifies_the_operator",
            "test_week::test_a_storm_mails_nobody_but_the_operator",
            "test_fault_receivers::test_the_way_out_is_cut_for_all",
        ),
    ),
    Row(
        "R14",
        "one endpoint far behind",
        "others are unaffected; waiting deliveries go out gently",
        "at once",
        (
            "test_outage::test_twenty_thousand_events_wait_for_an_endpoint_that_is_down",
            "test_outage::test_held_events_go_out_gently_and_live_traffic_at_once",
        ),
    ),
    Row(
        "R15",
        "a line of 64 kbit/s and 300 ms; one that stalls",
        "requests that fit into the endpoint's time arrive, others time out, and arrive once they fit",
        "the next retry",
        (
            "test_fault_receivers::test_a_thin_and_long_line",
            "test_fault_receivers::test_a_line_that_stalls",
        ),
        why="packet loss and an MTU black hole: made by the kernel's traffic control, which is not to be had "
        "everywhere; to a program above TCP they are slowness and silence, as here",
    ),
    Row(
        "U1",
        "rows with nonsense, written past the constraints: some fifty endpoints, events, times at the ends of "
        "time and beyond",
        "that delivery is dead with a reason, or goes out as it is; neighbours flow",
        "at once",
        (
            "test_bad_rows::test_an_invalid_secret_is_dead",
            "test_bad_rows::test_a_type_outside_the_pattern_is_dead",
            "test_bad_rows::test_a_time_from_another_age_is_delivered",
            "test_bad_rows::test_nobody_to_deliver_to",
            "test_bad_rows::test_a_destination_that_is_refused_is_dead_at_once",
            "test_fault_data::test_endpoints_with_nonsense_written_past_the_constraints",
            "test_fault_data::test_events_with_nonsense_written_past_the_constraints",
            "test_fault_data::test_events_at_the_ends_of_time",
        ),
    ),
    Row(
        "U2",
        "payloads: large, deep, the same key twice, NUL, lone surrogates",
        "opaque bytes; over the limit dead, too_large",
        "at once",
        (
            "test_bad_rows::test_a_payload_is_opaque",
            "test_bad_rows::test_a_payload_over_the_limit_is_dead",
            "test_fault_data::test_json_that_parsers_stumble_over",
        ),
    ),
    Row(
        "U3",
        "what a receiver says: NUL, escapes, megabytes",
        "recorded harmless and cut",
        "at once",
        ("test_bad_rows::test_whatever_a_receiver_says_can_be_recorded",),
    ),
    Row(
        "U4",
        "an endpoint changes or goes in mid-flight, ten times a second: secrets, URLs, switches",
        "queued work uses the present values",
        "at once",
        (
            "test_verdicts::test_queued_work_uses_the_url_and_secret_of_now",
            "test_verdicts::test_work_of_a_deleted_endpoint_goes_nowhere",
            "test_fault_data::test_endpoints_change_and_go_ten_times_a_second",
        ),
    ),
    Row(
        "U5",
        "events are deleted while they wait; a site is forgotten while it is sent to",
        "unreadable events are not sent, and harm nothing else; sending to the site ends",
        "at once",
        (
            "test_erasure::test_a_daemon_stops_sending_to_a_site_that_is_forgotten",
            "test_fault_data::test_events_are_deleted_while_they_wait",
        ),
    ),
    Row(
        "U6",
        "bulk inserts, the trigger switched off",
        "the poll finds them",
        "the poll's interval",
        (
            "test_doorbell::test_events_without_the_trigger_are_found_by_the_poll",
            "test_reading::test_a_big_transaction_that_was_open_at_the_last_read_comes_in_pages",
        ),
    ),
    Row(
        "U7",
        "a replay in bulk",
        "its own rate; live traffic overtakes it",
        "at once",
        (
            "test_replay::test_live_traffic_overtakes_a_replay",
            "test_replay::test_kill_and_resume_lose_nothing_and_repeat_only_requests_in_flight",
        ),
    ),
    Row(
        "U8",
        "one site floods the log",
        "others overtake it; it is delivered whole, after a crash in the middle too; deliveries that wait "
        "for long are parked",
        "at once",
        (
            "test_flood::test_others_overtake_a_flood_and_it_is_delivered_whole",
            "test_flood::test_a_crash_in_the_middle_of_a_flood_loses_nothing",
            "test_flood::test_long_waiting_events_are_parked_so_that_the_position_advances",
        ),
    ),
    Row(
        "M1",
        "the mail server is away, silent, cuts; Postgres restarts and the daemon is killed meanwhile",
        "mails wait, deliveries do not; a doubtful mail is sent again as it was; owners get one report of each "
        "delivery that failed",
        "the next try",
        (
            "test_smtp::test_a_cut_connection",
            "test_smtp::test_a_silent_server_is_left_after_a_while",
            "test_mail_road::test_an_outage_of_the_mail_server_costs_one_mail_and_no_delivery",
            "test_fault_mail::test_owners_get_reports_of_failures_despite_other_faults",
        ),
    ),
    Row(
        "M2",
        "refusals for now and for good",
        "tried again, or given up for that address",
        "the next try",
        (
            "test_smtp::test_answers",
            "test_mailer::test_an_address_that_does_not_exist_gets_nothing_for_a_week",
        ),
    ),
    Row(
        "M3",
        "STARTTLS stripped, a false certificate, a refused login",
        "nothing goes out in clear",
        "the next try",
        (
            "test_smtp::test_nothing_is_sent_in_clear_where_starttls_is_not_offered",
            "test_smtp::test_a_certificate_of_somebody_else",
            "test_smtp::test_a_refused_login_is_the_servers_and_names_no_password",
        ),
    ),
    Row(
        "M4",
        "hostile texts in mails",
        "made harmless",
        "at once",
        ("test_smtp::test_what_a_server_says_is_made_harmless",),
    ),
    Row(
        "M5",
        "killed at any step of a mail's way",
        "no digest lost, at most the one in flight comes twice",
        "a start",
        (
            "test_mail_road::test_a_kill_at_any_step_loses_no_digest_and_repeats_at_most_one",
            "test_mailer::test_a_kill_loses_nothing_and_repeats_at_most_the_mail_in_flight",
        ),
    ),
    Row(
        "M6",
        "6,000 deliveries fail within seconds",
        "two mails to each owner: one with counts, one when it works again",
        "at once",
        ("test_fault_mail::test_a_flood_of_failures_is_two_mails",),
    ),
)

KINDS = {
    "P": "The process",
    "D": "Postgres, and what lies before it",
    "R": "Receivers, and what lies before them",
    "U": "Data",
    "M": "Mail",
}

INTRO = """\
# Faults, and their effects

Each fault below is provoked for real, on one machine: daemons, Postgres, poolers, receivers and mail servers are
processes or servers of the tests, killed, frozen, starved, partitioned and filled up. In none of them is an event lost.

Where deliveries can be held against a receiver's own log, which is written before it answers, one checker
(`tests/support/checker.py`) does so afterwards: every event and endpoint is in exactly one state; every event recorded
as delivered was answered 2xx; attempts are numbered without a gap and none is invented; repeats carry the same id and
the same bytes, and are no more than the fault explains; where owners get mails, no delivery is reported twice, and each
one given up is reported. The checker is tested itself (`tests/process/test_checker.py`).

`pytest tests/faults` runs the tests of this folder (some fifteen minutes, most of them waiting); with `-m short` it
runs those that CI runs, one or more of each kind (three to four minutes). A test is skipped with a reason if the
machine lacks a tool: PgBouncer, libfaketime, IPv6, the right to mount a small disk or to make a cgroup. The tests named
`test_fault_*` are here, the others in `tests/process`, `tests/component` and `tests/unit`.

This file is made of `matrix.py`: `python tests/faults/matrix.py > tests/faults/README.md`. Limits in seconds are those
of the tests on a busy machine; a heartbeat of 2 s and a lease of 10 s, where tests have 0.5 and 4, add as much.
"""


def as_text():
    """Return README.md: the introduction, and a table for each kind of fault."""
    parts = [INTRO]
    for kind, title in KINDS.items():
        parts += [
            f"\n## {title}\n",
            "| | Fault | What happens | Normal again | Proved by |",
            "|---|---|---|---|---|",
        ]
        parts += [_line(row) for row in MATRIX if row.name[0] == kind]
    return "\n".join(parts) + "\n"


def _line(row):
    proofs = [f"`{test}`" for test in row.tests]
    if row.why:
        proofs.append(f"Not here: {row.why}")
    cells = [row.name, row.fault, row.happens, row.normal, "<br>".join(proofs)]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    print(as_text(), end="")
