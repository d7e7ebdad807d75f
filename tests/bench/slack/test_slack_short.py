"""The order of the gates holds with wide margins (marker `bench`), and the load is the same for each run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.bench.slack.figures import figures_of
from tests.bench.slack.profile import SHORT, SWINGING, arrivals
from tests.bench.slack.report import markdown
from tests.bench.slack.run import run
from tests.bench.slack.setups import PRIORITIES, RECOMMENDED, SCRAPED_SHARE


@pytest.mark.bench
def test_the_recommended_gate_uses_more_slots_than_share_and_gets_fewer_429s_than_no_gate() -> None:
    ungated = PRIORITIES[0]
    with ThreadPoolExecutor(3) as pool:
        records = list(pool.map(lambda setup: run(setup, SHORT, 1), (RECOMMENDED, SCRAPED_SHARE, ungated)))
    found = [figures_of(record) for record in records]
    recommended, share, no_gate = found

    assert recommended.used is not None
    assert share.used is not None
    assert recommended.used > 1.2 * share.used
    assert recommended.used < 1.1, "no more than there is"
    assert recommended.refused < no_gate.refused / 2
    assert recommended.real_time_failures == 0
    assert RECOMMENDED.name in markdown(list(zip(records, found, strict=True)))


def test_a_run_ends_in_a_row_of_the_report() -> None:
    record = run(RECOMMENDED, SHORT, 1)
    assert RECOMMENDED.name in markdown([(record, figures_of(record))])


def test_the_same_seed_gives_the_same_load_and_it_follows_the_phases() -> None:
    assert arrivals(SWINGING, 7) == arrivals(SWINGING, 7) != arrivals(SWINGING, 8)
    seconds_of = {phase.name: phase.seconds for phase in SWINGING.phases}
    rates = {
        name: sum(
            SWINGING.start_of(name) <= one.at < SWINGING.start_of(name) + seconds_of[name]
            for one in arrivals(SWINGING, 7)
        )
        / seconds_of[name]
        for name in ("calm", "step up", "step down")
    }
    assert rates["step up"] > 1.5 * rates["calm"]
    assert rates["step up"] > 1.5 * rates["step down"]
