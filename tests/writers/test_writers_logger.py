"""Scalars for a logger of Lightning's kind."""

import numpy as np
import pandas as pd
import pytest

from gradwatch import moments
from gradwatch.errors import InvalidSetting
from gradwatch.records import Finding, Record, Site
from gradwatch.writers.logger import LoggerWriter

SITES = (Site("fc.weight", "parameter_grad", "Linear", (2, 2)),)


class Recorder:
    def __init__(self):
        self.logged = []

    def log_metrics(self, metrics, step):
        self.logged.append((step, metrics))


def record(step):
    return Record(step, SITES, moments.norm_rows([4], np.array([2.0])), loss=0.5)


def test_a_logger_gets_the_scalars_under_the_records_own_step():
    logger = Recorder()
    writer = LoggerWriter(logger)
    writer.report(Finding("dead_units", "fc", 3, 3, "warning"))
    writer.write(record(30))
    writer.write(record(40))
    writer.close()
    assert [step for step, _ in logger.logged] == [30, 40]
    assert logger.logged[0][1] == {
        "gradwatch/loss": 0.5,
        "gradwatch/gradient_norm/total": 2,
        "gradwatch/gradient_rms/min": 1,
        "gradwatch/gradient_rms/p10": 1,
        "gradwatch/gradient_rms/median": 1,
        "gradwatch/gradient_rms/p90": 1,
        "gradwatch/gradient_rms/max": 1,
        "gradwatch/nonfinite/total": 0,
    }


def test_what_is_no_logger_is_refused():
    with pytest.raises(InvalidSetting, match=r"logger must have a method log_metrics\(metrics, step\); str has none"):
        LoggerWriter("runs")


def test_lightnings_csv_logger_takes_them(tmp_path):
    loggers = pytest.importorskip("lightning.pytorch.loggers")
    logger = loggers.CSVLogger(tmp_path, name="", version="")
    writer = LoggerWriter(logger)
    for step in range(3):
        writer.write(record(step))
    writer.close()
    logger.finalize("success")
    frame = pd.read_csv(tmp_path / "metrics.csv")
    assert frame["step"].tolist() == [0, 1, 2]
    assert frame["gradwatch/gradient_rms/median"].tolist() == [1, 1, 1]
