"""The logs of a training, as the page about a run reads them."""

from tiny_report import iteration, write_log

from mmprune.run.report_html.training_log import read_runs


def test_the_log_of_a_runner_is_read(reported_run):
    (run,) = read_runs(reported_run)
    assert run.name == 'fine_tuned'
    assert run.train['loss'].steps == [1, 2, 3, 4, 5, 6]
    assert run.train['lr'].values == [0.1] * 6
    assert run.val['mean'].steps == [1, 2, 3]
    assert run.val_by_epoch
    assert not {'time', 'data_time', 'epoch', 'iter'} & set(run.train)


def test_resumed_runs_are_joined_and_the_later_one_holds(tmp_path):
    older = [iteration(s, 10.0 + s) for s in (1, 2, 3, 4)]
    newer = [iteration(s, 20.0 + s) for s in (3, 4, 5)]
    write_log(tmp_path, '20260101_000000', older)
    write_log(tmp_path, '20260102_000000', newer)
    (run,) = read_runs(tmp_path)
    assert run.name == '.'
    assert run.train['loss'].steps == [1, 2, 3, 4, 5]
    assert run.train['loss'].values == [11, 12, 23, 24, 25]


def test_a_training_begun_anew_does_not_show_the_older_metrics(tmp_path):
    older = [iteration(1, 2.0), iteration(2, 1.0), dict(mAP=0.3, step=2)]
    write_log(tmp_path, '20260101_000000', older)
    write_log(tmp_path, '20260102_000000', [iteration(3, 1.0)])
    assert read_runs(tmp_path)[0].val['mAP'].values == [0.3]
    write_log(tmp_path, '20260103_000000', [iteration(1, 9.0)])
    (run,) = read_runs(tmp_path)
    assert run.train['loss'].values == [9.0] and not run.val


def test_a_line_that_is_cut_off_is_left_out(tmp_path):
    write_log(tmp_path, '20260101_000000', [iteration(1, 2.0)])
    log = tmp_path / '20260101_000000/vis_data/20260101_000000.json'
    log.write_text(log.read_text() + '{"loss": 1.5, "it')
    (run,) = read_runs(tmp_path)
    assert run.train['loss'].values == [2.0]


def test_an_evaluation_by_iteration_is_not_taken_for_epochs(tmp_path):
    lines = [iteration(s, 1.0) for s in (50, 100)]
    write_log(tmp_path, '20260101_000000', [*lines, dict(acc=0.5, step=100)])
    (run,) = read_runs(tmp_path)
    assert not run.val_by_epoch
    assert run.val['acc'].steps == [100]
