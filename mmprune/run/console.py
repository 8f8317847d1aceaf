"""A Runner as a command shows it: its failures are sentences."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from mmengine.runner import Runner

from ..errors import blame


class ConsoleRunner(Runner):
    """A Runner whose failures are one sentence.

    What fails in a run is the model, the data or the machine: the traceback
    goes to its log file.
    """

    def train(self) -> Any:
        """Trains; returns the model.

        Raises:
            ValueError: If it fails, with the config and what failed.
        """
        with self._blamed('cannot be trained'):
            return super().train()

    def test(self) -> dict[str, float]:
        """Tests; returns the metrics.

        Raises:
            ValueError: If it fails, with the config and what failed.
        """
        with self._blamed('cannot be tested'):
            return super().test()

    def load_or_resume(self) -> None:
        """Loads the checkpoint of the config, if it names one.

        Raises:
            ValueError: If that fails, with the checkpoint.
        """
        does = 'cannot be gone on from' if self._resume else 'cannot be loaded'
        with blame(f'{self._load_from} {does}'):
            super().load_or_resume()

    @contextlib.contextmanager
    def _blamed(self, what: str) -> Iterator[None]:
        try:
            with blame(f'{self.cfg.filename} {what}', self.cfg):
                yield
        except ValueError as error:
            record = self.logger.makeRecord(
                'mmengine', logging.ERROR, __file__, 0, str(error), (), None
            )
            record.exc_info = (type(error), error, error.__traceback__)
            for handler in self.logger.handlers:
                if isinstance(handler, logging.FileHandler):
                    handler.handle(record)
            raise
