"""Where tokens lie: the frames, rows and columns that a denoiser call is about, and its text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TokenGrid:
    """The tokens one self-attention runs over.

    Attributes:
        frames: latent frames after patching; 1 for a picture.
        height: rows of tokens in a frame.
        width: columns of tokens in a frame.
        text_first: tokens before those of the video (text of a joint sequence).
        text_last: tokens after them.
    """

    frames: int
    height: int
    width: int
    text_first: int = 0
    text_last: int = 0

    @property
    def video(self) -> int:
        """Tokens of the video."""
        return self.frames * self.height * self.width

    @property
    def tokens(self) -> int:
        """All tokens."""
        return self.text_first + self.video + self.text_last
