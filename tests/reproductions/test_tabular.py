"""Tables read from their published formats, and made where there are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fenchel import InputError
from fenchel.reproductions.tabular import Split, label_ranking, multilabel, resplit

XML = '<labels xmlns="http://mulan"><label name="it\'s wet"></label><label name="cold"></label></labels>'
HEAD = r"""@relation weather
% the labels come last, and in another order than in the list
@attribute 'wind speed' numeric
@ATTRIBUTE sky {clear,'half clear',grey}
@attribute calm {1,0}
@attribute cold {0,1}
@attribute 'it\'s wet' {0,1}
@data
"""
TRAIN = "1.5,grey,1,0,1\n-2,'half clear',0,1,0\n"
TEST = "0,clear,1,1,1\n"


def weather(folder: Path, head: str = HEAD, train: str = TRAIN, xml: str = XML) -> str:
    place = folder / "multilabel_weather"
    place.mkdir()
    (place / "weather-train.arff").write_text(head + train)
    (place / "weather-test.arff").write_text(head + TEST)
    (place / "weather.xml").write_text(xml)
    return str(folder)


def rankings(folder: Path, text: str) -> str:
    (folder / "label_ranking").mkdir()
    (folder / "label_ranking" / "shoes.csv").write_text(text)
    return str(folder)


def test_arff(tmp_path: Path) -> None:
    (split,) = multilabel(weather(tmp_path), ["weather"])
    assert split.labels == ["it's wet", "cold"]
    np.testing.assert_array_equal(split.train_x, [[1.5, 0, 0, 1, 1], [-2, 0, 1, 0, 0]])
    np.testing.assert_array_equal(split.train_y, [[1, 0], [0, 1]])
    np.testing.assert_array_equal(split.test_x, [[0, 1, 0, 0, 1]])
    np.testing.assert_array_equal(split.test_y, [[1, 1]])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"head": HEAD.replace("numeric", "string")}, r"weather-train.arff:3 is not a numeric or nominal"),
        (
            {"head": HEAD.replace("calm", "cold")},
            "weather-train.arff:6 has the attribute 'cold' a second time",
        ),
        ({"train": "1.5,grey,1,0\n"}, r"train.arff:9 has 4 values for 5 attributes: '1.5,grey,1,0'"),
        (
            {"train": "fast,grey,1,0,1\n"},
            r"arff:9: wind speed must be a finite number, received 'fast'",
        ),
        ({"train": "1,blue,1,0,1\n"}, r"sky must be one of clear, half clear, grey, received 'blue'"),
        ({"train": ""}, "holds no rows of data after a line @data"),
        ({"xml": XML.replace("cold", "snow")}, "has no attribute for the label 'snow'"),
        ({"xml": "<labels>"}, "is not XML"),
        ({"xml": "<labels/>"}, "weather.xml lists no labels"),
        ({"train": "nan,grey,1,0,1\n"}, "wind speed must be a finite number, received 'nan'"),
        (
            {"head": HEAD.replace("cold {0,1}", "cold numeric"), "train": "1,grey,1,7,1\n"},
            r"weather-train.arff: the label 'cold' must be 0 or 1, received 7",
        ),
    ],
)
def test_arff_that_does_not_parse(tmp_path: Path, change: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        multilabel(weather(tmp_path, **change), ["weather"])


def test_commas_in_quotes_part_nothing(tmp_path: Path) -> None:
    head, train = HEAD.replace("'half clear'", "'half, clear'"), "1,'half, clear',1,0,1\n"
    folder = weather(tmp_path, head, train)
    (tmp_path / "multilabel_weather" / "weather-test.arff").write_text(head + TEST)
    (split,) = multilabel(folder, ["weather"])
    np.testing.assert_array_equal(split.train_x, [[1, 0, 1, 0, 1]])


def test_parts_with_different_attributes(tmp_path: Path) -> None:
    folder = weather(tmp_path, HEAD.replace("'wind speed'", "rain"))
    (tmp_path / "multilabel_weather" / "weather-test.arff").write_text(HEAD + TEST)
    with pytest.raises(InputError, match="parts have different attributes: rain"):
        multilabel(folder, ["weather"])


def test_rankings(tmp_path: Path) -> None:
    (found,) = label_ranking(rankings(tmp_path, "2,2,3\n0.5,-1,2,1,3\n1,1,3,2,1\n"), ["shoes"])
    np.testing.assert_array_equal(found.x, [[0.5, -1], [1, 1]])
    np.testing.assert_array_equal(found.y, [[2, 1, 3], [3, 2, 1]])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "shoes.csv:1 must hold the three numbers n,d,k, received ''"),
        ("a,b,c\n", "received 'a,b,c'"),
        ("2,1,2\n0,1,2\n", "says that it has 2 rows, and has 1"),
        ("1,1,2\n0,1\n", r"shoes.csv:2 has 2 values, not 1 features and 2 ranks"),
        ("1,1,2\n0,x,1\n", "shoes.csv:2 holds what is no finite number"),
        ("1,1,2\nnan,1,2\n", "shoes.csv:2 holds what is no finite number: 'nan,1,2'"),
        ("0,1,2\n", "at least 1 row, 1 feature and 2 labels, received '0,1,2'"),
        ("1,-1,3\n1,2\n", "received '1,-1,3'"),
        ("1,1,3\n0,1,1,3\n", r"\[1.0, 1.0, 3.0\] is not a ranking of 3 labels"),
    ],
)
def test_rankings_that_do_not_parse(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        label_ranking(rankings(tmp_path, text), ["shoes"])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no file .*emotions.xml"):
        multilabel(str(tmp_path), ["emotions"])
    with pytest.raises(InputError, match=r"there is no file .*iris.csv"):
        label_ranking(str(tmp_path), ["iris"])


def test_without_files_there_are_tables_too() -> None:
    for split in multilabel(None, ["emotions"]):
        assert set(np.unique(split.train_y)) == {0, 1} and split.train_y.shape[1] == len(split.labels)
    for table in label_ranking(None, []):
        k = table.y.shape[1]
        assert (np.sort(table.y, axis=1) == np.arange(1, k + 1)).all()
        assert len(np.unique(table.y, axis=0)) > 2  # the order says more than the first place


def test_a_new_split_holds_the_same_examples(tmp_path: Path) -> None:
    (split, _) = multilabel(None, [])
    one, same, other = resplit(split, 1), resplit(split, 1), resplit(split, 2)
    np.testing.assert_array_equal(one.train_x, same.train_x)
    assert one.train_x.shape == split.train_x.shape and not np.array_equal(one.train_x, other.train_x)

    def rows(s: Split) -> list[tuple[float, ...]]:
        x, y = np.vstack([s.train_x, s.test_x]), np.vstack([s.train_y, s.test_y])
        return sorted(map(tuple, np.hstack([x, y])))

    assert rows(one) == rows(split)
