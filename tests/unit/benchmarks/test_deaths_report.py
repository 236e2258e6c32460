"""The benchmark of deaths: what it makes of the suite's trials."""

from dataclasses import replace

from benchmarks.deaths import Trial, report_of

SURE = Trial(mode="synchronous", acknowledged=400, lost=0, loss_s=0.0, gauge_s=0.02, restore_s=0.7)
STREAMED = Trial(mode="streaming", acknowledged=300, lost=90, loss_s=0.25, gauge_s=0.4, restore_s=0.9)


def test_a_mode_has_a_row_with_sums_worst_and_median() -> None:
    slower = replace(STREAMED, acknowledged=700, lost=10, loss_s=0.5, gauge_s=0.55, restore_s=1.1)
    report = report_of([SURE, STREAMED, slower], failed="")
    assert report.grids[0].rows == [
        ["synchronous", 1, 400, 0, "0.000", "0.020", "0.70"],
        ["streaming", 2, 1000, 100, "0.500", "0.150", "1.00"],
    ]
    assert report.verdict == (
        "0 acknowledged commits lost in synchronous mode (aim 0), at worst 0.500 s in streaming mode (aim 1); "
        "the gauge off by at most 0.150 s (aim 1)"
    )
    assert [one["lost"] for one in report.results["trials"]] == [0, 90, 10]


def test_a_suite_that_was_not_content_is_told_with_its_words_beside_what_was_found() -> None:
    report = report_of([replace(SURE, lost=3, loss_s=0.1)], failed="assert 3 == 0")
    assert report.verdict.startswith("3 acknowledged commits lost in synchronous mode")
    assert report.verdict.endswith("the suite FAILED:\nassert 3 == 0")
