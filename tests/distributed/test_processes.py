"""One process against two: the same training, evaluation and files."""

import os
from types import SimpleNamespace

import pytest
import torch
import two_processes
from launch import TESTS, launch
from small import build, images, models

from conr_hf.training.config.validation import check_processes
from conr_hf.utils.distributed import ranks_by_node

TWO = str(TESTS / "distributed" / "two_processes.py")
ON_FOUR = ("uneven", "methods", "nodes")
FIGURES = (
    *("loss", "grad_norm", "base_loss", "conr_loss", "conr_anchors", "conr_positives", "conr_negatives"),
    *("conr_gradient", "conr_cosine", "rnc_gradient", "rnc_cosine", "rnc_loss", "ranksim_loss", "noise_sigma"),
    *("conr_weight_now", "rnc_weight_now", "ranksim_weight_now", "ranksim_gradient"),
)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    two_processes.run(folder)
    torch.set_num_threads(threads)
    return torch.load(folder / "results.0.pt", weights_only=False)


@pytest.fixture(scope="module")
def two_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("two") / "runs"


@pytest.fixture(scope="module")
def two(two_folder):
    return launch(two_folder, ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", TWO])


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    folder = tmp_path_factory.mktemp("four") / "runs"
    return launch(folder, [str(TESTS / "distributed" / "four_processes.py")], *ON_FOUR, processes=4)


def assert_one_group(results):
    assert [result["group"]["world_size"] for result in results] == [2, 2]
    assert [result["group"]["backend"] for result in results] == ["gloo", "gloo"]
    assert all(result["group"]["ranks"] == [0, 1] for result in results)
    assert len(set(results[0]["group"]["processes"])) == 2
    assert [result["group"]["sum"].tolist() for result in results] == [[2.0, 1.0], [2.0, 1.0]]


def test_there_are_two_processes_in_one_group(one, two):
    """Without this, every comparison below would be of one process with itself."""
    assert_one_group(two)
    assert one["group"]["world_size"] == 1
    assert one["group"]["processes"] == [os.getpid()]


@pytest.mark.parametrize("case", two_processes.CASES)
def test_gradients_are_exchanged_once_a_step(two, case):
    """Of a batch in parts, or in micro-batches, too."""
    assert two[0][case]["exchanges"] == two[1][case]["exchanges"] == len(two[0][case]["weights"])


def test_the_line_that_the_refusal_gives_starts_a_group(tmp_path):
    """A user would be sent from one wrong launch to another."""
    launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    results = launch(tmp_path / "runs", ["-m", *launcher, TWO], "last alone")
    assert_one_group(results)
    assert results[0]["last alone"]["metrics"]["eval_mae"] == results[1]["last alone"]["metrics"]["eval_mae"]


# ---- Rows of all processes ------------------------------------------------------------------------------------------


def test_rows_are_gathered_in_order_of_rank(one, two):
    """The processes would take each other's rows for their own anchors."""
    expected = torch.cat([result["gathered"]["rows"] for result in two])
    for result in two:
        torch.testing.assert_close(result["gathered"]["values"], expected, rtol=0, atol=0)
    torch.testing.assert_close(one["gathered"]["values"], one["gathered"]["rows"], rtol=0, atol=0)


def test_gradient_of_gathered_rows_is_the_sum_over_processes(two):
    """ConR's gradient would lack what the other processes' anchors say about these rows."""
    for result in two:
        # Process r's loss is (r + 1) times the sum of squares of all rows.
        expected = 2 * result["gathered"]["rows"] * (1 + 2)
        torch.testing.assert_close(result["gathered"]["gradient"], expected, rtol=0, atol=0)


def test_gradient_of_conr_is_that_of_one_process(one, two):
    """Two GPUs would train another model than one; a gather without gradient is far from it."""
    expected = one["contrast"]["joined"]
    joined, detached = (torch.cat([result["contrast"][name] for result in two]) for name in ("joined", "detached"))
    torch.testing.assert_close(joined, expected, rtol=1e-5, atol=1e-6)
    assert (detached - expected).norm() > 0.1 * expected.norm()


# ---- Training -------------------------------------------------------------------------------------------------------


def assert_same_steps(results, one, case):
    alone = one[case]["log"]
    assert len(alone) == 2 * two_processes.EPOCHS
    for result in results:
        for step, expected in zip(result[case]["log"], alone, strict=True):
            assert set(step) == set(expected)
            for name in [name for name in FIGURES if name in expected]:
                assert step[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), (expected["step"], name)


def assert_same_weights(results, one, case):
    alone, first = one[case]["weights"], results[0][case]["weights"]
    assert (alone[-1] - alone[0]).norm() > 0.1, "nothing was learned, so nothing was compared"
    for step, expected in zip(first, alone, strict=True):
        torch.testing.assert_close(step, expected, rtol=1e-4, atol=1e-4)
    for result in results:
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(first, result[case]["weights"], strict=True))


