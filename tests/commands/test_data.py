"""Files of the bundled benchmark: a limit is met by as many scenes as it needs."""

from ivc_jax.commands.data import open_task
from ivc_jax.commands.settings import RunConfig
from ivc_jax.evals.benchmarks import tasks


def test_a_larger_limit_draws_more_scenes_and_leaves_the_first_as_they_are(tmp_path):
    (task,) = tasks.find(["colour"])

    def list_lines(limit):
        settings = RunConfig(
            methods=("dense",),
            tasks=("colour",),
            limit=limit,
            num_scenes=2,
            data_seeds=(0, 1),
        )
        file = open_task(settings, task, tmp_path, print).file
        return file.path.read_text().splitlines()

    few, more = list_lines(3), list_lines(24)
    assert 3 < len(few) - 1 <= 8  # four scenes, a question or two about each
    assert len(more) - 1 >= 24
    assert more[: len(few)] == few
