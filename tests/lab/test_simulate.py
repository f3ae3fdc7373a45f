"""The lab's simulation: the published drift, the monitor's false alarms, responses, laws and the command."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from scipy import stats

from dynamic_dpo.cli.lab import simulate as command
from dynamic_dpo.errors import ConfigError
from dynamic_dpo.lab import Scenario, margin_law, simulate
from dynamic_dpo.lab.alarms import AlarmCounter
from dynamic_dpo.lab.simulation import LAB_MODES
from dynamic_dpo.methods.risk.config import RiskConfig, RiskMode
from dynamic_dpo.methods.risk.monitor import Monitor

# Change of ln beta per 1,000 updates on margins that carry no signal: n, law, mode paper.
PUBLISHED = [
    (4, "normal", 1.32),
    (16, "normal", 0.97),
    (64, "normal", 0.55),
    (512, "normal", 0.20),
    (16, "t3", 0.47),
]


@pytest.mark.parametrize(("n", "law", "drift"), PUBLISHED)
def test_the_published_drift_is_found_again_and_exact_has_none(n: int, law: str, drift: float) -> None:
    chains = {512: 12, 64: 24}.get(n, 48)
    paper, exact, rm = simulate(["paper", "exact", "rm"], n=[n], law=law, chains=chains).rows
    assert paper.drift_per_1000 == pytest.approx(drift, abs=0.1)
    assert abs(exact.drift_per_1000) <= 0.02
    assert abs(rm.drift_per_1000) <= 0.03
    assert max(row.standard_error for row in (paper, exact, rm)) < 0.02


def test_paper_rests_above_delta_and_the_others_on_it() -> None:
    paper, exact, rm = simulate(["paper", "exact", "rm"], chains=24).rows
    assert paper.p_hat == pytest.approx(0.127, abs=0.003)
    assert exact.p_hat == pytest.approx(0.1, abs=0.002)
    assert rm.p_hat == pytest.approx(0.1, abs=0.002)


def test_the_monitor_gives_less_than_one_false_alarm_in_4400_updates() -> None:
    # Counts of an exactly true rate: the target's, against the law's own quantile. 4,400 are promised at threshold
    # 5,000; over 300 runs to an alarm are needed to tell.
    (row,) = simulate(["target"], chains=1000, updates=4000).rows
    assert row.alarms is not None
    assert row.alarms >= 300
    assert row.updates_per_alarm is not None
    assert row.updates_per_alarm >= 4400


def test_the_monitor_keeps_its_promise_on_the_sliding_window_of_exact() -> None:
    (row,) = simulate(["exact"], chains=600, updates=1500).rows
    assert row.alarms is not None
    # 900,000 updates: more than 900,000 / 4,400 = 204 alarms would break it.
    assert row.alarms <= 204
    assert row.alarms > 0


def test_a_doubled_rate_over_the_budget_is_found_within_a_dozen_updates() -> None:
    # P(N > 1.2816 - 0.44) = .2: twice delta.
    assert stats.norm.sf(stats.norm.isf(0.1) - 0.44) == pytest.approx(0.2, abs=0.001)
    (row,) = simulate(["target"], scenario=Scenario("step", size=0.44, at=50), updates=150, chains=400).rows
    assert row.detected == 1.0
    assert row.delay is not None
    assert 6 < row.delay < 14


@pytest.mark.parametrize("n", [1, 16])
def test_the_counted_alarms_are_the_monitors_own(n: int) -> None:
    config = RiskConfig(monitor="report", monitor_threshold=30.0)
    rates = np.random.default_rng(0).binomial(n, 0.15, size=(200, 5)) / n
    monitors, counter = [Monitor(config) for _ in range(5)], AlarmCounter(config, 5)
    for update, row in enumerate(rates):
        alarms = [monitor.observe(p_hat=float(p), n=n) for monitor, p in zip(monitors, row, strict=True)]
        assert counter.observe(row, n, update).tolist() == alarms
        assert counter.log_sum == pytest.approx([monitor.log_sum for monitor in monitors], rel=1e-12)
    assert counter.num_alarms == sum(monitor.num_alarms for monitor in monitors) > 3


def test_beta_rises_while_the_tail_runs_away_and_then_rests() -> None:
    ramp = simulate(["exact"], scenario=Scenario("ramp", size=8.0), chains=32, updates=400).rows[0]
    still = simulate(["exact"], chains=32, updates=400).rows[0]
    assert ramp.drift_per_1000 > 0.5
    assert abs(still.drift_per_1000) < 0.05
    # A step is a matter of a few updates; a level that stays high goes unnoticed but by target.
    step = {"scenario": Scenario("step", size=3.0, at=50), "chains": 16, "updates": 600}
    exact, target = simulate(["exact", "target"], **step).rows  # type: ignore[arg-type]
    assert exact.beta_final < 0.15
    assert target.beta_final > 0.5


def test_a_wider_law_is_a_change_of_scale() -> None:
    widened = simulate(
        ["paper"], scenario=Scenario("step", "scale", math.log(4.0), 20), chains=32, updates=60
    )
    assert widened.rows[0].beta_final > simulate(["paper"], chains=32, updates=60).rows[0].beta_final
    # Scale alone, from the start, changes nothing: the tests see no units.
    same = [
        simulate(modes := ["paper", "exact", "rm"], chains=8, updates=50).rows,  # type: ignore[arg-type]
        simulate(modes, law=scaled(), chains=8, updates=50).rows,  # type: ignore[arg-type]
    ]
    for plain, wide in zip(*same, strict=True):
        assert wide.drift_per_1000 == pytest.approx(plain.drift_per_1000, rel=1e-6, abs=1e-9)


def scaled() -> Any:
    law = margin_law("normal")
    return type(law)("normal × 4", lambda rng, shape: np.float32(4.0) * law.draw(rng, shape))


def test_schedule_has_the_drift_of_paper_and_fixed_has_none() -> None:
    paper, schedule, fixed = simulate(["paper", "schedule", "fixed"], chains=24).rows
    assert schedule.drift_per_1000 == pytest.approx(paper.drift_per_1000, abs=0.05)
    assert fixed.drift_per_1000 == 0.0
    assert fixed.beta_final == pytest.approx(0.1)
    assert fixed.p_hat is None


def test_bounds_hold_where_asked() -> None:
    config = RiskConfig(momentum=0.1, beta_max=0.12)
    modes = ["paper", "schedule"]
    for row in simulate(modes, config=config, chains=8, bounded=True).rows:  # type: ignore[arg-type]
        assert row.beta_final <= 0.12 * (1 + 1e-12)
    for row in simulate(modes, config=config, chains=8).rows:  # type: ignore[arg-type]
        assert row.beta_final > 0.2


def test_the_same_seed_gives_the_same_result_and_another_another() -> None:
    first, again, other = (
        simulate(get_args(RiskMode), chains=4, updates=30, seed=seed).to_dict() for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("spec", "reference"),
    [
        ("normal", stats.norm()),
        ("t3", stats.t(3)),
        ("t2.5", stats.t(2.5)),
        ("lognormal", stats.lognorm(1.0)),
        ("laplace", stats.laplace()),
        ("uniform", stats.uniform()),
    ],
)
def test_laws_are_what_their_names_say(spec: str, reference: Any) -> None:
    law = margin_law(spec)
    drawn = law.draw(np.random.default_rng(1), (20, 1000))
    assert (drawn.shape, drawn.dtype) == ((20, 1000), np.float32)
    assert stats.kstest(drawn.ravel(), reference.cdf).pvalue > 1e-3
    assert law.quantile(0.9) == pytest.approx(reference.ppf(0.9), rel=0.02)


@pytest.mark.parametrize("spec", ["gauss", "t", "t0", "no/such/folder"])
def test_unknown_laws_are_refused(spec: str) -> None:
    with pytest.raises(ConfigError, match="law"):
        margin_law(spec)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modes": ["fast"]}, "mode must be one of paper, exact, rm, target, schedule, fixed"),
        ({"n": [0]}, "need n >= 1"),
        ({"n": []}, "need n >= 1"),
        ({"updates": 0}, "updates >= 1"),
        ({"chains": 1}, "chains >= 2"),
        ({"scenario": Scenario("step", size=1.0, at=1000)}, "begins at update 1000"),
        ({"config": RiskConfig(alpha_scale="auto")}, "device batch"),
    ],
)
def test_impossible_simulations_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        simulate(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"change": "jump", "size": 1.0}, "change must be one of none, step, ramp"),
        ({"change": "step", "of": "median", "size": 1.0}, "of must be one of mean, scale"),
        ({"change": "step"}, "a step needs a size other than 0"),
        ({"change": "step", "size": math.inf}, "finite"),
        ({"change": "step", "size": 1.0, "at": -1}, "at must be at least 0"),
    ],
)
def test_impossible_scenarios_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Scenario(**settings)


def test_the_command_prints_a_table_and_writes_json_and_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / "out.json", tmp_path / "deep" / "out.png"]
    arguments = (
        f"--mode {','.join(LAB_MODES)} --n 4,16 --law laplace --updates 40 --chains 4 --change ramp --size 2"
    )
    arguments += f" --at 10 --set delta=0.2 alpha=1e-2 --json {files[0]} --plot {files[1]}"
    assert command.main(arguments.split()) == 0
    out = capsys.readouterr().out
    assert "ramp of the mean by +2 per 1,000 updates from update 10" in out
    assert "margin budget" in out
    assert out.count("schedule") == 2
    result = json.loads(files[0].read_text())
    assert len(result["rows"]) == len(result["traces"]) == 12
    assert (result["config"]["delta"], result["config"]["alpha"]) == (0.2, 0.01)
    assert files[1].read_bytes()[:4] == b"\x89PNG"


def test_the_commands_mistakes_end_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ("--mode fast", "--n four", "--law gauss", "--set speed=1", "--set delta", "--mode ,"):
        assert command.main(arguments.split()) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 6
    assert all(line.startswith("error: ") for line in errors)
    assert "whole numbers, got 'four'" in errors[1]