@pytest.mark.parametrize("case", two_processes.CASES)
def test_steps_are_those_of_one_process(one, two, case):
    """Loss, gradient norm and logged figures would depend on the number of GPUs at the same global batch."""
    assert_same_steps(two, one, case)


@pytest.mark.parametrize("case", ON_FOUR)
def test_four_processes_on_two_nodes_are_one(one, four, case):
    """Rows of some processes would be missing, or twice there; of "nodes" those of the other node take no part."""
    assert [result["group"]["ranks"] for result in four] == [[0, 1, 2, 3]] * 4
    assert_same_steps(four, one, case)
    assert_same_weights(four, one, case)


@pytest.mark.parametrize("case", [case for case in two_processes.CASES if case not in ("mixed", "head alone")])
def test_conr_had_anchors(one, case):
    """The comparison would say nothing about ConR."""
    assert sum(entry["conr_anchors"] > 0 for entry in one[case]["log"]) >= two_processes.EPOCHS
    assert all(entry["conr_loss"] > 0 for entry in one[case]["log"] if entry["conr_anchors"] > 0)


@pytest.mark.parametrize("case", two_processes.CASES)
def test_weights_are_those_of_one_process(one, two, case):
    """Two GPUs would end at another model, or each at one of its own."""
    assert_same_weights(two, one, case)


@pytest.mark.parametrize("case", two_processes.CASES)
def test_evaluation_is_that_of_one_process(one, two, case):
    """The best checkpoint would be chosen by figures over padded, missing or half of the rows."""
    for result in two:
        for entry, expected in zip(result[case]["evaluations"], one[case]["evaluations"], strict=True):
            assert entry["eval_n"] == expected["eval_n"] == 11
            for name in ("eval_mae", "eval_mse", "eval_gm", "eval_bmae"):
                assert entry[name] == pytest.approx(expected[name], rel=1e-4)
        assert result[case]["predictions"] == pytest.approx(one[case]["predictions"], rel=1e-4)
        assert result[case]["kept_when_dropping"] == 11
    first, second = (result[case]["metrics"] for result in two)
    timed = ("runtime", "per_second")
    assert {k: v for k, v in first.items() if not k.endswith(timed)} == {
        k: v for k, v in second.items() if not k.endswith(timed)
    }


@pytest.mark.parametrize("case", two_processes.CASES)
def test_repeats_are_not_counted(two, case):
    """Rows that only even out the last batch would weigh double."""
    rows = two_processes.CASES[case][0]
    micro_batches = list(zip(two[0][case]["counted"], two[1][case]["counted"], strict=True))
    for first, second in micro_batches:
        assert first[1] == second[1], "batches of different sizes on the two processes"
        assert first[2] == second[2], "the processes disagree on who counts"
        assert second[0] == first[0] + first[1]
    assert sum(sum(first[2]) for first, _ in micro_batches) == rows
    labels = two[0][case]["labels"]
    counted = torch.cat([part[3].reshape(-1, labels.shape[1]) for pair in micro_batches for part in pair])
    if case not in ("resampled", "with what goes with ConR", "mixed"):  # whose rows are others by design
        assert sorted(counted.tolist()) == sorted(labels.tolist())


@pytest.mark.parametrize("case", two_processes.CASES)
def test_checkpoints_are_written_once(two, two_folder, case):
    """Two processes that write the same file at once can leave a broken one."""
    names = [f"checkpoint-{2 * epoch}" for epoch in range(1, two_processes.EPOCHS + 1)]
    assert [result[case]["written"] for result in two] == [names, []]
    for name in names:
        files = sorted(path.name for path in (two_folder / case / name).iterdir())
        assert [file for file in files if file.startswith("rng_state")] == ["rng_state_0.pth", "rng_state_1.pth"]
        assert {"conr_state.safetensors", "model.safetensors", "trainer_state.json"} <= set(files)


