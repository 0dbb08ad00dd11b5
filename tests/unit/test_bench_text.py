"""What benches say of their samples, and where it is written."""

import doctest
import importlib
import os
from pathlib import Path

import pytest

from bench import growth, machine, svg
from bench.__main__ import BENCHES, parse
from bench.cold_join import Join
from bench.options import AgentCommand, Effort
from bench.series import Series, paired, ratio, series
from bench.svg import Line, Panel, picture
from bench.table import MarkerError, Table, rewritten

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = "before\n<!-- bench nft -->\nold\n<!-- end nft -->\nafter\n"


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "bench").glob("[a-z]*.py")))
def test_module_says_what_it_is_and_its_examples_hold(name: str) -> None:
    loaded = importlib.import_module(f"bench.{name}")
    assert loaded.__doc__
    assert doctest.testmod(loaded).failed == 0


@pytest.mark.parametrize(
    ("part", "expected"), [(0.0, 1.0), (0.5, 3.0), (0.6, 3.0), (0.61, 4.0), (0.99, 5.0), (1.0, 5.0)]
)
def test_quantile_is_a_sample_that_so_many_do_not_exceed(part: float, expected: float) -> None:
    assert Series((5.0, 1.0, 4.0, 2.0, 3.0)).quantile(part) == expected


def test_series_says_median_and_spread() -> None:
    assert series([0.3, 0.1, 0.2, 0.4]).spread(1000, 0) == "250 (100-400)"
    assert series([0.001]).tail(1000) == "1.0 / 1.0"


def test_series_without_a_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="without a sample"):
        series([])


def test_ratio_to_no_floor_is_a_dash() -> None:
    assert (ratio(1.26, 0.5), ratio(1.0, 0.0)) == ("2.5", "-")


def test_ratios_are_taken_round_by_round() -> None:
    assert paired([30.0, 10.0, 22.0], [40.0, 20.0, 20.0]).spread() == "0.75 (0.50-1.10)"
    with pytest.raises(ValueError, match="longer"):
        paired([1.0], [1.0, 2.0])


def test_machine_that_has_other_work_is_said_to() -> None:
    assert 0 <= machine.busy_cores() <= (os.cpu_count() or 1)
    assert machine.load(0.1) == "quiet before it"
    assert machine.load(1.5).startswith("NOT QUIET: 1.5 cores")


def test_table_is_aligned_markdown_with_notes() -> None:
    table = Table(("peers", "s"), (("1,000", "0.5"), ("5", "12.25")), notes=("A note.",))
    assert str(table) == (
        "| peers | s     |\n|-------|-------|\n| 1,000 | 0.5   |\n| 5     | 12.25 |\n\nA note."
    )


def test_table_is_written_between_its_markers_alone() -> None:
    once = rewritten(DOCUMENT, "nft", "new \\1")
    assert once == "before\n<!-- bench nft -->\nnew \\1\n<!-- end nft -->\nafter\n"
    assert rewritten(once, "nft", "new \\1") == once


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="none"),
        pytest.param("<!-- end nft -->\n<!-- bench nft -->\n", id="wrong order"),
        pytest.param("<!-- bench nft -->\n", id="no end"),
        pytest.param(DOCUMENT + DOCUMENT, id="twice"),
        pytest.param("<!-- bench nft -->\n" + DOCUMENT, id="two beginnings"),
    ],
)
def test_document_without_a_place_is_refused_with_the_markers_to_add(text: str) -> None:
    with pytest.raises(MarkerError, match="<!-- bench nft -->"):
        rewritten(text, "nft", "new")


@pytest.mark.parametrize("name", sorted(BENCHES))
def test_performance_document_has_a_place_for_every_bench(name: str) -> None:
    text = (ROOT / "docs" / "performance.md").read_text()
    assert "\nx\n" in rewritten(text, name, "x")
    assert f"python -m bench {name}" in text


def test_without_names_all_but_the_picture_run() -> None:
    names, options, _ = parse([])
    assert names == [name for name in BENCHES if name not in {"container", "growth"}]
    assert options.effort is Effort.NORMAL
    assert [agent.name for agent in options.agents] == ["overlayd"]


def test_other_agent_is_measured_beside_ours() -> None:
    names, options, _ = parse(["--quick", "--agent", "/opt/flanneld -ip-masq", "nft"])
    assert names == ["nft"]
    assert options.pick("quick", "normal", "full") == "quick"
    assert options.agents[1] == AgentCommand("flanneld", ("/opt/flanneld", "-ip-masq"))


def test_peers_have_flannel_s_leases_unless_told_otherwise() -> None:
    assert not parse(["event"])[1].are_leases_own
    assert parse(["--leases", "own", "event"])[1].are_leases_own


def test_agents_of_one_name_are_told_apart() -> None:
    _, options, _ = parse(["--agent", "/a/overlayd", "--agent", "/b/overlayd", "nft"])
    assert [agent.name for agent in options.agents] == ["overlayd", "overlayd-2", "overlayd-3"]
    assert [agent.is_ours for agent in options.agents] == [True, False, False]


@pytest.mark.parametrize(
    "argv",
    [
        ["nonsense"],
        ["--agent", ""],
        ["--quick", "--full"],
        ["--leases", "theirs"],
        pytest.param(["--write", "/nowhere/a.md"], id="no document"),
        pytest.param(["--write", str(ROOT / "README.md"), "nft"], id="no place in the document"),
        pytest.param(["--json", "/nowhere/a.json"], id="no directory"),
    ],
)
def test_misuse_ends_with_status_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(argv)
    assert ended.value.code == 2
    assert "error" in capsys.readouterr().err


def test_picture_places_greater_values_higher_and_to_the_right() -> None:
    text = picture([Panel("a < b", (Line("one", ((1, 1), (10, 10), (100, 100))),))])
    assert "a &lt; b" in text
    curve = next(line for line in text.splitlines() if 'stroke-width="2"' in line)
    points = curve.split('"')[1].split()
    places = [tuple(map(float, point.split(","))) for point in points]
    assert places == sorted(places)
    assert [y for _, y in places] == sorted((y for _, y in places), reverse=True)
    # Equal factors are equal distances: the middle point lies in the middle.
    assert places[1][0] == pytest.approx((places[0][0] + places[2][0]) / 2, abs=0.1)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(1, 1, (1.0, 10.0)), (10, 20000, (10.0, 100.0, 1000.0, 10000.0, 100000.0))],
)
def test_axis_covers_all_values(low: float, high: float, expected: tuple[float, ...]) -> None:
    assert svg.decades(low, high) == expected


def test_growth_draws_time_cpu_memory_and_requests_of_every_agent() -> None:
    one, other = Join(0.3, 0.3, 50, 8, 0.01), Join(0.5, 0.3, 51, 8, 0.03)
    joins = {10: [one], 100: [one, other, other]}
    netlink = {10: series([0.01]), 100: series([0.02])}
    panels = growth.panels({"overlayd": joins, "other": joins}, netlink)
    assert len(panels) == 4
    ours, _, floor = panels[0].lines
    assert list(ours.points) == [(10, 0.3), (100, 0.5)]
    assert list(floor.points) == [(10, 0.02), (100, 0.05)]
    assert [line.name for line in panels[0].lines] == [
        *("overlayd", "other", "listing and netlink alone")
    ]
    assert all([line.name for line in p.lines] == ["overlayd", "other"] for p in panels[1:])
