"""What tests/gpu.sh measures runs on a CPU too, at its smallest size."""

import bench_gpu


def test_the_rows_of_the_table(tmp_path):
    sizes = bench_gpu.TOY._replace(models=("timm/test_vit",), steps=1, losses=((8, 4),))
    losses = list(bench_gpu.loss_rows(sizes))
    views = list(bench_gpu.view_rows(sizes))
    step = list(bench_gpu.step_rows(sizes, str(tmp_path), "timm/test_vit", compiled=False))
    assert [len(losses), len(views), len(step)] == [1, 1, 3]
    assert all(len(row) == 4 for row in losses + views + step)
    assert "the same to the last bit" in views[0][-1]
