"""Public file formats, good and bad."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp

from router.errors import DataError, MissingDataError
from router.loaders import (
    interaction_matrices,
    read_adjacency_lists,
    read_persona_route,
    read_recbole,
    read_route_profile,
    read_routerbench,
    read_square_adjacency,
)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# Interactions


def test_adjacency_lists(tmp_path: Path) -> None:
    found = read_adjacency_lists(write(tmp_path / "train.txt", "0 5 7\n\n3\n2 5\n"))
    np.testing.assert_array_equal(found.users, [0, 0, 2])
    np.testing.assert_array_equal(found.items, [5, 7, 5])
    with gzip.open(tmp_path / "train.txt.gz", "wt") as file:
        file.write("0 5 7\n2 5\n")
    np.testing.assert_array_equal(read_adjacency_lists(tmp_path / "train.txt.gz").items, found.items)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 1\n1 x\n", r"train.txt: row 2: keys must be integers, not negative \(got '1 x"),
        ("0 1\n1 -2\n", r"row 2: keys must be integers, not negative"),
        ("0 1\n1 2\n0 3\n", r"row 3: a user must have one line \(user 0 has row 1 too\)"),
        ("0\n", r"empty \(no interactions\)"),
        ("", r"empty \(no interactions\)"),
    ],
)
def test_bad_adjacency_lists(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_adjacency_lists(write(tmp_path / "train.txt", text))


def test_truncated_gzip_and_missing_file(tmp_path: Path) -> None:
    packed = gzip.compress("".join(f"{user} 1 2\n" for user in range(500)).encode())
    (tmp_path / "cut.txt.gz").write_bytes(packed[:-12])
    with pytest.raises(DataError, match=r"cut.txt.gz: truncated or damaged gzip file"):
        read_adjacency_lists(tmp_path / "cut.txt.gz")
    with pytest.raises(MissingDataError, match=r"none.txt: no such file"):
        read_adjacency_lists(tmp_path / "none.txt")


RECBOLE = "item_id:token\tuser_id:token\trating:float\textra:token\ttimestamp:float\n"


def test_recbole(tmp_path: Path) -> None:
    text = RECBOLE + 'i1\tu "1\t3.5\tx\t100\ni2\tu2\t1\t\t101.5\n'
    found = read_recbole(write(tmp_path / "set.inter", text))
    np.testing.assert_array_equal(found.users, ['u "1', "u2"])
    np.testing.assert_array_equal(found.items, ["i1", "i2"])
    np.testing.assert_array_equal(found.weights, [3.5, 1.0])
    np.testing.assert_array_equal(found.timestamps, [100.0, 101.5])
    bare = read_recbole(write(tmp_path / "bare.inter", "user_id:token\titem_id:token\na\tb\n"))
    assert bare.weights is None
    assert bare.timestamps is None


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("user_id:token\trating:float\na\t1\n", MissingDataError, r"no column 'item_id' \(there are user_id"),
        ("", MissingDataError, r"no column 'user_id' \(there are none\)"),
        (RECBOLE, DataError, r"empty"),
        (RECBOLE + "a\tb\n", DataError, r"row 2: must have 5 columns as the header \(got 2\)"),
        (RECBOLE + "a\tb\tnan\tx\t1\n", DataError, r"row 2: 'rating' must be a finite number \(got 'nan'\)"),
        (RECBOLE + "a\t\t1\tx\t1\n", DataError, r"row 2: 'user_id' and 'item_id' must not be empty"),
    ],
)
def test_bad_recbole(tmp_path: Path, text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read_recbole(write(tmp_path / "set.inter", text))


def test_matrices_of_two_splits_share_rows_and_columns(tmp_path: Path) -> None:
    train = read_adjacency_lists(write(tmp_path / "train.txt", "4 10 30 30\n9 20\n"))
    test = read_adjacency_lists(write(tmp_path / "test.txt", "4 20\n5 40\n"))
    (left, right), users, items = interaction_matrices([train, test])
    np.testing.assert_array_equal(users, [4, 5, 9])
    np.testing.assert_array_equal(items, [10, 20, 30, 40])
    np.testing.assert_array_equal(left.toarray(), [[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]])
    np.testing.assert_array_equal(right.toarray(), [[0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]])


def test_square_adjacency(tmp_path: Path) -> None:
    visits = np.array([[1, 0, 1], [0, 1, 0]], dtype=np.float32)
    square = np.block([[np.zeros((2, 2)), visits], [visits.T, np.zeros((3, 3))]])
    sp.save_npz(tmp_path / "adj.npz", sp.csr_array(square))
    np.testing.assert_array_equal(read_square_adjacency(tmp_path / "adj.npz", 2).toarray(), visits)
    with pytest.raises(DataError, match=r"square and larger than 5 users \(got \(5, 5\)\)"):
        read_square_adjacency(tmp_path / "adj.npz", 5)
    with pytest.raises(DataError, match=r"bad.npz: not a sparse matrix"):
        read_square_adjacency(write(tmp_path / "bad.npz", "x"), 2)
    with pytest.raises(MissingDataError, match=r"none.npz: no such file"):
        read_square_adjacency(tmp_path / "none.npz", 2)


# LLMs


def persona_rows() -> dict[str, list[str]]:
    return {
        "user_id": ["0", "1"],
        "performance_preference": ["0.2", "1.0"],
        "task_id": ["gsm8k", "gsm8k"],
        "query": ["How many, \nand why?", "b"],
        "query_embedding": ["[[0.5 -1.e-1\n 2.0]]", "[1, 2, 3]"],
        "effect": ["0.5", "1"],
        "cost": ["0.1", "0"],
        "ground_truth": ["7", "8"],
        "metric": ["em", "em"],
        "llm": ["small", "large"],
        "task_description": ["maths", "maths"],
        "task_description_embedding": ["[0.5 0.25]", "[0.5 0.25]"],
        "response": ["", "8"],
        "reward": ["0.02", "1"],
        "best_llm": ["small", "large"],
    }


def write_table(path: Path, rows: dict[str, list[str]]) -> Path:
    table = pa.table(rows)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
        return path
    names = list(rows)
    lines = [names, *zip(*rows.values(), strict=True)]
    quoted = (",".join('"' + cell.replace('"', '""') + '"' for cell in line) for line in lines)
    return write(path, "\n".join(quoted) + "\n")


@pytest.mark.parametrize("name", ["persona.csv", "persona.parquet"])
def test_persona_route(tmp_path: Path, name: str) -> None:
    found = read_persona_route(write_table(tmp_path / name, persona_rows()))
    assert len(found) == 2
    assert found.queries[0] == "How many, \nand why?"
    np.testing.assert_array_equal(found.preference, [0.2, 1.0])
    np.testing.assert_array_equal(found.reward, [0.02, 1.0])
    np.testing.assert_allclose(found.query_embeddings, [[0.5, -0.1, 2.0], [1, 2, 3]])
    assert found.task_embeddings.shape == (2, 2)
    assert found.best_llms.tolist() == ["small", "large"]


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        ("reward", "nan", r"row 2: 'reward' must be a finite number \(got 'nan'\)"),
        ("cost", "cheap", r"row 2: 'cost' must be a finite number \(got 'cheap'\)"),
        ("performance_preference", "1.5", r"row 2: 'performance_preference' must lie in 0..1 \(got 1.5\)"),
        ("llm", "", r"row 2: 'llm' must not be empty"),
        ("query_embedding", "[1, 2]", r"row 2: 'query_embedding' must have 3 numbers \(got 2\)"),
        ("query_embedding", "[1 ... 3]", r"row 2: 'query_embedding' must be a list of finite numbers"),
    ],
)
def test_bad_persona_route(tmp_path: Path, column: str, cell: str, message: str) -> None:
    rows = persona_rows()
    rows[column][1] = cell
    with pytest.raises(DataError, match=message):
        read_persona_route(write_table(tmp_path / "persona.csv", rows))


def test_persona_route_without_a_column(tmp_path: Path) -> None:
    rows = persona_rows()
    del rows["reward"]
    with pytest.raises(MissingDataError, match=r"no column 'reward' \(there are user_id, "):
        read_persona_route(write_table(tmp_path / "persona.csv", rows))


def routerbench_rows() -> dict[str, list[str]]:
    return {
        "sample_id": ["a.1", "a.2"],
        "prompt": ["one", "two"],
        "eval_name": ["mmlu", "mbpp"],
        "org/small": ["1.0", "0.0"],
        "large": ["1.0", "0.25"],
        "org/small|model_response": ["A", ""],
        "large|model_response": ["A", "def f"],
        "org/small|total_cost": ["1e-5", "2e-5"],
        "large|total_cost": ["1e-3", "2e-3"],
        "oracle_model_to_route_to": ["org/small", "large"],
    }


@pytest.mark.parametrize("name", ["bench.csv", "bench.parquet"])
def test_routerbench(tmp_path: Path, name: str) -> None:
    found = read_routerbench(write_table(tmp_path / name, routerbench_rows()))
    assert found.llms == ("org/small", "large")
    assert found.tasks == ("mmlu", "mbpp")
    np.testing.assert_array_equal(found.quality, [[1.0, 1.0], [0.0, 0.25]])
    np.testing.assert_array_equal(found.cost_usd, [[1e-5, 1e-3], [2e-5, 2e-3]])
    assert found.responses == (("A", "A"), ("", "def f"))


def test_routerbench_refuses_pickle_and_other_forms(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pickle files are refused"):
        read_routerbench(tmp_path / "routerbench_0shot.pkl")
    with pytest.raises(DataError, match=r"must end in .csv, .csv.gz or .parquet"):
        read_routerbench(write(tmp_path / "bench.xls", "x"))
    rows = {name: cells for name, cells in routerbench_rows().items() if "total_cost" not in name}
    with pytest.raises(DataError, match=r"no LLM: there must be columns"):
        read_routerbench(write_table(tmp_path / "bench.csv", rows))
    path = write_table(tmp_path / "cut.csv", routerbench_rows())
    write(path, path.read_text() + "a.3,three\n")
    with pytest.raises(DataError, match=r"cut.csv: .*Expected 10 columns, got 2"):
        read_routerbench(path)


def route_profile(folder: Path, answers: object, models: object) -> tuple[Path, Path]:
    answers_path, models_path = folder / "answers.json.gz", folder / "models.json"
    with gzip.open(answers_path, "wt") as file:
        json.dump(answers, file)
    return answers_path, write(models_path, json.dumps(models))


def answer(score: object, prompt: object = 10, completion: object = 20) -> dict[str, object]:
    return {
        "response": "x",
        "task_performance": score,
        "prompt_tokens": prompt,
        "completion_tokens": completion,
    }


MODELS = {
    "large": {"feature": "Big.", "input_price": 2.0, "output_price": 3.0},
    "small": {"feature": "Small."},
    "unused": {},
}


def test_route_profile(tmp_path: Path) -> None:
    answers = [
        {
            "query": "q",
            "task_name": "t",
            "model_performance": {"small": answer(None), "large": answer(0.5, 1000, 2000)},
        }
    ]
    table, catalogue = read_route_profile(*route_profile(tmp_path, answers, MODELS))
    assert table.llms == catalogue.names == ("small", "large")
    np.testing.assert_array_equal(table.quality, [[0.0, 0.5]])
    np.testing.assert_allclose(table.cost_usd, [[np.nan, 0.008]])
    np.testing.assert_array_equal(table.tokens, [[[10, 20], [1000, 2000]]])
    assert catalogue.llms[1].description == "Big."


@pytest.mark.parametrize(
    ("performance", "error", "message"),
    [
        ({"small": answer("high")}, DataError, r"query 2: score and tokens must be finite numbers"),
        ({"small": {"response": ""}}, MissingDataError, r"query 2: no field 'task_performance'"),
        ({"large": answer(1.0)}, DataError, r"query 2: must have the LLMs of the first one"),
    ],
)
def test_bad_route_profile(tmp_path: Path, performance: object, error: type[Exception], message: str) -> None:
    good = {"query": "q", "task_name": "t", "model_performance": {"small": answer(1.0)}}
    bad = {"query": "q", "task_name": "t", "model_performance": performance}
    with pytest.raises(error, match=message):
        read_route_profile(*route_profile(tmp_path, [good, bad], MODELS))


def test_route_profile_files_that_are_none(tmp_path: Path) -> None:
    good = [{"query": "q", "task_name": "t", "model_performance": {"other": answer(1.0)}}]
    with pytest.raises(MissingDataError, match=r"models.json: no LLM 'other', of which there are answers"):
        read_route_profile(*route_profile(tmp_path, good, MODELS))
    with pytest.raises(DataError, match=r"must be a list of at least one query"):
        read_route_profile(*route_profile(tmp_path, [], MODELS))
    with pytest.raises(DataError, match=r"bad.json: not JSON"):
        read_route_profile(write(tmp_path / "bad.json", "{"), tmp_path / "models.json")


def test_the_real_route_profile(shared_data: Path) -> None:
    folder = shared_data / "routeprofile"
    table, catalogue = read_route_profile(
        folder / "routing_test_data.json.gz", folder / "candidate_models.json"
    )
    assert table.quality.shape == (600, 8)
    assert len(set(table.tasks)) == 12
    assert (table.cost_usd > 0).all()
    assert catalogue.prices.shape == (8, 2)
    assert 0.4 < table.quality.mean() < 0.65


def test_the_real_gowalla(shared_data: Path) -> None:
    assert read_square_adjacency(shared_data / "gowalla" / "s_adj_mat.npz", 29_858).nnz == 810_128
    assert len(read_adjacency_lists(shared_data / "gowalla" / "test.txt.gz")) == 217_242
