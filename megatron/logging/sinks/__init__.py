"""Where metrics go. A sink says whether a rank needs it (`wanted`), and has `log(values, step)` and `close(failed)`;
one that fails never stops training."""
