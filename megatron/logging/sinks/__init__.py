"""Where metrics go. A sink has `log(values, step)` and `close()`; one that fails never stops training."""
