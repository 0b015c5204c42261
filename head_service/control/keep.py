"""What is kept, and the ways to it: opened once by the API, and once by each worker."""

from dataclasses import dataclass

from head_service.control.data import TrainingData
from head_service.control.errors import ControlError
from head_service.control.feedback import FeedbackStore
from head_service.control.live import LiveHead, live_heads
from head_service.control.retraining import Retraining
from head_service.control.runs import Runs
from head_service.control.settings import Settings
from head_service.control.store import Store
from head_service.control.uploads import Uploads
from head_service.control.wakeup import Wakeup


@dataclass(frozen=True, slots=True)
class Kept:
    """All of it."""

    store: Store
    runs: Runs
    feedback: FeedbackStore
    uploads: Uploads
    data: TrainingData
    retraining: Retraining
    wakeup: Wakeup
    live_head: LiveHead

    def close(self) -> None:
        """Let the connections go."""
        self.wakeup.close()
        self.store.close()


def open_kept(settings: Settings) -> Kept:
    """Open, and make where it is not there yet.

    Raises:
        ControlError: the database or the queue cannot be used.
    """
    store = open_store(settings)
    store.start()
    runs = Runs(store, max_attempts=settings.max_attempts, retry_seconds=settings.retry_seconds)
    feedback = FeedbackStore(store, max_rows_per_day=settings.max_feedback_per_day)
    uploads = Uploads(
        store, settings.uploads_dir, max_bytes=settings.max_upload_bytes, max_total_bytes=settings.max_uploads_bytes
    )
    data = TrainingData(uploads, feedback, settings.data_dir)
    live_head = live_heads(settings.location)
    retraining = Retraining(runs, feedback, live_head)
    return Kept(store, runs, feedback, uploads, data, retraining, Wakeup(settings.queue_url), live_head)


def open_store(settings: Settings) -> Store:
    """The database alone, whatever its form is.

    Raises:
        ControlError: it cannot be used.
    """
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ControlError(f"{settings.home} cannot be made ({error.strerror}); name another --home") from None
    return Store(settings.database_url)
