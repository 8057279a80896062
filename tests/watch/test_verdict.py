"""The verdict on beats that were made up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import pytest

from wsgi_dbguard.watch import Beat, Fault, Trouble, Way, verdict

UP = 5000.0  # seconds that the server has been up when the first beat comes
Trouble_ = Trouble | None


def a_round(
    number: int,
    *,
    kept: Trouble_ = None,
    pool: Trouble_ = None,
    fresh: Trouble_ = None,
    replaced: Mapping[str, int] = {},
    held: bool = True,
    uptime: float | None = -1.0,
) -> list[Beat]:
    """The beats of one round; `uptime` -1: the server has been up all the time."""
    at = float(number)
    if uptime == -1.0:
        uptime = UP + at

    def beat(way: Way, trouble: Trouble_, **more: Any) -> Beat:
        error = f"what {way} met" if trouble else ""
        return Beat(way=way, number=number, took=0.001, trouble=trouble, error=error, **more)

    return [
        beat(Way.KEPT, kept, at=at, held=held),
        beat(Way.POOL, pool, at=at, held=held, replaced=replaced),
        beat(Way.FRESH, fresh, at=at + 0.1, uptime=None if fresh else uptime),
    ]


def judged(*rounds: list[Beat]) -> Fault:
    return verdict(list(chain(*rounds))).fault


def well(numbers: Iterable[int], **more: Any) -> list[Beat]:
    return list(chain(*(a_round(number, **more) for number in numbers)))


def test_nothing_at_all_is_no_fault() -> None:
    assert verdict([]).fault is Fault.NONE


def test_all_is_well() -> None:
    found = verdict(well(range(10)))
    assert found.fault is Fault.NONE
    assert found.headline == "No fault"
    assert "10 of 10 new connections worked, and the server has been up for 83 min" in found.evidence


def test_killed_connections_are_the_pools_fault() -> None:
    rounds = well(range(3)) + a_round(3, kept=Trouble.ENDED, replaced={"dead": 1}) + well(range(4, 6))
    found = verdict(rounds)
    assert found.fault is Fault.CLIENT
    assert "6 of 6 new connections worked, and the server has been up for 83 min" in found.evidence
    assert "the guarded pool replaced connections before their use (1 dead)" in found.evidence
    assert any("kept open died, 1 of 6, first 3.0 s" in each and "what kept met" in each for each in found.evidence)


@pytest.mark.parametrize("cause", ["dead", "ping", "condemned"])
def test_dead_connections_that_only_the_guard_met_are_the_pools_fault(cause: str) -> None:
    assert judged(well(range(3)), a_round(3, replaced={cause: 1})) is Fault.CLIENT


@pytest.mark.parametrize("cause", ["max_lifetime", "idle_timeout"])
def test_what_the_guard_replaces_of_its_own_accord_is_no_fault(cause: str) -> None:
    assert judged(well(range(3)), a_round(3, replaced={cause: 1})) is Fault.NONE


def test_connections_that_die_in_silence_while_new_ones_work_are_forgotten_on_the_way() -> None:
    found = verdict(well(range(3)) + a_round(3, kept=Trouble.SILENT, pool=Trouble.SILENT) + well([4]))
    assert found.fault is Fault.CLIENT
    assert any("firewall" in each for each in found.evidence)


def test_restart_between_two_beats_fails_no_new_connection_and_is_the_servers_fault() -> None:
    rounds = well(range(3)) + a_round(3, kept=Trouble.ENDED, replaced={"dead": 1}, uptime=0.6)
    found = verdict(rounds)
    assert found.fault is Fault.SERVER
    assert found.evidence[0].startswith("the server restarted 2.5 s after the beginning")


def test_restart_that_interrupted_a_new_connection_is_no_network_fault() -> None:
    gone = a_round(3, kept=Trouble.BROKEN, pool=Trouble.BROKEN, fresh=Trouble.BROKEN)
    assert judged(well(range(3)), gone, well([4], uptime=1.2)) is Fault.SERVER


def test_host_that_fell_silent_and_started_again_is_the_servers_fault() -> None:
    silent = [a_round(n, kept=Trouble.SILENT, pool=Trouble.SILENT, fresh=Trouble.SILENT) for n in range(3, 30)]
    assert judged(well(range(3)), *silent, well([30], uptime=4.0)) is Fault.SERVER


def test_server_that_is_down_to_the_end_is_at_fault() -> None:
    down = [a_round(n, kept=Trouble.REFUSED, pool=Trouble.AWAY, fresh=Trouble.REFUSED, held=False) for n in (4, 5)]
    gone = a_round(3, kept=Trouble.BROKEN, pool=Trouble.BROKEN, fresh=Trouble.BROKEN)
    found = verdict(well(range(3)) + gone + [beat for each in down for beat in each])
    assert found.fault is Fault.SERVER
    assert any("nobody listened at the address" in each for each in found.evidence)


def test_refusal_in_the_name_of_a_server_that_ran_on_is_the_networks_fault() -> None:
    refused = a_round(3, kept=Trouble.BROKEN, pool=Trouble.REFUSED, fresh=Trouble.REFUSED)
    found = verdict(well(range(3)) + refused + well([4]))
    assert found.fault is Fault.NETWORK
    assert any("proxy or firewall refused" in each for each in found.evidence)
    assert any("the server ran on" in each for each in found.evidence)


@pytest.mark.parametrize("trouble", [Trouble.SILENT, Trouble.UNREACHABLE, Trouble.BROKEN])
@pytest.mark.parametrize("over", [True, False])
def test_network_that_loses_new_connections_is_at_fault(trouble: Trouble, over: bool) -> None:
    lost = a_round(3, kept=trouble, pool=trouble, fresh=trouble)
    assert judged(well(range(3)), lost, well([4]) if over else []) is Fault.NETWORK


@pytest.mark.parametrize("trouble", [Trouble.ANSWERED, Trouble.READ_ONLY, Trouble.CRASHED])
def test_server_that_says_no_is_at_fault(trouble: Trouble) -> None:
    assert judged(well(range(3)), a_round(3, fresh=trouble), well([4])) is Fault.SERVER


@pytest.mark.parametrize("trouble", [Trouble.ANSWERED, Trouble.READ_ONLY])
def test_connection_over_which_the_server_says_no_is_not_called_dead(trouble: Trouble) -> None:
    evidence = verdict(well(range(3)) + a_round(3, kept=trouble, pool=trouble, fresh=trouble)).evidence
    assert not any("died" in each for each in evidence)
    assert any(each.startswith("beats over the connection that was kept open failed, 1 of 4") for each in evidence)


def test_crash_of_another_process_of_the_server_is_its_fault_though_new_connections_work() -> None:
    found = verdict(well(range(3)) + a_round(3, kept=Trouble.CRASHED, replaced={"dead": 1}))
    assert found.fault is Fault.SERVER


def test_proxy_that_hangs_up_is_not_told_from_its_server_and_the_verdict_says_so() -> None:
    broken = a_round(3, kept=Trouble.BROKEN, pool=Trouble.BROKEN, fresh=Trouble.BROKEN)
    assert any("watch past it" in each for each in verdict(well(range(3)) + broken).evidence)
    assert not any("watch past it" in each for each in verdict(well(range(3)) + broken + well([4])).evidence)


def test_server_that_lets_in_and_answers_nobody_is_at_fault() -> None:
    hung = [
        a_round(3, kept=Trouble.SILENT, pool=Trouble.SILENT, fresh=Trouble.STUCK),
        a_round(4, kept=Trouble.STUCK, pool=Trouble.STUCK, fresh=Trouble.STUCK, held=False),
    ]
    found = verdict(list(chain(well(range(3)), *hung, well([5]))))
    assert found.fault is Fault.SERVER
    assert any("did not answer their statements, 4 of 8" in each for each in found.evidence)


def test_network_that_is_too_slow_for_new_connections_only_is_at_fault() -> None:
    assert judged(well(range(3)), well([3, 4, 5], fresh=Trouble.STUCK)) is Fault.NETWORK


def test_connection_that_could_not_be_opened_between_two_new_ones_counts_as_one_of_them() -> None:
    gone = a_round(3, kept=Trouble.BROKEN, pool=Trouble.REFUSED)
    assert judged(well(range(3)), gone, well([4])) is Fault.NETWORK


def test_several_servers_behind_one_address_have_not_restarted() -> None:
    rounds = [a_round(n, uptime=(UP if n % 2 else UP / 10) + n) for n in range(10)]
    assert judged(*rounds) is Fault.NONE


def test_server_that_tells_whole_seconds_and_has_just_started_has_not_restarted() -> None:
    assert judged(*(a_round(n, uptime=float(int(n + 0.3))) for n in range(10))) is Fault.NONE


def test_server_that_does_not_tell_its_uptime() -> None:
    assert judged(well(range(3), uptime=None), a_round(3, kept=Trouble.BROKEN, uptime=None)) is Fault.CLIENT
    gone = a_round(3, fresh=Trouble.REFUSED, uptime=None)
    assert judged(well(range(3), uptime=None), gone, well([4], uptime=None)) is Fault.SERVER


def test_each_piece_of_evidence_is_a_line() -> None:
    rounds = well(range(3)) + a_round(3, kept=Trouble.SILENT, pool=Trouble.SILENT, fresh=Trouble.SILENT) + well([4])
    for each in verdict(rounds).evidence:
        assert "\n" not in each
