"""One forward and backward pass, explained layer by layer.

It answers three questions of backpropagation: how the error is shared out backwards (the chain and the blame), where an
activation's derivative closes the way (the valves), and what forward has to keep so that backward is possible.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from types import TracebackType
from typing import TYPE_CHECKING

from torch import Tensor, nn

from gradwatch.capture.valves import MOSTLY_CLOSED
from gradwatch.errors import InvalidSetting, NotTraced
from gradwatch.trace.assemble import assemble
from gradwatch.trace.passes import Call, Layer, Parameter, Pass, Valve
from gradwatch.trace.recorder import Recorder
from gradwatch.trace.saved import Kept

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

__all__ = ["Call", "Kept", "Layer", "Parameter", "Trace", "Valve", "trace"]


def trace(model: nn.Module | Mapping[str, Tensor]) -> Trace:
    """Explains one forward and backward pass.

    ```python
    with gradwatch.trace(model) as trace:
        loss = loss_fn(model(x), y)
        loss.backward()
    print(trace)
    ```

    The pass itself is not changed: values and gradients are equal to the last bit with and without the trace. Everything that
    is kept is a copy: four tensors a layer, so that a trace needs memory for the activations and their gradients twice over.

    Observed are the modules that contain no others, and those that own parameters themselves. Several backward passes add up,
    as in ``.grad``; a pass with ``create_graph=True`` is left out where one without follows it (a gradient penalty).

    Args:
        model: A module; or, for code without modules, a mapping of name → leaf tensor.

    Returns:
        What is filled in as soon as the ``with`` block ends.

    Raises:
        NothingToWatch: At the start, if the mapping holds no leaf tensors, or a parameter has no shape yet; at the end of the
            block, if no module of the model was called in it.
        NotTraced: At the end of the block, if no gradient arrived.
    """
    return Trace(model)


class Trace:
    """What one pass showed; see ``trace``.

    ``trace["fc"]`` is a layer, iterating gives the layers in forward order, and ``print`` shows the whole.
    """

    def __init__(self, model: nn.Module | Mapping[str, Tensor]) -> None:
        self._model = model
        self._recorder: Recorder | None = None
        self._pass: Pass | None = None

    def __enter__(self) -> Trace:
        self._pass = None
        self._recorder = Recorder(self._model)
        try:
            self._recorder.open()
        except BaseException:  # Python leaves a block that was not entered without calling __exit__
            self._recorder.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            return
        recorder.close()
        if error is None:
            self._pass = assemble(recorder)

    def tap(self, name: str, tensor: Tensor) -> Tensor:
        """Observes a tensor that no module returns, by a name of its own.

        Args:
            name: Used several times, it stands for several calls.
            tensor: Any tensor of the pass.

        Returns:
            The tensor itself.

        Raises:
            InvalidSetting: The name belongs to a module or to a raw tensor.
            NotTraced: The block has ended, or not begun.
        """
        if self._recorder is None:
            raise NotTraced(f"tap({name!r}) outside of the traced block: tap between `with gradwatch.trace(...)` and its end")
        if name in self._recorder.modules or name in self._recorder.params:
            raise InvalidSetting(f"tap({name!r}): the model has a tensor or module of that name; choose another name")
        self._recorder.tap(name, tensor)
        return tensor

    def __getitem__(self, name: str) -> Layer:
        layers = self._done.layers
        if name not in layers:
            close = get_close_matches(name, layers, n=3, cutoff=0.4)
            known = f"did you mean {' or '.join(map(repr, close))}?" if close else f"there are {', '.join(map(repr, layers))}"
            raise NotTraced(f"no layer {name!r} in the traced pass: {known}")
        return layers[name]

    def __contains__(self, name: object) -> bool:
        return name in self._done.layers

    def __iter__(self) -> Iterator[Layer]:
        return iter(self._done.layers.values())

    @property
    def calls(self) -> tuple[Call, ...]:
        """Every call, and every tapped tensor, in forward order."""
        return self._done.calls

    @property
    def params(self) -> dict[str, Parameter]:
        """Every parameter or raw tensor by its full name: value, gradient, and share of the total squared gradient."""
        return self._done.params

    @property
    def kept(self) -> dict[str, Kept]:
        """Module → what it keeps for backward, beside what modules before it, or inside it, keep.

        What a module computes without calling others stands under its own name, also where it contains modules. Empty where
        this torch does not tell.
        """
        return self._done.kept

    @property
    def closed(self) -> tuple[Call, ...]:
        """Activations that hardly let any gradient pass: more than ``valves.MOSTLY_CLOSED`` of their elements are closed."""
        return tuple(call for call in self.calls if call.valve is not None and call.valve.closed > MOSTLY_CLOSED)

    def to_pandas(self) -> pandas.DataFrame:
        """A tidy frame: one row per tensor, in forward order.

        Returns:
            Columns ``layer`` (for parameters their full name), ``type``, ``call``, ``tensor`` (``input``, ``activation``,
            ``activation_grad``, ``input_grad``, ``parameter``, ``parameter_grad``), ``path`` (the subscripts that lead to the
            tensor where a layer takes or returns several), ``shape``, every statistic of ``statistics.STATISTICS``; and, NaN in
            all other rows, ``derivative`` (mean of |da/dz|), ``closed_share`` (elements with |da/dz| below ``valves.CLOSED``)
            and ``kept`` (bytes) beside the activation, ``gain`` and ``product`` beside the input gradient, ``share`` beside the
            parameter gradient.
        """
        from gradwatch.trace.frame import frame

        return frame(self._done)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the gradient's magnitude against depth, with the valves and how far they are closed.

        Args:
            ax: Where to draw; a new figure without it.

        Returns:
            The axes.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from gradwatch.trace.figure import draw

        return draw(self._done, ax)

    def __repr__(self) -> str:
        if self._pass is None:
            return "Trace(the traced block has not ended)"
        return f"Trace({len(self._pass.layers)} layers, {len(self.calls)} calls; print it to read it)"

    def __str__(self) -> str:
        if self._pass is None:
            return repr(self)
        from gradwatch.trace.view import text

        return text(self._done)

    def __rich__(self) -> object:
        if self._pass is None:
            return repr(self)
        from gradwatch.trace.view import rich_tables

        return rich_tables(self._done)

    def _repr_html_(self) -> str | None:
        if self._pass is None:
            return None
        from gradwatch.trace.view import html

        return html(self._done)

    @property
    def _done(self) -> Pass:
        if self._pass is None:
            raise NotTraced("there is no pass to look at: the traced block has not ended, or ended with an exception")
        return self._pass
