"""Balanced splits: the published sizes, no group in two splits, and files that others read back."""

import re
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import yaml
from agedb import AGEDB
from command_line import conr
from PIL import Image

from conr_hf.data.splits import SPLITS, dir_split, is_balanced, split_counts
from conr_hf.data.tables import read_table
from conr_hf.imbalance import make_bins


def table(**columns):
    return datasets.Dataset.from_dict(columns)


def agedb():
    return table(age=[age for age, count in enumerate(AGEDB, start=1) for _ in range(count)], row=range(sum(AGEDB)))


def people(n=150, seed=0):
    """Rows of people with 1 to 25 pictures each, over some of the ages 20 to 79, the old ones rare."""
    random = np.random.default_rng(seed)
    ages, names = [], []
    for person in range(n):
        first = 20 + random.exponential(12)
        pictures = random.integers(1, 26)
        ages += np.minimum(first + random.integers(0, 12, pictures), 79).astype(int).tolist()
        names += [f"person {person}"] * pictures
    order = random.permutation(len(ages))
    return table(age=np.array(ages)[order].tolist(), person=np.array(names)[order].tolist(), file=order.tolist())


# ---- Without groups -------------------------------------------------------------------------------------------------


def test_the_published_sizes_of_agedb():
    splits = dir_split(agedb(), "age", bin_width=1)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 12208, "validation": 2140, "test": 2140}
    rows = sorted(row for part in splits.values() for row in part["row"])
    assert rows == list(range(sum(AGEDB)))  # each in exactly one split
    for name in ("validation", "test"):
        expected = {age: min(n // 3, 30) for age, n in enumerate(AGEDB, start=1) if n // 3 > 0}
        assert Counter(splits[name]["age"]) == expected


@pytest.mark.parametrize(("share", "n", "quota"), [(0.29, 100, 29), (0.5, 9, 4), (1 / 3, 3, 1), (0.1, 30, 3)])
def test_a_share_is_rounded_down_but_not_by_floating_point(share, n, quota):
    splits = dir_split(table(y=[1.0] * n + [5.0] * 40), "y", share=share, cap=1000, bin_width=1)
    assert Counter(splits["test"]["y"])[1.0] == Counter(splits["validation"]["y"])[1.0] == quota


def test_the_seed_decides_and_the_order_of_rows_does_not_where_there_are_ids():
    rows = people()
    shuffled = rows.shuffle(seed=3)
    for options in ({}, {"group": "person"}):
        once, again, other = (
            dir_split(data, "age", id_column="file", seed=seed, **options)
            for data, seed in ((rows, 1), (shuffled, 1), (rows, 2))
        )
        for name in SPLITS:
            assert once[name][:] == again[name][:]
        assert once["test"]["file"] != other["test"]["file"]
    assert dir_split(rows, "age")["test"][:] == dir_split(rows, "age")["test"][:]


def test_several_dimensions_count_by_the_rarest():
    """A row with a rare yaw is split by its yaw, whatever its pitch."""
    pitch = [0.0] * 300 + [1.0] * 300
    yaw = [0.0] * 591 + [2.0] * 9
    splits = dir_split(table(pitch=pitch, yaw=yaw), ["pitch", "yaw"], bin_width=1)
    assert [sum(y == 2.0 for y in splits[name]["yaw"]) for name in SPLITS] == [3, 3, 3]
    counts = split_counts(splits, ["pitch", "yaw"], bin_width=1)
    assert [(count.dimension, count.low, count.quota, count.rows["test"]) for count in counts] == [
        (0, 0.0, 30, 30),
        (0, 1.0, 30, 30),
        (1, 2.0, 3, 3),
    ]


def test_labels_outside_the_edges_are_for_training():
    splits = dir_split(table(y=[1.0] * 30 + [99.0] * 30), "y", edges=[0, 2, 3])
    assert [Counter(splits[name]["y"])[99.0] for name in SPLITS] == [30, 0, 0]
    assert [count.low for count in split_counts(splits, "y", edges=[0, 2, 3])] == [0.0]


# ---- With groups ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_in_two_splits_and_no_move_of_one_would_help(seed):
    rows = people(seed=seed)
    splits = dir_split(rows, "age", group="person", seed=seed)
    members = [set(splits[name]["person"]) for name in SPLITS]
    assert not members[0] & members[1] | members[0] & members[2] | members[1] & members[2]
    assert sorted(file for part in splits.values() for file in part["file"]) == list(range(len(rows)))

    ages, persons = list(rows["age"]), list(rows["person"])
    total = Counter(ages)
    quota = {age: min(n // 3, 30) for age, n in total.items()}

    def distance(home):
        held = {name: Counter() for name in SPLITS}
        for age, person in zip(ages, persons, strict=True):
            held[home[person]][age] += 1
        return sum(
            (held[name][age] - quota[age]) ** 2 / max(quota[age], 1)
            for name in ("validation", "test")
            for age in total
        )

    home = {person: name for name, of_split in zip(SPLITS, members, strict=True) for person in of_split}
    reached = distance(home)
    assert reached < 0.1 * distance(dict.fromkeys(home, "train"))
    for person in list(home)[::10]:
        assert all(distance({**home, person: name}) > reached - 1e-6 for name in SPLITS)


def test_groups_of_one_row_meet_every_quota():
    rows = agedb()
    splits = dir_split(rows.add_column("person", list(range(len(rows)))), "age", group="person")
    assert all(count.rows["validation"] == count.rows["test"] == count.quota for count in split_counts(splits, "age"))


def test_counts_are_those_of_the_rows():
    splits = dir_split(people(), "age", group="person", cap=10, bin_width=5)
    bins = make_bins([20], edges=np.arange(0, 101, 5))
    for count in split_counts(splits, "age", cap=10, bin_width=5):
        rows = {
            name: int((bins.edges[0][bins.index(part["age"])] == count.low).sum()) for name, part in splits.items()
        }
        assert count.rows == rows
        assert count.quota == min(sum(rows.values()) // 3, 10)


# ---- What is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "options", "sentence"),
    [
        ({}, {"label": "agee"}, 'no column "agee"; its columns are age, who.*with label'),
        ({}, {"group": "whom"}, 'no column "whom".*with group'),
        ({}, {"id_column": "x"}, 'no column "x".*with id_column'),
        ({"age": [1, 2, None] * 4}, {}, 'row 2, column "age": the label is missing. 3 more labels'),
        ({"age": ["1", "12 years", "2"] * 4}, {}, 'row 1, column "age": "12 years" is not a number'),
        ({"age": [1.0, float("nan"), 2.0] * 4}, {}, 'row 1, column "age": the label is nan'),
        ({"who": [*"abcdefghijk", None]}, {"group": "who"}, r'row 11: column "who" \(group\) is empty'),
        ({"who": [*"abcdefghijka"]}, {"id_column": "who"}, 'rows 0 and 11 have the same id "a"'),
        ({"who": [["a"]] * 12}, {"group": "who"}, "holds no text or numbers"),
        ({}, {"share": 0}, "share is 0; it must be greater than 0 and at most 0.5"),
        ({}, {"share": 0.51}, "share is 0.51"),
        ({}, {"share": float("nan")}, "share is nan"),
        ({}, {"cap": 0}, "cap is 0"),
        ({}, {"share": 0.5}, 'none is left for "train"'),
        ({}, {"share": 0.01}, 'falls to "validation": at share 0.01 that takes a bin with 100 rows'),
        ({"who": ["a"] * 12}, {"group": "who"}, 'groups of "who" that are no larger'),
    ],
)
def test_what_cannot_be_split_is_said_in_a_sentence(columns, options, sentence):
    rows = table(**{"age": [1, 2] * 6, "who": [*"abcdefghijkl"], **columns})
    with pytest.raises(ValueError, match=sentence):
        dir_split(rows, **{"label": "age", **options})


def test_splits_and_no_rows_are_no_data_set():
    with pytest.raises(ValueError, match="must be one datasets"):
        dir_split(datasets.DatasetDict(train=agedb()), "age")
    with pytest.raises(ValueError, match="empty"):
        dir_split(agedb().select([]), "age")


# ---- conr-hf split --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    """`faces.csv` beside a folder of photographs: five pictures of each of 40 people."""
    folder = tmp_path_factory.mktemp("album")
    Path(folder, "pictures").mkdir()
    lines = ["file,age,person,split,image"]
    for row in range(200):
        Image.new("RGB", (8, 8), (row, 255 - row, 7)).save(folder / "pictures" / f"{row:03}.png")
        split = ("train", "val")[row % 2]
        lines.append(f"{row:03},{20 + min(row % 17, 9)},person {row // 5},{split},pictures/{row:03}.png")
    (folder / "faces.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def written(album):
    out = album / "balanced"
    ended = conr(
        *("split", album / "faces.csv", "--label", "age", "--group", "person", "--id", "file", "--out", out),
        *("--share", "1/4", "--cap", 8),
    )
    assert ended.code == 0, ended.err
    return out, ended.out


def test_the_files_are_read_back_with_their_images_and_without_paths(album, written):
    out, printed = written
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["README.md", *(f"{name}.parquet" for name in SPLITS)]
    )
    files = {name: str(out / f"{name}.parquet") for name in SPLITS}
    read = datasets.load_dataset("parquet", data_files=files)
    # The Hub goes by the card.
    assert {name: len(rows) for name, rows in datasets.load_dataset(str(out)).items()} == read.num_rows
    source = read_table(album / "faces.csv")  # with ids as they are written, 007
    expected = dir_split(source, "age", group="person", id_column="file", share=0.25, cap=8)
    for name, rows in read.items():
        assert rows.column_names == ["file", "age", "person", "image"]
        assert rows["file"] == expected[name]["file"]
        assert rows["age"] == expected[name]["age"]
        for row in rows:
            assert row["image"].getpixel((0, 0)) == (int(row["file"]), 255 - int(row["file"]), 7)
        assert re.search(rf"^{name} +{len(rows)} +{len(set(rows['person']))} ", printed, re.MULTILINE)
    for path in out.iterdir():
        assert str(album).encode() not in path.read_bytes()
        assert b"pictures/" not in path.read_bytes()


def test_the_card_tells_how_and_how_many(written):
    out, _ = written
    _, header, text = (out / "README.md").read_text().split("---\n", 2)
    facts = yaml.safe_load(header)
    assert facts["configs"][0]["data_files"] == [{"split": name, "path": f"{name}.parquet"} for name in SPLITS]
    splits = {name: datasets.Dataset.from_parquet(str(out / f"{name}.parquet")) for name in SPLITS}
    sizes = {split["name"]: split["num_examples"] for split in facts["dataset_info"]["splits"]}
    assert sizes == {name: len(rows) for name, rows in splits.items()}
    command = "conr-hf split faces.csv --label_columns age --group_column person --id_column file --output balanced"
    assert f"{command} --cap 8 --share 1/4" in text
    for count in split_counts(datasets.DatasetDict(splits), "age", cap=8, share=0.25):
        assert f"| {count.low:g} | {count.quota} | {' | '.join(map(str, count.rows.values()))} |" in text


def gauges(folder, n=600):
    """A table of `n` pressures with a long tail, and one small picture for all of them."""
    Image.new("RGB", (8, 8)).save(folder / "gauge.png")
    bars = np.minimum(np.random.default_rng(0).exponential(1.5, n), 9.8).round(2)
    (folder / "gauges.csv").write_text("\n".join(["image,bar", *(f"gauge.png,{bar}" for bar in bars)]) + "\n")
    return folder / "gauges.csv"


def test_balance_is_claimed_where_it_holds_and_the_advised_cap_mends_it(tmp_path):
    source, out = gauges(tmp_path), tmp_path / "out"
    ended = conr("split", source, "--label_columns", "bar", "--output", out)
    assert ended.code == 0, ended.err
    sizes = [len(datasets.Dataset.from_parquet(str(out / f"{name}.parquet"))) for name in SPLITS]
    assert sizes[0] < 300
    warning = next(line for line in ended.out.splitlines() if line.startswith("Warning: "))
    assert "not balanced; and training keeps" in warning
    card = (out / "README.md").read_text()
    assert "not balanced over `bar`" in card
    assert "are balanced" not in card
    cap = re.search(r"--cap (\d+) mends that", warning)[1]
    ended = conr("split", source, "--label_columns", "bar", "--output", out, "--cap", cap, "--overwrite")
    assert "Warning" not in ended.out
    card = (out / "README.md").read_text()
    assert "Validation and test are balanced over `bar`" in card
    train, _, test = (datasets.Dataset.from_parquet(str(out / f"{name}.parquet")) for name in SPLITS)
    assert len(train) >= 300
    counts = split_counts(datasets.DatasetDict(train=train, test=test), "bar", cap=int(cap), bin_width=0.2)
    fullest = max(counts, key=lambda count: count.rows["train"])
    assert fullest.rows["train"] > 3 * fullest.rows["test"]  # the long tail is training's alone


def test_agedb_is_balanced_and_a_cap_that_never_acts_balances_nothing():
    splits = dir_split(agedb(), "age", bin_width=1)
    assert is_balanced(split_counts(splits, "age", bin_width=1), cap=30)
    assert not is_balanced(split_counts(splits, "age", bin_width=1, cap=10_000), cap=10_000)


@pytest.mark.parametrize("names", [("--label", "--group", "--id", "--out"), ()])
def test_the_options_of_old_are_still_options(album, tmp_path, names):
    label, group, id_, out = names or ("--label_columns", "--group_column", "--id_column", "--output")
    ended = conr("split", album / "faces.csv", label, "age", group, "person", id_, "file", out, tmp_path / "out")
    assert ended.code == 0, ended.err
    assert (tmp_path / "out" / "test.parquet").is_file()


def test_files_are_only_replaced_on_demand(album, written):
    out, _ = written
    before = (out / "test.parquet").read_bytes()
    again = ("split", album / "faces.csv", "--label", "age", "--out", out, "--seed", 7)
    ended = conr(*again)
    assert (ended.code, (out / "test.parquet").read_bytes()) == (2, before)
    assert "train.parquet, validation.parquet, test.parquet, README.md already" in ended.err
    copy = album / "copy"
    for path in out.iterdir():
        copy.mkdir(exist_ok=True)
        (copy / path.name).write_bytes(path.read_bytes())
    ended = conr(*again[:4], "--out", copy, "--seed", 7, "--overwrite")
    assert ended.code == 0, ended.err
    assert (copy / "test.parquet").read_bytes() != before


def test_several_labels_and_a_picture_as_id(album):
    source = album / "gaze.csv"
    rows = [f"pictures/{row:03}.png,{row % 7 / 10},{row % 3 + 0.5}" for row in range(200)]
    source.write_text("\n".join(["image,pitch,yaw", *rows]) + "\n")
    out = album / "gaze"
    ended = conr(*("split", source, "--label", "pitch", "yaw", "--id", "image", "--out", out, "--bin_width", 0.1, 1))
    assert ended.code == 0, ended.err
    assert "pitch 0.1 to 0.2" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--label", "ages"], 'split "train" has no column "ages"; .*Name one of them with --label_columns.'),
        (["--label", "age", "--id", "nr"], 'no column "nr"; .*with --id_column.'),
        (["--label", "age", "--image_column", "photo"], 'no images in column "photo"; .*with --image_column.'),
        (["--label", "person"], 'split "train", row 0, column "person": "person 0" is not a number.'),
        (["--label", "age", "--share", "2/3"], "share is 0.66.*at most 0.5"),
        (["--label", "age", "--share", "a third"], "'a third' must be a number or a fraction, such as 1/3"),
        (["--label", "age", "--bin_width", "0"], "'0' must be a number greater than 0"),
    ],
)
def test_the_command_refuses_in_a_sentence(album, tmp_path, options, sentence):
    ended = conr("split", album / "faces.csv", *options, "--out", tmp_path / "out")
    assert ended.code == 2
    assert re.search(sentence, ended.err), ended.err
    assert not list(tmp_path.glob("out/*"))


def test_a_picture_that_is_missing_is_named_before_anything_is_written(album, tmp_path):
    source = album / "broken.csv"
    source.write_text((album / "faces.csv").read_text().replace("pictures/006.png", "pictures/gone.png"))
    ended = conr("split", source, "--label", "age", "--out", tmp_path / "out")
    assert ended.code == 2
    assert re.search(r'split "train", row 3, column "image": .*gone\.png', ended.err), ended.err
    assert not list((tmp_path / "out").iterdir())
