"""What the terms of one process share."""

from __future__ import annotations

from functools import cached_property

from rewards.config import RewardsConfig
from rewards.danger import DangerReader
from rewards.encoder import SentenceEncoder


class Workbench:
    """The settings, and the models that several terms use, loaded when the first one asks."""

    def __init__(self, config: RewardsConfig, *, sure_only: bool = True) -> None:
        """`sure_only`: whether the crisis head counts only where it is sure; see `CrisisConfig`."""
        self.config = config
        self._sure_only = sure_only

    @cached_property
    def encoder(self) -> SentenceEncoder:
        """The shared sentence encoder."""
        return SentenceEncoder(self.config.encoder)

    @cached_property
    def danger(self) -> DangerReader:
        """The one reading of how much danger a prompt's client is in."""
        if not self.config.crisis.classifier:
            return DangerReader()
        from rewards.crisis_head import CrisisHead

        return DangerReader(CrisisHead(self.encoder, sure_only=self._sure_only))

    def clear(self) -> None:
        """Drop what was remembered of a call's texts: the next call is judged by itself."""
        if "danger" in self.__dict__:  # not built for this
            self.danger.forget()
        if "encoder" in self.__dict__:
            self.encoder.forget()
