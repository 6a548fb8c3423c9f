"""Showing text while it is made.

A streamer is given to ``generate(streamer=...)``, which calls ``put`` with the prompt's ids, then with each new
token, and ``end`` when it is done; ``fail`` is called with the exception if there is one. Text comes from the
tokenizer's incremental decoder, so a character made of several tokens appears once it is whole.

    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60.0)
    Thread(target=model.generate, kwargs={**inputs, "streamer": streamer}).start()
    for text in streamer:
        print(text, end="")
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from queue import Empty, Queue
from typing import Protocol

from torch import Tensor

from quarterdeck.errors import InputError


class IncrementalDecoder(Protocol):
    """Ids in, text that will not change any more out."""

    def feed(self, ids: Sequence[int]) -> str:
        """Text that is certain now, may be empty."""
        ...

    def close(self) -> str:
        """The rest."""
        ...


class StreamingTokenizer(Protocol):
    """What streamers need of a tokenizer."""

    def incremental_decoder(
        self, skip_special_tokens: bool = True, clean_up_tokenization_spaces: bool | None = None
    ) -> IncrementalDecoder:
        """A decoder for one stream."""
        ...


class BaseStreamer:
    """What `generate` calls. A subclass defines ``put`` and ``end``."""

    def put(self, value: Tensor) -> None:
        """Take the prompt's ids [B, T], then the ids of each step [B], on the CPU."""
        raise NotImplementedError(f"{type(self).__name__} must define put(value)")

    def end(self) -> None:
        """Generation is over."""
        raise NotImplementedError(f"{type(self).__name__} must define end()")

    def fail(self, error: BaseException) -> None:
        """Generation was cut short by ``error``, which `generate` raises to its own caller afterwards."""


class TextStreamer(BaseStreamer):
    """Prints the text of one sequence as it is made, and a line break at the end.

    Args:
        tokenizer: decodes; a `CohereTokenizerFast`.
        skip_prompt: whether to leave out the prompt.
        skip_special_tokens, clean_up_tokenization_spaces: as in the tokenizer's ``decode``.
    """

    def __init__(
        self,
        tokenizer: StreamingTokenizer,
        skip_prompt: bool = False,
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.skip_prompt = skip_prompt
        self.skip_special_tokens = skip_special_tokens
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces
        self._decoder: IncrementalDecoder | None = None

    def put(self, value: Tensor) -> None:
        """Take ids and show the text that they make certain.

        Raises:
            InputError: they are of several rows.
        """
        if value.ndim > 1 and value.shape[0] > 1:
            raise InputError(
                f"{type(self).__name__} shows one sequence, and this is a batch of {value.shape[0]}: generate one "
                "prompt with num_return_sequences=1, or leave out the streamer"
            )
        is_prompt = self._decoder is None
        if self._decoder is None:
            self._decoder = self.tokenizer.incremental_decoder(
                skip_special_tokens=self.skip_special_tokens,
                clean_up_tokenization_spaces=self.clean_up_tokenization_spaces,
            )
        if is_prompt and self.skip_prompt:
            return
        text = self._decoder.feed(value.flatten().tolist())
        if text:
            self.on_finalized_text(text)

    def end(self) -> None:
        """Show what is left and get ready for another prompt."""
        rest = "" if self._decoder is None else self._decoder.close()
        self._decoder = None
        self.on_finalized_text(rest, stream_end=True)

    def fail(self, error: BaseException) -> None:
        """Get ready for another prompt; the text is left as it is."""
        self._decoder = None

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print; a subclass may do something else with the text."""
        print(text, end="\n" if stream_end else "", flush=True)


class TextIteratorStreamer(TextStreamer):
    """Hands the text over to another thread: iterate over it while `generate` runs elsewhere.

    An exception in `generate` is raised in the iterating thread too. An iteration ends with the sequence; the
    object can then be used for another.

    Args:
        timeout: seconds to wait for the next text before `queue.Empty` is raised; None waits for ever.
        tokenizer, skip_prompt, skip_special_tokens, clean_up_tokenization_spaces: as for `TextStreamer`.
    """

    def __init__(
        self,
        tokenizer: StreamingTokenizer,
        skip_prompt: bool = False,
        timeout: float | None = None,
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> None:
        super().__init__(
            tokenizer,
            skip_prompt,
            skip_special_tokens=skip_special_tokens,
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
        )
        self.timeout = timeout
        self.text_queue: Queue[str | BaseException | None] = Queue()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Put the text into the queue, and None after the last."""
        if text:
            self.text_queue.put(text)
        if stream_end:
            self.text_queue.put(None)

    def fail(self, error: BaseException) -> None:
        """Have the iterating thread raise ``error`` after the text that came before it."""
        super().fail(error)
        self.text_queue.put(error)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        item = self._next_item()
        if item is None:
            raise StopIteration
        if isinstance(item, BaseException):
            raise item
        return item

    def _next_item(self) -> str | BaseException | None:
        try:
            return self.text_queue.get(timeout=self.timeout)
        except Empty:
            raise Empty(
                f"no text for {self.timeout} s: generation is slower than that, was never started, or died. "
                "Raise timeout, or look at the thread that generates"
            ) from None
