import numpy as np
import pandas as pd
import pytest

from micrographia.errors import UserError
from micrographia.simulate.probe import Optics
from micrographia.simulate.scenes import Specimen
from micrographia.simulate.virtual import DAYS, _instrument, record
from micrographia.sites import SITE_COLUMNS

SPECIMEN = Specimen(defects={"vacancy-2Se": 0.05}, holes=0.0)


@pytest.fixture(scope="module")
def days():
    return {day: record(day, SPECIMEN, Optics(), 6, (128, 128), 0.2, seed=3) for day in DAYS}


def test_images_carry_scale_name_and_provenance(days):
    images, truth = days["day-a"]
    assert [m.name for m in images] == [f"day-a-{i:02d}.tif" for i in range(6)]
    assert {m.pixel_size_A for m in images} == {0.2}
    assert all(m.metadata["synthetic"] and m.metadata["day"] == "day-a" for m in images)
    assert list(truth.columns) == list(SITE_COLUMNS)
    assert set(truth["image"]) == {m.name for m in images}
    assert (truth["confidence"] == 1).all()


def test_the_truth_is_where_the_images_show_it(days):
    for day, (images, truth) in days.items():
        level: dict[str, list[float]] = {}
        by_name = {m.name: m.data for m in images}
        inside = truth[truth["x_px"].between(3, 124) & truth["y_px"].between(3, 124)]
        for row in inside.itertuples():
            x, y = round(row.x_px), round(row.y_px)
            level.setdefault(row.kind, []).append(by_name[row.image][y - 1 : y + 2, x - 1 : x + 2].mean())
        w, se, vacancy = (np.median(level[k]) for k in ("column-W", "column-Se", "vacancy-2Se"))
        background = np.median([np.median(m.data) for m in images])
        assert w > se > background > vacancy, day


def test_the_crystal_stands_out_less_on_day_a(days):
    def contrast(image: np.ndarray) -> float:
        return float(np.quantile(image, 0.95) - np.quantile(image, 0.3)) / float(image.mean())

    a, b = ([contrast(m.data) for m in days[d][0]] for d in ("day-a", "day-b"))
    assert np.median(a) < 0.8 * np.median(b)


def test_the_days_conditions_differ_as_stated():
    a, b = DAYS["day-a"], DAYS["day-b"]
    assert a.conditions.counts_per_A2[0] < b.conditions.counts_per_A2[0]
    assert a.conditions.source_size_A[0] >= b.conditions.source_size_A[1]
    assert a.conditions.contamination[1] > b.conditions.contamination[1]


def test_a_recording_is_repeatable_and_its_images_do_not_depend_on_their_number(days):
    images, truth = record("day-a", SPECIMEN, Optics(), 2, (128, 128), 0.2, seed=3)
    earlier, earlier_truth = days["day-a"]
    for one, two in zip(images, earlier, strict=False):
        np.testing.assert_allclose(one.data, two.data, atol=1e-5)
    pd.testing.assert_frame_equal(truth, earlier_truth.iloc[: len(truth)])


def test_the_instrument_adds_hum_spikes_saturation_and_a_slow_tail():
    stripes = np.tile(1 + np.cos(2 * np.pi * np.arange(256) / 16), (256, 1)).astype(np.float32)
    day = DAYS["day-a"]
    out = _instrument(stripes, day, 0.2, np.random.default_rng(0))
    phase = np.angle((out * np.exp(-2j * np.pi * np.arange(256) / 16)).sum(axis=1))
    shift = -(phase - phase.mean()) * 16 / (2 * np.pi) * 0.2
    power = np.abs(np.fft.rfft(shift))
    assert np.argmax(power[1:]) + 1 == pytest.approx(256 / day.hum_lines, abs=1)
    assert shift.std() == pytest.approx(day.hum_A / np.sqrt(2), rel=0.15)
    assert np.quantile(out, 0.999) < 2  # saturation
    edge = np.zeros((32, 64), np.float32)
    edge[:, 32] = 1
    tail = np.median(_instrument(edge, day, 0.2, np.random.default_rng(1)), axis=0)
    assert tail[40] > 0
    assert tail[24] == 0


def test_an_unknown_day_names_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'day-a'"):
        record("daya", SPECIMEN, Optics(), 1, (64, 64), 0.2, 0)
