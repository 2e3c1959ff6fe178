from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from micrographia.errors import UserError
from micrographia.sites import SITE_COLUMNS, concat_sites, make_sites, read_sites, write_sites

number = st.floats(-1e6, 1e6, allow_nan=False)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(number, number, st.floats(0, 1), st.sampled_from(["vacancy-1Se", "NA", "Si", "1e5"])))
)
def test_round_trip_keeps_every_value(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("sites")
    x, y, confidence, kind = zip(*rows, strict=True) if rows else ((), (), (), ())
    table = make_sites("007", x, y, kind, confidence)
    for name in ("a.csv", "b.parquet"):
        write_sites(table, folder / name)
        again = read_sites(folder / name)
        assert list(again.columns) == list(SITE_COLUMNS)
        pd.testing.assert_frame_equal(again, table, rtol=1e-14, atol=0)


def test_csv_brings_a_parquet_along_and_extra_columns_live(tmp_path):
    table = make_sites("a.tif", [1.5], [2.5], "Si").assign(angle_deg=30.0)
    write_sites(table, tmp_path / "defects.csv")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["defects.csv", "defects.parquet"]
    assert read_sites(tmp_path / "defects.csv")["angle_deg"].tolist() == [30.0]


def test_concat_of_nothing_is_an_empty_table_with_columns(tmp_path):
    for empty in (concat_sites([]), concat_sites([make_sites("a", [], [], "k")])):
        assert list(empty.columns) == list(SITE_COLUMNS)
        assert len(empty) == 0
    write_sites(concat_sites([]), tmp_path / "none.csv")
    assert len(read_sites(tmp_path / "none.csv")) == 0


def test_concat_keeps_order_and_numbers_rows_anew():
    table = concat_sites([make_sites("b", [1, 2], [3, 4], "k"), make_sites("a", [5], [6], "l", 0.25)])
    assert table["image"].tolist() == ["b", "b", "a"]
    assert table.index.tolist() == [0, 1, 2]
    assert table["confidence"].tolist() == [1, 1, 0.25]


def test_optional_columns_get_defaults(tmp_path):
    (tmp_path / "t.csv").write_text("y_px,x_px\n1,2\n")
    row = read_sites(tmp_path / "t.csv").iloc[0]
    assert (row.image, row.x_px, row.y_px, row.kind, row.confidence) == ("", 2, 1, "", 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("X,Y\n1,2\n", "x_px and y_px missing.*found: X, Y"),
        ("x_px,y_px\n1,left\n", "must be numbers"),
        ("x_px,y_px\n1,\n", "1 of 1 sites have no finite"),
        ("", "not a readable table"),
    ],
)
def test_bad_tables_say_what_is_wrong(tmp_path, text, message):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_sites(path)


def test_bad_parquet_and_missing_file(tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match=r"bad\.parquet: not a readable table"):
        read_sites(tmp_path / "bad.parquet")
    with pytest.raises(UserError, match="no such file"):
        read_sites(tmp_path / "absent.csv")


def test_lengths_and_positions_are_checked():
    with pytest.raises(UserError, match="x_px 2, y_px 1"):
        make_sites("a", [1, 2], [1], "k")
    with pytest.raises(UserError, match="no finite position"):
        make_sites("a", [np.nan], [1], "k")


def test_writing_needs_the_columns(tmp_path):
    with pytest.raises(UserError, match="kind"):
        write_sites(make_sites("a", [1], [1], "k").drop(columns="kind"), tmp_path / "t.csv")
    assert list(tmp_path.iterdir()) == []
