"""Imports Transformers' models without the log of torchao, which they import where it is installed.

torchao warns of libraries for accelerators that it cannot load, and torch of torchao's own code, whenever a program
starts; whoever quantizes nothing must not read that.
"""

import logging


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


_LOGGERS = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
for _logger in _LOGGERS:
    _logger.addFilter(_is_error)
try:
    import transformers.modeling_utils  # noqa: F401
finally:
    for _logger in _LOGGERS:
        _logger.removeFilter(_is_error)