def test_processes_that_share_the_reading_leave_out_the_same_rows(one, two):
    """Row 3 is read by the second process; the first would train on it and stop in mid-epoch."""
    assert [result["skipped"] for result in (one, *two)] == [[0, 1, 2, 4, 5, 6]] * 3


def test_processes_that_share_the_reading_know_the_same_maps(one, two):
    """Their bins and weights would be those of different labels."""
    assert two[0]["maps"] == two[1]["maps"] == one["maps"]
    (labels, rows, share, _), (sample, _, share_of_sample, _) = one["maps"].values()
    assert len(labels) == 16 + 14 + 12 + 8 + 6 + 4
    assert len(sample) == 40
    assert sorted(set(rows)) == [0, 1, 2, 3, 4, 5]  # of the rows that can be used
    assert share == share_of_sample == len(labels) / 6 / 16


@pytest.mark.parametrize("case", two_processes.MAP_CASES)
def test_training_on_maps_is_that_of_one_process(one, two, case):
    """Each process draws the pixels of its own maps, and has other numbers of pixels without label."""
    alone = one[f"maps, {case}"]
    assert (alone["weights"][-1] - alone["weights"][0]).norm() > 0.05
    assert sum(entry["conr_loss"] > 0 for entry in alone["log"]) >= 2  # means of four maps need not have partners
    for result in (result[f"maps, {case}"] for result in two):
        for step, expected in zip(result["log"], alone["log"], strict=True):
            for name in [name for name in FIGURES if name in expected]:
                assert step[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), (expected["step"], name)
        for weights, expected in zip(result["weights"], alone["weights"], strict=True):
            torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-4)
        for entry, expected in zip(result["evaluations"], alone["evaluations"], strict=True):
            assert entry["eval_n"] == expected["eval_n"]
            for name in ("eval_mae", "eval_rmse", "eval_bmae"):
                assert entry[name] == pytest.approx(expected[name], rel=1e-4)
        for shot, figures in alone["errors"].items():
            assert result["errors"][shot] == pytest.approx(figures, rel=1e-3, abs=1e-4)
    for ours, theirs in zip(*(result[f"maps, {case}"]["weights"] for result in two), strict=True):
        assert torch.equal(ours, theirs)


def test_resumed_equals_uninterrupted_bit_for_bit(one, two):
    """A run that was stopped would end at another model, on two processes if not on one."""
    for result in (one, *two):
        assert result["resumed"]["steps"] == (8, 8)
        assert torch.equal(result["resumed"]["whole"], result["resumed"]["late"])
    assert torch.equal(two[0]["resumed"]["late"], two[1]["resumed"]["late"])


# ---- Nodes ----------------------------------------------------------------------------------------------------------


def test_the_nodes_of_processes():
    """Processes of different nodes would wait for each other in groups that are not the same."""
    assert ranks_by_node([0, 1, 2, 3]) == ((0, 1, 2, 3),)
    assert ranks_by_node([0, 1, 0, 1, 2, 0]) == ((0, 1), (2, 3, 4), (5,))
    for scattered in ([0, 0, 1, 1], [1, 0], [0, 2]):
        with pytest.raises(ValueError, match=r"conr_gather is node, but the processes have indices .* node by node"):
            ranks_by_node(scattered)


# ---- Refusals -------------------------------------------------------------------------------------------------------


def test_processes_that_found_no_group_are_refused(monkeypatch, tmp_path):
    """Two independent runs would write over each other's checkpoints."""
    trainer = build(*models["vit"](), tmp_path, images(4))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"2 processes.*groups of 1.*accelerate launch --multi_gpu --num_processes 2"):
        check_processes(trainer.args)
    with pytest.raises(ValueError, match="accelerate launch --multi_gpu --num_processes 2"):
        type(trainer)(trainer.model, trainer.args, train_dataset=images(4), processing_class=trainer.processing_class)
    monkeypatch.setenv("WORLD_SIZE", "1")
    check_processes(trainer.args)


def test_a_group_that_no_launcher_started_is_refused(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match="started 1 processes, but they form groups of 2"):
        check_processes(SimpleNamespace(world_size=2, n_gpu=1))


def test_several_gpus_without_a_launcher_are_refused(monkeypatch):
    """DataParallel would lose the features, and ConR with them."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(
        ValueError, match=r"4 GPUs.*accelerate launch --multi_gpu --num_processes 4.*CUDA_VISIBLE_DEVICES"
    ):
        check_processes(SimpleNamespace(world_size=1, n_gpu=4))
    check_processes(SimpleNamespace(world_size=1, n_gpu=1))
