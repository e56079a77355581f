"""Two replicas on a Ray cluster of their own, whose workers do as they are told (``scripted_worker``): ``python scripted_cluster.py FOLDER``."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from medrag import responses
from medrag.serve import Config, app, cluster
from medrag.serve.feedback import Feedback
from medrag.serve.measures import Measures
from medrag.serve.pool import Pool
from medrag.serve.shield import Shield

CONFIG = Config(port=0, cluster="local", replicas_least=2, golden_question="?", queue_questions=2, batch_questions=1, deadline_seconds=20)


def application(folder: Path, script: str) -> Shield:
    responses.settled = lambda question: None  # what the workers are told is no question
    measures = Measures()
    pool = Pool(CONFIG, [sys.executable, script, "one", str(folder)], lambda: {"dense": "one"}, measures)
    return app.application(CONFIG, "", 3, pool, measures, Feedback(folder / "feedback.sqlite"))


if __name__ == "__main__":
    cluster.run(partial(application, Path(sys.argv[1]), str(Path(__file__).with_name("scripted_worker.py"))), CONFIG, 1, 0)
