"""From what the hooks collected to the pass as it is shown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor

from gradwatch import moments
from gradwatch.errors import NothingToWatch, NotTraced
from gradwatch.trace import tree
from gradwatch.trace.passes import NAN, Call, Layer, Parameter, Pass, Valve, norm
from gradwatch.trace.recorder import TAP, Observed, Recorder, Seen


def assemble(recorder: Recorder) -> Pass:
    """Joins values and gradients.

    Raises:
        NothingToWatch: No module was called and no tensor tapped.
        NotTraced: No gradient arrived.
    """
    if recorder.error is not None:
        raise recorder.error
    if not recorder.calls and recorder.root:
        raise NothingToWatch(
            f"no module of {recorder.root!r} was called in the traced block: call the model that is traced inside the block; of a "
            f"compiled or scripted model, trace the one that it was made from"
        )
    if not any(slot.sums for slot in recorder.slots):
        raise NotTraced(
            "no gradient arrived anywhere in the traced block: call loss.backward() before the block ends, on a loss that was "
            "computed inside it"
        )
    # A pass that builds a graph of gradients (a gradient penalty) is a step towards the loss, if another pass follows it.
    graph = not any(False in slot.sums for slot in recorder.slots)
    calls = _with_products(_calls(recorder, graph=graph))
    by_id, params = _parameters(recorder, graph=graph)
    return Pass(_layers(recorder, calls, by_id, params), tuple(calls), params, recorder.kept)


def norm_of(tensor: Tensor) -> float:
    """The Euclidean norm, safe from overflow and underflow."""
    return float(moments.measure(tensor)[1][1])


def _calls(recorder: Recorder, *, graph: bool) -> list[Call]:
    met: dict[str, int] = {}
    calls = []
    for observed in recorder.calls:
        index = met[observed.name] = met.get(observed.name, -1) + 1
        calls.append(_call(observed, index, graph=graph))
    return calls


def _call(observed: Observed, index: int, *, graph: bool) -> Call:
    gradients: dict[int, Tensor | None] = {}

    def gradient(seen: Seen) -> Tensor | None:
        if seen.place is None:
            return None
        # The place decides, not the tensor: a tensor that is passed twice has one gradient, which counts once.
        if id(seen.place) not in gradients:
            gradients[id(seen.place)] = seen.place.gradient(graph=graph)
        return gradients[id(seen.place)]

    def size(structure: Any) -> float:
        places = {id(seen.place): gradient(seen) for _, seen in tree.leaves(structure, Seen)}
        return norm([norm_of(arrived) for arrived in places.values() if arrived is not None])

    return Call(
        observed.name,
        observed.type,
        index,
        input=tree.convert(observed.input, Seen, lambda seen: seen.value),
        output=tree.convert(observed.output, Seen, lambda seen: seen.value),
        grad_output=tree.convert(observed.output, Seen, gradient),
        grad_input=tree.convert(observed.input, Seen, gradient),
        grad_output_norm=size(observed.output),
        grad_input_norm=size(observed.input),
        valve=None if observed.valve is None else Valve(*map(float, observed.valve)),
        kept=observed.kept,
        encloses=observed.encloses,
    )


def _with_products(calls: list[Call]) -> list[Call]:
    start = next((call.grad_output_norm for call in reversed(calls) if _is_link(call) and call.grad_output_norm > 0), NAN)
    return [replace(call, product=call.grad_input_norm / start) if _is_link(call) else call for call in calls]


def _is_link(call: Call) -> bool:
    return not call.encloses and call.type != TAP


def _parameters(recorder: Recorder, *, graph: bool) -> tuple[dict[int, Parameter], dict[str, Parameter]]:
    """The parameters, by the identity of the original and by name."""
    grads = {name: None if slot is None else slot.sums.get(graph) for name, (_, _, slot) in recorder.params.items()}
    norms = {name: norm_of(grad) for name, grad in grads.items() if grad is not None}
    total = norm(list(norms.values()))
    params = {
        name: Parameter(value, grads[name], (norms.get(name, 0.0) / total) ** 2 if total else NAN)
        for name, (_, value, _) in recorder.params.items()
    }
    return {identity: params[name] for name, (identity, _, _) in recorder.params.items()}, params


def _layers(
    recorder: Recorder, calls: Iterable[Call], by_id: dict[int, Parameter], params: dict[str, Parameter]
) -> dict[str, Layer]:
    grouped: dict[str, list[Call]] = {}
    for call in calls:
        grouped.setdefault(call.layer, []).append(call)
    layers = {}
    for name in dict.fromkeys((*grouped, *recorder.layers)):
        module = recorder.layers.get(name)
        own = () if module is None else module.named_parameters(recurse=False)
        kind = TAP if module is None else type(module).__name__
        parameters = {key: by_id[id(value)] for key, value in own if id(value) in by_id}
        layers[name] = Layer(name, kind, tuple(grouped.get(name, ())), parameters)
    if recorder.root is None:
        raw = {name: Call(name, "tensor", output=parameter.value, grad_output=parameter.grad) for name, parameter in params.items()}
        layers = {name: Layer(name, "tensor", (call,), {}) for name, call in raw.items()} | layers
    return layers
