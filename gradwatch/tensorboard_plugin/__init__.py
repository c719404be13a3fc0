"""The "Gradient health" tab of TensorBoard, and what it shows.

TensorBoard starts ``gradwatch_tensorboard``, which lies beside this package: whatever of gradwatch is imported brings torch along,
and nobody who starts TensorBoard should wait for it, or fail where it cannot be imported. From there a request goes to ``routes``,
which has ``provider`` turn what TensorBoard has read into a ``recorded.Run``, and ``answers`` make of it what the page shows.
``gradwatch.report`` makes the same answers of a ``History``.
"""
